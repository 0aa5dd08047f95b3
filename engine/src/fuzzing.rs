//! Entry points for fuzzing the pure decoders: not a part of the library's interface.
//!
//! Each function takes any bytes, and panics where a decoder breaks its word: none may panic, what it accepts must read back as it
//! is, and what it says must be possible. Checksums would keep nearly everything out, so each input is tried as it is and once more
//! with its checksums put right.

mod device;

use crate::{
    device::PAGE_BYTES,
    engine::FormatOptions,
    format::{
        block::BlockHead,
        crc::{ChunkCrcs, CrcMask},
        image::{BlockRow, BlockTable, UNIT_BYTES, check_unit, seal_unit},
        layout::Layout,
        log::{self, Entry, Location, PageHead},
        record::{Manifest, RecordHead, RecordKey, RecordKind, RecordShape},
        superblock::{ImageInForce, Superblock},
        types::{Epoch, KeyHash, Lsn, Place, SizeCheck, SlotKind, Vbn},
    },
    key::{Key, KeySpace},
    log_writer::{LogEnd, LogWriter},
    map::{census::Census, table::Table},
    recover::scan::{RawPage, scan},
    value::Codec,
};
use std::sync::Arc;

/// Version of the format that this program writes.
pub const FORMAT_VERSION: u32 = crate::format::superblock::FORMAT_VERSION;

const UUID: [u8; 16] = [7; 16];
const BLOCK_BYTES: u64 = 1 << 20;
/// Pages that a scan is given at most.
const SCAN_PAGES_MAX: usize = 64;

/// A decoder: its name, what it is fuzzed with, and inputs to start from.
pub struct Target {
    /// Name of the target and of its corpus.
    pub name: &'static str,
    /// Panics if the bytes make the decoder break its word.
    pub check: fn(&[u8]),
    /// Inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// How many inputs the short form tries, besides those it is given: as many as take about a second.
    pub tries: u64,
}

/// All decoders, and whole devices.
pub const TARGETS: &[Target] = &[
    Target { name: "record_head", check: record_head, seeds: record_head_seeds, tries: 3000 },
    Target { name: "manifest", check: manifest, seeds: manifest_seeds, tries: 3000 },
    Target { name: "log_page", check: log_page, seeds: log_page_seeds, tries: 3000 },
    Target { name: "scan", check: scan_pages, seeds: scan_seeds, tries: 3000 },
    Target { name: "superblock", check: superblock, seeds: superblock_seeds, tries: 3000 },
    Target { name: "layout", check: layout, seeds: layout_seeds, tries: 3000 },
    Target { name: "block_head", check: block_head, seeds: block_head_seeds, tries: 3000 },
    Target { name: "image_unit", check: image_unit, seeds: image_unit_seeds, tries: 3000 },
    Target { name: "block_table", check: block_table, seeds: block_table_seeds, tries: 3000 },
    Target { name: "device", check: device::check, seeds: device::seeds, tries: 500 },
];

fn mask() -> CrcMask {
    CrcMask::new(&UUID)
}
fn place() -> Place {
    Place::new(Vbn(300), 8192)
}
/// Puts the checksum in the first four bytes right, over as much as there is up to `end`.
fn repair(bytes: &mut [u8], end: usize, mask: u32) {
    let end = end.min(bytes.len());
    if let Some(covered) = bytes.get(4..end) {
        let crc = crc32fast::hash(covered) ^ mask;
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
    }
}
fn padded(data: &[u8], bytes: usize) -> Vec<u8> {
    let mut out = data[..data.len().min(bytes)].to_vec();
    out.resize(bytes, 0);
    out
}
fn number(data: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    let there = data.get(at..).unwrap_or_default();
    let n = there.len().min(8);
    word[..n].copy_from_slice(&there[..n]);
    u64::from_le_bytes(word)
}

// ---- records

