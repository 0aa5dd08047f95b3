//! blockstore-proto
