UPDATE follower SET revision = revision;
CREATE TABLE old_withdrawal_effect (
    revision BIGINT NOT NULL REFERENCES withdrawal (revision),
    subscription_id TEXT NOT NULL REFERENCES subscription (id),
    payer_id TEXT NOT NULL,
    reseller_id TEXT NOT NULL,
    outcome TEXT NOT NULL,
    PRIMARY KEY (revision, subscription_id)
);
INSERT INTO old_withdrawal_effect (revision, subscription_id, payer_id, reseller_id, outcome)
SELECT revision, subscription_id, payer_id, reseller_id, outcome FROM withdrawal_effect;
DROP TABLE withdrawal_effect;
ALTER TABLE old_withdrawal_effect RENAME TO withdrawal_effect;
