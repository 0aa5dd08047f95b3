//! Names and passwords, asked for by the real process over both protocols.

#![allow(missing_docs, unreachable_pub)]

mod logs;
#[allow(dead_code)] // the operator's tests use all of it
#[path = "../operator/page.rs"]
mod page;
mod paths;
mod reload;
#[allow(dead_code)] // the tests of the cache protocol use all of it
#[path = "../http/server.rs"]
mod server;
mod start;
mod uploads;
mod users;
