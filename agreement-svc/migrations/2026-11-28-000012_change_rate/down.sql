DROP INDEX acceptance_by_withdrawn;
DROP INDEX acceptance_by_recorded;
