//! What an operator sees of the real process: its pages, its counters and its logs.

#![allow(missing_docs, unreachable_pub)]

mod logs;
mod metrics;
mod page;
mod pages;
#[allow(dead_code)] // the tests of the cache protocol use all of it
#[path = "../http/server.rs"]
mod server;
