//! The four superblock copies on a device.
//!
//! Written in two pairs with a flush behind each, so that at any moment two copies are whole and identical; opening takes the highest
//! sequence that two identical copies have. The next sequence exceeds every one seen, as a torn attempt may have left one. Copies 0
//! and 1 are the first pair, but for an opening that finds the copies at odds: it first writes those that are not in force, since
//! the others are all that there is.

use crate::{
    canary::{self, Canary},
    device::{AlignedBuf, Device, PAGE_BYTES},
    error::OpenError,
    format::{
        layout::Layout,
        superblock::{Superblock, SuperblockFault},
    },
};
use std::{io, sync::Arc};
use tokio::sync::Mutex;

/// The superblock in force and how to replace it.
pub(crate) struct Superblocks {
    device: Arc<dyn Device>,
    current: Mutex<Superblock>,
}

impl Superblocks {
    pub(crate) fn new(device: Arc<dyn Device>, current: Superblock) -> Self {
        Self { device, current: Mutex::new(current) }
    }
    /// Changes the superblock and makes the change durable. One at a time: the lock is held across the writes on purpose.
    pub(crate) async fn update(&self, change: impl FnOnce(&mut Superblock)) -> io::Result<()> {
        let mut current = self.current.lock().await;
        let mut next = current.clone();
        change(&mut next);
        next.sequence += 1;
        // Also where this attempt comes to nothing: a copy with its sequence may be on the device.
        current.sequence = next.sequence;
        write_all(&*self.device, &next, IN_ORDER).await?;
        *current = next;
        Ok(())
    }
    pub(crate) async fn current(&self) -> Superblock {
        self.current.lock().await.clone()
    }
}

/// The order in which copies that agree are written.
pub(crate) const IN_ORDER: [usize; 4] = [0, 1, 2, 3];

/// Writes all four copies, durably, the first two of `order` before the others.
pub(crate) async fn write_all(device: &dyn Device, superblock: &Superblock, order: [usize; 4]) -> io::Result<()> {
    let offsets = Layout::superblock_offsets(superblock.device_bytes);
    let [a, b, c, d] = order.map(|copy| offsets[copy]);
    for (pair, flush) in [([a, b], Canary::FlushBetweenSuperblocks), ([c, d], Canary::FlushBehindSuperblocks)] {
        for offset in pair {
            let mut page = AlignedBuf::zeroed(PAGE_BYTES);
            superblock.encode(&mut page);
            device.write(offset, page).await.1?;
        }
        if !canary::leaves_out(flush) {
            device.flush().await?;
        }
    }
    Ok(())
}

/// What is where a copy of the superblock belongs.
#[derive(Debug)]
pub(crate) enum CopyState {
    Whole(Box<Superblock>),
    /// Ours by its first bytes, but its checksum fails.
    Damaged,
    /// Nothing of ours.
    Foreign,
    /// Written by a version that this program does not understand.
    TooNew {
        version: u32,
        incompatible: u64,
    },
    Unreadable(io::Error),
}

/// One of the four copies.
#[derive(Debug)]
pub(crate) struct Copy {
    pub(crate) offset: u64,
    pub(crate) state: CopyState,
}

impl Copy {
    async fn read(device: &dyn Device, offset: u64) -> Self {
        let (page, result) = device.read_stored(offset, AlignedBuf::zeroed(PAGE_BYTES)).await;
        let state = match result.map(|()| Superblock::decode(&page)) {
            Ok(Ok(superblock)) => CopyState::Whole(Box::new(superblock)),
            Ok(Err(SuperblockFault::TooNew { version, incompatible })) => CopyState::TooNew { version, incompatible },
            Ok(Err(SuperblockFault::Foreign)) => CopyState::Foreign,
            Ok(Err(SuperblockFault::Damaged)) => CopyState::Damaged,
            Err(error) => CopyState::Unreadable(error),
        };
        Self { offset, state }
    }

    pub(crate) fn whole(&self) -> Option<&Superblock> {
        match &self.state {
            CopyState::Whole(superblock) => Some(superblock),
            _ => None,
        }
    }
}

const PAGE: u64 = PAGE_BYTES as u64;

