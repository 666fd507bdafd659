DROP TABLE customer_reference;
