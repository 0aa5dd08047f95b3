//! The histories without which each order of the engine would look superfluous, each on the simulated device.

#![allow(missing_docs, unreachable_pub)]

mod common;
#[path = "histories/crashes.rs"]
mod crashes;
#[path = "histories/disk.rs"]
mod disk;
#[path = "histories/figures.rs"]
mod figures;
#[path = "histories/images.rs"]
mod images;
#[path = "histories/large.rs"]
mod large;
#[path = "histories/ledger.rs"]
mod ledger;
#[path = "histories/log.rs"]
mod log;
#[path = "histories/opening.rs"]
mod opening;
#[path = "histories/promises.rs"]
mod promises;
#[path = "histories/publishing.rs"]
mod publishing;
#[path = "histories/readings.rs"]
mod readings;
#[path = "histories/replay.rs"]
mod replay;
#[path = "histories/reuse.rs"]
mod reuse;
#[path = "shared/all.rs"]
mod shared;
