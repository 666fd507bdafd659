-- The number that the partner that placed an order has for it; NULL where it gave none.
ALTER TABLE orders ADD COLUMN external_reference TEXT;
CREATE INDEX orders_by_reference ON orders (external_reference, placed_by_tenant) WHERE external_reference IS NOT NULL;
