//! Faults of the simulated disk, and the handle that tests put them in with.
//!
//! Always true here: a fault that is set for the n-th operation of its kind strikes once; one that is set for a place or for
//! the whole device lasts until it is taken back.

use super::{CrashModel, Latency, SimDevice, halted, rng::Rng};
use crate::device::{Device, DeviceCounters, PAGE_BYTES};
use rustix::io::Errno;
use std::{collections::BTreeMap, future::Future, io, ops::Range, sync::Arc};

/// A fault of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteFault {
    /// Answers that it succeeded, and writes nothing.
    Lose,
    /// Answers that it succeeded, and writes to another place. Without effect if that is outside of the device.
    Misdirect {
        /// Where the bytes go: a multiple of a page.
        to_bytes: u64,
    },
    /// Fails with EIO, and leaves any part of its sectors.
    Fail,
}

/// A fault of one read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFault {
    /// Fails with EIO.
    Fail,
    /// Answers with the bytes of another place. Fails if that is outside of the device.
    Misdirect {
        /// Where the bytes come from: a multiple of a page.
        from_bytes: u64,
    },
    /// Answers with one bit wrong; the disk keeps the right one.
    FlipBit,
}

/// A fault of one flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushFault {
    /// Fails with EIO. Each page that it would have covered is durable, lost, or still read and never made durable.
    Fail,
    /// Answers that it succeeded, and makes nothing durable.
    Lie,
}

#[derive(Default)]
pub(super) struct Faults {
    pub(super) halt_at: Option<u64>,
    reads: Scheduled<ReadFault>,
    writes: Scheduled<WriteFault>,
    flushes: Scheduled<FlushFault>,
    failing_reads: Vec<Range<u64>>,
    full: bool,
    vanished: bool,
    device_bytes: u64,
}

/// Faults by the number of the operation of their kind that they strike.
struct Scheduled<F> {
    seen: u64,
    due: BTreeMap<u64, F>,
}

impl<F> Default for Scheduled<F> {
    fn default() -> Self {
        Self { seen: 0, due: BTreeMap::new() }
    }
}

impl<F> Scheduled<F> {
    fn next(&mut self) -> Option<F> {
        self.seen += 1;
        self.due.remove(&(self.seen - 1))
    }

    fn add(&mut self, nth: u64, fault: F) {
        self.due.insert(self.seen + nth, fault);
    }
}

impl Faults {
    pub(super) fn next_read(&mut self) -> Option<ReadFault> {
        self.reads.next()
    }

    pub(super) fn next_write(&mut self) -> Option<WriteFault> {
        self.writes.next()
    }

    pub(super) fn next_flush(&mut self) -> Option<FlushFault> {
        self.flushes.next()
    }

    /// Where the read takes its bytes from, or why it fails.
    pub(super) fn refuse_read(&self, offset_bytes: u64, len_bytes: u64, fault: Option<ReadFault>) -> io::Result<u64> {
        self.here()?;
        let range = offset_bytes..offset_bytes + len_bytes;
        let failing = self.failing_reads.iter().any(|bad| bad.start < range.end && range.start < bad.end);
        match fault {
            _ if failing => Err(Errno::IO.into()),
            Some(ReadFault::Fail) => Err(Errno::IO.into()),
            Some(ReadFault::Misdirect { from_bytes }) => {
                let inside = from_bytes.checked_add(len_bytes).is_some_and(|end| end <= self.device_bytes);
                if inside { Ok(from_bytes) } else { Err(Errno::IO.into()) }
            }
            _ => Ok(offset_bytes),
        }
    }

    pub(super) fn spoil_read(&self, fault: Option<ReadFault>, buf: &mut [u8], rng: &mut Rng) {
        if fault == Some(ReadFault::FlipBit) {
            let at = usize::try_from(rng.below(buf.len() as u64)).unwrap_or(0);
            buf[at] ^= 1 << rng.below(8);
        }
    }

    pub(super) fn refuse_write(&self, fault: Option<WriteFault>) -> io::Result<()> {
        self.here()?;
        match fault {
            Some(WriteFault::Fail) => Err(Errno::IO.into()),
            _ if self.full => Err(Errno::NOSPC.into()),
            _ => Ok(()),
        }
    }

    pub(super) fn refuse_flush(&self, fault: Option<FlushFault>) -> io::Result<()> {
        self.here()?;
        match fault {
            Some(FlushFault::Fail) => Err(Errno::IO.into()),
            _ => Ok(()),
        }
    }

    fn here(&self) -> io::Result<()> {
        if self.vanished {
            return Err(Errno::NODEV.into());
        }
        Ok(())
    }
}

/// Controls a [`SimDevice`] from a test. `nth` counts operations of the kind from now on, the next one being 0.
#[derive(Clone, Debug)]
pub struct SimHandle {
    pub(super) device: SimDevice,
}

impl SimHandle {
    /// Lets a fault strike the `nth` read from now.
    pub fn on_read(&self, nth: u64, fault: ReadFault) {
        self.with(|faults| faults.reads.add(nth, fault));
    }

    /// Lets a fault strike the `nth` write from now.
    pub fn on_write(&self, nth: u64, fault: WriteFault) {
        self.with(|faults| faults.writes.add(nth, fault));
    }

    /// Lets a fault strike the `nth` flush from now.
    pub fn on_flush(&self, nth: u64, fault: FlushFault) {
        self.with(|faults| faults.flushes.add(nth, fault));
    }

    /// Lets every read that touches these bytes fail with EIO, whatever is written there.
    pub fn fail_reads(&self, range_bytes: Range<u64>) {
        self.with(|faults| faults.failing_reads.push(range_bytes));
    }

