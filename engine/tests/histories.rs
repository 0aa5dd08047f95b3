//! The histories without which each order of the engine would look superfluous, each on the simulated device.

#![allow(missing_docs, unreachable_pub)]

mod common;
#[path = "histories/crashes.rs"]
mod crashes;
#[path = "histories/disk.rs"]
mod disk;
#[path = "histories/ledger.rs"]
mod ledger;
