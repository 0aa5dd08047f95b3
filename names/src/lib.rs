//! What blobs, action results and entries are called: digests and how they are computed, instances, and the keys and values under
//! which a store's engine has them.
//!
//! Always true here: no I/O and no protocol. The server that writes a store and the tools that look into one share this crate, so that
//! they cannot differ in what a key or a value means.

mod digest;
mod hasher;
pub mod keys;
pub mod value;

pub use digest::{Digest, DigestError, DigestFunction, HASH_BYTES_MAX};
pub use hasher::Hasher;

use std::{fmt, sync::Arc};

/// An instance name: the part of a store that a client speaks to. Empty for clients that name none.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Instance(Arc<str>);

impl Instance {
    /// Longest name in bytes.
    pub const BYTES_MAX: usize = 1024;

    /// The instance of that name.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Name of an action result: the digest of an action. The size is optional because HTTP does not know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ActionKey {
    /// Function and hash of the action; its size counts only if `size_known`.
    pub digest: Digest,
    /// Whether the caller knows the action's size. Where both sides know it and differ, it is a miss.
    pub size_known: bool,
}
