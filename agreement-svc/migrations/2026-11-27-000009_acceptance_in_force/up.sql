-- The gate reads the current acceptances of a pair. SQLite does not find them by the partial index acceptance_current and
-- scanned the pair's whole history; this index has each condition as a column.
CREATE INDEX acceptance_in_force ON acceptance (customer_id, partner_id, superseded_at, withdrawn_at);
