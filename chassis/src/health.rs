//! The health check of a running server, as a client.

use std::time::Duration;

use anyhow::bail;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::tls::{self, Address, ClientSettings};

/// How long the connection and the check may take, each.
const CHECK_MAX: Duration = Duration::from_secs(2);

/// Asks the server at an address whether it serves.
///
/// # Errors
/// The server cannot be reached or does not serve.
pub async fn check_health(address: &Address, tls: &ClientSettings) -> anyhow::Result<()> {
    let endpoint = tls::Client::endpoint(address).connect_timeout(CHECK_MAX).timeout(CHECK_MAX);
    let client = tls::Client::open(tls, std::slice::from_ref(address))?;
    let channel = client.connect(address, &endpoint).await?;
    let answer = HealthClient::new(channel).check(HealthCheckRequest { service: String::new() }).await;
    match answer.map(|answer| answer.into_inner().status()) {
        Ok(ServingStatus::Serving) => Ok(()),
        Ok(other) => bail!("{address} says {}", other.as_str_name()),
        Err(status) => bail!("{address} answered {status}"),
    }
}
