DROP INDEX relationship_of_reseller;
DROP INDEX relationship_of_partner;
DROP INDEX acceptance_of_partner_by_record;
DROP INDEX acceptance_of_partner_by_date;
DROP INDEX acceptance_of_partner;
DROP INDEX customer_to_name;
DROP INDEX customer_by_name;
ALTER TABLE customer DROP COLUMN name_revision;
ALTER TABLE customer DROP COLUMN name_key;
