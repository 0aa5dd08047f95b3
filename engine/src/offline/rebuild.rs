//! Making the map from the blocks alone, where log and images are gone.
//!
//! Always true here: a record counts only if all of it passes its checksums. Of a content key any whole record will do, and a large
//! object counts only with all of its parts. Of a named key the last acknowledged record wins: the highest (epoch, LSN) in a head,
//! which carrying forward keeps; a tombstone that wins leaves nothing. Nothing of the store is changed before the new image is whole, but
//! for headers of blocks, which say what they said.
//!
//! What cannot be known without the log: a put that was never acknowledged counts if it was written whole; a name whose tombstone was
//! reclaimed may return with an older value; what reclaim dropped comes back while its block was not used again.

use super::{
    PAGE, Trust, choose,
    fresh::{Fresh, beyond, io_error, point_to_end},
    walk::{Walked, Walker},
};
use crate::{
    clock::tick_bytes,
    device::{AlignedBuf, Device, PAGE_BYTES},
    error::OpenError,
    format::{
        block::BlockHead,
        crc::CrcMask,
        image::BlockRow,
        layout::{CARRY_BLOCKS, LOAD_MAX_PERCENT, Layout},
        log::{Location, PageHead, UNITS_PER_PAGE},
        record::{Manifest, RecordHead, RecordKey, RecordKind},
        types::{Epoch, KeyHash, Lsn, Place, SizeCheck, SlotKind, Vbn},
    },
    map::{
        census::Census,
        hasher::KeyHasher,
        table::{Placed, Table},
    },
    recover::layout_on,
    superblocks,
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// Bytes of the log that one read carries.
const LOG_READ_BYTES: u64 = 1 << 20;
/// The age clock of a rebuilt store stands here: every age up to 7 has a stamp.
const TICK: u64 = 8;
/// Blocks that must be free, so that reclaim can copy and puts can go on.
const FREE_BLOCKS_MIN: usize = CARRY_BLOCKS as usize + 1;

/// What a rebuild found and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RebuildReport {
    /// Blocks that were read.
    pub blocks: u64,
    /// Blocks with a damaged header whose tenant their first record told.
    pub headers_restored: u64,
    /// Blocks with something in them whose tenant nothing told: what they hold is lost.
    pub blocks_lost: u64,
    /// Whole records, earlier versions of names and earlier copies among them.
    pub records: u64,
    /// Pages that the device could not read.
    pub unreadable_pages: u64,
    /// Objects of one record under content keys that are in the new map.
    pub contents: u64,
    /// Large objects in it.
    pub large_objects: u64,
    /// Named keys in it.
    pub named: u64,
    /// Large objects left out because parts of them are gone.
    pub incomplete_objects: u64,
    /// Named keys left out because the last word on them was a deletion.
    pub deleted: u64,
    /// Objects left out because the table has no room for them.
    pub over_table: u64,
    /// Blocks left out, with what is in them, so that the store has room to go on.
    pub blocks_left_out: u64,
    /// Objects, values and parts that were left out with them.
    pub left_out_with_blocks: u64,
}

/// The last word on a named key so far.
#[derive(Clone, Copy)]
struct Last {
    at: (Epoch, Lsn),
    /// `None`: deleted.
    location: Option<Location>,
}

struct Large {
    at: (Epoch, Lsn),
    location: Location,
    object: crate::key::Key,
    manifest: Manifest,
}

/// What all blocks together hold.
#[derive(Default)]
struct Found {
    named: HashMap<(KeyHash, [u8; 32]), Last>,
    large: Vec<Large>,
    parts: Vec<([u8; 16], Location)>,
    highest: (Epoch, Lsn),
}

struct Block {
    head: Option<BlockHead>,
    vbn: Vbn,
    walked: Walked,
}

