//! The table of slots: units of 64 KiB with 1,023 buckets of 4 slots; a key has two buckets in one unit.
//!
//! Always true here: a slot changes only under its unit's lock, inside an odd value of the unit's sequence; who reads without
//! the lock compares the sequence before it believes anything, a miss included. No live slot is ever overwritten by another key. No I/O and no await happens under
//! a lock. Lock order: a unit's lock is the innermost of all and no two are held at once.

use super::{
    census::{Census, STAMPS},
    memory::Words,
    slot::Slot,
};
use crate::format::{
    image::{BUCKETS_PER_UNIT, SLOTS_PER_BUCKET, SLOTS_PER_UNIT, UNIT_BYTES},
    log::Location,
    types::{KeyHash, LengthClass, Lsn, Place, SizeCheck, SlotKind, Vbn},
};
use parking_lot::{Mutex, MutexGuard};
use std::{
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering, fence},
    },
    thread::available_parallelism,
};

const WORDS_PER_BUCKET: usize = 8;
const WORDS_PER_UNIT: usize = UNIT_BYTES / 8;
/// Buckets that a search for a free slot looks at before it gives up.
const RELOCATION_BUCKETS_MAX: usize = 512;
/// Slots of a unit that puts may fill or reserve: relocation still succeeds there.
const UNIT_SLOTS_MAX: u32 = SLOTS_PER_UNIT * 96 / 100;
/// Fewer units than these are not worth a thread: 16 MiB of table.
const UNITS_PER_THREAD_MIN: u32 = 256;

#[derive(Debug, Default)]
struct UnitState {
    live: u32,
    reserved: u32,
    held: u32,
    lsn: Lsn,
}

#[derive(Debug, Default)]
struct Unit {
    sequence: AtomicU32,
    state: Mutex<UnitState>,
}

/// The unit, one bucket and the fingerprint of a key: enough to find its slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    unit: u32,
    bucket: u32,
    fingerprint: u64,
}

impl Address {
    fn buckets(self) -> [u32; 2] {
        [self.bucket, other_bucket(self.bucket, self.fingerprint)]
    }
}

/// The second bucket of a slot that is in `bucket`; applied twice it gives `bucket` again.
fn other_bucket(bucket: u32, fingerprint: u64) -> u32 {
    let mixed = fingerprint.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let sum = (mixed % u64::from(BUCKETS_PER_UNIT)) as u32;
    (sum + BUCKETS_PER_UNIT - bucket) % BUCKETS_PER_UNIT
}

/// A slot that may be the key's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) address: Address,
    pub(crate) place: Place,
    pub(crate) kind: SlotKind,
    pub(crate) class: LengthClass,
    pub(crate) stamp: u8,
}

/// Up to eight slots that may be the key's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hits {
    found: [Option<Found>; 8],
}

impl Hits {
    pub(crate) fn iter(&self) -> impl Iterator<Item = Found> + '_ {
        self.found.iter().map_while(|f| *f)
    }
    pub(crate) fn first(&self) -> Option<Found> {
        self.found[0]
    }
}

/// What a put did to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placed {
    Inserted,
    /// The key's slot said this place before.
    Replaced(Place),
    /// No free slot could be made in the key's buckets.
    Full,
}

/// The table in memory.
pub(crate) struct Table {
    words: Words,
    units: Vec<Unit>,
    live: AtomicU64,
    reserved: AtomicU64,
    held: AtomicU64,
    relocations: AtomicU64,
    census: Arc<Census>,
}

impl Table {
    pub(crate) fn new(units: u32, census: Arc<Census>) -> io::Result<Self> {
        let words = Words::zeroed(units as usize * WORDS_PER_UNIT)?;
        let units = (0..units).map(|_| Unit::default()).collect();
        let [live, reserved, held, relocations] = [const { AtomicU64::new(0) }; 4];
        Ok(Self { words, units, live, reserved, held, relocations, census })
    }

