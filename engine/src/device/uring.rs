//! The io_uring backend: one ring and one thread for a device; batches go in and completions come out.
//!
//! Always true here: from submission to completion a request lies in a slot of the ring thread, and its buffer is neither
//! moved nor freed; if the ring breaks down, the memory is given up rather than freed. Whoever hands over a request writes
//! the eventfd only if the ring thread has said that it is going to sleep.
#![allow(unsafe_code)] // island: memory shared with the kernel

use super::{
    AlignedBuf, Device, DeviceCounters, Geometry, IoFuture,
    backing::Backing,
    request::{Front, Inlet, Kind, Meter, Request, SLOW_AFTER, SLOW_CHECK, Step, gone},
};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use std::{
    collections::VecDeque,
    io, mem,
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Submission entries of the ring.
const RING_ENTRIES: u32 = 256;

/// The most requests in the kernel: the entry that is left is the one that waits for the eventfd.
const SLOTS: usize = RING_ENTRIES as usize - 1;

/// Marks the completion of the read of the eventfd.
const WAKE: u64 = u64::MAX;

/// The file's place among the registered files.
const FILE: types::Fixed = types::Fixed(0);

/// The most bytes of one submission; the kernel moves no more than about 2 GiB.
const TRANSFER_BYTES_MAX: usize = 1 << 30;

/// A device that is driven by a ring.
#[derive(Debug)]
pub(super) struct UringDevice {
    front: Front<Inbox>,
    thread: Option<JoinHandle<()>>,
}

/// The queue into the ring thread.
#[derive(Debug)]
pub(super) struct Inbox {
    queue: Mutex<Queue>,
    eventfd: OwnedFd,
}

#[derive(Default)]
struct Queue {
    requests: VecDeque<Request>,
    /// The ring thread is about to wait, and has to be woken.
    sleeping: bool,
    closed: bool,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Queue({} requests)", self.requests.len())
    }
}

impl UringDevice {
    /// Sets a ring up and starts its thread. Gives the file back if this system has no ring for us.
    pub(super) fn start(backing: Backing, geometry: Geometry) -> Result<Self, (io::Error, Option<Backing>)> {
        Self::start_watched(backing, geometry, SLOW_AFTER)
    }

    fn start_watched(backing: Backing, geometry: Geometry, slow_after: Duration) -> Result<Self, (io::Error, Option<Backing>)> {
        let eventfd = match eventfd(0, EventfdFlags::CLOEXEC) {
            Ok(eventfd) => eventfd,
            Err(errno) => return Err((errno.into(), Some(backing))),
        };
        let backing = Arc::new(backing);
        let ring_backing = backing.clone();
        let inbox = Arc::new(Inbox { queue: Mutex::default(), eventfd });
        let meter = Arc::new(Meter::default());
        let (ready, started) = mpsc::sync_channel(1);
        let grain_bytes = geometry.grain_bytes();
        let ring_inbox = inbox.clone();
        // The ring is made by the thread that uses it: the kernel then need not guard it against others.
        let thread = thread::Builder::new()
            .name("blockstore-ring".to_owned())
            .spawn(move || match Ring::new(ring_backing, ring_inbox, grain_bytes, slow_after) {
                Ok(ring) => {
                    drop(ready.send(Ok(())));
                    ring.run();
                }
                Err(error) => drop(ready.send(Err(error))),
            })
            .map_err(|error| (error, None))?;
        match started.recv() {
            Ok(Ok(())) => Ok(Self { front: Front::new(geometry, backing, inbox, meter), thread: Some(thread) }),
            refused => {
                // The thread has let go of the file before it ends.
                drop(thread.join());
                let error = match refused {
                    Ok(Err(error)) => error,
                    _ => gone(),
                };
                Err((error, Arc::into_inner(backing)))
            }
        }
    }
}

impl Drop for UringDevice {
    fn drop(&mut self) {
        self.front.close();
        let inbox = &self.front.inlet;
        inbox.queue.lock().closed = true;
        inbox.wake();
        let Some(handle) = self.thread.take() else {
            return;
        };
        // An answer may have dropped the last owner of the device, on the ring's own thread.
        if handle.thread().id() != thread::current().id() && handle.join().is_err() {
            tracing::error!("the ring thread of the device panicked");
        }
    }
}

impl Device for UringDevice {
    fn geometry(&self) -> &Geometry {
        &self.front.geometry
    }

    fn read(&self, offset_bytes: u64, buf: AlignedBuf) -> IoFuture<(AlignedBuf, io::Result<()>)> {
        self.front.transfer(Kind::Read, offset_bytes, buf)
    }

    fn read_stored(&self, offset_bytes: u64, buf: AlignedBuf) -> IoFuture<(AlignedBuf, io::Result<()>)> {
        self.front.forget_cached(offset_bytes, buf.len());
        self.front.transfer(Kind::Read, offset_bytes, buf)
    }

