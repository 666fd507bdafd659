-- Why and by whom an acceptance was withdrawn; '' while it was not. Set once, with withdrawn_at.
ALTER TABLE acceptance ADD COLUMN withdrawal_reason TEXT NOT NULL DEFAULT '';
ALTER TABLE acceptance ADD COLUMN withdrawn_by TEXT NOT NULL DEFAULT '';

-- A customer's history, in order.
CREATE INDEX event_by_customer ON event (customer_id, revision);

-- partner_id and reseller_id as on a relationship. customer_id is '' until somebody accepts, where the
-- invitation is for anybody. The recipient is a note of the partner's, all '' where there is none.
CREATE TABLE invitation (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    partner_id TEXT NOT NULL REFERENCES partner (id),
    reseller_id TEXT NOT NULL,
    customer_id TEXT NOT NULL,
    template_id TEXT NOT NULL REFERENCES template (id),
    first_name TEXT NOT NULL,
    last_name TEXT NOT NULL,
    email TEXT NOT NULL,
    phone TEXT NOT NULL,
    contact_salt TEXT NOT NULL,
    created_at TIMESTAMP NOT NULL,
    created_by TEXT NOT NULL,
    expires_at TIMESTAMP NOT NULL,
    accepted_at TIMESTAMP,
    revoked_at TIMESTAMP,
    revision BIGINT NOT NULL
);
CREATE INDEX invitation_by_partner ON invitation (partner_id, revision);
CREATE INDEX invitation_by_reseller ON invitation (reseller_id, revision);
CREATE INDEX invitation_by_age ON invitation (revision);

-- The announcement of an attestation, queued in the transaction that stores it. It names nobody: the
-- mail is written when it is sent. due_at moves forward when it is claimed, so that whoever claimed it
-- and went away is followed by the next.
CREATE TABLE notification (
    attestation_id TEXT PRIMARY KEY REFERENCES acceptance (id),
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    due_at TIMESTAMP NOT NULL,
    sent_at TIMESTAMP,
    last_failure TEXT NOT NULL
);
CREATE INDEX notification_due ON notification (due_at) WHERE state = 'QUEUED';
