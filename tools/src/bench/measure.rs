//! One kind of work on one device, for some time.
//!
//! Always true here: memory does not grow with the number of requests; a request that fails ends the measuring.

use blockstore_engine::device::{AlignedBuf, Device, PAGE_BYTES};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Bytes of a sequential request, and how many of them are in flight: as reclaim, verify and large uploads do it.
const SEQUENTIAL_BYTES: usize = 1 << 20;
const SEQUENTIAL_DEPTH: usize = 8;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    SequentialRead,
    /// With a flush at its end, which counts.
    SequentialWrite,
    RandomRead {
        depth: usize,
    },
    RandomWrite {
        depth: usize,
    },
    /// A page is written, and then a flush is waited for: one acknowledgement where each is durable.
    Flush,
}

impl Work {
    pub(crate) fn all(writes: bool, depths: &[usize]) -> Vec<Self> {
        let mut all = vec![Self::SequentialRead];
        all.extend(depths.iter().map(|depth| Self::RandomRead { depth: *depth }));
        if writes {
            all.extend([Self::SequentialWrite, Self::RandomWrite { depth: *depths.last().unwrap_or(&1) }, Self::Flush]);
        }
        all
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::SequentialRead => "sequential_read",
            Self::SequentialWrite => "sequential_write",
            Self::RandomRead { .. } => "random_read",
            Self::RandomWrite { .. } => "random_write",
            Self::Flush => "flush",
        }
    }

    pub(crate) fn depth(self) -> usize {
        match self {
            Self::SequentialRead | Self::SequentialWrite => SEQUENTIAL_DEPTH,
            Self::RandomRead { depth } | Self::RandomWrite { depth } => depth,
            Self::Flush => 1,
        }
    }

    pub(crate) fn request_bytes(self) -> usize {
        match self {
            Self::SequentialRead | Self::SequentialWrite => SEQUENTIAL_BYTES,
            _ => PAGE_BYTES,
        }
    }
}

/// Latencies in classes of an eighth.
#[derive(Clone, Debug)]
struct Latencies(Vec<u64>);

impl Latencies {
    fn class(us: u64) -> usize {
        match us {
            0..8 => us as usize,
            _ => {
                let shift = 60 - us.leading_zeros();
                ((shift * 8) as u64 + (us >> shift)) as usize
            }
        }
    }
    /// The longest of a class.
    fn longest(class: usize) -> u64 {
        match class {
            0..8 => class as u64,
            _ => {
                let (shift, mantissa) = ((class as u64 - 8) / 8, (class as u64) % 8);
                ((8 + mantissa + 1) << shift) - 1
            }
        }
    }
    fn add(&mut self, took: Duration) {
        let class = Self::class(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        if let Some(n) = self.0.get_mut(class) {
            *n += 1;
        }
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self(vec![0; Self::class(u64::MAX) + 1])
    }
}

/// What came of it.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) work: Work,
    pub(crate) requests: u64,
    pub(crate) elapsed: Duration,
    latencies: Latencies,
}

impl Measured {
    /// Of requests that all took as long.
    #[cfg(test)]
    pub(super) fn steady(work: Work, requests: u64, elapsed: Duration) -> Self {
        let mut latencies = Latencies::default();
        (0..requests).for_each(|_| latencies.add(elapsed / requests.max(1) as u32));
        Self { work, requests, elapsed, latencies }
    }
    pub(crate) fn requests_per_s(&self) -> u64 {
        (self.requests as f64 / self.elapsed.as_secs_f64().max(1e-6)) as u64
    }
    pub(crate) fn bytes_per_s(&self) -> u64 {
        (self.requests as f64 * self.work.request_bytes() as f64 / self.elapsed.as_secs_f64().max(1e-6)) as u64
    }
    /// Microseconds below which this percentage of requests took.
    pub(crate) fn us(&self, percent: u64) -> u64 {
        let wanted = (self.requests * percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (class, n) in self.latencies.0.iter().enumerate() {
            seen += n;
            if seen >= wanted {
                return Latencies::longest(class);
            }
        }
        0
    }
}

/// Bytes that a device cannot make smaller, different ones for each place.
pub(crate) fn fill(buf: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for bytes in buf.chunks_exact_mut(8) {
        bytes.copy_from_slice(&next(&mut state).to_le_bytes());
    }
}

fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Does the work on the first `len_bytes` of a device until the time is over, and until at least one request of each task was answered.
pub(crate) async fn run(device: &Arc<dyn Device>, work: Work, len_bytes: u64, time: Duration) -> io::Result<Measured> {
    let start = Instant::now();
    let until = start + time;
    let turn = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> =
        (0..work.depth() as u64).map(|task| tokio::spawn(requests(device.clone(), work, len_bytes, until, turn.clone(), task))).collect();
    let mut measured = Measured { work, requests: 0, elapsed: Duration::ZERO, latencies: Latencies::default() };
    for task in tasks {
        let (requests, latencies) = task.await.map_err(io::Error::other)??;
        measured.requests += requests;
        measured.latencies.0.iter_mut().zip(latencies.0).for_each(|(sum, n)| *sum += n);
    }
    if work == Work::SequentialWrite {
        device.flush().await?;
    }
    measured.elapsed = start.elapsed();
    Ok(measured)
}

async fn requests(
    device: Arc<dyn Device>,
    work: Work,
    len_bytes: u64,
    until: Instant,
    turn: Arc<AtomicU64>,
    task: u64,
) -> io::Result<(u64, Latencies)> {
    let bytes = work.request_bytes();
    let places = (len_bytes / bytes as u64).max(1);
    let mut state = (task + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut buf = AlignedBuf::zeroed(bytes);
    fill(&mut buf, task + 1);
    let (mut requests, mut latencies) = (0, Latencies::default());
    loop {
        let place = match work {
            Work::SequentialRead | Work::SequentialWrite => turn.fetch_add(1, Relaxed) % places,
            _ => next(&mut state) % places,
        };
        let begin = Instant::now();
        let offset = place * bytes as u64;
        let result;
        (buf, result) = match work {
            Work::SequentialRead | Work::RandomRead { .. } => device.read(offset, buf).await,
            Work::SequentialWrite | Work::RandomWrite { .. } | Work::Flush => device.write(offset, buf).await,
        };
        result?;
        if work == Work::Flush {
            device.flush().await?;
        }
        latencies.add(begin.elapsed());
        requests += 1;
        if Instant::now() >= until {
            return Ok((requests, latencies));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_told_to_an_eighth() {
        for us in (0..100_000).chain([1 << 40, u64::MAX >> 4]) {
            let longest = Latencies::longest(Latencies::class(us));
            assert!(longest >= us && longest <= us + us / 8, "{us}: {longest}");
        }
        let mut latencies = Latencies::default();
        (1..=100).for_each(|us| latencies.add(Duration::from_micros(us)));
        latencies.add(Duration::MAX);
        let measured = Measured { work: Work::Flush, requests: 101, elapsed: Duration::from_secs(1), latencies };
        assert_eq!((measured.us(50), measured.requests_per_s()), (51, 101));
        assert!(measured.us(99) >= 100 && measured.us(99) < 112);
    }
}
