DROP INDEX acceptance_in_force;