    pub(crate) fn units(&self) -> u32 {
        self.units.len() as u32
    }
    pub(crate) fn slots(&self) -> u64 {
        self.units.len() as u64 * u64::from(SLOTS_PER_UNIT)
    }
    /// Slots in use.
    pub(crate) fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }
    /// Slots kept for puts under way.
    pub(crate) fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::Relaxed)
    }
    /// Slots that were emptied and that a crash would fill again.
    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }
    /// Slots that moved to their other bucket since the store was opened.
    pub(crate) fn relocations(&self) -> u64 {
        self.relocations.load(Ordering::Relaxed)
    }
    /// Bytes of memory that the table takes when every page of it is used.
    pub(crate) fn allocated_bytes(&self) -> u64 {
        (self.words.len() * 8 + self.units.len() * size_of::<Unit>()) as u64
    }

    pub(crate) fn address(&self, hash: &KeyHash) -> Address {
        Address { unit: hash.unit(self.units()), bucket: hash.bucket(BUCKETS_PER_UNIT), fingerprint: hash.fingerprint() }
    }

    /// Asks for the cache lines of a key ahead of [`Self::find`].
    pub(crate) fn prefetch(&self, hash: &KeyHash) -> u64 {
        let address = self.address(hash);
        let [a, b] = address.buckets().map(|bucket| self.words[Self::word(address.unit, bucket, 0)].load(Ordering::Relaxed));
        a ^ b
    }

    // Bucket 0 of the memory is the unit's head: bucket numbers here start behind it.
    fn word(unit: u32, bucket: u32, slot: u32) -> usize {
        unit as usize * WORDS_PER_UNIT + (bucket as usize + 1) * WORDS_PER_BUCKET + slot as usize * 2
    }
    fn read(&self, unit: u32, bucket: u32, slot: u32) -> Slot {
        let at = Self::word(unit, bucket, slot);
        Slot { word0: self.words[at].load(Ordering::Relaxed), word1: self.words[at + 1].load(Ordering::Relaxed) }
    }

    /// The live slots that may be the key's: right space, fingerprint, and size check where one is given.
    pub(crate) fn find(&self, hash: &KeyHash, kind: SlotKind, check: Option<SizeCheck>) -> Hits {
        let address = self.address(hash);
        let unit = &self.units[address.unit as usize];
        for _ in 0..64 {
            let before = unit.sequence.load(Ordering::Acquire);
            if before & 1 == 0 {
                let hits = self.scan(address, kind, check);
                fence(Ordering::Acquire);
                if unit.sequence.load(Ordering::Relaxed) == before {
                    return hits;
                }
            }
            std::hint::spin_loop();
        }
        let _guard = unit.state.lock();
        self.scan(address, kind, check)
    }

    fn scan(&self, address: Address, kind: SlotKind, check: Option<SizeCheck>) -> Hits {
        let mut hits = Hits { found: [None; 8] };
        let mut count = 0;
        let [first, second] = address.buckets();
        for bucket in [first, second].into_iter().take(if first == second { 1 } else { 2 }) {
            for slot in 0..SLOTS_PER_BUCKET {
                let s = self.read(address.unit, bucket, slot);
                if s.is_empty() || s.fingerprint() != address.fingerprint || !s.kind().same_space(kind) || !self.census.is_live(s.vbn()) {
                    continue;
                }
                if check.is_some_and(|c| c != s.check()) {
                    continue;
                }
                hits.found[count] = Some(Found { address, place: s.place(), kind: s.kind(), class: s.class(), stamp: s.stamp() });
                count += 1;
            }
        }
        hits
    }

    /// Keeps a slot free for a put that will be published later. False if the table, or the key's unit, is as full as it may get.
    pub(crate) fn reserve(&self, hash: &KeyHash, slots_max: u64) -> bool {
        let mut state = self.units[self.address(hash).unit as usize].state.lock();
        let unit_full = state.live + state.reserved + state.held >= UNIT_SLOTS_MAX;
        if unit_full || self.live() + self.reserved() + self.held() >= slots_max {
            return false;
        }
        state.reserved += 1;
        self.reserved.fetch_add(1, Ordering::Relaxed);
        true
    }
    /// Gives a reserved slot back.
    pub(crate) fn release(&self, hash: &KeyHash) {
        let mut state = self.units[self.address(hash).unit as usize].state.lock();
        debug_assert!(state.reserved > 0);
        state.reserved = state.reserved.saturating_sub(1);
        self.reserved.fetch_sub(1, Ordering::Relaxed);
    }

    /// Keeps a slot that was just emptied from being given to others. Says what to give it back with.
    pub(crate) fn hold(&self, address: Address) -> u32 {
        self.units[address.unit as usize].state.lock().held += 1;
        self.held.fetch_add(1, Ordering::Relaxed);
        address.unit
    }
    /// Gives a held slot back.
    pub(crate) fn release_held(&self, unit: u32) {
        let mut state = self.units[unit as usize].state.lock();
        debug_assert!(state.held > 0);
        state.held = state.held.saturating_sub(1);
        self.held.fetch_sub(1, Ordering::Relaxed);
    }

    /// The key's record is at `location` from now on.
    pub(crate) fn put(&self, location: &Location, lsn: Lsn, stamp: u8) -> Placed {
        let address = self.address(&location.hash);
        let mut edit = Edit::new(self, address.unit);
        edit.state.lsn = edit.state.lsn.max(lsn);
        let class = LengthClass::of(location.extent_bytes);
        let new = Slot::new(location.place, stamp, location.kind, address.fingerprint, location.check, class);
        // Its own slot first, even a dead one. A named key has no fixed size: its check may differ.
        let own = edit
            .position(address, |s| s.kind().same_space(location.kind) && (location.kind == SlotKind::Named || s.check() == location.check));
        if let Some((bucket, slot, old)) = own {
            edit.write(bucket, slot, new);
            return Placed::Replaced(old.place());
        }
        match edit.make_room(address) {
            Some((bucket, slot)) => {
                edit.write(bucket, slot, new);
                Placed::Inserted
            }
            None => Placed::Full,
        }
    }

    /// Points the slot that says `from` to `to`, keeping its stamp. False if no slot says `from`.
    pub(crate) fn relocate(&self, hash: &KeyHash, from: Place, to: Place, lsn: Lsn) -> bool {
        self.change(self.address(hash), from, Some(lsn), |s| s.at(to, s.stamp()))
    }
    /// Empties the slot that says `place`. False if there is none.
    pub(crate) fn remove(&self, address: Address, place: Place, lsn: Option<Lsn>) -> bool {
        self.change(address, place, lsn, |_| Slot::EMPTY)
    }
    /// Empties the slot that says `place` unless it was touched since it had `stamp`. False if nothing was emptied.
    pub(crate) fn remove_untouched(&self, address: Address, place: Place, stamp: u8) -> bool {
        let mut removed = false;
        self.change(address, place, None, |s| {
            removed = s.stamp() == stamp;
            if removed { Slot::EMPTY } else { s }
        });
        removed
    }
    /// Marks the slot that says `place` as wanted in the tick of `stamp`. False if it is gone.
    pub(crate) fn touch(&self, address: Address, place: Place, stamp: u8) -> bool {
        self.change(address, place, None, |s| s.at(s.place(), stamp))
    }

    fn change(&self, address: Address, place: Place, lsn: Option<Lsn>, f: impl FnOnce(Slot) -> Slot) -> bool {
        let mut edit = Edit::new(self, address.unit);
        if let Some(lsn) = lsn {
            edit.state.lsn = edit.state.lsn.max(lsn);
        }
        let Some((bucket, slot, old)) = edit.position(address, |s| s.place() == place) else { return false };
        let new = f(old);
        if new != old {
            edit.write(bucket, slot, new);
        }
        true
    }

    /// All slots that lead to `vbn`, read without a lock: a slot that moves meanwhile may be missed or seen twice, so the caller
    /// asks again until the census says that none is left.
    pub(crate) fn of_block(&self, vbn: Vbn) -> Vec<Found> {
        let mut all = Vec::new();
        for unit in 0..self.units() {
            let words = &self.words[unit as usize * WORDS_PER_UNIT + WORDS_PER_BUCKET..(unit as usize + 1) * WORDS_PER_UNIT];
            for (i, pair) in words.chunks_exact(2).enumerate() {
                let word0 = pair[0].load(Ordering::Relaxed);
                if word0 >> 32 != u64::from(vbn.0) {
                    continue;
                }
                let s = Slot { word0, word1: pair[1].load(Ordering::Relaxed) };
                let address = Address { unit, bucket: i as u32 / SLOTS_PER_BUCKET, fingerprint: s.fingerprint() };
                all.push(Found { address, place: s.place(), kind: s.kind(), class: s.class(), stamp: s.stamp() });
            }
        }
        all
    }

    /// All slots in use, in the order of the table, of a table that nobody changes.
    pub(crate) fn for_each(&self, mut each: impl FnMut(Found)) {
        for unit in 0..self.units() {
            let words = &self.words[unit as usize * WORDS_PER_UNIT + WORDS_PER_BUCKET..(unit as usize + 1) * WORDS_PER_UNIT];
            for (i, pair) in words.chunks_exact(2).enumerate() {
                let s = Slot { word0: pair[0].load(Ordering::Relaxed), word1: pair[1].load(Ordering::Relaxed) };
                if s.is_empty() {
                    continue;
                }
                let address = Address { unit, bucket: i as u32 / SLOTS_PER_BUCKET, fingerprint: s.fingerprint() };
                each(Found { address, place: s.place(), kind: s.kind(), class: s.class(), stamp: s.stamp() });
            }
        }
    }

    /// Gives every slot with stamp `from` the stamp `to`, unit by unit.
    pub(crate) fn restamp_unit(&self, unit: u32, from: u8, to: u8) {
        let mut edit = Edit::new(self, unit);
        for bucket in 0..BUCKETS_PER_UNIT {
            for slot in 0..SLOTS_PER_BUCKET {
                let s = self.read(unit, bucket, slot);
                if !s.is_empty() && s.stamp() == from {
                    edit.write(bucket, slot, s.at(s.place(), to));
                }
            }
        }
    }

    /// Gives every slot the stamp that `stamp` has for its place, if it has one.
    pub(crate) fn restamp_by_place(&self, stamp: impl Fn(Place) -> Option<u8>) {
        for unit in 0..self.units() {
            let mut edit = Edit::new(self, unit);
            for (bucket, slot) in (0..BUCKETS_PER_UNIT).flat_map(|b| (0..SLOTS_PER_BUCKET).map(move |s| (b, s))) {
                let s = self.read(unit, bucket, slot);
                if !s.is_empty()
                    && let Some(stamp) = stamp(s.place())
                {
                    edit.write(bucket, slot, s.at(s.place(), stamp));
                }
            }
        }
    }

    /// Makes every slot `ticks` older: what was stamped relative to `tick` is so relative to `tick + ticks`, up to an age of 7. Of a
    /// table that nobody changes meanwhile, and before [`Self::recount`]: the counters do not follow.
    pub(crate) fn age(&self, tick: u64, ticks: u64) {
        if ticks == 0 {
            return;
        }
        let stamps: [u8; STAMPS] = std::array::from_fn(|stamp| {
            let age = (tick.wrapping_sub(stamp as u64) & 7).saturating_add(ticks).min(7);
            ((tick + ticks).wrapping_sub(age) & 7) as u8
        });
        self.by_units(|units| {
            let words = &self.words[units.start as usize * WORDS_PER_UNIT..units.end as usize * WORDS_PER_UNIT];
            for word0 in words.chunks_exact(2).map(|pair| &pair[0]) {
                let slot = Slot { word0: word0.load(Ordering::Relaxed), word1: 0 };
                if !slot.is_empty() {
                    word0.store(slot.stamped(stamps[usize::from(slot.stamp())]).word0, Ordering::Relaxed);
                }
            }
        });
    }

    /// Copies a unit as an image wants it and says the highest LSN published in it.
    pub(crate) fn copy_unit(&self, unit: u32, out: &mut [u8]) -> Lsn {
        let state = self.units[unit as usize].state.lock();
        let words = &self.words[unit as usize * WORDS_PER_UNIT..][..WORDS_PER_UNIT];
        for (bytes, word) in out.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        state.lsn
    }

    /// Fills a unit from an image, before the store serves.
    pub(crate) fn load_unit(&self, unit: u32, lsn: Lsn, bytes: &[u8]) {
        let mut state = self.units[unit as usize].state.lock();
        let words = &self.words[unit as usize * WORDS_PER_UNIT + WORDS_PER_BUCKET..(unit as usize + 1) * WORDS_PER_UNIT];
        for (word, b) in words.iter().zip(bytes.chunks_exact(8).skip(WORDS_PER_BUCKET)) {
            let &[a, c, d, e, f, g, h, i] = b else { continue };
            let value = u64::from_le_bytes([a, c, d, e, f, g, h, i]);
            if value != 0 {
                word.store(value, Ordering::Relaxed);
            }
        }
        state.lsn = lsn;
    }
    /// The LSN that the key's unit covers.
    pub(crate) fn unit_lsn(&self, hash: &KeyHash) -> Lsn {
        self.units[self.address(hash).unit as usize].state.lock().lsn
    }

    /// Drops dead slots and counts the live ones, once all entries were replayed.
    pub(crate) fn recount(&self) {
        self.census.clear_counts();
        self.live.store(0, Ordering::Relaxed);
        self.by_units(|units| {
            let mut tallies = self.census.tallies();
            let mut live = 0;
            for index in units {
                let index = index as usize;
                let mut state = self.units[index].state.lock();
                state.live = 0;
                let words = &self.words[index * WORDS_PER_UNIT + WORDS_PER_BUCKET..(index + 1) * WORDS_PER_UNIT];
                for pair in words.chunks_exact(2) {
                    let slot = Slot { word0: pair[0].load(Ordering::Relaxed), word1: pair[1].load(Ordering::Relaxed) };
                    if slot.is_empty() {
                        continue;
                    }
                    if tallies.add(slot.vbn(), slot.stamp(), slot.class()) {
                        state.live += 1;
                    } else {
                        pair[0].store(0, Ordering::Relaxed);
                        pair[1].store(0, Ordering::Relaxed);
                    }
                }
                live += u64::from(state.live);
            }
            self.census.add_all(&tallies);
            self.live.fetch_add(live, Ordering::Relaxed);
        });
    }

    /// Has `work` done for all units, by as many threads as there are processors, while a store is opened.
    fn by_units(&self, work: impl Fn(Range<u32>) + Sync) {
        let units = self.units();
        let threads = available_parallelism().map_or(1, |n| n.get() as u32).min(units.div_ceil(UNITS_PER_THREAD_MIN)).max(1);
        let share = units.div_ceil(threads).max(1);
        std::thread::scope(|scope| {
            for start in (share..units).step_by(share as usize) {
                let work = &work;
                scope.spawn(move || work(start..(start + share).min(units)));
            }
            work(0..share.min(units));
        });
    }
}

