//! The table's memory: one anonymous mapping of 64-bit words that start as zero.
#![allow(unsafe_code)] // island: a view of a mapping as atomics

use memmap2::MmapMut;
use std::{io, ops::Deref, slice, sync::atomic::AtomicU64};

/// A fixed number of atomic words, all zero at first. Pages that were never written take no memory.
pub(crate) struct Words {
    map: MmapMut,
    words: usize,
}

impl Words {
    pub(crate) fn zeroed(words: usize) -> io::Result<Self> {
        let bytes = words.checked_mul(8).filter(|b| *b > 0).ok_or(io::ErrorKind::InvalidInput)?;
        let map = MmapMut::map_anon(bytes)?;
        // Fewer page tables and misses; where huge pages are off, nothing is lost.
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { map, words })
    }
}

impl Deref for Words {
    type Target = [AtomicU64];
    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, holds `words` × 8 initialised bytes, lives as long as `self`, and is only ever
        // accessed through these atomics.
        unsafe { slice::from_raw_parts(self.map.as_ptr().cast::<AtomicU64>(), self.words) }
    }
}
