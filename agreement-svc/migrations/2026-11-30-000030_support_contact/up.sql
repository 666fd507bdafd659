-- Where the customers of a partner ask: empty where the operator set none.
ALTER TABLE partner ADD COLUMN support_email TEXT NOT NULL DEFAULT '';
ALTER TABLE partner ADD COLUMN support_phone TEXT NOT NULL DEFAULT '';
ALTER TABLE partner ADD COLUMN support_url TEXT NOT NULL DEFAULT '';