/// A change of one unit: holds its lock, keeps its sequence odd, and the counters in step.
struct Edit<'a> {
    table: &'a Table,
    unit: u32,
    state: MutexGuard<'a, UnitState>,
}

impl<'a> Edit<'a> {
    fn new(table: &'a Table, unit: u32) -> Self {
        let this = &table.units[unit as usize];
        let state = this.state.lock();
        // Only the holder of the lock writes the sequence.
        let sequence = this.sequence.load(Ordering::Relaxed);
        this.sequence.store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        Self { table, unit, state }
    }

    /// The first slot with the address's fingerprint that `f` accepts.
    fn position(&self, address: Address, f: impl Fn(Slot) -> bool) -> Option<(u32, u32, Slot)> {
        for bucket in address.buckets() {
            for slot in 0..SLOTS_PER_BUCKET {
                let s = self.table.read(self.unit, bucket, slot);
                if !s.is_empty() && s.fingerprint() == address.fingerprint && f(s) {
                    return Some((bucket, slot, s));
                }
            }
        }
        None
    }

    fn free_slot(&self, bucket: u32) -> Option<u32> {
        (0..SLOTS_PER_BUCKET).find(|slot| {
            let s = self.table.read(self.unit, bucket, *slot);
            s.is_empty() || !self.table.census.is_live(s.vbn())
        })
    }

