//! What each block is being used for, and who may have the next one.
//!
//! ```text
//! Free ─header written, BlockOpen logged─► Opening ─durable─► Ready ─taken─► Active ─full─► Sealed
//!   ▲                                                                                        │
//!   └──durable── Retired ◄─BlockRetire published─ Reclaiming ◄─────────────victim────────────┘
//! ```
//! Always true here: a block is in one state; nothing is written into a block whose BlockOpen, and whose last tenant's BlockRetire,
//! are not durable; the last [`CARRY_BLOCKS`] spare blocks are for reclaim's copies alone. Lock order: innermost; no await under it.

use crate::{
    canary::{self, Canary},
    device::PAGE_BYTES,
    format::{
        image::BlockRow,
        layout::{CARRY_BLOCKS, Layout},
        types::{Lsn, Vbn},
    },
};
use parking_lot::Mutex;
use std::{collections::VecDeque, time::Duration};
use tokio::{sync::Notify, time::Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Free,
    Opening,
    Ready,
    Active,
    Sealed,
    Reclaiming,
    Retired,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    /// The tenant, or the last one.
    vbn: Vbn,
    state: State,
    fill_bytes: u32,
    /// Places given out in it whose entries are not yet published or abandoned.
    pending: u32,
    /// Since when the tenant takes records, as far as this process knows.
    since: Instant,
}

impl Row {
    /// Whether there may be records in it.
    fn holds(&self) -> bool {
        match self.state {
            State::Free | State::Opening | State::Retired => false,
            State::Ready | State::Active => self.fill_bytes > PAGE_BYTES as u32,
            State::Sealed | State::Reclaiming => true,
        }
    }
}

/// How old what the blocks hold may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ages {
    /// Of the oldest block.
    pub(crate) oldest: Option<Duration>,
    /// Of the block that was reclaimed last, when it was.
    pub(crate) reclaimed: Option<Duration>,
}

/// A block to write into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) vbn: Vbn,
    pub(crate) physical: u32,
    pub(crate) fill_bytes: u32,
}

#[derive(Debug)]
struct Inner {
    rows: Vec<Row>,
    free: VecDeque<u32>,
    ready: VecDeque<u32>,
    /// Blocks whose header is being written.
    starting: u64,
    /// Blocks that wait for their log entry to be flushed.
    opening: Vec<(u32, Lsn)>,
    retired: Vec<(u32, Lsn)>,
    /// See [`Ages::reclaimed`].
    reclaimed: Option<Duration>,
}

/// The blocks.
#[derive(Debug)]
pub(crate) struct Space {
    inner: Mutex<Inner>,
    /// Somebody may find a ready block, or room in the table, now.
    pub(crate) room: Notify,
    /// Blocks may have to be opened.
    pub(crate) opening: Notify,
    /// Blocks may have to be reclaimed, or a tick is due.
    pub(crate) reclaim: Notify,
    reserve_blocks: u64,
    ahead_blocks: u64,
    layout: Layout,
}

impl Space {
    /// All blocks free, with the tenants that they had last.
    pub(crate) fn new(layout: Layout) -> Self {
        let row = Row { vbn: Vbn::NONE, state: State::Free, fill_bytes: 0, pending: 0, since: Instant::now() };
        let rows = vec![row; layout.block_count as usize];
        let free = (0..layout.block_count).collect();
        Self {
            inner: Mutex::new(Inner {
                rows,
                free,
                ready: VecDeque::new(),
                starting: 0,
                opening: Vec::new(),
                retired: Vec::new(),
                reclaimed: None,
            }),
            room: Notify::new(),
            opening: Notify::new(),
            reclaim: Notify::new(),
            reserve_blocks: layout.upload_reserve_blocks(),
            ahead_blocks: layout.ahead_blocks(),
            layout,
        }
    }

    /// Has those look who open and reclaim blocks.
    pub(crate) fn wake(&self) {
        self.opening.notify_one();
        self.reclaim.notify_one();
    }

