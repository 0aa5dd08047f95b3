//! Objects that are stored encoded: found by the size of what they stand for, read back as they were put, through restarts, crashes
//! and reclaim, and never beside the same object in another form.

mod common;

use blockstore_engine::{Begin, Codec, Engine, Key, Object, OpenOptions, PutError, PutOutcome, ReadError, Value, device::SimDevice};
use bytes::Bytes;
use common::*;

fn encode() -> OpenOptions {
    OpenOptions { encode: true, ..options() }
}

/// A payload that stands for `size` bytes. What is in it is nobody's business here.
fn payload(id: u64, length: usize) -> Bytes {
    bytes(id ^ 0xe, length)
}

fn value(id: u64, length: usize, size: u64) -> Value {
    Value::encoded(Codec::Zstd, payload(id, length), size)
}

async fn put(engine: &Engine, key: Key, value: Value) -> Result<PutOutcome, PutError> {
    engine.put_values(vec![(key, value)]).await.remove(0)
}

/// A large object of parts whose payloads have `length(part)` bytes.
async fn put_parts(engine: &Engine, id: u64, size: u64, length: impl Fn(u64) -> usize) -> Result<PutOutcome, PutError> {
    let Begin::Upload(mut upload) = engine.begin_upload(content(id), size).await? else { return Ok(PutOutcome::AlreadyPresent) };
    let part_bytes = upload.part_bytes().expect("it is in parts");
    for part in 0..size.div_ceil(part_bytes) {
        upload.write_encoded(Codec::Zstd, &payload(id + part, length(part))).await?;
    }
    assert_eq!(upload.written_bytes(), size);
    upload.finish().await
}

/// The payloads of the parts from the one on that holds byte `offset`, and the byte that the first begins with.
async fn parts(object: Object, offset: u64) -> Result<(u64, Vec<Bytes>), ReadError> {
    let mut reader = object.encoded_reader(offset);
    let start = reader.part_start_bytes();
    let (mut parts, mut part) = (Vec::new(), Vec::new());
    while let Some(piece) = reader.next().await {
        let piece = piece?;
        part.extend_from_slice(&piece.data.into_bytes());
        if piece.ends_part {
            parts.push(std::mem::take(&mut part).into());
        }
    }
    assert!(part.is_empty(), "the last part ends");
    Ok((start, parts))
}

const PART: u64 = 256 << 10;
/// Length of the payload and size of what it stands for; both may be packed or paged.
const WHOLE: [(usize, u64); 6] =
    [(1, 65_521), (100, 100_000), (65_536, 200_000), (65_537, 200_000), (200_000, 262_144), (262_144, 262_144)];

fn part_length(part: u64) -> usize {
    [10, 70_000, 262_144 + 40, 65_536][part as usize % 4]
}

async fn fill(engine: &Engine) {
    fill_between(engine, async || {}).await;
}

/// The same, with something else done before each object.
async fn fill_between(engine: &Engine, mut other: impl AsyncFnMut()) {
    for (id, (length, size)) in (0..).zip(WHOLE) {
        other().await;
        assert_eq!(put(engine, content(id), value(id, length, size)).await.unwrap(), PutOutcome::Stored, "{length} of {size}");
    }
    for (id, size) in [(100, PART + 1), (200, 5 * PART), (300, 12 * PART + 77)] {
        other().await;
        assert_eq!(put_parts(engine, id, size, part_length).await.unwrap(), PutOutcome::Stored, "{size}");
    }
}

