//! The front-ends: what is spoken on the wire. They parse, call the store and answer; none of them knows a disk.

pub mod gate;
pub mod http;
