//! Offline maintenance of a store.
fn main() {}
