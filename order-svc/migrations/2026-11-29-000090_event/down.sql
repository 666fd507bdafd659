DROP INDEX subscription_change_not_in_history;
DROP INDEX orders_not_in_history;
ALTER TABLE subscription_change DROP COLUMN in_history;
ALTER TABLE orders DROP COLUMN in_history;
DROP TABLE event_pending;
DROP TABLE event_head;
DROP TABLE event;
