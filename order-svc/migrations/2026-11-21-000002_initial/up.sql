-- One schema for SQLite and PostgreSQL. Ids are lower-case UUID text, times are UTC in microseconds,
-- both made by the service. BYTEA is binary in both.

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

-- One row for each customer: the revision of the last withdrawal that was applied. Every gated
-- transaction takes it first, and so waits for whatever else is being done for that customer.
CREATE TABLE fence (
    customer_id TEXT PRIMARY KEY,
    fence_revision BIGINT NOT NULL
);

-- Accepted orders. reseller_id is '' where there is none. The gate_ columns keep the answer that the
-- order rests on. Never updated.
CREATE TABLE orders (
    id TEXT PRIMARY KEY,
    payer_id TEXT NOT NULL,
    reseller_id TEXT NOT NULL,
    customer_id TEXT NOT NULL,
    placed_at TIMESTAMP NOT NULL,
    placed_by_tenant TEXT NOT NULL,
    placed_by TEXT NOT NULL,
    gate_decision TEXT NOT NULL,
    gate_rule TEXT NOT NULL,
    gate_evidence TEXT NOT NULL,
    gate_revision BIGINT NOT NULL,
    gate_evaluated_at TIMESTAMP NOT NULL
);
CREATE INDEX orders_by_payer ON orders (payer_id, id);
CREATE INDEX orders_by_reseller ON orders (reseller_id, id);
CREATE INDEX orders_by_customer ON orders (customer_id, id);

CREATE TABLE order_line (
    order_id TEXT NOT NULL REFERENCES orders (id),
    number INTEGER NOT NULL,
    offer_id TEXT NOT NULL,
    quantity BIGINT NOT NULL,
    friendly_name TEXT NOT NULL,
    subscription_id TEXT NOT NULL,
    PRIMARY KEY (order_id, number)
);

-- version guards every change; answer_revision is that of the gate's answer to the last gated one.
CREATE TABLE subscription (
    id TEXT PRIMARY KEY,
    order_id TEXT NOT NULL REFERENCES orders (id),
    payer_id TEXT NOT NULL,
    reseller_id TEXT NOT NULL,
    customer_id TEXT NOT NULL,
    offer_id TEXT NOT NULL,
    quantity BIGINT NOT NULL,
    friendly_name TEXT NOT NULL,
    state TEXT NOT NULL,
    auto_renew BOOLEAN NOT NULL,
    started_at TIMESTAMP NOT NULL,
    term TEXT NOT NULL,
    term_number INTEGER NOT NULL,
    term_end TIMESTAMP,
    answer_revision BIGINT NOT NULL,
    version BIGINT NOT NULL
);
CREATE INDEX subscription_by_payer ON subscription (payer_id, id);
CREATE INDEX subscription_by_reseller ON subscription (reseller_id, id);
CREATE INDEX subscription_by_customer ON subscription (customer_id, id);

-- Everything that happened to a subscription. Never updated, never deleted.
CREATE TABLE subscription_change (
    subscription_id TEXT NOT NULL REFERENCES subscription (id),
    number INTEGER NOT NULL,
    kind TEXT NOT NULL,
    changed_at TIMESTAMP NOT NULL,
    actor_tenant TEXT NOT NULL,
    actor TEXT NOT NULL,
    quantity_before BIGINT NOT NULL,
    quantity_after BIGINT NOT NULL,
    gate_decision TEXT NOT NULL,
    gate_rule TEXT NOT NULL,
    gate_evidence TEXT NOT NULL,
    gate_revision BIGINT NOT NULL,
    gate_evaluated_at TIMESTAMP NOT NULL,
    PRIMARY KEY (subscription_id, number)
);

-- First purchases to be reported to agreement-svc: written with the order, delivered afterwards.
CREATE TABLE purchase_report (
    customer_id TEXT PRIMARY KEY,
    payer_id TEXT NOT NULL,
    order_id TEXT NOT NULL,
    purchased_at TIMESTAMP NOT NULL,
    attempts INTEGER NOT NULL,
    due_at TIMESTAMP NOT NULL,
    reported_at TIMESTAMP
);
CREATE INDEX purchase_report_due ON purchase_report (due_at) WHERE reported_at IS NULL;
