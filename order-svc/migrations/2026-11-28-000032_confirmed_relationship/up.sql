-- Whether agreement-svc's history still has the last event about it: not so from a restore on, until the history has been
-- followed again as far as that event.
ALTER TABLE relationship ADD COLUMN is_confirmed BOOLEAN NOT NULL DEFAULT TRUE;
