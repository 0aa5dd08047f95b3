//! The simulated device: a disk with a volatile cache, for tests of everything that must survive a crash.
//!
//! Always true here: a write is visible once it completed and durable once a flush that was issued after that completed;
//! everything that is left to chance is drawn from one seed, in the order of the calls; no threads, no clock but tokio's.
//!
//! The kernel's short transfers do not reach this seam, since a device answers for whole buffers; a write that fails leaves
//! any part of its sectors, which is what a caller can see of one.

use super::{AlignedBuf, Device, DeviceCounters, Geometry, IoFuture, PAGE_BYTES, request::check_range};
use parking_lot::Mutex;
use std::{
    fmt,
    future::{Future, pending, poll_fn, ready},
    io,
    sync::Arc,
    task::Poll,
    time::Duration,
};
use tokio::sync::watch;

mod crash;
mod faults;
mod image;
mod rng;

pub use crash::CrashModel;
pub use faults::{FlushFault, ReadFault, SimHandle, WriteFault};

use faults::Faults;
use image::{Image, Write};
use rng::Rng;

/// The most operations that a write goes on for after its future was dropped.
const ORPHAN_OPERATIONS_MAX: u64 = 16;

/// How long operations take, and so how they overtake each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latency {
    /// Each completes when it is first polled.
    None,
    /// Each gives way to others up to so many times.
    Yields {
        /// The most times.
        max: u32,
    },
    /// Each sleeps for a time between these, on tokio's clock.
    Sleep {
        /// The shortest time.
        min: Duration,
        /// The longest time.
        max: Duration,
    },
}

/// What a simulated device is made of.
#[derive(Clone, Copy, Debug)]
pub struct SimOptions {
    /// Size in bytes, rounded down to whole pages.
    pub len_bytes: u64,
    /// 512 or 4096: the unit that an interrupted write leaves old or new.
    pub logical_sector_bytes: u32,
    /// Where all chance comes from.
    pub seed: u64,
    /// How long operations take.
    pub latency: Latency,
}

impl SimOptions {
    /// A device of `len_bytes` with sectors of 512 bytes, whose operations overtake each other.
    pub fn new(len_bytes: u64, seed: u64) -> Self {
        Self { len_bytes, logical_sector_bytes: 512, seed, latency: Latency::Yields { max: 3 } }
    }
}

/// The test device: a disk in memory that can lose, tear and damage what was not flushed. Full of zeros when new; memory is
/// used only for pages that were written.
#[derive(Clone)]
pub struct SimDevice {
    geometry: Geometry,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    halted: watch::Sender<bool>,
}

struct State {
    image: Image,
    rng: Rng,
    latency: Latency,
    faults: Faults,
    counters: DeviceCounters,
    operations: u64,
    next_id: u64,
}

impl fmt::Debug for SimDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimDevice({} bytes)", self.geometry.len_bytes)
    }
}

impl SimDevice {
    /// A new device, full of zeros.
    ///
    /// # Panics
    /// If the sector size is not 512 or 4096.
    pub fn new(options: SimOptions) -> Self {
        assert!(matches!(options.logical_sector_bytes, 512 | 4096), "a sector has 512 or 4096 bytes");
        let page = PAGE_BYTES as u64;
        let geometry = Geometry {
            len_bytes: options.len_bytes / page * page,
            logical_sector_bytes: options.logical_sector_bytes,
            physical_sector_bytes: 4096,
            direct: true,
            backend: "sim",
            block_device: true,
        };
        let sector_bytes = usize::try_from(options.logical_sector_bytes).unwrap_or(PAGE_BYTES);
        let image = Image::new(sector_bytes);
        Self::with(geometry, image, options.seed, options.latency)
    }

    fn with(geometry: Geometry, image: Image, seed: u64, latency: Latency) -> Self {
        let state = State {
            image,
            rng: Rng::new(seed),
            latency,
            faults: Faults::default(),
            counters: DeviceCounters::default(),
            operations: 0,
            next_id: 0,
        };
        Self { geometry, shared: Arc::new(Shared { state: Mutex::new(state), halted: watch::Sender::new(false) }) }
    }

    /// A device of the same kind, without faults, with what `image` makes of the present one.
    fn successor(&self, seed: u64, image: impl FnOnce(&Image) -> Image) -> Self {
        let state = self.shared.state.lock();
        Self::with(self.geometry.clone(), image(&state.image), seed, state.latency)
    }

