//! The HTTP cache protocol, spoken by a real client to the real process.

mod action_cache;
mod bounds;
mod cas;
mod chunks;
mod compressed;
mod crowd;
mod entries;
mod failures;
mod instances;
mod json;
mod server;
mod wire;
