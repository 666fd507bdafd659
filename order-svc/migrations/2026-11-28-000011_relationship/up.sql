-- The relationships of payers and customers, and the reseller of each ('' where there is none), as agreement-svc's
-- history says. revision is that of the last event about it.
CREATE TABLE relationship (
    customer_id TEXT NOT NULL,
    payer_id TEXT NOT NULL,
    reseller_id TEXT NOT NULL,
    is_active BOOLEAN NOT NULL,
    revision BIGINT NOT NULL,
    PRIMARY KEY (customer_id, payer_id, reseller_id)
);
-- Up to which event the table is filled. Versions that do not know it move only revision; what lies between is read again,
-- for the table alone.
ALTER TABLE follower ADD COLUMN relationships_revision BIGINT NOT NULL DEFAULT 0;
-- After a restore of agreement-svc the history is followed again from its beginning; from this event on the table is complete.
ALTER TABLE follower ADD COLUMN relationships_complete_at BIGINT NOT NULL DEFAULT 0;

-- A large withdrawal takes several transactions; its report is read once it is complete. newer_answer counts, of those
-- that stayed, the subscriptions that rest on an answer given after the withdrawal. Of what stayed there are no rows in
-- withdrawal_effect any more.
ALTER TABLE withdrawal ADD COLUMN is_complete BOOLEAN NOT NULL DEFAULT TRUE;
ALTER TABLE withdrawal ADD COLUMN newer_answer INTEGER NOT NULL DEFAULT 0;
ALTER TABLE withdrawal_partner ADD COLUMN newer_answer INTEGER NOT NULL DEFAULT 0;

-- Up to which event the history was applied when the reseller on record was assigned: earlier ends of its relationship
-- concern the subscription no more, also when they are applied again.
ALTER TABLE subscription ADD COLUMN reseller_revision BIGINT NOT NULL DEFAULT 0;

-- The reseller on record after a change that assigned one ('' where there is none).
ALTER TABLE subscription_change ADD COLUMN reseller_id TEXT NOT NULL DEFAULT '';

-- The open subscriptions of a payer and customer, and the ended terms of a customer.
CREATE INDEX subscription_open ON subscription (customer_id, payer_id, id) WHERE state IN ('ACTIVE', 'SUSPENDED');
CREATE INDEX subscription_due_of_customer ON subscription (customer_id, due_at) WHERE due_at IS NOT NULL;
