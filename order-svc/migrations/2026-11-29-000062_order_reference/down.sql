DROP INDEX orders_by_reference;
ALTER TABLE orders DROP COLUMN external_reference;
