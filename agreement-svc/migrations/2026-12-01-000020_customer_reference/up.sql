-- A partner's own number for a customer. There is no row where it has none.
CREATE TABLE customer_reference (
    partner_id TEXT NOT NULL REFERENCES partner (id),
    customer_id TEXT NOT NULL REFERENCES customer (id),
    external_reference TEXT NOT NULL,
    PRIMARY KEY (partner_id, customer_id)
);
CREATE INDEX customer_by_reference ON customer_reference (partner_id, external_reference, customer_id);
