DROP INDEX notification_by_day;
DROP INDEX notification_by_customer;
DROP INDEX notification_next;
ALTER TABLE notification DROP COLUMN mail_id;
ALTER TABLE notification DROP COLUMN customer_id;
ALTER TABLE notification DROP COLUMN partner_id;
