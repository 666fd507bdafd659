-- Country, language and SHA-256 of the text that was shown to the person who accepted. Empty where none was named.
ALTER TABLE acceptance ADD COLUMN shown_country TEXT NOT NULL DEFAULT '';
ALTER TABLE acceptance ADD COLUMN shown_language TEXT NOT NULL DEFAULT '';
ALTER TABLE acceptance ADD COLUMN shown_sha256 TEXT NOT NULL DEFAULT '';
ALTER TABLE proposal ADD COLUMN shown_country TEXT NOT NULL DEFAULT '';
ALTER TABLE proposal ADD COLUMN shown_language TEXT NOT NULL DEFAULT '';
ALTER TABLE proposal ADD COLUMN shown_sha256 TEXT NOT NULL DEFAULT '';
