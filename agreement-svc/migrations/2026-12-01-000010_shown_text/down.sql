ALTER TABLE proposal DROP COLUMN shown_sha256;
ALTER TABLE proposal DROP COLUMN shown_language;
ALTER TABLE proposal DROP COLUMN shown_country;
ALTER TABLE acceptance DROP COLUMN shown_sha256;
ALTER TABLE acceptance DROP COLUMN shown_language;
ALTER TABLE acceptance DROP COLUMN shown_country;
