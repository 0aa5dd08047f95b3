//! A state machine of everything that a store does and suffers, compared with a small model.
//!
//! Random histories on a simulated device: puts of every kind, reads, deletions, aborted uploads, rotation, images, flushes, many of
//! these at once, futures dropped; clean closes, killed processes, power cuts, openings that are themselves interrupted, rotten bits,
//! failing reads, writes and flushes. What is read is compared with what was put, and with what each promise says must be there.
//!
//! Without settings it runs a fixed set of histories. The long form, with other histories each time:
//!
//! ```text
//! MODEL_CASES=50000 [MODEL_SEED=7] cargo test --release -p blockstore-engine --test model random -- --nocapture
//! ```
//! A history that fails is made as short as it can be and printed, with the command that plays it again; as a function of
//! `model/stories.rs` it stays with us.

mod common;
#[path = "model/ledger.rs"]
mod ledger;
#[path = "model/ops.rs"]
mod ops;
#[path = "model/stories.rs"]
mod stories;
#[path = "model/world.rs"]
mod world;

use parking_lot::Mutex;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering},
};

/// Histories of a run without settings.
const CASES: u64 = 500;
/// A run goes on after a failure, so that a long one shows more than the first, but not after so many.
const FAILURES_MAX: usize = 10;
/// Histories that are drawn from one seed: short enough to be played again for the one that fails.
const CASES_PER_SEED: u64 = 125;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: must be a number")))
}

/// Plays the histories that a seed gives. The story of one that fails, with the command that plays them again.
fn play_all(seed: u64, cases: u64) -> Result<(), String> {
    let mut chacha = [0; 32];
    chacha[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: u32::try_from(cases).expect("few"),
        max_shrink_iters: 150,
        // A seed means another history after each change of what is drawn: the stories keep them instead.
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &chacha));
    let result = runner.run(&ops::history(), |(config, ops)| {
        catch_unwind(AssertUnwindSafe(|| world::play(&config, &ops))).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
            TestCaseError::fail(text.unwrap_or_default())
        })
    });
    let again = format!("MODEL_CASES={cases} MODEL_SEED={seed} cargo test -p blockstore-engine --test model random");
    match result {
        Ok(()) => Ok(()),
        Err(TestError::Fail(why, (config, ops))) => Err(format!("{why}\nto play it again: {again}\nplay(\n&{config:?},\n&{ops:?})")),
        Err(TestError::Abort(why)) => Err(format!("{why}\nto play it again: {again}")),
    }
}

#[test]
fn random_histories_keep_every_promise() {
    let cases = setting("MODEL_CASES");
    let first = setting("MODEL_SEED").unwrap_or_else(|| match cases {
        None => 1,
        Some(_) => std::time::UNIX_EPOCH.elapsed().map_or(1, |t| t.as_micros() as u64),
    });
    let cases = cases.unwrap_or(CASES);
    // A simulated run keeps to its thread; so they can be played side by side.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, played, failed) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let start = next.fetch_add(CASES_PER_SEED, Ordering::Relaxed);
                    if start >= cases || failed.lock().len() >= FAILURES_MAX {
                        return;
                    }
                    let some = CASES_PER_SEED.min(cases - start);
                    match play_all(first + start / CASES_PER_SEED, some) {
                        Ok(()) => _ = played.fetch_add(some, Ordering::Relaxed),
                        Err(story) => failed.lock().push(story),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    assert!(failed.is_empty(), "{} of {} seeds: {}", failed.len(), cases.div_ceil(CASES_PER_SEED), failed.join("\n\n"));
    assert_eq!(played.into_inner(), cases);
    println!("{cases} histories from seed {first} on kept every promise");
}
