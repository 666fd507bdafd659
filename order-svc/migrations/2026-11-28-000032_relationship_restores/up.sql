-- How many restores of agreement-svc were announced here. A relationship keeps that number of when its last event was applied:
-- with another one, the restored history may not have the event.
ALTER TABLE follower ADD COLUMN restores INTEGER NOT NULL DEFAULT 0;
ALTER TABLE relationship ADD COLUMN restores INTEGER NOT NULL DEFAULT 0;
