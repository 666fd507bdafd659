//! Series of figures: what a subject did in each round, their median and spread, and the rounds themselves, which
//! alternate between all subjects so that other load on the machine slows all of them alike.

use std::error::Error;
use std::pin::Pin;
use std::time::{Duration, Instant};

use ::tests::Backend;
use tonic::{Code, Status};

use super::Plan;
use crate::load::{closed_loop_of, percentile, rate};

/// What a subject did in one round.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Figures {
    /// Units a second.
    pub rate: f64,
    /// Refused calls a second.
    pub refused: f64,
    pub p50: Duration,
    pub p99: Duration,
}

/// What a series is compared with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Floor {
    /// The series of that name with the same number of calls in flight.
    SameInFlight(&'static str),
    /// The fastest series of that name.
    Fastest(&'static str),
    /// The first series with the same number of calls in flight and the fastest of the second, where the same processors do
    /// both: a unit of it takes the time of a unit of each.
    Both(&'static str, &'static str),
}

/// The figures of one subject.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub name: &'static str,
    /// The database, where there is one.
    pub backend: Option<Backend>,
    pub in_flight: usize,
    /// What the rate counts.
    pub unit: &'static str,
    pub floors: Vec<Floor>,
    pub rounds: Vec<Figures>,
}

/// A measurement under way.
pub(super) type Measuring = Pin<Box<dyn Future<Output = Result<Figures, Box<dyn Error>>>>>;

/// A series, and how a round of that length is measured.
pub(super) struct Subject {
    pub series: Series,
    pub measure: Box<dyn Fn(Duration) -> Measuring>,
}

impl Series {
    pub(super) fn new(name: &'static str, backend: Option<Backend>, in_flight: usize) -> Self {
        Self { name, backend, in_flight, unit: "calls", floors: vec![], rounds: vec![] }
    }

    /// Its name, and that of the database.
    pub(super) fn label(&self) -> String {
        let backend = self.backend.map(|backend| format!(", {backend}")).unwrap_or_default();
        format!("{}{backend}", self.name)
    }

    /// The round whose rate is the median.
    pub(super) fn median(&self) -> Figures {
        let mut rounds = self.rounds.clone();
        rounds.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        rounds.get(rounds.len() / 2).copied().unwrap_or_default()
    }

    /// The lowest and the highest rate.
    pub(super) fn spread(&self) -> (f64, f64) {
        let rates = || self.rounds.iter().map(|round| round.rate);
        (rates().fold(f64::INFINITY, f64::min), rates().fold(0.0, f64::max))
    }

    /// Its rate as a fraction of each floor that was measured.
    pub(super) fn of_floors(&self, all: &[Self]) -> Vec<(String, f64)> {
        let fastest = |name: &str, in_flight: Option<usize>| {
            let is_floor = |series: &&Self| {
                series.name == name
                    && (series.backend.is_none() || series.backend == self.backend)
                    && in_flight.is_none_or(|in_flight| series.in_flight == in_flight)
            };
            let fastest = all.iter().filter(is_floor).map(|series| series.median().rate).fold(0.0, f64::max);
            (fastest > 0.0).then_some(fastest)
        };
        let rate = self.median().rate;
        let of_floor = |floor: &Floor| match *floor {
            Floor::SameInFlight(name) => Some((name.into(), rate / fastest(name, Some(self.in_flight))?)),
            Floor::Fastest(name) => Some((name.into(), rate / fastest(name, None)?)),
            Floor::Both(call, rows) => {
                let both = fastest(call, Some(self.in_flight))?.recip() + fastest(rows, None)?.recip();
                Some((format!("{call} and {rows} together"), rate * both))
            }
        };
        self.floors.iter().filter_map(of_floor).collect()
    }
}