    /// What faults are injected with, and the device is looked into.
    pub fn handle(&self) -> SimHandle {
        SimHandle { device: self.clone() }
    }
}

impl State {
    /// Counts an operation, halts the device if it is the one to halt at, and lets orphaned writes go on.
    fn issue(&mut self, halted: &watch::Sender<bool>) -> Delay {
        let operation = self.operations;
        self.operations += 1;
        if self.faults.halt_at.is_some_and(|at| operation >= at) {
            halted.send_replace(true);
        }
        if !*halted.borrow() {
            self.advance_orphans();
        }
        match self.latency {
            Latency::None => Delay::Yields(0),
            Latency::Yields { max } => Delay::Yields(u32::try_from(self.rng.below(u64::from(max) + 1)).unwrap_or(0)),
            Latency::Sleep { min, max } => {
                let spread = u64::try_from(max.saturating_sub(min).as_nanos()).unwrap_or(u64::MAX);
                let extra = self.rng.below(spread.saturating_add(1));
                Delay::Sleep(min + Duration::from_nanos(extra))
            }
        }
    }

    fn advance_orphans(&mut self) {
        let mut due = Vec::new();
        for (id, write) in &mut self.image.in_flight {
            if let Some(left) = &mut write.orphaned {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    due.push(*id);
                }
            }
        }
        for id in due {
            self.complete_write(id);
        }
    }

    fn complete_write(&mut self, id: u64) {
        if let Some(write) = self.image.in_flight.remove(&id) {
            self.image.complete(&write);
            self.answered(true, |counters| {
                counters.writes += 1;
                counters.bytes_written += (write.pages.len() * PAGE_BYTES) as u64;
            });
        }
    }

    fn answered(&mut self, ok: bool, count: impl FnOnce(&mut DeviceCounters)) {
        if ok {
            count(&mut self.counters);
        } else {
            self.counters.failed += 1;
        }
    }

    /// What a read of the pages sees: of writes under way, any part.
    fn fill(&mut self, first_page: u64, buf: &mut [u8]) -> io::Result<()> {
        for (page, to) in (first_page..).zip(buf.chunks_mut(PAGE_BYTES)) {
            let mut content = self.image.current(page)?.clone();
            for write in self.image.in_flight.values() {
                let new = page.checked_sub(write.first_page).and_then(|at| write.pages.get(usize::try_from(at).ok()?));
                if let Some(new) = new {
                    content = self.image.mix(&content, new, &mut self.rng);
                }
            }
            to.copy_from_slice(&*content);
        }
        Ok(())
    }
}

/// How long an operation takes, drawn when it is issued.
enum Delay {
    Yields(u32),
    Sleep(Duration),
}

impl Delay {
    async fn pass(self) {
        match self {
            Self::Yields(mut left) => {
                poll_fn(|context| {
                    if left == 0 {
                        return Poll::Ready(());
                    }
                    left -= 1;
                    context.waker().wake_by_ref();
                    Poll::Pending
                })
                .await;
            }
            Self::Sleep(time) => tokio::time::sleep(time).await,
        }
    }
}

/// A write under way; if nobody waits for it any more, it completes a few operations later.
struct Underway {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Underway {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        let State { image, rng, .. } = &mut *state;
        if let Some(write) = image.in_flight.get_mut(&self.id) {
            let left = 1 + rng.below(ORPHAN_OPERATIONS_MAX);
            write.orphaned = Some(u32::try_from(left).unwrap_or(1));
        }
    }
}

impl Shared {
    /// Waits for the operation's time; forever, if the device halts.
    async fn pass(&self, delay: Delay) {
        delay.pass().await;
        if *self.halted.borrow() {
            pending::<()>().await;
        }
    }
}

