//! The daemon `blockstored`: a build cache served from a blockstore engine.

pub mod config;
pub mod daemon;
pub mod front;
pub mod memory;
pub mod phase;
pub mod storage;
