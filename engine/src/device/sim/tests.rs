//! What the simulated disk promises, and which damage it really does.

use super::*;
use futures::FutureExt;
use std::collections::BTreeSet;

const LEN_BYTES: u64 = 1 << 20;

fn device(seed: u64) -> SimDevice {
    SimDevice::new(SimOptions::new(LEN_BYTES, seed))
}

fn instant(sector_bytes: u32) -> SimDevice {
    SimDevice::new(SimOptions { logical_sector_bytes: sector_bytes, latency: Latency::None, ..SimOptions::new(LEN_BYTES, 1) })
}

fn page_of(byte: u8) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(PAGE_BYTES);
    buf.fill(byte);
    buf
}

async fn write(device: &SimDevice, offset_bytes: u64, byte: u8) {
    device.write(offset_bytes, page_of(byte)).await.1.expect("write");
}

async fn read(device: &SimDevice, offset_bytes: u64) -> io::Result<AlignedBuf> {
    let (buf, result) = device.read(offset_bytes, AlignedBuf::zeroed(PAGE_BYTES)).await;
    result.map(|()| buf)
}

/// The bytes of a page by sector of 512 bytes, if each sector has only one; 0xee for one that has several.
fn sectors(page: &[u8]) -> Vec<u8> {
    page.chunks(512)
        .map(|sector| match sector.iter().all(|byte| *byte == sector[0]) {
            true => sector[0],
            false => 0xee,
        })
        .collect()
}

#[tokio::test]
async fn what_a_flush_covered_survives_every_crash() {
    let device = device(1);
    write(&device, 4096, 1).await;
    device.flush().await.expect("flush");
    for seed in 0..100 {
        let after = device.crash(seed);
        assert_eq!(sectors(&read(&after, 4096).await.expect("read")), [1; 8]);
    }
}

#[tokio::test]
async fn any_subset_of_unflushed_sectors_survives_a_crash() {
    let device = device(1);
    write(&device, 0, 1).await;
    device.flush().await.expect("flush");
    write(&device, 0, 2).await;
    write(&device, 0, 3).await;
    let mut seen = BTreeSet::new();
    for seed in 0..500 {
        let page = read(&device.crash(seed), 0).await.expect("read");
        let found = sectors(&page);
        assert!(found.iter().all(|byte| (1..=3).contains(byte)));
        seen.insert(found);
    }
    assert!([[1; 8], [2; 8], [3; 8]].iter().all(|all| seen.contains(&all[..])));
    assert!(seen.len() > 50, "torn pages too");
}

#[tokio::test]
async fn the_same_seed_gives_the_same_crash() {
    let device = device(1);
    for page in 0..16 {
        write(&device, page * 4096, 7).await;
    }
    let image = |seed| device.crash(seed).handle().peek(0..16 * 4096).expect("peek");
    assert_eq!(image(5), image(5));
    assert_ne!(image(5), image(6));
}

#[tokio::test]
async fn a_flush_covers_only_what_had_completed_when_it_was_issued() {
    let device = instant(512);
    write(&device, 0, 1).await;
    let flush = device.flush();
    write(&device, 0, 2).await;
    flush.await.expect("flush");
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        seen.extend(sectors(&read(&device.crash(seed), 0).await.expect("read")));
    }
    assert_eq!(seen, BTreeSet::from([1, 2]));
}

#[tokio::test]
async fn an_interrupted_write_leaves_sectors_old_new_garbage_or_unreadable() {
    let device = instant(512);
    write(&device, 0, 1).await;
    device.flush().await.expect("flush");
    let _under_way = device.write(0, page_of(2));
    let (mut old, mut new, mut garbage, mut unreadable) = (0, 0, 0, 0);
    for seed in 0..500 {
        match read(&device.crash(seed), 0).await {
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(5));
                unreadable += 1;
            }
            Ok(page) => {
                for sector in sectors(&page) {
                    match sector {
                        1 => old += 1,
                        2 => new += 1,
                        _ => garbage += 1,
                    }
                }
            }
        }
        let model = CrashModel { garbage: false, unreadable: false };
        let mild = read(&device.crash_with(seed, model), 0).await.expect("read");
        assert!(sectors(&mild).iter().all(|byte| [1, 2].contains(byte)));
    }
    assert!(old > 0 && new > 0 && garbage > 0 && unreadable > 0);
}

