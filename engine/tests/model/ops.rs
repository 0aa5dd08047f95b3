//! What a history is made of, and how one is drawn.

use proptest::prelude::*;

/// How a store is formatted and opened.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// All chance that is not an operation's: the device's, and what a crash leaves.
    pub(crate) seed: u64,
    pub(crate) mib: u64,
    /// Objects that the table is made for; few, so that it fills.
    pub(crate) objects: Option<u64>,
    pub(crate) group: bool,
    /// Every other opening has the other durability.
    pub(crate) alternate: bool,
    pub(crate) cache_bytes: u64,
}

/// How a run of the store ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Close,
    Kill,
    PowerCut,
}

/// What bytes rot in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Region {
    Log,
    Image,
    Blocks,
}

/// Numbers of keys are taken modulo how many there are; `n` of anything is bounded by who applies it.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Put {
        id: u8,
    },
    Stream {
        id: u8,
    },
    PutBatch {
        first: u8,
        n: u8,
    },
    /// Begins an upload, writes so much of it and drops it.
    Abort {
        id: u8,
        percent: u8,
    },
    PutNamed {
        id: u8,
        bytes: u32,
    },
    Delete {
        id: u8,
    },
    Get {
        id: u8,
    },
    GetNamed {
        id: u8,
    },
    Range {
        id: u8,
        from_permille: u16,
        permille: u16,
    },
    Find,
    /// Fresh blobs of `kib` each until `mib` are put.
    Fill {
        mib: u8,
        kib: u8,
    },
    FillTiny {
        hundreds: u8,
    },
    Checkpoint,
    Flush,
    Wait {
        ms: u16,
    },
    /// Uploads begun and abandoned one after another.
    Aborts {
        n: u8,
        kib: u16,
    },
    /// All at once. Bit i of `cancel`: operation i is dropped after a few turns. `cut`: the run ends after so many turns.
    Mix {
        ops: Vec<Op>,
        cancel: u16,
        cut: Option<(u16, Stop)>,
    },
    /// `midway`: the opening is itself interrupted at this operation of the device. `twice`: recovered once more, to the same.
    Reopen {
        stop: Stop,
        midway: Option<u8>,
        twice: bool,
    },
    /// Ends the run and flips bits before the next.
    Rot {
        stop: Stop,
        region: Region,
        bits: u8,
    },
    /// The n-th read from now: 0 EIO, 1 one bit wrong, 2 another place's bytes.
    ReadFault {
        nth: u8,
        kind: u8,
    },
    /// A write or flush fails; then the process is killed.
    Poison {
        flush: bool,
        id: u8,
    },
}

fn one() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => any::<u8>().prop_map(|id| Op::Put { id }),
        3 => any::<u8>().prop_map(|id| Op::Stream { id }),
        2 => (any::<u8>(), 1..24u8).prop_map(|(first, n)| Op::PutBatch { first, n }),
        2 => (any::<u8>(), 0..=100u8).prop_map(|(id, percent)| Op::Abort { id, percent }),
        4 => (any::<u8>(), prop_oneof![0..2000u32, 2000..200_000u32]).prop_map(|(id, bytes)| Op::PutNamed { id, bytes }),
        1 => any::<u8>().prop_map(|id| Op::Delete { id }),
        3 => any::<u8>().prop_map(|id| Op::Get { id }),
        2 => any::<u8>().prop_map(|id| Op::GetNamed { id }),
        1 => (any::<u8>(), 0..1001u16, 0..1001u16).prop_map(|(id, from_permille, permille)| Op::Range { id, from_permille, permille }),
        1 => Just(Op::Find),
        1 => Just(Op::Flush),
        1 => Just(Op::Checkpoint),
        1 => (1..3u8, 1..200u8).prop_map(|(mib, kib)| Op::Fill { mib, kib }),
    ]
}

fn stop() -> impl Strategy<Value = Stop> {
    prop_oneof![Just(Stop::Close), Just(Stop::Kill), Just(Stop::PowerCut)]
}

fn op() -> impl Strategy<Value = Op> {
    let cut = prop::option::weighted(0.5, (0..120u16, prop_oneof![Just(Stop::Kill), Just(Stop::PowerCut)]));
    prop_oneof![
        24 => one(),
        4 => (1..16u8, 1..250u8).prop_map(|(mib, kib)| Op::Fill { mib, kib }),
        2 => (1..20u8).prop_map(|hundreds| Op::FillTiny { hundreds }),
        1 => (1..12u8, 1..900u16).prop_map(|(n, kib)| Op::Aborts { n, kib }),
        2 => prop_oneof![0..100u16, 100..5000u16].prop_map(|ms| Op::Wait { ms }),
        6 => (prop::collection::vec(one(), 1..10), prop_oneof![2 => Just(0u16), 1 => any::<u16>()], cut)
            .prop_map(|(ops, cancel, cut)| Op::Mix { ops, cancel, cut }),
        6 => (stop(), prop::option::weighted(0.2, 0..120u8), prop::bool::weighted(0.3))
            .prop_map(|(stop, midway, twice)| Op::Reopen { stop, midway, twice }),
        1 => (stop(), prop_oneof![Just(Region::Log), Just(Region::Image), Just(Region::Blocks)], 1..4u8)
            .prop_map(|(stop, region, bits)| Op::Rot { stop, region, bits }),
        1 => (0..8u8, 0..3u8).prop_map(|(nth, kind)| Op::ReadFault { nth, kind }),
        1 => (any::<bool>(), any::<u8>()).prop_map(|(flush, id)| Op::Poison { flush, id }),
    ]
}

fn config() -> impl Strategy<Value = Config> {
    (
        any::<u64>(),
        prop_oneof![Just(40u64), Just(48), Just(64)],
        prop_oneof![3 => Just(None), 1 => Just(Some(3000u64))],
        any::<bool>(),
        prop::bool::weighted(0.25),
        prop_oneof![2 => Just(0u64), 1 => Just(1u64 << 20)],
    )
        .prop_map(|(seed, mib, objects, group, alternate, cache_bytes)| Config { seed, mib, objects, group, alternate, cache_bytes })
}

/// A whole history.
pub(crate) fn history() -> impl Strategy<Value = (Config, Vec<Op>)> {
    (config(), prop::collection::vec(op(), 1..40))
}
