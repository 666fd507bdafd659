//! Both services as what they are in production: processes of the real binaries, which can be killed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use chassis::auth::Caller;
use chassis::clock::Clock;
use chassis::database::Url;
use chassis::tls::ClientSettings;
use rand::Rng;
use tonic::transport::Channel;

use super::clients::{As, Identity};
use super::databases::{Backend, State};
use super::pki::{Pki, bearer};
use super::service::{channel_to, endpoint, fetch, lazy};

/// Ports of services that come back on them. Below the ports that the system hands out, so
/// that no other process gets one while its service is down.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// A service that does not serve within this time will not.
pub(super) const START_MAX: Duration = Duration::from_secs(30);

/// Both services, each on a port that stays the same. Dropping it kills them and removes their state.
pub struct Processes {
    pub agreements: Process,
    pub orders: Process,
    /// A second one of each, where there is.
    pub replicas: Option<(Process, Process)>,
    /// The secrets, where they want tokens and mutual TLS.
    pki: Option<Pki>,
    state: State,
}

impl Processes {
    /// Both services on empty databases, not running yet.
    ///
    /// # Errors
    /// Why there is no place for their state.
    pub fn new(backend: Backend) -> Result<Self, String> {
        let mut state = State::new()?;
        let folder = state.folder().to_owned();
        let agreements =
            Process::agreements(state.database(backend, "agreements")?, &folder.join("mails"), &folder)?;
        let orders = Process::orders(state.database(backend, "orders")?, &agreements.address(), &folder)?;
        Ok(Self { agreements, orders, replicas: None, pki: None, state })
    }

    /// The same, with signed tokens and mutual TLS on both services.
    ///
    /// # Errors
    /// Why there is no place for their state, or no secrets.
    pub fn secured(backend: Backend) -> Result<Self, String> {
        let mut processes = Self::new(backend)?;
        let pki = Pki::new(Clock::system())?;
        processes.agreements.secure(&pki)?;
        processes.orders.secure(&pki)?;
        processes.orders.set_anew("--agreements", processes.agreements.address());
        let client = pki.client_tls(Some("client"));
        let files = [("--agreements-ca", client.ca), ("--agreements-cert", client.cert)];
        let more = [("--agreements-key", client.key), ("--service-token", Some(pki.file("service.token")))];
        for (name, file) in files.into_iter().chain(more) {
            processes.orders.set_anew(name, file.unwrap_or_default());
        }
        processes.pki = Some(pki);
        Ok(processes)
    }

    /// Two of each service, not running yet, on empty databases of PostgreSQL.
    ///
    /// # Errors
    /// Why there is no place for their state.
    pub fn replicated() -> Result<Self, String> {
        let mut state = State::new()?;
        let databases =
            [state.database(Backend::Postgres, "agreements")?, state.database(Backend::Postgres, "orders")?];
        Self::replicated_on(databases, state)
    }

    /// Two of each service, not running yet, on empty databases of theirs and in an empty folder.
    ///
    /// # Errors
    /// No port is free.
    pub(crate) fn replicated_on([agreements, orders]: [Url; 2], state: State) -> Result<Self, String> {
        let folder = state.folder().to_owned();
        let two = || {
            let first = Process::agreements(agreements.clone(), &folder.join("mails"), &folder)?;
            let second = Process::orders(orders.clone(), &first.address(), &folder)?;
            Ok::<_, String>((first, second))
        };
        let (first, second) = two()?;
        Ok(Self { agreements: first, orders: second, replicas: Some(two()?), pki: None, state })
    }

    /// All of them.
    fn all(&mut self) -> impl Iterator<Item = &mut Process> {
        let replicas = self.replicas.iter_mut().flat_map(|(agreements, orders)| [agreements, orders]);
        [&mut self.agreements, &mut self.orders].into_iter().chain(replicas)
    }

    /// That all of them run.
    ///
    /// # Errors
    /// As [`Process::check_running`].
    pub(crate) fn check_running(&mut self) -> Result<(), String> {
        self.all().try_for_each(Process::check_running)
    }

    /// Starts whatever is not running.
    ///
    /// # Errors
    /// Why it does not serve.
    pub async fn start(&mut self) -> Result<(), String> {
        for process in self.all() {
            process.start().await?;
        }
        Ok(())
    }

