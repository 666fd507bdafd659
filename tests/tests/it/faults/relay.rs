//! Stands between order-svc and agreement-svc and passes everything on; it can hold back an answer of the
//! gate, and the history.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use proto::agreement::attestation_service_server::AttestationServiceServer;
use proto::agreement::eligibility_service_server::EligibilityServiceServer;
use proto::agreement::event_service_client::EventServiceClient;
use proto::agreement::event_service_server::{EventService, EventServiceServer};
use proto::agreement::{ListEventsRequest, ListEventsResponse, WatchEventsRequest, WatchEventsResponse};
use tokio::sync::{oneshot, watch};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

/// A relay that serves at an address, for as long as the test's runtime lives.
#[derive(Clone)]
pub(crate) struct Relay {
    pub address: SocketAddr,
    to: Arc<Mutex<Option<Channel>>>,
    hold: Arc<Mutex<Option<Hold>>>,
    is_history_held: watch::Sender<bool>,
    histories: watch::Sender<usize>,
}

/// Tells that there is an answer, and waits until it may be passed on.
struct Hold {
    answered: oneshot::Sender<()>,
    go_on: oneshot::Receiver<()>,
}

impl Relay {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (is_history_held, held) = watch::channel(false);
        let (to, hold, histories) = (Arc::default(), Arc::default(), watch::Sender::new(0));
        let relay = Self { address, to, hold, is_history_held, histories };
        let history = History { to: relay.to.clone(), held, asked: relay.histories.clone() };
        let server = Server::builder()
            .add_service(relay.pass::<EligibilityServiceServer<()>>())
            .add_service(relay.pass::<AttestationServiceServer<()>>())
            .add_service(EventServiceServer::new(history))
            .serve_with_incoming(TcpIncoming::from(listener));
        tokio::spawn(server);
        relay
    }

    /// From now on it passes on to this address.
    pub(crate) fn pass_to(&self, address: SocketAddr) {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        *self.to.lock().unwrap() = Some(endpoint.connect_lazy());
    }

    /// Holds the next answer of the gate back, also to a batch: what tells that there is one, and what lets it go.
    pub(crate) fn hold_answer(&self) -> (oneshot::Receiver<()>, oneshot::Sender<()>) {
        let (answered, is_answered) = oneshot::channel();
        let (let_go, go_on) = oneshot::channel();
        *self.hold.lock().unwrap() = Some(Hold { answered, go_on });
        (is_answered, let_go)
    }

    /// Holds no answer back.
    pub(crate) fn hold_nothing(&self) {
        self.hold.lock().unwrap().take();
    }

    /// Holds back what happens from now on, or lets it go.
    pub(crate) fn hold_history(&self, hold: bool) {
        self.is_history_held.send_replace(hold);
    }

    /// How often the history has been asked for.
    pub(crate) fn histories(&self) -> watch::Receiver<usize> {
        self.histories.subscribe()
    }

    fn pass<S: NamedService>(&self) -> Pass<S> {
        Pass { to: self.to.clone(), hold: self.hold.clone(), service: PhantomData }
    }
}

/// Passes on the calls of one service.
struct Pass<S> {
    to: Arc<Mutex<Option<Channel>>>,
    hold: Arc<Mutex<Option<Hold>>>,
    service: PhantomData<fn() -> S>,
}

impl<S> Clone for Pass<S> {
    fn clone(&self) -> Self {
        Self { to: self.to.clone(), hold: self.hold.clone(), service: PhantomData }
    }
}

impl<S: NamedService> NamedService for Pass<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Pass<S> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (to, hold) = (self.to.lock().unwrap().clone(), self.hold.clone());
        Box::pin(async move {
            let is_gate = request.uri().path().ends_with("CheckEligibility");
            let answer = pass(to, request).await.unwrap_or_else(Status::into_http);
            let held = if is_gate { hold.lock().unwrap().take() } else { None };
            if let Some(Hold { answered, go_on }) = held {
                answered.send(()).unwrap();
                drop(go_on.await);
            }
            Ok(answer)
        })
    }
}

/// Passes the history on, unless it is held.
struct History {
    to: Arc<Mutex<Option<Channel>>>,
    held: watch::Receiver<bool>,
    asked: watch::Sender<usize>,
}

#[tonic::async_trait]
impl EventService for History {
    type WatchEventsStream = BoxStream<'static, Result<WatchEventsResponse, Status>>;

    async fn list_events(
        &self,
        _request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        Err(Status::unimplemented("order-svc does not ask for it"))
    }

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        self.asked.send_modify(|asked| *asked += 1);
        let to = self.to.lock().unwrap().clone().ok_or_else(away)?;
        let stream = EventServiceClient::new(to).watch_events(request).await?.into_inner();
        let held = self.held.clone();
        let stream = stream.then(move |message| {
            let mut held = held.clone();
            async move {
                drop(held.wait_for(|held| !held).await);
                message
            }
        });
        Ok(Response::new(stream.boxed()))
    }
}

fn away() -> Status {
    Status::unavailable("there is no server to pass it to")
}

async fn pass(to: Option<Channel>, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
    let mut to = to.ok_or_else(away)?;
    std::future::poll_fn(|context| to.poll_ready(context)).await.map_err(|_| away())?;
    to.call(request).await.map_err(|_| away())
}
