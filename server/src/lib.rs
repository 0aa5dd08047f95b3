//! The daemon's parts: stores that say what a cache means, and the front-ends that clients talk to.

pub mod front;
pub mod store;
