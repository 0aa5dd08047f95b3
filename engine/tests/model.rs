//! A state machine of everything that a store does and suffers, compared with a small model.
//!
//! Random histories on a simulated device: puts of every kind, reads, deletions, aborted uploads, rotation, images, flushes, many of
//! these at once, futures dropped; clean closes, killed processes, power cuts, openings that are themselves interrupted, rotten bits,
//! failing reads, writes and flushes. What is read is compared with what was put, and with what each promise says must be there.
//!
//! Without settings it runs a fixed set of histories. The long form, with other histories each time:
//!
//! ```text
//! MODEL_CASES=5000 [MODEL_SEED=7] cargo test -p blockstore-engine --test model random
//! ```
//! A history that fails is made as short as it can be and printed; as a function of `model/stories.rs` it stays with us.

mod common;
#[path = "model/ledger.rs"]
mod ledger;
#[path = "model/ops.rs"]
mod ops;
#[path = "model/stories.rs"]
mod stories;
#[path = "model/world.rs"]
mod world;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Histories of a run without settings.
const CASES: u32 = 60;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: must be a number")))
}

#[test]
fn random_histories_keep_every_promise() {
    let cases = setting("MODEL_CASES").map_or(CASES, |n| u32::try_from(n).expect("MODEL_CASES fits 32 bits"));
    let seed = setting("MODEL_SEED").unwrap_or_else(|| match setting("MODEL_CASES") {
        None => 1,
        Some(_) => std::time::UNIX_EPOCH.elapsed().map_or(1, |t| t.as_micros() as u64),
    });
    let mut chacha = [0; 32];
    chacha[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases,
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
    match result {
        Ok(()) => {}
        Err(TestError::Fail(why, (config, ops))) => panic!("MODEL_SEED={seed}: {why}\nplay(\n&{config:?},\n&{ops:?})"),
        Err(TestError::Abort(why)) => panic!("MODEL_SEED={seed}: {why}"),
    }
}
