//! The store as it lies on the device, for tests that damage a chosen place; and a device that holds writes back.

#![allow(dead_code)] // the canaries use a part of it

use blockstore_engine::device::{AlignedBuf, Device, DeviceCounters, Geometry, IoFuture, SimDevice};
use parking_lot::Mutex;
use std::{io, ops::Range, sync::Arc};
use tokio::{sync::watch, time::Instant};

pub const PAGE: u64 = 4096;
pub const UNIT: u64 = 32;

/// The fields of a superblock copy that tests look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Super {
    pub epoch: u32,
    pub sequence: u64,
    pub block_count: u64,
    pub block_bytes: u64,
    pub vbn_stride: u32,
    pub table_units: u64,
    pub log_offset: u64,
    pub log_pages: u64,
    pub image_offsets: [u64; 2],
    pub blocks_offset: u64,
    pub image_number: u64,
    pub image_slot: u64,
    pub previous_number: u64,
    pub mark: u64,
    pub clean: bool,
}

fn u32_at(page: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(page[at..at + 4].try_into().expect("4 bytes"))
}
fn u64_at(page: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(page[at..at + 8].try_into().expect("8 bytes"))
}

pub fn superblock_offsets(device: &SimDevice) -> [u64; 4] {
    let end = device.geometry().len_bytes;
    [0, PAGE, end - 2 * PAGE, end - PAGE]
}

pub fn superblock(device: &SimDevice, copy: usize) -> Super {
    let at = superblock_offsets(device)[copy];
    let page = device.handle().peek(at..at + 256).expect("readable");
    Super {
        epoch: u32_at(&page, 52),
        sequence: u64_at(&page, 56),
        block_count: u64::from(u32_at(&page, 76)),
        block_bytes: u64_at(&page, 80),
        vbn_stride: u32_at(&page, 88),
        table_units: u64::from(u32_at(&page, 92)),
        log_offset: u64_at(&page, 112),
        log_pages: u64_at(&page, 120) / PAGE,
        image_offsets: [u64_at(&page, 128), u64_at(&page, 136)],
        blocks_offset: u64_at(&page, 144),
        image_number: u64_at(&page, 152),
        mark: u64_at(&page, 176),
        previous_number: u64_at(&page, 184),
        image_slot: u64::from(page[208]),
        clean: page[210] == 1,
    }
}

impl Super {
    pub fn log(&self) -> Range<u64> {
        self.log_offset..self.log_offset + self.log_pages * PAGE
    }
    pub fn block(&self, physical: u64) -> Range<u64> {
        let start = self.blocks_offset + physical * self.block_bytes;
        start..start + self.block_bytes
    }
    fn table_copy_bytes(&self) -> u64 {
        (32 + 16 * self.block_count).next_multiple_of(PAGE)
    }
    pub fn block_table(&self, slot: u64, copy: u64) -> Range<u64> {
        let start = self.image_offsets[slot as usize] + copy * self.table_copy_bytes();
        start..start + self.table_copy_bytes()
    }
    pub fn image_unit(&self, slot: u64, unit: u64) -> Range<u64> {
        let start = self.image_offsets[slot as usize] + 2 * self.table_copy_bytes() + unit * (64 << 10);
        start..start + (64 << 10)
    }
    pub fn image(&self, slot: u64) -> Range<u64> {
        self.image_offsets[slot as usize]..self.image_unit(slot, self.table_units - 1).end
    }
}

pub const PUT: u8 = 1;
pub const MOVE: u8 = 2;
pub const DELETE: u8 = 4;
pub const OPEN: u8 = 5;
pub const RETIRE: u8 = 7;
pub const DURABLE: u8 = 9;

/// A unit of the log, as far as it can be told without its checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    pub at_bytes: u64,
    pub page: u64,
    pub epoch: u32,
    pub lsn: u64,
    pub tag: u8,
    pub hash: [u8; 12],
    pub vbn: u32,
    pub offset_bytes: u64,
    pub extent_bytes: u64,
}

impl Unit {
    /// The unit of the table, of so many, that the entry's key is in.
    pub fn table_unit(&self, units: u64) -> u64 {
        (u64::from(u32_at(&self.hash, 4)) * units) >> 32
    }
}

