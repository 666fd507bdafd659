//! Holds a running stack of `docker-compose.yml` to what it promises: what its containers may do and know,
//! and that it says the right thing while parts of it are away and goes on by itself once they are back.
//! `.ci/compose` starts the stack and names it; this program must run as root on the machine of the engine.

use std::error::Error;
use std::future::Future;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chassis::clock::Clock;
use proto::agreement::{GetAttestationRequest, GetCustomerRequest, ListCustomersRequest, NotificationState};
use proto::order::{GetSubscriptionRequest, Subscription, SubscriptionState};
use tests::fixtures::{self, DIRECT};
use tests::{As, Backend, Cluster, actions, stack::Stack};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::{Code, Status};
use tonic_types::StatusExt;

type Outcome = Result<(), Box<dyn Error>>;

/// Whatever comes back by itself has come back within this time.
const RECOVERY_MAX: Duration = Duration::from_secs(90);

/// The services of the stack that run.
const RUNNING: [&str; 4] = ["postgres", "mailpit", "agreement-svc", "order-svc"];

pub(crate) async fn run() -> Outcome {
    if Stack::named().is_none() {
        return Err("TEST_AGREEMENTS must name a stack; `.ci/compose` starts one".into());
    }
    for name in RUNNING {
        Container::of(name)?.is_confined()?;
    }
    println!("no container is root, can write to its image, can gain privileges or has a capability");
    secrets_stay_with_their_owners()?;
    println!("no secret is in an environment, and no service has another's");
    connections_are_encrypted()?;
    println!("PostgreSQL is entered over TLS only, each database by its own service");

    let shop = Shop::open().await?;
    shop.mail_arrives().await?;
    println!("the customer receives a mail about an attestation");

    let (agreements, orders) = (Container::of("agreement-svc")?, Container::of("order-svc")?);
    agreements.does("stop")?;
    shop.only_reads_go_on().await?;
    agreements.does("start")?;
    shop.sells_again().await?;
    println!("without agreement-svc nothing is sold and orders are read; once it is back, all is as before");

    orders.does("stop")?;
    shop.is_refused_by_order_svc_alone().await?;
    orders.does("start")?;
    shop.sells_again().await?;
    println!("without order-svc agreements are read and made; once it is back, all is as before");

    let gate = format!("{}_gate", project()?);
    docker(&["network", "disconnect", &gate, &orders.id])?;
    shop.only_reads_go_on().await?;
    shop.withdraw_and_attest().await?;
    docker(&["network", "connect", "--alias", "order-svc", &gate, &orders.id])?;
    shop.sells_again().await?;
    shop.is_cancelled().await?;
    println!("cut off from each other the same, and what was withdrawn meanwhile is cancelled after it");

    let before = (agreements.started()?, orders.started()?);
    Container::of("postgres")?.does("restart")?;
    shop.sells_again().await?;
    if before != (agreements.started()?, orders.started()?) {
        return Err("a service was started anew because PostgreSQL was".into());
    }
    println!("when PostgreSQL restarts, both go on without a restart of their own");

    for killed in [&agreements, &orders] {
        killed.dies()?;
        shop.sells_again().await?;
        killed.was_restarted()?;
    }
    println!("a service that is killed is started again");
    Ok(())
}

/// What `docker-compose.yml` is called on this engine.
fn project() -> Result<String, String> {
    std::env::var("COMPOSE_PROJECT_NAME").map_err(|_| "COMPOSE_PROJECT_NAME is not set".into())
}

fn docker(arguments: &[&str]) -> Result<String, String> {
    output("docker", arguments)
}

fn output(program: &str, arguments: &[&str]) -> Result<String, String> {
    let said =
        Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let text = String::from_utf8_lossy(&said.stdout).trim().to_owned();
    if said.status.success() {
        return Ok(text);
    }
    Err(format!("{program} {}: {text} {}", arguments.join(" "), String::from_utf8_lossy(&said.stderr).trim()))
}

/// One container of the stack.
struct Container {
    service: &'static str,
    id: String,
}

impl Container {
    fn of(service: &'static str) -> Result<Self, String> {
        let project = format!("label=com.docker.compose.project={}", project()?);
        let name = format!("label=com.docker.compose.service={service}");
        let id = docker(&["ps", "--all", "--quiet", "--filter", &project, "--filter", &name])?;
        match id.lines().count() {
            1 => Ok(Self { service, id }),
            many => Err(format!("there are {many} containers of {service}")),
        }
    }

    fn does(&self, command: &str) -> Result<(), String> {
        docker(&[command, &self.id]).map(drop)
    }

    fn inside(&self, command: &[&str]) -> Result<String, String> {
        docker(&[&["exec", &self.id], command].concat())
    }

