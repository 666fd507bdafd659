-- Answers are forgotten by age.
CREATE INDEX request_by_age ON request (answered_at);

-- due_at is the end of the current term while somebody must still process it: the subscription has
-- not ended, and has a term.
ALTER TABLE subscription ADD COLUMN due_at TIMESTAMP;
UPDATE subscription SET due_at = term_end WHERE state IN ('ACTIVE', 'SUSPENDED');
CREATE INDEX subscription_due ON subscription (due_at, id) WHERE due_at IS NOT NULL;

-- Why it changed, the event of agreement-svc behind it (0 where there is none), and the term it was
-- in afterwards. Until here users asked for every change, and nothing was ever renewed. Where
-- order-svc changes something by itself, actor and actor_tenant are ''; where the gate was not asked,
-- gate_decision, gate_rule and gate_evidence are '' and gate_revision is 0.
ALTER TABLE subscription_change ADD COLUMN reason TEXT NOT NULL DEFAULT 'REQUESTED';
ALTER TABLE subscription_change ADD COLUMN event_revision BIGINT NOT NULL DEFAULT 0;
ALTER TABLE subscription_change ADD COLUMN term_number INTEGER NOT NULL DEFAULT 1;

-- How far agreement-svc's history has been applied: one row, whose update comes first in the
-- transaction that applies an event.
CREATE TABLE follower (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    revision BIGINT NOT NULL
);
INSERT INTO follower (id, revision) VALUES (1, 0);

-- What each withdrawal did, by its revision. Written with what it did, never updated. partner_id is
-- '' for signatures.
CREATE TABLE withdrawal (
    revision BIGINT PRIMARY KEY,
    customer_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    acceptance_id TEXT NOT NULL,
    partner_id TEXT NOT NULL,
    withdrawn_at TIMESTAMP NOT NULL,
    applied_at TIMESTAMP NOT NULL,
    cancelled INTEGER NOT NULL,
    stayed INTEGER NOT NULL
);
CREATE INDEX withdrawal_by_customer ON withdrawal (customer_id, revision);

-- Who may see it, and how much of it: the partner that withdrew, those left without acceptance, and
-- those with subscriptions that had not ended.
CREATE TABLE withdrawal_partner (
    partner_id TEXT NOT NULL,
    revision BIGINT NOT NULL REFERENCES withdrawal (revision),
    is_uncovered BOOLEAN NOT NULL,
    cancelled INTEGER NOT NULL,
    stayed INTEGER NOT NULL,
    PRIMARY KEY (partner_id, revision)
);
CREATE INDEX withdrawal_partner_by_revision ON withdrawal_partner (revision);

CREATE TABLE withdrawal_effect (
    revision BIGINT NOT NULL REFERENCES withdrawal (revision),
    subscription_id TEXT NOT NULL REFERENCES subscription (id),
    payer_id TEXT NOT NULL,
    reseller_id TEXT NOT NULL,
    outcome TEXT NOT NULL,
    PRIMARY KEY (revision, subscription_id)
);
