//! RepMaxCDC: cuts at the largest values of a rolling hash, until no chunk is as long as two of the least length.
//!
//! The rule, as module `github.com/buildbarn/go-cdc` defines it. A place's value is the Gear hash of the 64 bytes before it. Of the places
//! that leave at least `min` bytes on both sides and lie at most `min + horizon` behind the last cut, the one with the largest value is
//! wanted (the first of equals). If it is less than `2 * min` away, it is the cut. If not, the same question is asked of the places at
//! least `min` before it, until the answer is near enough. What has less than `2 * min` bytes is one chunk.
//!
//! Answering that for each cut alone would hash every byte nine times. Two things make once enough:
//! - Only *records* matter: places whose value is above that of every earlier candidate. The largest of any first part of the candidates is
//!   the last record in it.
//! - A record that stays one for `min - 1` more places is a cut whatever follows, since a later record is at least `min` behind it, so that
//!   the search that goes back from there meets it. Then all cuts up to it are known.
//!
//! Only where the horizon or the end comes before such a record, the places behind the cut are looked at again.

use fastcdc::v2020::get_gear_with_seed;

use super::FindCut;

/// Bytes that the rolling hash covers.
const WINDOW_BYTES: usize = 64;

/// Places are counted from the last cut.
pub(super) struct RepMax {
    min_bytes: usize,
    horizon_bytes: usize,
    gear: Box<[u64; 256]>,
    /// Places whose value is above that of all candidates before them, the first candidate being the first of them. Less than `min` apart.
    records: Vec<usize>,
    /// The place up to which values are known, and the value there. It counts only if there are records.
    seen: usize,
    value: u64,
    /// The value at the last record.
    largest: u64,
    /// Lengths of chunks that are certain, the next one last.
    certain: Vec<usize>,
}

impl RepMax {
    /// `min_bytes` is at least 64.
    pub(super) fn new(min_bytes: usize, horizon_bytes: usize) -> Self {
        debug_assert!(min_bytes >= WINDOW_BYTES, "the rolling hash covers {WINDOW_BYTES} bytes");
        let mut gear = Box::new([0; 256]);
        gear.copy_from_slice(&get_gear_with_seed(0).0);
        Self { min_bytes, horizon_bytes, gear, records: Vec::new(), seen: 0, value: 0, largest: 0, certain: Vec::new() }
    }

    /// Looks at places up to `limit`; true if the last record is a cut for certain.
    fn look(&mut self, data: &[u8], limit: usize) -> bool {
        let roll = |value: u64, byte: &u8| (value << 1).wrapping_add(self.gear[usize::from(*byte)]);
        if self.records.is_empty() {
            let first = self.min_bytes;
            self.value = data.get(first - WINDOW_BYTES..first).unwrap_or(&[]).iter().fold(0, roll);
            self.largest = self.value;
            self.seen = first;
            self.records.push(first);
        }
        loop {
            let last = self.records.last().copied().unwrap_or(self.min_bytes);
            let certain_at = last + self.min_bytes - 1;
            let upto = limit.min(certain_at);
            for byte in data.get(self.seen..upto).unwrap_or(&[]) {
                self.value = roll(self.value, byte);
                self.seen += 1;
                if self.value > self.largest {
                    self.largest = self.value;
                    self.records.push(self.seen);
                }
            }
            if self.records.last() == Some(&last) {
                return self.seen == certain_at;
            }
            if self.seen == limit {
                // The last record may be certain only if `min` were 1.
                return false;
            }
        }
    }

    /// The cuts that lead to the last record, which is one: lengths from the last to the first.
    fn lengths(&self) -> Vec<usize> {
        let mut lengths = Vec::new();
        let mut places = self.records.iter().rev();
        let Some(mut cut) = places.next().copied() else {
            return lengths;
        };
        while cut >= 2 * self.min_bytes
            && let Some(before) = places.find(|place| **place + self.min_bytes <= cut)
        {
            lengths.push(cut - before);
            cut = *before;
        }
        lengths.push(cut);
        lengths
    }
}

impl FindCut for RepMax {
    fn first(&mut self, data: &[u8], ended: bool) -> Option<usize> {
        if let Some(length) = self.certain.pop() {
            return Some(length);
        }
        if data.len() < 2 * self.min_bytes {
            return (ended && !data.is_empty()).then_some(data.len());
        }
        // Whatever follows, these leave enough bytes behind them.
        let horizon = self.min_bytes + self.horizon_bytes;
        let limit = horizon.min(data.len() - self.min_bytes);
        let certain = self.look(data, limit);
        if !certain && limit < horizon && !ended {
            return None;
        }
        let mut lengths = self.lengths();
        let first = lengths.pop()?;
        if certain {
            self.certain = lengths;
        }
        self.records.clear();
        Some(first)
    }
}
