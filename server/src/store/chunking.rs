//! Cutting blobs into chunks where their content says so, as the bytes arrive.
//!
//! Always true here: where a blob is cut follows from its bytes and the parameters below alone, never from the pieces in which it came; the
//! chunks together are the blob; what waits to be cut is less than a window of the algorithm and the last piece.
//!
//! FastCDC is crate `fastcdc` (of the table of its rolling hash the API's text says that it is made of the MD5 of each byte; the published
//! vectors, which the tests compare with, are those of the byte repeated 64 times, as the crate has it). RepMaxCDC is ours.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use fastcdc::v2020::{Normalization, cut_gear, get_gear_with_seed, select_masks};

mod rep_max;

use rep_max::RepMax;

/// FastCDC: chunks have this many bytes on average, a quarter of it at least and four times as many at most. The value that the API
/// recommends.
pub const FAST_CDC_AVERAGE_BYTES: usize = 512 << 10;
/// FastCDC: changes the rolling hash; 0 is none. The value that the API recommends.
pub const FAST_CDC_SEED: u32 = 0;
/// RepMaxCDC: chunks have at least this many bytes and less than twice as many. The value that the API recommends.
pub const REP_MAX_CDC_MIN_BYTES: usize = 256 << 10;
/// RepMaxCDC: how many places for a cut are compared. The value that the API recommends.
pub const REP_MAX_CDC_HORIZON_BYTES: usize = 8 * REP_MAX_CDC_MIN_BYTES;

/// An algorithm that is offered (`ChunkingFunction.Value` of the Remote Execution API).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Chunking {
    /// FastCDC of 2020, normalization level 2.
    #[default]
    FastCdc2020 = 1,
    /// RepMaxCDC.
    RepMaxCdc = 2,
}

impl Chunking {
    /// The number on the wire.
    pub const fn number(self) -> i32 {
        self as i32
    }

    /// The algorithm that a number on the wire stands for; `None` where it says nothing or something that is not offered.
    pub fn from_number(number: i32) -> Option<Self> {
        [Self::FastCdc2020, Self::RepMaxCdc].into_iter().find(|chunking| chunking.number() == number)
    }

    /// Blobs below this size are one chunk, without a look at them. With FastCDC that is a rule of the API, not of the algorithm.
    pub const fn split_bytes_min(self) -> u64 {
        match self {
            Self::FastCdc2020 => FAST_CDC_AVERAGE_BYTES as u64 * 4,
            Self::RepMaxCdc => REP_MAX_CDC_MIN_BYTES as u64 * 2,
        }
    }
}

/// Where the next cut is.
trait FindCut {
    /// The length of the first chunk of `data`, at most `data.len()`; `None` if that takes more data. `ended`: there will be none. Where a
    /// chunk was found, the next call gets what follows it; otherwise the same data and more.
    fn first(&mut self, data: &[u8], ended: bool) -> Option<usize>;
}

struct FastCdc {
    average_bytes: usize,
    masks: (u64, u64),
    gear: (Cow<'static, [u64]>, Cow<'static, [u64]>),
}

impl FastCdc {
    /// `average_bytes` is a power of two, at least 256 and at most 4 MiB.
    fn new(average_bytes: usize, seed: u32) -> Self {
        Self { average_bytes, masks: select_masks(average_bytes, Normalization::Level2), gear: get_gear_with_seed(seed.into()) }
    }
}

impl FindCut for FastCdc {
    fn first(&mut self, data: &[u8], ended: bool) -> Option<usize> {
        let (min_bytes, max_bytes) = (self.average_bytes / 4, self.average_bytes * 4);
        if data.is_empty() || (data.len() < max_bytes && !ended) {
            return None;
        }
        let (strict, lax) = self.masks;
        let (gear, gear_twice) = &self.gear;
        let (_, len) = cut_gear(data, min_bytes, self.average_bytes, max_bytes, strict, lax, strict << 1, lax << 1, gear, gear_twice);
        Some(len)
    }
}

/// A blob that is being cut.
pub(super) struct Cutter {
    find: Box<dyn FindCut + Send>,
    data: BytesMut,
    ended: bool,
}

impl Cutter {
    pub(super) fn new(chunking: Chunking) -> Self {
        match chunking {
            Chunking::FastCdc2020 => Self::with(FastCdc::new(FAST_CDC_AVERAGE_BYTES, FAST_CDC_SEED)),
            Chunking::RepMaxCdc => Self::with(RepMax::new(REP_MAX_CDC_MIN_BYTES, REP_MAX_CDC_HORIZON_BYTES)),
        }
    }

    fn with(find: impl FindCut + Send + 'static) -> Self {
        Self { find: Box::new(find), data: BytesMut::new(), ended: false }
    }

    /// Takes the next bytes of the blob. Whoever calls [`next`](Self::next) until there is nothing in between bounds what waits here.
    pub(super) fn push(&mut self, piece: &[u8]) {
        self.data.extend_from_slice(piece);
    }

    /// The blob has no more bytes.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// The next chunk, which is not empty; `None` until more bytes or the end have come.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        let len = self.find.first(&self.data, self.ended)?;
        Some(self.data.split_to(len).freeze())
    }
}

#[cfg(test)]
mod tests;
