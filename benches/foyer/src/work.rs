//! What is done with each engine, and what it cost.

use crate::engines::{Failure, Hash, Seen, Subject};
use bytes::Bytes;
use bytesize::ByteSize;
use rand::{Rng, RngExt, SeedableRng, rngs::Xoshiro256PlusPlus as Generator};
use rand_distr::{Distribution, Zipf};
use std::{
    fs,
    ops::Range,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// Bytes that objects are cut from.
static NOISE: LazyLock<Bytes> = LazyLock::new(|| {
    let mut noise = vec![0; 4 << 20];
    Generator::seed_from_u64(7).fill_bytes(&mut noise);
    noise.into()
});

/// Sizes below these bounds in bytes, and how many of a hundred lie there: what was seen in a real cache, 2.3 KB on average.
const SMALL: [(u64, f64, f64); 4] = [(33, 8.0, 100.0), (33, 100.0, 1e3), (20, 1e3, 1e4), (14, 1e4, 10_240.0)];
const SMALL_BYTES_MEAN: u64 = 2300;

/// Objects that are put together, as a client sends many small ones.
const TOGETHER: usize = 200;
const TOGETHER_NAME: &str = "put, 200 a call";

/// Objects that follow from their numbers.
#[derive(Clone, Copy, Debug)]
pub struct Objects {
    /// Size of each; `None` is the histogram.
    size_bytes: Option<usize>,
}

impl Objects {
    /// Of the histogram.
    pub fn small() -> Self {
        Self { size_bytes: None }
    }

    /// All of one size.
    pub fn of(size_bytes: usize) -> Self {
        Self { size_bytes: Some(size_bytes) }
    }

    fn name(&self) -> String {
        self.size_bytes.map_or("histogram (2.3 KB)".into(), |size_bytes| ByteSize(size_bytes as u64).to_string())
    }

    /// How many have so many bytes together.
    pub fn count(&self, bytes: u64) -> u64 {
        bytes / self.size_bytes.map_or(SMALL_BYTES_MEAN, |size_bytes| size_bytes as u64)
    }

    fn hash(number: u64) -> Hash {
        let mut hash = [0; 32];
        Generator::seed_from_u64(number).fill_bytes(&mut hash);
        hash
    }

    fn data(&self, number: u64) -> Bytes {
        let mut random = Generator::seed_from_u64(!number);
        let size_bytes = self.size_bytes.unwrap_or_else(|| {
            let mut percent = random.random_range(0..100);
            for (share, from, to) in SMALL {
                if percent < share {
                    return (from * (to / from).powf(random.random())) as usize;
                }
                percent -= share;
            }
            SMALL_BYTES_MEAN as usize
        });
        let start = random.random_range(0..NOISE.len() - size_bytes);
        NOISE.slice(start..start + size_bytes)
    }
}

/// What is done.
#[derive(Clone, Debug)]
pub struct Load {
    pub objects: Objects,
    /// Objects that are put.
    pub count: u64,
    /// Those of them that fit in memory easily.
    pub hot: u64,
    pub in_flight: usize,
    pub duration: Duration,
    pub zipf: f64,
}

/// What one kind of operation cost.
#[derive(Clone, Debug)]
pub struct Row {
    name: &'static str,
    operations: u64,
    /// Asked for and not there, in a hundred.
    lost_percent: f64,
    wall_us: f64,
    cpu_us: f64,
    /// Bytes that the kernel moved to or from the device for an operation; those through the page cache count when they are dirtied.
    device_read_bytes: f64,
    device_written_bytes: f64,
}

/// Puts all objects, and gets them in several ways.
pub async fn rows<S: Subject>(subject: S, load: &Load) -> Result<Vec<Row>, Failure> {
    let Load { count, hot, zipf, .. } = *load;
    let mut rows = vec![
        put(&subject, load, "put, 1 a call", 0..count / 2, 1).await?,
        put(&subject, load, TOGETHER_NAME, count / 2..count, TOGETHER).await?,
    ];
    // The hot ones are in memory before they are measured.
    get(&subject, load, "", move |n, _| n % hot, Some(hot * 3)).await?;
    rows.push(get(&subject, load, "get, in memory", move |_, random| random.random_range(0..hot), None).await?);
    rows.push(get(&subject, load, "get, uniform", move |_, random| random.random_range(0..count), None).await?);
    let ranks = Zipf::new(count as f64, zipf)?;
    // Neighbours in rank are no neighbours in the file.
    let skewed = move |_: u64, random: &mut Generator| (ranks.sample(random) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) % count;
    rows.push(get(&subject, load, "get, Zipf", skewed, None).await?);
    subject.close().await?;
    Ok(rows)
}

async fn put<S: Subject>(subject: &S, load: &Load, name: &'static str, numbers: Range<u64>, together: usize) -> Result<Row, Failure> {
    // Made before the clock starts: both pay for storing only.
    let objects: Vec<_> = numbers.map(|number| (Objects::hash(number), load.objects.data(number))).collect();
    let objects: Arc<[(Hash, Bytes)]> = objects.into();
    let before = Used::now()?;
    let mut first = 0;
    while first < objects.len() {
        // A round is all that may be put before the engine must settle.
        let mut end = first;
        let mut bytes = 0;
        while end < objects.len() && subject.unsettled_bytes_max().is_none_or(|bytes_max| bytes < bytes_max) {
            bytes += (objects[end].1.len() as u64).next_multiple_of(4096) + 4096;
            end += 1;
        }
        let next = Arc::new(AtomicU64::new(first as u64));
        let mut tasks = JoinSet::new();
        for _ in 0..load.in_flight {
            let (subject, objects, next) = (subject.clone(), objects.clone(), next.clone());
            tasks.spawn(async move {
                loop {
                    let from = next.fetch_add(together as u64, Relaxed) as usize;
                    if from >= end {
                        return Ok::<_, Failure>(());
                    }
                    subject.put(&objects[from..end.min(from + together)]).await?;
                }
            });
        }
        while let Some(task) = tasks.join_next().await {
            task??;
        }
        subject.settle().await;
        first = end;
    }
    Used::now()?.row(name, before, objects.len() as u64, 0)
}

async fn get<S: Subject>(
    subject: &S,
    load: &Load,
    name: &'static str,
    pick: impl Fn(u64, &mut Generator) -> u64 + Clone + Send + 'static,
    operations_max: Option<u64>,
) -> Result<Row, Failure> {
    let before = Used::now()?;
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for task in 0..load.in_flight as u64 {
        let (subject, next, pick, objects, duration) = (subject.clone(), next.clone(), pick.clone(), load.objects, load.duration);
        tasks.spawn(async move {
            let start = Instant::now();
            let mut random = Generator::seed_from_u64(task + 99);
            let (mut done, mut lost) = (0, 0);
            while operations_max.is_some() || start.elapsed() < duration {
                let turn = next.fetch_add(1, Relaxed);
                if operations_max.is_some_and(|operations_max| turn >= operations_max) {
                    break;
                }
                let number = pick(turn, &mut random);
                match subject.get(Objects::hash(number)).await? {
                    Some(seen) if seen == Seen::of(&objects.data(number)) => {}
                    Some(seen) => return Err(format!("object {number}: read {seen:?}").into()),
                    None => lost += 1,
                }
                done += 1;
                // One that answers at once is not to keep the others from their turn.
                if done % 64 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            Ok::<_, Failure>((done, lost))
        });
    }
    let (mut done, mut lost) = (0, 0);
    while let Some(task) = tasks.join_next().await {
        let (task_done, task_lost) = task??;
        done += task_done;
        lost += task_lost;
    }
    Used::now()?.row(name, before, done, lost)
}

/// What this process has used so far.
#[derive(Clone, Copy, Debug)]
struct Used {
    at: Instant,
    cpu_ticks: u64,
    read_bytes: u64,
    written_bytes: u64,
}

impl Used {
    fn now() -> Result<Self, Failure> {
        let stat = fs::read_to_string("/proc/self/stat")?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let tick = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).ok_or("unexpected /proc/self/stat");
        let io = fs::read_to_string("/proc/self/io")?;
        let bytes =
            |name: &str| io.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok()).ok_or("unexpected /proc/self/io");
        Ok(Self {
            at: Instant::now(),
            cpu_ticks: tick(11)? + tick(12)?,
            read_bytes: bytes("read_bytes:")?,
            written_bytes: bytes("write_bytes:")?,
        })
    }

    fn row(self, name: &'static str, before: Self, operations: u64, lost: u64) -> Result<Row, Failure> {
        let each = |total: f64| total / operations.max(1) as f64;
        Ok(Row {
            name,
            operations,
            lost_percent: 100.0 * each(lost as f64),
            wall_us: each((self.at - before.at).as_secs_f64() * 1e6),
            // Ticks of 10 ms.
            cpu_us: each((self.cpu_ticks - before.cpu_ticks) as f64 * 1e4),
            device_read_bytes: each((self.read_bytes - before.read_bytes) as f64),
            device_written_bytes: each((self.written_bytes - before.written_bytes) as f64),
        })
    }
}

