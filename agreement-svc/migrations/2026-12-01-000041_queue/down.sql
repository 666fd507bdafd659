DROP INDEX notification_next;
CREATE INDEX notification_next ON notification (state, partner_id, due_at);
CREATE INDEX notification_due ON notification (due_at) WHERE state = 'QUEUED';
