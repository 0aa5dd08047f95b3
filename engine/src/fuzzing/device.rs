//! A whole device that is not as it was written: opened, and everything read back.
//!
//! The input is a list of changes, eight bytes each, to a small store that is made once: bits and numbers in its superblocks, log pages,
//! images, block headers and record heads, such structures overwritten with each other, zeroed or unreadable; with their checksums as they
//! were, or put right. Whatever they are, opening ends, and a read gives the bytes that were put, an error or a miss.

use super::{number, repair, repair_page};
use crate::{
    device::{AlignedBuf, Device, Latency, PAGE_BYTES, SimDevice, SimOptions},
    engine::{Engine, FormatOptions, OpenOptions},
    format::{
        block::BlockHead,
        crc::CrcMask,
        image::{BlockTable, UNIT_BYTES},
        layout::Layout,
        record::{RecordHead, RecordKind, RecordShape},
        types::{Place, RECORD_ALIGN_BYTES, Vbn},
    },
    key::{Key, KeySpace},
};
use bytes::Bytes;
use std::{sync::Arc, sync::OnceLock, time::Duration};

const DEVICE_BYTES: u64 = 36 << 20;
const OPTIONS: FormatOptions = FormatOptions { block_bytes: Some(1 << 20), objects: Some(3000) };
/// Changes of one input at most.
const CHANGES_MAX: usize = 32;
/// Bytes of one change.
const CHANGE_BYTES: usize = 8;
/// What opening and reading everything may take: a thousand times of what it does take.
const TIME_MAX: Duration = Duration::from_secs(20);

/// A structure of the device that changes aim at.
#[derive(Clone, Copy, Debug)]
enum Structure {
    Superblock,
    LogPage,
    BlockTable,
    Unit,
    BlockHead,
    Record(Place),
}

/// Where one is, and how long.
#[derive(Clone, Copy, Debug)]
struct Spot {
    structure: Structure,
    offset: u64,
    bytes: usize,
}

/// The store that all inputs change.
struct Base {
    device: SimDevice,
    mask: CrcMask,
    spots: Vec<Spot>,
    /// Every value that each key ever had.
    values: Vec<(Key, Vec<Bytes>)>,
}

fn on_one_thread<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(TIME_MAX, future).await.expect("opening and reading come to an end") })
}

fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| on_one_thread(make()))
}

fn options() -> OpenOptions {
    OpenOptions { cache_bytes: 0, ..OpenOptions::default() }
}

fn key(space: KeySpace, id: u8) -> Key {
    Key { space, function: 1, hash: [id; 32] }
}

fn data(seed: u8, bytes: usize) -> Bytes {
    (0..bytes).map(|i| (i * 31 + (i >> 8) * 7) as u8 ^ seed).collect()
}

/// Objects of every kind, half of them in an image and half in the log, one name replaced and one deleted, one upload given up.
async fn make() -> Base {
    let device = SimDevice::new(SimOptions { latency: Latency::None, ..SimOptions::new(DEVICE_BYTES, 1) });
    let seed = [9; 32];
    Engine::format_seeded(Arc::new(device.clone()), &OPTIONS, seed).await.expect("format");
    let (engine, _) = Engine::open(Arc::new(device.clone()), options()).await.expect("open");
    let mut values: Vec<(Key, Vec<Bytes>)> = Vec::new();
    for id in 0..24u8 {
        let bytes = [0, 1, 700, 5000, 70_000, 600_000][usize::from(id % 6)] + usize::from(id);
        let object = (key(KeySpace::Content, id), data(id, bytes));
        let name = (key(KeySpace::Named, id % 5), data(!id, usize::from(id) * 20));
        for (key, value) in [object, name] {
            engine.put(key, value.clone()).await.expect("put");
            match values.iter_mut().find(|(k, _)| *k == key) {
                Some((_, all)) => all.push(value),
                None => values.push((key, vec![value])),
            }
        }
        if id == 11 || id == 14 {
            engine.checkpoint().await.expect("checkpoint");
        }
    }
    engine.delete(&key(KeySpace::Named, 2)).await.expect("delete");
    engine.flush().await.expect("flush");
    engine.put(key(KeySpace::Content, 99), data(99, 900)).await.expect("put");
    values.push((key(KeySpace::Content, 99), vec![data(99, 900)]));
    let device = device.snapshot_completed(1);
    let mask = CrcMask::new(&[9; 16]);
    let spots = spots(&device, &mask).await;
    Base { device, mask, spots, values }
}

