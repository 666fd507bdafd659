//! The runner of model tests: plays random histories with proptest and shrinks those that fail.

use std::fmt::Debug;

use chassis::clock::new_salt;
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};
use tests::Backend;
use tokio::runtime::Handle;

/// A minute of shrinking makes a history that fails short enough to read.
const SHRINK_MS: u32 = 60_000;

/// Histories that are played at a time, since services wait for disks and for their polling intervals.
const LANES: u32 = 3;

/// The stack of a lane: without optimization the nested futures of a history need much of it.
const STACK_BYTES: usize = 64 * 1024 * 1024;

/// Plays a number of histories of such steps on a database. Proptest's own variables, `PROPTEST_RNG_SEED` and
/// `PROPTEST_CASES`, set another seed and another number.
///
/// # Panics
/// With the seed and the shortest history that fails.
pub(crate) fn check<S: Clone + Debug, T: Strategy<Value = Vec<S>>>(
    backend: Backend,
    cases: u32,
    steps: impl Fn() -> T + Sync,
    play: impl AsyncFn(Backend, Vec<S>) -> Result<(), TestCaseError> + Sync,
) {
    let given = Config::default();
    let seed = match given.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => u64::from_str_radix(&new_salt()[..16], 16).unwrap(),
    };
    let is_given = std::env::var_os("PROPTEST_CASES").is_some();
    let cases = if is_given { given.cases } else { cases };
    let lane = |lane: u32| {
        let config = Config {
            cases: cases.div_ceil(LANES),
            failure_persistence: None,
            // A lane that fails is the first of those that begin with its seed.
            rng_seed: RngSeed::Fixed(seed.wrapping_add(lane.into())),
            max_shrink_iters: 300,
            max_shrink_time: if given.max_shrink_time == 0 { SHRINK_MS } else { given.max_shrink_time },
            ..given.clone()
        };
        (lane, config)
    };
    let handle = Handle::current();
    let run = |(lane, config): (u32, Config)| {
        let outcome = TestRunner::new(config).run(&steps(), |steps| handle.block_on(play(backend, steps)));
        outcome.map_err(|error| {
            let seed = seed.wrapping_add(lane.into());
            match error {
                TestError::Fail(why, steps) => format!(
                    "{backend}: {why}\nreplay with PROPTEST_RNG_SEED={seed}; the shortest history that fails:\n{steps:#?}"
                ),
                TestError::Abort(why) => format!("{backend}: {why}"),
            }
        })
    };
    let outcomes: Vec<Result<(), String>> = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let run = &run;
            let spawn = |lane| {
                let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
                builder.spawn_scoped(scope, move || run(lane)).unwrap()
            };
            let lanes: Vec<_> = (0..LANES).map(lane).map(spawn).collect();
            lanes.into_iter().map(|lane| lane.join().unwrap()).collect()
        })
    });
    if let Some(failed) = outcomes.into_iter().find_map(Result::err) {
        panic!("{failed}");
    }
}
