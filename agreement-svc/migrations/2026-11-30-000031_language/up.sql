-- The language of the texts for a customer; empty where it was not given. That of an invitation is the one that it was made in.
ALTER TABLE customer ADD COLUMN language TEXT NOT NULL DEFAULT '';
ALTER TABLE invitation ADD COLUMN language TEXT NOT NULL DEFAULT '';
