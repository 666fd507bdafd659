-- Customers are found by the beginning of their name, in any case. The key is the name in lower case and the id, made by the
-- service, because only one of the databases folds the case of every letter; BYTEA sorts by bytes in both. It fits the name
-- while name_revision is the customer's revision: rows that older versions wrote are found by the partial index, and
-- the service gives them their key.
ALTER TABLE customer ADD COLUMN name_key BYTEA;
ALTER TABLE customer ADD COLUMN name_revision BIGINT NOT NULL DEFAULT -1;
CREATE INDEX customer_by_name ON customer (name_key);
CREATE INDEX customer_to_name ON customer (id) WHERE name_revision <> revision;

-- A partner's attestations of all customers ('' has the signatures), in the order in which they were recorded, and by date
-- agreed.
CREATE INDEX acceptance_of_partner ON acceptance (partner_id, revision);
CREATE INDEX acceptance_of_partner_by_date ON acceptance (partner_id, agreed_at);
CREATE INDEX acceptance_of_partner_by_record ON acceptance (partner_id, recorded_at);

-- The relationships of a partner, as payer and as reseller, in order.
CREATE INDEX relationship_of_partner ON relationship (partner_id, revision);
CREATE INDEX relationship_of_reseller ON relationship (reseller_id, revision);
