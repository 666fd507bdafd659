-- What of a payer's or a reseller's ends soon.
CREATE INDEX subscription_due_of_payer ON subscription (payer_id, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX subscription_due_of_reseller ON subscription (reseller_id, due_at) WHERE due_at IS NOT NULL;
