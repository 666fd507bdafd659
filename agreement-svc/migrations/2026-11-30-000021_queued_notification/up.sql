-- The operator lists the mails that wait. Those that were given up have such an index already.
CREATE INDEX notification_queued ON notification (attestation_id) WHERE state = 'QUEUED';
