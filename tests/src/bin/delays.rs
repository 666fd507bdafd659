//! `cargo bench-delays`: how long after a change is answered the watchers hear of it, at the same replica
//! and at another, and how long after an attestation its announcement is written.

use std::time::{Duration, Instant};

use chassis::clock::Clock;
use clap::Parser;
use proto::agreement::watch_events_response::Item;
use proto::agreement::{GetAttestationRequest, NotificationState, WatchEventsRequest};
use tests::world::{self, DIRECT};
use tests::{As, Backend, Cluster, Setup};
use tokio::sync::mpsc;
use tonic::Status;

#[derive(Parser)]
#[command(about = "Measures how long the news of a change takes.")]
struct Options {
    /// Changes on each database.
    #[arg(long, default_value_t = 300)]
    changes: usize,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let mut backends = vec![("SQLite", Backend::Sqlite)];
    if std::env::var_os("TEST_POSTGRES_URL").is_some() {
        backends.push(("PostgreSQL", Backend::Postgres));
    }
    say("| delay after the answer | p50 | p99 | longest |\n|---|---|---|---|");
    for (name, backend) in backends {
        let mut cluster = Cluster::start(Setup { backend, ..Setup::default() }).await?;
        cluster.start_replica().await?;
        world::register_partners(&cluster).await?;
        let direct = cluster.as_caller(world::sales(DIRECT));
        let mut here = follow(cluster.as_caller(world::service())).await?;
        let mut there = follow(cluster.at_replica(world::service())).await?;

        let (mut same, mut other, mut mailed) = (vec![], vec![], vec![]);
        let mut attestations = vec![];
        for n in 0..options.changes {
            let customer = world::new_customer(&format!("Customer {n}"), "FR", None);
            let created = direct.customers().create_customer(customer).await?;
            let answered = Instant::now();
            let created = created.into_inner();
            same.push(arrival(&mut here, created.revision).await?.saturating_duration_since(answered));
            other.push(arrival(&mut there, created.revision).await?.saturating_duration_since(answered));
            let customer = created.customer.unwrap_or_default().customer_id;
            let attested = world::attest(&direct, &customer, Clock::system().now()).await?;
            attestations.push(attested.attestation.unwrap_or_default().attestation_id);
        }
        for attestation in attestations {
            mailed.push(announced_after(&direct, &attestation).await?);
        }
        row(&format!("event at a watcher of the same replica, {name}"), same);
        row(&format!("event at a watcher of another replica, {name}"), other);
        row(&format!("mail written to the folder, {name}"), mailed);
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
    const LOOK_INTERVAL: Duration = Duration::from_millis(20);
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
            _ => tokio::time::sleep(LOOK_INTERVAL).await,
        }
    }
}

fn row(name: &str, mut delays: Vec<Duration>) {
    delays.sort_unstable();
    let at = |percent: usize| delays.get(delays.len() * percent / 100).copied().unwrap_or_default();
    let longest = delays.last().copied().unwrap_or_default();
    let ms = |delay: Duration| format!("{:.1} ms", delay.as_secs_f64() * 1000.0);
    say(&format!("| {name} | {} | {} | {} |", ms(at(50)), ms(at(99)), ms(longest)));
}

#[expect(clippy::print_stdout, reason = "a benchmark talks to whoever started it")]
fn say(text: &str) {
    println!("{text}");
}