fn record_head(data: &[u8]) {
    let mask = mask();
    let check = |bytes: &[u8]| {
        let Ok(head) = RecordHead::decode(&mask, place(), bytes, BLOCK_BYTES) else { return false };
        let shape = head.shape();
        assert!(place().offset_bytes() + shape.extent_bytes as u64 <= BLOCK_BYTES, "a record ends in its block");
        let mut again = vec![0; shape.head_bytes];
        head.encode(&mask, place(), &mut again);
        assert_eq!(RecordHead::decode(&mask, place(), &again, BLOCK_BYTES).as_ref(), Ok(&head));
        head.verify(usize::try_from(head.logical_bytes).unwrap_or(usize::MAX), bytes);
        true
    };
    check(data);
    let stored = usize::try_from(number(data, 16) & 0xffff_ffff).unwrap_or(0);
    let kind = data.get(4).copied().and_then(RecordKind::from_byte).unwrap_or(RecordKind::Content);
    let mut repaired = data.to_vec();
    repair(&mut repaired, RecordShape::of(kind, stored).head_bytes, mask.record(place()));
    check(&repaired);
}

fn record_head_seeds() -> Vec<Vec<u8>> {
    let object = Key { space: KeySpace::Content, function: 1, hash: [9; 32] };
    let kinds = [RecordKind::Content, RecordKind::Named, RecordKind::Part, RecordKind::Manifest, RecordKind::Tombstone];
    let seed = |(kind, bytes): (RecordKind, usize)| {
        let key = match kind {
            RecordKind::Part => RecordKey::Part { upload_id: [3; 16], index: 77, object },
            RecordKind::Named | RecordKind::Tombstone => RecordKey::Object(Key { space: KeySpace::Named, ..object }),
            _ => RecordKey::Object(object),
        };
        let payload = vec![5; bytes];
        let crcs = ChunkCrcs::of(&payload);
        let codec = if kind == RecordKind::Part { Codec::Zstd } else { Codec::Plain };
        let head = RecordHead { kind, key, codec, logical_bytes: 5, stored_bytes: bytes as u32, epoch: Epoch(2), lsn: Lsn(3), crcs };
        let mut out = vec![0; head.shape().head_bytes];
        head.encode(&mask(), place(), &mut out);
        out
    };
    kinds.into_iter().zip([100, 0, 200_000, 70_000, 0]).map(seed).collect()
}

fn manifest(data: &[u8]) {
    let rest = data.get(8..).unwrap_or_default();
    let parts = number(rest, 24) & 0xffff_ffff;
    for logical_bytes in [number(data, 0), number(rest, 16).saturating_mul(parts)] {
        if let Some(manifest) = Manifest::decode(rest, logical_bytes) {
            assert_eq!(Manifest::decode(&manifest.encode(), logical_bytes).as_ref(), Some(&manifest));
            assert_eq!(manifest.stored_bytes.len() as u64, logical_bytes.div_ceil(manifest.part_bytes));
        }
    }
}

fn manifest_seeds() -> Vec<Vec<u8>> {
    let seed = |parts: u64| {
        let manifest =
            Manifest { upload_id: [1; 16], part_bytes: 1 << 18, stored_bytes: vec![1 << 18; parts as usize], codec: Codec::Zstd };
        [((parts << 18) - 1).to_le_bytes().to_vec(), manifest.encode()].concat()
    };
    [1, 5, 40].map(seed).to_vec()
}

// ---- log

/// Puts the checksums of a page right, as those of page `page`.
fn repair_page(mask: &CrcMask, page: u64, bytes: &mut [u8]) {
    bytes[16..24].copy_from_slice(&page.to_le_bytes());
    repair(bytes, log::UNIT_BYTES, mask.log_page(page));
    let (epoch, first) = (Epoch(number(bytes, 4) as u32), Lsn(number(bytes, 8)));
    for (index, unit) in (0u64..).zip(bytes[log::UNIT_BYTES..].chunks_exact_mut(log::UNIT_BYTES)) {
        // A unit of zeros stays one that was never written.
        if unit.iter().any(|b| *b != 0) {
            repair(unit, log::UNIT_BYTES, mask.log_unit(epoch, first.plus(index)));
        }
    }
}

fn log_page(data: &[u8]) {
    let mask = mask();
    PageHead::decode(&mask, number(data, 16), data);
    Entry::decode(&mask, Epoch(1), Lsn(1), data);
    let mut page = padded(data, PAGE_BYTES);
    repair_page(&mask, 5, &mut page);
    let head = PageHead::decode(&mask, 5, &page).expect("its checksum is right");
    let mut again = vec![0; PAGE_BYTES];
    head.encode(&mask, &mut again);
    assert_eq!(PageHead::decode(&mask, 5, &again), Some(head));
    for unit in 0..log::UNITS_PER_PAGE {
        let lsn = head.first.plus(unit as u64);
        if let Some(entry) = Entry::decode(&mask, head.epoch, lsn, &page[(unit + 1) * log::UNIT_BYTES..]) {
            let mut again = [0; 2 * log::UNIT_BYTES];
            entry.encode(&mask, head.epoch, lsn, &mut again);
            assert_eq!(Entry::decode(&mask, head.epoch, lsn, &again), Some(entry));
        }
    }
}

