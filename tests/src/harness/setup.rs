//! How a cluster is started: what a test may ask for, and what is usual.

use std::path::PathBuf;

use chassis::clock::Clock;
use chassis::database::Url;
use serde_json::Value;

use super::databases::Backend;

/// How a cluster is started.
#[derive(Clone, Debug)]
pub struct Setup {
    pub backend: Backend,
    /// The databases of agreement-svc and order-svc to use instead of new ones.
    pub databases: Option<[Url; 2]>,
    pub clock: Clock,
    /// 0 is any free port.
    pub agreement_port: u16,
    pub order_port: u16,
    /// Serves the acceptance page; on which port, 0 being any free one.
    pub page_port: Option<u16>,
    /// An agreement-svc to use instead of the cluster's own.
    pub agreements_at: Option<String>,
    pub gate_deadline_ms: u64,
    pub document_table: Option<PathBuf>,
    /// A catalogue of offers to use instead of the one that ships.
    pub offers: Option<PathBuf>,
    pub worker_threads: u16,
    /// Calls that each service lets in at a time.
    pub calls_max: u16,
    /// Open subscriptions that a payer and a customer may have.
    pub subscriptions_max: u32,
    /// Changes of acceptances an hour that are allowed for a customer and a partner: by default more than any test makes.
    pub acceptance_changes_max: u32,
    /// With signed tokens and mutual TLS on both services, instead of callers that are believed.
    pub secured: bool,
    /// Identity providers whose tokens a secured cluster accepts beside its own issuer's, as `--identity-providers` has them.
    pub identity_providers: Vec<Value>,
    /// A mail server to use instead of the cluster's mail folder, as `--smtp` names it.
    pub smtp: Option<String>,
    /// 0 sends each announcement by itself and at once.
    pub mail_interval_seconds: u16,
    pub mails_per_day: u32,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            backend: Backend::Sqlite,
            databases: None,
            clock: Clock::system(),
            agreement_port: 0,
            order_port: 0,
            page_port: None,
            agreements_at: None,
            gate_deadline_ms: 4000,
            document_table: None,
            offers: None,
            worker_threads: 1,
            calls_max: 256,
            subscriptions_max: 10_000,
            acceptance_changes_max: 1_000_000,
            secured: false,
            identity_providers: vec![],
            smtp: None,
            mail_interval_seconds: 0,
            mails_per_day: u32::MAX,
        }
    }
}

impl Setup {
    /// Refuses what a running stack cannot provide.
    pub(super) fn check_nothing_is_asked_for(&self) -> Result<(), String> {
        let Self {
            // Where it keeps things, its clock and how fast it is are the stack's own, and it is secured.
            backend: _,
            databases,
            clock: _,
            gate_deadline_ms: _,
            worker_threads: _,
            secured: _,
            // So is how often it sends mails.
            mail_interval_seconds: _,
            mails_per_day: _,
            agreement_port,
            order_port,
            page_port,
            agreements_at,
            document_table,
            offers,
            calls_max,
            subscriptions_max,
            acceptance_changes_max,
            identity_providers,
            smtp,
        } = self;
        let is_usual = databases.is_none()
            && identity_providers.is_empty()
            && (*agreement_port, *order_port, *page_port) == (0, 0, None)
            && *calls_max == Self::default().calls_max
            && *subscriptions_max == Self::default().subscriptions_max
            && *acceptance_changes_max == Self::default().acceptance_changes_max
            && [agreements_at, smtp].iter().all(|setting| setting.is_none())
            && [document_table, offers].iter().all(|setting| setting.is_none());
        if is_usual { Ok(()) } else { Err("a stack is as it is; say so with needs_own!".into()) }
    }
}
