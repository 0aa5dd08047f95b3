//! The gRPC front-end over the real store on a temporary file, spoken to by real clients over loopback.

mod action_cache;
mod at_rest;
mod byte_stream;
mod cas;
mod chunks;
mod connection;
mod framing;
mod functions;
mod meanwhile;
mod server;
mod tree;
mod zstd;