    /// A free slot in one of the address's buckets, moving others to their second bucket where need be.
    fn make_room(&mut self, address: Address) -> Option<(u32, u32)> {
        // Breadth first, so that the fewest slots move: (bucket, step that led here, slot of that step's bucket that would move).
        let mut steps: Vec<(u32, usize, u32)> = address.buckets().map(|b| (b, usize::MAX, 0)).to_vec();
        let mut next = 0;
        while let Some(&(bucket, ..)) = steps.get(next) {
            if let Some(mut free) = self.free_slot(bucket) {
                let mut at = next;
                loop {
                    let (bucket, from, slot) = steps[at];
                    if from == usize::MAX {
                        return Some((bucket, free));
                    }
                    let source = steps[from].0;
                    let moved = self.table.read(self.unit, source, slot);
                    self.store(bucket, free, moved);
                    self.store(source, slot, Slot::EMPTY);
                    self.table.relocations.fetch_add(1, Ordering::Relaxed);
                    (free, at) = (slot, from);
                }
            }
            if steps.len() < RELOCATION_BUCKETS_MAX {
                for slot in 0..SLOTS_PER_BUCKET {
                    let other = other_bucket(bucket, self.table.read(self.unit, bucket, slot).fingerprint());
                    if !steps.iter().any(|(b, ..)| *b == other) {
                        steps.push((other, next, slot));
                    }
                }
            }
            next += 1;
        }
        None
    }

