//! What the commands have in common that are clients of a running server.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use chassis::auth::{Bearer, Credentials};
use chassis::{reload, tls};
use tonic::{Status, transport};

/// How long the server may take to accept a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// How often a silent server is probed, and how long it may take to show that it is there.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Connects to a server, to which a token may be sent only over TLS or on this machine.
pub(super) async fn connect(
    address: &tls::Address,
    tls: &tls::ClientSettings,
    has_token: bool,
) -> anyhow::Result<transport::Channel> {
    ensure!(
        !has_token || address.is_private(),
        "a token is sent to https or to this machine, not to {address}"
    );
    let endpoint = tls::Client::endpoint(address)
        .connect_timeout(CONNECT_MAX)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE);
    let client = tls::Client::open(tls, std::slice::from_ref(address))?;
    client.connect(address, &endpoint).await
}

/// Reads the file of `--token`.
pub(super) fn token(file: &Path) -> anyhow::Result<Credentials> {
    let contents = reload::read(file).context("--token")?;
    let token = Bearer::read(&contents).with_context(|| format!("--token: {}", file.display()))?;
    Ok(Credentials::Token(token))
}

/// A refusal, for the terminal.
pub(super) fn said(status: &Status) -> String {
    format!("{}: {}", status.code().description(), status.message())
}
