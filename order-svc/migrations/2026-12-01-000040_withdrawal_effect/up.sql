-- Whoever writes rows of withdrawal_effect holds this row, so that none is written while they are copied.
UPDATE follower SET revision = revision;
-- Without the references to withdrawal and subscription: whoever writes a row has just updated the subscription, and read or
-- written the withdrawal. PostgreSQL took four times as long for a row with them.
CREATE TABLE new_withdrawal_effect (
    revision BIGINT NOT NULL,
    subscription_id TEXT NOT NULL,
    payer_id TEXT NOT NULL,
    reseller_id TEXT NOT NULL,
    outcome TEXT NOT NULL,
    PRIMARY KEY (revision, subscription_id)
);
INSERT INTO new_withdrawal_effect (revision, subscription_id, payer_id, reseller_id, outcome)
SELECT revision, subscription_id, payer_id, reseller_id, outcome FROM withdrawal_effect;
DROP TABLE withdrawal_effect;
ALTER TABLE new_withdrawal_effect RENAME TO withdrawal_effect;