/// Reads every block of the store on a device and puts a new map in force, with an empty log. `progress` hears the bytes read.
///
/// # Errors
/// No superblock is whole, or the device fails.
pub async fn rebuild(device: &Arc<dyn Device>, mut progress: impl FnMut(u64)) -> Result<RebuildReport, OpenError> {
    let copies = superblocks::read_copies(&**device).await?;
    let (mut superblock, order, _) = choose(&copies, Trust::One)?;
    let layout = layout_on(&**device, &superblock)?;
    let (mask, hasher) = (CrcMask::new(&superblock.uuid), KeyHasher::new(&superblock.hash_seed));
    let mut report = RebuildReport::default();
    let walker = Walker { device: &**device, layout: &layout, mask: &mask };

    let mut blocks = Vec::with_capacity(layout.block_count as usize);
    for physical in 0..layout.block_count {
        let (page, result) = device.read(layout.block_offset(physical), AlignedBuf::take(PAGE_BYTES)).await;
        let head = result.ok().and_then(|()| BlockHead::decode(&mask, &superblock.uuid, &page)).filter(|h| h.physical == physical);
        let blank = head.is_none() && page.iter().all(|byte| *byte == 0);
        blocks.push((head, blank));
    }
    let generations = blocks.iter().flat_map(|(head, _)| head).map(|head| head.vbn.0 / layout.vbn_stride).max().unwrap_or(0);

    let census = Arc::new(Census::new(layout.clone()));
    let table = Table::new(layout.table_units, census.clone()).map_err(io_error("reserve memory for the table"))?;
    let mut found = Found::default();
    let mut rows: Vec<Block> = Vec::with_capacity(blocks.len());
    // Contents go straight into the table: which copy of one counts does not matter.
    let slots_max = table.slots() * LOAD_MAX_PERCENT / 100;
    let mut contents = 0u64;
    for (physical, (head, blank)) in (0u32..).zip(blocks) {
        let told = match head {
            Some(head) => Some(head.vbn),
            None if blank => None,
            // One more than the latest header that is left may be what this one said.
            None => walker.tenant(physical, generations + 1).await,
        };
        report.headers_restored += u64::from(head.is_none() && told.is_some());
        report.blocks_lost += u64::from(head.is_none() && told.is_none() && !blank);
        // A tenant that nothing tells must still not get its number again.
        let next = (generations + 2).checked_mul(layout.vbn_stride).map_or(Vbn::NONE, |base| Vbn(base + physical));
        let vbn = told.unwrap_or(if blank { Vbn::NONE } else { next });
        let mut walked = Walked::default();
        if let Some(vbn) = told {
            census.set_tenant(physical, vbn);
            walked = walker
                .block(physical, vbn, |place, head, payload| {
                    found.highest = found.highest.max((head.epoch, head.lsn));
                    let location = location(&hasher, place, head);
                    match (head.kind, head.key) {
                        (RecordKind::Content, _) => match table.live() < slots_max {
                            true => match table.put(&location, Lsn(0), 0) {
                                Placed::Inserted => contents += 1,
                                Placed::Replaced(_) => {}
                                Placed::Full => report.over_table += 1,
                            },
                            false => report.over_table += u64::from(!there(&table, &location)),
                        },
                        (RecordKind::Named | RecordKind::Tombstone, RecordKey::Object(key)) => {
                            let at = (head.epoch, head.lsn);
                            let last = Last { at, location: (head.kind == RecordKind::Named).then_some(location) };
                            let entry = found.named.entry((location.hash, key.hash)).or_insert(last);
                            // A copy of the same record: one place is as good as the other.
                            if entry.at <= at {
                                *entry = last;
                            }
                        }
                        (RecordKind::Manifest, RecordKey::Object(object)) => {
                            if let Some(manifest) = Manifest::decode(payload, head.logical_bytes) {
                                found.large.push(Large { at: (head.epoch, head.lsn), location, object, manifest });
                            }
                        }
                        (RecordKind::Part, RecordKey::Part { upload_id, .. }) => found.parts.push((upload_id, location)),
                        _ => {}
                    }
                })
                .await;
        }
        report.blocks += 1;
        report.records += walked.records;
        report.unreadable_pages += walked.unreadable_pages;
        progress(layout.block_bytes);
        rows.push(Block { head, vbn, walked });
    }
    report.contents = contents;
    place_large(&mut report, &table, &hasher, &mut found, slots_max);
    for last in found.named.values() {
        match last.location {
            None => report.deleted += 1,
            Some(location) if table.live() < slots_max && table.put(&location, Lsn(0), 0) != Placed::Full => report.named += 1,
            Some(_) => report.over_table += 1,
        }
    }
    table.recount();
    leave_blocks_out(&mut report, &layout, &census, &table, &rows);
    if report.blocks_left_out > 0 {
        drop_incomplete(&mut report, &table, &hasher, &found);
        table.recount();
    }

    let log = end_of_log(&**device, &layout, &mask).await;
    let opened = rows.iter().filter_map(|row| row.head).map(|head| head.lsn).max().unwrap_or_default();
    let lsn = [superblock.mark, superblock.image.replay_after, found.highest.1, opened, log.lsn].into_iter().max().unwrap_or_default();
    let page = superblock.image.replay_page.max(log.page);
    let (after, page) = beyond(lsn, page, layout.log_pages);
    superblock.epoch = superblock.epoch.max(found.highest.0).max(log.epoch);
    superblock.epoch.0 += 1;

    point_to_end(&**device, &superblock).await?;
    let stamps = stamps(&layout, &rows);
    table.restamp_by_place(|place| layout.physical(place.vbn).and_then(|physical| stamps.get(physical as usize)).copied());
    for (physical, row) in (0u32..).zip(&rows).filter(|(_, row)| row.head.is_none() && row.walked.records > 0) {
        let mut page = AlignedBuf::zeroed(PAGE_BYTES);
        BlockHead { vbn: row.vbn, physical, lsn: Lsn(0) }.encode(&mask, &superblock.uuid, &mut page);
        device.write(layout.block_offset(physical), page).await.1.map_err(io_error("write block header"))?;
    }
    let new_rows: Vec<BlockRow> = (0u32..)
        .zip(&rows)
        .map(|(physical, row)| BlockRow {
            vbn: row.vbn,
            live: census.is_live(row.vbn) && census.slots(physical) > 0,
            sealed: true,
            fill_bytes: u32::try_from(row.walked.end_bytes.max(PAGE)).unwrap_or(u32::MAX),
        })
        .collect();
    let fresh = Fresh {
        device: &**device,
        superblock,
        layout: &layout,
        mask: &mask,
        table: &table,
        rows: new_rows,
        tick: TICK,
        after,
        page,
        order,
    };
    fresh.put_in_force().await?;
    Ok(report)
}

