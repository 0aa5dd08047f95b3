//! Histories that broke a promise once, each with what it was.

use super::{
    ops::{Config, Op, Stop},
    world::play,
};
use Op::*;

const CONFIG: Config = Config { seed: 0, mib: 64, objects: None, group: false, alternate: false, cache_bytes: 0 };

/// Whoever opened blocks ahead of need took every free one at once, since those whose header was under way were not counted; for
/// that moment no block was spare, and reclaim emptied a block of a store that was nearly empty.
#[test]
fn opening_blocks_ahead_leaves_the_others_free() {
    play(&CONFIG, &[Fill { mib: 2, kib: 3 }]);
}

/// The last part of a large object may be so short that its record has the shape of a small one. Recovery asked such a record for the
/// LSN of its log entry, which a part, written ahead, cannot know: the object was voided although it was acknowledged.
#[test]
fn a_large_object_with_a_short_last_part_survives_a_kill() {
    play(
        &Config { seed: 112190, ..CONFIG },
        &[
            Fill { mib: 10, kib: 81 },
            Fill { mib: 3, kib: 6 },
            Fill { mib: 12, kib: 91 },
            Mix { ops: vec![PutBatch { first: 39, n: 21 }], cancel: 0, cut: Some((4, Stop::Kill)) },
        ],
    );
}

/// After an opening a block goes on where it was left. Nobody asked whether the next record still fits there: it was written across
/// the block's end, over the header of the next one.
#[test]
fn a_record_that_does_not_fit_the_rest_of_a_block_goes_to_another() {
    for stop in [Stop::Close, Stop::Kill, Stop::PowerCut] {
        let reopen = || Reopen { stop, midway: None, twice: false };
        play(
            &CONFIG,
            &[Fill { mib: 1, kib: 62 }, Stream { id: 9 }, Flush, reopen(), Stream { id: 19 }, Fill { mib: 3, kib: 64 }, Find, reopen()],
        );
        play(
            &CONFIG,
            &[PutNamed { id: 1, bytes: 190_000 }, Fill { mib: 1, kib: 110 }, Flush, reopen(), PutNamed { id: 2, bytes: 190_000 }, reopen()],
        );
    }
}

/// What an opening replayed from the log looked as new as what was put or touched afterwards, however long ago it had been put: reclaim
/// could not tell them apart, and dropped what had just been reported present.
#[test]
fn what_is_replayed_is_as_old_as_it_was() {
    let mut mix = vec![Put { id: 63 }, PutBatch { first: 200, n: 15 }, Abort { id: 161, percent: 72 }, Delete { id: 201 }];
    mix.extend([Get { id: 40 }, Put { id: 69 }, Get { id: 254 }, GetNamed { id: 188 }]);
    play(
        &Config { mib: 40, ..CONFIG },
        &[
            Mix { ops: vec![Fill { mib: 1, kib: 36 }, Put { id: 19 }], cancel: 0, cut: Some((117, Stop::Kill)) },
            Fill { mib: 14, kib: 100 },
            Fill { mib: 3, kib: 65 },
            Mix { ops: mix, cancel: 0, cut: Some((93, Stop::Kill)) },
            Fill { mib: 6, kib: 142 },
            Reopen { stop: Stop::Close, midway: None, twice: false },
        ],
    );
}

/// So many tiny blobs that the table was full before the first block was: no block was sealed, so none could be reclaimed, and after
/// half a minute puts were refused. The same with a block that an earlier run had left open.
#[test]
fn a_table_that_one_open_block_fills_has_room_again() {
    let config = Config { mib: 40, objects: Some(3000), ..CONFIG };
    play(&config, &[FillTiny { hundreds: 19 }, FillTiny { hundreds: 19 }]);
    for stop in [Stop::Close, Stop::Kill, Stop::PowerCut] {
        play(&config, &[FillTiny { hundreds: 34 }, Flush, Reopen { stop, midway: None, twice: false }, FillTiny { hundreds: 19 }]);
    }
}

/// A future that finished a large upload was dropped while the manifest was on its way to the log: the parts were taken out of the table
/// as those of an aborted upload, and then the manifest was published, of an object that could not be read.
#[test]
fn an_upload_dropped_while_it_is_published_is_whole_or_absent() {
    for seed in 0..30 {
        let mut ops = vec![Checkpoint];
        for round in 0..6 {
            ops.push(Mix { ops: vec![Stream { id: 10 * round + 9 }, Put { id: 10 * round + 9 }], cancel: 3, cut: None });
        }
        play(&Config { seed, mib: 40, ..CONFIG }, &ops);
    }
}

/// What reclaim dropped for the sake of a full table came back in a crash, beside what had been put into its slots since: more than the
/// table takes, so that newer puts found no slot.
#[test]
fn a_crash_does_not_make_the_table_fuller_than_it_was() {
    play(
        &Config { seed: 0, mib: 40, objects: Some(3000), ..CONFIG },
        &[
            FillTiny { hundreds: 15 },
            Fill { mib: 15, kib: 1 },
            FillTiny { hundreds: 4 },
            Put { id: 0 },
            FillTiny { hundreds: 17 },
            Reopen { stop: Stop::Kill, midway: None, twice: false },
        ],
    );
}

/// A batch reserved what was left of the table, but for the slots that a dropped object's parts hold until their block goes. Everything
/// else lay in blocks that were being filled; since the held slots were not counted, these were not sealed, and the batch was refused.
#[test]
fn a_table_that_held_slots_and_open_blocks_fill_has_room_again() {
    play(
        &Config { seed: 0, mib: 40, objects: Some(3000), ..CONFIG },
        &[Put { id: 0 }, FillTiny { hundreds: 13 }, PutBatch { first: 6, n: 4 }, FillTiny { hundreds: 11 }, FillTiny { hundreds: 11 }],
    );
}

/// Blocks were short, the table was not; but because three quarters of its slots were young, young blobs were dropped that three quarters
/// of the capacity had room for.
#[test]
fn many_young_slots_do_not_cost_retention_while_only_blocks_are_short() {
    play(
        &Config { seed: 11017238497509, mib: 48, ..CONFIG },
        &[
            Fill { mib: 12, kib: 69 },
            Fill { mib: 3, kib: 7 },
            Wait { ms: 24 },
            Reopen { stop: Stop::Close, midway: None, twice: true },
            Aborts { n: 11, kib: 610 },
            FillTiny { hundreds: 13 },
            FillTiny { hundreds: 19 },
            FillTiny { hundreds: 19 },
        ],
    );
}

/// The same where a large blob had taken the block that an earlier run left open: it was the uploads', whose block was not sealed.
#[test]
fn a_table_that_an_uploads_block_fills_has_room_again() {
    play(
        &Config { seed: 0, mib: 40, objects: Some(3000), ..CONFIG },
        &[FillTiny { hundreds: 34 }, Reopen { stop: Stop::Kill, midway: None, twice: false }, Stream { id: 98 }, FillTiny { hundreds: 4 }],
    );
}
