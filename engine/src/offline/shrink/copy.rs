//! Emptying blocks of a store that is not opened, by copying what is kept into free ones.
//!
//! Always true here: a record is copied only if every byte of it passed its checksum, and only into a block that nothing leads to in
//! the state in force; the block's header, with a tenant that it never had, is durable before anything is copied into it. So what is
//! in force stays whole until the next state is.

use super::{
    super::{OfflineStore, PAGE, fresh::io_error},
    holdings::{Choice, Holdings, aligned, damaged_record},
};
use crate::{
    device::{AlignedBuf, PAGE_BYTES},
    error::OpenError,
    format::{
        block::BlockHead,
        image::BlockRow,
        record::RecordHead,
        types::{Lsn, Place, Vbn},
    },
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::sync::Arc;

/// Bytes that are copied with one write, about, and with one read.
const COPY_BYTES: u64 = 1 << 20;
/// Reads in flight at once.
const READS_MAX: usize = 8;
/// Blocks beyond the end of the smaller store that are filled at once to make room before it.
const LENT_BLOCKS_MAX: usize = 4;

/// Where copies go on.
struct Tail {
    physical: u32,
    vbn: Vbn,
    end: u64,
}

/// The blocks of a store while it is being emptied from the end.
pub(super) struct Copier<'a> {
    store: &'a Arc<OfflineStore>,
    holdings: &'a mut Holdings,
    choice: &'a Choice,
    pub(super) rows: Vec<BlockRow>,
    /// Records that are kept and lie in each block, as indices into the holdings.
    in_block: Vec<Vec<u32>>,
    tail: Option<Tail>,
    blocks: u32,
    pub(super) copied_records: u64,
    pub(super) copied_bytes: u64,
}

struct Copied {
    record: u32,
    head: RecordHead,
    payload: Bytes,
}

impl<'a> Copier<'a> {
    /// Takes what is not kept out of the table, and frees the blocks to which nothing leads any more.
    pub(super) fn new(store: &'a Arc<OfflineStore>, holdings: &'a mut Holdings, choice: &'a Choice, blocks: u32) -> Self {
        let table = &store.state.table;
        let mut in_block: Vec<Vec<u32>> = Vec::new();
        for physical in 0..store.block_count() {
            let mut kept = Vec::new();
            for at in holdings.of_block(physical) {
                let Some(held) = holdings.records.get(at) else { continue };
                match choice.keeps(held) {
                    true => kept.push(at as u32),
                    false => {
                        table.remove(table.address(&held.location.hash), held.location.place, None);
                    }
                }
            }
            in_block.push(kept);
        }
        let mut copier = Self {
            store,
            holdings,
            choice,
            rows: store.state.rows.clone(),
            in_block,
            tail: None,
            blocks,
            copied_records: 0,
            copied_bytes: 0,
        };
        copier.free_empty();
        copier
    }

    fn free_empty(&mut self) {
        for (physical, (row, kept)) in (0u32..).zip(self.rows.iter_mut().zip(&self.in_block)) {
            if kept.is_empty() {
                row.live = false;
                self.store.state.census.set_tenant(physical, Vbn::NONE);
            }
        }
        self.store.state.table.recount();
    }

    /// Blocks that must be emptied: those that do not stay, with the emptiest first, and then those behind the end.
    fn sources(&self) -> Vec<u32> {
        let mut sources: Vec<(bool, usize, u32)> = (0u32..)
            .zip(self.in_block.iter().zip(&self.choice.stays))
            .filter(|(physical, (kept, stays))| !kept.is_empty() && !**stays && !self.is_copy(*physical))
            .map(|(physical, (kept, _))| (physical >= self.blocks, kept.len(), physical))
            .collect();
        sources.sort_unstable();
        sources.into_iter().map(|(.., physical)| physical).collect()
    }

    /// Whether a block below the end was filled with copies.
    fn is_copy(&self, physical: u32) -> bool {
        let tenant = |rows: &[BlockRow]| rows.get(physical as usize).map(|row| row.vbn);
        physical < self.blocks && tenant(&self.rows) != tenant(&self.store.state.rows)
    }

