//! The service's metrics (Prometheus) besides those of its calls: the gate's decisions, how far the history is applied, and
//! the work that waits.

use chassis::clock::{Clock, Time};
use chassis::database::{Connection, Error};
use chassis::metrics::{Metrics, Sample};
use chrono::TimeDelta;
use prometheus::{IntCounterVec, Opts};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::agreements::gate::GateError;
use crate::rules::gate::{Answer, Reason, Verdict};
use crate::store::report::reports_waiting;
use crate::store::subscription::terms_overdue;
use crate::workers::Followed;

/// Counts what the gate said. Clones count together.
#[derive(Clone)]
pub(crate) struct Decisions(IntCounterVec);

impl Decisions {
    /// Begins to count.
    ///
    /// # Errors
    /// They are counted already.
    pub(crate) fn new(metrics: &Metrics) -> Result<Self, prometheus::Error> {
        let opts = Opts::new(
            "gate_decisions_total",
            "The gate's answers as order-svc acted on them, by decision, rule and reasons; UNKNOWN: no answer, or an invalid one.",
        );
        let decisions = IntCounterVec::new(opts, &["decision", "rule", "reasons"])?;
        // The first is to be seen as a rise.
        decisions.with_label_values(&["UNKNOWN", "", ""]);
        metrics.register(decisions.clone())?;
        Ok(Self(decisions))
    }

    pub(crate) fn count(&self, answered: &Result<Answer, GateError>) {
        let (decision, rule, reasons) = match answered {
            Ok(answer) => match &answer.verdict {
                Verdict::Approved(approval) => {
                    (approval.decision.into_str(), approval.rule.into_str(), String::new())
                }
                Verdict::Blocked { reasons, .. } => {
                    // Each at most once and always in this order, so that there are few combinations.
                    let all = [
                        Reason::NoAcceptance,
                        Reason::Withdrawn,
                        Reason::VersionSuperseded,
                        Reason::WrongAgreementType,
                    ];
                    let given = all.into_iter().filter(|reason| reasons.contains(reason));
                    ("BLOCKED", "", given.map(|reason| reason.into_str()).collect::<Vec<_>>().join(","))
                }
            },
            Err(GateError::NoActiveRelationship(_)) => ("REFUSED", "", "NOT_TOGETHER".to_owned()),
            Err(GateError::PayerIsReseller) => ("REFUSED", "", "PAYER_IS_RESELLER".to_owned()),
            Err(GateError::Unknown(_)) => ("UNKNOWN", "", String::new()),
        };
        self.0.with_label_values(&[decision, rule, &reasons]).inc();
    }
}

/// Serves `/metrics` and the answers to probes until `stop` is cancelled.
pub(crate) async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    clock: Clock,
    followed: watch::Receiver<Followed>,
    stopping: CancellationToken,
    stop: CancellationToken,
) {
    let numbers = metrics.clone();
    let collect = move || {
        let (metrics, now) = (metrics.clone(), clock.now());
        let followed = history(*followed.borrow(), now);
        let waiting = move |connection: &mut Connection| work_waiting(connection, now);
        async move { metrics.stored(waiting).await.into_iter().chain(followed).collect() }
    };
    numbers.serve(listener, collect, stopping, stop).await;
}

/// How far the history has been followed.
fn history(followed: Followed, now: Time) -> [Sample; 2] {
    // Unknown counts as infinitely far behind, so that the alert fires.
    let behind = followed.until.map_or(f64::INFINITY, |until| seconds(now - until));
    [
        Sample {
            name: "history_behind_seconds",
            help: "How far behind agreement-svc's history this process is: withdrawals older than this have been applied.",
            value: behind,
        },
        Sample {
            name: "history_revision",
            help: "The last revision of agreement-svc's history that this process knows to have been applied.",
            value: followed.revision as f64,
        },
    ]
}

/// The work that waits, as the database has it.
fn work_waiting(connection: &mut Connection, now: Time) -> Result<Vec<Sample>, Error> {
    let age = |since: Option<Time>| since.map_or(0.0, |since| seconds(now - since));
    let (reports, oldest_report) = reports_waiting(connection)?;
    let (terms, oldest_term) = terms_overdue(connection, now)?;
    Ok(vec![
        Sample {
            name: "purchase_reports_waiting",
            help: "First purchases that are not reported to agreement-svc yet.",
            value: reports as f64,
        },
        Sample {
            name: "purchase_reports_oldest_age_seconds",
            help: "Age of the oldest waiting purchase report, in seconds; 0 if there is none.",
            value: age(oldest_report),
        },
        Sample {
            name: "terms_overdue",
            help: "Subscriptions whose term has ended and was neither renewed nor expired yet.",
            value: terms as f64,
        },
        Sample {
            name: "terms_overdue_oldest_age_seconds",
            help: "Time since the first overdue term ended, in seconds; 0 if there is none.",
            value: age(oldest_term),
        },
    ])
}

fn seconds(length: TimeDelta) -> f64 {
    // The clock of agreement-svc may be ahead.
    length.max(TimeDelta::zero()).as_seconds_f64()
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    #[test]
    fn how_far_the_history_was_followed_is_values() {
        let now = DateTime::from_timestamp_millis(10_500).unwrap();
        let values =
            |until| history(Followed { revision: 42, until, is_invalid: None }, now).map(|known| known.value);
        assert_eq!(values(DateTime::from_timestamp(3, 0)), [7.5, 42.0]);
        assert_eq!(
            values(DateTime::from_timestamp(11, 0)),
            [0.0, 42.0],
            "the clock of agreement-svc may be ahead"
        );
        assert_eq!(values(None), [f64::INFINITY, 42.0]);
    }
}
