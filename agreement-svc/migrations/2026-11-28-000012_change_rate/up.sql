-- How often the acceptances of a customer and a partner ('' is the customer itself) have changed lately.
CREATE INDEX acceptance_by_recorded ON acceptance (customer_id, partner_id, recorded_at);
CREATE INDEX acceptance_by_withdrawn ON acceptance (customer_id, partner_id, withdrawn_at) WHERE withdrawn_at IS NOT NULL;
