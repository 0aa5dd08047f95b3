//! What the backends with threads have in common: one request, its way into a bounded queue and its way back.
//!
//! Always true here: a request owns its buffer until [`Request::finish`]; at most [`REQUESTS_MAX`] requests of a device
//! exist, whoever wants one more waits in its own future; what was accepted is finished, also if nobody waits any more.

use super::{AlignedBuf, DeviceCounters, Geometry, IoFuture, PAGE_BYTES, backing::Backing};
use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use std::{
    future::{Future, ready},
    io::{self, IoSliceMut},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task::coop::consume_budget,
};

/// The most requests that one device has accepted and not answered.
pub(super) const REQUESTS_MAX: usize = 1024;

/// The age at which an I/O is logged and counted as slow.
pub(super) const SLOW_AFTER: Duration = Duration::from_secs(10);

/// How often requests are looked at for their age.
pub(super) const SLOW_CHECK: Duration = Duration::from_secs(1);

/// The longest read that is tried from the page cache in the caller's own thread: what it copies in some 20 us.
const CACHED_READ_BYTES_MAX: usize = 256 << 10;

/// Interrupted or refused calls of one transfer that are repeated before the error is passed on.
const REPEATS_MAX: u32 = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
}

type Outcome = (Option<AlignedBuf>, io::Result<()>);

/// One accepted operation.
pub(super) struct Request {
    pub(super) kind: Kind,
    offset_bytes: u64,
    buf: Option<AlignedBuf>,
    done_bytes: usize,
    repeats: u32,
    slow: bool,
    since: Instant,
    reply: oneshot::Sender<Outcome>,
    meter: Arc<Meter>,
    permit: OwnedSemaphorePermit,
}

/// What to do with a request after a call for it returned.
pub(super) enum Step {
    /// Call again for [`Request::rest`].
    Again,
    Finished(io::Result<()>),
}

impl Request {
    /// The place that the next call continues at.
    pub(super) fn rest_offset_bytes(&self) -> u64 {
        self.offset_bytes + self.done_bytes as u64
    }

    /// The part of the buffer that is still to be filled or written; empty for a flush.
    pub(super) fn rest(&mut self) -> &mut [u8] {
        match &mut self.buf {
            Some(buf) => &mut buf[self.done_bytes..],
            None => &mut [],
        }
    }

    /// Takes note of what a call returned. A part of `grain_bytes` that came over only in part is asked for again.
    pub(super) fn after(&mut self, result: io::Result<usize>, grain_bytes: usize) -> Step {
        let moved = match result {
            Ok(moved) => moved,
            Err(error) => {
                let again = matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock);
                self.repeats += 1;
                return if again && self.repeats <= REPEATS_MAX { Step::Again } else { Step::Finished(Err(error)) };
            }
        };
        if self.kind == Kind::Flush {
            return Step::Finished(Ok(()));
        }
        let rest = self.rest().len();
        if moved >= rest {
            self.done_bytes += rest;
            return Step::Finished(Ok(()));
        }
        let whole = moved - moved % grain_bytes.max(1);
        if whole == 0 {
            return Step::Finished(Err(match self.kind {
                Kind::Read => {
                    io::Error::new(io::ErrorKind::UnexpectedEof, format!("read past the end at byte {}", self.rest_offset_bytes()))
                }
                _ => io::Error::new(io::ErrorKind::WriteZero, format!("wrote nothing at byte {}", self.rest_offset_bytes())),
            }));
        }
        self.done_bytes += whole;
        Step::Again
    }

    /// Answers, and gives the buffer back.
    pub(super) fn finish(self, result: io::Result<()>) {
        self.meter.in_flight.fetch_sub(1, Relaxed);
        self.meter.finished(self.kind, self.buf.as_ref().map_or(0, |buf| buf.len()), result.is_ok());
        drop(self.permit);
        // If nobody waits, the buffer goes back to the pool here.
        drop(self.reply.send((self.buf, result)));
    }

    /// Answers without the buffer, which the kernel may still use: its memory is given up.
    pub(super) fn abandon(mut self, error: io::Error) {
        std::mem::forget(self.buf.take());
        self.finish(Err(error));
    }

    /// What is watched of this request's age.
    pub(super) fn watched(&self) -> Watched {
        Watched { kind: self.kind, offset_bytes: self.offset_bytes, since: self.since, slow: self.slow }
    }

    /// Logs and counts the request once when it is older than `slow_after`.
    pub(super) fn watch(&mut self, now: Instant, slow_after: Duration) {
        let mut watched = self.watched();
        watched.look(now, slow_after, &self.meter);
        self.slow = watched.slow;
    }
}

/// The age of a request that somebody else holds.
#[derive(Clone, Copy)]
pub(super) struct Watched {
    kind: Kind,
    offset_bytes: u64,
    since: Instant,
    slow: bool,
}

