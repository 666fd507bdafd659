-- One schema for SQLite and PostgreSQL. Ids are lower-case UUID text, times are UTC in microseconds,
-- both made by the service. BYTEA is binary in both.

-- The one row that every change locks first. It holds the number and the hash of the last event.
CREATE TABLE revision (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    value BIGINT NOT NULL,
    head TEXT NOT NULL
);
INSERT INTO revision (id, value, head) VALUES (1, 0, '');

-- What changed, in order, without gaps. hash covers the hash before it, so that no event can be
-- altered, removed or moved unnoticed. Never updated, never deleted.
CREATE TABLE event (
    revision BIGINT PRIMARY KEY,
    customer_id TEXT,
    partner_id TEXT,
    recorded_at TIMESTAMP NOT NULL,
    body TEXT NOT NULL,
    hash TEXT NOT NULL
);

-- First answers, by request id.
CREATE TABLE request (
    tenant_id TEXT NOT NULL,
    call TEXT NOT NULL,
    request_id TEXT NOT NULL,
    content TEXT NOT NULL,
    answer BYTEA NOT NULL,
    answered_at TIMESTAMP NOT NULL,
    PRIMARY KEY (tenant_id, call, request_id)
);

CREATE TABLE partner (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    cloud TEXT NOT NULL,
    registered_at TIMESTAMP NOT NULL
);

CREATE TABLE reseller_link (
    provider_id TEXT NOT NULL REFERENCES partner (id),
    reseller_id TEXT NOT NULL REFERENCES partner (id),
    PRIMARY KEY (provider_id, reseller_id)
);
CREATE INDEX reseller_link_by_reseller ON reseller_link (reseller_id);

CREATE TABLE customer (
    id TEXT PRIMARY KEY,
    company_name TEXT NOT NULL,
    domain TEXT NOT NULL UNIQUE,
    country TEXT NOT NULL,
    cloud TEXT NOT NULL,
    first_name TEXT NOT NULL,
    last_name TEXT NOT NULL,
    email TEXT NOT NULL,
    phone TEXT NOT NULL,
    contact_salt TEXT NOT NULL,
    created_at TIMESTAMP NOT NULL,
    first_purchase_at TIMESTAMP,
    acceptance_revision BIGINT NOT NULL,
    revision BIGINT NOT NULL
);

-- partner_id is a direct-bill partner or a provider; reseller_id is '' where there is none.
CREATE TABLE relationship (
    partner_id TEXT NOT NULL REFERENCES partner (id),
    customer_id TEXT NOT NULL REFERENCES customer (id),
    reseller_id TEXT NOT NULL,
    established_at TIMESTAMP NOT NULL,
    ended_at TIMESTAMP,
    revision BIGINT NOT NULL PRIMARY KEY
);
CREATE UNIQUE INDEX relationship_active ON relationship (customer_id, partner_id, reseller_id)
    WHERE ended_at IS NULL;
CREATE INDEX relationship_by_partner ON relationship (partner_id, customer_id);
CREATE INDEX relationship_by_reseller ON relationship (reseller_id, customer_id);

CREATE TABLE template (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    agreement_type TEXT NOT NULL,
    retired_at TIMESTAMP,
    revision BIGINT NOT NULL
);
-- One live template of each type.
CREATE UNIQUE INDEX template_live ON template (agreement_type) WHERE retired_at IS NULL;

CREATE TABLE template_version (
    template_id TEXT NOT NULL REFERENCES template (id),
    number INTEGER NOT NULL,
    agreement_type TEXT NOT NULL,
    effective_from TIMESTAMP NOT NULL,
    reaccept_by TIMESTAMP,
    published_at TIMESTAMP NOT NULL,
    document_count INTEGER NOT NULL,
    PRIMARY KEY (template_id, number)
);
CREATE INDEX template_version_by_type ON template_version (agreement_type, effective_from);

CREATE TABLE template_document (
    template_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    country TEXT NOT NULL,
    language TEXT NOT NULL,
    link TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    PRIMARY KEY (template_id, number, country, language),
    FOREIGN KEY (template_id, number) REFERENCES template_version (template_id, number)
);

-- Attestations (by partner_id) and direct signatures (partner_id is ''). Only superseded_at and
-- withdrawn_at are ever set later, once.
CREATE TABLE acceptance (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    partner_id TEXT NOT NULL,
    customer_id TEXT NOT NULL REFERENCES customer (id),
    agreement_type TEXT NOT NULL,
    template_id TEXT NOT NULL,
    template_version INTEGER NOT NULL,
    first_name TEXT NOT NULL,
    last_name TEXT NOT NULL,
    email TEXT NOT NULL,
    phone TEXT NOT NULL,
    contact_salt TEXT NOT NULL,
    agreed_at TIMESTAMP NOT NULL,
    recorded_at TIMESTAMP NOT NULL,
    recorded_by TEXT NOT NULL,
    superseded_at TIMESTAMP,
    withdrawn_at TIMESTAMP,
    revision BIGINT NOT NULL,
    FOREIGN KEY (template_id, template_version) REFERENCES template_version (template_id, number)
);
-- One current acceptance for each partner, customer and type; one current signature for each
-- customer and type.
CREATE UNIQUE INDEX acceptance_current ON acceptance (customer_id, partner_id, agreement_type)
    WHERE superseded_at IS NULL AND withdrawn_at IS NULL;
CREATE INDEX acceptance_by_partner ON acceptance (customer_id, partner_id);
CREATE INDEX acceptance_by_age ON acceptance (customer_id, revision);
