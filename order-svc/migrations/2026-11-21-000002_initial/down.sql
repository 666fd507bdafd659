DROP TABLE purchase_report;
DROP TABLE subscription_change;
DROP TABLE subscription;
DROP TABLE order_line;
DROP TABLE orders;
DROP TABLE fence;
DROP TABLE request;
