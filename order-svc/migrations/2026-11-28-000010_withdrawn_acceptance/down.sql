DROP INDEX withdrawal_by_acceptance;
