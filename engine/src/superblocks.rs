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

/// Finds the superblock in force, and the order in which the next one must be written. The returned sequence is the highest seen in
/// any copy.
pub(crate) async fn read(device: &dyn Device) -> Result<(Superblock, [usize; 4]), OpenError> {
    let device_bytes = device.geometry().len_bytes;
    if device_bytes < 4 * PAGE_BYTES as u64 {
        return Err(OpenError::NotABlockstore(format!("{device_bytes} bytes are too few to hold a store")));
    }
    let mut copies = Vec::new();
    let mut faults = Vec::new();
    let mut too_new = None;
    for (copy, offset) in Layout::superblock_offsets(device_bytes).into_iter().enumerate() {
        let (page, result) = device.read_stored(offset, AlignedBuf::zeroed(PAGE_BYTES)).await;
        match result {
            Ok(()) => match Superblock::decode(&page) {
                Ok(superblock) => copies.push((copy, superblock)),
                Err(SuperblockFault::TooNew { version, incompatible }) => too_new = Some((version, incompatible)),
                Err(SuperblockFault::Foreign) => {}
                Err(SuperblockFault::Damaged) => faults.push(format!("the superblock at byte {offset} is damaged")),
            },
            Err(e) => faults.push(format!("read superblock at byte {offset}: {e}")),
        }
    }
    if let Some((version, incompatible)) = too_new {
        return Err(OpenError::Unusable(format!(
            "it has format version {version} and features {incompatible:#x}, which need a newer blockstore"
        )));
    }
    let highest = copies.iter().map(|(_, c)| c.sequence).max().unwrap_or(0);
    let twice = |c: &Superblock| copies.iter().filter(|(_, d)| d == c).count() >= 2;
    let in_force = copies.iter().map(|(_, c)| c).filter(|c| twice(c)).max_by_key(|c| c.sequence).cloned();
    match in_force {
        Some(mut superblock) => {
            let agrees = |at: &usize| copies.iter().any(|(copy, c)| copy == at && *c == superblock);
            let mut order = IN_ORDER;
            order.sort_by_key(agrees);
            superblock.sequence = highest;
            Ok((superblock, order))
        }
        None if copies.is_empty() && faults.is_empty() => Err(OpenError::NotABlockstore(
            "none of the four superblocks is there (or the device has another size than when it was formatted)".into(),
        )),
        None => {
            let seen = if copies.is_empty() { String::new() } else { format!("{} copies without an identical second one; ", copies.len()) };
            Err(OpenError::Unusable(format!("no two superblocks agree: {seen}{}", faults.join("; "))))
        }
    }
}
