-- A customer may decline an invitation: when it did, and which of the reasons of a closed list it gave.
ALTER TABLE invitation ADD COLUMN declined_at TIMESTAMP;
ALTER TABLE invitation ADD COLUMN decline_reason TEXT;
-- The declined invitations of the blocked customers of a page.
CREATE INDEX invitation_declined ON invitation (customer_id, declined_at) WHERE declined_at IS NOT NULL;