/// Every unit in the ring, in the order of the pages.
pub fn log_units(device: &SimDevice) -> Vec<Unit> {
    let layout = superblock(device, 0);
    let mut units = Vec::new();
    for slot in 0..layout.log_pages {
        let start = layout.log_offset + slot * PAGE;
        let Ok(head) = device.handle().peek(start..start + UNIT) else { continue };
        let (epoch, first, page) = (u32_at(&head, 4), u64_at(&head, 8), u64_at(&head, 16));
        if page == 0 || page % layout.log_pages != slot {
            continue;
        }
        let Ok(bytes) = device.handle().peek(start..start + PAGE) else { continue };
        for (index, unit) in (0u64..).zip(bytes.chunks(UNIT as usize).skip(1)) {
            if unit[4] != 0 {
                units.push(Unit {
                    at_bytes: start + (index + 1) * UNIT,
                    page,
                    epoch,
                    lsn: first + index,
                    tag: unit[4],
                    hash: unit[8..20].try_into().expect("12 bytes"),
                    vbn: u32_at(unit, 20),
                    offset_bytes: u64::from(u32_at(unit, 24)) * 8,
                    extent_bytes: u64::from(u32_at(unit, 28)),
                });
            }
        }
    }
    units.sort_by_key(|u| (u.page, u.lsn));
    units
}

/// What the highest mark in the log covers.
pub fn marked(device: &SimDevice) -> u64 {
    let marks = log_units(device).into_iter().filter(|u| u.tag == DURABLE);
    marks.map(|u| u64_at(&u.hash, 0)).max().unwrap_or(0).max(superblock(device, 0).mark)
}

pub fn count_of(device: &SimDevice, tag: u8) -> usize {
    log_units(device).iter().filter(|u| u.tag == tag).count()
}

/// A device that holds back what it is told to.
#[derive(Clone, Debug)]
pub struct Gate {
    inner: SimDevice,
    held: Arc<watch::Sender<Held>>,
    events: Arc<Mutex<Vec<(Event, Instant)>>>,
}

/// What was issued to a [`Gate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Write(Range<u64>),
    Flush,
}

#[derive(Clone, Debug, Default)]
struct Held {
    writes: Vec<Range<u64>>,
    reads: bool,
    flushes: bool,
}

impl Gate {
    pub fn new(inner: &SimDevice) -> Self {
        Self { inner: inner.clone(), held: Arc::new(watch::Sender::new(Held::default())), events: Arc::default() }
    }
    pub fn device(&self) -> &SimDevice {
        &self.inner
    }
    /// Everything that was issued so far, in order.
    pub fn events(&self) -> Vec<(Event, Instant)> {
        self.events.lock().clone()
    }
    fn note(&self, event: Event) {
        self.events.lock().push((event, Instant::now()));
    }
    /// Writes that begin in this range are not issued until [`Self::open`].
    pub fn hold_writes(&self, range: Range<u64>) {
        self.held.send_modify(|h| h.writes.push(range));
    }
    /// Reads are not issued until [`Self::open`].
    pub fn hold_reads(&self) {
        self.held.send_modify(|h| h.reads = true);
    }
    /// Flushes are not issued until [`Self::open`].
    pub fn hold_flushes(&self) {
        self.held.send_modify(|h| h.flushes = true);
    }
    pub fn open(&self) {
        self.held.send_replace(Held::default());
    }
}

impl Device for Gate {
    fn geometry(&self) -> &Geometry {
        self.inner.geometry()
    }
    fn read(&self, offset_bytes: u64, buf: AlignedBuf) -> IoFuture<(AlignedBuf, io::Result<()>)> {
        let (inner, mut held) = (self.inner.clone(), self.held.subscribe());
        if !held.borrow().reads {
            return inner.read(offset_bytes, buf);
        }
        Box::pin(async move {
            drop(held.wait_for(|h| !h.reads).await.map(drop));
            inner.read(offset_bytes, buf).await
        })
    }
    fn read_stored(&self, offset_bytes: u64, buf: AlignedBuf) -> IoFuture<(AlignedBuf, io::Result<()>)> {
        self.inner.read_stored(offset_bytes, buf)
    }
    fn write(&self, offset_bytes: u64, buf: AlignedBuf) -> IoFuture<(AlignedBuf, io::Result<()>)> {
        self.note(Event::Write(offset_bytes..offset_bytes + buf.len() as u64));
        let (inner, mut held) = (self.inner.clone(), self.held.subscribe());
        let free = move |h: &Held| !h.writes.iter().any(|r| r.contains(&offset_bytes));
        if free(&held.borrow()) {
            return inner.write(offset_bytes, buf);
        }
        Box::pin(async move {
            drop(held.wait_for(free).await.map(drop));
            inner.write(offset_bytes, buf).await
        })
    }
    fn flush(&self) -> IoFuture<io::Result<()>> {
        self.note(Event::Flush);
        let (inner, mut held) = (self.inner.clone(), self.held.subscribe());
        if !held.borrow().flushes {
            return inner.flush();
        }
        Box::pin(async move {
            drop(held.wait_for(|h| !h.flushes).await.map(drop));
            inner.flush().await
        })
    }
    fn counters(&self) -> DeviceCounters {
        self.inner.counters()
    }
}
