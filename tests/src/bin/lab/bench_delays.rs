//! `cargo lab bench-delays`: the delay from the answer of a change until its event reaches the watchers, at the same
//! replica and at another one, and from an attestation until its mail is written.

use std::error::Error;
use std::time::{Duration, Instant};

use clap::Args;
use proto::agreement::watch_events_response::Item;
use proto::agreement::{GetAttestationRequest, NotificationState, WatchEventsRequest};
use tests::{As, Backend, actions, fixtures};
use tokio::sync::mpsc;
use tonic::Status;

use crate::load::percentile;

#[derive(Args)]
pub(crate) struct Options {
    /// Changes on each database.
    #[arg(long, default_value_t = 300)]
    changes: usize,
}

pub(crate) async fn run(options: Options) -> Result<(), Box<dyn Error>> {
    println!("| delay after the answer | p50 | p99 | longest |\n|---|---|---|---|");
    for backend in Backend::all() {
        let (mut cluster, direct) = actions::start_with_partners(backend).await;
        cluster.start_replica().await?;
        let mut here = follow(cluster.as_caller(fixtures::service())).await?;
        let mut there = follow(cluster.at_replica(fixtures::service())).await?;

        let (mut same, mut other, mut mailed) = (vec![], vec![], vec![]);
        let mut attestations = vec![];
        for n in 0..options.changes {
            let customer = fixtures::new_customer(&format!("Customer {n}"), "FR", None);
            let created = direct.customers().create_customer(customer).await?;
            let answered = Instant::now();
            let created = created.into_inner();
            same.push(arrival(&mut here, created.revision).await?.saturating_duration_since(answered));
            other.push(arrival(&mut there, created.revision).await?.saturating_duration_since(answered));
            let customer = created.customer.unwrap_or_default().customer_id;
            attestations.push(actions::attest_now(&direct, &customer).await?);
        }
        for attestation in attestations {
            mailed.push(announced_after(&direct, &attestation).await?);
        }
        row(&format!("event at a watcher of the same replica, {backend}"), &same);
        row(&format!("event at a watcher of another replica, {backend}"), &other);
        row(&format!("mail written to the folder, {backend}"), &mailed);
    }
    Ok(())
}

/// Every event's revision, with when it arrived.
async fn follow(caller: As) -> Result<mpsc::UnboundedReceiver<(i64, Instant)>, Status> {
    let request = WatchEventsRequest { after_revision: 0, ..WatchEventsRequest::default() };
    let mut stream = caller.events().watch_events(request).await?.into_inner();
    let (sender, arrivals) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok(Some(response)) = stream.message().await {
            if let Some(Item::Event(event)) = response.item
                && sender.send((event.revision, Instant::now())).is_err()
            {
                return;
            }
        }
    });
    Ok(arrivals)
}

async fn arrival(
    arrivals: &mut mpsc::UnboundedReceiver<(i64, Instant)>,
    revision: i64,
) -> Result<Instant, Status> {
    while let Some((arrived, at)) = arrivals.recv().await {
        if arrived == revision {
            return Ok(at);
        }
    }
    Err(Status::unavailable("the stream ended"))
}

/// How long after it was recorded an attestation's mail was taken, by the service's own clock.
async fn announced_after(direct: &As, attestation: &str) -> Result<Duration, Status> {
    const POLL_INTERVAL: Duration = Duration::from_millis(20);
    loop {
        let request = GetAttestationRequest { attestation_id: attestation.to_owned() };
        let found = direct.attestations().get_attestation(request).await?.into_inner();
        let found = found.attestation.unwrap_or_default();
        let notification = found.notification.unwrap_or_default();
        match (notification.state(), notification.sent_at, found.recorded_at) {
            (NotificationState::Sent, Some(sent), Some(recorded)) => {
                let micros = (sent.seconds - recorded.seconds) * 1_000_000
                    + i64::from(sent.nanos - recorded.nanos) / 1000;
                return Ok(Duration::from_micros(u64::try_from(micros).unwrap_or(0)));
            }
            (NotificationState::DeadLetter, ..) => return Err(Status::internal("a mail was not written")),
            _ => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}

fn row(name: &str, delays: &[Duration]) {
    let longest = delays.iter().max().copied().unwrap_or_default();
    let ms = |delay: Duration| format!("{:.1} ms", delay.as_secs_f64() * 1000.0);
    println!(
        "| {name} | {} | {} | {} |",
        ms(percentile(delays, 50)),
        ms(percentile(delays, 99)),
        ms(longest)
    );
}
