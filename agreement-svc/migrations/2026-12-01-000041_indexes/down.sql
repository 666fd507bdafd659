CREATE INDEX acceptance_by_partner ON acceptance (customer_id, partner_id);
DROP INDEX notification_next;
CREATE INDEX notification_next ON notification (state, partner_id, due_at);
CREATE INDEX notification_due ON notification (due_at) WHERE state = 'QUEUED';
