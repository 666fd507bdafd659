ALTER TABLE invitation DROP COLUMN language;
ALTER TABLE customer DROP COLUMN language;
