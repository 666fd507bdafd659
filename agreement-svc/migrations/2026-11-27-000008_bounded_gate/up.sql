-- The gate asks whether a pair has any withdrawn acceptance of a type, and when a customer first signed. With
-- these indexes each answer takes one look-up, however long the history is.
CREATE INDEX acceptance_withdrawn ON acceptance (customer_id, partner_id, agreement_type)
    WHERE withdrawn_at IS NOT NULL;
CREATE INDEX acceptance_by_agreement ON acceptance (customer_id, partner_id, agreed_at);
