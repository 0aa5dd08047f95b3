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

#[test]
fn story_2() {
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
