-- Partners take turns at the mailer, and announcements to one customer share a mail. Both ids are '' on rows of versions
-- that did not store them: those take turns as one partner more. mail_id is the first attestation of the mail that announces
-- this one, '' before its first attempt; later attempts keep the mail as it is.
ALTER TABLE notification ADD COLUMN partner_id TEXT NOT NULL DEFAULT '';
ALTER TABLE notification ADD COLUMN customer_id TEXT NOT NULL DEFAULT '';
ALTER TABLE notification ADD COLUMN mail_id TEXT NOT NULL DEFAULT '';
UPDATE notification SET
    partner_id = (SELECT acceptance.partner_id FROM acceptance WHERE acceptance.id = notification.attestation_id),
    customer_id = (SELECT acceptance.customer_id FROM acceptance WHERE acceptance.id = notification.attestation_id)
    WHERE state <> 'SENT';
CREATE INDEX notification_next ON notification (state, partner_id, due_at);
CREATE INDEX notification_by_customer ON notification (customer_id, partner_id, sent_at);
CREATE INDEX notification_by_day ON notification (partner_id, sent_at, mail_id);
