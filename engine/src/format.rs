//! The bytes on disk, and nothing else: pure functions between structures and pages, described byte by byte in `FORMAT.md`.
//!
//! Always true here: no I/O; little-endian; padding is explicit and zero; every structure has a constant size assertion;
//! parsing never panics, whatever the bytes.

pub(crate) mod block;
pub(crate) mod crc;
#[cfg(test)]
mod document;
pub(crate) mod image;
pub(crate) mod layout;
pub(crate) mod log;
pub(crate) mod record;
pub(crate) mod superblock;
pub(crate) mod types;
