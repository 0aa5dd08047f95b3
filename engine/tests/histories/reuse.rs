//! Reusing a block: what is copied out of it, what becomes of what is not, and when its bytes may go.

use crate::{
    common::*,
    disk::*,
    ledger::{Fate, Ledger},
    shared::{
        reuse::*,
        stores::{full_store, small_store},
    },
};

// A record rotted, reclaim copied it and gave the copy fresh checksums: from then on the wrong bytes looked right.
#[test]
fn rot_is_not_laundered_by_reclaim() {
    let (device, ledger) = full_store(11);
    let victims: Vec<u64> = ledger.0.lock().content.keys().copied().filter(|id| id % 100 == 50).collect();
    for (id, _) in victims.iter().zip(0..3) {
        let needle = bytes(*id, 2000);
        let layout = superblock(&device, 0);
        let units = log_units(&device);
        let put = units.iter().filter(|u| u.tag == PUT && u.extent_bytes == 2072).find(|u| {
            let at = layout.block(u64::from(u.vbn % layout.vbn_stride)).start + u.offset_bytes;
            device.handle().peek(at + 72..at + 2072).is_ok_and(|b| b == needle)
        });
        let put = put.unwrap_or_else(|| panic!("blob {id} lies somewhere"));
        let at = layout.block(u64::from(put.vbn % layout.vbn_stride)).start + put.offset_bytes;
        device.handle().rot(at + 72 + 5 * id % 2000, 1 << (id % 8));
    }
    run(async {
        let (engine, _) = open(&device, options()).await;
        rotate(&engine, &ledger, 700_000, 40).await;
        assert!(engine.stats().carried_bytes > 0);
        let faults = ledger.faults(&engine, Fate::Durable).await;
        let lost = faults.iter().filter(|f| f.ends_with("lost")).count();
        assert!(!faults.iter().any(|f| f.contains("wrong bytes")) && lost == 3, "{faults:?}");
        assert!(engine.stats().damaged_records >= 3, "{:?}", engine.stats());
    });
}

// Reclaim found v1 of a key and went to copy it; a client put v2; reclaim logged its Move. Applied as a Put it brought v1 back, live or
// after a crash. Here reclaim's reads wait until every name was replaced.
#[test]
fn a_move_logged_behind_a_newer_put_does_not_bring_the_older_version_back() {
    moves_behind_newer_puts();
}

// A block was emptied, opened again and written to; the power failed before the flush that covers its retirement. The copies were lost,
// and where the originals had been lay the next tenant's records.
#[test]
fn a_block_is_not_used_again_before_a_flush_covers_its_retirement() {
    (60..62).for_each(nothing_is_used_again_before_a_flush);
}

// Records and log survived, the block's header did not. All was well until the block table rotted, too: then nobody knew whose block
// it was.
#[test]
fn a_block_is_written_to_only_when_its_header_and_its_opening_are_durable() {
    (0..60).for_each(a_block_has_its_header_before_anything_else);
}

// Reclaim logged the retirement of a block while the Moves out of it were on their way: for that moment what it carried was missing,
// and a flush right then would have made it so for good.
#[test]
fn what_is_carried_forward_is_present_at_every_moment() {
    (70..72).for_each(what_is_carried_is_present_at_every_moment);
}

// A block was emptied and its retirement logged; the power failed before the flush that should have covered the copies. Taken at its
// word, the retirement lost the originals, too.
#[test]
fn a_retirement_above_the_mark_is_void_and_so_costs_no_original() {
    let mut retired_above = 0;
    let (start, known) = full_store(30);
    for seed in 0..40 {
        let (device, ledger) = (start.snapshot_completed(seed), known.copy());
        run(async {
            let (engine, _) = open(&device, options()).await;
            let before = engine.stats().blocks_reclaimed;
            let mut id = 700_000;
            while engine.stats().blocks_reclaimed < before + 1 + seed % 5 {
                engine.put(content(id), bytes(id, 50_000)).await.expect("put");
                id += 1;
            }
        });
        let left = device.crash(seed);
        let mark = marked(&left);
        retired_above += usize::from(log_units(&left).iter().any(|u| u.tag == RETIRE && u.lsn > mark));
        run(async {
            let (engine, _) = open(&left, options()).await;
            ledger.assert_kept(&engine, Fate::Durable, &format!("seed {seed}")).await;
        });
    }
    assert!(retired_above > 5, "{retired_above}");
}