/// The four copies, in order. The device may be larger than the store on it: then the last two are where the first two say that the
/// store ends, unless copies of a store as large as the device are at its end. A superblock there that states fewer bytes is none of the
/// four: it says where to look when the first two say nothing.
pub(crate) async fn read_copies(device: &dyn Device) -> Result<[Copy; 4], OpenError> {
    let device_bytes = device.geometry().len_bytes / PAGE * PAGE;
    if device_bytes < 4 * PAGE {
        return Err(OpenError::NotABlockstore(format!("{device_bytes} bytes are too few to hold a store")));
    }
    let [a, b, c, d] = Layout::superblock_offsets(device_bytes);
    let mut copies = [Copy::read(device, a).await, Copy::read(device, b).await, Copy::read(device, c).await, Copy::read(device, d).await];
    let stated = copies.iter().take(2).filter_map(Copy::whole).map(|s| s.device_bytes).max();
    let pointed = copies.iter().skip(2).filter_map(Copy::whole).max_by_key(|s| s.sequence).map(|s| s.device_bytes);
    let end = stated.or(pointed).filter(|bytes| (4 * PAGE..device_bytes).contains(bytes));
    for (copy, offset) in copies.iter_mut().zip(Layout::superblock_offsets(end.unwrap_or(device_bytes))).skip(2) {
        match copy.whole().map(|superblock| superblock.device_bytes == device_bytes) {
            Some(true) => {}
            None | Some(false) if end.is_some() => *copy = Copy::read(device, offset).await,
            None => {}
            Some(false) => copy.state = CopyState::Foreign,
        }
    }
    Ok(copies)
}

/// On a device that is larger than the store on it: has the superblock of that store at its end, durably, unless one is there that states
/// as many bytes. Without it the last two copies could not be found if the first two were lost together; and copies of a larger store
/// that was there before are no longer found.
pub(crate) async fn point_to_end(device: &dyn Device, superblock: &Superblock) -> io::Result<()> {
    let device_bytes = device.geometry().len_bytes / PAGE * PAGE;
    if device_bytes < superblock.device_bytes + 2 * PAGE {
        return Ok(());
    }
    let mut written = false;
    for offset in Layout::superblock_offsets(device_bytes).into_iter().skip(2) {
        let there = Copy::read(device, offset).await;
        let same = |s: &Superblock| (s.uuid, s.device_bytes) == (superblock.uuid, superblock.device_bytes);
        if !there.whole().is_some_and(same) {
            let mut page = AlignedBuf::zeroed(PAGE_BYTES);
            superblock.encode(&mut page);
            device.write(offset, page).await.1?;
            written = true;
        }
    }
    if written { device.flush().await } else { Ok(()) }
}

/// Finds the superblock in force, and the order in which the next one must be written. The returned sequence is the highest seen in
/// any copy.
pub(crate) async fn read(device: &dyn Device) -> Result<(Superblock, [usize; 4]), OpenError> {
    in_force(&read_copies(device).await?)
}

/// As [`read`], of copies that were read.
pub(crate) fn in_force(copies: &[Copy; 4]) -> Result<(Superblock, [usize; 4]), OpenError> {
    let mut faults = Vec::new();
    for Copy { offset, state } in copies {
        match state {
            CopyState::TooNew { version, incompatible } => {
                return Err(OpenError::Unusable(format!(
                    "it has format version {version} and features {incompatible:#x}, which need a newer blockstore"
                )));
            }
            CopyState::Damaged => faults.push(format!("the superblock at byte {offset} is damaged")),
            CopyState::Unreadable(e) => faults.push(format!("read superblock at byte {offset}: {e}")),
            CopyState::Whole(_) | CopyState::Foreign => {}
        }
    }
    let whole: Vec<&Superblock> = copies.iter().filter_map(Copy::whole).collect();
    let highest = whole.iter().map(|c| c.sequence).max().unwrap_or(0);
    let twice = |c: &Superblock| whole.iter().filter(|d| **d == c).count() >= 2;
    match whole.iter().filter(|c| twice(c)).max_by_key(|c| c.sequence) {
        Some(superblock) => {
            let mut superblock = (*superblock).clone();
            let order = order_after(copies, &superblock);
            superblock.sequence = highest;
            Ok((superblock, order))
        }
        None if whole.is_empty() && faults.is_empty() => Err(OpenError::NotABlockstore(
            "none of the four superblocks is there (or the device has another size than when it was formatted)".into(),
        )),
        None => {
            let seen = if whole.is_empty() { String::new() } else { format!("{} copies without an identical second one; ", whole.len()) };
            Err(OpenError::Unusable(format!("no two superblocks agree: {seen}{}", faults.join("; "))))
        }
    }
}

/// The order in which the superblock after `superblock` must be written: those that do not say the same first.
pub(crate) fn order_after(copies: &[Copy; 4], superblock: &Superblock) -> [usize; 4] {
    let mut order = IN_ORDER;
    order.sort_by_key(|at| copies.get(*at).is_some_and(|copy| copy.whole() == Some(superblock)));
    order
}
