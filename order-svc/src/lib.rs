//! order-svc takes orders and changes of subscriptions; it stores those that need the gate's yes only on that yes.
//!
//! - [`rules`]: the decisions, pure.
//! - [`store`]: the database; every change that needs the gate's answer is one transaction behind the fence.
//! - `agreements`: what is asked of agreement-svc, through `agreement_gate_client`, and the checks on its answers.
//! - `api`: the gRPC services, each in its file.
//! - `workers`: the background workers.
//! - `metrics`: the service's metrics.
//! - [`config`]: commands and settings.
//!
//! [`serve`] wires them; `main` only chooses the command.

mod agreements;
mod api;
pub mod config;
mod metrics;
pub mod rules;
pub mod store;
mod workers;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use chassis::auth::{Identities, IsRegistered, TrustedIssuers};
use chassis::clock::Clock;
use chassis::database::{BatchedReads, Connection, Database, Writes};
use chassis::idempotency::{self, IdempotencyKey, RequestHasher, responses_find};
use chassis::lifecycle::serving_threads;
use chassis::limits::tenant::TenantLimiter;
use chassis::metrics::Metrics;
use chassis::paging::Pages;
use chassis::served;
use chassis::server::{Listeners, Options};
use chassis::service::Service;
use chassis::tls;
use chassis::watch::Watchers;
use chrono::TimeDelta;
use proto::order::event_service_server::EventServiceServer;
use proto::order::offer_service_server::OfferServiceServer;
use proto::order::order_service_server::OrderServiceServer;
use proto::order::subscription_service_server::SubscriptionServiceServer;
use proto::order::withdrawal_service_server::WithdrawalServiceServer;
use tokio::sync::watch;
use tonic::service::RoutesBuilder;

use agreements::AgreementClient;
use agreements::connections::Connections;
use agreements::identity::ServiceIdentity;
use api::Api;
pub use api::access::{ACCESS_POLICY, VOCABULARY};
use config::{Serve, SkipEvent, Storage};
use metrics::Decisions;
use store::commit::Commits;
use store::event::{event_head_read, restore_record};
use store::history::event_skip;
use workers::renewals::Renewals;
use workers::{Followed, history, recorder, renewals, reporter};

/// The full names of the gRPC services, as health knows them.
pub const SERVICES: &[&str] = &[
    "csp.order.v1.OfferService",
    "csp.order.v1.OrderService",
    "csp.order.v1.SubscriptionService",
    "csp.order.v1.WithdrawalService",
    "csp.order.v1.EventService",
];

/// Lists of outdated acceptances that may be in progress: each asks agreement-svc about a hundred subscriptions at a time, on
/// behalf of no tenant that agreement-svc knows, beside the questions that orders wait for.
const OUTDATED_LISTS_MAX: usize = 4;

