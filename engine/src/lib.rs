//! A storage engine for immutable blobs on a raw file or a block device: a log-structured key-location map over rotating
//! blocks. It knows keys and bytes, and no protocol.

mod cache;
#[cfg(not(feature = "canaries"))]
mod canary;
#[cfg(feature = "canaries")]
#[doc(hidden)]
pub mod canary;
mod checkpoint;
mod clock;
mod core;
pub mod device;
mod engine;
mod error;
mod format;
#[doc(hidden)]
pub mod fuzzing;
mod key;
mod log_writer;
mod map;
pub mod offline;
mod policy;
mod read;
mod reclaim;
mod recover;
mod rotation;
mod sequencer;
mod space;
mod stats;
mod superblocks;
mod upload;
mod value;

pub use engine::{Begin, Durability, Engine, FormatOptions, OpenOptions, OpenReport, PutOutcome};
pub use error::{OpenError, PutError, ReadError};
pub use key::{Key, KeySpace};
pub use read::{Checksummed, EncodedPiece, EncodedReader, Object, Reader};
pub use stats::{FLUSH_US_BOUNDS, FlushClasses, Stats};
pub use upload::Upload;
pub use value::{Codec, Value};
