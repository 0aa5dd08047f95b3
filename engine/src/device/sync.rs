//! The backend of plain system calls: a fixed pool of threads that read, write and flush one request each.
//!
//! Always true here: a thread owns the request, and with it the buffer, while it calls the kernel; the device's last act is
//! to wait for its threads, which finish all that was accepted.

use super::{
    AlignedBuf, Device, DeviceCounters, Geometry, IoFuture,
    backing::Backing,
    request::{Front, Inlet, Kind, Meter, Request, SLOW_AFTER, SLOW_CHECK, Step, Watched},
};
use parking_lot::{Condvar, Mutex};
use std::{
    collections::VecDeque,
    io,
    os::fd::AsFd,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Threads of one device, and so the most system calls in flight.
const WORKERS: usize = 16;

/// A device that is driven by a pool of threads.
#[derive(Debug)]
pub(super) struct SyncDevice {
    front: Front<Pool>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
pub(super) struct Pool {
    grain_bytes: usize,
    meter: Arc<Meter>,
    queue: Mutex<Queue>,
    /// Wakes a worker.
    filled: Condvar,
    /// Wakes the watch when the device is closed.
    closed: Condvar,
    /// What each worker is doing. Locked alone, never with `queue`.
    current: [Mutex<Option<Watched>>; WORKERS],
}

#[derive(Default)]
struct Queue {
    requests: VecDeque<Request>,
    closed: bool,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Queue({} requests)", self.requests.len())
    }
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watched")
    }
}

impl SyncDevice {
    /// Starts the threads of a device on `backing`.
    pub(super) fn start(backing: Backing, geometry: Geometry) -> io::Result<Self> {
        Self::start_watched(backing, geometry, SLOW_AFTER, SLOW_CHECK)
    }

    fn start_watched(backing: Backing, geometry: Geometry, slow_after: Duration, slow_check: Duration) -> io::Result<Self> {
        let meter = Arc::new(Meter::default());
        let backing = Arc::new(backing);
        let pool = Arc::new(Pool {
            grain_bytes: geometry.grain_bytes(),
            meter: meter.clone(),
            queue: Mutex::default(),
            filled: Condvar::new(),
            closed: Condvar::new(),
            current: Default::default(),
        });
        let mut device =
            Self { front: Front::new(geometry, backing.clone(), pool.clone(), meter), threads: Vec::with_capacity(WORKERS + 1) };
        for worker in 0..WORKERS {
            let (pool, backing) = (pool.clone(), backing.clone());
            device.threads.push(thread::Builder::new().name(format!("blockstore-io{worker}")).spawn(move || pool.work(worker, &backing))?);
        }
        device.threads.push(thread::Builder::new().name("blockstore-slow".to_owned()).spawn(move || pool.watch(slow_after, slow_check))?);
        Ok(device)
    }
}

impl Drop for SyncDevice {
    fn drop(&mut self) {
        self.front.close();
        let pool = &self.front.inlet;
        pool.queue.lock().closed = true;
        pool.filled.notify_all();
        pool.closed.notify_all();
        for handle in self.threads.drain(..) {
            // An answer may have dropped the last owner of the device, on one of its own threads.
            if handle.thread().id() != thread::current().id() && handle.join().is_err() {
                tracing::error!("a thread of the device panicked");
            }
        }
    }
}

impl Device for SyncDevice {
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

impl Inlet for Pool {
    fn push(&self, request: Request) -> Result<(), Request> {
        let mut queue = self.queue.lock();
        if queue.closed {
            return Err(request);
        }
        queue.requests.push_back(request);
        drop(queue);
        self.filled.notify_one();
        Ok(())
    }
}

impl Pool {
    fn work(&self, worker: usize, backing: &Backing) {
        while let Some(mut request) = self.next() {
            *self.current[worker].lock() = Some(request.watched());
            let result = self.perform(&mut request, backing);
            *self.current[worker].lock() = None;
            request.finish(result);
        }
    }

    /// The next request; `None` once the device is closed and nothing is left to do.
    fn next(&self) -> Option<Request> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(request) = queue.requests.pop_front() {
                return Some(request);
            }
            if queue.closed {
                return None;
            }
            self.filled.wait(&mut queue);
        }
    }

    fn perform(&self, request: &mut Request, backing: &Backing) -> io::Result<()> {
        let fd = backing.as_fd();
        loop {
            let offset_bytes = request.rest_offset_bytes();
            let result = match request.kind {
                Kind::Read => rustix::io::pread(fd, request.rest(), offset_bytes),
                Kind::Write => rustix::io::pwrite(fd, request.rest(), offset_bytes),
                Kind::Flush => rustix::fs::fdatasync(fd).map(|()| 0),
            };
            match request.after(result.map_err(io::Error::from), self.grain_bytes) {
                Step::Again => {}
                Step::Finished(result) => return result,
            }
        }
    }

    /// Looks at the age of what the workers do, until the device is closed.
    fn watch(&self, slow_after: Duration, slow_check: Duration) {
        loop {
            let mut queue = self.queue.lock();
            if queue.closed {
                return;
            }
            self.closed.wait_for(&mut queue, slow_check);
            drop(queue);
            let now = Instant::now();
            for current in &self.current {
                if let Some(watched) = &mut *current.lock() {
                    watched.look(now, slow_after, &self.meter);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::PAGE_BYTES;
    use futures::FutureExt;
    use std::sync::atomic::Ordering::Relaxed;

    fn device(slow_after: Duration) -> SyncDevice {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 20).expect("a size");
        let backing = Backing::lock(file.into()).expect("a lock").expect("a free lock");
        let geometry = Geometry {
            len_bytes: 1 << 20,
            logical_sector_bytes: 512,
            physical_sector_bytes: 4096,
            direct: false,
            backend: "sync",
            block_device: false,
        };
        SyncDevice::start_watched(backing, geometry, slow_after, Duration::from_millis(1)).expect("a device")
    }

    #[tokio::test]
    async fn an_operation_that_takes_too_long_is_counted() {
        let device = device(Duration::ZERO);
        while device.counters().slow == 0 {
            let (_, result) = device.read(0, AlignedBuf::zeroed(1 << 20)).await;
            result.expect("read");
        }
    }

    #[tokio::test]
    async fn a_read_that_the_page_cache_has_needs_no_other_thread() {
        let device = device(SLOW_AFTER);
        let mut page = AlignedBuf::zeroed(PAGE_BYTES);
        page.fill(7);
        device.write(0, page).await.1.expect("write");
        // The kernel may drop the page at any moment, though hardly each time.
        let mut at_once = 0;
        for _ in 0..100 {
            let read = device.read(0, AlignedBuf::zeroed(PAGE_BYTES));
            if let Some((page, result)) = read.now_or_never() {
                result.expect("read");
                assert!(page.iter().all(|byte| *byte == 7));
                at_once += 1;
            }
        }
        if device.front.cached_reads.load(Relaxed) {
            assert!(at_once > 0);
        } else {
            println!("skipped: the file system cannot read without waiting");
        }
    }

    #[tokio::test]
    async fn closing_finishes_what_was_accepted_and_refuses_what_waits() {
        let device = device(SLOW_AFTER);
        let started: Vec<_> = (0..4000).map(|_| device.read(0, AlignedBuf::take(PAGE_BYTES))).collect();
        drop(device);
        for (index, future) in started.into_iter().enumerate() {
            let (buf, result) = future.await;
            assert_eq!(buf.len(), PAGE_BYTES);
            match result {
                Ok(()) => {}
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
                    assert!(index >= super::super::request::REQUESTS_MAX);
                }
            }
        }
    }
}
