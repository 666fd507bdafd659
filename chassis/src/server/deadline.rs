//! Deadline propagation, the server's end. A call has three deadlines: its caller's (`grpc-timeout`), the longest that any
//! call may take, and the time in which its message must arrive.

use std::pin::pin;
use std::time::{Duration, Instant};

use http::HeaderMap;
use tonic::{Code, Request, Status};

use super::overload::RETRY_DELAY;
use crate::status::failure;

/// No call takes longer, whatever deadline its caller sets.
pub(super) const CALL_DURATION_MAX: Duration = Duration::from_secs(30);

/// How long the message of a call may take to arrive; the call holds its slot meanwhile. The largest message takes eight
/// seconds over a megabit a second. A stream of messages is not limited by it: its handler sees each message arrive.
pub(super) const RECEIVE_MAX: Duration = Duration::from_secs(10);

/// A call that has less time than timers can tell is not begun.
pub(super) const TIME_LEFT_MIN: Duration = Duration::from_millis(1);

/// The time at which the caller stops waiting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(pub(super) Instant);

/// How long the caller of this request still waits.
pub fn time_left<T>(request: &Request<T>) -> Duration {
    let deadline = request.extensions().get::<Deadline>();
    deadline.map_or(CALL_DURATION_MAX, |deadline| deadline.0.saturating_duration_since(Instant::now()))
}

/// What took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    Message,
    /// A stream of requests, which may be open for that long. It may have been in use until then.
    Stream(Duration),
    Response,
}

impl Late {
    /// How long it may take.
    pub(super) fn within(self) -> Duration {
        match self {
            Self::Message => RECEIVE_MAX,
            Self::Stream(within) => within,
            Self::Response => CALL_DURATION_MAX,
        }
    }

    pub(super) fn status(self, domain: &'static str) -> Status {
        let seconds = self.within().as_secs();
        let stood_still =
            |sentence: String| failure(domain, Code::ResourceExhausted, "STREAM_STOOD_STILL", sentence);
        match self {
            Self::Message => stood_still(format!(
                "the request did not arrive completely within {seconds} s; send it again"
            )),
            Self::Stream(_) => {
                stood_still(format!("the stream was open for longer than {seconds} s; open it again"))
            }
            Self::Response => failure(
                domain,
                Code::Unavailable,
                "DEADLINE_PASSED",
                "the deadline passed before the answer was ready; retry under the same request id",
            ),
        }
        .retry_after(RETRY_DELAY)
        .status()
    }
}

/// Waits for the answer until the deadline, and for the message no longer than it may take to arrive.
pub(super) async fn in_time<A>(
    answer: impl Future<Output = A>,
    has_arrived: impl Fn() -> bool,
    time_left: Duration,
) -> Result<A, Late> {
    let mut answer = pin!(answer);
    match tokio::time::timeout(time_left.min(RECEIVE_MAX), &mut answer).await {
        Ok(answer) => return Ok(answer),
        Err(_) if time_left <= RECEIVE_MAX => return Err(Late::Response),
        Err(_) if !has_arrived() => return Err(Late::Message),
        Err(_) => {}
    }
    tokio::time::timeout(time_left - RECEIVE_MAX, answer).await.map_err(|_| Late::Response)
}

/// How long the service may work on a call: a little less than its caller waits, so that the caller gets the answer that
/// the deadline has passed.
pub(super) fn work_time(headers: &HeaderMap) -> Duration {
    let given = headers.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(timeout_of);
    given.map_or(CALL_DURATION_MAX, |given| {
        (given - (given / 20).min(Duration::from_millis(20))).min(CALL_DURATION_MAX)
    })
}

/// Reads a `grpc-timeout` value: at most 8 digits and a unit. tonic has a reader of its own, which is private.
fn timeout_of(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let amount: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_message_must_arrive_sooner_than_its_answer() {
        const WORK: Duration = Duration::from_secs(20);
        let work = || tokio::time::sleep(WORK);
        for (has_arrived, time_left, outcome, after) in [
            (true, CALL_DURATION_MAX, Ok(()), WORK),
            (true, WORK / 2, Err(Late::Response), WORK / 2),
            (true, WORK * 3 / 4, Err(Late::Response), WORK * 3 / 4),
            (false, CALL_DURATION_MAX, Err(Late::Message), RECEIVE_MAX),
            (false, RECEIVE_MAX / 2, Err(Late::Response), RECEIVE_MAX / 2),
        ] {
            let began = tokio::time::Instant::now();
            assert_eq!(in_time(work(), || has_arrived, time_left).await, outcome);
            // Timers have a resolution of one millisecond.
            let late = began.elapsed().saturating_sub(after);
            assert!(
                began.elapsed() >= after && late < Duration::from_millis(5),
                "{has_arrived} {time_left:?}"
            );
        }
    }

    #[test]
    fn deadlines_are_read_in_every_unit() {
        assert_eq!(timeout_of("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(timeout_of("250m"), Some(Duration::from_millis(250)));
        assert_eq!(timeout_of("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for garbage in ["", "5", "m", "-1m", "999999999S", "1x", "é"] {
            assert_eq!(timeout_of(garbage), None, "{garbage}");
        }
    }
}