    /// Makes the sectors of these bytes unreadable until they are written. What the cache has of their pages is made durable
    /// first.
    pub fn make_unreadable(&self, range_bytes: Range<u64>) {
        let mut state = self.device.shared.state.lock();
        let image = &mut state.image;
        let sector_bytes = image.sector_bytes as u64;
        let pages = range_bytes.start / PAGE_BYTES as u64..range_bytes.end.div_ceil(PAGE_BYTES as u64);
        for page in pages {
            if let Some(version) = image.cache.remove(&page).and_then(|mut all| all.pop()) {
                image.store(page, version.page);
            }
        }
        let sectors = range_bytes.start / sector_bytes..range_bytes.end.div_ceil(sector_bytes);
        image.unreadable.extend(sectors);
    }

    /// Flips the bits of `mask` in one byte, wherever the disk has it.
    pub fn rot(&self, at_bytes: u64, mask: u8) {
        self.change(at_bytes, |byte| byte ^ mask);
    }

    /// Flips `bits` bits in these bytes, drawn from the device's seed.
    pub fn rot_some(&self, range_bytes: Range<u64>, bits: u32) {
        for _ in 0..bits {
            let (at, bit) = {
                let rng = &mut self.device.shared.state.lock().rng;
                let len = range_bytes.end.saturating_sub(range_bytes.start);
                (range_bytes.start + rng.below(len), rng.below(8))
            };
            self.rot(at, 1 << bit);
        }
    }

    /// Overwrites bytes, wherever the disk has them, durably and uncounted.
    pub fn poke(&self, at_bytes: u64, bytes: &[u8]) {
        for (at, byte) in (at_bytes..).zip(bytes) {
            self.change(at, |_| *byte);
        }
    }

    /// The bytes that a read would give now, apart from writes under way; uncounted, without faults.
    ///
    /// # Errors
    /// If a sector of them is unreadable.
    pub fn peek(&self, range_bytes: Range<u64>) -> io::Result<Vec<u8>> {
        let state = self.device.shared.state.lock();
        range_bytes
            .map(|at| {
                let page = state.image.current(at / PAGE_BYTES as u64)?;
                Ok(page[usize::try_from(at).unwrap_or(0) % PAGE_BYTES])
            })
            .collect()
    }

    fn change(&self, at_bytes: u64, change: impl Fn(u8) -> u8) {
        let mut state = self.device.shared.state.lock();
        let image = &mut state.image;
        let page = at_bytes / PAGE_BYTES as u64;
        let at = usize::try_from(at_bytes).unwrap_or(0) % PAGE_BYTES;
        for version in image.cache.get_mut(&page).into_iter().flatten() {
            let byte = &mut Arc::make_mut(&mut version.page)[at];
            *byte = change(*byte);
        }
        let mut stored = image.durable_page(page).clone();
        let byte = &mut Arc::make_mut(&mut stored)[at];
        *byte = change(*byte);
        image.durable.insert(page, stored);
    }

    /// Lets writes fail with ENOSPC, or succeed again.
    pub fn set_full(&self, full: bool) {
        self.with(|faults| faults.full = full);
    }

    /// Lets everything fail with ENODEV, or succeed again.
    pub fn set_vanished(&self, vanished: bool) {
        self.with(|faults| faults.vanished = vanished);
    }

    /// Takes back every fault that was set, also those not yet due. Damage that was done stays.
    pub fn clear_faults(&self) {
        self.with(|faults| {
            let reads = faults.reads.seen;
            let writes = faults.writes.seen;
            let flushes = faults.flushes.seen;
            let halt_at = faults.halt_at;
            *faults = Faults::default();
            faults.halt_at = halt_at;
            faults.reads.seen = reads;
            faults.writes.seen = writes;
            faults.flushes.seen = flushes;
        });
    }

    /// Changes how long operations take that are issued from now on.
    pub fn set_latency(&self, latency: Latency) {
        self.device.shared.state.lock().latency = latency;
    }

    /// From now on no operation completes, neither a new one nor one under way.
    pub fn halt(&self) {
        self.device.shared.halted.send_replace(true);
    }

    /// Halts the device when the operation with this number is issued, counted from the device's first as 0; that one does
    /// not complete either.
    pub fn halt_at(&self, operation: u64) {
        self.with(|faults| faults.halt_at = Some(operation));
    }

    /// Waits until the device has halted.
    pub fn halted(&self) -> impl Future<Output = ()> + Send + use<> {
        halted(&self.device.shared)
    }

    /// Whether the device has halted.
    pub fn is_halted(&self) -> bool {
        *self.device.shared.halted.borrow()
    }

    /// Operations issued so far: reads, writes and flushes.
    pub fn operations(&self) -> u64 {
        self.device.shared.state.lock().operations
    }

    /// What the device has done.
    pub fn counters(&self) -> DeviceCounters {
        self.device.counters()
    }

    /// As [`SimDevice::crash`].
    pub fn crash(&self, seed: u64) -> SimDevice {
        self.device.crash(seed)
    }

    /// As [`SimDevice::crash_with`].
    pub fn crash_with(&self, seed: u64, model: CrashModel) -> SimDevice {
        self.device.crash_with(seed, model)
    }

    /// As [`SimDevice::snapshot_completed`].
    pub fn snapshot_completed(&self, seed: u64) -> SimDevice {
        self.device.snapshot_completed(seed)
    }

    fn with(&self, set: impl FnOnce(&mut Faults)) {
        let mut state = self.device.shared.state.lock();
        set(&mut state.faults);
        state.faults.device_bytes = self.device.geometry.len_bytes;
    }
}
