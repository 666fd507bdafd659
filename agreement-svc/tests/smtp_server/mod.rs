//! A real mail server in a process of its own, and what it reports.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::mpsc;

/// Longer than a mail server that answers nothing is waited for.
const WAIT_MAX: Duration = Duration::from_secs(60);

pub(crate) struct SmtpServer {
    pub(crate) port: u16,
    events: mpsc::UnboundedReceiver<String>,
    process: Child,
    _folder: TempDir,
}

/// The Python that has `aiosmtpd`, as `TEST_SMTP_PYTHON` names it. Without it there is no mail server;
/// in CI that is a failure, not a reason to skip.
#[expect(clippy::print_stderr, reason = "a skipped server must be seen")]
pub(crate) fn python() -> Option<String> {
    let python = std::env::var("TEST_SMTP_PYTHON").ok().filter(|python| !python.is_empty());
    if python.is_none() {
        assert!(std::env::var_os("CI").is_none(), "TEST_SMTP_PYTHON must be set in CI");
        eprintln!("SKIPPED without a mail server: TEST_SMTP_PYTHON is not set");
    }
    python
}

impl SmtpServer {
    /// Starts a server; `args` are those of `server.py`.
    pub(crate) async fn start(python: &str, args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../agreement-svc/tests/smtp_server/server.py");
        let mut process = Command::new(python)
            .arg(script)
            .arg(folder.path())
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (tell, events) = mpsc::unbounded_channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| tell.send(line)));
        let mut server = Self { port: 0, events, process, _folder: folder };
        let listening = server.event().await;
        server.port = listening.strip_prefix("listening ").unwrap().parse().unwrap();
        server
    }

    /// What happens next.
    pub(crate) async fn event(&mut self) -> String {
        let event = tokio::time::timeout(WAIT_MAX, self.events.recv()).await;
        match event {
            Ok(Some(event)) => event,
            Ok(None) => panic!("the mail server has ended"),
            Err(_) => panic!("the mail server reports nothing"),
        }
    }

    /// What has happened and was not asked for yet.
    pub(crate) fn events_so_far(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }

    /// The next mail, which must be accepted.
    pub(crate) async fn mail(&mut self) -> String {
        let event = self.event().await;
        read(event.strip_prefix("accepted ").unwrap_or_else(|| panic!("{event}, not accepted")))
    }
}

impl Drop for SmtpServer {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

pub(crate) fn read(path: impl Into<PathBuf>) -> String {
    std::fs::read_to_string(path.into()).unwrap()
}

/// A header of a mail.
pub(crate) fn header<'m>(mail: &'m str, name: &str) -> &'m str {
    let line = mail.lines().take_while(|line| !line.is_empty());
    let line = line.filter_map(|line| line.split_once(": ")).find(|(key, _)| *key == name);
    line.unwrap_or_else(|| panic!("no {name} in {mail}")).1
}
