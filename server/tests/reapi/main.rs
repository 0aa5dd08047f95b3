//! The gRPC front-end over the real store on a temporary file, spoken to by real clients over loopback.

mod action_cache;
mod byte_stream;
mod cas;
mod chunks;
mod framing;
mod functions;
mod server;
mod tree;
mod zstd;