impl Watched {
    /// Logs and counts the request once when it is older than `slow_after`.
    pub(super) fn look(&mut self, now: Instant, slow_after: Duration, meter: &Meter) {
        let age = now.saturating_duration_since(self.since);
        if self.slow || age < slow_after {
            return;
        }
        self.slow = true;
        meter.slow.fetch_add(1, Relaxed);
        tracing::warn!(
            kind = ?self.kind,
            offset_bytes = self.offset_bytes,
            age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            "an i/o of the device has not completed for long"
        );
    }
}

/// Counts what a device does.
#[derive(Debug, Default)]
pub(super) struct Meter {
    reads: AtomicU64,
    writes: AtomicU64,
    flushes: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    failed: AtomicU64,
    slow: AtomicU64,
    in_flight: AtomicU64,
}

impl Meter {
    fn finished(&self, kind: Kind, len: usize, ok: bool) {
        let (operations, bytes) = match kind {
            Kind::Read => (&self.reads, Some(&self.bytes_read)),
            Kind::Write => (&self.writes, Some(&self.bytes_written)),
            Kind::Flush => (&self.flushes, None),
        };
        operations.fetch_add(1, Relaxed);
        if !ok {
            self.failed.fetch_add(1, Relaxed);
        } else if let Some(bytes) = bytes {
            bytes.fetch_add(len as u64, Relaxed);
        }
    }

    pub(super) fn counters(&self) -> DeviceCounters {
        DeviceCounters {
            reads: self.reads.load(Relaxed),
            writes: self.writes.load(Relaxed),
            flushes: self.flushes.load(Relaxed),
            bytes_read: self.bytes_read.load(Relaxed),
            bytes_written: self.bytes_written.load(Relaxed),
            failed: self.failed.load(Relaxed),
            slow: self.slow.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
        }
    }
}

/// Where accepted requests go in.
pub(super) trait Inlet: Send + Sync + 'static {
    /// Takes the request; gives it back if the device is gone.
    fn push(&self, request: Request) -> Result<(), Request>;
}

/// The side of a device that callers see.
#[derive(Debug)]
pub(super) struct Front<Q> {
    pub(super) geometry: Geometry,
    pub(super) inlet: Arc<Q>,
    pub(super) meter: Arc<Meter>,
    permits: Arc<Semaphore>,
    backing: Arc<Backing>,
    /// Reads are tried from the page cache first.
    pub(super) cached_reads: AtomicBool,
}

impl<Q: Inlet> Front<Q> {
    pub(super) fn new(geometry: Geometry, backing: Arc<Backing>, inlet: Arc<Q>, meter: Arc<Meter>) -> Self {
        Self {
            cached_reads: AtomicBool::new(!geometry.direct),
            geometry,
            inlet,
            meter,
            permits: Arc::new(Semaphore::new(REQUESTS_MAX)),
            backing,
        }
    }

    /// Refuses whoever still waits for a place in the queue.
    pub(super) fn close(&self) {
        self.permits.close();
    }

    pub(super) fn transfer(&self, kind: Kind, offset_bytes: u64, mut buf: AlignedBuf) -> IoFuture<(AlignedBuf, io::Result<()>)> {
        if let Err(error) = check_range(self.geometry.len_bytes, offset_bytes, buf.len()) {
            return Box::pin(ready((buf, Err(error))));
        }
        if kind == Kind::Read && self.read_cached(offset_bytes, &mut buf) {
            return Box::pin(async move {
                // A loop of such reads gives way to other tasks now and then.
                consume_budget().await;
                (buf, Ok(()))
            });
        }
        let len = buf.len();
        let outcome = self.start(kind, offset_bytes, Some(buf));
        Box::pin(async move {
            let (buf, result) = outcome.await;
            // Only a device that broke down keeps a buffer.
            (buf.unwrap_or_else(|| AlignedBuf::zeroed(len)), result)
        })
    }

    /// Fills the buffer here and now if the page cache has all of it. The way to another thread and back costs more CPU
    /// than the copy.
    fn read_cached(&self, offset_bytes: u64, buf: &mut AlignedBuf) -> bool {
        if buf.len() > CACHED_READ_BYTES_MAX || !self.cached_reads.load(Relaxed) {
            return false;
        }
        let mut slices = [IoSliceMut::new(buf)];
        match preadv2(&*self.backing, &mut slices, offset_bytes, ReadWriteFlags::NOWAIT) {
            Ok(moved) if moved == buf.len() => {
                self.meter.finished(Kind::Read, moved, true);
                true
            }
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::SPIPE) => {
                self.cached_reads.store(false, Relaxed);
                false
            }
            // Not cached, or only in part, or an error that the ordinary way will find again.
            _ => false,
        }
    }

    /// Takes out of the page cache what needs no writing any more: the next read is of the medium.
    pub(super) fn forget_cached(&self, offset_bytes: u64, len: usize) {
        if let (false, Some(len)) = (self.geometry.direct, std::num::NonZeroU64::new(len as u64))
            && let Err(errno) = fadvise(&*self.backing, offset_bytes, Some(len), Advice::DontNeed)
        {
            tracing::warn!(offset_bytes, error = %errno, "failed to drop cached pages: what a failed flush lost may be seen");
        }
    }

    pub(super) fn flush(&self) -> IoFuture<io::Result<()>> {
        let outcome = self.start(Kind::Flush, 0, None);
        Box::pin(async move { outcome.await.1 })
    }

    /// Hands the request over at once if there is room, else when the future finds room.
    fn start(&self, kind: Kind, offset_bytes: u64, buf: Option<AlignedBuf>) -> impl Future<Output = Outcome> + Send + use<Q> {
        let (inlet, permits, meter) = (self.inlet.clone(), self.permits.clone(), self.meter.clone());
        let (reply, answer) = oneshot::channel();
        let hand_over = move |buf, permit| {
            meter.in_flight.fetch_add(1, Relaxed);
            let request =
                Request { kind, offset_bytes, buf, done_bytes: 0, repeats: 0, slow: false, since: Instant::now(), reply, meter, permit };
            if let Err(request) = inlet.push(request) {
                request.finish(Err(gone()));
            }
        };
        let waiting = match permits.clone().try_acquire_owned() {
            Ok(permit) => {
                hand_over(buf, permit);
                None
            }
            Err(_) => Some((hand_over, buf)),
        };
        async move {
            if let Some((hand_over, buf)) = waiting {
                match permits.acquire_owned().await {
                    Ok(permit) => hand_over(buf, permit),
                    Err(_) => return (buf, Err(gone())),
                }
            }
            answer.await.unwrap_or_else(|_| (None, Err(gone())))
        }
    }
}

