-- The event that last changed a partner: its etag. 0 before the first change under a version that stores it.
ALTER TABLE partner ADD COLUMN revision BIGINT NOT NULL DEFAULT 0;
