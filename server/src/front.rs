//! What clients talk to. A front-end parses, asks the store and answers; it knows no disk.

pub mod reapi;
