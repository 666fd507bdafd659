CREATE INDEX acceptance_by_partner ON acceptance (customer_id, partner_id);
DROP INDEX acceptance_in_force;
