ALTER TABLE partner DROP COLUMN support_url;
ALTER TABLE partner DROP COLUMN support_phone;
ALTER TABLE partner DROP COLUMN support_email;