fn entries() -> Vec<Entry> {
    let at = |offset| Location {
        hash: KeyHash([4; 12]),
        kind: SlotKind::Content,
        check: SizeCheck::of(100),
        place: Place::new(Vbn(300), offset),
        extent_bytes: 176,
    };
    vec![
        Entry::BlockOpen { vbn: Vbn(300) },
        Entry::Put(at(4096)),
        Entry::Move { to: at(8192), from: Place::new(Vbn(300), 4096), carries: Some((Epoch(1), Lsn(2))) },
        Entry::Delete { hash: KeyHash([4; 12]), kind: SlotKind::Named, from: Place::new(Vbn(300), 8192) },
        Entry::BlockSeal { vbn: Vbn(300), fill_bytes: 9000 },
        Entry::BlockRetire { vbn: Vbn(300) },
        Entry::Void { first: Lsn(2), last: Lsn(3) },
        Entry::Durable { lsn: Lsn(4) },
    ]
}

/// The pages of runs of entries, one epoch each; each run starts on a new page.
fn pages(runs: &[usize]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut end = LogEnd { page: 0, used: 0, next: Lsn(1) };
    for (epoch, n) in (1..).zip(runs) {
        let mut log = LogWriter::new(mask(), Epoch(epoch), end);
        entries().iter().cycle().take(*n).for_each(|e| _ = log.append(e));
        out.extend(log.take_dirty().map(|dirty| dirty.bytes).unwrap_or_default());
        end = log.end();
    }
    out
}

fn log_page_seeds() -> Vec<Vec<u8>> {
    vec![pages(&[8]), pages(&[100])]
}

/// Sixteen bytes (replay after, superblock's mark), then pages; a page whose padding is not zero cannot be read.
fn scan_pages(data: &[u8]) {
    let mask = mask();
    let (after, mark) = (Lsn(number(data, 0)), Lsn(number(data, 8)));
    let bytes: Vec<Vec<u8>> =
        data.get(16..).unwrap_or_default().chunks(PAGE_BYTES).take(SCAN_PAGES_MAX).map(|page| padded(page, PAGE_BYTES)).collect();
    let mut repaired = bytes.clone();
    (1u64..).zip(&mut repaired).for_each(|(page, bytes)| repair_page(&mask, page, bytes));
    for bytes in [bytes, repaired] {
        let pages: Vec<_> =
            (1u64..).zip(&bytes).map(|(number, b)| RawPage { number, bytes: (b[31] == 0).then_some(b.as_slice()) }).collect();
        let accepted = scan(&mask, &pages, after, mark);
        assert!(accepted.mark >= mark);
        assert!(accepted.entries.iter().all(|(lsn, ..)| *lsn > after), "what the image has is not replayed");
        assert!(accepted.end.page <= pages.len() as u64 && usize::from(accepted.end.used) <= log::UNITS_PER_PAGE);
        let next = accepted.end.next;
        assert!(next.0 == u64::MAX || (next > accepted.mark && next > after), "no LSN is given out twice");
    }
}

fn scan_seeds() -> Vec<Vec<u8>> {
    let seed = |after: u64, mark: u64, runs: &[usize]| [&after.to_le_bytes()[..], &mark.to_le_bytes(), &pages(runs)].concat();
    vec![seed(0, 0, &[300]), seed(0, 150, &[100, 90, 10]), seed(20, 60, &[130, 5]), seed(0, 9, &[])]
}

// ---- superblock and layout

fn superblock(data: &[u8]) {
    let check = |page: &[u8]| {
        let Ok(superblock) = Superblock::decode(page) else { return };
        let mut again = vec![0; PAGE_BYTES];
        superblock.encode(&mut again);
        assert_eq!(Superblock::decode(&again).as_ref(), Ok(&superblock));
        if let Ok(layout) = Layout::of(&superblock) {
            possible(&layout);
        }
    };
    check(data);
    let mut page = padded(data, PAGE_BYTES);
    repair(&mut page, PAGE_BYTES, 0);
    check(&page);
}

