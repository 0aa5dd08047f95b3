//! What all parts of an open store share.
//!
//! Lock order: none of these is held across an await; `space` and a table unit's lock are innermost.

use crate::{
    cache::RecordCache,
    checkpoint,
    clock::AgeClock,
    device::{AlignedBuf, Device, IoFuture},
    engine::OpenOptions,
    error::PutError,
    format::{
        crc::CrcMask,
        layout::{LOAD_MAX_PERCENT, LOAD_RECLAIM_PERCENT, Layout},
        record::RecordKey,
        types::{Epoch, KeyHash, Lsn, Place},
    },
    map::{census::Census, hasher::KeyHasher, held::HeldSlots, table::Table},
    sequencer::{Control, Request},
    space::Space,
    stats::{Counters, count},
    superblocks::Superblocks,
    upload::Uploads,
};
use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    time::Instant,
};

/// Bytes of payloads that may wait for the sequencer at once.
pub(crate) const QUEUED_BYTES_MAX: usize = 64 << 20;
/// Longest wait for room before a put is refused.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(30);

/// The parts.
pub(crate) struct Core {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) options: OpenOptions,
    pub(crate) layout: Layout,
    pub(crate) uuid: [u8; 16],
    pub(crate) epoch: Epoch,
    pub(crate) mask: CrcMask,
    pub(crate) hasher: KeyHasher,
    pub(crate) census: Arc<Census>,
    pub(crate) table: Table,
    pub(crate) held: HeldSlots,
    /// Puts that wait for a slot.
    pub(crate) slot_waiters: AtomicU64,
    pub(crate) space: Space,
    pub(crate) clock: AgeClock,
    pub(crate) cache: RecordCache,
    pub(crate) counters: Counters,
    pub(crate) uploads: Uploads,
    pub(crate) superblocks: Superblocks,
    /// Whose turn it is to write an image; true once the last one is written and the store is marked clean. Held across awaits on
    /// purpose, outside of the superblocks' lock.
    pub(crate) images: tokio::sync::Mutex<bool>,
    pub(crate) poison: Poison,
    pub(crate) puts: mpsc::Sender<Request>,
    pub(crate) control: mpsc::Sender<Control>,
    /// Bounds the payload bytes on their way to the sequencer.
    pub(crate) queued: Arc<Semaphore>,
    /// Requests that the sequencer has taken and not yet answered.
    pub(crate) sequenced: AtomicU64,
    /// Everything up to here is durable.
    pub(crate) durable: watch::Sender<Lsn>,
    /// Everything up to here is published.
    pub(crate) published: AtomicU64,
    /// The last published change that is more than a mark.
    pub(crate) changed: AtomicU64,
    /// First log page that recovery would still need.
    pub(crate) log_tail: AtomicU64,
    /// Last log page in use.
    pub(crate) log_head: AtomicU64,
    pub(crate) unflushed_bytes: AtomicU64,
    /// An image should be considered, or pages of the log came free.
    pub(crate) log_changed: Notify,
}

impl Core {
    pub(crate) fn hash(&self, key: &RecordKey) -> KeyHash {
        self.hasher.hash(key)
    }

    /// Device offset of a place, if its block exists.
    pub(crate) fn device_offset(&self, place: Place) -> Option<u64> {
        let physical = self.layout.physical(place.vbn)?;
        let offset = place.offset_bytes();
        (offset < self.layout.block_bytes).then(|| self.layout.block_offset(physical) + offset)
    }

    /// Writes pages; a failure poisons writing.
    pub(crate) async fn write(&self, offset: u64, buf: AlignedBuf, what: &'static str) -> Result<AlignedBuf, PutError> {
        debug_assert!(offset >= 2 * crate::device::PAGE_BYTES as u64, "superblocks are written by their own module");
        count(&self.counters.written_bytes, buf.len() as u64);
        let (buf, result) = self.device.write(offset, buf).await;
        match result {
            Ok(()) => Ok(buf),
            Err(e) => Err(self.poison.set(format!("write {what} at byte {offset}: {e}"))),
        }
    }

    /// Waits for a flush that was issued; a failure poisons writing.
    pub(crate) async fn flushed(&self, issued: IoFuture<io::Result<()>>) -> Result<(), PutError> {
        count(&self.counters.flushes, 1);
        let start = Instant::now();
        let result = issued.await;
        self.counters.flushed(start.elapsed());
        result.map_err(|e: io::Error| self.poison.set(format!("flush device: {e}")))
    }

    /// Slots in use from which blocks are reclaimed as if space were short.
    pub(crate) fn slots_reclaim(&self) -> u64 {
        self.table.slots() * LOAD_RECLAIM_PERCENT / 100
    }
    /// Slots that puts may fill.
    pub(crate) fn slots_max(&self) -> u64 {
        (self.table.slots() * LOAD_MAX_PERCENT / 100).max(1)
    }

    /// Keeps a slot for a put, waiting for reclaim where the table is full. Give it back with `table.release`.
    pub(crate) async fn reserve_slot(&self, hash: &KeyHash) -> Result<(), PutError> {
        if self.table.reserve(hash, self.slots_max()) {
            return Ok(());
        }
        let start = Instant::now();
        let _waiting = Waiting::on(&self.slot_waiters);
        loop {
            let room = self.space.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if self.table.reserve(hash, self.slots_max()) {
                count(&self.counters.slowed_us, start.elapsed().as_micros() as u64);
                return Ok(());
            }
            self.poison.check()?;
            self.space.wake();
            let flushed = async {
                match self.held.wait_for_flush() {
                    true => drop(checkpoint::flush(self).await),
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                () = room => {}
                () = flushed => {}
                () = tokio::time::sleep_until(start + ROOM_WAIT_MAX) => {
                    return Err(PutError::NoRoom(format!("table is full and no slot came free in {} s", ROOM_WAIT_MAX.as_secs())));
                }
            }
        }
    }

    pub(crate) fn published(&self) -> Lsn {
        Lsn(self.published.load(Ordering::Acquire))
    }
}

/// Counts who waits, until it is dropped.
struct Waiting<'a>(&'a AtomicU64);

impl<'a> Waiting<'a> {
    fn on(waiters: &'a AtomicU64) -> Self {
        waiters.fetch_add(1, Ordering::Relaxed);
        Self(waiters)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why writing is off, once it is. Never cleared while the store is open.
#[derive(Debug, Default)]
pub(crate) struct Poison {
    reason: OnceLock<String>,
    notify: Notify,
}

impl Poison {
    /// Turns writing off and gives the error for whoever noticed.
    pub(crate) fn set(&self, reason: String) -> PutError {
        if self.reason.set(reason.clone()).is_ok() {
            tracing::error!(reason, "writing is off until a restart");
        }
        self.notify.notify_waiters();
        PutError::Unavailable(self.reason.get().cloned().unwrap_or(reason))
    }
    /// Turns writing off because the store was closed.
    pub(crate) fn close(&self) {
        let _ = self.reason.set("store is closed".into());
        self.notify.notify_waiters();
    }
    pub(crate) fn reason(&self) -> Option<String> {
        self.reason.get().cloned()
    }
    pub(crate) fn check(&self) -> Result<(), PutError> {
        self.reason.get().map_or(Ok(()), |r| Err(PutError::Unavailable(r.clone())))
    }
    /// Resolves when writing is turned off.
    pub(crate) async fn happened(&self) {
        loop {
            let notified = self.notify.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.reason.get().is_some() {
                return;
            }
            notified.await;
        }
    }
}
