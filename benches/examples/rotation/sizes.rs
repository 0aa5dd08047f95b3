//! How large objects are, and what each of them takes on a device of ours.

use blockstore_tests::blob::Random;

/// Shares in a million and the sizes between which they lie, in bytes, with the exponent of a Pareto tail (0: evenly by the
/// logarithm). 33 % are under 100 B, 66 % under 1 KB, 86 % under 10 KB and 0.06 % over 10 MB, as in a real cache; what lies between
/// 10 KB and 10 MB was not told apart there and is made for a mean of about 16 KB.
const SIZES: [(u64, f64, f64, f64); 6] = [
    (330_000, 8.0, 1e2, 0.0),
    (330_000, 1e2, 1e3, 0.0),
    (200_000, 1e3, 1e4, 0.0),
    (130_000, 1e4, 1e5, 0.0),
    (9_400, 1e5, 1e7, 1.2),
    (600, 1e7, CONTENT_BYTES_MAX as f64, 0.0),
];
/// No object is larger: a device of a few hundred MiB has to hold some of them.
pub(crate) const CONTENT_BYTES_MAX: u64 = 12_000_000;
/// Sizes of action results, evenly by the logarithm.
const ACTION_BYTES: (f64, f64) = (150.0, 900.0);

/// Slots of the table that an object of one record takes on the device, in bytes: 64 of log ring and 16 in each of two images, at
/// a load of 80 %.
const SLOT_BYTES: u64 = (64 + 2 * 16) * 100 / 80;
const PAGE_BYTES: u64 = 4096;
const CHUNK_BYTES: u64 = 64 << 10;
const PACKED_BYTES_MAX: u64 = 64 << 10;
const WHOLE_BYTES_MAX: u64 = 1 << 20;
const HEADER_BYTES: u64 = 64;
const PART_KEY_BYTES: u64 = 40;
const MANIFEST_HEAD_BYTES: u64 = 32;

/// A number from 0 to 1.
fn unit(random: &mut Random) -> f64 {
    random.below(1 << 32) as f64 / (1u64 << 32) as f64
}

fn between(from: f64, to: f64, alpha: f64, position: f64) -> u64 {
    let size = match alpha {
        0.0 => from * (to / from).powf(position),
        // The inverse of the distribution function of a Pareto tail that ends at `to`.
        _ => from / (1.0 - position * (1.0 - (from / to).powf(alpha))).powf(1.0 / alpha),
    };
    size as u64
}

/// The size of a content object, in bytes.
pub(crate) fn content_bytes(random: &mut Random) -> u64 {
    let mut share = random.below(1_000_000);
    for (of, from, to, alpha) in SIZES {
        if share < of {
            return between(from, to, alpha, unit(random));
        }
        share -= of;
    }
    CONTENT_BYTES_MAX
}

/// The size of an action result, in bytes.
pub(crate) fn action_bytes(random: &mut Random) -> u64 {
    between(ACTION_BYTES.0, ACTION_BYTES.1, 0.0, unit(random))
}

/// Bytes of the records of an object in a store with blocks of `block_bytes`: as the engine counts them.
pub(crate) fn record_bytes(size_bytes: u64, block_bytes: u64) -> u64 {
    let whole_bytes_max = WHOLE_BYTES_MAX.min(block_bytes / 4);
    if size_bytes <= PACKED_BYTES_MAX {
        packed(size_bytes)
    } else if size_bytes <= whole_bytes_max {
        paged(size_bytes)
    } else {
        let part = whole_bytes_max;
        let (full, rest) = (size_bytes / part, size_bytes % part);
        let last = if rest > 0 { part_bytes(rest) } else { 0 };
        full * part_bytes(part) + last + packed(MANIFEST_HEAD_BYTES + 4 * parts(size_bytes, block_bytes))
    }
}