    fn write(&self, offset_bytes: u64, buf: AlignedBuf) -> IoFuture<(AlignedBuf, io::Result<()>)> {
        self.front.transfer(Kind::Write, offset_bytes, buf)
    }

    fn flush(&self) -> IoFuture<io::Result<()>> {
        self.front.flush()
    }

    fn counters(&self) -> DeviceCounters {
        self.front.meter.counters()
    }
}

impl Inlet for Inbox {
    fn push(&self, request: Request) -> Result<(), Request> {
        let mut queue = self.queue.lock();
        if queue.closed {
            return Err(request);
        }
        queue.requests.push_back(request);
        let sleeping = mem::take(&mut queue.sleeping);
        drop(queue);
        if sleeping {
            self.wake();
        }
        Ok(())
    }
}

impl Inbox {
    fn wake(&self) {
        #[expect(clippy::host_endian_bytes, reason = "the counter of an eventfd is a number of this host")]
        let one = 1u64.to_ne_bytes();
        if let Err(errno) = rustix::io::write(&self.eventfd, &one) {
            // Only a counter that is full, and so wakes already, refuses.
            tracing::error!(error = %errno, "failed to wake the ring thread");
        }
    }
}

/// What the kernel has of ours. Anything left in it when it is dropped is given up, not freed.
struct Lent {
    slots: Vec<Option<Request>>,
    free: Vec<usize>,
    /// Where the counter of the eventfd is read to; freed only if no read is under way.
    wake_word: *mut [u8; 8],
    wake_armed: bool,
}

impl Lent {
    fn new() -> Self {
        Self {
            slots: (0..SLOTS).map(|_| None).collect(),
            free: (0..SLOTS).rev().collect(),
            wake_word: Box::into_raw(Box::new([0; 8])),
            wake_armed: false,
        }
    }

    fn in_flight(&self) -> usize {
        SLOTS - self.free.len()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        for request in self.slots.iter_mut().filter_map(Option::take) {
            request.abandon(gone());
        }
        if !self.wake_armed {
            // SAFETY: made by `Box::into_raw`, freed only here, and the kernel has no read under way to it.
            drop(unsafe { Box::from_raw(self.wake_word) });
        }
    }
}

/// The ring, in its own thread.
struct Ring {
    ring: IoUring,
    lent: Lent,
    /// Requests that found no slot, and the rest of transfers cut short.
    backlog: VecDeque<Request>,
    inbox: Arc<Inbox>,
    grain_bytes: usize,
    slow_after: Duration,
    next_look: Instant,
    /// Closed last: the ring refers to it.
    backing: Option<Arc<Backing>>,
}

impl Drop for Ring {
    fn drop(&mut self) {
        // In order, nothing is left here. After a breakdown: refuse what waits; what the kernel has is given up with `lent`,
        // and the file stays locked, since it may still be written.
        let mut queue = self.inbox.queue.lock();
        queue.closed = true;
        let left = mem::take(&mut queue.requests);
        drop(queue);
        for request in self.backlog.drain(..).chain(left) {
            request.finish(Err(gone()));
        }
        if self.lent.in_flight() > 0 {
            mem::forget(self.backing.take());
        } else if let Err(error) = self.ring.submitter().unregister_files() {
            tracing::warn!(%error, "failed to unregister the file from the ring");
        }
    }
}

impl Ring {
    fn new(backing: Arc<Backing>, inbox: Arc<Inbox>, grain_bytes: usize, slow_after: Duration) -> io::Result<Self> {
        let ring = set_up()?;
        ring.submitter().register_files(&[backing.as_raw_fd()])?;
        Ok(Self {
            ring,
            lent: Lent::new(),
            backlog: VecDeque::new(),
            inbox,
            grain_bytes,
            slow_after,
            next_look: Instant::now(),
            backing: Some(backing),
        })
    }

    fn run(mut self) {
        if let Err(error) = self.serve() {
            tracing::error!(%error, "the ring of the device broke down");
        }
    }

    /// Serves until the device is closed and everything accepted is answered.
    fn serve(&mut self) -> io::Result<()> {
        let mut arrived = VecDeque::new();
        loop {
            let mut queue = self.inbox.queue.lock();
            queue.sleeping = false;
            mem::swap(&mut queue.requests, &mut arrived);
            let closed = queue.closed;
            drop(queue);
            self.backlog.append(&mut arrived);

            self.reap();
            self.fill(closed)?;
            if closed && self.backlog.is_empty() && self.lent.in_flight() == 0 && !self.lent.wake_armed {
                return Ok(());
            }

            let mut queue = self.inbox.queue.lock();
            let wait = queue.requests.is_empty();
            queue.sleeping = wait;
            drop(queue);
            self.enter(wait)?;
            self.look();
        }
    }

