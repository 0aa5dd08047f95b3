//! What a blob is called: the full key that records carry.

/// Which of the two kinds of key this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum KeySpace {
    /// Immutable: the key determines the bytes. A second put is a touch.
    Content = 0,
    /// Replaced atomically: the last acknowledged put wins.
    Named = 1,
}

/// The full key of an object. The caller maps its own names to it: a content hash of up to 32 bytes is zero-padded, a longer
/// one or a structured name is hashed to 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Content or named.
    pub space: KeySpace,
    /// A number that tells functions (or kinds of names) apart; stored in the record, without meaning to the engine.
    pub function: u8,
    /// The hash, in the byte order in which it was computed.
    pub hash: [u8; 32],
}
