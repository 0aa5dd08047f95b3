//! What a store promises while nothing goes wrong: what is put is found, exactly, also after a restart.

mod common;

use blockstore_engine::{Engine, FormatOptions, OpenError, OpenOptions, PutError, PutOutcome, ReadError};
use bytes::Bytes;
use common::*;
use std::sync::Arc;

#[test]
fn objects_of_every_size_are_read_back_exactly_also_after_a_clean_restart() {
    run(async {
        let device = sim(64, 1);
        format(&device, None).await;
        let (engine, _) = open(&device, options()).await;
        let sizes =
            [1usize, 7, 100, 4095, 4096, 4097, 65_535, 65_536, 65_537, 200_000, 262_144, 262_145, 1 << 20, (1 << 20) + 1, 5_000_000];
        for (id, size) in sizes.iter().enumerate() {
            let data = bytes(id as u64, *size);
            assert_eq!(put_stream(&engine, content(id as u64), &data, 50_000).await.unwrap(), PutOutcome::Stored, "size {size}");
            assert_eq!(get(&engine, &content(id as u64), Some(*size as u64)).await, Some(data), "size {size}");
        }
        engine.close().await.unwrap();
        drop(engine);
        let (engine, report) = open(&device, options()).await;
        assert!(report.clean);
        assert_eq!((report.voided_entries, report.damaged_entries), (0, 0));
        for (id, size) in sizes.iter().enumerate() {
            assert_eq!(get(&engine, &content(id as u64), Some(*size as u64)).await, Some(bytes(id as u64, *size)), "size {size}");
            assert_eq!(get(&engine, &content(id as u64), Some(*size as u64 + 1)).await, None, "a wrong size is missing");
        }
    });
}

#[test]
fn ranges_of_small_and_large_objects_are_exact() {
    run(async {
        let device = sim(64, 2);
        format(&device, None).await;
        let (engine, _) = open(&device, options()).await;
        for size in [10_000usize, 250_000, 3_000_000] {
            let data = bytes(size as u64, size);
            engine.put(content(size as u64), data.clone()).await.unwrap();
            for (offset, limit) in
                [(0u64, Some(1u64)), (1, None), (size as u64 - 1, None), (size as u64, None), (5000, Some(4000)), (9_999, Some(2_000_000))]
            {
                let mut reader = engine.get(&content(size as u64), None).await.unwrap().reader(offset, limit).unwrap();
                let mut out = Vec::new();
                while let Some(piece) = reader.next().await {
                    out.extend_from_slice(&piece.unwrap().into_bytes());
                }
                let end = limit.map_or(size, |l| (offset + l).min(size as u64) as usize);
                assert_eq!(out, data[offset as usize..end.max(offset as usize)], "{offset} {limit:?} of {size}");
            }
            let past = engine.get(&content(size as u64), None).await.unwrap().reader(size as u64 + 1, None);
            assert!(matches!(past, Err(ReadError::OutOfRange { .. })));
        }
    });
}

#[test]
fn what_is_put_does_not_keep_the_buffer_alive_that_it_came_in() {
    run(async {
        let device = sim(64, 2);
        format(&device, None).await;
        let (engine, _) = open(&device, OpenOptions { cache_bytes: 16 << 20, ..options() }).await;
        for (id, size) in [(1, 100), (2, 17_000), (3, 65_536), (4, 65_537)] {
            let data = bytes(id, size);
            let buffer = Arc::new([&[0; 1000], &data[..], &[0; 1000]].concat());
            let part = Bytes::from_owner(Owner(buffer.clone())).slice(1000..1000 + size);
            assert_eq!(engine.put(content(id), part).await.unwrap(), PutOutcome::Stored);
            assert_eq!(Arc::strong_count(&buffer), 1, "of {size} bytes");
            assert_eq!(get(&engine, &content(id), None).await, Some(data), "size {size}");
        }
    });
}

