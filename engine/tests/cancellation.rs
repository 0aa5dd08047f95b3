//! Futures dropped at every await, for every operation of a store.
//!
//! Each operation runs again and again on a store of its own, and its future is dropped after n polls, for every n until it
//! completes by itself: at once, and once more when it has been woken and not polled. Whatever was dropped, the store goes on, nobody
//! waits for ever, what is visible is exact and nothing is left behind: no slot, no upload, no permit, no place, no buffer.

mod common;

#[path = "cancellation/cases.rs"]
mod cases;
#[path = "cancellation/ends.rs"]
mod ends;
#[path = "cancellation/store.rs"]
mod store;
#[path = "cancellation/waiting.rs"]
mod waiting;

use common::run;
use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

/// When a future is dropped after its last poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drop {
    AtOnce,
    /// When it would be polled again: what it waited for has happened, and nobody takes it.
    Woken,
}

/// Polls a future at most `polls` times and drops it. Its output, if it came to its end.
async fn polled<T>(future: impl Future<Output = T>, polls: usize, when: Drop) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(out) => Poll::Ready(Some(out)),
            Poll::Pending if left == 0 && when == Drop::AtOnce => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// No operation of a store that is not short of anything takes this long on its clock: half of what a put waits for one that stands still.
const PROMPTLY: Duration = Duration::from_secs(5);

async fn promptly<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PROMPTLY, future).await.unwrap_or_else(|_| panic!("{what}: nobody waits for ever"))
}

/// One after the other: the pool of buffers, in which every buffer must end, is the process's.
fn alone<T>(future: impl Future<Output = T>) -> T {
    static ALONE: Mutex<()> = Mutex::new(());
    let _guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    run(future)
}

/// Numbers of polls an operation is tried with at most; one that takes more is too coarse a test.
const POLLS_MAX: usize = 2000;