#[tokio::test]
async fn a_sector_of_4096_bytes_is_never_torn() {
    let device = instant(4096);
    write(&device, 0, 1).await;
    device.flush().await.expect("flush");
    write(&device, 0, 2).await;
    let _under_way = device.write(0, page_of(3));
    let model = CrashModel { garbage: false, ..CrashModel::default() };
    for seed in 0..300 {
        if let Ok(page) = read(&device.crash_with(seed, model), 0).await {
            assert!(page.iter().all(|byte| *byte == page[0]));
        }
    }
}

#[tokio::test]
async fn an_unreadable_sector_can_be_read_once_it_was_written() {
    let device = device(1);
    device.handle().make_unreadable(512..1024);
    assert_eq!(read(&device, 0).await.expect_err("unreadable").raw_os_error(), Some(5));
    assert!(read(&device, 4096).await.is_ok());
    write(&device, 0, 1).await;
    assert!(read(&device, 0).await.is_ok());
    device.flush().await.expect("flush");
    assert!(read(&device.crash(1), 0).await.is_ok());
}

#[tokio::test]
async fn the_death_of_the_process_keeps_every_completed_write() {
    let device = device(1);
    write(&device, 0, 1).await;
    let _under_way = device.write(4096, page_of(2));
    let (mut kept, mut lost) = (0, 0);
    for seed in 0..100 {
        let after = device.snapshot_completed(seed);
        assert_eq!(sectors(&read(&after, 0).await.expect("read")), [1; 8]);
        let page = sectors(&read(&after, 4096).await.expect("read"));
        assert!(page.iter().all(|byte| [0, 2].contains(byte)));
        kept += usize::from(page == [2; 8]);
        lost += usize::from(page == [0; 8]);
        // What was not flushed is not durable for having survived the process.
        lost += usize::from(read(&after.crash(seed), 0).await.expect("read")[0] == 0);
    }
    assert!(kept > 0 && lost > 100 / 3);
}

#[tokio::test]
async fn a_halted_device_completes_nothing() {
    let device = instant(512);
    let handle = device.handle();
    handle.halt_at(2);
    write(&device, 0, 1).await;
    let mut before = device.write(4096, page_of(2));
    assert!(!handle.is_halted());
    let mut last = device.write(8192, page_of(3));
    handle.halted().await;
    for future in [&mut before, &mut last] {
        assert!(future.now_or_never().is_none());
    }
    assert!(device.read(0, page_of(0)).now_or_never().is_none());
    assert!(device.flush().now_or_never().is_none());
    assert_eq!(handle.operations(), 5);
    drop((before, last));
    let after = device.snapshot_completed(1);
    assert_eq!(sectors(&read(&after, 0).await.expect("read")), [1; 8]);
}

#[tokio::test]
async fn a_write_whose_future_was_dropped_lands_later() {
    let device = instant(512);
    drop(device.write(0, page_of(1)));
    assert_eq!(device.counters().in_flight, 1);
    for _ in 0..ORPHAN_OPERATIONS_MAX {
        device.flush().await.expect("flush");
    }
    assert_eq!(device.counters().in_flight, 0);
    assert_eq!(sectors(&read(&device, 0).await.expect("read")), [1; 8]);
}

