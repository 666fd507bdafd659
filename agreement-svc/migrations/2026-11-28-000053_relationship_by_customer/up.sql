-- The relationships of a customer, ended ones too. Without it each read of one customer's relationships read those of all.
CREATE INDEX relationship_by_customer ON relationship (customer_id, revision);