async fn spots(device: &SimDevice, mask: &CrcMask) -> Vec<Spot> {
    let layout = Layout::plan(DEVICE_BYTES, &OPTIONS).expect("a layout");
    let read = async |offset: u64, bytes: u64| device.read(offset, AlignedBuf::take(bytes as usize)).await.0;
    let written = |page: &[u8]| page.iter().any(|byte| *byte != 0);
    let spot = |structure, bytes| move |offset| Spot { structure, offset, bytes };
    let mut out: Vec<Spot> = Layout::superblock_offsets(DEVICE_BYTES).map(spot(Structure::Superblock, PAGE_BYTES)).to_vec();
    let log = read(layout.log_offset, layout.log_pages * PAGE_BYTES as u64).await;
    let used = (0..).zip(log.chunks(PAGE_BYTES)).filter(|(_, page)| written(page));
    out.extend(used.map(|(n, _)| layout.log_page_offset(n)).map(spot(Structure::LogPage, PAGE_BYTES)));
    for slot in 0..2 {
        let copies = [0, 1].map(|copy| layout.block_table_offset(slot, copy));
        let bytes = usize::try_from(BlockTable::copy_bytes(layout.block_count)).expect("pages");
        out.extend(copies.map(spot(Structure::BlockTable, bytes)));
        let units = (0..layout.table_units).map(|unit| layout.image_unit_offset(slot, unit));
        out.extend(units.map(spot(Structure::Unit, UNIT_BYTES)));
    }
    for physical in 0..layout.block_count {
        let start = layout.block_offset(physical);
        out.push(Spot { structure: Structure::BlockHead, offset: start, bytes: PAGE_BYTES });
        let block = read(start, layout.block_bytes).await;
        let Some(head) = BlockHead::decode(mask, &[9; 16], &block) else { continue };
        for (n, page) in (0u64..).zip(block.chunks(PAGE_BYTES)).skip(1).filter(|(_, page)| written(page)) {
            let at = start + n * PAGE_BYTES as u64;
            // A head that crosses into the next page is left out.
            for in_page in (0..PAGE_BYTES).step_by(RECORD_ALIGN_BYTES as usize) {
                let place = Place::new(head.vbn, (at - start) as u32 + in_page as u32);
                if let Ok(record) = RecordHead::decode(mask, place, &page[in_page..], layout.block_bytes) {
                    let bytes = record.shape().head_bytes;
                    out.push(Spot { structure: Structure::Record(place), offset: at + in_page as u64, bytes });
                }
            }
        }
    }
    out
}

/// Puts the checksums of a structure right.
fn put_right(mask: &CrcMask, structure: Structure, bytes: &mut [u8]) {
    let end = bytes.len();
    match structure {
        Structure::Superblock => repair(bytes, end, 0),
        Structure::LogPage => {
            let page = number(bytes, 16);
            repair_page(mask, page, bytes);
        }
        Structure::BlockTable => {
            let mask = mask.block_table(number(bytes, 8));
            repair(bytes, end, mask);
        }
        Structure::Unit => {
            let mask = mask.image_unit(number(bytes, 8), number(bytes, 4) as u32);
            repair(bytes, end, mask);
        }
        Structure::BlockHead => {
            let mask = mask.block(Vbn(number(bytes, 24) as u32));
            repair(bytes, 40, mask);
        }
        Structure::Record(place) => {
            let kind = RecordKind::from_byte(bytes[4]).unwrap_or(RecordKind::Content);
            let stored = usize::try_from(number(bytes, 16) & 0xffff_ffff).unwrap_or(0);
            repair(bytes, RecordShape::of(kind, stored).head_bytes, mask.record(place));
        }
    }
}

/// The bytes of a spot, and where the pages that hold it begin.
fn pages(device: &SimDevice, spot: Spot) -> (u64, Vec<u8>) {
    let page = PAGE_BYTES as u64;
    let start = spot.offset / page * page;
    let end = (spot.offset + spot.bytes as u64).next_multiple_of(page);
    (start, device.handle().peek(start..end).unwrap_or_else(|_| vec![0; (end - start) as usize]))
}

