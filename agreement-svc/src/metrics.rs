//! The service's metrics (Prometheus) besides those of its calls: the gate's decisions, the last revision, and the mails
//! that wait.

use chassis::clock::{Clock, Time};
use chassis::database::{Connection, Error};
use chassis::metrics::{Metrics, Sample};
use chrono::TimeDelta;
use prometheus::{IntCounterVec, Opts};
use proto::agreement::CheckEligibilityResponse;
use proto::types::{BlockReason, Decision, GateRule};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::store::event::revision_head;
use crate::store::notification::notifications_waiting;

/// Counts the gate's answers, to order-svc and to partners who ask for an explanation. Clones count
/// together.
#[derive(Clone)]
pub(crate) struct Decisions(IntCounterVec);

impl Decisions {
    /// Begins to count.
    ///
    /// # Errors
    /// They are counted already.
    pub(crate) fn new(metrics: &Metrics) -> Result<Self, prometheus::Error> {
        let opts = Opts::new("gate_decisions_total", "The gate's answers, by decision, rule and reasons.");
        let decisions = IntCounterVec::new(opts, &["decision", "rule", "reasons"])?;
        metrics.register(decisions.clone())?;
        Ok(Self(decisions))
    }

    pub(crate) fn count(&self, answer: &CheckEligibilityResponse) {
        // The rules give each reason at most once and always in the same order, so there are few combinations.
        let reasons = answer
            .reasons()
            .map(|reason| short(reason.as_str_name(), BlockReason::Unspecified.as_str_name()));
        let reasons = reasons.collect::<Vec<_>>().join(",");
        let decision = short(answer.decision().as_str_name(), Decision::Unspecified.as_str_name());
        let rule = short(answer.rule().as_str_name(), GateRule::Unspecified.as_str_name());
        self.0.with_label_values(&[decision, rule, &reasons]).inc();
    }
}

/// The name of a value without that of its type, which the unspecified one shows.
fn short(name: &'static str, unspecified: &str) -> &'static str {
    name.strip_prefix(unspecified.trim_end_matches("UNSPECIFIED")).unwrap_or(name)
}

/// Serves `/metrics` and the answers to probes until `stop` is cancelled.
pub(crate) async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    clock: Clock,
    stopping: CancellationToken,
    stop: CancellationToken,
) {
    let numbers = metrics.clone();
    let collect = move || {
        let (metrics, now) = (metrics.clone(), clock.now());
        let known = move |connection: &mut Connection| known(connection, now);
        async move { metrics.stored(known).await }
    };
    numbers.serve(listener, collect, stopping, stop).await;
}

/// What the database knows of the history and of mails.
fn known(connection: &mut Connection, now: Time) -> Result<Vec<Sample>, Error> {
    let head = revision_head(connection)?;
    let waiting = notifications_waiting(connection)?;
    let age = waiting.oldest.map_or(0.0, |oldest| (now - oldest).max(TimeDelta::zero()).as_seconds_f64());
    Ok(vec![
        Sample {
            name: "history_revision",
            help: "The revision of the last event of the history.",
            value: head as f64,
        },
        Sample {
            name: "mails_waiting",
            help: "Mails about attestations that were not sent yet.",
            value: waiting.notifications as f64,
        },
        Sample {
            name: "mails_held",
            help: "Those of them whose partner has used up its mails of the day: they wait for the next day.",
            value: waiting.held as f64,
        },
        Sample {
            name: "mails_oldest_age_seconds",
            help: "Age of the oldest waiting mail that is not held, in seconds; 0 if there is none.",
            value: age,
        },
        Sample {
            name: "mails_dead_letters",
            help: "Mails that were given up: they wait for RetryNotification.",
            value: waiting.dead_letters as f64,
        },
    ])
}
