//! A cluster: both services in one process, each on a thread and runtime of its own.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use agreement_svc::config as agreement_config;
use chassis::auth::{self, Caller};
use chassis::database::Url;
use chassis::tls;
use order_svc::config as order_config;
use tonic::transport::Channel;

use super::clients::{As, Identity};
use super::databases::{Backend, State, behind};
use super::pki::{Issuer, Pki, bearer};
use super::service::{Service, channel_to, fetch, listen};
use super::setup::Setup;
use super::stack::{Alias, Stack};

/// Both services, running. Dropping it stops them and removes their state; that waits for their
/// connections to end, so clients must live on a runtime that goes on meanwhile (`multi_thread`).
pub struct Cluster {
    setup: Setup,
    agreements: Service,
    replica: Option<Service>,
    orders: Service,
    orders_replica: Option<Service>,
    /// Where the metrics of agreement-svc and order-svc are, once they have been started.
    agreements_metrics: Option<SocketAddr>,
    orders_metrics: Option<SocketAddr>,
    /// Where the acceptance page is.
    page: Option<SocketAddr>,
    pki: Option<Pki>,
    state: State,
    /// What the small world is called on a running stack, if this is one. Then nothing runs here.
    alias: Option<Alias>,
    /// The last revision there was before anything of this cluster's.
    began: i64,
}

impl Cluster {
    /// Starts both services and waits until they serve.
    ///
    /// # Errors
    /// Why one of them does not.
    pub async fn start(mut setup: Setup) -> Result<Self, String> {
        let alias = Stack::named().map(|_| Alias::fresh());
        if alias.is_some() {
            setup.check_nothing_is_asked_for()?;
            // Nothing is ever stored here.
            setup.backend = Backend::Sqlite;
        }
        let mut state = State::new()?;
        let own_pki = setup.secured && alias.is_none();
        let pki = own_pki.then(|| Pki::new(setup.clock.clone())).transpose()?;
        let tls = pki.as_ref().map(|pki| pki.client_tls(Some("client")));
        let [agreements, orders] = match &setup.databases {
            Some(databases) => databases.clone(),
            None => [state.database(setup.backend, "agreements")?, state.database(setup.backend, "orders")?],
        };
        let agreements = Service::new(setup.agreement_port, agreements, tls.clone())?;
        let orders = Service::new(setup.order_port, orders, tls)?;
        let mut cluster = Self {
            setup,
            pki,
            agreements: agreements.0,
            replica: None,
            orders: orders.0,
            orders_replica: None,
            agreements_metrics: None,
            orders_metrics: None,
            page: None,
            state,
            alias,
            began: 0,
        };
        if cluster.alias.is_some() {
            cluster.began = cluster.head().await.map_err(|refused| refused.to_string())?;
            return Ok(cluster);
        }
        if cluster.setup.agreements_at.is_none() {
            cluster.run_agreements(agreements.1).await?;
        }
        cluster.run_orders(orders.1).await?;
        Ok(cluster)
    }

    /// Starts both services on a backend, with everything else as usual.
    ///
    /// # Panics
    /// When they do not start: then no test means anything.
    pub async fn on(backend: Backend) -> Self {
        match Self::start(Setup { backend, ..Setup::default() }).await {
            Ok(cluster) => cluster,
            Err(why) => panic!("the cluster does not start: {why}"),
        }
    }

    /// The clients of both services, as a caller.
    #[must_use]
    pub fn as_caller(&self, caller: Caller) -> As {
        self.with_identity(self.identity(caller))
    }

    /// A caller, as the services identify it.
    #[must_use]
    pub fn identity(&self, caller: Caller) -> Identity {
        match &self.pki {
            None => match self.alias {
                Some(alias) => Identity::of(alias.of(&caller)).under(alias),
                None => Identity::of(caller),
            },
            Some(pki) => Identity::by(bearer(&pki.issuer().token(&caller))),
        }
    }