impl Device for SimDevice {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn read(&self, offset_bytes: u64, mut buf: AlignedBuf) -> IoFuture<(AlignedBuf, io::Result<()>)> {
        if let Err(error) = check_range(self.geometry.len_bytes, offset_bytes, buf.len()) {
            return Box::pin(ready((buf, Err(error))));
        }
        let shared = self.shared.clone();
        let mut state = shared.state.lock();
        let delay = state.issue(&shared.halted);
        let fault = state.faults.next_read();
        drop(state);
        Box::pin(async move {
            shared.pass(delay).await;
            let mut guard = shared.state.lock();
            let state = &mut *guard;
            let len = buf.len() as u64;
            let result = state
                .faults
                .refuse_read(offset_bytes, len, fault)
                .and_then(|from_bytes| state.fill(from_bytes / PAGE_BYTES as u64, &mut buf));
            match &result {
                Ok(()) => state.faults.spoil_read(fault, &mut buf, &mut state.rng),
                // A failed read may have filled any part.
                Err(_) => state.rng.fill(&mut buf),
            }
            state.answered(result.is_ok(), |counters| {
                counters.reads += 1;
                counters.bytes_read += len;
            });
            drop(guard);
            (buf, result)
        })
    }

    fn read_stored(&self, offset_bytes: u64, buf: AlignedBuf) -> IoFuture<(AlignedBuf, io::Result<()>)> {
        let first_page = offset_bytes / PAGE_BYTES as u64;
        self.shared.state.lock().image.forget_doomed(first_page..first_page + (buf.len() / PAGE_BYTES) as u64);
        self.read(offset_bytes, buf)
    }

    fn write(&self, offset_bytes: u64, buf: AlignedBuf) -> IoFuture<(AlignedBuf, io::Result<()>)> {
        if let Err(error) = check_range(self.geometry.len_bytes, offset_bytes, buf.len()) {
            return Box::pin(ready((buf, Err(error))));
        }
        let mut guard = self.shared.state.lock();
        let state = &mut *guard;
        let delay = state.issue(&self.shared.halted);
        let fault = state.faults.next_write();
        let id = state.next_id;
        state.next_id += 1;
        let len_bytes = self.geometry.len_bytes;
        let to_bytes = match fault {
            Some(WriteFault::Misdirect { to_bytes }) if check_range(len_bytes, to_bytes, buf.len()).is_ok() => to_bytes,
            _ => offset_bytes,
        };
        let write = Write {
            first_page: to_bytes / PAGE_BYTES as u64,
            pages: match fault {
                Some(WriteFault::Lose) => Vec::new(),
                _ => Image::pages_of(&buf),
            },
            orphaned: None,
        };
        state.image.in_flight.insert(id, write);
        drop(guard);
        let underway = Underway { shared: self.shared.clone(), id };
        Box::pin(async move {
            let shared = &underway.shared;
            shared.pass(delay).await;
            let mut guard = shared.state.lock();
            let state = &mut *guard;
            let result = state.faults.refuse_write(fault);
            if result.is_ok() {
                state.complete_write(id);
            } else if let Some(write) = state.image.in_flight.remove(&id) {
                state.image.complete_in_part(&write, &mut state.rng);
                state.answered(false, |_| {});
            }
            drop(guard);
            (buf, result)
        })
    }

    fn flush(&self) -> IoFuture<io::Result<()>> {
        let shared = self.shared.clone();
        let mut state = shared.state.lock();
        let delay = state.issue(&shared.halted);
        let fault = state.faults.next_flush();
        let mark = state.image.sequence;
        drop(state);
        Box::pin(async move {
            shared.pass(delay).await;
            let mut guard = shared.state.lock();
            let state = &mut *guard;
            let result = state.faults.refuse_flush(fault);
            match (&result, fault) {
                (Ok(()), Some(FlushFault::Lie)) => {}
                (Ok(()), _) => state.image.flush(mark),
                (Err(_), _) => state.image.fail_flush(mark, &mut state.rng),
            }
            state.answered(result.is_ok(), |counters| counters.flushes += 1);
            result
        })
    }

    fn counters(&self) -> DeviceCounters {
        let state = self.shared.state.lock();
        // A dropped read or flush leaves no trace: only writes are known to be under way.
        DeviceCounters { in_flight: state.image.in_flight.len() as u64, ..state.counters }
    }
}

/// Waits until the device has halted.
fn halted(shared: &Arc<Shared>) -> impl Future<Output = ()> + Send + use<> {
    let mut receiver = shared.halted.subscribe();
    let shared = shared.clone();
    async move {
        // The sender lives as long as the device that this holds.
        drop(receiver.wait_for(|halted| *halted).await.map(|_| ()));
        drop(shared);
    }
}

#[cfg(test)]
mod tests;
