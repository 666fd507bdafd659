CREATE INDEX acceptance_by_partner ON acceptance (customer_id, partner_id);