    /// The clients of both services, whenever they are there, and whichever of each.
    #[must_use]
    pub fn as_caller(&self, caller: Caller) -> As {
        if let Some(pki) = &self.pki {
            let wire = |process: &Process| channel_to(&process.address(), &process.tls, |endpoint| endpoint);
            let identity = Identity::by(bearer(&pki.issuer().token(&caller)));
            return As { agreements: wire(&self.agreements), orders: wire(&self.orders), identity };
        }
        let replicas = self.replicas.as_ref();
        As {
            agreements: balanced(&self.agreements, replicas.map(|(agreements, _)| agreements)),
            orders: balanced(&self.orders, replicas.map(|(_, orders)| orders)),
            identity: Identity::of(caller),
        }
    }

    /// Where their state is, and whatever else is to be removed with it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.state.folder()
    }

    /// Where mails are written.
    pub(crate) fn mail_folder(&self) -> PathBuf {
        self.state.folder().join("mails")
    }

    /// Leaves logs, mails and SQLite files behind for the developer who investigates the failure.
    pub(crate) fn leave_behind(&mut self) -> PathBuf {
        self.state.leave_folder()
    }
}

fn balanced(one: &Process, other: Option<&Process>) -> Channel {
    let address = |process: &Process| ([127, 0, 0, 1], process.port).into();
    match other {
        None => lazy(address(one)),
        Some(other) => {
            Channel::balance_list([one, other].map(|process| endpoint(address(process))).into_iter())
        }
    }
}

/// One service. Dropping it kills it.
pub struct Process {
    name: &'static str,
    port: u16,
    metrics_port: u16,
    /// Keep the ports until the first start, so that no other test draws them.
    reserved: Vec<TcpListener>,
    database: Url,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    log: PathBuf,
    descriptors_max: Option<usize>,
    /// Where it listens for calls: an address of this machine.
    host: Ipv4Addr,
    /// A folder with files that it finds in `/etc` instead of the system's.
    etc: Option<PathBuf>,
    /// What it takes to connect to it.
    tls: ClientSettings,
    running: Option<Child>,
}

impl Process {
    /// agreement-svc, not running yet. Its log goes into the folder.
    ///
    /// # Errors
    /// No port is free, or the folder cannot be written to.
    pub fn agreements(database: Url, mail_folder: &Path, folder: &Path) -> Result<Self, String> {
        let key = folder.join("invitation.key");
        fs::write(&key, [7; 32]).map_err(|error| error.to_string())?;
        let settings = [
            ("--mail-folder", mail_folder.into()),
            ("--invitation-key-file", key.clone().into()),
            ("--request-key-file", key.into()),
            // A mail for each attestation, at once, and however many there are.
            ("--mail-interval-seconds", "0".into()),
            ("--mails-per-day", u32::MAX.to_string().into()),
        ];
        Self::new("agreement-svc", database, settings, folder)
    }

    /// order-svc, not running yet, beside the agreement-svc at an address.
    ///
    /// # Errors
    /// No port is free.
    pub fn orders(database: Url, agreements: &str, folder: &Path) -> Result<Self, String> {
        let key = folder.join("request.key");
        fs::write(&key, [7; 32]).map_err(|error| error.to_string())?;
        let settings = [("--agreements", agreements.into()), ("--request-key-file", key.into())];
        Self::new("order-svc", database, settings, folder)
    }

