CREATE INDEX acceptance_withdrawn ON acceptance (customer_id, partner_id, agreement_type)
    WHERE withdrawn_at IS NOT NULL;
DROP INDEX acceptance_last_withdrawn;
