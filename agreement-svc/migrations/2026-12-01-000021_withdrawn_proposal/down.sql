DROP INDEX proposal_open;
DROP INDEX proposal_open_of_provider;
DROP INDEX proposal_open_of_reseller;
ALTER TABLE proposal DROP COLUMN withdrawn_at;