struct Owner(Arc<Vec<u8>>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[test]
fn an_upload_is_read_back_by_its_owner_alone_and_goes_with_it() {
    run(async {
        let device = sim(64, 2);
        format(&device, None).await;
        let (engine, _) = open(&device, options()).await;
        for (id, size) in [(1, 100), (2, 300_000), (3, 3_000_000), (4, 9_000_001)] {
            let data = bytes(id, size);
            let blockstore_engine::Begin::Upload(mut upload) = engine.begin_upload(content(id), size as u64).await.unwrap() else {
                panic!("nothing is there yet");
            };
            upload.write(&data[..size - 1]).await.unwrap();
            assert!(matches!(upload.read_back().await, Err(PutError::SizeMismatch { .. })), "of what is not complete nothing");
            upload.write(&data[size - 1..]).await.unwrap();
            let object = upload.read_back().await.unwrap();
            assert_eq!(object.is_some(), size > 256 << 10, "what is one record, at most a quarter of a block, is not on the device yet");
            if let Some(object) = object {
                assert_eq!(object.size_bytes(), size as u64);
                let mut reader = object.reader(0, None).unwrap();
                let mut out = Vec::new();
                while let Some(piece) = reader.next().await {
                    out.extend_from_slice(&piece.unwrap().into_bytes());
                }
                assert_eq!(out, data);
            }
            assert_eq!(engine.lookup(&[(content(id), None)]).await, [false], "nobody else sees it");
            drop(upload);
            assert_eq!(put_stream(&engine, content(id), &data, 50_000).await.unwrap(), PutOutcome::Stored);
            assert_eq!(get(&engine, &content(id), None).await, Some(data));
        }
    });
}

#[test]
fn a_named_key_is_replaced_and_deleted() {
    run(async {
        let device = sim(64, 3);
        format(&device, None).await;
        let (engine, _) = open(&device, options()).await;
        for version in 0..5u64 {
            engine.put(named(1), bytes(version, 100 + version as usize)).await.unwrap();
            assert_eq!(get(&engine, &named(1), None).await, Some(bytes(version, 100 + version as usize)));
        }
        assert_eq!(get(&engine, &content(1), None).await, None, "named and content keys do not meet");
        assert!(engine.delete(&named(1)).await.unwrap());
        assert!(!engine.delete(&named(1)).await.unwrap());
        assert_eq!(get(&engine, &named(1), None).await, None);
        let device = device.snapshot_completed(1);
        drop(engine);
        let (engine, _) = open(&device, options()).await;
        assert_eq!(get(&engine, &named(1), None).await, None, "a deletion survives a killed process");
    });
}

#[test]
fn thirty_two_puts_of_one_blob_at_once_store_one_copy() {
    run(async {
        for size in [1000usize, 100_000, 3_000_000] {
            let device = sim(128, 4);
            format(&device, None).await;
            let (engine, _) = open(&device, options()).await;
            let data = bytes(9, size);
            let tasks: Vec<_> = (0..32)
                .map(|_| {
                    let (engine, data) = (engine.clone(), data.clone());
                    tokio::spawn(async move { put_stream(&engine, content(9), &data, 70_000).await })
                })
                .collect();
            let mut stored = 0;
            for task in tasks {
                stored += usize::from(task.await.unwrap().unwrap() == PutOutcome::Stored);
            }
            assert_eq!(stored, 1);
            assert!(engine.stats().accepted_bytes < size as u64 * 2, "{:?}", engine.stats());
        }
    });
}

#[test]
fn who_follows_a_put_that_stands_still_takes_over() {
    run(async {
        let device = sim(64, 5);
        format(&device, None).await;
        let (engine, _) = open(&device, options()).await;
        let data = bytes(1, 500_000);
        let blockstore_engine::Begin::Upload(mut stalled) = engine.begin_upload(content(1), 500_000).await.unwrap() else { panic!("new") };
        stalled.write(&data[..1000]).await.unwrap();
        assert_eq!(engine.put(content(1), data.clone()).await.unwrap(), PutOutcome::Stored);
        assert_eq!(engine.stats().puts_taken_over, 1);
        // The one that was overtaken may still come to its end.
        stalled.write(&data[1000..]).await.unwrap();
        stalled.finish().await.unwrap();
        assert_eq!(get(&engine, &content(1), Some(500_000)).await, Some(data));
    });
}

#[test]
fn a_batch_with_repeated_and_large_items_answers_each() {
    run(async {
        let device = sim(64, 6);
        format(&device, None).await;
        let (engine, _) = open(&device, options()).await;
        let mut items: Vec<_> = (0..700u64).map(|id| (content(id % 600), bytes(id % 600, 50 + (id % 600) as usize))).collect();
        items.push((content(1000), bytes(1000, 300_000)));
        items.push((named(5), bytes(5, 10)));
        let results = engine.put_batch(items.clone()).await;
        assert!(results.iter().all(Result::is_ok));
        assert_eq!(results.iter().flatten().filter(|o| **o == PutOutcome::AlreadyPresent).count(), 100);
        for (key, data) in items {
            assert_eq!(get(&engine, &key, Some(data.len() as u64)).await, Some(data));
        }
    });
}

#[test]
fn what_is_too_large_or_does_not_add_up_is_refused_and_loses_nothing() {
    run(async {
        let device = sim(64, 7);
        format(&device, None).await;
        let (engine, _) = open(&device, options()).await;
        engine.put(content(1), bytes(1, 1000)).await.unwrap();
        assert!(matches!(engine.begin_upload(content(2), 1 << 40).await, Err(PutError::TooLarge { .. })));
        assert!(matches!(engine.put(named(2), Bytes::from(vec![0; 20 << 20])).await, Err(PutError::TooLarge { .. })));
        for size in [100u64, 100_000, 2_000_000] {
            let blockstore_engine::Begin::Upload(mut upload) = engine.begin_upload(content(3), size).await.unwrap() else { panic!("new") };
            upload.write(&bytes(3, size as usize - 1)).await.unwrap();
            assert!(matches!(upload.write(&[1, 2]).await, Err(PutError::SizeMismatch { .. })));
            assert!(matches!(upload.finish().await, Err(PutError::SizeMismatch { .. })), "short");
        }
        assert_eq!(get(&engine, &content(3), None).await, None);
        assert_eq!(get(&engine, &content(1), None).await, Some(bytes(1, 1000)));
    });
}

#[test]
fn a_device_that_is_no_store_or_too_small_is_refused_unchanged() {
    run(async {
        let device = sim(64, 8);
        device.handle().poke(1024, b"ext4 or whatever");
        let before = device.handle().peek(0..MIB).unwrap();
        assert!(matches!(Engine::open(Arc::new(device.clone()), options()).await, Err(OpenError::NotABlockstore(_))));
        assert_eq!(device.handle().peek(0..MIB).unwrap(), before);
        let small = sim(8, 9);
        let refused = Engine::format_seeded(Arc::new(small), &FormatOptions::default(), [1; 32]).await;
        assert!(matches!(refused, Err(OpenError::Geometry(_))));
    });
}