async fn check(engine: &Engine) {
    for (id, (length, size)) in (0..).zip(WHOLE) {
        let key = content(id);
        let sizes = [Some(size), None, Some(size - 1), Some(length as u64).filter(|length| *length != size).or(Some(1))];
        assert_eq!(engine.lookup(&sizes.map(|size| (key, size))).await, [true, true, false, false], "{length} of {size}");
        let object = engine.get(&key, Some(size)).await.unwrap();
        assert_eq!((object.codec(), object.size_bytes()), (Codec::Zstd, size));
        assert!(object.whole().is_none());
        assert_eq!(object.whole_encoded().unwrap().into_bytes(), payload(id, length));
        assert_eq!(parts(object, size / 2).await.unwrap(), (0, vec![payload(id, length)]));
        let plain = engine.get(&key, None).await.unwrap().reader(0, None);
        assert!(matches!(plain, Err(ReadError::Encoded)), "nobody takes it for what it stands for");
    }
    for (id, size) in [(100, PART + 1), (200, 5 * PART), (300, 12 * PART + 77)] {
        let key = content(id);
        assert_eq!(engine.lookup(&[(key, Some(size)), (key, Some(size + 1))]).await, [true, false]);
        let all: Vec<_> = (0..size.div_ceil(PART)).map(|part| payload(id + part, part_length(part))).collect();
        for offset in [0, 1, PART - 1, PART, size - 1, size] {
            let first = (offset / PART).min(all.len() as u64 - 1);
            let object = engine.get(&key, Some(size)).await.unwrap();
            assert!(object.whole_encoded().is_none());
            let (start, found) = parts(object, offset).await.unwrap();
            assert_eq!((start, found.len()), (first * PART, all.len() - first as usize));
            assert!(found == all[first as usize..], "{size} from {offset}");
        }
    }
}

async fn store(seed: u64) -> SimDevice {
    let device = sim(64, seed);
    format(&device, None).await;
    device
}

#[test]
fn what_is_encoded_is_found_by_the_size_it_stands_for_and_read_as_it_was_put() {
    run(async {
        let device = store(1).await;
        let (engine, _) = open(&device, encode()).await;
        fill(&engine).await;
        check(&engine).await;
        engine.close().await.unwrap();
        drop(engine);
        // Also by a run that would not store it so.
        let (engine, report) = open(&device, options()).await;
        assert_eq!((report.clean, report.voided_entries, report.damaged_entries), (true, 0, 0));
        check(&engine).await;
    });
}

#[test]
fn what_is_encoded_survives_a_kill() {
    for seed in 0..4 {
        run(async {
            let device = store(seed).await;
            let (engine, _) = open(&device, encode()).await;
            fill(&engine).await;
            drop(engine);
            let (engine, report) = open(&device.snapshot_completed(seed), options()).await;
            assert_eq!((report.clean, report.voided_entries), (false, 0));
            check(&engine).await;
        });
    }
}

/// The same content in the other form is there already, whoever comes first, also at the same time.
#[test]
fn one_copy_is_stored_whatever_its_form() {
    run(async {
        let device = store(2).await;
        let (engine, _) = open(&device, encode()).await;
        assert_eq!(put(&engine, content(1), value(1, 10, 1000)).await.unwrap(), PutOutcome::Stored);
        assert_eq!(engine.put(content(1), bytes(1, 1000)).await.unwrap(), PutOutcome::AlreadyPresent);
        assert_eq!(engine.put(content(2), bytes(2, 1000)).await.unwrap(), PutOutcome::Stored);
        assert_eq!(put(&engine, content(2), value(2, 10, 1000)).await.unwrap(), PutOutcome::AlreadyPresent);
        put(&engine, content(5), value(5, 100_000, 1000)).await.expect("a payload may be longer than what it stands for");
        let both = tokio::join!(engine.put(content(3), bytes(3, 100_000)), put(&engine, content(3), value(3, 70_000, 100_000)));
        let outcomes = [both.0.unwrap(), both.1.unwrap()];
        assert!(outcomes.contains(&PutOutcome::Stored) && outcomes.contains(&PutOutcome::AlreadyPresent), "{outcomes:?}");
        put_parts(&engine, 400, 3 * PART, part_length).await.unwrap();
        assert_eq!(engine.put(content(400), bytes(4, 3 * PART as usize)).await.unwrap(), PutOutcome::AlreadyPresent);
        assert_eq!(engine.stats().live_slots, 4 + 1 + 3);
    });
}

