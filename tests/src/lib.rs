//! blockstore-tests