/// Request ids that one statement looks up. Each may have an answer of a hundred subscriptions.
const REPLAYS_MAX: usize = 64;

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
    let tls = tls::Server::open(&config.tls, config.identity.auth, listeners.calls.local_addr()?)?;
    let trusted = TrustedIssuers::read(&config.identity, VOCABULARY)?;
    let catalogue = Arc::new(config::read_offers(config.offers.as_deref())?);
    let deadline = Duration::from_millis(config.gate_deadline_ms);
    let own = ServiceIdentity::open(config.identity.auth, config.service_token.as_deref())?;
    let (connections, lookups) = Connections::open(&config, deadline)?;
    let agreements = AgreementClient::new(
        connections,
        own,
        deadline,
        clock.clone(),
        TimeDelta::milliseconds(config.clock_difference_max_ms.into()),
    );
    let asked = agreements.clone();
    let is_registered: IsRegistered = Arc::new(move |id| {
        let asked = asked.clone();
        Box::pin(async move { asked.is_registered_partner(id).await })
    });
    let identities = Identities::open(trusted, clock.clone(), is_registered).await;
    let database = if config.storage.create {
        migrate(&config.storage)?
    } else {
        let database = Database::open(&config.storage.database, false, Writes::Concurrent)?;
        database.check_schema(store::MIGRATIONS)?;
        database
    };

    let hasher = RequestHasher::read(config.request_key_file.as_deref())?;
    let pages = Pages::open(&database).await?;
    let metrics = Metrics::new("order_svc", database.clone())?;
    agreements.register_metrics(&metrics)?;
    let decisions = Decisions::new(&metrics)?;
    let (orders, new_orders) = watch::channel(());
    let (followed, following) = watch::channel(Followed::default());
    let known_history = following.clone();
    let mut service = Service::new();
    for lookup in lookups {
        service.spawn(|stop| lookup.run(stop));
    }
    service
        .spawn(|stop| reporter::run(database.clone(), clock.clone(), agreements.clone(), new_orders, stop));
    let renewals = Renewals {
        database: database.clone(),
        clock: clock.clone(),
        agreements: agreements.clone(),
        catalogue: catalogue.clone(),
    };
    service.spawn(|stop| history::run(renewals.clone(), followed, stop));
    let (recorded, recordings) = watch::channel(());
    service.spawn(|stop| recorder::run(database.clone(), clock.clone(), recorded, stop));
    let internal_kind = VOCABULARY.internal_kind;
    let outdated_lists = TenantLimiter::new(OUTDATED_LISTS_MAX, internal_kind);
    let watchers = Watchers::new("order-svc", internal_kind, &metrics, &clock, service.stopping());
    service.spawn(|stop| watchers.clone().poll(database.clone(), event_head_read, recordings, stop));
    service.spawn(|stop| renewals::run(renewals, following.clone(), stop));
    service.spawn(|stop| idempotency::run_expiry(database.clone(), clock.clone(), stop));
    if let Some(listener) = listeners.metrics {
        let stopping = service.stopping();
        service.spawn(|stop| {
            metrics::serve(listener, metrics.clone(), clock.clone(), following, stopping, stop)
        });
    }

    let replays = BatchedReads::new(database.clone(), REPLAYS_MAX, |connection, keys: &[IdempotencyKey]| {
        let keys: Vec<&IdempotencyKey> = keys.iter().collect();
        responses_find(connection, &keys).map(|seen| seen.into_iter().map(Ok).collect())
    });
    let api = Api {
        replays,
        commits: Commits::new(database.clone(), clock.clone()),
        database,
        clock,
        pages,
        hasher,
        catalogue,
        agreements,
        decisions,
        followed: known_history,
        stopping: service.stopping(),
        subscriptions_max: config.subscriptions_max,
        watchers,
        outdated_lists,
        orders,
    };
    let mut routes = RoutesBuilder::default();
    routes
        .add_service(served!(OfferServiceServer, api.clone()))
        .add_service(served!(OrderServiceServer, api.clone()))
        .add_service(served!(SubscriptionServiceServer, api.clone()))
        .add_service(served!(WithdrawalServiceServer, api.clone()))
        .add_service(served!(EventServiceServer, api));
    let options = Options {
        domain: "order-svc",
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

/// Passes over the next event of agreement-svc's history. The answer says what that leaves to do.
///
/// # Errors
/// An event that is not the next one; a database that cannot be used.
pub async fn skip_event(config: &SkipEvent) -> anyhow::Result<String> {
    let database = Database::open(&config.database, false, Writes::Concurrent)?;
    database.check_schema(store::MIGRATIONS)?;
    let SkipEvent { revision, customer_id, .. } = *config;
    let now = Clock::system().now();
    let skip = move |connection: &mut Connection| event_skip(connection, revision, customer_id, now);
    let skipped: Result<_, chassis::database::Error> = database.write(skip).await;
    if let Err(applied) = skipped? {
        bail!("event {revision} is not the next one: the history was applied up to event {applied}");
    }
    Ok(format!(
        "event {revision} was passed over: what it should have cancelled or switched off stays as it is. If it was a \
         withdrawal or an end of a relationship, cancel by hand what customer {customer_id} has left"
    ))
}

/// Announces among the events that the database was restored from an older copy, whose last event is the last one now. The
/// answer says which that was, and where the events go on. It may run beside a running service, and more than once.
///
/// # Errors
/// A database that cannot be changed.
pub async fn announce_restore(database: &Database, clock: &Clock) -> anyhow::Result<String> {
    let now = clock.now();
    let record = move |connection: &mut Connection| restore_record(connection, now);
    let recorded: Result<_, chassis::database::Error> = database.write(record).await;
    let (last, restored) = recorded?;
    Ok(format!("the copy ended with event {last}; the history goes on with event {restored}"))
}

/// Brings the schema up to date.
///
/// # Errors
/// A database that cannot be used.
pub fn migrate(storage: &Storage) -> anyhow::Result<Database> {
    let database = Database::open(&storage.database, storage.create, Writes::Concurrent)?;
    database.migrate(store::MIGRATIONS)?;
    Ok(database)
}