fn location(hasher: &KeyHasher, place: Place, head: &RecordHead) -> Location {
    Location {
        hash: hasher.hash(&head.key),
        kind: head.kind.slot().unwrap_or(SlotKind::Named),
        check: SizeCheck::of(head.logical_bytes),
        place,
        extent_bytes: head.shape().extent_bytes as u32,
    }
}

fn there(table: &Table, location: &Location) -> bool {
    table.find(&location.hash, location.kind, Some(location.check)).first().is_some()
}

/// Large objects of which every part is there, with their parts.
fn place_large(report: &mut RebuildReport, table: &Table, hasher: &KeyHasher, found: &mut Found, slots_max: u64) {
    let parts: HashSet<KeyHash> = found.parts.iter().map(|(_, location)| location.hash).collect();
    // The last upload of an object first: of several that are whole one is enough.
    found.large.sort_unstable_by_key(|large| std::cmp::Reverse(large.at));
    let mut kept: HashSet<[u8; 16]> = HashSet::new();
    let mut whole: HashMap<crate::key::Key, [u8; 16]> = HashMap::new();
    let mut broken: HashSet<crate::key::Key> = HashSet::new();
    for Large { location, object, manifest, .. } in &found.large {
        // Copies of one manifest are of one upload.
        if whole.get(object).is_some_and(|upload| *upload != manifest.upload_id) || there(table, location) && !whole.contains_key(object) {
            continue;
        }
        let key = |index| RecordKey::Part { upload_id: manifest.upload_id, index, object: *object };
        let count = manifest.stored_bytes.len() as u64;
        if !(0..count).all(|index| parts.contains(&hasher.hash(&key(index)))) {
            broken.insert(*object);
            continue;
        }
        if whole.contains_key(object) {
            continue;
        }
        if table.live() + count >= slots_max || table.put(location, Lsn(0), 0) == Placed::Full {
            report.over_table += 1;
            continue;
        }
        whole.insert(*object, manifest.upload_id);
        kept.insert(manifest.upload_id);
        report.large_objects += 1;
    }
    report.incomplete_objects = broken.iter().filter(|object| !whole.contains_key(*object)).count() as u64;
    for (_, location) in found.parts.iter().filter(|(upload, _)| kept.contains(upload)) {
        if table.put(location, Lsn(0), 0) == Placed::Full {
            report.over_table += 1;
        }
    }
}

