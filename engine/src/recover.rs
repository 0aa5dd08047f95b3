//! Opening a store: from whatever the last run left behind to a map in which nothing is that is not on the device.
//!
//! Always true here: nothing is written before the store is known to be ours and whole; a higher epoch is durable before any other
//! write; voids are durable before anything is served; what no flush is known to cover is read from the medium, not from a cache
//! that may show what a failed flush lost. Recovering twice gives what recovering once gives.

pub(crate) mod scan;
mod verify;

use crate::{
    canary::{self, Canary},
    clock::tick_bytes,
    device::{AlignedBuf, Device, PAGE_BYTES},
    engine::OpenReport,
    error::OpenError,
    format::{
        block::BlockHead,
        crc::CrcMask,
        image::{BlockRow, BlockTable, UNIT_BYTES, check_unit},
        layout::Layout,
        log::{Entry, Location, PageHead},
        record::{Manifest, RecordKey},
        superblock::{FEATURE_ENCODED, ImageInForce, Superblock},
        types::{Epoch, KeyHash, Lsn, SlotKind, Vbn},
    },
    log_writer::{LogEnd, LogWriter},
    map::{census::Census, hasher::KeyHasher, table::Placed, table::Table},
    superblocks,
};
use futures::{StreamExt, future::try_join, stream};
use scan::{Accepted, RawPage, scan};
use std::{
    collections::{HashMap, HashSet},
    io,
    sync::Arc,
    time::Duration,
};
use verify::{Checked, Claim, Verified, Verifier};

/// Reads of block headers that are in flight at once.
const READS_MAX: usize = 32;
/// Runs of records that are read at once.
const RUNS_MAX: usize = 8;
/// Bytes of log and image that one read carries.
const READ_BYTES: usize = 1 << 20;
/// Entries of the log whose lines of the table are asked for together.
const WARMED_ENTRIES: usize = 64;
/// Log pages in a row that may be unreadable or foreign before the search for a later mark ends.
const GAP_PAGES_MAX: u64 = 1024;

/// How often a device that is still busy is looked at, and how many times.
const IDLE_LOOK: Duration = Duration::from_millis(10);
const IDLE_LOOKS_MAX: u32 = 1000;

/// A store that recovery made ready to go on.
pub(crate) struct Recovered {
    /// As it was found, but for the superblock, which is the one of this opening.
    pub(crate) state: State,
    pub(crate) end: LogEnd,
    pub(crate) durable: Lsn,
    pub(crate) log_tail: u64,
    pub(crate) report: OpenReport,
}

fn io_error(action: impl Into<String>) -> impl FnOnce(io::Error) -> OpenError {
    let action = action.into();
    move |source| OpenError::Io { action, source }
}

/// A store as it is on its device: what opening it starts from, and what offline tools look at.
pub(crate) struct State {
    pub(crate) superblock: Superblock,
    pub(crate) layout: Layout,
    pub(crate) mask: CrcMask,
    pub(crate) hasher: KeyHasher,
    pub(crate) census: Arc<Census>,
    pub(crate) table: Table,
    pub(crate) rows: Vec<BlockRow>,
    pub(crate) tick: u64,
    /// Where the replay of the log started.
    pub(crate) replay: ImageInForce,
    /// Whether the log still reaches back to the image before the one in force.
    pub(crate) previous_covered: bool,
    pub(crate) accepted: Accepted,
    /// Entries that nothing durable stands behind and that are not voided yet.
    pub(crate) voids: Vec<(Lsn, Lsn)>,
    /// Bytes of records whose entries counted although no flush is known to cover them.
    pub(crate) unflushed_bytes: u64,
    pub(crate) read_bytes: u64,
    pub(crate) damaged_units: u64,
    pub(crate) damaged_heads: u64,
}

/// The superblock in force of a store that can be opened here, the order in which the next one must be written, and what it states.
async fn identify(device: &dyn Device) -> Result<(Superblock, [usize; 4], Layout), OpenError> {
    let (superblock, order) = superblocks::read(device).await?;
    let layout = layout_on(device, &superblock)?;
    Ok((superblock, order, layout))
}

