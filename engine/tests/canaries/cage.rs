//! Plays a history with something left out, and says whether it was noticed.

use blockstore_engine::canary::{Canary, LeftOut};
use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    sync::Once,
};

/// Seeds that a history is played with before its canary counts as unnoticed.
const SEEDS_MAX: u64 = 200;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
    static LAST_PANIC: Cell<String> = const { Cell::new(String::new()) };
}

/// From now on panics that are expected, on the thread that expects them, are kept and not printed.
fn keep_expected_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = take_hook();
        set_hook(Box::new(move |info| {
            if QUIET.get() {
                let text = info.payload_as_str().unwrap_or("a panic without words");
                let place = info.location().map(ToString::to_string).unwrap_or_default();
                LAST_PANIC.set(format!("{place}: {text}"));
            } else {
                print(info);
            }
        }));
    });
}

/// Whether the history fails with this seed while `canary` is left out: the check that did, and how often the engine passed the place.
fn noticed(canary: Canary, seed: u64, history: &impl Fn(u64)) -> (Option<String>, u64) {
    let left_out = LeftOut::new(canary);
    QUIET.set(true);
    LAST_PANIC.take();
    let failed = catch_unwind(AssertUnwindSafe(|| history(seed))).is_err();
    QUIET.set(false);
    (failed.then(|| LAST_PANIC.take()), left_out.passed())
}

/// The history passes as the engine is, and fails with one of the seeds while `canary` is left out.
pub fn caught(canary: Canary, history: impl Fn(u64)) {
    keep_expected_panics();
    let mut passed = 0;
    for seed in 0..SEEDS_MAX {
        let (check, times) = noticed(canary, seed, &history);
        passed += times;
        if let Some(check) = check {
            assert!(times > 0, "the history failed before the engine came to {canary:?}: {check}");
            history(seed);
            println!("{canary:?}, left out {times} times with seed {seed}, is caught by\n  {check}");
            return;
        }
    }
    panic!("nothing notices that {canary:?} was left out {passed} times in {SEEDS_MAX} histories");
}