    /// Moves requests from the backlog into the submission queue, as far as there are slots.
    fn fill(&mut self, closed: bool) -> io::Result<()> {
        if !self.lent.wake_armed && !closed {
            let fd = types::Fd(self.inbox.eventfd.as_raw_fd());
            let entry = opcode::Read::new(fd, self.lent.wake_word.cast(), 8).build().user_data(WAKE);
            // SAFETY: `inbox` holds the descriptor, and the word is freed only when no read is armed.
            unsafe { self.ring.submission().push(&entry) }.map_err(|_| full())?;
            self.lent.wake_armed = true;
        }
        let mut submission = self.ring.submission();
        while let Some(slot) = self.lent.free.pop() {
            let Some(mut request) = self.backlog.pop_front() else {
                self.lent.free.push(slot);
                break;
            };
            let entry = entry_of(&mut request).user_data(slot as u64);
            // Into the slot first: from here on its memory is only given back by `reap`, or given up.
            self.lent.slots[slot] = Some(request);
            // SAFETY: the file is registered as long as the ring lives; the buffer stays in its slot, unmoved on the heap,
            // until the completion.
            if unsafe { submission.push(&entry) }.is_err() {
                // The kernel has not seen the entry. It left earlier ones in the queue; they go first.
                if let Some(request) = self.lent.slots[slot].take() {
                    self.backlog.push_front(request);
                }
                self.lent.free.push(slot);
                break;
            }
        }
        Ok(())
    }

    /// Submits what was filled in; with `wait`, waits for a completion, or for the next look at slow requests.
    fn enter(&mut self, wait: bool) -> io::Result<()> {
        let result = if !wait {
            self.ring.submit()
        } else if self.lent.in_flight() == 0 {
            self.ring.submit_and_wait(1)
        } else {
            let timeout = types::Timespec::from(self.slow_after.min(SLOW_CHECK));
            let args = types::SubmitArgs::new().timespec(&timeout);
            self.ring.submitter().submit_with_args(1, &args)
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) => match rustix::io::Errno::from_io_error(&error) {
                Some(rustix::io::Errno::TIME | rustix::io::Errno::INTR) => Ok(()),
                // Short of memory, or completions are to be taken first.
                Some(rustix::io::Errno::AGAIN | rustix::io::Errno::BUSY) => {
                    thread::sleep(Duration::from_millis(1));
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }

    /// Takes the completions and answers their requests.
    fn reap(&mut self) {
        let mut completions = self.ring.completion();
        for completion in &mut completions {
            let data = completion.user_data();
            if data == WAKE {
                self.lent.wake_armed = false;
                continue;
            }
            let slot = usize::try_from(data).unwrap_or(SLOTS);
            let Some(mut request) = self.lent.slots.get_mut(slot).and_then(Option::take) else {
                tracing::error!(slot, "the ring completed a request that it does not have");
                continue;
            };
            self.lent.free.push(slot);
            match request.after(result_of(&completion), self.grain_bytes) {
                Step::Again => self.backlog.push_back(request),
                Step::Finished(result) => request.finish(result),
            }
        }
    }

    /// Looks at the age of the requests in the kernel, now and then.
    fn look(&mut self) {
        if self.lent.in_flight() == 0 {
            return;
        }
        let now = Instant::now();
        if now < self.next_look {
            return;
        }
        self.next_look = now + SLOW_CHECK.min(self.slow_after);
        for request in self.lent.slots.iter_mut().flatten() {
            request.watch(now, self.slow_after);
        }
    }
}

/// The cheapest ring that this kernel has.
fn set_up() -> io::Result<IoUring> {
    // Completions are taken only by the thread that waits for them (6.1), or without interrupting it (5.19).
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(RING_ENTRIES)
        .or_else(|_| IoUring::builder().setup_coop_taskrun().build(RING_ENTRIES))
        .or_else(|_| IoUring::new(RING_ENTRIES))?;
    if !ring.params().is_feature_nodrop() || !ring.params().is_feature_ext_arg() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel's io_uring is older than 5.11"));
    }
    Ok(ring)
}

fn entry_of(request: &mut Request) -> squeue::Entry {
    let offset_bytes = request.rest_offset_bytes();
    let kind = request.kind;
    let rest = request.rest();
    let len = u32::try_from(rest.len().min(TRANSFER_BYTES_MAX)).unwrap_or(u32::MAX);
    match kind {
        Kind::Read => opcode::Read::new(FILE, rest.as_mut_ptr(), len).offset(offset_bytes).build(),
        Kind::Write => opcode::Write::new(FILE, rest.as_ptr(), len).offset(offset_bytes).build(),
        Kind::Flush => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
    }
}

fn result_of(completion: &cqueue::Entry) -> io::Result<usize> {
    let result = completion.result();
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.saturating_neg()))
}

fn full() -> io::Error {
    io::Error::other("the submission queue has no place for the wake-up")
}

#[cfg(test)]
mod tests;