/// What a superblock states, if it can be so on this device, which may be larger than the store on it.
pub(crate) fn layout_on(device: &dyn Device, superblock: &Superblock) -> Result<Layout, OpenError> {
    let found = device.geometry().len_bytes / PAGE_BYTES as u64 * PAGE_BYTES as u64;
    if superblock.device_bytes > found {
        return Err(OpenError::Unusable(format!("it was formatted with {} bytes, but the device has {found}", superblock.device_bytes)));
    }
    if (superblock.device_index, superblock.device_count) != (0, 1) {
        let (index, count) = (superblock.device_index, superblock.device_count);
        return Err(OpenError::Unusable(format!("the device is number {index} of a set of {count}; this version opens sets of one")));
    }
    Layout::of(superblock).map_err(OpenError::Unusable)
}

/// Reads image and log into memory, and applies what counts. Writes nothing.
pub(crate) async fn load(device: &dyn Device, superblock: Superblock, layout: Layout) -> Result<State, OpenError> {
    let census = Arc::new(Census::new(layout.clone()));
    let table = Table::new(layout.table_units, census.clone()).map_err(io_error("reserve memory for the table"))?;
    let mask = CrcMask::new(&superblock.uuid);
    let hasher = KeyHasher::new(&superblock.hash_seed);
    let mut opening = Opening {
        device,
        superblock: &superblock,
        layout: &layout,
        mask: &mask,
        hasher: &hasher,
        census: &census,
        table: &table,
        read_bytes: 4 * PAGE_BYTES as u64,
        rows: Vec::new(),
        rows_lsn: Lsn(0),
        previous_covered: false,
        tick: 0,
        damaged_units: 0,
        damaged_heads: 0,
    };

    let heads = opening.read_block_heads().await;
    let replay = opening.load_image(&heads).await?;
    let raw = opening.read_log(replay.replay_page).await?;
    let pages: Vec<_> = raw.iter().map(|(number, bytes)| RawPage { number: *number, bytes: bytes.as_deref() }).collect();
    let accepted = scan(&mask, &pages, replay.replay_after, superblock.mark);
    drop(pages);
    drop(raw);
    let (voids, unflushed_bytes) = opening.replay(&accepted).await;
    opening.settle_blocks(&heads);
    table.recount();
    opening.free_empty_blocks();
    let Opening { previous_covered, read_bytes, rows, tick, damaged_units, damaged_heads, .. } = opening;
    Ok(State {
        superblock,
        layout,
        mask,
        hasher,
        census,
        table,
        rows,
        tick,
        replay,
        previous_covered,
        accepted,
        voids,
        unflushed_bytes,
        read_bytes,
        damaged_units,
        damaged_heads,
    })
}

/// Waits until nothing is under way on the device: a write of an earlier user, or of an opening that was given up, could land over
/// what this one writes.
async fn idle(device: &dyn Device) -> Result<(), OpenError> {
    for _ in 0..IDLE_LOOKS_MAX {
        if device.counters().in_flight == 0 {
            return Ok(());
        }
        let _ = device.read(0, AlignedBuf::take(PAGE_BYTES)).await;
        tokio::time::sleep(IDLE_LOOK).await;
    }
    Err(OpenError::Unusable(format!("operations of its last user did not end in {} s", (IDLE_LOOK * IDLE_LOOKS_MAX).as_secs())))
}

