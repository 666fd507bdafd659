-- The history: orders, and changes of subscriptions, in the order in which the recorder took them up after their commit.
-- subscription_id is '' and change_number 0 for an order; for the announcement of a restore all ids are ''. Never updated.
CREATE TABLE event (
    revision BIGINT PRIMARY KEY,
    recorded_at TIMESTAMP NOT NULL,
    customer_id TEXT NOT NULL,
    order_id TEXT NOT NULL,
    subscription_id TEXT NOT NULL,
    change_number INTEGER NOT NULL
);
CREATE INDEX event_by_customer ON event (customer_id, revision);

-- The revision of the last event: one row, whose lock the recorder takes first.
CREATE TABLE event_head (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    revision BIGINT NOT NULL
);
INSERT INTO event_head (id, revision) VALUES (1, 0);

-- What has no event yet: an order, or a change of a subscription, written with it. PostgreSQL counts the entries. SQLite knows
-- no such type and leaves them NULL; its own rowid counts there.
CREATE TABLE event_pending (
    entry BIGSERIAL,
    order_id TEXT NOT NULL,
    subscription_id TEXT NOT NULL,
    change_number INTEGER NOT NULL
);
CREATE INDEX event_pending_by_entry ON event_pending (entry);

-- Whether it has an event or an entry in event_pending. Versions that do not know the history leave it FALSE, as it is for all
-- that was there before.
ALTER TABLE orders ADD COLUMN in_history BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE subscription_change ADD COLUMN in_history BOOLEAN NOT NULL DEFAULT FALSE;
CREATE INDEX orders_not_in_history ON orders (placed_at, id) WHERE NOT in_history;
CREATE INDEX subscription_change_not_in_history ON subscription_change (changed_at, subscription_id, number)
    WHERE NOT in_history;
