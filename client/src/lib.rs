//! A client of agreement-svc and order-svc for programs in Rust; order-svc calls agreement-svc with it.
//!
//! - [`Client::call`]: a call with one deadline for all of its attempts, and retries within a budget.
//! - [`Refusal`] and [`AgreementRequired`]: what a service refuses and what helps, as types.
//! - [`Client::watch`]: the history of a service from a cursor on, across interruptions.
//! - [`Replicas`]: a connection to each replica, a circuit breaker for each, and lookups of names by DNS.
//!
//! It knows the contract ([`proto`]) and gRPC. Identity, TLS, traces and metrics are the program's: it makes the channels, and
//! its closures make the calls on them.
//!
//! # An order that may need an agreement
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use agreement_gate_client::proto::order::order_service_client::OrderServiceClient;
//! use agreement_gate_client::proto::order::{CreateOrderRequest, CreateOrderResponse, InlineAttestation};
//! use agreement_gate_client::{AgreementRequired, CallOptions, Client, Remedy, Replicas, keep_alive};
//! use tonic::Status;
//! use tonic::metadata::MetadataMap;
//! use tonic::transport::Endpoint;
//!
//! /// One for the program: its calls share the connection and the retries.
//! fn open() -> Client {
//!     let orders = keep_alive(Endpoint::from_static("http://127.0.0.1:50052"), Duration::from_secs(1));
//!     Client::new(Replicas::of([orders.connect_lazy()]))
//! }
//!
//! /// Orders; if an attestation helps, asks the user and sends the same request again with it, under the same request id.
//! async fn order(
//!     client: &Client,
//!     identity: MetadataMap,
//!     mut order: CreateOrderRequest,
//!     ask_the_user: impl Fn(&[String]) -> InlineAttestation,
//! ) -> Result<CreateOrderResponse, Status> {
//!     let create = |channel, request| async move { OrderServiceClient::new(channel).create_order(request).await };
//!     let options = CallOptions::new(identity, Duration::from_secs(3));
//!     let refused = match client.call(options.clone(), order.clone(), create).await {
//!         Ok(placed) => return Ok(placed),
//!         Err(refused) => refused,
//!     };
//!     let remedies = AgreementRequired::of(&refused).map(|required| required.remedies).unwrap_or_default();
//!     for remedy in remedies {
//!         if let Remedy::Attest { template_id, required_fields, .. } = remedy {
//!             order.attestation = Some(InlineAttestation { template_id, ..ask_the_user(&required_fields) });
//!             return client.call(options, order, create).await;
//!         }
//!     }
//!     Err(refused)
//! }
//! ```
//!
//! # The history of agreement-svc
//!
//! ```no_run
//! use agreement_gate_client::proto::agreement::Event;
//! use agreement_gate_client::proto::agreement::event_service_client::EventServiceClient;
//! use agreement_gate_client::{Client, Cursor, Item, WatchError};
//! use tonic::metadata::MetadataMap;
//!
//! /// Follows the events after a cursor, until something needs a person. `apply` stores the cursor together with its effect.
//! async fn follow(
//!     client: &Client,
//!     after: Cursor,
//!     identity: impl Fn() -> MetadataMap + Send + Sync + 'static,
//!     apply: impl Fn(Event, &Cursor),
//! ) -> WatchError {
//!     let mut watch = client.watch(after, move |channel, mut request| {
//!         *request.metadata_mut() = identity();
//!         async move { EventServiceClient::new(channel).watch_events(request).await }
//!     });
//!     loop {
//!         match watch.next().await {
//!             Ok(Item::Event(event)) => apply(event, watch.seen()),
//!             Ok(Item::Checkpoint(_)) => {}
//!             Ok(Item::Lost(restore)) => eprintln!("undo what was done after revision {}", restore.last_revision),
//!             Err(WatchError::Unavailable(why)) => eprintln!("not followed for now: {why}"),
//!             Err(why) => return why,
//!         }
//!     }
//! }
//! ```

#![warn(missing_docs)]

mod agreement_required;
mod backoff;
mod call;
mod lookup;
mod refusal;
mod replicas;
mod watch;

pub use agreement_required::{AgreementRequired, Remedy};
pub use call::{CallOptions, Client};
pub use lookup::{Lookup, Name};
pub use proto;
pub use refusal::{Domain, Refusal, Resource};
pub use replicas::{Replicas, keep_alive};
pub use watch::{Cursor, Item, Received, Restore, Watch, WatchError, WatchItem};
