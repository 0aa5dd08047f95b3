//! How runs of a store under test end, what happens to the device in between, and what the next run finds.

use super::World;
use crate::common::*;
use crate::ops::{Op, Region, Stop};
use blockstore_engine::device::{Device, FlushFault, SimDevice, WriteFault};
use bytes::Bytes;
use std::{collections::BTreeSet, ops::Range, time::Duration};

impl World {
    pub(super) fn cut(&self, stop: Stop, seed: u64) -> SimDevice {
        match stop {
            Stop::Close | Stop::Kill => self.device.snapshot_completed(seed),
            Stop::PowerCut => self.device.crash(seed),
        }
    }
    pub(super) fn end_run(&mut self, stop: Stop, device: SimDevice) {
        self.accepted_before += self.engine().stats().accepted_bytes;
        if std::mem::take(&mut self.ledger.reads_may_fail) {
            self.ledger.damaged();
        }
        match stop {
            Stop::Close => {
                self.ledger.flushed();
                self.ledger.imaged();
            }
            Stop::Kill => self.ledger.killed(),
            Stop::PowerCut => self.ledger.power_lost(),
        }
        self.engine = None;
        self.device = device;
    }
    /// Ends the run.
    pub(super) async fn stop(&mut self, stop: Stop) -> u64 {
        let seed = self.rng.next();
        let engine = self.engine().clone();
        let closed = match stop {
            Stop::Close => self.fine("close", engine.close().await).is_some(),
            _ => false,
        };
        let stop = if stop == Stop::Close && !closed { Stop::Kill } else { stop };
        let device = self.cut(stop, seed);
        self.end_run(stop, device);
        seed
    }
    /// Begins the next run, and reads everything back.
    pub(super) async fn restart(&mut self, stop: Stop, seed: u64, midway: Option<u8>, twice: bool) {
        if let Some(operation) = midway {
            let handle = self.device.handle();
            handle.halt_at(u64::from(operation));
            let open = self.open_on(&self.device);
            tokio::select! {
                engine = open => drop(engine),
                () = handle.halted() => {}
            }
            self.device = self.cut(stop, seed ^ 1);
        }
        self.open().await;
        let found = self.find("after opening");
        if twice {
            let device = self.cut(stop, seed ^ 2);
            self.engine = None;
            self.device = device;
            self.opens -= 1;
            self.open().await;
            assert_eq!(self.find("after opening twice"), found, "{}", self.what("recovering twice"));
        }
        self.verify("after opening").await;
    }

    pub(super) async fn rot(&mut self, stop: Stop, region: Region, bits: u8) {
        let seed = self.stop(stop).await;
        let sound = self.device.snapshot_completed(seed);
        let whole = self.present_on(&sound).await;
        let handle = self.device.handle();
        let (range, images) = region_of(&self.device, region);
        for _ in 0..bits {
            handle.rot_some(range.clone(), 1);
        }
        self.ledger.damaged();
        let harmed = self.device.snapshot_completed(seed);
        let left = self.present_on(&harmed).await;
        let lost = whole.difference(&left).count();
        let most = match region {
            Region::Blocks => usize::from(bits),
            // A bit of a page's head may cost the page.
            Region::Log if stop == Stop::Close => usize::from(bits) * 127,
            // The image before it still has what one bit hits, unless that is rotten itself.
            Region::Image if images >= 2 && bits == 1 && self.rotten_image.is_none_or(|n| images >= n + 2) => 0,
            _ => usize::MAX,
        };
        if region == Region::Image {
            self.rotten_image = Some(images);
        }
        assert!(lost <= most, "{}: {bits} bits of {region:?} cost {lost} objects", self.what("rot"));
        self.restart(Stop::Kill, seed, None, false).await;
    }
    /// What a run on the device could read.
    async fn present_on(&self, device: &SimDevice) -> BTreeSet<u64> {
        let engine = self.open_on(device).await;
        let mut found = BTreeSet::new();
        for (id, blob) in &self.ledger.blobs {
            if let Some(data) = get(&engine, &content(*id), Some(blob.bytes)).await {
                assert!(data == bytes(*id, blob.bytes as usize), "{}", self.what("wrong bytes"));
                found.insert(*id);
            }
        }
        found
    }

    pub(super) async fn poison(&mut self, flush: bool, id: u8) {
        let handle = self.device.handle();
        if flush {
            handle.on_flush(0, FlushFault::Fail);
            self.ledger.power_lost();
        } else {
            handle.on_write(0, WriteFault::Fail);
        }
        self.poisoned = true;
        self.ledger.poisoned = true;
        let at = self.ledger.accepted_bytes;
        let put = self.start(&Op::Put { id });
        self.fold(put.await.expect("no panic"), at, false);
        // That content may have been there; a name that the ledger does not know is written in any case.
        let _ = self.engine().put(named(u64::MAX), Bytes::from_static(b"written")).await;
        let _ = self.engine().flush().await;
        if flush {
            self.ledger.power_lost();
        }
        assert!(self.engine().poisoned().is_some(), "{}", self.what("a failed write or flush poisons"));
        self.verify("while poisoned").await;
        handle.clear_faults();
        // After a failed flush the kernel may go on reading what the disk will never have: the next process must not take it over.
        let stop = if self.rng.below(2) == 0 { Stop::PowerCut } else { Stop::Kill };
        let seed = self.stop(stop).await;
        if flush {
            // Also what reads could still verify.
            self.ledger.power_lost();
        }
        self.restart(stop, seed, None, false).await;
    }

    pub(super) async fn end(&mut self) {
        self.verify("at the end").await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        self.settle();
        let stats = self.engine().stats();
        assert!(stats.spare_blocks >= 2, "{}: {stats:?}", self.what("no spare blocks"));
        assert_eq!(stats.upload_held_bytes, 0, "{}", self.what("uploads ended"));
        let seed = self.stop(Stop::Close).await;
        self.restart(Stop::Close, seed, None, true).await;
        // It still takes a quarter of what it can hold.
        let blocks = self.ledger.capacity_bytes / 4 / MIB;
        self.apply(&Op::Fill { mib: u8::try_from(blocks).unwrap_or(8), kib: 100 }).await;
    }
}

/// Where a region lies, as the first superblock states it, and how many images there were.
fn region_of(device: &SimDevice, region: Region) -> (Range<u64>, u64) {
    let page = device.handle().peek(0..4096).expect("the superblock can be read");
    let at = |offset: usize| u64::from_le_bytes(page[offset..offset + 8].try_into().expect("eight bytes"));
    let (log, log_bytes, image_a, blocks, images) = (at(112), at(120), at(128), at(144), at(152));
    let range = match region {
        Region::Log => log..log + log_bytes,
        Region::Image => image_a..blocks,
        Region::Blocks => blocks..device.geometry().len_bytes - 8192,
    };
    (range, images)
}
