-- Dead letters are counted for whoever watches the service; sent ones stay in the table for good.
CREATE INDEX notification_dead ON notification (attestation_id) WHERE state = 'DEAD_LETTER';
