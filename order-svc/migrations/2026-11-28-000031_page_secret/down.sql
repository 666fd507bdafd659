DROP TABLE page_secret;