    fn new(
        name: &'static str,
        database: Url,
        settings: impl IntoIterator<Item = (&'static str, OsString)>,
        folder: &Path,
    ) -> Result<Self, String> {
        let (port, reserved) = reserve_port()?;
        let (metrics_port, reserved_too) = reserve_port()?;
        let (listen, metrics) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{metrics_port}"));
        let url = url(&database);
        let usual = ["serve", "--create", "--auth", "insecure", "--database", &url];
        let addresses = ["--listen", &listen, "--metrics-listen", &metrics];
        let mut arguments: Vec<OsString> = usual.into_iter().chain(addresses).map(OsString::from).collect();
        arguments.extend(settings.into_iter().flat_map(|(name, value)| [name.into(), value]));
        let log = folder.join(format!("{name}.log"));
        Ok(Self {
            name,
            port,
            metrics_port,
            reserved: vec![reserved, reserved_too],
            database,
            arguments,
            // Tests change acceptances more often than people do.
            environment: vec![("AGREEMENT_ACCEPTANCE_CHANGES_MAX".into(), "1000000".into())],
            log,
            descriptors_max: None,
            host: Ipv4Addr::LOCALHOST,
            etc: None,
            tls: ClientSettings::default(),
            running: None,
        })
    }

    /// Has it want signed tokens and mutual TLS from the next start on.
    fn secure(&mut self, pki: &Pki) -> Result<(), String> {
        let (identity, server) = (pki.identity(), pki.server_tls());
        self.set_anew("--auth", "jwt");
        self.set_anew("--jwks", identity.jwks.ok_or("there are no keys")?);
        self.set_anew("--jwt-issuer", identity.jwt_issuer.unwrap_or_default());
        self.set_anew("--jwt-audience", identity.jwt_audience.unwrap_or_default());
        let files = [server.tls_cert, server.tls_key, server.tls_client_ca];
        for (name, file) in ["--tls-cert", "--tls-key", "--tls-client-ca"].into_iter().zip(files) {
            self.set_anew(name, file.unwrap_or_default());
        }
        self.tls = pki.client_tls(Some("client"));
        Ok(())
    }

    /// A setting for the next start, instead of the value that it has.
    pub fn set_anew(&mut self, name: &str, value: impl Into<OsString>) {
        self.unset(name);
        self.arguments.extend([name.into(), value.into()]);
    }

    /// Leaves a setting with a value at its default at the next start.
    pub fn unset(&mut self, name: &str) {
        if let Some(at) = self.arguments.iter().position(|argument| argument == name) {
            self.arguments.drain(at..self.arguments.len().min(at + 2));
        }
    }

    /// A setting for the next start: a flag, or one with its value.
    pub fn set(&mut self, setting: &[&str]) {
        self.arguments.extend(setting.iter().map(OsString::from));
    }

    /// An environment variable for the next start.
    pub fn set_variable(&mut self, name: &'static str, value: &str) {
        self.environment.push((name.into(), value.into()));
    }

    /// Has it find all its settings in the environment from the next start on. They leave it its addresses.
    pub fn configure(
        &mut self,
        environment: impl IntoIterator<Item = (String, String)>,
        tls: ClientSettings,
    ) {
        self.arguments = vec!["serve".into()];
        self.environment = environment.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        self.tls = tls;
    }

    /// Another address of this machine for it to listen on, which no other test draws before its first start.
    ///
    /// # Errors
    /// No port is free.
    pub fn reserve_address(&mut self) -> Result<SocketAddr, String> {
        let (port, reserved) = reserve_port()?;
        self.reserved.push(reserved);
        Ok((Ipv4Addr::LOCALHOST, port).into())
    }

    /// Runs another command of the same program, with the same environment.
    ///
    /// # Errors
    /// Why it cannot be run.
    pub fn command(&self, arguments: &[String]) -> Result<std::process::Output, String> {
        let mut command = Command::new(binary(self.name)?);
        command.args(arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.output().map_err(|error| format!("{}: {error}", self.name))
    }

    /// Where its metrics are.
    #[must_use]
    pub fn metrics_address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.metrics_port).into()
    }

    /// What it says of itself in numbers.
    ///
    /// # Errors
    /// Why it cannot be fetched.
    pub async fn metrics(&self) -> Result<String, String> {
        fetch(self.metrics_address()).await.map_err(|error| format!("{}: {error}", self.name))
    }

    /// Everything that it has said so far, however often it was started.
    ///
    /// # Errors
    /// Why that cannot be read.
    pub fn said(&self) -> Result<String, String> {
        fs::read(&self.log).map(|said| String::from_utf8_lossy(&said).into_owned()).map_err(|e| e.to_string())
    }

    #[must_use]
    pub fn address(&self) -> String {
        let scheme = if self.tls.ca.is_some() { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.host, self.port)
    }

    #[must_use]
    pub fn database(&self) -> &Url {
        &self.database
    }

