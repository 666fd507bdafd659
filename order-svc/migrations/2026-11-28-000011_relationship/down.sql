DROP INDEX subscription_due_of_customer;
DROP INDEX subscription_open;
ALTER TABLE subscription_change DROP COLUMN reseller_id;
ALTER TABLE withdrawal_partner DROP COLUMN newer_answer;
ALTER TABLE withdrawal DROP COLUMN newer_answer;
ALTER TABLE withdrawal DROP COLUMN is_complete;
ALTER TABLE follower DROP COLUMN relationships_revision;
DROP TABLE relationship;
