//! Histories that broke a promise once, each with what it was.

use super::{
    ops::{Config, Op, Region, Stop},
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