/// What an object costs on the device all told: its records and its share of the index.
pub(crate) fn device_bytes(size_bytes: u64, block_bytes: u64) -> u64 {
    record_bytes(size_bytes, block_bytes) + SLOT_BYTES * (1 + parts(size_bytes, block_bytes))
}

fn parts(size_bytes: u64, block_bytes: u64) -> u64 {
    let whole_bytes_max = WHOLE_BYTES_MAX.min(block_bytes / 4);
    if size_bytes > whole_bytes_max.max(PACKED_BYTES_MAX) { size_bytes.div_ceil(whole_bytes_max) } else { 0 }
}
fn packed(payload_bytes: u64) -> u64 {
    ((HEADER_BYTES + 4 * payload_bytes.div_ceil(CHUNK_BYTES)).next_multiple_of(8) + payload_bytes).next_multiple_of(8)
}
fn paged(payload_bytes: u64) -> u64 {
    PAGE_BYTES + payload_bytes.next_multiple_of(PAGE_BYTES)
}
fn part_bytes(payload_bytes: u64) -> u64 {
    // A short last part may be packed in shape though it has a page of its own.
    if payload_bytes > PACKED_BYTES_MAX {
        return paged(payload_bytes);
    }
    ((HEADER_BYTES + PART_KEY_BYTES + 4 * payload_bytes.div_ceil(CHUNK_BYTES)).next_multiple_of(8) + payload_bytes).next_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockstore_engine::{
        Engine, FormatOptions, Key, KeySpace, OpenOptions,
        device::{Latency, SimDevice, SimOptions},
    };
    use std::sync::Arc;

    #[test]
    fn content_follows_the_histogram() {
        let mut random = Random::new(1);
        let sizes: Vec<_> = (0..1_000_000).map(|_| content_bytes(&mut random)).collect();
        let share = |bound| sizes.iter().filter(|size| **size < bound).count() as f64 / 1e6;
        for (bound, expected) in [(100, 0.33), (1000, 0.66), (10_000, 0.86), (100_000, 0.99), (10_000_000, 0.9994)] {
            assert!((share(bound) - expected).abs() < 0.002, "{} below {bound}", share(bound));
        }
        assert!((share(10_000_000) - 0.9994).abs() < 0.0001);
        let mean = sizes.iter().sum::<u64>() / 1_000_000;
        assert!((15_000..17_000).contains(&mean), "{mean} bytes on average");
        assert!(sizes.iter().all(|size| (8..=CONTENT_BYTES_MAX).contains(size)));
    }

    #[test]
    fn records_are_as_long_as_the_engine_makes_them() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        for block_bytes in [1 << 20, 4 << 20] {
            runtime.block_on(async {
                let options = SimOptions { latency: Latency::None, ..SimOptions::new(64 * block_bytes, 1) };
                let device = Arc::new(SimDevice::new(options));
                let format = FormatOptions { block_bytes: Some(block_bytes), objects: None };
                Engine::format_seeded(device.clone(), &format, [7; 32]).await.unwrap();
                let (engine, _) = Engine::open(device, OpenOptions { cache_bytes: 0, ..OpenOptions::default() }).await.unwrap();
                let sizes =
                    [8, 99, 1001, 65_536, 65_537, 262_144, 262_145, 1_048_576, 1_048_577, 3_000_000, 3 * 1_048_576, CONTENT_BYTES_MAX];
                for size_bytes in sizes {
                    let before = engine.stats().accepted_bytes;
                    let mut hash = [0; 32];
                    hash[..8].copy_from_slice(&size_bytes.to_le_bytes());
                    let key = Key { space: KeySpace::Content, function: 1, hash };
                    engine.put(key, vec![1; size_bytes as usize].into()).await.unwrap();
                    let stored = engine.stats().accepted_bytes - before;
                    assert_eq!(stored, record_bytes(size_bytes, block_bytes), "{size_bytes} bytes, blocks of {block_bytes}");
                }
            });
        }
    }
}