#[test]
fn what_does_not_belong_together_is_refused() {
    run(async {
        let device = store(3).await;
        let (engine, _) = open(&device, encode()).await;
        let too_large = put(&engine, content(1), value(1, 10, PART + 1)).await;
        assert!(matches!(too_large, Err(PutError::TooLarge { limit_bytes: PART, .. })), "{too_large:?}");
        assert!(put(&engine, named(1), value(1, 10, 20)).await.is_err(), "named values are not encoded");
        let begin = |id| {
            let engine = engine.clone();
            async move {
                let Ok(Begin::Upload(upload)) = engine.begin_upload(content(id), 2 * PART).await else { panic!("nothing is there") };
                upload
            }
        };
        let mut upload = begin(2).await;
        upload.write(b"plain").await.unwrap();
        assert!(upload.write_encoded(Codec::Zstd, b"frame").await.is_err());
        let mut upload = begin(3).await;
        upload.write_encoded(Codec::Zstd, b"frame").await.unwrap();
        assert!(upload.write(b"plain").await.is_err());
        assert!(matches!(upload.finish().await, Err(PutError::SizeMismatch { sent_bytes: PART, .. })));
        let mut upload = begin(4).await;
        for _ in 0..2 {
            upload.write_encoded(Codec::Zstd, b"frame").await.unwrap();
        }
        assert!(upload.write_encoded(Codec::Zstd, b"frame").await.is_err(), "there is no third part");
        // A run that was not opened for it stores nothing that would need the feature.
        engine.close().await.unwrap();
        let (engine, _) = open(&device, options()).await;
        assert!(put(&engine, content(5), value(5, 10, 100)).await.is_err());
    });
}

#[test]
fn reclaim_carries_what_is_encoded_as_it_is() {
    run(async {
        let device = store(4).await;
        let (engine, _) = open(&device, encode()).await;
        // A few in each block that is otherwise of no use to anybody, be it one of packed or of paged records.
        let mut ids = 20_000..;
        fill_between(&engine, async || {
            for (id, length) in ids.by_ref().zip([60_000, 70_000].repeat(6)) {
                engine.put(content(id), bytes(id, length)).await.unwrap();
            }
        })
        .await;
        for id in 0..1200 {
            engine.put(content(10_000 + id), bytes(id, 60_000)).await.unwrap();
            if id % 20 == 0 {
                check(&engine).await;
                // Something is wanted in every block, so that none goes without a copy.
                let wanted: Vec<_> = (0..=id).step_by(16).map(|id| (content(10_000 + id), None)).collect();
                engine.lookup(&wanted).await;
            }
        }
        let stats = engine.stats();
        assert!(stats.blocks_reclaimed > 20 && stats.carried_bytes > 0, "{stats:?}");
        check(&engine).await;
        engine.close().await.unwrap();
        let (engine, _) = open(&device, options()).await;
        check(&engine).await;
    });
}

#[test]
fn what_makes_no_sense_to_its_reader_can_be_dropped() {
    run(async {
        let device = store(5).await;
        let (engine, _) = open(&device, encode()).await;
        fill(&engine).await;
        for (key, size) in [(content(0), WHOLE[0].1), (content(200), 5 * PART)] {
            engine.get(&key, Some(size)).await.unwrap().discard();
            assert_eq!(engine.lookup(&[(key, Some(size))]).await, [false]);
        }
        assert_eq!(engine.stats().damaged_records, 2);
        engine.flush().await.unwrap();
        let (engine, _) = open(&device.snapshot_completed(0), options()).await;
        assert_eq!(engine.lookup(&[(content(0), None), (content(200), None), (content(1), None)]).await, [false, false, true]);
    });
}
