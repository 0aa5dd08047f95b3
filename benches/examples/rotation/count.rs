//! Hits and misses.

/// What was asked for and what was missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) accesses: u64,
    pub(crate) misses: u64,
    pub(crate) bytes: u64,
    pub(crate) missed_bytes: u64,
    /// Misses of what had been asked for before: those that a larger device could have spared.
    pub(crate) lost: u64,
}

impl Counts {
    /// Counts an access to an object of `size_bytes` that had been asked for before, or not.
    pub(crate) fn add(&mut self, hit: bool, size_bytes: u64, again: bool) {
        self.accesses += 1;
        self.bytes += size_bytes;
        if !hit {
            self.misses += 1;
            self.missed_bytes += size_bytes;
            self.lost += u64::from(again);
        }
    }
    pub(crate) fn miss_ratio(&self) -> f64 {
        self.misses as f64 / self.accesses.max(1) as f64
    }
    pub(crate) fn byte_miss_ratio(&self) -> f64 {
        self.missed_bytes as f64 / self.bytes.max(1) as f64
    }
    pub(crate) fn lost_ratio(&self) -> f64 {
        self.lost as f64 / self.accesses.max(1) as f64
    }
}