async fn write(device: &SimDevice, spot: Spot, change: impl FnOnce(&mut [u8])) {
    let (start, mut bytes) = pages(device, spot);
    let skip = (spot.offset - start) as usize;
    change(&mut bytes[skip..skip + spot.bytes]);
    let mut buf = AlignedBuf::take(bytes.len());
    buf.copy_from_slice(&bytes);
    device.write(start, buf).await.1.expect("write");
}

/// Changes the device as the input says. False if a record's head was made anew: then its bytes may be other ones.
async fn change(base: &Base, device: &SimDevice, input: &[u8]) -> bool {
    let mut genuine = true;
    for words in input.chunks_exact(CHANGE_BYTES).take(CHANGES_MAX) {
        let [action, target, target_high, at, at_high, value, value_high, right] = words else { continue };
        let pick = |low: u8, high: u8| base.spots[usize::from(u16::from_le_bytes([low, high])) % base.spots.len()];
        let (spot, other) = (pick(*target, *target_high), pick(*value, *value_high));
        let value = u16::from_le_bytes([*value, *value_high]);
        let right = right & 1 == 1;
        genuine &= !(right && matches!(spot.structure, Structure::Record(_)));
        let wide = usize::from(u16::from_le_bytes([*at, *at_high])) % spot.bytes;
        let from = pages(device, other);
        let page = PAGE_BYTES as u64;
        if action % 8 == 7 {
            let start = spot.offset / page * page;
            device.handle().make_unreadable(start..start + page);
            continue;
        }
        write(device, spot, |bytes| {
            let to = &mut bytes[wide..];
            let n = to.len().min(8);
            match action % 8 {
                0 => to[0] ^= 1 << (value % 8),
                1 => to[0] = value as u8,
                2 => to[..n].copy_from_slice(&u64::from(value).to_le_bytes()[..n]),
                3 => to[..n].copy_from_slice(&[0xff; 8][..n]),
                4 => to[..n.min(4)].copy_from_slice(&(u32::from(value) << 8).to_le_bytes()[..n.min(4)]),
                5 => bytes.fill(0),
                _ => {
                    let skip = (other.offset - from.0) as usize;
                    let n = bytes.len().min(other.bytes);
                    bytes[..n].copy_from_slice(&from.1[skip..skip + n]);
                }
            }
            if right {
                put_right(&base.mask, spot.structure, bytes);
            }
        })
        .await;
    }
    device.flush().await.expect("flush");
    genuine
}

pub(super) fn check(input: &[u8]) {
    let base = base();
    on_one_thread(async {
        let device = base.device.snapshot_completed(1);
        let genuine = change(base, &device, input).await;
        let Ok((engine, _)) = Engine::open(Arc::new(device), options()).await else { return };
        for (key, values) in &base.values {
            let Some(object) = engine.get(key, None).await else { continue };
            let size_bytes = object.size_bytes();
            let whole = values.iter().any(|value| value.len() as u64 == size_bytes);
            assert!(whole || !genuine, "{key:?} has a size that it never had: {size_bytes}");
            let mut reader = object.reader(0, None).expect("from the start");
            let mut read = Vec::new();
            while let Some(Ok(piece)) = reader.next().await {
                read.extend_from_slice(&piece.into_bytes());
                assert!(read.len() as u64 <= size_bytes.min(DEVICE_BYTES), "no more than there can be");
            }
            let right = |value: &Bytes| value.len() as u64 == size_bytes && value.starts_with(&read);
            assert!(!genuine || values.iter().any(right), "{key:?}: bytes that nobody put");
        }
    });
}

/// Every structure changed in every way once, and some of each together.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let change = |action: u8, target: u16, at: u16, value: u16, right: u8| {
        let [[a, b], [c, d], [e, f]] = [target, at, value].map(u16::to_le_bytes);
        vec![action, a, b, c, d, e, f, right]
    };
    let each = |right: u8| (0..16).flat_map(move |n: u16| change((n % 8) as u8, n * 7, n * 24, n + 3, right)).collect();
    vec![
        Vec::new(),
        each(0),
        each(1),
        (0..8).flat_map(|n| change(6, n + 2, 0, n + 4, 1)).collect(),
        (0..4).flat_map(|n| change(2, n, 92, 5, 1)).collect(),
        (4..30).flat_map(|n| change(3, n, 44, 0, 1)).collect(),
    ]
}
