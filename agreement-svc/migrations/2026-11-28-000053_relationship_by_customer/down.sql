DROP INDEX relationship_by_customer;