    fn inspect(&self, what: &str) -> Result<String, String> {
        docker(&["inspect", "--format", what, &self.id])
    }

    fn started(&self) -> Result<String, String> {
        self.inspect("{{.State.StartedAt}}")
    }

    /// What the kernel says of its first process, and what becomes of a file in its image.
    fn is_confined(&self) -> Result<(), String> {
        let status = self.inside(&["cat", "/proc/1/status"])?;
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|values| values.split_whitespace().next()).unwrap_or_default().to_owned()
        };
        let is_root = value("Uid:").parse() == Ok(0);
        let capabilities = u64::from_str_radix(&value("CapBnd:"), 16).map_err(|error| error.to_string())?;
        if is_root || capabilities != 0 || value("NoNewPrivs:") != "1" {
            return Err(format!("{} may do too much:\n{status}", self.service));
        }
        match self.inside(&["sh", "-c", ": > /usr/written"]) {
            Err(why) if why.contains("Read-only file system") => Ok(()),
            other => Err(format!("{} could write to its image: {other:?}", self.service)),
        }
    }

    /// Kills the process itself, which the engine then takes for an accident.
    fn dies(&self) -> Result<(), String> {
        output("kill", &["-KILL", &self.inspect("{{.State.Pid}}")?]).map(drop)
    }

    fn was_restarted(&self) -> Result<(), String> {
        match self.inspect("{{.RestartCount}}")?.as_str() {
            "1" => Ok(()),
            count => Err(format!("{} was started anew {count} times", self.service)),
        }
    }
}

/// Each service has a folder of secrets. No other service can read it, and no environment shows it.
fn secrets_stay_with_their_owners() -> Result<(), String> {
    let owners = ["postgres", "agreement-svc", "order-svc"].map(Container::of);
    let mut known = vec![];
    for owner in owners {
        let owner = owner?;
        for file in owner.inside(&["ls", "/secrets"])?.lines() {
            let path = format!("/secrets/{file}");
            known.push((owner.service, file.to_owned(), owner.inside(&["base64", "--wrap=0", &path])?));
        }
    }
    // What several have to know: who vouches for certificates and tokens, and PostgreSQL each one's password.
    let shared = ["ca.crt", "jwks.json"];
    for (n, (service, file, content)) in known.iter().enumerate() {
        if let Some((other, ..)) = known[..n].iter().find(|(_, _, seen)| seen == content)
            && !shared.contains(&file.as_str())
        {
            return Err(format!("{service} and {other} have the same {file}"));
        }
    }
    let settings = RUNNING
        .map(|name| Container::of(name)?.inspect("{{json .Config}} {{json .HostConfig}} {{json .Args}}"));
    for settings in settings {
        let settings = settings?;
        for (service, file, content) in &known {
            let content = STANDARD.decode(content).map_err(|error| error.to_string())?;
            let content = String::from_utf8_lossy(&content);
            let mut words = content.split([':', '\n']).filter(|word| word.len() >= 32);
            if words.any(|word| settings.contains(word)) {
                return Err(format!("{file} of {service} is in the settings of a container"));
            }
        }
    }
    Ok(())
}

fn connections_are_encrypted() -> Result<(), String> {
    let postgres = Container::of("postgres")?;
    let query = "SELECT DISTINCT usename || ' ' || datname || ' ' || ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                 WHERE client_addr IS NOT NULL AND usename <> 'postgres' ORDER BY 1";
    let said = postgres.inside(&["psql", "-U", "postgres", "-d", "postgres", "-tAc", query])?;
    if said != "agreement agreement true\norders orders true" {
        return Err(format!("connections are not as they should be:\n{said}"));
    }
    let address = postgres.inside(&["hostname", "-i"])?;
    let address = address.split(' ').next().unwrap_or_default();
    for (role, database, tls) in [
        ("agreement", "agreement", "disable"),
        ("agreement", "orders", "require"),
        ("orders", "agreement", "require"),
        ("postgres", "postgres", "require"),
    ] {
        let url = format!("host={address} user={role} dbname={database} sslmode={tls}");
        match postgres.inside(&["psql", "-w", "-tAc", "SELECT 1", &url]) {
            Err(why) if why.contains("no pg_hba.conf entry") => {}
            other => return Err(format!("{role} at {database} with sslmode={tls}: {other:?}")),
        }
    }
    Ok(())
}

/// A partner with a customer that has agreed, and a subscription.
struct Shop {
    direct: As,
    customer: String,
    attestation_id: String,
    bought: Subscription,
}

