//! blockstore-server
