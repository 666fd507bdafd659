-- What a reseller proposes to a provider as an attestation. The contact, and what is erased with it, is '' once the person was
-- erased. approved_at or rejected_at is set once, with the attestation or the reason.
CREATE TABLE proposal (
    id TEXT PRIMARY KEY,
    reseller_id TEXT NOT NULL REFERENCES partner (id),
    provider_id TEXT NOT NULL REFERENCES partner (id),
    customer_id TEXT NOT NULL REFERENCES customer (id),
    template_id TEXT NOT NULL REFERENCES template (id),
    first_name TEXT NOT NULL,
    last_name TEXT NOT NULL,
    email TEXT NOT NULL,
    phone TEXT NOT NULL,
    contact_salt TEXT NOT NULL,
    title TEXT NOT NULL,
    evidence_reference TEXT NOT NULL,
    evidence_sha256 TEXT NOT NULL,
    on_behalf_of TEXT NOT NULL,
    external_reference TEXT NOT NULL,
    agreed_at TIMESTAMP NOT NULL,
    proposed_at TIMESTAMP NOT NULL,
    proposed_by TEXT NOT NULL,
    expires_at TIMESTAMP NOT NULL,
    approved_at TIMESTAMP,
    attestation_id TEXT REFERENCES acceptance (id),
    rejected_at TIMESTAMP,
    rejection_reason TEXT,
    revision BIGINT NOT NULL
);
CREATE INDEX proposal_by_reseller ON proposal (reseller_id, revision);
CREATE INDEX proposal_by_provider ON proposal (provider_id, revision);
CREATE INDEX proposal_by_customer ON proposal (customer_id, reseller_id, revision);
CREATE INDEX proposal_by_age ON proposal (revision);

-- Who proposed an attestation, and which proposal it was; '' where it was none.
ALTER TABLE acceptance ADD COLUMN proposal_id TEXT NOT NULL DEFAULT '';
ALTER TABLE acceptance ADD COLUMN proposed_by_partner TEXT NOT NULL DEFAULT '';
ALTER TABLE acceptance ADD COLUMN proposed_by_user TEXT NOT NULL DEFAULT '';