/// Opens the store on `device`.
pub(crate) async fn recover(device: &Arc<dyn Device>, encode: bool) -> Result<Recovered, OpenError> {
    let start = tokio::time::Instant::now();
    idle(&**device).await?;
    let (found, order, layout) = identify(&**device).await?;
    let clean = found.clean;
    let mut superblock = found.clone();
    superblock.sequence += 1;
    superblock.epoch.0 += u32::from(!canary::leaves_out(Canary::EpochRaised));
    superblock.clean = false;
    // Durable before anything is stored that needs it.
    superblock.incompatible |= if encode { FEATURE_ENCODED } else { 0 };
    // Its flush also waits for what the last run left unflushed, which may be much: meanwhile that is read.
    let written = async {
        // First, so that from here on the last two are found where the first two are lost, and no larger store that was here before.
        superblocks::point_to_end(&**device, &found).await.map_err(io_error("write where the store ends"))?;
        superblocks::write_all(&**device, &superblock, order).await.map_err(io_error("write superblocks"))
    };
    let ((), mut state) = try_join(written, load(&**device, found.clone(), layout)).await?;
    state.superblock = superblock;
    let mut log_tail = state.replay.replay_page;
    if state.previous_covered {
        log_tail = log_tail.min(state.superblock.previous_image.replay_page);
    }
    let (end, durable) = write_voids(&**device, &state, log_tail).await?;

    let report = OpenReport {
        clean,
        objects: state.table.live(),
        read_bytes: state.read_bytes,
        voided_entries: state.voids.iter().map(|(first, last)| last.0 - first.0 + 1).sum(),
        damaged_entries: state.accepted.damaged,
        elapsed: start.elapsed(),
    };
    Ok(Recovered { state, end, durable, log_tail, report })
}

/// Writes and flushes the voids, if there are any. Says where the log ends now, and what is durable.
async fn write_voids(device: &dyn Device, state: &State, log_tail: u64) -> Result<(LogEnd, Lsn), OpenError> {
    let State { superblock, layout, mask, accepted, voids, .. } = state;
    if voids.is_empty() || canary::leaves_out(Canary::VoidWritten) {
        return Ok((accepted.end, accepted.mark));
    }
    let mut log = LogWriter::new(mask.clone(), superblock.epoch, accepted.end);
    for (first, last) in voids {
        log.append(&Entry::Void { first: *first, last: *last });
    }
    if let Some(dirty) = log.take_dirty() {
        // Puts leave a sixteenth of the ring; only hundreds of crashes in a row, each within the writing of one image, could use it up.
        if log.end().page >= log_tail + layout.log_pages {
            return Err(OpenError::Unusable("the log has no room for the entries that recovery must write".into()));
        }
        for (page, bytes) in (dirty.first_page..).zip(dirty.bytes.chunks(PAGE_BYTES)) {
            let mut buf = AlignedBuf::zeroed(PAGE_BYTES);
            buf.copy_from_slice(bytes);
            device.write(layout.log_page_offset(page), buf).await.1.map_err(io_error("write voids to the log"))?;
        }
    }
    device.flush().await.map_err(io_error("flush voids"))?;
    Ok((log.end(), log.end().next.prev()))
}

struct Opening<'a> {
    device: &'a dyn Device,
    superblock: &'a Superblock,
    layout: &'a Layout,
    mask: &'a CrcMask,
    hasher: &'a KeyHasher,
    census: &'a Census,
    table: &'a Table,
    read_bytes: u64,
    rows: Vec<BlockRow>,
    rows_lsn: Lsn,
    /// Whether the log still reaches back to the image before the one in force.
    previous_covered: bool,
    tick: u64,
    damaged_units: u64,
    damaged_heads: u64,
}