    /// Takes over what recovery found: per block its row, and the tenants that go on where they stopped.
    pub(crate) fn load(&self, rows: &[BlockRow]) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        inner.free.clear();
        for (physical, (row, found)) in (0u32..).zip(inner.rows.iter_mut().zip(rows)) {
            *row = Row { vbn: found.vbn, state: State::Free, fill_bytes: found.fill_bytes, pending: 0, since: row.since };
            match (found.live, found.sealed) {
                (false, _) => inner.free.push_back(physical),
                (true, true) => row.state = State::Sealed,
                (true, false) => {
                    row.state = State::Ready;
                    inner.ready.push_back(physical);
                }
            }
        }
    }

    /// A block for records. `None` if there is none now; wait for [`Self::room`].
    pub(crate) fn take(&self, carry: bool) -> Option<Taken> {
        let taken = self.inner.lock().take(carry);
        self.wake();
        taken
    }

    /// A free block that should be opened now, with its next tenant; it is `Opening` from here on.
    pub(crate) fn start_opening(&self) -> Option<(u32, Vbn)> {
        let mut inner = self.inner.lock();
        if (inner.ready.len() + inner.opening.len()) as u64 + inner.starting >= self.ahead_blocks + CARRY_BLOCKS {
            return None;
        }
        while let Some(physical) = inner.free.pop_front() {
            let row = inner.rows.get_mut(physical as usize)?;
            // A block whose numbers are used up stays out of use: 2^32 / stride generations.
            if let Some(vbn) = self.layout.next_vbn(physical, row.vbn) {
                // Until BlockOpen is published an image must not see the last tenant as alive.
                row.state = State::Opening;
                row.fill_bytes = 0;
                inner.starting += 1;
                return Some((physical, vbn));
            }
        }
        None
    }
    /// BlockOpen was published: the tenant is there, and may be written once `lsn` is durable.
    pub(crate) fn opened(&self, physical: u32, vbn: Vbn, lsn: Lsn) {
        let lsn = if canary::leaves_out(Canary::OpenDurable) { Lsn(0) } else { lsn };
        let mut inner = self.inner.lock();
        if let Some(row) = inner.rows.get_mut(physical as usize) {
            *row = Row { vbn, state: State::Opening, fill_bytes: PAGE_BYTES as u32, pending: 0, since: row.since };
            inner.opening.push((physical, lsn));
            inner.starting = inner.starting.saturating_sub(1);
        }
        drop(inner);
        if lsn == Lsn(0) {
            self.durable(lsn);
        }
    }
    /// BlockRetire was published.
    pub(crate) fn retired(&self, physical: u32, lsn: Lsn) {
        let lsn = if canary::leaves_out(Canary::RetireDurable) { Lsn(0) } else { lsn };
        let mut inner = self.inner.lock();
        if let Some(row) = inner.rows.get_mut(physical as usize) {
            row.state = State::Retired;
            let age = row.since.elapsed();
            inner.reclaimed = Some(age);
            inner.retired.push((physical, lsn));
        }
        drop(inner);
        if lsn == Lsn(0) {
            self.durable(lsn);
        }
    }
    /// Everything up to `lsn` is durable.
    pub(crate) fn durable(&self, lsn: Lsn) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        for (list, to, state) in [(&mut inner.opening, &mut inner.ready, State::Ready), (&mut inner.retired, &mut inner.free, State::Free)]
        {
            list.retain(|(physical, at)| {
                if *at > lsn {
                    return true;
                }
                if let Some(row) = inner.rows.get_mut(*physical as usize) {
                    row.state = state;
                }
                to.push_back(*physical);
                false
            });
        }
        self.room.notify_waiters();
        self.wake();
    }
    /// Whether blocks wait for a flush while fewer than two are ready.
    pub(crate) fn wants_flush(&self) -> bool {
        let inner = self.inner.lock();
        inner.ready.len() < 2 && !(inner.opening.is_empty() && inner.retired.is_empty())
    }

    /// A place in the block was given out.
    pub(crate) fn pending(&self, physical: u32, n: u32) {
        if let Some(row) = self.inner.lock().rows.get_mut(physical as usize) {
            row.pending += n;
        }
    }
    /// Places given out that are neither published nor abandoned.
    pub(crate) fn pending_places(&self) -> u64 {
        self.inner.lock().rows.iter().map(|row| u64::from(row.pending)).sum()
    }
    /// A place given out was published (its record ends at `end_bytes`) or abandoned (`end_bytes` 0).
    pub(crate) fn settled(&self, physical: u32, n: u32, end_bytes: u32) {
        let mut inner = self.inner.lock();
        let Some(row) = inner.rows.get_mut(physical as usize) else { return };
        row.pending = row.pending.saturating_sub(n);
        row.fill_bytes = row.fill_bytes.max(end_bytes);
        if row.pending == 0 && row.state == State::Sealed {
            drop(inner);
            self.wake();
        }
    }
    /// Nothing more is added to the block.
    pub(crate) fn sealed(&self, physical: u32) {
        if let Some(row) = self.inner.lock().rows.get_mut(physical as usize) {
            row.state = State::Sealed;
        }
        self.wake();
    }
    /// Takes the ready blocks that an earlier run left partly filled out of use, to be sealed.
    pub(crate) fn take_partly_filled(&self) -> Vec<Taken> {
        let mut inner = self.inner.lock();
        let Inner { rows, ready, .. } = &mut *inner;
        let mut taken = Vec::new();
        ready.retain(|physical| {
            let Some(row) = rows.get_mut(*physical as usize).filter(|r| r.fill_bytes > PAGE_BYTES as u32) else {
                return true;
            };
            row.state = State::Active;
            taken.push(Taken { vbn: row.vbn, physical: *physical, fill_bytes: row.fill_bytes });
            false
        });
        taken
    }
    /// Whether blocks are so short that one must be reclaimed, when uploads hold `upload_bytes` that are not yet accepted.
    pub(crate) fn short(&self, upload_bytes: u64) -> bool {
        // They begin and end somewhere in a block.
        let blocks = if upload_bytes == 0 { 0 } else { upload_bytes.div_ceil(self.layout.block_bytes) + 1 };
        let held = blocks.min(self.reserve_blocks);
        self.inner.lock().spare() < CARRY_BLOCKS + self.ahead_blocks + self.reserve_blocks - held
    }
    /// Blocks that hold nothing, or will soon.
    pub(crate) fn spare_blocks(&self) -> u64 {
        self.inner.lock().spare()
    }
    /// How old the blocks that hold something are.
    pub(crate) fn ages(&self) -> Ages {
        let inner = self.inner.lock();
        let since = inner.rows.iter().filter(|row| row.holds()).map(|row| row.since).min();
        Ages { oldest: since.map(|since| since.elapsed()), reclaimed: inner.reclaimed }
    }
    /// Sealed blocks all of whose entries are published, oldest tenant first.
    pub(crate) fn candidates(&self) -> Vec<(u32, Vbn)> {
        let inner = self.inner.lock();
        let sealed = inner.rows.iter().zip(0u32..).filter(|(r, _)| r.state == State::Sealed && r.pending == 0);
        let mut all: Vec<_> = sealed.map(|(r, physical)| (physical, r.vbn)).collect();
        all.sort_unstable_by_key(|(_, vbn)| vbn.0 / self.layout.vbn_stride);
        all
    }
    /// Begins to empty a block; false if it is no longer a candidate.
    pub(crate) fn start_reclaim(&self, physical: u32) -> bool {
        let mut inner = self.inner.lock();
        let Some(row) = inner.rows.get_mut(physical as usize).filter(|r| r.state == State::Sealed && r.pending == 0) else {
            return false;
        };
        row.state = State::Reclaiming;
        true
    }
    /// The block could not be emptied.
    pub(crate) fn cancel_reclaim(&self, physical: u32) {
        if let Some(row) = self.inner.lock().rows.get_mut(physical as usize) {
            row.state = State::Sealed;
        }
    }
    /// The rows as an image keeps them.
    pub(crate) fn rows(&self) -> Vec<BlockRow> {
        let row = |r: &Row| BlockRow {
            vbn: r.vbn,
            live: matches!(r.state, State::Ready | State::Active | State::Sealed | State::Reclaiming)
                || (r.state == State::Opening && r.fill_bytes > 0),
            sealed: matches!(r.state, State::Sealed | State::Reclaiming),
            fill_bytes: r.fill_bytes,
        };
        self.inner.lock().rows.iter().map(row).collect()
    }
}

impl Inner {
    fn take(&mut self, carry: bool) -> Option<Taken> {
        if !carry && self.spare() <= CARRY_BLOCKS {
            return None;
        }
        let physical = self.ready.pop_front()?;
        let row = self.rows.get_mut(physical as usize)?;
        row.state = State::Active;
        // One that an earlier run began goes on.
        if row.fill_bytes <= PAGE_BYTES as u32 {
            row.since = Instant::now();
        }
        Some(Taken { vbn: row.vbn, physical, fill_bytes: row.fill_bytes })
    }
    fn spare(&self) -> u64 {
        (self.free.len() + self.ready.len() + self.opening.len() + self.retired.len()) as u64 + self.starting
    }
}
