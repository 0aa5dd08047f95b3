//! blockstore-benches
