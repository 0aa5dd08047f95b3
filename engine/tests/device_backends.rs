//! One suite for every backend of the `Device` trait: whatever holds for one holds for all.

use blockstore_engine::device::{AlignedBuf, Device, DeviceOptions, Direct, IoBackend, PAGE_BYTES, SimDevice, SimOptions, create_file};
use futures::{FutureExt, future::join_all};
use std::{collections::HashMap, io, sync::Arc};

const LEN_BYTES: u64 = 8 << 20;
const PAGES: u64 = LEN_BYTES / PAGE_BYTES as u64;

/// A device, and what has to stay for it to work.
struct Backend {
    name: &'static str,
    device: Arc<dyn Device>,
    _dir: Option<tempfile::TempDir>,
}

/// Every backend that works on this system; the others are named on the output.
fn backends() -> Vec<Backend> {
    let mut backends = vec![Backend { name: "sim", device: Arc::new(SimDevice::new(SimOptions::new(LEN_BYTES, 7))), _dir: None }];
    for (name, io, direct) in [
        ("sync", IoBackend::Sync, Direct::Off),
        ("sync, direct", IoBackend::Sync, Direct::On),
        ("io-uring", IoBackend::IoUring, Direct::Off),
        ("io-uring, direct", IoBackend::IoUring, Direct::On),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        match create_file(&dir.path().join("store"), LEN_BYTES, DeviceOptions { io, direct }) {
            Ok(device) => backends.push(Backend { name, device, _dir: Some(dir) }),
            Err(error) => println!("skipped: {name}: {error}"),
        }
    }
    backends
}

fn filled(pages: usize, byte: u8) -> AlignedBuf {
    let mut buf = AlignedBuf::take(pages * PAGE_BYTES);
    buf.fill(byte);
    buf
}

fn at(page: u64) -> u64 {
    page * PAGE_BYTES as u64
}

async fn read(device: &dyn Device, page: u64, pages: usize) -> AlignedBuf {
    let (buf, result) = device.read(at(page), filled(pages, 0xaa)).await;
    result.expect("read");
    buf
}

async fn write(device: &dyn Device, page: u64, buf: AlignedBuf) -> AlignedBuf {
    let (buf, result) = device.write(at(page), buf).await;
    result.expect("write");
    buf
}

/// A small sequence of numbers that is the same in every run.
fn numbers(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed;
    move |bound| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    }
}

#[tokio::test]
async fn a_new_device_is_full_of_zeros() {
    for Backend { device, .. } in backends() {
        assert!(read(&*device, 0, 4).await.iter().all(|byte| *byte == 0));
        let last = read(&*device, PAGES - 1, 1).await;
        assert!(last.iter().all(|byte| *byte == 0));
    }
}

