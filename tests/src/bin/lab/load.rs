//! Load generation: a closed loop with a fixed number of calls in flight, and the percentiles of its latencies.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::{JoinError, JoinSet};
use tonic::Status;

/// Keeps a number of calls in flight for a time, and returns how long each took. Calls are numbered from 0.
///
/// # Errors
/// The first refusal.
pub(crate) async fn closed_loop<F>(
    in_flight: usize,
    length: Duration,
    call: impl Fn(usize) -> F + Clone + Send + 'static,
) -> Result<Vec<Duration>, Status>
where
    F: Future<Output = Result<(), Status>> + Send,
{
    let outcomes = closed_loop_of(in_flight, length, call).await?;
    Ok(outcomes.into_iter().map(|(latency, ())| latency).collect())
}

/// The same, with what each call returned.
///
/// # Errors
/// The first error of a call.
pub(crate) async fn closed_loop_of<T, F>(
    in_flight: usize,
    length: Duration,
    call: impl Fn(usize) -> F + Clone + Send + 'static,
) -> Result<Vec<(Duration, T)>, Status>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Status>> + Send,
{
    let (next, began) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let mut lanes = JoinSet::new();
    for _ in 0..in_flight {
        let (call, next) = (call.clone(), Arc::clone(&next));
        lanes.spawn(async move {
            let mut outcomes = vec![];
            while began.elapsed() < length {
                let sent = Instant::now();
                let outcome = call(next.fetch_add(1, Ordering::Relaxed)).await?;
                outcomes.push((sent.elapsed(), outcome));
            }
            Ok::<_, Status>(outcomes)
        });
    }
    let mut outcomes = vec![];
    while let Some(lane) = lanes.join_next().await {
        outcomes.extend(lane.map_err(|error: JoinError| Status::internal(error.to_string()))??);
    }
    Ok(outcomes)
}

/// The duration that so many percent do not exceed, and zero where there is none.
pub(crate) fn percentile(durations: &[Duration], percent: usize) -> Duration {
    let mut sorted = durations.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() * percent / 100).copied().unwrap_or_default()
}

/// How many a second.
pub(crate) fn rate(count: usize, length: Duration) -> f64 {
    number(count) / length.as_secs_f64()
}

/// A count as a number to divide.
pub(crate) fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
