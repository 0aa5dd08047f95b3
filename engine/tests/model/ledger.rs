//! The model: what was put, and what may be read now.
//!
//! It is conservative: where a promise does not clearly hold (beyond the retention bound, after damage), anything goes but a wrong
//! byte.

use blockstore_engine::PutOutcome;
use std::collections::BTreeMap;

/// Content that was ever put.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blob {
    pub(crate) bytes: u64,
    /// A put, lookup or read said that it is there.
    pub(crate) acked: bool,
    /// It was said before a flush that has succeeded.
    pub(crate) durable: bool,
    /// Damage may have hit it.
    pub(crate) lossy: bool,
    /// Accepted bytes when it was last put or touched; `None` where the retention bound was passed since.
    touched_at: Option<u64>,
    /// The same, of touches that a crash cannot forget.
    safe_at: Option<u64>,
}

#[derive(Clone, Debug)]
struct Write {
    value: Option<u64>,
    acked: bool,
    durable: bool,
}

/// A named key: its writes in the order in which they were made, from the last durable one on.
#[derive(Clone, Debug)]
pub(crate) struct Name {
    writes: Vec<Write>,
    older: Vec<Option<u64>>,
    lossy: bool,
    bytes: u64,
    touched_at: Option<u64>,
    safe_at: Option<u64>,
}

/// The whole model.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) blobs: BTreeMap<u64, Blob>,
    pub(crate) names: BTreeMap<u64, Name>,
    /// Bytes accepted since the store was formatted.
    pub(crate) accepted_bytes: u64,
    pub(crate) capacity_bytes: u64,
    /// The table was nearly full: it is a second capacity, in which the bound in bytes does not hold.
    pub(crate) table_pressure: bool,
    /// More was touched in a window than the bound allows, at some time.
    pub(crate) exceeded: bool,
    /// Writing is off: a flush may have failed.
    pub(crate) poisoned: bool,
    /// A read may fail at any time in this run.
    pub(crate) reads_may_fail: bool,
    /// A stop was unclean: what was put after the last image looks as if it had just been put, and the store's own count of breaches
    /// with it. What must be there must be there all the same.
    pub(crate) restamped: bool,
}

/// What a record takes on the device, at most.
fn extent(bytes: u64) -> u64 {
    if bytes > 64 << 10 { bytes + bytes / 8 + 12_288 } else { bytes + bytes / 8 + 256 }
}

impl Ledger {
    fn within(&self, touched_at: Option<u64>) -> bool {
        !self.table_pressure && touched_at.is_some_and(|t| self.accepted_bytes - t < self.capacity_bytes / 4)
    }
    /// Whether a read of the content must find it.
    pub(crate) fn must(&self, id: u64) -> bool {
        !self.reads_may_fail && self.blobs.get(&id).is_some_and(|b| b.acked && !b.lossy && self.within(b.touched_at))
    }
    pub(crate) fn attempted(&mut self, id: u64, bytes: u64) {
        self.blobs.entry(id).or_insert_with(|| Blob { bytes, ..Blob::default() });
    }
    /// A put was answered; `at` is what had been accepted when it began.
    pub(crate) fn stored(&mut self, id: u64, outcome: PutOutcome, group: bool, at: u64) {
        let Some(b) = self.blobs.get_mut(&id) else { return };
        let kept = outcome == PutOutcome::AlreadyPresent;
        b.durable = group || (kept && b.acked && b.durable);
        b.acked = true;
        b.touched_at = Some(at);
        if !kept {
            b.safe_at = Some(at);
            b.lossy = false;
        }
    }
    /// A lookup said that the content is there, or not.
    pub(crate) fn found(&mut self, id: u64, present: bool, at: u64, group: bool, what: &str) {
        assert!(
            present || !self.must(id),
            "{what}: content {id} is missing: {:?} at {} accepted",
            self.blobs.get(&id),
            self.accepted_bytes
        );
        let Some(b) = self.blobs.get_mut(&id) else {
            assert!(!present, "{what}: content {id} was never put");
            return;
        };
        b.durable = present && (b.durable || group);
        b.acked = present;
        if present {
            b.touched_at = Some(at);
        }
    }
    /// The content was read whole.
    pub(crate) fn read(&mut self, id: u64) {
        if let Some(b) = self.blobs.get_mut(&id) {
            b.lossy = false;
        }
    }

