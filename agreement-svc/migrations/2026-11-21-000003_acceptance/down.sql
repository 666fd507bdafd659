DROP TABLE notification;
DROP TABLE invitation;
DROP INDEX event_by_customer;
ALTER TABLE acceptance DROP COLUMN withdrawn_by;
ALTER TABLE acceptance DROP COLUMN withdrawal_reason;
