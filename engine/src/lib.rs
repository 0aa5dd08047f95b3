//! A storage engine for immutable blobs on a raw file or a block device: a log-structured key-location map over rotating
//! blocks. It knows keys and bytes, and no protocol.

pub mod device;
mod engine;
mod error;
mod format;
mod key;
mod map;

pub use engine::*;
pub use error::{OpenError, PutError, ReadError};
pub use key::{Key, KeySpace};
