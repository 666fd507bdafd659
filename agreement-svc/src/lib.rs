//! agreement-svc: who accepted which agreement, and whether that is enough to buy.
//!
//! - [`rules`]: the decisions, pure.
//! - `store`: the memory, one database behind one lock.
//! - `api`: the gRPC services, each in its file.
//! - `workers`: what runs without being asked.
//! - [`data`]: the files that ship with it: policy, templates.
//! - `metrics`: how it is doing, in numbers.
//! - [`config`]: commands and settings.
//! - [`import`]: the command that attests from a file; a client of a running server.
//! - [`token`]: the commands that make keys and sign tokens with them.
//! - [`verify()`] and `erase`: the history held against the records, and a person erased from them.
//!
//! [`serve`] wires them; `main` only chooses the command.

mod actions;
mod api;
pub mod config;
pub mod data;
mod erase;
pub mod import;
mod metrics;
pub mod rules;
mod store;
pub mod token;
mod workers;

use std::error::Error;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chassis::auth::Identities;
use chassis::clock::Clock;
use chassis::database::{self, Database, Url, Writes};
use chassis::idempotency;
use chassis::metrics::Metrics;
use chassis::server::limits::tenant::TenantLimiter;
use chassis::server::{self, Listeners, MESSAGE_BYTES_MAX, Options};
use chassis::tls;
use config::{EraseContact, Serve, Storage, Verify};
use metrics::Decisions;
use proto::agreement::attestation_service_server::AttestationServiceServer;
use proto::agreement::customer_service_server::CustomerServiceServer;
use proto::agreement::direct_sign_service_server::DirectSignServiceServer;
use proto::agreement::eligibility_service_server::EligibilityServiceServer;
use proto::agreement::event_service_server::EventServiceServer;
use proto::agreement::partner_service_server::PartnerServiceServer;
use proto::agreement::template_service_server::TemplateServiceServer;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::service::RoutesBuilder;

use api::Api;
pub use api::access::{ACCESS_POLICY, VOCABULARY};
use api::link::Links;
pub use erase::Erased;
use rules::history::Verified;
use store::change::{ChangeError, change_internal};
use store::gate::TemplateCache;
use workers::mailer::{self, Mailer};
use workers::poller;
use workers::transport::Transport;

/// Whatever keeps a command from doing its work, for the person who started it.
pub type Failure = Box<dyn Error + Send + Sync>;

/// The full names of the gRPC services, as health knows them.
pub const SERVICES: &[&str] = &[
    "csp.agreement.v1.TemplateService",
    "csp.agreement.v1.PartnerService",
    "csp.agreement.v1.CustomerService",
    "csp.agreement.v1.AttestationService",
    "csp.agreement.v1.DirectSignService",
    "csp.agreement.v1.EligibilityService",
    "csp.agreement.v1.EventService",
];

/// Imports that may be open at a time: each keeps up to 64 rows in the queue of changes. A partner has half of
/// them, and fewer beside others.
const IMPORTS_MAX: usize = 8;

/// Watchers that may be open at a time: replicas of a few services, and somebody who looks on.
const WATCHERS_MAX: usize = 64;

