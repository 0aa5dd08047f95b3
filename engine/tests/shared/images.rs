//! Images that are cut off, damaged, or written while others go on.
#![allow(dead_code, unreachable_pub, missing_docs)] // the canaries use a part of it

use crate::{
    common::*,
    disk::*,
    ledger::{Fate, Ledger},
    shared::{log::gated, stores::small_store},
};
use blockstore_engine::device::SimDevice;
use std::{collections::HashMap, time::Duration};

/// Blobs, an image, more blobs and replaced names, and so on, all durable: `images` images.
pub fn with_images(seed: u64, images: u64) -> (SimDevice, Ledger) {
    let (device, ledger) = (small_store(seed), Ledger::default());
    run(async {
        let (engine, _) = open(&device, options()).await;
        for round in 0..images {
            ledger.put_many(&engine, round * 1000..round * 1000 + 400, 100).await.expect("put");
            for id in 0..40 {
                ledger.put_named(&engine, id, 50 + round as usize).await.expect("put");
            }
            ledger.put(&engine, round * 1000 + 900, 700_000).await.expect("put");
            engine.checkpoint().await.expect("image");
        }
        ledger.put_many(&engine, 90_000..90_100, 100).await.expect("put");
        ledger.flush(&engine).await.expect("flush");
    });
    (device, ledger)
}

/// Puts and two images, until the device comes to operation `at`.
pub fn two_more_images(device: &SimDevice, at: Option<u64>) -> SimDevice {
    let device = device.snapshot_completed(0);
    at.into_iter().for_each(|at| device.handle().halt_at(at));
    run(async {
        tokio::select! {
            () = device.handle().halted() => {}
            () = async {
                let (engine, _) = open(&device, options()).await;
                for id in 0..40 {
                    engine.put(content(80_000 + id), bytes(id, 90)).await.expect("put");
                }
                engine.checkpoint().await.expect("image");
                engine.checkpoint().await.expect("image");
            } => {}
        }
    });
    device
}

/// The power goes at operation `at` of two images: the image in force is whole.
pub fn cut_off_in_an_image(device: &SimDevice, ledger: &Ledger, at: u64, seed: u64) {
    let left = two_more_images(device, Some(at));
    run(async {
        let (engine, report) = open(&left.crash(seed), options()).await;
        ledger.assert_kept(&engine, Fate::Durable, &format!("power cut at {at}")).await;
        assert_eq!((engine.stats().damaged_image_units, report.damaged_entries), (0, 0), "power cut at {at}");
    });
}

/// One byte of a unit of the image in force rots: nothing is lost, and the damage is known.
pub fn a_rotten_unit(device: &SimDevice, ledger: &Ledger, unit: u64, at: u64) {
    let layout = superblock(device, 0);
    let rotten = device.snapshot_completed(0);
    rotten.handle().rot(layout.image_unit(layout.image_slot, unit).start + at, 16);
    run(async {
        let (engine, _) = open(&rotten, options()).await;
        ledger.assert_kept(&engine, Fate::Durable, &format!("byte {at} of unit {unit} rotten")).await;
        assert_eq!(engine.stats().damaged_image_units, 1, "byte {at} of unit {unit}");
    });
}

/// The power goes somewhere at the end of the second image.
pub fn cut_off_at_the_end_of_an_image(seed: u64) {
    let (device, ledger) = with_images(1, 2);
    let operations = two_more_images(&device, None).handle().operations();
    cut_off_in_an_image(&device, &ledger, operations - 1 - seed % 10, seed);
}

/// A byte somewhere in the image in force rots.
pub fn rot_somewhere_in_an_image(seed: u64) {
    let (device, ledger) = with_images(2, 3);
    a_rotten_unit(&device, &ledger, seed % superblock(&device, 0).table_units, 64 + seed * 997 % 65_000);
}

/// Puts go on while an image is written of a table so full that each of them may move others to their second bucket. Everything is
/// flushed before the power goes.
pub fn puts_beside_an_image(seed: u64) {
    let (device, ledger) = (sim(40, seed), Ledger::default());
    run(async {
        format(&device, Some(3000)).await;
        let (engine, _) = open(&device, options()).await;
        assert_eq!(superblock(&device, 0).table_units, 1);
        ledger.put_many(&engine, 0..2800, 8).await.expect("put");
        ledger.flush(&engine).await.expect("flush");
        let before = engine.stats().relocations;
        let image = async { engine.checkpoint().await.expect("image") };
        let puts = async {
            for first in (2800..3240).step_by(20) {
                ledger.put_many(&engine, first..first + 20, 8).await.expect("put");
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(image, puts);
        ledger.flush(&engine).await.expect("flush");
        let relocations = engine.stats().relocations - before;
        assert!(relocations > 20, "only {relocations} slots moved");
        ledger.assert_kept(&engine, Fate::Durable, "live").await;
    });
    run(async {
        let (engine, report) = open(&device.crash(seed), options()).await;
        ledger.assert_kept(&engine, Fate::Durable, &format!("puts beside an image, seed {seed}")).await;
        assert_eq!(report.objects, 3240, "each object has one slot");
    });
}

/// Names are replaced twice behind an image's start and before some of its units are copied; then the entries of their last versions
/// rot. The units cover them, so nothing is lost and no earlier version comes back.
pub fn rotten_entries_that_the_image_covers(seed: u64) {
    let (device, ledger) = (sim(48, seed), Ledger::default());
    run(async {
        format(&device, Some(150_000)).await;
        let (gate, engine) = gated(&device, options()).await;
        ledger.put_many(&engine, 0..100, 50).await.expect("put");
        // The first sixteen units are in the write that is held back; the others are copied when it is complete.
        gate.hold_writes(superblock(&device, 0).image(0));
        let image = async { engine.checkpoint().await.expect("image") };
        let names = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            for id in (0..60).chain(0..60) {
                ledger.put_named(&engine, id, 60).await.expect("put");
            }
            gate.open();
        };
        tokio::join!(image, names);
        ledger.all_durable();
    });
    let layout = superblock(&device, 0);
    let mut last = HashMap::new();
    for unit in log_units(&device).into_iter().filter(|u| u.tag == PUT && u.extent_bytes == 136) {
        last.insert(unit.hash, unit);
    }
    let covered: Vec<_> = last.values().filter(|u| u.table_unit(layout.table_units) >= 16).collect();
    assert!(last.len() == 60 && covered.len() > 20, "{} of {}", covered.len(), last.len());
    covered.iter().for_each(|u| device.handle().rot(u.at_bytes + 9, 1));
    run(async {
        let (engine, report) = open(&device.snapshot_completed(0), options()).await;
        assert_eq!(report.damaged_entries, covered.len() as u64);
        ledger.assert_kept(&engine, Fate::Durable, "rotten entries that the image covers").await;
    });
}
