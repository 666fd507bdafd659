-- Who receives the mails about a customer. partner_id is '' on the contact that the customer's own administrator set, which
-- goes before those of partners; each partner has one for its own announcements. All fields are '' where none was given and
-- after an erasure. A partner without a row entered its relationship under a version that kept one contact for all partners,
-- on the customer: that one counts until the partner sets its own. So no row has to be written for them here, while
-- services run, and what such a version changes meanwhile counts, too.
CREATE TABLE contact (
    id TEXT PRIMARY KEY,
    customer_id TEXT NOT NULL REFERENCES customer (id),
    partner_id TEXT NOT NULL,
    first_name TEXT NOT NULL,
    last_name TEXT NOT NULL,
    email TEXT NOT NULL,
    phone TEXT NOT NULL,
    contact_salt TEXT NOT NULL
);
CREATE UNIQUE INDEX contact_by_owner ON contact (customer_id, partner_id);

-- Tells an address that a contact was changed and that it is no longer the one. sender_id is the partner whose contact it
-- was, or the customer. The address is '' once nothing is to be sent to it any more.
CREATE TABLE contact_notice (
    id TEXT PRIMARY KEY,
    sender_id TEXT NOT NULL,
    customer_id TEXT NOT NULL REFERENCES customer (id),
    email TEXT NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    due_at TIMESTAMP NOT NULL,
    sent_at TIMESTAMP,
    last_failure TEXT NOT NULL
);
CREATE INDEX contact_notice_next ON contact_notice (state, sender_id, due_at);
CREATE INDEX contact_notice_sent ON contact_notice (sender_id, sent_at);
