//! The key-location map in memory: the table of slots, who owns which block, and how much of each block is wanted.

pub(crate) mod census;
pub(crate) mod hasher;
pub(crate) mod held;
mod memory;
pub(crate) mod slot;
pub(crate) mod table;
