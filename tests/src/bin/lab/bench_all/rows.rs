//! Rows as the services write them: each is a copy of a row that a call made, but for its ids, so that a floor or a
//! large database has rows of the real size without any call. One description of the tables serves SQLite, PostgreSQL and
//! pgbench.

use chassis::database::Url;
use tests::databases::behind;
use tests::fixtures::{self, DIRECT};
use tests::processes::Processes;
use tests::{As, actions};
use tonic::Status;
use uuid::Uuid;

/// A table, and how a copy of a row of it differs.
pub(super) struct Table {
    pub name: &'static str,
    pub columns: &'static [&'static str],
    /// The columns by which the row to copy is found, by an index, and what stands in each.
    key: &'static [(&'static str, Key)],
    /// The columns that differ, and which value of a new order or customer stands in each.
    pub fresh: &'static [(&'static str, &'static str)],
    /// What to do where the row is there already.
    pub conflict: &'static str,
}

#[derive(Clone, Copy)]
enum Key {
    Customer,
    Order,
    Subscription,
    Request,
    Tenant(Uuid),
    Text(&'static str),
}

/// What was stored by calls, and is copied.
pub(super) struct Original {
    pub customer: String,
    pub order: String,
    pub subscription: String,
    pub request: String,
}

/// What order-svc writes for an order of one line, in its order; and the two events that it gets after that. The entries that
/// stand for them until then are left out.
pub(super) const ORDER_TABLES: [Table; 9] = [
    Table {
        name: "fence",
        columns: &["customer_id", "fence_revision"],
        key: &[("customer_id", Key::Customer)],
        fresh: &[("customer_id", "customer_id")],
        conflict: "ON CONFLICT (customer_id) DO UPDATE SET fence_revision = fence.fence_revision",
    },
    Table {
        name: "request",
        columns: &["tenant_id", "call", "request_id", "content", "answer", "answered_at"],
        key: &[
            ("tenant_id", Key::Tenant(DIRECT)),
            ("call", Key::Text("CreateOrder")),
            ("request_id", Key::Request),
        ],
        fresh: &[("request_id", "request_id")],
        conflict: "",
    },
    Table {
        name: "orders",
        columns: &[
            "id",
            "payer_id",
            "reseller_id",
            "customer_id",
            "placed_at",
            "placed_by_tenant",
            "placed_by",
            "gate_decision",
            "gate_rule",
            "gate_evidence",
            "gate_revision",
            "gate_evaluated_at",
            "in_history",
        ],
        key: &[("id", Key::Order)],
        fresh: &[("id", "order_id"), ("customer_id", "customer_id")],
        conflict: "",
    },
    Table {
        name: "order_line",
        columns: &["order_id", "number", "offer_id", "quantity", "friendly_name", "subscription_id"],
        key: &[("order_id", Key::Order)],
        fresh: &[("order_id", "order_id"), ("subscription_id", "subscription_id")],
        conflict: "",
    },
    Table {
        name: "subscription",
        columns: &[
            "id",
            "order_id",
            "payer_id",
            "reseller_id",
            "customer_id",
            "offer_id",
            "quantity",
            "friendly_name",
            "state",
            "auto_renew",
            "started_at",
            "term",
            "term_number",
            "term_end",
            "answer_revision",
            "version",
            "due_at",
        ],
        key: &[("id", Key::Subscription)],
        fresh: &[("id", "subscription_id"), ("order_id", "order_id"), ("customer_id", "customer_id")],
        conflict: "",
    },
    Table {
        name: "subscription_change",
        columns: &[
            "subscription_id",
            "number",
            "kind",
            "changed_at",
            "actor_tenant",
            "actor",
            "quantity_before",
            "quantity_after",
            "gate_decision",
            "gate_rule",
            "gate_evidence",
            "gate_revision",
            "gate_evaluated_at",
            "reason",
            "event_revision",
            "term_number",
            "reseller_id",
            "in_history",
        ],
        key: &[("subscription_id", Key::Subscription)],
        fresh: &[("subscription_id", "subscription_id")],
        conflict: "",
    },
    Table {
        name: "event",
        columns: &EVENT_COLUMNS,
        key: &[("customer_id", Key::Customer), ("order_id", Key::Order), ("subscription_id", Key::Text(""))],
        fresh: &[("revision", "order_event"), ("customer_id", "customer_id"), ("order_id", "order_id")],
        conflict: "",
    },
    Table {
        name: "event",
        columns: &EVENT_COLUMNS,
        key: &[("customer_id", Key::Customer), ("subscription_id", Key::Subscription)],
        fresh: &[
            ("revision", "change_event"),
            ("customer_id", "customer_id"),
            ("order_id", "order_id"),
            ("subscription_id", "subscription_id"),
        ],
        conflict: "",
    },
    Table {
        name: "purchase_report",
        columns: &[
            "customer_id",
            "payer_id",
            "order_id",
            "purchased_at",
            "attempts",
            "due_at",
            "reported_at",
        ],
        key: &[("customer_id", Key::Customer)],
        fresh: &[("customer_id", "customer_id"), ("order_id", "order_id")],
        conflict: "ON CONFLICT (customer_id) DO NOTHING",
    },
];

const EVENT_COLUMNS: [&str; 6] =
    ["revision", "recorded_at", "customer_id", "order_id", "subscription_id", "change_number"];

/// A customer with its relationship, contact and attestation.
const CUSTOMER_TABLES: [Table; 4] = [
    Table {
        name: "customer",
        columns: &[
            "id",
            "company_name",
            "domain",
            "country",
            "cloud",
            "first_name",
            "last_name",
            "email",
            "phone",
            "contact_salt",
            "created_at",
            "first_purchase_at",
            "acceptance_revision",
            "revision",
        ],
        key: &[("id", Key::Customer)],
        fresh: &[("id", "customer_id"), ("domain", "domain")],
        conflict: "",
    },
    Table {
        name: "relationship",
        columns: &["partner_id", "customer_id", "reseller_id", "established_at", "ended_at", "revision"],
        key: &[("customer_id", Key::Customer)],
        // No event has a negative revision.
        fresh: &[("customer_id", "customer_id"), ("revision", "revision")],
        conflict: "",
    },
    Table {
        name: "contact",
        columns: &[
            "id",
            "customer_id",
            "partner_id",
            "first_name",
            "last_name",
            "email",
            "phone",
            "contact_salt",
        ],
        key: &[("customer_id", Key::Customer)],
        fresh: &[("id", "contact_id"), ("customer_id", "customer_id")],
        conflict: "",
    },
    Table {
        name: "acceptance",
        columns: &[
            "id",
            "kind",
            "partner_id",
            "customer_id",
            "agreement_type",
            "template_id",
            "template_version",
            "first_name",
            "last_name",
            "email",
            "phone",
            "contact_salt",
            "agreed_at",
            "recorded_at",
            "recorded_by",
            "superseded_at",
            "withdrawn_at",
            "revision",
            "withdrawal_reason",
            "withdrawn_by",
        ],
        key: &[("customer_id", Key::Customer)],
        fresh: &[("id", "acceptance_id"), ("customer_id", "customer_id")],
        conflict: "",
    },
];

/// The first part of the ids of copied customers; a number follows.
pub(super) const CUSTOMER: &str = "00000000-0000-4000-8001-";
/// What is added to the number of a copy, so that all have as many digits as an id needs.
pub(super) const NUMBER_BASE: usize = 100_000_000_000;

/// The id of a copied customer, numbered from 1.
pub(super) fn customer_id(number: usize) -> String {
    format!("{CUSTOMER}{}", NUMBER_BASE + number)
}

/// The number of a copied customer.
pub(super) fn customer_number(id: &str) -> Option<usize> {
    id.strip_prefix(CUSTOMER)?.parse::<usize>().ok()?.checked_sub(NUMBER_BASE)
}

impl Table {
    /// How the row to copy is found.
    pub(super) fn is_original(&self, original: &Original) -> String {
        let is = |(column, key): &(&str, Key)| {
            let value = match key {
                Key::Customer => original.customer.clone(),
                Key::Order => original.order.clone(),
                Key::Subscription => original.subscription.clone(),
                Key::Request => original.request.clone(),
                Key::Tenant(id) => id.to_string(),
                Key::Text(text) => (*text).to_owned(),
            };
            format!("{column} = '{value}'")
        };
        self.key.iter().map(is).collect::<Vec<_>>().join(" AND ")
    }