/// Every place that a layout gives is a page of the device, and no two overlap where they must not.
fn possible(layout: &Layout) {
    let page = PAGE_BYTES as u64;
    let end = layout.device_bytes.saturating_sub(2 * page);
    let last = layout.block_count - 1;
    assert!(layout.block_offset(last) + layout.block_bytes <= end, "blocks end before the last superblocks: {layout:?}");
    let unit = layout.table_units - 1;
    for slot in 0..2 {
        let image = layout.block_table_offset(slot, 0)..layout.image_unit_offset(slot, unit) + UNIT_BYTES as u64;
        let before = image.end <= layout.blocks_offset;
        let behind = image.start >= layout.block_offset(last) + layout.block_bytes && image.end <= end;
        assert!(before || behind, "images lie before the blocks or behind them: {layout:?}");
    }
    let offsets =
        [layout.block_offset(0), layout.log_page_offset(u64::MAX), layout.image_unit_offset(1, 0), layout.block_table_offset(0, 1)];
    assert!(offsets.iter().all(|o| o % page == 0 && *o >= 2 * page), "places are pages: {layout:?}");
    let first = layout.next_vbn(last, Vbn::NONE).expect("a first tenant");
    assert_eq!(layout.physical(first), Some(last));
}

fn layout(data: &[u8]) {
    let option = |at| Some(number(data, at)).filter(|n| *n != 0);
    let options = FormatOptions { block_bytes: option(8), objects: option(16) };
    if let Ok(layout) = Layout::plan(number(data, 0), &options) {
        possible(&layout);
        assert_eq!(Layout::of(&superblock_of(&layout)), Ok(layout.clone()));
        if let Ok(grown) = layout.grown(layout.device_bytes.saturating_add(number(data, 8) % (1 << 40)), None) {
            possible(&grown);
            assert!(grown.block_count > layout.block_count && grown.log_offset >= layout.device_bytes);
            assert_eq!(Layout::of(&superblock_of(&grown)), Ok(grown));
        }
        let fewer = layout.device_bytes.saturating_sub(number(data, 8) % layout.device_bytes);
        if let Ok(shrunk) = layout.shrunk(fewer, option(24)) {
            possible(&shrunk);
            assert!(shrunk.block_count <= layout.block_count && shrunk.device_bytes < layout.device_bytes);
            assert_eq!(Layout::of(&superblock_of(&shrunk)), Ok(shrunk));
        }
    }
}

fn superblock_of(layout: &Layout) -> Superblock {
    Superblock {
        incompatible: 0,
        uuid: UUID,
        device_index: 0,
        device_count: 1,
        epoch: Epoch(5),
        sequence: 6,
        device_bytes: layout.device_bytes,
        sector_bytes: 512,
        block_bytes: layout.block_bytes,
        block_count: layout.block_count,
        vbn_stride: layout.vbn_stride,
        hash_seed: [2; 16],
        log_offset: layout.log_offset,
        log_bytes: layout.log_pages * PAGE_BYTES as u64,
        image_offsets: layout.image_offsets,
        table_units: layout.table_units,
        blocks_offset: layout.blocks_offset,
        image: ImageInForce { slot: 1, number: 17, replay_after: Lsn(18), replay_page: 19 },
        previous_image: ImageInForce { slot: 0, number: 16, replay_after: Lsn(8), replay_page: 9 },
        mark: Lsn(20),
        clean: true,
    }
}

fn plan(mib: u64) -> Layout {
    Layout::plan(mib << 20, &FormatOptions { block_bytes: None, objects: None }).expect("large enough")
}

fn superblock_seeds() -> Vec<Vec<u8>> {
    let seed = |mib| {
        let mut page = vec![0; PAGE_BYTES];
        superblock_of(&plan(mib)).encode(&mut page);
        page.truncate(256);
        page
    };
    [40, 1 << 20].map(seed).to_vec()
}

fn layout_seeds() -> Vec<Vec<u8>> {
    let seed = |[bytes, block, objects]: [u64; 3]| [bytes, block, objects].map(u64::to_le_bytes).concat();
    [[64 << 20, 0, 0], [40 << 20, 1 << 20, 3000], [1 << 40, 1 << 30, 1 << 27], [u64::MAX, 0, 0]].map(seed).to_vec()
}

// ---- blocks and images