    fn name(&mut self, id: u64) -> &mut Name {
        self.names.entry(id).or_insert_with(|| Name {
            writes: vec![Write { value: None, acked: true, durable: true }],
            older: Vec::new(),
            lossy: false,
            bytes: 0,
            touched_at: None,
            safe_at: None,
        })
    }
    /// A write of a named key begins.
    pub(crate) fn writing(&mut self, id: u64, value: Option<u64>, bytes: u64) {
        let name = self.name(id);
        name.writes.push(Write { value, acked: false, durable: false });
        name.bytes = name.bytes.max(bytes);
    }
    /// It was acknowledged.
    pub(crate) fn written(&mut self, id: u64, value: Option<u64>, group: bool, at: u64) {
        let name = self.name(id);
        let Some(index) = name.writes.iter().rposition(|w| w.value == value) else { return };
        name.writes[index].acked = true;
        name.writes[index].durable |= group;
        (name.touched_at, name.safe_at, name.lossy) = (Some(at), Some(at), false);
        name.forget();
    }
    /// Whether a read may give this value now.
    pub(crate) fn may_read(&self, id: u64, value: Option<u64>) -> bool {
        let Some(name) = self.names.get(&id) else { return value.is_none() };
        let known = name.possible().any(|w| w.value == value);
        let lossy = name.lossy || self.reads_may_fail;
        known || (value.is_none() && (lossy || !self.within(name.touched_at))) || (lossy && name.older.contains(&value))
    }
    /// A read gave this value, with no write under way.
    pub(crate) fn observed(&mut self, id: u64, value: Option<u64>, at: u64, group: bool, what: &str) {
        assert!(self.may_read(id, value), "{what}: name {id} has {value:?}: {:?} at {} accepted", self.names.get(&id), self.accepted_bytes);
        if self.poisoned {
            // What the last flush should have covered is missing now, and may be there again after a restart.
            return;
        }
        let name = self.name(id);
        let first = name.first_possible();
        match name.writes.iter().enumerate().skip(first).rev().find(|(_, w)| w.value == value).map(|(i, _)| i) {
            Some(index) => {
                // Later ones did not make it, and never will.
                name.older.extend(name.writes.drain(index + 1..).map(|w| w.value));
                name.writes[index].acked = true;
                name.writes[index].durable |= group;
                if value.is_some() {
                    name.touched_at = Some(at);
                }
                name.forget();
            }
            None if value.is_some() => {
                // Damage brought an older value back.
                name.writes.push(Write { value, acked: true, durable: false });
                name.touched_at = None;
            }
            None => name.touched_at = None,
        }
    }

    /// Everything acknowledged so far is durable.
    pub(crate) fn flushed(&mut self) {
        self.blobs.values_mut().for_each(|b| b.durable |= b.acked);
        for name in self.names.values_mut() {
            name.writes.iter_mut().for_each(|w| w.durable |= w.acked);
            name.forget();
        }
    }
    /// Everything touched so far is known to an image.
    pub(crate) fn imaged(&mut self) {
        self.blobs.values_mut().for_each(|b| b.safe_at = b.touched_at);
        self.names.values_mut().for_each(|n| n.safe_at = n.touched_at);
    }
    /// The process died.
    pub(crate) fn killed(&mut self) {
        self.restamped = true;
        self.blobs.values_mut().for_each(|b| b.touched_at = b.safe_at);
        self.names.values_mut().for_each(|n| n.touched_at = n.safe_at);
    }
    /// The power went.
    pub(crate) fn power_lost(&mut self) {
        self.killed();
        self.blobs.values_mut().for_each(|b| b.acked &= b.durable);
        for name in self.names.values_mut() {
            // What it was before may have been dropped for age when the lost write made it wanted again.
            if name.writes.iter().any(|w| w.acked && !w.durable) {
                (name.touched_at, name.safe_at) = (None, None);
            }
            name.writes.iter_mut().for_each(|w| w.acked &= w.durable);
        }
    }
    /// Something was damaged; nobody knows what it hit.
    pub(crate) fn damaged(&mut self) {
        self.blobs.values_mut().for_each(|b| b.lossy = true);
        self.names.values_mut().for_each(|n| n.lossy = true);
    }
    /// Takes note of how far the store has come. Content that nobody asks for again is forgotten.
    pub(crate) fn settle(&mut self, accepted_bytes: u64, keep_below: u64) {
        self.accepted_bytes = accepted_bytes;
        let window = self.capacity_bytes / 4;
        let recent = |t: Option<u64>| t.is_some_and(|t| accepted_bytes - t < window);
        let blobs = self.blobs.values().filter(|b| recent(b.touched_at)).map(|b| extent(b.bytes));
        let names = self.names.values().filter(|n| recent(n.touched_at)).map(|n| extent(n.bytes));
        if blobs.chain(names).sum::<u64>() > self.capacity_bytes / 2 {
            self.exceeded = true;
            self.blobs.values_mut().for_each(|b| (b.touched_at, b.safe_at) = (None, None));
            self.names.values_mut().for_each(|n| (n.touched_at, n.safe_at) = (None, None));
        }
        self.blobs.retain(|id, b| *id < keep_below || recent(b.touched_at));
    }
}

impl Name {
    fn first_possible(&self) -> usize {
        self.writes.iter().rposition(|w| w.acked).unwrap_or(0)
    }
    fn possible(&self) -> impl Iterator<Item = &Write> {
        self.writes.iter().skip(self.first_possible())
    }
    /// What is older than the last durable write can only come back by damage.
    fn forget(&mut self) {
        if let Some(last) = self.writes.iter().rposition(|w| w.durable) {
            self.older.extend(self.writes.drain(..last).map(|w| w.value));
        }
    }
}
