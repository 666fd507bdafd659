DROP INDEX acceptance_by_agreement;
DROP INDEX acceptance_withdrawn;