/// Serves until `shutdown` resolves.
///
/// # Errors
/// A setting, data file or database that makes no sense or cannot be used.
pub async fn serve(
    config: Serve,
    clock: Clock,
    listeners: Listeners,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Failure> {
    let tls = tls::Server::open(&config.tls, config.identity.auth, listeners.calls.local_addr()?)?;
    let identities = Identities::open(&config.identity, VOCABULARY, clock.clone())?;
    let policy = Arc::new(data::read_policy(config.policy.as_deref())?);
    read_templates(&config.storage)?;
    let transport = Transport::new(&config.mail)?;
    let database = if config.storage.create {
        migrate(&config.storage, &clock).await?
    } else {
        open(&config.storage.database)?
    };
    let metrics = Metrics::new("agreement_svc", env!("CARGO_PKG_VERSION"), database.clone())?;
    let decisions = Decisions::new(&metrics)?;
    let links = config.invitation_key_file.as_deref();
    let links = links.map(|file| read_links(file, &config.acceptance_page)).transpose()?;
    let (committed, commits) = watch::channel(());
    let (head, _) = watch::channel(0);
    let (stop, stopping) = watch::channel(false);
    let shutdown = async move {
        shutdown.await;
        stop.send_replace(true);
    };
    // Workers go on until the last call in progress has ended.
    let (stop_workers, workers_stop) = watch::channel(false);
    let mut workers = JoinSet::new();
    workers.spawn(poller::run(database.clone(), head.clone(), committed.subscribe(), workers_stop.clone()));
    let mailer =
        Mailer { database: database.clone(), clock: clock.clone(), transport, from: config.mail.mail_from };
    workers.spawn(mailer::run(mailer, commits, workers_stop.clone()));
    workers.spawn(idempotency::expire_answers(database.clone(), clock.clone(), workers_stop.clone()));
    if let Some(listener) = listeners.metrics {
        workers.spawn(metrics::serve(listener, metrics.clone(), clock.clone(), workers_stop));
    }
    let api = Api {
        database,
        clock,
        policy,
        templates: TemplateCache::default(),
        links: links.map(Arc::new),
        metrics: metrics.clone(),
        decisions,
        committed,
        head,
        stopping,
        imports: TenantLimiter::new(IMPORTS_MAX, VOCABULARY.internal_kind),
        watchers: TenantLimiter::new(WATCHERS_MAX, VOCABULARY.internal_kind),
    };
    let mut routes = RoutesBuilder::default();
    routes
        .add_service(TemplateServiceServer::new(api.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(PartnerServiceServer::new(api.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(CustomerServiceServer::new(api.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(AttestationServiceServer::new(api.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(DirectSignServiceServer::new(api.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(EventServiceServer::new(api.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(EligibilityServiceServer::new(api).max_decoding_message_size(MESSAGE_BYTES_MAX));
    let options = Options {
        domain: "agreement-svc",
        identities,
        tls,
        access: ACCESS_POLICY,
        services: SERVICES,
        descriptors: proto::FILE_DESCRIPTOR_SET,
        calls_max: config.calls_max.into(),
    };
    let served = tokio::select! {
        served = server::serve(listeners.calls, routes, options, &metrics, shutdown) => served,
        ended = workers.join_next() => return Err(format!("a worker ended by itself: {ended:?}").into()),
    };
    stop_workers.send_replace(true);
    while let Some(ended) = workers.join_next().await {
        ended?;
    }
    served
}

/// Brings the schema up to date and loads the templates into an empty database.
///
/// # Errors
/// A data file or database that makes no sense or cannot be used.
pub async fn migrate(storage: &Storage, clock: &Clock) -> Result<Database, Failure> {
    let templates = read_templates(storage)?;
    let database = Database::open(&storage.database, storage.create, Writes::Serial)?;
    database.migrate(store::MIGRATIONS)?;
    templates.load(&database, clock.now()).await.map_err(|error| match error {
        ChangeError::Failed(error) => Failure::from(error),
        ChangeError::Refused(refusal) => Failure::from(format!("the templates do not fit: {refusal:?}")),
    })?;
    Ok(database)
}

/// Announces in the history that the database was restored from an older copy, whose last event is the last one
/// now. The answer says which that was, and where the history goes on.
///
/// It may be done beside a running service, and once too often: whoever follows the history goes on behind each
/// announcement. But between a restore and its announcement numbers of lost events are used again, so it should
/// come before the first start.
///
/// # Errors
/// A database that cannot be changed.
pub async fn announce_restore(database: &Database, clock: &Clock) -> Result<String, Failure> {
    let announced = change_internal(database, clock.now(), |change| {
        let last = change.revision();
        Ok::<_, database::Error>((last, change.record_restored()?))
    });
    let (last, restored) = announced.await?;
    Ok(format!("the copy ended with event {last}; the history goes on with event {restored}"))
}

/// Finds out whether the history is whole, goes through every head that was kept, and is what the
/// acceptances show. It reads one state of the database, beside a service that may go on.
///
/// # Errors
/// A database that cannot be read.
pub async fn verify(config: &Verify) -> Result<Verified, Failure> {
    let database = open(&config.database)?;
    let kept = config.head.clone();
    Ok(database.snapshot(move |connection| store::verify::verify(connection, &kept)).await?)
}

/// Erases whoever has an e-mail address from records, stored answers and written mails. Doing it again
/// finishes what was cut off, and does no harm.
///
/// # Errors
/// What is no address; a database or folder that cannot be read or changed. The address is in none.
pub async fn erase_contact(config: &EraseContact, clock: &Clock) -> Result<Erased, Failure> {
    let database = open(&config.database)?;
    let usual = || Some(PathBuf::from(config::MAIL_FOLDER)).filter(|folder| folder.is_dir());
    let mail_folder = config.mail_folder.clone().or_else(usual);
    erase::erase(&database, clock.now(), &config.email.0, mail_folder.as_deref()).await
}

fn open(url: &Url) -> Result<Database, Failure> {
    let database = Database::open(url, false, Writes::Serial)?;
    database.check_schema(store::MIGRATIONS)?;
    Ok(database)
}

fn read_links(file: &Path, page: &str) -> Result<Links, String> {
    let key = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
    Links::new(page, &key)
}

fn read_templates(storage: &Storage) -> Result<data::Templates, String> {
    data::read_templates(storage.templates.as_deref(), storage.document_table.as_deref())
}