fn block_head(data: &[u8]) {
    let mask = mask();
    let check = |page: &[u8]| {
        if let Some(head) = BlockHead::decode(&mask, &UUID, page) {
            let mut again = vec![0; PAGE_BYTES];
            head.encode(&mask, &UUID, &mut again);
            assert_eq!(BlockHead::decode(&mask, &UUID, &again), Some(head));
        }
    };
    check(data);
    let mut repaired = data.to_vec();
    repair(&mut repaired, 40, mask.block(Vbn(number(data, 24) as u32)));
    check(&repaired);
}

fn block_head_seeds() -> Vec<Vec<u8>> {
    let mut page = vec![0; PAGE_BYTES];
    BlockHead { vbn: Vbn(1030), physical: 6, lsn: Lsn(99) }.encode(&mask(), &UUID, &mut page);
    vec![page[..64].to_vec()]
}

fn image_unit(data: &[u8]) {
    let mask = mask();
    check_unit(&mask, 4, 5, data);
    let mut unit = padded(data, UNIT_BYTES);
    seal_unit(&mask, 4, 5, Lsn(6), &mut unit);
    assert_eq!(check_unit(&mask, 4, 5, &unit), Some(Lsn(6)));
    // Whatever the slots say, the table takes them, finds what is live, and gives them back.
    let layout = plan(64);
    let census = Arc::new(Census::new(layout.clone()));
    let vbn = Vbn((number(data, 68) as u32).max(1));
    if let Some(physical) = layout.physical(vbn) {
        census.set_tenant(physical, vbn);
    }
    let table = Table::new(1, census).expect("memory for one unit");
    table.load_unit(0, Lsn(6), &unit);
    table.age(3, 2);
    table.recount();
    let mut hash = [0; 12];
    hash.copy_from_slice(&unit[64..76]);
    for found in table.find(&KeyHash(hash), SlotKind::Content, None).iter() {
        table.touch(found.address, found.place, 1);
    }
    let live = table.live();
    assert!(live <= table.slots() && table.of_block(vbn).len() as u64 == live);
    let mut copy = vec![0; UNIT_BYTES];
    assert_eq!(table.copy_unit(0, &mut copy), Lsn(6));
}

fn image_unit_seeds() -> Vec<Vec<u8>> {
    let layout = plan(64);
    let census = Arc::new(Census::new(layout.clone()));
    let vbn = layout.next_vbn(3, Vbn::NONE).expect("a first tenant");
    census.set_tenant(3, vbn);
    let table = Table::new(1, census).expect("memory for one unit");
    for n in 0..20u8 {
        let place = Place::new(vbn, 4096 + u32::from(n) * 64);
        let hash = KeyHash([0, 0, n / 16, n, 0, 0, 0, 0, n, 0, 0, 0]);
        let location = Location { hash, kind: SlotKind::Content, check: SizeCheck::of(7), place, extent_bytes: 64 };
        table.put(&location, Lsn(u64::from(n) + 1), n & 7);
    }
    let mut unit = vec![0; UNIT_BYTES];
    table.copy_unit(0, &mut unit);
    unit.truncate(2048);
    vec![unit]
}

fn block_table(data: &[u8]) {
    let mask = mask();
    let check = |bytes: &[u8]| {
        let rows = number(bytes, 4) as u32 & 0xffff;
        if let Some(table) = BlockTable::decode(&mask, number(bytes, 8), rows, bytes) {
            let mut again = vec![0; usize::try_from(BlockTable::copy_bytes(rows)).unwrap_or(0)];
            table.encode(&mask, 9, &mut again);
            let read = BlockTable::decode(&mask, 9, table.rows.len() as u32, &again);
            assert_eq!(read.as_ref(), Some(&table));
        }
    };
    check(data);
    let mut repaired = data.to_vec();
    let end = repaired.len();
    repair(&mut repaired, end, mask.block_table(number(data, 8)));
    check(&repaired);
}

fn block_table_seeds() -> Vec<Vec<u8>> {
    let rows = |n: u32| (0..n).map(|i| BlockRow { vbn: Vbn(300 + i), live: i % 2 == 0, sealed: i % 3 == 0, fill_bytes: i * 8 });
    let seed = |n: u32| {
        let mut out = vec![0; BlockTable::copy_bytes(n) as usize];
        BlockTable { lsn: Lsn(9), tick: 3, rows: rows(n).collect() }.encode(&mask(), 7, &mut out);
        out
    };
    [3, 40].map(seed).to_vec()
}
