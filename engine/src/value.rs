//! What an object is stored as: its bytes, or what stands for them.
//!
//! The engine stores payloads and does not look inside. An object that is *encoded* has a payload (in a large object: one for each
//! part) that stands for other bytes; keys, sizes and the index are about those, so that who looks an object up need not know how it is
//! stored, and nothing is there in two forms.

use bytes::Bytes;

/// How payloads stand for bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// They are the bytes.
    #[default]
    Plain = 0,
    /// Each is one zstd frame.
    Zstd = 1,
}

impl Codec {
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Plain,
            1 => Self::Zstd,
            _ => return None,
        })
    }
}

/// A whole object that is to be stored as one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    pub(crate) payload: Bytes,
    pub(crate) size_bytes: u64,
    pub(crate) codec: Codec,
    /// Whether the payload is all that its memory holds, so that keeping it keeps nothing else.
    pub(crate) alone: bool,
}

impl Value {
    /// Bytes as they are, which may lie among others, such as those of a whole message.
    pub fn plain(bytes: Bytes) -> Self {
        Self { size_bytes: bytes.len() as u64, payload: bytes, codec: Codec::Plain, alone: false }
    }
    /// Bytes as they are, with memory of their own: the cache keeps these and not a copy.
    pub fn owned(bytes: Vec<u8>) -> Self {
        let alone = bytes.len() == bytes.capacity();
        Self { alone, ..Self::plain(bytes.into()) }
    }
    /// Bytes that are stored.
    pub fn stored_bytes(&self) -> u64 {
        self.payload.len() as u64
    }
    /// A payload that stands for `size_bytes` bytes.
    pub fn encoded(codec: Codec, payload: Bytes, size_bytes: u64) -> Self {
        Self { payload, size_bytes, codec, alone: false }
    }
}

impl From<Bytes> for Value {
    fn from(bytes: Bytes) -> Self {
        Self::plain(bytes)
    }
}