#[tokio::test]
async fn faults_strike_the_operation_that_they_were_set_for() {
    let device = device(1);
    let handle = device.handle();
    handle.on_write(0, WriteFault::Lose);
    handle.on_write(1, WriteFault::Misdirect { to_bytes: 8192 });
    handle.on_write(2, WriteFault::Fail);
    write(&device, 0, 1).await;
    write(&device, 0, 2).await;
    let (_, failed) = device.write(0, page_of(3)).await;
    assert_eq!(failed.expect_err("fails").raw_os_error(), Some(5));
    assert_eq!(sectors(&read(&device, 8192).await.expect("read")), [2; 8]);
    let left = sectors(&read(&device, 0).await.expect("read"));
    assert!(left.iter().all(|byte| [0, 3].contains(byte)));

    write(&device, 0, 4).await;
    handle.on_read(0, ReadFault::Fail);
    handle.on_read(1, ReadFault::FlipBit);
    handle.on_read(2, ReadFault::Misdirect { from_bytes: 8192 });
    assert!(read(&device, 0).await.is_err());
    let flipped = read(&device, 0).await.expect("read");
    assert_eq!(flipped.iter().filter(|byte| **byte != 4).count(), 1);
    assert_eq!(sectors(&read(&device, 0).await.expect("read")), [2; 8]);
    assert_eq!(sectors(&read(&device, 0).await.expect("read")), [4; 8]);

    handle.fail_reads(4096..4097);
    assert!(read(&device, 4096).await.is_err());
    assert!(read(&device, 0).await.is_ok());
    handle.clear_faults();
    assert!(read(&device, 4096).await.is_ok());

    handle.set_full(true);
    let (_, full) = device.write(0, page_of(3)).await;
    assert_eq!(full.expect_err("full").kind(), io::ErrorKind::StorageFull);
    handle.set_vanished(true);
    assert!(read(&device, 0).await.is_err());
    assert!(device.flush().await.is_err());
}

#[tokio::test]
async fn rot_stays_until_the_place_is_written() {
    let device = device(1);
    write(&device, 0, 1).await;
    device.flush().await.expect("flush");
    device.handle().rot(10, 0x80);
    assert_eq!(read(&device.crash(1), 0).await.expect("read")[10], 0x81);
    device.handle().rot_some(0..4096, 1);
    device.handle().poke(4096, &[1, 2, 3]);
    assert_eq!(device.handle().peek(4095..4099).expect("peek")[1..], [1, 2, 3]);
    write(&device, 0, 1).await;
    assert_eq!(sectors(&read(&device, 0).await.expect("read")), [1; 8]);
}

#[tokio::test]
async fn after_a_failed_flush_no_later_one_can_be_trusted() {
    let mut lost_though_flushed = 0;
    for seed in 0..50 {
        let device = device(seed);
        write(&device, 0, 1).await;
        device.handle().on_flush(0, FlushFault::Fail);
        assert!(device.flush().await.is_err());
        let seen = read(&device, 0).await.expect("read")[0];
        device.flush().await.expect("flush");
        let left = read(&device.crash(seed), 0).await.expect("read")[0];
        lost_though_flushed += usize::from(seen == 1 && left == 0);
    }
    assert!(lost_though_flushed > 0);
}

#[tokio::test]
async fn a_flush_that_lies_makes_nothing_durable() {
    let device = device(1);
    write(&device, 0, 1).await;
    device.handle().on_flush(0, FlushFault::Lie);
    device.flush().await.expect("flush");
    let mut lost = 0;
    for seed in 0..50 {
        lost += usize::from(read(&device.crash(seed), 0).await.expect("read")[0] == 0);
    }
    assert!(lost > 0);
}

#[tokio::test(start_paused = true)]
async fn operations_complete_in_an_order_drawn_from_the_seed() {
    async fn order(seed: u64) -> Vec<u64> {
        let device = SimDevice::new(SimOptions {
            latency: Latency::Sleep { min: Duration::from_millis(1), max: Duration::from_secs(1) },
            ..SimOptions::new(LEN_BYTES, seed)
        });
        let order = Mutex::new(Vec::new());
        let writes = (0..8).map(|page| {
            let write = device.write(page * 4096, page_of(1));
            let order = &order;
            async move {
                write.await.1.expect("write");
                order.lock().push(page);
            }
        });
        futures::future::join_all(writes).await;
        order.into_inner()
    }
    assert_eq!(order(1).await, order(1).await);
    assert_ne!(order(1).await, order(2).await);
}

#[tokio::test]
async fn memory_is_used_only_for_what_was_written() {
    let device = SimDevice::new(SimOptions::new(1 << 44, 1));
    write(&device, (1 << 44) - 4096, 1).await;
    write(&device, 1 << 40, 0).await;
    device.flush().await.expect("flush");
    assert_eq!(device.shared.state.lock().image.durable.len(), 1);
    assert_eq!(device.counters().bytes_written, 8192);
}