#[tokio::test]
async fn a_read_gives_what_was_last_written_and_touches_nothing_else() {
    for Backend { name, device, .. } in backends() {
        let mut model = HashMap::new();
        let mut draw = numbers(3);
        for round in 0..300u32 {
            let pages = 1 + draw(260);
            let page = draw(PAGES - pages);
            let byte = u8::try_from(round % 250 + 1).expect("a byte");
            let len = usize::try_from(pages).expect("a length");
            let buf = write(&*device, page, filled(len, byte)).await;
            assert!(buf.iter().all(|found| *found == byte), "{name}: same buffer");
            model.extend((page..page + pages).map(|page| (page, byte)));
            if round % 50 == 0 {
                device.flush().await.expect("flush");
            }
            let page = draw(PAGES);
            let expected = model.get(&page).copied().unwrap_or(0);
            let found = read(&*device, page, 1).await;
            assert!(found.iter().all(|byte| *byte == expected), "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_operations_than_the_queue_holds_all_complete() {
    for Backend { name, device, .. } in backends() {
        for page in 0..PAGES {
            let byte = u8::try_from(page % 251).expect("a byte");
            write(&*device, page, filled(1, byte)).await;
        }
        let tasks = (0..4000u64).map(|index| {
            let (device, page) = (device.clone(), index * 7 % PAGES);
            tokio::spawn(async move {
                let found = read(&*device, page, 1).await;
                assert!(found.iter().all(|byte| u64::from(*byte) == page % 251));
            })
        });
        for done in join_all(tasks).await {
            done.expect("the task");
        }
        let counters = device.counters();
        assert_eq!(counters.reads, 4000, "{name}");
        assert_eq!(counters.bytes_read, 4000 * 4096, "{name}");
        assert_eq!(counters.bytes_written, LEN_BYTES, "{name}");
        assert_eq!((counters.in_flight, counters.failed), (0, 0), "{name}");
    }
}

#[tokio::test]
async fn what_is_not_whole_pages_inside_the_device_is_refused_with_the_buffer() {
    for Backend { device, .. } in backends() {
        for offset_bytes in [1, 512, LEN_BYTES, LEN_BYTES - 4096, u64::MAX - 4095] {
            let (buf, result) = device.read(offset_bytes, filled(2, 1)).await;
            assert_eq!(buf.len(), 2 * PAGE_BYTES);
            let error = result.expect_err("refused");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            let (_, result) = device.write(offset_bytes, buf).await;
            assert!(result.is_err());
        }
        assert_eq!(device.counters().bytes_written, 0);
    }
}

#[tokio::test]
async fn a_buffer_larger_than_the_pool_keeps_works() {
    for Backend { device, .. } in backends() {
        write(&*device, 0, filled(1500, 5)).await;
        let found = read(&*device, 0, 1500).await;
        assert!(found.iter().all(|byte| *byte == 5));
    }
}

/// Futures are dropped after each number of polls, so at every await that they have, and never polled at all.
#[tokio::test]
async fn dropping_a_future_at_any_await_breaks_nothing() {
    const REGION: u64 = 64;
    for Backend { name, device, .. } in backends() {
        let mut draw = numbers(11);
        for page in 0..PAGES {
            write(&*device, page, filled(1, 1)).await;
        }
        for round in 0..200u64 {
            for polls in 0..6 {
                let page = draw(REGION);
                let mut futures: Vec<_> = (0..8)
                    .map(|index| match index % 2 {
                        0 => device.read(at(page + index), filled(1, 0)).boxed(),
                        _ => device.write(at(page + index), filled(1, 2)).boxed(),
                    })
                    .collect();
                let mut flush = device.flush();
                for _ in 0..polls {
                    futures.retain_mut(|future| future.now_or_never().is_none());
                    if polls % 2 == 1 {
                        tokio::task::yield_now().await;
                    }
                }
                if polls > 3 {
                    drop((&mut flush).now_or_never());
                }
                drop((futures, flush));
                // Memory that the pool gives out now must belong to nobody else.
                let mine: Vec<_> = (0..8).map(|_| filled(1, 0x77)).collect();
                read(&*device, PAGES - 1 - round % REGION, 1).await;
                for buf in &mine {
                    assert!(buf.iter().all(|byte| *byte == 0x77), "{name}");
                }
            }
        }
        // What was written is old or new, and nothing else was touched.
        device.flush().await.expect("flush");
        for page in 0..PAGES {
            let found = read(&*device, page, 1).await;
            let allowed: &[u8] = if page < REGION + 8 { &[1, 2] } else { &[1] };
            assert!(found.iter().all(|byte| allowed.contains(byte)), "{name}");
        }
    }
}

/// As many bytes as the pool has buffers for, larger than what is ever copied in the caller's own thread.
const LONG_PAGES: usize = 128;
const LONG_AT_ONCE: u64 = 8;

/// Waits until the kernel has answered everything.
async fn until_idle(device: &dyn Device) {
    while device.counters().in_flight > 0 {
        // On the simulated device a write that nobody waits for goes on as others come.
        drop(device.read(LEN_BYTES - at(1), AlignedBuf::take(PAGE_BYTES)).await);
        tokio::task::yield_now().await;
    }
}

/// Takes as many buffers from the pool as were given up, and writes all over them.
fn scribbles() -> Vec<AlignedBuf> {
    (0..2 * LONG_AT_ONCE).map(|_| filled(LONG_PAGES, 0x77)).collect()
}

/// The kernel reads from the buffer of a write until it has answered, whoever waits for it: nobody else may be given that memory.
#[tokio::test]
async fn what_a_dropped_write_leaves_on_the_disk_is_its_own_bytes() {
    for Backend { name, device, .. } in backends() {
        let mut overlapped = 0;
        for round in 1..=100u8 {
            let writes: Vec<_> =
                (0..LONG_AT_ONCE).map(|index| device.write(at(index * LONG_PAGES as u64), filled(LONG_PAGES, round))).collect();
            if round % 2 == 0 {
                tokio::task::yield_now().await;
            }
            drop(writes);
            overlapped += u32::from(device.counters().in_flight > 0);
            let scribbles = scribbles();
            until_idle(&*device).await;
            drop(scribbles);
            let found = read(&*device, 0, LONG_PAGES * LONG_AT_ONCE as usize).await;
            assert!(found.iter().all(|byte| *byte == round), "{name}: round {round}");
        }
        // Where nothing is ever under way when the buffers are taken, nothing was shown.
        assert!(overlapped > 0, "{name}");
    }
}

/// The kernel writes to the buffer of a read until it has answered.
#[tokio::test]
async fn a_dropped_read_changes_no_buffer_that_somebody_took_later() {
    for Backend { name, device, .. } in backends() {
        write(&*device, 0, filled(LONG_PAGES * LONG_AT_ONCE as usize, 9)).await;
        let mut overlapped = 0;
        for round in 0..100 {
            let reads: Vec<_> = (0..LONG_AT_ONCE)
                .map(|index| device.read(at(index * LONG_PAGES as u64), AlignedBuf::take(LONG_PAGES * PAGE_BYTES)))
                .collect();
            if round % 2 == 0 {
                tokio::task::yield_now().await;
            }
            drop(reads);
            overlapped += u32::from(device.counters().in_flight > 0);
            let scribbles = scribbles();
            until_idle(&*device).await;
            assert!(scribbles.iter().all(|buf| buf.iter().all(|byte| *byte == 0x77)), "{name}: round {round}");
        }
        assert!(overlapped > 0 || name == "sim", "{name}");
    }
}

#[tokio::test]
async fn futures_outlive_the_device() {
    for Backend { device, _dir, .. } in backends() {
        write(&*device, 3, filled(1, 9)).await;
        let pending: Vec<_> = (0..2000).map(|_| device.read(at(3), filled(1, 0))).collect();
        drop(device);
        for (buf, result) in join_all(pending).await {
            match result {
                Ok(()) => assert!(buf.iter().all(|byte| *byte == 9)),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::BrokenPipe),
            }
        }
    }
}