/// Of each figure the least of all runs; what was lost, the most.
pub fn keep_least(best: &mut Vec<Row>, run: Vec<Row>) {
    if best.is_empty() {
        *best = run;
        return;
    }
    for (best, row) in best.iter_mut().zip(run) {
        best.wall_us = best.wall_us.min(row.wall_us);
        best.cpu_us = best.cpu_us.min(row.cpu_us);
        best.device_read_bytes = best.device_read_bytes.min(row.device_read_bytes);
        best.device_written_bytes = best.device_written_bytes.min(row.device_written_bytes);
        best.lost_percent = best.lost_percent.max(row.lost_percent);
        best.operations = best.operations.max(row.operations);
    }
}

/// Both side by side.
pub fn print(objects: &Objects, [ours, foyer]: &[Vec<Row>; 2]) {
    println!("\n{}", objects.name());
    println!(
        "{:<16}{:<7}{:>10}{:>12}{:>12}{:>14}{:>14}{:>9}",
        "", "", "operations", "µs (wall)", "µs (CPU)", "read B/op", "written B/op", "lost %"
    );
    for rows in ours.iter().zip(foyer) {
        for (engine, row) in [("ours", rows.0), ("foyer", rows.1)] {
            println!(
                "{:<16}{engine:<7}{:>10}{:>12.2}{:>12.2}{:>14.0}{:>14.0}{:>9.2}",
                row.name, row.operations, row.wall_us, row.cpu_us, row.device_read_bytes, row.device_written_bytes, row.lost_percent
            );
        }
    }
}
