ALTER TABLE acceptance DROP COLUMN proposed_by_user;
ALTER TABLE acceptance DROP COLUMN proposed_by_partner;
ALTER TABLE acceptance DROP COLUMN proposal_id;
DROP TABLE proposal;
