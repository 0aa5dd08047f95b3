//! Histories as plain functions: tests of the rules play them, and so do the canaries.

pub mod images;
pub mod large;
pub mod log;
pub mod opening;
pub mod publishing;
pub mod replay;
pub mod reuse;
pub mod rot;
pub mod stores;