/// Large objects that lost parts with a block are none.
fn drop_incomplete(report: &mut RebuildReport, table: &Table, hasher: &KeyHasher, found: &Found) {
    for Large { location, object, manifest, .. } in &found.large {
        let part = |index| hasher.hash(&RecordKey::Part { upload_id: manifest.upload_id, index, object: *object });
        let whole = (0..manifest.stored_bytes.len() as u64).all(|index| table.find(&part(index), SlotKind::Part, None).first().is_some());
        if !whole && table.remove(table.address(&location.hash), location.place, None) {
            report.large_objects = report.large_objects.saturating_sub(1);
            report.left_out_with_blocks += 1;
        }
    }
}

/// Leaves out those blocks to which the least leads, until enough are free.
fn leave_blocks_out(report: &mut RebuildReport, layout: &Layout, census: &Census, table: &Table, rows: &[Block]) {
    let mut used: Vec<(u64, u32)> = (0..layout.block_count)
        .map(|physical| (census.tally(physical).bytes.iter().sum::<u64>(), physical))
        .filter(|(bytes, _)| *bytes > 0)
        .collect();
    let free = rows.len() - used.len();
    used.sort_unstable();
    for (_, physical) in used.into_iter().take(FREE_BLOCKS_MIN.saturating_sub(free)) {
        report.blocks_left_out += 1;
        report.left_out_with_blocks += census.slots(physical);
        census.set_tenant(physical, Vbn::NONE);
    }
    table.recount();
}

/// A stamp for each block: nobody knows what was wanted when, so what was opened last counts as the youngest.
fn stamps(layout: &Layout, rows: &[Block]) -> Vec<u8> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_unstable_by_key(|at| std::cmp::Reverse(rows.get(*at).and_then(|row| row.head).map(|head| head.lsn)));
    let mut stamps = vec![0; rows.len()];
    let mut bytes = 0;
    for at in order {
        let age = (bytes / tick_bytes(layout.capacity_bytes())).min(7);
        bytes += rows.get(at).map_or(0, |row| row.walked.end_bytes);
        if let Some(stamp) = stamps.get_mut(at) {
            *stamp = ((TICK - age) & 7) as u8;
        }
    }
    stamps
}

#[derive(Default)]
struct LogSeen {
    epoch: Epoch,
    lsn: Lsn,
    page: u64,
}

/// The highest that any page in the ring says, whole or not.
async fn end_of_log(device: &dyn Device, layout: &Layout, mask: &CrcMask) -> LogSeen {
    let mut seen = LogSeen::default();
    let pages_per_read = LOG_READ_BYTES / PAGE;
    for first in (0..layout.log_pages).step_by(pages_per_read as usize) {
        let n = pages_per_read.min(layout.log_pages - first);
        let (buf, result) = device.read(layout.log_offset + first * PAGE, AlignedBuf::take((n * PAGE) as usize)).await;
        if result.is_err() {
            continue;
        }
        for (index, bytes) in (first..).zip(buf.chunks_exact(PAGE_BYTES)) {
            let number = bytes.get(16..24).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
            if number % layout.log_pages != index {
                continue;
            }
            if let Some(head) = PageHead::decode(mask, number, bytes) {
                seen.epoch = seen.epoch.max(head.epoch);
                seen.lsn = seen.lsn.max(head.first.plus(UNITS_PER_PAGE as u64));
                seen.page = seen.page.max(number);
            }
        }
    }
    seen
}
