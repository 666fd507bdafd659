ALTER TABLE relationship DROP COLUMN is_confirmed;
