-- Set once, in place of approved_at or rejected_at, where the reseller took its proposal back.
ALTER TABLE proposal ADD COLUMN withdrawn_at TIMESTAMP;
-- Proposals that wait for a decision, or expired while they did.
CREATE INDEX proposal_open_of_reseller ON proposal (reseller_id, revision)
    WHERE approved_at IS NULL AND rejected_at IS NULL AND withdrawn_at IS NULL;
CREATE INDEX proposal_open_of_provider ON proposal (provider_id, revision)
    WHERE approved_at IS NULL AND rejected_at IS NULL AND withdrawn_at IS NULL;
CREATE INDEX proposal_open ON proposal (revision)
    WHERE approved_at IS NULL AND rejected_at IS NULL AND withdrawn_at IS NULL;