    /// The statement that copies the row for each row of `source`, which has the columns of what differs.
    pub(super) fn copy(&self, original: &Original, source: &str, condition: &str) -> String {
        let value = |column: &&str| match self.fresh.iter().find(|(fresh, _)| fresh == column) {
            Some((_, value)) => format!("new.{value}"),
            None => format!("original.{column}"),
        };
        let values: Vec<String> = self.columns.iter().map(value).collect();
        format!(
            "INSERT INTO {} ({}) SELECT {} FROM {source} new, (SELECT * FROM {} WHERE {}) original WHERE {condition} {}",
            self.name,
            self.columns.join(", "),
            values.join(", "),
            self.name,
            self.is_original(original),
            self.conflict
        )
    }
}

/// Makes the original by calls, as a partner.
///
/// # Errors
/// The refusal, or what the answers lack.
pub(super) async fn make_original(direct: &As) -> Result<Original, Status> {
    let customer = actions::create_customer(direct, "Original", "FR", None).await?;
    actions::attest_now(direct, &customer).await?;
    let order = fixtures::new_order(&customer, None, fixtures::OFFICE, 5);
    let request = order.request_id.clone();
    let placed = actions::place(direct, order).await?;
    let subscription = placed.subscriptions.first().map(|new| new.subscription_id.clone());
    let (order, subscription) = placed
        .order
        .zip(subscription)
        .ok_or_else(|| Status::internal("the answer has no order or no subscription"))?;
    Ok(Original { customer, order: order.order_id, subscription, request })
}

/// Copies the original as often as `customers` says, in the databases of both services. Every so many of the customers,
/// if any, are left without an attestation. The services must not be running, so that SQLite can be written to.
///
/// # Errors
/// The databases'.
pub(super) fn fill(
    processes: &Processes,
    original: &Original,
    customers: usize,
    blocked_every: Option<usize>,
) -> Result<(), String> {
    let new = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {customers}), new AS (SELECT i, \
         '{CUSTOMER}' || ({NUMBER_BASE} + i) AS customer_id, \
         '00000000-0000-4000-8002-' || ({NUMBER_BASE} + i) AS acceptance_id, \
         '00000000-0000-4000-8003-' || ({NUMBER_BASE} + i) AS order_id, \
         '00000000-0000-4000-8004-' || ({NUMBER_BASE} + i) AS subscription_id, \
         '00000000-0000-4000-8005-' || ({NUMBER_BASE} + i) AS contact_id, \
         'copy-' || i || '.example' AS domain, -i AS revision FROM n)"
    );
    for table in &CUSTOMER_TABLES {
        let condition = match blocked_every {
            Some(every) if table.name == "acceptance" => format!("new.i % {every} <> 0"),
            _ => "true".into(),
        };
        let sql = format!("{new} {}", table.copy(original, "new", &condition));
        behind(processes.agreements.database(), &sql)?;
    }
    // No answer to a request is copied: those are kept for a month, whatever else is stored. Nor are events.
    for table in ORDER_TABLES.iter().filter(|table| !["request", "event"].contains(&table.name)) {
        behind(processes.orders.database(), &format!("{new} {}", table.copy(original, "new", "true")))?;
    }
    Ok(())
}

/// Vacuums and analyzes what was filled, as PostgreSQL does by itself some time later, and SQLite does not.
///
/// # Errors
/// The databases'.
pub(super) fn vacuum(processes: &Processes) -> Result<(), String> {
    let agreements = (processes.agreements.database(), CUSTOMER_TABLES.as_slice());
    for (database, tables) in [agreements, (processes.orders.database(), &ORDER_TABLES)] {
        if let Url::Postgres(_) = database {
            let mut names: Vec<_> = tables.iter().map(|table| table.name).collect();
            names.dedup();
            behind(database, &format!("VACUUM ANALYZE {}", names.join(", ")))?;
        }
    }
    Ok(())
}