impl Shop {
    async fn open() -> Result<Self, Box<dyn Error>> {
        let cluster = Cluster::on(Backend::Postgres).await;
        actions::register_partners(&cluster).await?;
        let direct = cluster.as_caller(fixtures::sales(DIRECT));
        let customer = actions::create_customer(&direct, "Contoso", "FR", None).await?;
        let attested = actions::attest(&direct, &customer, Clock::system().now()).await?;
        let attestation_id = attested.attestation.unwrap_or_default().attestation_id;
        let bought = actions::order(&direct, &customer, None, 1).await?.subscriptions.remove(0);
        Ok(Self { direct, customer, attestation_id, bought })
    }

    /// The catcher has taken the mail about an attestation, and says itself that it has some.
    async fn mail_arrives(&self) -> Outcome {
        let customer = actions::create_customer(&self.direct, "Fabrikam", "FR", None).await?;
        let attested = actions::attest(&self.direct, &customer, Clock::system().now()).await?;
        let attestation_id = attested.attestation.unwrap_or_default().attestation_id;
        within_recovery("a mail", async || {
            let request = GetAttestationRequest { attestation_id: attestation_id.clone() };
            let found = self.direct.attestations().get_attestation(request).await;
            let found = found.map_err(|status| status.to_string())?.into_inner().attestation;
            match found.and_then(|attestation| attestation.notification) {
                Some(notification) if notification.state() == NotificationState::Sent => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await?;
        if mails().await? == 0 { Err("the mail catcher has no mail".into()) } else { Ok(()) }
    }

    async fn buys(&self) -> Result<(), Status> {
        actions::order(&self.direct, &self.customer, None, 1).await.map(drop)
    }

    async fn reads(&self) -> Result<Subscription, Status> {
        let request = GetSubscriptionRequest { subscription_id: self.bought.subscription_id.clone() };
        let found = self.direct.subscriptions().get_subscription(request).await?.into_inner();
        Ok(found.subscription.unwrap_or_default())
    }

    /// While order-svc cannot ask: orders are refused with when to come back, and never accepted.
    async fn only_reads_go_on(&self) -> Outcome {
        match self.buys().await {
            Err(refused) if refused.code() == Code::Unavailable => {
                refused.get_details_retry_info().ok_or("the refusal does not say when to come back")?;
            }
            other => return Err(format!("an order while the gate is down: {other:?}").into()),
        }
        self.reads().await?;
        Ok(())
    }

    async fn is_refused_by_order_svc_alone(&self) -> Outcome {
        if self.reads().await.is_ok() {
            return Err("order-svc answers though it was stopped".into());
        }
        let request = GetCustomerRequest { customer_id: self.customer.clone() };
        self.direct.customers().get_customer(request).await?;
        self.direct.customers().list_customers(ListCustomersRequest::default()).await?;
        actions::create_customer(&self.direct, "Tailspin", "FR", None).await?;
        Ok(())
    }

    async fn sells_again(&self) -> Outcome {
        within_recovery("an order", async || self.buys().await.map_err(|status| status.to_string())).await?;
        self.reads().await?;
        Ok(())
    }

    /// Withdraws what everything so far rests on, and attests anew.
    async fn withdraw_and_attest(&self) -> Outcome {
        actions::withdraw(&self.direct, &self.attestation_id).await?;
        actions::attest(&self.direct, &self.customer, Clock::system().now()).await?;
        Ok(())
    }

    /// What was bought first has ended.
    async fn is_cancelled(&self) -> Outcome {
        within_recovery("a cancellation", async || {
            let found = self.reads().await.map_err(|status| status.to_string())?;
            match found.state() {
                SubscriptionState::Cancelled => Ok(()),
                other => Err(other.as_str_name().to_owned()),
            }
        })
        .await
    }
}

/// How many mails the catcher has.
async fn mails() -> Result<u64, Box<dyn Error>> {
    let address = std::env::var("TEST_MAILS").map_err(|_| "TEST_MAILS is not set")?;
    let mut connection = tokio::net::TcpStream::connect(address).await?;
    connection.write_all(b"GET /api/v1/messages HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    connection.read_to_string(&mut text).await?;
    let (_, body) = text.split_once("\r\n\r\n").ok_or("the mail catcher gave no answer")?;
    let list: serde_json::Value = serde_json::from_str(body)?;
    list["total"].as_u64().ok_or_else(|| format!("the mail catcher does not count: {list}").into())
}

/// Tries until it succeeds.
async fn within_recovery<F>(what: &str, attempt: impl Fn() -> F) -> Outcome
where
    F: Future<Output = Result<(), String>>,
{
    const PAUSE: Duration = Duration::from_millis(250);
    let began = Instant::now();
    while let Err(why) = attempt().await {
        if began.elapsed() > RECOVERY_MAX {
            return Err(format!("{what} did not come about within {RECOVERY_MAX:?}: {why}").into());
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}
