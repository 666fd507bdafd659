ALTER TABLE partner DROP COLUMN revision;