impl Opening<'_> {
    async fn read(&mut self, offset: u64, bytes: usize) -> io::Result<AlignedBuf> {
        self.read_bytes += bytes as u64;
        let (buf, result) = self.device.read_stored(offset, AlignedBuf::take(bytes)).await;
        result.map(|()| buf)
    }

    async fn read_block_heads(&mut self) -> Vec<Option<BlockHead>> {
        let (device, layout, mask, uuid) = (self.device, self.layout, self.mask, &self.superblock.uuid);
        let reads = (0..layout.block_count).map(|physical| {
            let read = device.read_stored(layout.block_offset(physical), AlignedBuf::take(PAGE_BYTES));
            async move {
                let (page, result) = read.await;
                result.ok().and_then(|()| BlockHead::decode(mask, uuid, &page)).filter(|h| h.physical == physical)
            }
        });
        let heads = stream::iter(reads).buffered(READS_MAX).collect().await;
        self.read_bytes += u64::from(self.layout.block_count) * PAGE_BYTES as u64;
        heads
    }

    /// Loads block table and units of the image in force. Gives the image from which the log must be replayed.
    async fn load_image(&mut self, heads: &[Option<BlockHead>]) -> Result<ImageInForce, OpenError> {
        let (image, previous) = (self.superblock.image, self.superblock.previous_image);
        if image.number == 0 {
            self.rows = vec![BlockRow::default(); self.layout.block_count as usize];
            return Ok(ImageInForce { replay_page: 1, ..image });
        }
        self.previous_covered = self.covers(previous, image).await;
        let table = match self.read_block_table(image).await {
            Some(table) => table,
            None => {
                // Every block that has a header is taken to be full; what nothing leads to is reclaimed first.
                self.damaged_units += 1;
                let rows = heads
                    .iter()
                    .map(|h| h.map_or_else(BlockRow::default, |h| BlockRow { vbn: h.vbn, live: true, sealed: true, fill_bytes: 0 }));
                BlockTable { lsn: Lsn(0), tick: 0, rows: rows.collect() }
            }
        };
        self.tick = table.tick;
        self.start_from(table);
        let bad = self.load_units(image, None).await;
        if bad.is_empty() {
            return Ok(image);
        }
        self.damaged_units += bad.len() as u64;
        let still_bad = if self.previous_covered { self.load_units(previous, Some(&bad)).await } else { bad.clone() };
        tracing::warn!(damaged = bad.len(), lost = still_bad.len(), "units of the table's image are damaged");
        if still_bad.len() == bad.len() {
            return Ok(image);
        }
        // Replay goes through the time between the two images: with the tenants of the later one, what was moved since would seem dead
        // before it moves.
        if let Some(table) = self.read_block_table(previous).await {
            self.start_from(table);
        }
        Ok(previous)
    }

    fn start_from(&mut self, table: BlockTable) {
        (self.rows, self.rows_lsn) = (table.rows, table.lsn);
        for (physical, row) in (0..).zip(&self.rows) {
            self.census.set_tenant(physical, if row.live { row.vbn } else { Vbn::NONE });
        }
    }

    /// Whether the log reaches back to `previous`. It is released page by page from there on as soon as the image after `image` is
    /// begun, which no superblock says; but as long as the first page is there, all behind it are.
    async fn covers(&mut self, previous: ImageInForce, image: ImageInForce) -> bool {
        if previous.number == 0 || previous.number + 1 != image.number {
            return false;
        }
        let page = self.read(self.layout.log_page_offset(previous.replay_page), PAGE_BYTES).await;
        previous.replay_page == image.replay_page
            || page.is_ok_and(|page| PageHead::decode(self.mask, previous.replay_page, &page).is_some())
    }

    async fn read_block_table(&mut self, image: ImageInForce) -> Option<BlockTable> {
        let bytes = BlockTable::copy_bytes(self.layout.block_count) as usize;
        for copy in 0..2 {
            if let Ok(buf) = self.read(self.layout.block_table_offset(image.slot, copy), bytes).await
                && let Some(table) = BlockTable::decode(self.mask, image.number, self.layout.block_count, &buf[..bytes])
            {
                return Some(table);
            }
        }
        None
    }

    /// Loads all units of an image (or only those given) and says which are bad.
    async fn load_units(&mut self, image: ImageInForce, only: Option<&[u32]>) -> Vec<u32> {
        let units = self.layout.table_units;
        let per_read = (READ_BYTES / UNIT_BYTES) as u32;
        let runs: Vec<(u32, u32)> = match only {
            Some(only) => only.iter().map(|u| (*u, 1)).collect(),
            None => (0..units).step_by(per_read as usize).map(|first| (first, per_read.min(units - first))).collect(),
        };
        self.read_bytes += runs.iter().map(|(_, n)| u64::from(*n) * UNIT_BYTES as u64).sum::<u64>();
        let mut bad = Vec::new();
        let mut reads = stream::iter(runs.into_iter().map(|(first, n)| {
            let read = self.device.read(self.layout.image_unit_offset(image.slot, first), AlignedBuf::take(n as usize * UNIT_BYTES));
            async move { (first, n, read.await) }
        }))
        .buffered(8);
        while let Some((first, n, (buf, result))) = reads.next().await {
            for (unit, bytes) in (first..first + n).zip(buf.chunks_exact(UNIT_BYTES)) {
                match result.as_ref().ok().and_then(|()| check_unit(self.mask, image.number, unit, bytes)) {
                    Some(lsn) => self.table.load_unit(unit, lsn, bytes),
                    None => bad.push(unit),
                }
            }
        }
        bad
    }

    /// Reads the log from `first` on, as far as it can reach.
    async fn read_log(&mut self, first: u64) -> Result<Vec<(u64, Option<Vec<u8>>)>, OpenError> {
        let pages = self.layout.log_pages;
        let mut out: Vec<(u64, Option<Vec<u8>>)> = Vec::new();
        let mut gap = 0;
        let mut next = first;
        while next < first + pages && gap < GAP_PAGES_MAX {
            let n = ((READ_BYTES / PAGE_BYTES) as u64).min(first + pages - next).min(pages - next % pages);
            let offset = self.layout.log_page_offset(next);
            match self.read(offset, n as usize * PAGE_BYTES).await {
                Ok(buf) => {
                    for (number, bytes) in (next..).zip(buf.chunks_exact(PAGE_BYTES)).take(n as usize) {
                        let ours = PageHead::decode(self.mask, number, bytes).is_some();
                        gap = if ours { 0 } else { gap + 1 };
                        out.push((number, ours.then(|| bytes.to_vec())));
                    }
                }
                // Page by page, so that one bad sector costs one page.
                Err(_) => {
                    for number in next..next + n {
                        let page = self.read(self.layout.log_page_offset(number), PAGE_BYTES).await.ok().map(|b| b.to_vec());
                        let ours = page.as_ref().is_some_and(|b| PageHead::decode(self.mask, number, b).is_some());
                        gap = if ours { 0 } else { gap + 1 };
                        out.push((number, page.filter(|_| ours)));
                    }
                }
            }
            next += n;
        }
        Ok(out)
    }

    /// Applies what counts. Gives the ranges that must be voided, and the bytes of records that no flush is known to cover.
    async fn replay(&mut self, accepted: &Accepted) -> (Vec<(Lsn, Lsn)>, u64) {
        let mut void_ranges: Vec<(Lsn, Lsn)> = Vec::new();
        for (_, _, entry) in &accepted.entries {
            if let Entry::Void { first, last } = entry {
                void_ranges.push((*first, *last));
            }
        }
        void_ranges.sort_unstable();
        let voided = |lsn: Lsn| {
            let behind = void_ranges.partition_point(|(first, _)| *first <= lsn);
            void_ranges[..behind].iter().rev().take(64).any(|(_, last)| *last >= lsn) && !canary::leaves_out(Canary::VoidHonoured)
        };
        let mut new_voids = Vec::new();
        let mut manifests = HashMap::new();
        let mut unflushed_bytes = 0;
        let unsure: Vec<_> = accepted.entries.iter().filter(|(lsn, ..)| *lsn > accepted.mark && !voided(*lsn)).collect();
        let verifier = Verifier { device: self.device, layout: self.layout, mask: self.mask, hasher: self.hasher };
        let claims = unsure.iter().filter_map(|(lsn, epoch, entry)| match entry {
            Entry::Put(location) => Some(Claim { lsn: *lsn, location: *location, exact: Some((*epoch, *lsn)) }),
            Entry::Move { to, carries, .. } => Some(Claim { lsn: *lsn, location: *to, exact: *carries }),
            _ => None,
        });
        let (runs, impossible) = verifier.runs(claims.collect());
        new_voids.extend(impossible.iter().map(|claim| claim.lsn));
        let mut checks = stream::iter(runs.into_iter().map(|run| verifier.check(run))).buffered(RUNS_MAX);
        while let Some(Checked { claims, read_bytes }) = checks.next().await {
            self.read_bytes += read_bytes;
            for (Claim { lsn, location, .. }, verified) in claims {
                match verified {
                    Some(Verified { key, manifest }) => {
                        unflushed_bytes += u64::from(location.extent_bytes);
                        if let Some(manifest) = manifest {
                            manifests.insert(lsn, (key, manifest));
                        }
                    }
                    None => new_voids.push(lsn),
                }
            }
        }
        drop(checks);
        new_voids.extend(unsure.iter().filter(|(.., entry)| matches!(entry, Entry::BlockRetire { .. })).map(|(lsn, ..)| *lsn));
        let failed: HashSet<Lsn> = new_voids.iter().copied().collect();
        let counts = |lsn: Lsn| !voided(lsn) && !failed.contains(&lsn);
        // The clock goes on as these bytes were accepted; without it all of them would look as new as what is put next.
        let tick_bytes = tick_bytes(self.layout.capacity_bytes());
        let fresh = |entry: &Entry, lsn: Lsn| match entry {
            Entry::Put(location) if lsn > self.table.unit_lsn(&location.hash) => u64::from(location.extent_bytes),
            _ => 0,
        };
        let put_bytes: Vec<u64> =
            accepted.entries.iter().map(|(lsn, _, entry)| if counts(*lsn) { fresh(entry, *lsn) } else { 0 }).collect();
        let image_tick = self.tick;
        let last_tick = image_tick + put_bytes.iter().sum::<u64>() / tick_bytes;
        self.table.age(image_tick, last_tick - image_tick);
        let mut accepted_bytes = 0;
        for (entries, put_bytes) in accepted.entries.chunks(WARMED_ENTRIES).zip(put_bytes.chunks(WARMED_ENTRIES)) {
            self.warm(entries);
            for ((lsn, _, entry), bytes) in entries.iter().zip(put_bytes) {
                accepted_bytes += bytes;
                self.tick = (image_tick + accepted_bytes / tick_bytes).max(last_tick.saturating_sub(7));
                if !counts(*lsn) {
                    continue;
                }
                // All of its parts come before it. It must not replace a whole one first, and be found wanting then.
                if manifests.get(lsn).is_some_and(|(key, manifest)| !self.whole(key, manifest)) {
                    new_voids.push(*lsn);
                    continue;
                }
                self.apply(*lsn, entry);
            }
        }
        self.tick = last_tick;
        new_voids.sort_unstable();
        (merge(&new_voids), unflushed_bytes)
    }

    /// Whether every part of a large object is there.
    fn whole(&self, key: &RecordKey, manifest: &Manifest) -> bool {
        let RecordKey::Object(object) = *key else { return false };
        (0..manifest.stored_bytes.len() as u64).all(|index| {
            let part = self.hasher.hash(&RecordKey::Part { upload_id: manifest.upload_id, index, object });
            self.table.find(&part, SlotKind::Part, None).first().is_some()
        })
    }

    /// Asks for the lines of the table that these entries change, all at once: one after the other each would be waited for.
    fn warm(&self, entries: &[(Lsn, Epoch, Entry)]) {
        let lines = entries.iter().map(|(.., entry)| match entry {
            Entry::Put(Location { hash, .. }) | Entry::Move { to: Location { hash, .. }, .. } | Entry::Delete { hash, .. } => {
                self.table.prefetch(hash)
            }
            _ => 0,
        });
        std::hint::black_box(lines.fold(0, |all, line| all ^ line));
    }

    fn apply(&mut self, lsn: Lsn, entry: &Entry) {
        if let Entry::Put(Location { place, .. }) | Entry::Move { to: Location { place, .. }, .. } = entry {
            // What leads into a tenant says that it is there, also where the entry that opened the block is damaged.
            self.block(lsn, place.vbn, |row| if row.vbn < place.vbn { BlockRow::opened(place.vbn) } else { row });
        }
        let newer = |table: &Table, hash: &KeyHash| lsn > table.unit_lsn(hash) || canary::leaves_out(Canary::UnitLsnInReplay);
        match entry {
            Entry::Put(location) if newer(self.table, &location.hash) => {
                if self.put(location, lsn) == Placed::Full {
                    self.damaged_units += 1;
                }
                self.fill(location);
            }
            Entry::Put(location) => self.fill(location),
            Entry::Move { to, from, .. } => {
                if newer(self.table, &to.hash) {
                    let _ = self.table.relocate(&to.hash, *from, to.place, lsn)
                        || canary::leaves_out(Canary::MoveConditionInReplay) && self.put(to, lsn) != Placed::Full;
                }
                self.fill(to);
            }
            Entry::Delete { hash, from, .. } if newer(self.table, hash) => {
                self.table.remove(self.table.address(hash), *from, Some(lsn));
            }
            Entry::BlockOpen { vbn } => {
                self.block(lsn, *vbn, |_| BlockRow::opened(*vbn));
            }
            Entry::BlockSeal { vbn, fill_bytes } => {
                self.block(lsn, *vbn, |row| BlockRow {
                    sealed: row.sealed || row.vbn == *vbn,
                    fill_bytes: row.fill_bytes.max(*fill_bytes),
                    ..row
                });
            }
            Entry::BlockRetire { vbn } => self.block(lsn, *vbn, |row| BlockRow { live: row.live && row.vbn != *vbn, ..row }),
            Entry::Delete { .. } | Entry::Void { .. } | Entry::Durable { .. } => {}
        }
    }

    fn put(&self, location: &Location, lsn: Lsn) -> Placed {
        if location.kind == SlotKind::Named
            && canary::leaves_out(Canary::LastPutWins)
            && let Some(first) = self.table.find(&location.hash, location.kind, None).first()
        {
            return Placed::Replaced(first.place);
        }
        self.table.put(location, lsn, (self.tick & 7) as u8)
    }

    fn fill(&mut self, location: &Location) {
        let end = location.place.offset_bytes() + u64::from(location.extent_bytes);
        let row = self.layout.physical(location.place.vbn).and_then(|p| self.rows.get_mut(p as usize));
        if let Some(row) = row.filter(|r| r.vbn == location.place.vbn) {
            row.fill_bytes = row.fill_bytes.max(u32::try_from(end).unwrap_or(u32::MAX));
        }
    }

    fn block(&mut self, lsn: Lsn, vbn: Vbn, change: impl FnOnce(BlockRow) -> BlockRow) {
        let Some(physical) = self.layout.physical(vbn) else { return };
        if lsn <= self.rows_lsn {
            return;
        }
        if let Some(row) = self.rows.get_mut(physical as usize) {
            *row = change(*row);
            self.census.set_tenant(physical, if row.live { row.vbn } else { Vbn::NONE });
        }
    }

    /// A newer tenant in a block's own header wins over whatever the log, damaged, failed to say.
    fn settle_blocks(&mut self, heads: &[Option<BlockHead>]) {
        for (physical, (row, head)) in (0..).zip(self.rows.iter_mut().zip(heads)) {
            match head {
                Some(head) if head.vbn > row.vbn => {
                    *row = BlockRow { vbn: head.vbn, live: true, sealed: true, fill_bytes: 0 };
                    self.census.set_tenant(physical, head.vbn);
                }
                None if row.live => self.damaged_heads += 1,
                _ => {}
            }
        }
    }

    /// Blocks that were opened and not yet written are free; one that is open goes on at the next page.
    fn free_empty_blocks(&mut self) {
        for (physical, row) in (0..).zip(self.rows.iter_mut()) {
            if row.live && row.fill_bytes <= PAGE_BYTES as u32 && self.census.slots(physical) == 0 {
                row.live = false;
                self.census.set_tenant(physical, Vbn::NONE);
            }
            row.fill_bytes = row.fill_bytes.next_multiple_of(PAGE_BYTES as u32);
            if u64::from(row.fill_bytes) + 2 * PAGE_BYTES as u64 > self.layout.block_bytes {
                row.sealed = true;
            }
        }
    }
}

fn merge(sorted: &[Lsn]) -> Vec<(Lsn, Lsn)> {
    let mut out: Vec<(Lsn, Lsn)> = Vec::new();
    for lsn in sorted {
        match out.last_mut() {
            Some((_, last)) if lsn.0 <= last.0 + 1 => *last = *lsn,
            _ => out.push((*lsn, *lsn)),
        }
    }
    out
}

const _: () = assert!(READ_BYTES.is_multiple_of(PAGE_BYTES) && READ_BYTES.is_multiple_of(UNIT_BYTES));
