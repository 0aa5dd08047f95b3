//! The HTTP cache protocol, spoken by a real client to the real process.

mod action_cache;
mod cas;
mod chunks;
mod entries;
mod server;
mod wire;
