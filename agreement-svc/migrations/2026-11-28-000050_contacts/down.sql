DROP TABLE contact_notice;
DROP TABLE contact;
