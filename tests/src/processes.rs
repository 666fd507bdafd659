//! Both services as what they are in production: processes of the real binaries, which can be killed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use chassis::auth::Caller;
use chassis::database::Url;
use chassis::tls::ClientSettings;
use rand::Rng;

use crate::clients::{As, Identity};
use crate::cluster::{Backend, State, lazy};

/// Ports of services that come back on them. Below what the system hands out to whoever asks for any, so
/// that nobody is given one while its service is down.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// A service that does not serve within this time will not.
const START_MAX: Duration = Duration::from_secs(30);

/// Both services, each on a port that stays the same. Dropping it kills them and removes their state.
pub(crate) struct Processes {
    pub agreements: Process,
    pub orders: Process,
    state: State,
}

impl Processes {
    /// Both services on empty databases, not running yet.
    ///
    /// # Errors
    /// Why there is no place for their state.
    pub(crate) fn new(backend: Backend) -> Result<Self, String> {
        let mut state = State::new()?;
        let folder = state.folder().to_owned();
        let agreements =
            Process::agreements(state.database(backend, "agreements")?, &folder.join("mails"), &folder)?;
        let orders = Process::orders(state.database(backend, "orders")?, &agreements.address(), &folder)?;
        Ok(Self { agreements, orders, state })
    }

    /// Starts whatever is not running.
    ///
    /// # Errors
    /// Why it does not serve.
    pub(crate) async fn start(&mut self) -> Result<(), String> {
        self.agreements.start().await?;
        self.orders.start().await
    }

    /// The two services as somebody who calls them, whenever they are there.
    pub(crate) fn as_caller(&self, caller: Caller) -> As {
        As {
            agreements: lazy(([127, 0, 0, 1], self.agreements.port).into()),
            orders: lazy(([127, 0, 0, 1], self.orders.port).into()),
            identity: Identity::of(caller),
        }
    }

    /// Where mails are written.
    pub(crate) fn mail_folder(&self) -> PathBuf {
        self.state.folder().join("mails")
    }

    /// Leaves logs, mails and SQLite files behind for whoever has to find out what went wrong.
    pub(crate) fn leave_behind(&mut self) -> PathBuf {
        self.state.leave_folder()
    }
}

/// One service. Dropping it kills it.
pub struct Process {
    name: &'static str,
    port: u16,
    /// Keeps the port until the first start, so that nobody else draws it.
    reserved: Option<TcpListener>,
    database: Url,
    arguments: Vec<OsString>,
    log: PathBuf,
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
        let settings = [("--mail-folder", mail_folder.into()), ("--invitation-key-file", key.into())];
        Self::new("agreement-svc", database, settings, folder)
    }

    /// order-svc, not running yet, beside the agreement-svc at an address.
    ///
    /// # Errors
    /// No port is free.
    pub(crate) fn orders(database: Url, agreements: &str, folder: &Path) -> Result<Self, String> {
        Self::new("order-svc", database, [("--agreements", agreements.into())], folder)
    }

    fn new(
        name: &'static str,
        database: Url,
        settings: impl IntoIterator<Item = (&'static str, OsString)>,
        folder: &Path,
    ) -> Result<Self, String> {
        let (port, reserved) = reserve_port()?;
        let listen = format!("127.0.0.1:{port}");
        let url = url(&database);
        let mut arguments: Vec<OsString> =
            ["serve", "--create", "--auth", "insecure", "--listen", &listen, "--database", &url]
                .map(OsString::from)
                .to_vec();
        arguments.extend(settings.into_iter().flat_map(|(name, value)| [name.into(), value]));
        let log = folder.join(format!("{name}.log"));
        Ok(Self { name, port, reserved: Some(reserved), database, arguments, log, running: None })
    }

    #[must_use]
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn database(&self) -> &Url {
        &self.database
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
        let mut command = Command::new(binary(self.name)?);
        command.args(&self.arguments).stdin(Stdio::null()).stderr(log);
        self.reserved = None;
        self.running = Some(command.spawn().map_err(|error| format!("{}: {error}", self.name))?);
        let began = Instant::now();
        let (address, tls) = (self.address().parse()?, ClientSettings::default());
        while let Err(why) = chassis::server::check_health(&address, &tls).await {
            self.check_running()?;
            if began.elapsed() > START_MAX {
                return Err(format!("{} does not serve: {why}", self.name));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Kills it, whatever it is doing (SIGKILL).
    ///
    /// # Errors
    /// It had ended by itself, or does not run.
    pub(crate) fn kill(&mut self) -> Result<(), String> {
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
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
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

/// Where cargo puts the binaries of the profile that this program is of.
fn binary(name: &str) -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut folder = own.parent().unwrap_or(&own);
    // A test stands a folder below.
    if folder.ends_with("deps") {
        folder = folder.parent().unwrap_or(folder);
    }
    Ok(folder.join(name))
}