    /// Copies as much as there is room for in blocks that are free now. False: there was nothing to copy.
    ///
    /// # Errors
    /// No block is free, a record is damaged, or the device fails.
    pub(super) async fn round(&mut self, progress: &mut impl FnMut(u64)) -> Result<bool, OpenError> {
        let sources = self.sources();
        if sources.is_empty() {
            return Ok(false);
        }
        let free = |rows: &[BlockRow], below: bool| -> Vec<u32> {
            let blocks = self.blocks;
            (0u32..).zip(rows).filter(|(physical, row)| !row.live && (*physical < blocks) == below).map(|(physical, _)| physical).collect()
        };
        let mut targets = free(&self.rows, true);
        if targets.is_empty() && self.tail.is_none() {
            // Everything before the end is in use: blocks behind it are lent, so that one before it becomes free.
            targets = free(&self.rows, false);
            targets.truncate(LENT_BLOCKS_MAX);
        }
        if targets.is_empty() && self.tail.is_none() {
            return Err(OpenError::Unusable(
                "no block is free to copy into: let a server open and close the store once, which frees some".into(),
            ));
        }
        targets.reverse();
        let mut moved: Vec<(u32, Place)> = Vec::new();
        'sources: for source in sources {
            let records = self.in_block.get(source as usize).cloned().unwrap_or_default();
            let mut batch: Vec<Copied> = Vec::new();
            let mut batch_bytes = 0;
            let store = self.store.clone();
            let groups = self.groups(source, &records);
            let mut reads = stream::iter(groups.into_iter().map(|group| read(store.clone(), source, group))).buffered(READS_MAX);
            loop {
                let next = reads.next().await;
                let end = next.is_none();
                if let Some(copies) = next {
                    for copied in copies? {
                        batch_bytes += copied.head.shape().extent_bytes as u64;
                        batch.push(copied);
                    }
                }
                if end || batch_bytes >= COPY_BYTES {
                    progress(batch_bytes);
                    batch_bytes = 0;
                    if !self.write(std::mem::take(&mut batch), &mut targets, &mut moved).await? {
                        break 'sources;
                    }
                }
                if end {
                    break;
                }
            }
        }
        self.apply(&moved);
        if self.tail.as_ref().is_some_and(|tail| tail.physical >= self.blocks) {
            self.tail = None;
        }
        match moved.is_empty() {
            true => Err(OpenError::Unusable("the free blocks have no room for what must be copied: shrink by less, or drop more".into())),
            false => Ok(true),
        }
    }

    /// Records that one read brings.
    fn groups(&self, source: u32, records: &[u32]) -> Vec<Vec<(u32, Place, u64)>> {
        let mut groups: Vec<Vec<(u32, Place, u64)>> = Vec::new();
        let mut start = 0;
        for at in records {
            let Some(held) = self.holdings.records.get(*at as usize) else { continue };
            debug_assert_eq!(self.store.state.layout.physical(held.location.place.vbn), Some(source));
            let place = held.location.place;
            let bytes = u64::from(held.location.extent_bytes);
            match groups.last_mut().filter(|_| place.offset_bytes() + bytes - start <= COPY_BYTES) {
                Some(group) => group.push((*at, place, bytes)),
                None => {
                    start = place.offset_bytes();
                    groups.push(vec![(*at, place, bytes)]);
                }
            }
        }
        groups
    }

    /// Writes copies, and notes where. False: there was no room for all of them.
    async fn write(&mut self, batch: Vec<Copied>, targets: &mut Vec<u32>, moved: &mut Vec<(u32, Place)>) -> Result<bool, OpenError> {
        let state = &self.store.state;
        let block_bytes = state.layout.block_bytes;
        let mut batch = batch.into_iter().peekable();
        while let Some(first) = batch.peek() {
            let extent = first.head.shape().extent_bytes as u64;
            let fits = |tail: &Tail| aligned(tail.end, extent as u32) + extent <= block_bytes;
            if !self.tail.as_ref().is_some_and(fits) {
                let Some(physical) = targets.pop() else { return Ok(false) };
                self.open(physical).await?;
            }
            let Some(tail) = &mut self.tail else { return Ok(false) };
            let (start, mut at) = (tail.end, tail.end);
            let mut placed = Vec::new();
            while let Some(copied) = batch.next_if(|copied| {
                let extent = copied.head.shape().extent_bytes as u64;
                aligned(at, extent as u32) + extent <= block_bytes
            }) {
                let extent = copied.head.shape().extent_bytes as u64;
                let offset = aligned(at, extent as u32);
                at = offset + extent;
                placed.push((offset, copied));
            }
            let end = at.next_multiple_of(PAGE);
            let mut buf = AlignedBuf::zeroed((end - start) as usize);
            for (offset, copied) in placed {
                let place = Place::new(tail.vbn, offset as u32);
                let shape = copied.head.shape();
                let from = (offset - start) as usize;
                if let Some(out) = buf.get_mut(from..from + shape.extent_bytes) {
                    copied.head.encode(&state.mask, place, out);
                    if let Some(payload) = out.get_mut(shape.payload_offset..shape.payload_offset + shape.payload_bytes) {
                        payload.copy_from_slice(&copied.payload);
                    }
                }
                self.copied_records += 1;
                self.copied_bytes += shape.extent_bytes as u64;
                moved.push((copied.record, place));
            }
            let offset = state.layout.block_offset(tail.physical) + start;
            tail.end = end;
            if let Some(row) = self.rows.get_mut(tail.physical as usize) {
                row.fill_bytes = u32::try_from(at).unwrap_or(u32::MAX);
            }
            self.store.device.write(offset, buf).await.1.map_err(io_error("write copied records"))?;
        }
        Ok(true)
    }

    /// Gives a free block a new tenant and makes that durable.
    async fn open(&mut self, physical: u32) -> Result<(), OpenError> {
        let state = &self.store.state;
        let vbn = self.rows.get(physical as usize).and_then(|row| state.layout.next_vbn(physical, row.vbn));
        let vbn = vbn.ok_or_else(|| OpenError::Unusable(format!("the numbers of block {physical} are used up: use export and import")))?;
        let mut page = AlignedBuf::zeroed(PAGE_BYTES);
        let lsn: Lsn = state.accepted.end.next.prev();
        BlockHead { vbn, physical, lsn }.encode(&state.mask, &state.superblock.uuid, &mut page);
        let device = &self.store.device;
        device.write(state.layout.block_offset(physical), page).await.1.map_err(io_error("write block header"))?;
        device.flush().await.map_err(io_error("flush block header"))?;
        if let Some(row) = self.rows.get_mut(physical as usize) {
            *row = BlockRow { vbn, live: true, sealed: true, fill_bytes: PAGE as u32 };
        }
        state.census.set_tenant(physical, vbn);
        self.tail = Some(Tail { physical, vbn, end: PAGE });
        Ok(())
    }

    /// Slots lead to the copies from now on; what was emptied is free.
    fn apply(&mut self, moved: &[(u32, Place)]) {
        let (table, layout) = (&self.store.state.table, &self.store.state.layout);
        let mut left: Vec<u32> = Vec::new();
        for (record, to) in moved {
            let Some(held) = self.holdings.records.get_mut(*record as usize) else { continue };
            let from = held.location.place;
            table.relocate(&held.location.hash, from, *to, Lsn(0));
            held.location.place = *to;
            left.extend(layout.physical(from.vbn));
            if let Some(there) = layout.physical(to.vbn).and_then(|physical| self.in_block.get_mut(physical as usize)) {
                there.push(*record);
            }
        }
        left.sort_unstable();
        left.dedup();
        for physical in left {
            let records = &self.holdings.records;
            if let Some(kept) = self.in_block.get_mut(physical as usize) {
                let still = |at: &u32| {
                    let place = records.get(*at as usize).map(|held| held.location.place);
                    place.and_then(|place| layout.physical(place.vbn)) == Some(physical)
                };
                kept.retain(still);
            }
        }
        self.free_empty();
    }
}

/// Reads some records that lie close together.
async fn read(store: Arc<OfflineStore>, source: u32, group: Vec<(u32, Place, u64)>) -> Result<Vec<Copied>, OpenError> {
    let (Some((_, first, _)), Some((_, last, bytes))) = (group.first(), group.last()) else { return Ok(Vec::new()) };
    let start = first.offset_bytes();
    let at = store.state.layout.block_offset(source) + start;
    let whole = store.at(*first, last.offset_bytes() + bytes - start).await.map_err(|_| damaged_record(at))?;
    let mut out = Vec::with_capacity(group.len());
    for (record, place, _) in group {
        let offset_bytes = store.state.layout.block_offset(source) + place.offset_bytes();
        let skip = (place.offset_bytes() - start) as usize;
        let bytes = whole.slice(skip.min(whole.len())..);
        let (head, payload) = store.verified(place, &bytes).map_err(|_| damaged_record(offset_bytes))?;
        out.push(Copied { record, head, payload });
    }
    Ok(out)
}