// A reader of a large object was slow, and its blocks were emptied and written anew under it: it got the next tenant's bytes, or an end.
#[test]
fn a_slow_reader_follows_what_it_reads_and_stops_no_writer() {
    let (device, ledger) = full_store(40);
    run(async {
        let (engine, _) = open(&device, options()).await;
        let large: Vec<_> = ledger.0.lock().content.iter().filter(|(_, (size, _))| *size == 600_000).map(|(id, _)| *id).collect();
        let mut readers = Vec::new();
        for id in &large {
            readers.push((*id, engine.get(&content(*id), None).await.expect("present").reader(0, None).expect("0"), Vec::new()));
        }
        for step in 0..3u64 {
            for (_, reader, got) in &mut readers {
                if let Some(piece) = reader.next().await {
                    got.extend_from_slice(&piece.expect("it is wanted, so it is carried").into_bytes());
                }
            }
            rotate(&engine, &ledger, 700_000 + step * 10_000, 35).await;
        }
        for (id, reader, mut got) in readers {
            let mut reader = reader;
            while let Some(piece) = reader.next().await {
                got.extend_from_slice(&piece.expect("it is wanted").into_bytes());
            }
            assert!(got == bytes(id, 600_000), "{id}");
        }
    });
}

// Unit 3 of the image rotted and was taken from the image before. Between the two, reclaim had emptied blocks: with the tenants of the
// later image their slots looked dead before the Moves were replayed, and were given to others.
#[test]
fn a_damaged_unit_is_rebuilt_although_reclaim_went_on_between_the_images() {
    let (device, ledger) = full_store(50);
    run(async {
        let (engine, _) = open(&device, options()).await;
        engine.checkpoint().await.expect("image");
        rotate(&engine, &ledger, 700_000, 30).await;
        for round in 0..5 {
            ledger.put_many(&engine, 800_000 + round * 400..800_400 + round * 400, 20).await.expect("put");
        }
        engine.checkpoint().await.expect("image");
        ledger.all_durable();
        ledger.assert_kept(&engine, Fate::Durable, "live").await;
    });
    let layout = superblock(&device, 0);
    for unit in 0..layout.table_units {
        let rotten = device.crash(unit);
        rotten.handle().rot(layout.image_unit(layout.image_slot, unit).start + 900, 16);
        run(async {
            let (engine, _) = open(&rotten, options()).await;
            ledger.assert_kept(&engine, Fate::Durable, &format!("unit {unit}")).await;
        });
    }
}

// The block's next tenant is there, but a read of a record of the last one was under way: what it gets passes no checksum of the key.
#[test]
fn misdirected_and_lost_writes_read_as_misses_never_as_other_bytes() {
    use blockstore_engine::device::WriteFault;
    for seed in 0..30 {
        let (device, ledger) = (small_store(seed), Ledger::default());
        run(async {
            let (engine, _) = open(&device, options()).await;
            let layout = superblock(&device, 0);
            ledger.put_many(&engine, 0..50, 3000).await.expect("put");
            let fault = match seed % 2 {
                0 => WriteFault::Lose,
                _ => WriteFault::Misdirect { to_bytes: layout.block(seed % 3).start + PAGE * (1 + seed % 9) },
            };
            device.handle().on_write(seed % 4, fault);
            for id in 100..120 {
                ledger.put(&engine, id, 70_000 + id as usize).await.expect("put");
                ledger.put_named(&engine, id, 900).await.expect("put");
            }
            for engine in [engine.clone(), open(&device.snapshot_completed(seed), options()).await.0] {
                let faults = ledger.faults(&engine, Fate::Acknowledged).await;
                assert!(!faults.iter().any(|f| f.contains("wrong bytes")), "{faults:?}");
            }
        });
    }
}