    /// The secrets of a secured cluster.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn pki(&self) -> &Pki {
        let Some(pki) = &self.pki else { panic!("the cluster is not secured") };
        pki
    }

    /// The two services without any identity.
    #[must_use]
    pub fn as_unidentified(&self) -> As {
        self.with_identity(match self.alias {
            Some(alias) => Identity::none().under(alias),
            None => Identity::none(),
        })
    }

    fn with_identity(&self, identity: Identity) -> As {
        let [agreements, orders] = self.addresses().map(|address| self.wire(&address));
        As { agreements, orders, identity }
    }

    /// A channel to an address, with the client's certificate where one is needed.
    fn wire(&self, address: &str) -> Channel {
        channel_to(address, &self.client_tls(), |endpoint| endpoint)
    }

    #[must_use]
    pub fn agreements_address(&self) -> SocketAddr {
        self.services_are_own();
        self.agreements.address
    }

    #[must_use]
    pub fn orders_address(&self) -> SocketAddr {
        self.services_are_own();
        self.orders.address
    }

    /// Where the acceptance page is served.
    ///
    /// # Panics
    /// When none is.
    #[must_use]
    pub fn page_address(&self) -> SocketAddr {
        let Some(page) = self.page else { panic!("the cluster serves no page") };
        page
    }

    /// # Panics
    /// When they are those of a stack.
    fn services_are_own(&self) {
        assert!(self.alias.is_none(), "the services of a stack are left alone; say so with needs_own!");
    }

    /// What order-svc says of itself in numbers.
    ///
    /// # Errors
    /// Why it cannot be fetched.
    pub async fn orders_metrics(&self) -> Result<String, String> {
        let address = self.orders_metrics.ok_or("order-svc was not started")?;
        fetch(address).await.map_err(|error| error.to_string())
    }

    /// What agreement-svc says of itself in numbers.
    ///
    /// # Errors
    /// Why it cannot be fetched.
    pub async fn agreements_metrics(&self) -> Result<String, String> {
        let address = self.agreements_metrics.ok_or("agreement-svc was not started")?;
        fetch(address).await.map_err(|error| error.to_string())
    }

    /// Whether the services are those of a stack, which others use, too.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.alias.is_some()
    }

    /// The last revision there was before anything of this cluster's.
    pub(crate) fn began(&self) -> i64 {
        self.began
    }

    /// Where agreement-svc and order-svc are, as settings name it.
    #[must_use]
    pub fn addresses(&self) -> [String; 2] {
        if let (Some(stack), Some(_)) = (Stack::named(), self.alias) {
            return stack.addresses();
        }
        [&self.agreements, &self.orders].map(|service| self.url(service))
    }

    /// Where a service of its own is.
    fn url(&self, service: &Service) -> String {
        let scheme = if self.pki.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", service.address)
    }

    /// What it takes to connect to either.
    #[must_use]
    pub fn client_tls(&self) -> tls::ClientSettings {
        if let (Some(stack), Some(_)) = (Stack::named(), self.alias) {
            return stack.client_tls();
        }
        self.pki.as_ref().map(|pki| pki.client_tls(Some("client"))).unwrap_or_default()
    }

    /// Whose tokens both services believe.
    ///
    /// # Panics
    /// When they believe whatever a caller says of itself.
    #[must_use]
    pub fn issuer(&self) -> &Issuer {
        match (Stack::named(), self.alias) {
            (Some(stack), Some(_)) => stack.issuer(),
            _ => self.pki().issuer(),
        }
    }

    /// A token for a caller, which both services accept.
    ///
    /// # Panics
    /// As [`Cluster::issuer`].
    #[must_use]
    pub fn token(&self, caller: &Caller) -> String {
        match self.alias {
            Some(alias) => self.issuer().token(&alias.of(caller)),
            None => self.issuer().token(caller),
        }
    }

    /// Stops agreement-svc as a first signal would, and waits until it is gone.
    pub fn stop_agreements(&mut self) {
        self.services_are_own();
        drop(self.agreements.stop());
    }

    /// Starts agreement-svc again on its old address and state.
    ///
    /// # Errors
    /// Why it does not start.
    pub async fn restart_agreements(&mut self) -> Result<(), String> {
        self.services_are_own();
        let listener = listen(self.agreements.address.port())?;
        self.run_agreements(listener).await
    }

    /// Stops order-svc as a first signal would, and waits until it is gone.
    pub fn stop_orders(&mut self) {
        self.services_are_own();
        drop(self.orders.stop());
    }

    /// Starts order-svc again on its old address and state, after stopping it if it runs.
    ///
    /// # Errors
    /// Why it does not start.
    pub async fn restart_orders(&mut self) -> Result<(), String> {
        self.stop_orders();
        let listener = listen(self.orders.address.port())?;
        self.run_orders(listener).await
    }

    /// Runs SQL behind agreement-svc's back.
    ///
    /// # Errors
    /// The database's.
    pub fn agreements_sql(&self, sql: &str) -> Result<(), String> {
        self.services_are_own();
        behind(&self.agreements.database, sql)
    }

    /// Runs SQL behind order-svc's back.
    ///
    /// # Errors
    /// The database's.
    pub fn orders_sql(&self, sql: &str) -> Result<(), String> {
        self.services_are_own();
        behind(&self.orders.database, sql)
    }

    /// Where order-svc keeps its state.
    #[must_use]
    pub fn orders_database(&self) -> &Url {
        self.services_are_own();
        &self.orders.database
    }

    /// Where agreement-svc keeps its state.
    #[must_use]
    pub fn agreements_database(&self) -> &Url {
        self.services_are_own();
        &self.agreements.database
    }

    /// Where mails are written, unless there is a mail server.
    #[must_use]
    pub fn mail_folder(&self) -> PathBuf {
        self.services_are_own();
        self.state.folder().join("mails")
    }

    /// A file with a key, in the cluster's folder.
    fn key(&self, name: &str) -> Result<PathBuf, String> {
        let file = self.state.folder().join(name);
        std::fs::write(&file, [7; 32]).map_err(|error| error.to_string())?;
        Ok(file)
    }

    /// How agreement-svc is started.
    ///
    /// # Errors
    /// What cannot be written to the cluster's folder.
    pub fn agreements_config(&self) -> Result<agreement_config::Serve, String> {
        let key = self.key("invitation.key")?;
        Ok(agreement_config::Serve {
            storage: agreement_config::Storage {
                database: self.agreements.database.clone(),
                create: true,
                templates: None,
                document_table: self.setup.document_table.clone(),
            },
            listen: self.agreements.address,
            identity: self.identity_settings()?,
            tls: self.pki.as_ref().map(Pki::server_tls).unwrap_or_default(),
            policy: None,
            invitation_key_file: Some(key),
            request_key_file: Some(self.key("request.key")?),
            acceptance_page: match self.page {
                Some(page) => format!("http://localhost:{}/accept", page.port()),
                None => "https://portal.example/accept".into(),
            },
            acceptance_listen: self.page,
            mail: agreement_config::Mail {
                mail_templates: None,
                smtp: self.setup.smtp.clone(),
                smtp_user: None,
                smtp_password_file: None,
                mail_from: "agreements@vendor.example".parse().map_err(|_| "no address")?,
                mail_folder: self.mail_folder(),
                mail_interval_seconds: self.setup.mail_interval_seconds,
                mails_per_day: self.setup.mails_per_day,
            },
            metrics_listen: None,
            worker_threads: Some(self.setup.worker_threads),
            calls_max: self.setup.calls_max,
            acceptance_changes_max: self.setup.acceptance_changes_max,
        })
    }

    /// Starts a second agreement-svc on the state of the first.
    ///
    /// # Errors
    /// Why it does not start.
    pub async fn start_replica(&mut self) -> Result<(), String> {
        self.services_are_own();
        let (mut replica, listener) =
            Service::new(0, self.agreements.database.clone(), self.agreements.tls.clone())?;
        let config = self.agreements_config()?;
        replica.serve_agreements(config, self.setup.clock.clone(), listener, None, None).await?;
        self.replica = Some(replica);
        Ok(())
    }

    /// The clients of the second agreement-svc, as a caller.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn at_replica(&self, caller: Caller) -> As {
        let Some(replica) = &self.replica else { panic!("no replica was started") };
        As { agreements: self.wire(&self.url(replica)), ..self.as_caller(caller) }
    }

    async fn run_agreements(&mut self, listener: TcpListener) -> Result<(), String> {
        let port = self.page.map(|page| page.port()).or(self.setup.page_port);
        let page = port.map(listen).transpose()?;
        self.page = match &page {
            None => None,
            Some(listener) => Some(listener.local_addr().map_err(|error| error.to_string())?),
        };
        let config = self.agreements_config()?;
        let metrics = listen(0)?;
        self.agreements_metrics = Some(metrics.local_addr().map_err(|error| error.to_string())?);
        self.agreements
            .serve_agreements(config, self.setup.clock.clone(), listener, Some(metrics), page)
            .await
    }

    /// Announces in agreement-svc's history that its database was restored.
    ///
    /// # Errors
    /// Why that cannot be done.
    pub async fn announce_restore(&self) -> Result<(), String> {
        let (config, clock) = (self.agreements_config()?, &self.setup.clock);
        let database = agreement_svc::commands::migrate::migrate(&config.storage, clock)
            .await
            .map_err(|error| format!("{error:#}"))?;
        agreement_svc::commands::migrate::announce_restore(&database, clock)
            .await
            .map(drop)
            .map_err(|error| format!("{error:#}"))
    }

    /// Announces among order-svc's events that its database was restored.
    ///
    /// # Errors
    /// Why that cannot be done.
    pub async fn announce_orders_restore(&self) -> Result<(), String> {
        let database =
            order_svc::migrate(&self.orders_config()?.storage).map_err(|error| format!("{error:#}"))?;
        let announced = order_svc::announce_restore(&database, &self.setup.clock).await;
        announced.map(drop).map_err(|error| format!("{error:#}"))
    }

    /// Starts a second order-svc on the state of the first.
    ///
    /// # Errors
    /// Why it does not start.
    pub async fn start_orders_replica(&mut self) -> Result<(), String> {
        self.services_are_own();
        let (mut replica, listener) = Service::new(0, self.orders.database.clone(), self.orders.tls.clone())?;
        replica.serve_orders(self.orders_config()?, self.setup.clock.clone(), listener, None).await?;
        self.orders_replica = Some(replica);
        Ok(())
    }

    /// The clients of the second order-svc, as a caller.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn at_orders_replica(&self, caller: Caller) -> As {
        let Some(replica) = &self.orders_replica else { panic!("no replica was started") };
        As { orders: self.wire(&self.url(replica)), ..self.as_caller(caller) }
    }

    async fn run_orders(&mut self, listener: TcpListener) -> Result<(), String> {
        let config = self.orders_config()?;
        let metrics = listen(0)?;
        self.orders_metrics = Some(metrics.local_addr().map_err(|error| error.to_string())?);
        self.orders.serve_orders(config, self.setup.clock.clone(), listener, Some(metrics)).await
    }

    fn identity_settings(&self) -> Result<auth::Settings, String> {
        match (&self.pki, &*self.setup.identity_providers) {
            (None, _) => Ok(auth::Settings::insecure()),
            (Some(pki), []) => Ok(pki.identity()),
            (Some(pki), others) => pki.with_providers(others),
        }
    }

    fn orders_config(&self) -> Result<order_config::Serve, String> {
        let at = self.setup.agreements_at.clone().unwrap_or_else(|| self.url(&self.agreements));
        let client = self.client_tls();
        Ok(order_config::Serve {
            storage: order_config::Storage { database: self.orders.database.clone(), create: true },
            listen: self.orders.address,
            agreements: at.split(',').map(str::parse).collect::<Result<_, _>>()?,
            agreements_ca: client.ca,
            agreements_cert: client.cert,
            agreements_key: client.key,
            gate_deadline_ms: self.setup.gate_deadline_ms,
            clock_difference_max_ms: 60_000,
            service_token: self.pki.as_ref().map(|pki| pki.file("service.token")),
            identity: self.identity_settings()?,
            tls: self.pki.as_ref().map(Pki::server_tls).unwrap_or_default(),
            metrics_listen: None,
            offers: self.setup.offers.clone(),
            worker_threads: Some(self.setup.worker_threads),
            calls_max: self.setup.calls_max,
            request_key_file: Some(self.key("request.key")?),
            subscriptions_max: self.setup.subscriptions_max,
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.orders_replica.as_mut().map(Service::stop));
        drop(self.orders.stop());
        drop(self.replica.as_mut().map(Service::stop));
        drop(self.agreements.stop());
    }
}
