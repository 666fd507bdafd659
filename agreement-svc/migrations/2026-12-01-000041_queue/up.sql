-- What is next is found among what waits. Sent notifications, in time nearly all, need no place in that index, and a database
-- that knows little of the table cannot take it for that of a customer's notifications. Nothing looks by due_at alone any more.
DROP INDEX notification_due;
DROP INDEX notification_next;
CREATE INDEX notification_next ON notification (partner_id, due_at) WHERE state = 'QUEUED';
