DROP INDEX acceptance_by_reference;
ALTER TABLE acceptance DROP COLUMN external_reference;
ALTER TABLE acceptance DROP COLUMN recorded_client;
ALTER TABLE acceptance DROP COLUMN on_behalf_of;
ALTER TABLE acceptance DROP COLUMN evidence_sha256;
ALTER TABLE acceptance DROP COLUMN evidence_reference;
ALTER TABLE acceptance DROP COLUMN title;