pub(super) fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the device has been closed")
}

/// Refuses what is not whole pages inside the device.
pub(super) fn check_range(device_bytes: u64, offset_bytes: u64, len_bytes: usize) -> io::Result<()> {
    let page = PAGE_BYTES as u64;
    let inside = offset_bytes.checked_add(len_bytes as u64).is_some_and(|end| end <= device_bytes);
    if inside && offset_bytes.is_multiple_of(page) && len_bytes > 0 && len_bytes.is_multiple_of(PAGE_BYTES) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{len_bytes} bytes at {offset_bytes} are not whole pages of a device of {device_bytes} bytes"),
    ))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn request(kind: Kind, offset_bytes: u64, len: usize) -> Request {
        let permits = Arc::new(Semaphore::new(1));
        let meter = Arc::new(Meter::default());
        meter.in_flight.fetch_add(1, Relaxed);
        Request {
            kind,
            offset_bytes,
            buf: (len > 0).then(|| AlignedBuf::zeroed(len)),
            done_bytes: 0,
            repeats: 0,
            slow: false,
            since: Instant::now(),
            reply: oneshot::channel().0,
            meter,
            permit: permits.try_acquire_owned().expect("a permit"),
        }
    }

    #[test]
    fn a_short_transfer_goes_on_where_it_stopped() {
        let mut request = request(Kind::Read, 8192, 8192);
        assert!(matches!(request.after(Ok(100), 1), Step::Again));
        assert_eq!(request.rest_offset_bytes(), 8292);
        assert_eq!(request.rest().len(), 8092);
        assert!(matches!(request.after(Ok(8092), 1), Step::Finished(Ok(()))));
    }

    #[test]
    fn a_short_direct_transfer_goes_on_at_a_whole_sector() {
        let mut request = request(Kind::Write, 0, 8192);
        assert!(matches!(request.after(Ok(1000), 512), Step::Again));
        assert_eq!(request.rest_offset_bytes(), 512);
    }

    #[test]
    fn no_progress_is_an_error_and_no_loop() {
        for (kind, expected) in [(Kind::Read, io::ErrorKind::UnexpectedEof), (Kind::Write, io::ErrorKind::WriteZero)] {
            let mut request = request(kind, 0, 4096);
            match request.after(Ok(0), 1) {
                Step::Finished(Err(error)) => assert_eq!(error.kind(), expected),
                _ => panic!("no progress was accepted"),
            }
        }
    }

    #[test]
    fn an_interrupted_call_is_repeated_a_bounded_number_of_times() {
        let mut request = request(Kind::Flush, 0, 0);
        let mut again = 0;
        while let Step::Again = request.after(Err(io::ErrorKind::Interrupted.into()), 1) {
            again += 1;
        }
        assert_eq!(again, REPEATS_MAX);
    }

    #[test]
    fn an_old_request_is_counted_as_slow_once() {
        let mut request = request(Kind::Write, 0, 4096);
        let start = request.since;
        request.watch(start + SLOW_AFTER / 2, SLOW_AFTER);
        assert_eq!(request.meter.counters().slow, 0);
        request.watch(start + SLOW_AFTER, SLOW_AFTER);
        request.watch(start + SLOW_AFTER * 2, SLOW_AFTER);
        assert_eq!(request.meter.counters().slow, 1);
    }

    #[test]
    fn only_whole_pages_inside_the_device_are_accepted() {
        assert!(check_range(1 << 20, 0, 1 << 20).is_ok());
        for (offset, len) in [(1, 4096), (0, 100), (0, 0), (1 << 20, 4096), (u64::MAX - 4095, 4096)] {
            assert!(check_range(1 << 20, offset, len).is_err());
        }
    }
}