    /// Has it start with so many files and connections at most, by the system's word.
    pub fn limit_descriptors(&mut self, most: usize) {
        self.descriptors_max = Some(most);
    }

    #[must_use]
    pub fn socket_address(&self) -> SocketAddr {
        (self.host, self.port).into()
    }

    /// Has it listen on another of this machine's addresses from the next start on.
    pub fn listen_on(&mut self, host: Ipv4Addr, port: u16) {
        (self.host, self.port) = (host, port);
        self.set_anew("--listen", self.socket_address().to_string());
    }

    /// Has it find the files of a folder in `/etc` from the next start on, in a mount namespace of its own. That needs root.
    pub fn replace_etc(&mut self, folder: &Path) {
        self.etc = Some(folder.to_owned());
    }

    /// The clients of this process, whichever service it is.
    #[must_use]
    pub fn as_caller(&self, caller: Caller) -> As {
        let channel = lazy(self.socket_address());
        As { agreements: channel.clone(), orders: channel, identity: Identity::of(caller) }
    }

    /// A figure of its memory in KiB, as the system names it: `VmRSS` is what is resident, `VmHWM` the most
    /// that ever was.
    ///
    /// # Errors
    /// It does not run, or the system does not tell.
    pub fn memory(&self, name: &str) -> Result<u32, String> {
        let id = self.id().ok_or_else(|| format!("{} does not run", self.name))?;
        let status = fs::read_to_string(format!("/proc/{id}/status")).map_err(|error| error.to_string())?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let figure = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok());
        figure.ok_or_else(|| format!("the system does not tell {name} of {}", self.name))
    }

    /// The process, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.running.as_ref().map(Child::id)
    }

    /// Starts it, unless it runs, and waits until it serves.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn start(&mut self) -> Result<(), String> {
        if self.running.is_some() {
            return Ok(());
        }
        let log = File::options().create(true).append(true).open(&self.log).map_err(|e| e.to_string())?;
        let also_log = log.try_clone().map_err(|e| e.to_string())?;
        let mut command = Command::new(binary(self.name)?);
        if let Some(most) = self.descriptors_max {
            command = Command::new("sh");
            command.arg("-c").arg(format!("ulimit -n {most} && exec \"$0\" \"$@\"")).arg(binary(self.name)?);
        }
        if let Some(etc) = &self.etc {
            let mount =
                "for file in \"$0\"/*; do mount --bind \"$file\" \"/etc/${file##*/}\"; done && exec \"$@\"";
            command = Command::new("unshare");
            command.args(["--mount", "sh", "-ec", mount]).arg(etc).arg(binary(self.name)?);
        }
        command.args(&self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(log).stderr(also_log);
        self.reserved.clear();
        self.running = Some(command.spawn().map_err(|error| format!("{}: {error}", self.name))?);
        let began = Instant::now();
        let address = self.address().parse()?;
        while let Err(why) = chassis::health::check_health(&address, &self.tls).await {
            self.check_running()?;
            if began.elapsed() > START_MAX {
                return Err(format!("{} does not serve: {why}", self.name));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Stops it as a first signal does (SIGTERM) and waits until it has ended.
    ///
    /// # Errors
    /// It did not end well, or does not run.
    pub fn stop(&mut self) -> Result<(), String> {
        self.check_running()?;
        let Some(mut running) = self.running.take() else { return Ok(()) };
        let sent = Command::new("kill").args(["-TERM", &running.id().to_string()]).status();
        match (sent, running.wait()) {
            (Ok(sent), Ok(ended)) if sent.success() && ended.success() => Ok(()),
            (sent, ended) => Err(format!("{}: signal {sent:?}, end {ended:?}", self.name)),
        }
    }

    /// Kills it, whatever it is doing (SIGKILL).
    ///
    /// # Errors
    /// It had ended by itself, or does not run.
    pub fn kill(&mut self) -> Result<(), String> {
        self.check_running()?;
        let ended = self.running.take().map_or(Ok(()), end);
        ended.map_err(|error| format!("{}: {error}", self.name))
    }

    /// That it runs.
    ///
    /// # Errors
    /// It has ended by itself, or was never started.
    pub(crate) fn check_running(&mut self) -> Result<(), String> {
        let ended = self.running.as_mut().map(Child::try_wait);
        match ended {
            Some(Ok(None)) => Ok(()),
            Some(Ok(Some(status))) => Err(format!("{} has ended by itself: {status}", self.name)),
            Some(Err(error)) => Err(format!("{}: {error}", self.name)),
            None => Err(format!("{} does not run", self.name)),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // There is nothing to be done about a process that is gone already.
        let _ = self.running.take().map(end);
    }
}

fn end(mut process: Child) -> std::io::Result<()> {
    process.kill()?;
    process.wait().map(drop)
}

/// The URL as a setting, password included.
fn url(database: &Url) -> String {
    match database {
        Url::Sqlite(path) => format!("sqlite:{}", path.display()),
        Url::Postgres(url) => url.clone(),
    }
}

fn reserve_port() -> Result<(u16, TcpListener), String> {
    let mut random = rand::rng();
    let mut tries = (0..100).map(|_| random.random_range(PORTS));
    tries
        .find_map(|port| Some((port, TcpListener::bind(("127.0.0.1", port)).ok()?)))
        .ok_or_else(|| format!("no port of {PORTS:?} is free"))
}

/// Checks the history of a stopped or running agreement-svc with its command.
///
/// # Errors
/// What does not hold, in the command's words.
pub(crate) fn verify(database: &Url, heads: &[String]) -> Result<(), String> {
    let mut command = Command::new(binary("agreement-svc")?);
    command.args(["verify", "--database", &url(database)]);
    command.args(heads.iter().flat_map(|head| ["--head", head]));
    let verified = command.output().map_err(|error| error.to_string())?;
    if verified.status.success() {
        return Ok(());
    }
    let said = [verified.stdout, verified.stderr].concat();
    Err(format!("agreement-svc verify: {}", String::from_utf8_lossy(&said)))
}

/// Makes sure that the binaries are those of the sources. `cargo test` has built them where it tests the
/// whole workspace; building them once more would be with other features of what they depend on, and slow.
///
/// # Errors
/// They cannot be built.
pub fn build_binaries() -> Result<(), String> {
    if is_fresh("agreement-svc") && is_fresh("order-svc") {
        return Ok(());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--package", "agreement-svc", "--package", "order-svc", "--bins"]);
    build.args(["--profile", &profile()?]);
    // What cargo tells this program of its own package would have other packages built anew.
    let own =
        |name: &OsString| name.to_string_lossy().starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR";
    std::env::vars_os().map(|(name, _)| name).filter(own).for_each(|name| {
        build.env_remove(name);
    });
    let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).status();
    match built {
        Ok(status) if status.success() => Ok(()),
        _ => Err("the services cannot be built".into()),
    }
}

/// Whether a binary is newer than everything that it was made of, which cargo has listed beside it.
fn is_fresh(name: &str) -> bool {
    let Ok(binary) = binary(name) else { return false };
    let modified = |path: &Path| fs::metadata(path).and_then(|found| found.modified()).ok();
    let (Some(built), Ok(made_of)) = (modified(&binary), fs::read_to_string(binary.with_extension("d")))
    else {
        return false;
    };
    let Some((_, sources)) = made_of.trim().split_once(": ") else { return false };
    sources.split(' ').all(|source| modified(Path::new(source)).is_some_and(|changed| changed <= built))
}

/// Where cargo puts a binary of the profile that this program was built with.
///
/// # Errors
/// The system does not tell where this program is.
pub fn binary(name: &str) -> Result<PathBuf, String> {
    Ok(profile_folder()?.join(name))
}

/// The profile that this program was built with, after which cargo names its folder.
///
/// # Errors
/// As [`binary`].
pub fn profile() -> Result<String, String> {
    let folder = profile_folder()?;
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    Ok(if name == "debug" { "dev".into() } else { name.into_owned() })
}

fn profile_folder() -> Result<PathBuf, String> {
    let mut folder = std::env::current_exe().map_err(|error| error.to_string())?;
    folder.pop();
    // A test stands a folder below the other programs.
    if folder.ends_with("deps") {
        folder.pop();
    }
    Ok(folder)
}
