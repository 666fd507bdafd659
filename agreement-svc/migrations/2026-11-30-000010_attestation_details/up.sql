-- What a partner keeps with an attestation: the job title of the person who accepted, where the signed document is filed, its
-- hash, the employee behind a shared account, and the partner's own number; and the program that recorded it.
ALTER TABLE acceptance ADD COLUMN title TEXT NOT NULL DEFAULT '';
ALTER TABLE acceptance ADD COLUMN evidence_reference TEXT NOT NULL DEFAULT '';
ALTER TABLE acceptance ADD COLUMN evidence_sha256 TEXT NOT NULL DEFAULT '';
ALTER TABLE acceptance ADD COLUMN on_behalf_of TEXT NOT NULL DEFAULT '';
ALTER TABLE acceptance ADD COLUMN recorded_client TEXT NOT NULL DEFAULT '';
-- NULL where the partner gave none.
ALTER TABLE acceptance ADD COLUMN external_reference TEXT;
CREATE INDEX acceptance_by_reference ON acceptance (external_reference, partner_id, revision)
    WHERE external_reference IS NOT NULL;