impl Subject {
    /// Calls in a closed loop.
    pub(super) fn calls<F>(series: Series, call: impl Fn(usize) -> F + Clone + Send + 'static) -> Self
    where
        F: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let in_flight = series.in_flight;
        let measure = move |length| -> Measuring {
            let call = call.clone();
            Box::pin(async move { Ok(measure_calls(in_flight, length, call).await?) })
        };
        Self { series, measure: Box::new(measure) }
    }
}

/// Calls with so many in flight. A call that is refused for load is counted apart.
///
/// # Errors
/// Any other refusal.
pub(super) async fn measure_calls<F>(
    in_flight: usize,
    length: Duration,
    call: impl Fn(usize) -> F + Clone + Send + 'static,
) -> Result<Figures, Status>
where
    F: Future<Output = Result<(), Status>> + Send,
{
    let began = Instant::now();
    let outcomes = closed_loop_of(in_flight, length, move |number| {
        let called = call(number);
        async move {
            match called.await {
                Ok(()) => Ok(true),
                Err(refused) if is_of_load(&refused) => Ok(false),
                Err(refused) => Err(refused),
            }
        }
    })
    .await?;
    let took = began.elapsed();
    let answered: Vec<Duration> =
        outcomes.iter().filter(|(_, is_answered)| *is_answered).map(|(latency, _)| *latency).collect();
    Ok(Figures {
        rate: rate(answered.len(), took),
        refused: rate(outcomes.len() - answered.len(), took),
        p50: percentile(&answered, 50),
        p99: percentile(&answered, 99),
    })
}

/// Whether a call was refused because of the load and not because of what it asks for.
fn is_of_load(refused: &Status) -> bool {
    matches!(refused.code(), Code::ResourceExhausted | Code::Unavailable | Code::DeadlineExceeded)
}

/// Measures the subjects that the plan names in each round, one after the other.
///
/// # Errors
/// The first failure, with the subject's name.
pub(super) async fn alternate(subjects: Vec<Subject>, plan: &Plan) -> Result<Vec<Series>, Box<dyn Error>> {
    let mut subjects = subjects;
    let is_named = |subject: &Subject| subject.series.label().contains(&plan.named);
    let named = subjects.iter().filter(|subject| is_named(subject)).count();
    if named == 0 {
        return Err(format!("no row of these parts has {:?} in its name", plan.named).into());
    }
    for round in 1..=plan.rounds {
        println!("round {round} of {}, {named} subjects", plan.rounds);
        for Subject { series, measure } in subjects.iter_mut().filter(|subject| is_named(subject)) {
            let figures = measure(plan.length).await.map_err(|why| format!("{}: {why}", series.name))?;
            series.rounds.push(figures);
        }
    }
    Ok(subjects.into_iter().map(|subject| subject.series).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_floors_together_take_the_time_of_both() {
        let series = |name, in_flight, rates: &[f64]| Series {
            rounds: rates.iter().map(|rate| Figures { rate: *rate, ..Figures::default() }).collect(),
            ..Series::new(name, Some(Backend::Sqlite), in_flight)
        };
        let all = [
            series("echo", 64, &[100.0, 300.0, 900.0]),
            series("echo", 16, &[4000.0]),
            series("rows", 8, &[600.0]),
            series("rows", 1, &[500.0]),
            Series { backend: Some(Backend::Postgres), ..series("rows", 4, &[9000.0]) },
        ];
        let mut call = series("call", 64, &[100.0]);
        call.floors = vec![
            Floor::SameInFlight("echo"),
            Floor::Fastest("rows"),
            Floor::Both("echo", "rows"),
            Floor::Fastest("not measured"),
        ];
        let ratios: Vec<f64> =
            call.of_floors(&all).into_iter().map(|(_, ratio)| (ratio * 1e9).round() / 1e9).collect();
        // Of both together a second has room for 200 calls: 200 / 300 + 200 / 600.
        assert_eq!(ratios, [0.333_333_333, 0.166_666_667, 0.5]);
    }
}
