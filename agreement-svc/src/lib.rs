//! agreement-svc: who accepted which agreement, and whether that is enough to buy.
//!
//! - [`rules`]: the decisions, pure.
//! - `store`: the database, whose changes form one history behind one lock.
//! - `api`: the gRPC services, each in its file.
//! - `actions`: effects that several calls share, inside one transaction and without the wire.
//! - `mail`: the outbox of notifications, and how mails are delivered.
//! - [`data`]: the files that ship with it: policy, templates.
//! - `page`: the acceptance page for browsers.
//! - `metrics`: the service's metrics.
//! - [`config`]: commands and settings.
//! - [`commands`]: the commands besides `serve`, each in its file.
//!
//! [`serve`] wires them; `main` only chooses the command.

mod actions;
mod api;
pub mod commands;
pub mod config;
pub mod data;
mod mail;
mod metrics;
mod page;
pub mod rules;
mod store;
mod workers;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use chassis::auth::{Auth, Identities, IsRegistered, RegistrationUnknown, TrustedIssuers};
use chassis::clock::Clock;
use chassis::database::{Connection, Database};
use chassis::idempotency::{self, RequestHasher};
use chassis::lifecycle::serving_threads;
use chassis::limits::tenant::TenantLimiter;
use chassis::metrics::Metrics;
use chassis::paging::Pages;
use chassis::served;
use chassis::server::web::Web;
use chassis::server::{Listeners, Options};
use chassis::service::Service;
use chassis::tls;
use chassis::watch::Watchers;
use commands::migrate::{migrate, read_templates};
use commands::open;
use config::{ACCEPTANCE_PAGE, Serve};
use metrics::Decisions;
use proto::agreement::attestation_service_server::AttestationServiceServer;
use proto::agreement::customer_service_server::CustomerServiceServer;
use proto::agreement::direct_sign_service_server::DirectSignServiceServer;
use proto::agreement::eligibility_service_server::EligibilityServiceServer;
use proto::agreement::event_service_server::EventServiceServer;
use proto::agreement::partner_service_server::PartnerServiceServer;
use proto::agreement::proposal_service_server::ProposalServiceServer;
use proto::agreement::template_service_server::TemplateServiceServer;
use tokio::sync::watch;
use tonic::service::RoutesBuilder;

use api::Api;
pub use api::access::{ACCESS_POLICY, VOCABULARY};
use api::link::Links;
use mail::Transport;
use mail::mailer::{self, Mailer};
use mail::templates::MailTemplates;
use store::event::revision_head;
use store::gate::{TemplateCache, gate_reads};
use store::partner::partner_find;
use workers::names;

/// The full names of the gRPC services, as health knows them.
pub const SERVICES: &[&str] = &[
    "csp.agreement.v1.TemplateService",
    "csp.agreement.v1.PartnerService",
    "csp.agreement.v1.CustomerService",
    "csp.agreement.v1.AttestationService",
    "csp.agreement.v1.ProposalService",
    "csp.agreement.v1.DirectSignService",
    "csp.agreement.v1.EligibilityService",
    "csp.agreement.v1.EventService",
];

/// Imports that may be open at a time: each keeps up to 64 rows in the queue of changes. A partner has half of
/// them, and fewer beside others.
const IMPORTS_MAX: usize = 8;