    fn store(&self, bucket: u32, slot: u32, value: Slot) {
        let at = Table::word(self.unit, bucket, slot);
        self.table.words[at].store(value.word0, Ordering::Relaxed);
        self.table.words[at + 1].store(value.word1, Ordering::Relaxed);
    }

    /// Writes a slot and keeps the counters right.
    fn write(&mut self, bucket: u32, slot: u32, new: Slot) {
        let old = self.table.read(self.unit, bucket, slot);
        let census = &self.table.census;
        if !old.is_empty() && census.is_live(old.vbn()) {
            census.subtract(old.vbn(), old.stamp(), old.class());
            self.state.live = self.state.live.saturating_sub(1);
            self.table.live.fetch_sub(1, Ordering::Relaxed);
        }
        if !new.is_empty() {
            census.add(new.vbn(), new.stamp(), new.class());
            self.state.live += 1;
            self.table.live.fetch_add(1, Ordering::Relaxed);
        }
        self.store(bucket, slot, new);
    }
}

impl Drop for Edit<'_> {
    fn drop(&mut self) {
        let sequence = &self.table.units[self.unit as usize].sequence;
        sequence.store(sequence.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{engine::FormatOptions, format::layout::Layout, format::record::RecordKey, key::*, map::hasher::KeyHasher};

    fn fixture(units: u32) -> (Table, Arc<Census>, Layout) {
        let layout = Layout::plan(64 << 20, &FormatOptions { block_bytes: None, objects: None }).unwrap();
        let census = Arc::new(Census::new(layout.clone()));
        (Table::new(units, census.clone()).unwrap(), census, layout)
    }
    fn hash(n: u64) -> KeyHash {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&n.to_le_bytes());
        KeyHasher::new(&[4; 16]).hash(&RecordKey::Object(Key { space: KeySpace::Content, function: 1, hash }))
    }
    fn location(n: u64, vbn: Vbn, offset: u32) -> Location {
        Location { hash: hash(n), kind: SlotKind::Content, check: SizeCheck::of(n), place: Place::new(vbn, offset), extent_bytes: 100 }
    }

    #[test]
    fn every_insert_succeeds_up_to_the_load_of_a_full_unit() {
        let (table, census, layout) = fixture(4);
        let vbn = layout.next_vbn(0, Vbn::NONE).unwrap();
        census.set_tenant(0, vbn);
        let mut n = 0;
        let mut kept = Vec::new();
        while table.live() < table.slots() * 95 / 100 {
            if table.reserve(&hash(n), u64::MAX) {
                assert_ne!(table.put(&location(n, vbn, (n * 8) as u32), Lsn(n), 0), Placed::Full, "insert {n}");
                table.release(&hash(n));
                kept.push(n);
            }
            n += 1;
        }
        for n in kept {
            let hits = table.find(&hash(n), SlotKind::Content, Some(SizeCheck::of(n)));
            assert_eq!(hits.first().unwrap().place, Place::new(vbn, (n * 8) as u32));
        }
        assert_eq!(census.slots(0), table.live());
        assert!(table.relocations() > 0);
    }

    #[test]
    fn a_move_and_a_removal_take_effect_only_where_the_slot_still_says_the_old_place() {
        let (table, census, layout) = fixture(1);
        let [a, b] = [0, 1].map(|p| layout.next_vbn(p, Vbn::NONE).unwrap());
        census.set_tenant(0, a);
        census.set_tenant(1, b);
        table.put(&location(7, a, 4096), Lsn(1), 3);
        assert!(!table.relocate(&hash(7), Place::new(a, 8192), Place::new(b, 64), Lsn(2)));
        assert!(table.relocate(&hash(7), Place::new(a, 4096), Place::new(b, 64), Lsn(3)));
        let found = table.find(&hash(7), SlotKind::Content, None).first().unwrap();
        assert_eq!((found.place, found.stamp), (Place::new(b, 64), 3));
        assert_eq!((census.slots(0), census.slots(1)), (0, 1));
        assert!(!table.remove_untouched(found.address, found.place, 2));
        assert!(table.remove_untouched(found.address, found.place, 3));
        assert_eq!(table.live(), 0);
    }

    #[test]
    fn a_slot_whose_block_has_a_new_tenant_is_missing() {
        let (table, census, layout) = fixture(1);
        let first = layout.next_vbn(0, Vbn::NONE).unwrap();
        census.set_tenant(0, first);
        table.put(&location(7, first, 4096), Lsn(1), 0);
        census.set_tenant(0, layout.next_vbn(0, first).unwrap());
        assert!(table.find(&hash(7), SlotKind::Content, None).first().is_none());
        table.recount();
        assert_eq!(table.live(), 0);
    }

    #[test]
    fn a_unit_survives_its_image() {
        let (table, census, layout) = fixture(1);
        let vbn = layout.next_vbn(0, Vbn::NONE).unwrap();
        census.set_tenant(0, vbn);
        for n in 0..1000 {
            table.put(&location(n, vbn, (n * 8) as u32), Lsn(n + 1), (n % 8) as u8);
        }
        let mut bytes = vec![0; UNIT_BYTES];
        let lsn = table.copy_unit(0, &mut bytes);
        let copy = Table::new(1, census.clone()).unwrap();
        copy.load_unit(0, lsn, &bytes);
        copy.recount();
        assert_eq!((copy.live(), lsn), (1000, Lsn(1000)));
        for n in 0..1000 {
            assert_eq!(copy.find(&hash(n), SlotKind::Content, None).first(), table.find(&hash(n), SlotKind::Content, None).first());
        }
    }

    #[test]
    fn a_large_table_is_aged_and_counted_in_shares_as_it_would_be_whole() {
        let (table, census, layout) = fixture(3 * UNITS_PER_THREAD_MIN + 1);
        let [live, dead] = [0, 1].map(|p| layout.next_vbn(p, Vbn::NONE).unwrap());
        census.set_tenant(0, live);
        census.set_tenant(1, dead);
        let stamped = 40_000;
        for n in 0..stamped {
            table.put(&location(n, if n % 5 == 0 { dead } else { live }, (n % 1000 * 8) as u32), Lsn(n + 1), (n % 8) as u8);
        }
        census.set_tenant(1, Vbn::NONE);
        let mut expected = [0; STAMPS];
        for n in (0..stamped).filter(|n| n % 5 != 0) {
            let age = ((10u64.wrapping_sub(n % 8)) & 7) + 2;
            expected[((12 - age.min(7)) & 7) as usize] += 1;
        }
        table.age(10, 2);
        table.recount();
        assert_eq!((table.live(), census.tally(0).slots), (stamped * 4 / 5, expected));
        assert_eq!(census.slots(1), 0);
        let mut found = 0;
        table.for_each(|_| found += 1);
        assert_eq!(found, table.live(), "the dead ones are gone");
    }

    #[test]
    fn readers_beside_a_relocating_writer_never_miss_what_is_there() {
        let (table, census, layout) = fixture(1);
        let vbn = layout.next_vbn(0, Vbn::NONE).unwrap();
        census.set_tenant(0, vbn);
        let present: Vec<u64> = (0..2500).collect();
        present.iter().for_each(|n| assert_ne!(table.put(&location(*n, vbn, (n * 8) as u32), Lsn(*n), 0), Placed::Full));
        std::thread::scope(|scope| {
            scope.spawn(|| (3000..4300).for_each(|n| _ = table.put(&location(n, vbn, (n * 8) as u32), Lsn(n), 0)));
            for _ in 0..20 {
                for n in &present {
                    assert!(table.find(&hash(*n), SlotKind::Content, Some(SizeCheck::of(*n))).first().is_some(), "key {n}");
                }
            }
        });
    }
}
