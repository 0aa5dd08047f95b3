//! The daemon `blockstored` and its parts: stores that say what a cache means, and the front-ends that clients talk to.

pub mod addresses;
pub mod auth;
pub mod config;
pub mod daemon;
pub mod front;
#[doc(hidden)]
pub mod fuzzing;
pub mod instances;
pub mod log;
pub mod memory;
pub mod metrics;
mod open_files;
pub mod operator;
pub mod phase;
pub mod storage;
pub mod store;