/// Serves until `shutdown` resolves.
///
/// # Errors
/// A setting, data file or database that is invalid or cannot be used.
pub async fn serve(
    config: Serve,
    clock: Clock,
    listeners: Listeners,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    ensure!(
        listeners.web.is_none()
            || config.identity.auth == Auth::Insecure
            || config.acceptance_page != ACCEPTANCE_PAGE,
        "--acceptance-listen with --auth jwt needs --acceptance-page: the URL at which browsers reach the page, which is not \
         {ACCEPTANCE_PAGE}"
    );
    let tls = tls::Server::open(&config.tls, config.identity.auth, listeners.calls.local_addr()?)?;
    let trusted = TrustedIssuers::read(&config.identity, VOCABULARY)?;
    let web = match listeners.web {
        None => None,
        Some(listener) => {
            let address = page::Address::read(&config.acceptance_page).context("--acceptance-page")?;
            let tls = tls::Server::open_for_proxy(&config.tls, config.identity.auth, listener.local_addr()?)?;
            let (auth, clock) = (config.identity.auth, clock.clone());
            let router = Box::new(move |calls| page::router(calls, address, auth, clock));
            Some(Web { listener, tls, router })
        }
    };
    let policy = Arc::new(data::read_policy(config.policy.as_deref())?);
    read_templates(&config.storage)?;
    let transport = Transport::new(&config.mail)?;
    let texts = Arc::new(MailTemplates::read(config.mail.mail_templates.as_deref())?);
    let database = if config.storage.create {
        migrate(&config.storage, &clock).await?
    } else {
        open(&config.storage.database)?
    };
    let identities = Identities::open(trusted, clock.clone(), is_registered(database.clone())).await;
    let hasher = RequestHasher::read(config.request_key_file.as_deref())?;
    let pages = Pages::open(&database).await?;
    let metrics = Metrics::new("agreement_svc", database.clone())?;
    let decisions = Decisions::new(&metrics)?;
    let links = config.invitation_key_file.as_deref();
    let links = links.map(|file| read_links(file, &config.acceptance_page)).transpose()?;
    let (committed, commits) = watch::channel(());
    let mut service = Service::new();
    if let Some(web) = web {
        service.serve_web(web);
    }
    let internal_kind = VOCABULARY.internal_kind;
    let watchers = Watchers::new("agreement-svc", internal_kind, &metrics, &clock, service.stopping());
    service.spawn(|stop| watchers.clone().poll(database.clone(), revision_head, committed.subscribe(), stop));
    service.spawn(|stop| names::run(database.clone(), stop));
    let mailer = Mailer {
        database: database.clone(),
        clock: clock.clone(),
        transport,
        texts: texts.clone(),
        from: config.mail.mail_from,
        per_day: config.mail.mails_per_day,
        interval: Duration::from_secs(config.mail.mail_interval_seconds.into()),
    };
    service.spawn(|stop| mailer::run(mailer, commits, stop));
    service.spawn(|stop| idempotency::run_expiry(database.clone(), clock.clone(), stop));
    if let Some(listener) = listeners.metrics {
        let stopping = service.stopping();
        service.spawn(|stop| metrics::serve(listener, metrics.clone(), clock.clone(), stopping, stop));
    }
    let templates = TemplateCache::default();
    let api = Api {
        gate: gate_reads(database.clone(), templates.clone()),
        database,
        clock,
        policy,
        pages,
        hasher,
        templates,
        links: links.map(Arc::new),
        texts,
        metrics: metrics.clone(),
        decisions,
        committed,
        stopping: service.stopping(),
        acceptance_changes_max: config.acceptance_changes_max,
        imports: TenantLimiter::new(IMPORTS_MAX, internal_kind),
        watchers,
    };
    let mut routes = RoutesBuilder::default();
    routes
        .add_service(served!(TemplateServiceServer, api.clone()))
        .add_service(served!(PartnerServiceServer, api.clone()))
        .add_service(served!(CustomerServiceServer, api.clone()))
        .add_service(served!(AttestationServiceServer, api.clone()))
        .add_service(served!(ProposalServiceServer, api.clone()))
        .add_service(served!(DirectSignServiceServer, api.clone()))
        .add_service(served!(EventServiceServer, api.clone()))
        .add_service(served!(EligibilityServiceServer, api));
    let options = Options {
        domain: "agreement-svc",
        identities,
        tls,
        access: ACCESS_POLICY,
        services: SERVICES,
        descriptors: proto::FILE_DESCRIPTOR_SET,
        calls_max: config.calls_max.into(),
        threads: serving_threads(config.worker_threads),
    };
    service.run(listeners.calls, routes, options, &metrics, shutdown).await
}

/// Whether a tenant is a registered partner, for issuers whose tokens do not say so.
fn is_registered(database: Database) -> IsRegistered {
    Arc::new(move |id| {
        let database = database.clone();
        Box::pin(async move {
            let found: Result<_, chassis::database::Error> =
                database.read(move |connection: &mut Connection| partner_find(connection, id)).await;
            let found = found.inspect_err(|error| {
                tracing::warn!(%error, "whether the tenant of a token is a registered partner cannot be read");
            });
            Ok(found.map_err(|_| RegistrationUnknown)?.is_some())
        })
    })
}

fn read_links(file: &Path, page: &str) -> anyhow::Result<Links> {
    let key = std::fs::read(file).with_context(|| file.display().to_string())?;
    Links::new(page, &key)
}
