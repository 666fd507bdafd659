-- A refusal names the acceptance of a kind and type that was withdrawn last. This index finds it however many there are, and
-- serves what the dropped one served.
CREATE INDEX acceptance_last_withdrawn ON acceptance (customer_id, partner_id, agreement_type, withdrawn_at)
    WHERE withdrawn_at IS NOT NULL;
DROP INDEX acceptance_withdrawn;
