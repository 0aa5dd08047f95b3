//! What clients talk to. A front-end parses, asks the store and answers; it knows no disk.

pub mod gate;
pub mod http;
pub mod observe;
pub mod reapi;
pub mod uploads;
