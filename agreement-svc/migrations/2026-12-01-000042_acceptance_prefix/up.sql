-- Three other indexes of acceptance begin with the same columns. In a transaction of its own: attestations lock acceptance before
-- notification, so none may wait for the index of the queue that a migration before builds.
DROP INDEX acceptance_by_partner;
