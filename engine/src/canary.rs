//! Barriers, checksums and orders that a test can leave out of the engine, to see that a history notices.
//!
//! Always true here: without the feature `canaries`, which only the tests of this crate switch on, nothing is ever left out, and
//! nothing of this is left in the program. With it, a switch belongs to one thread: simulated histories run on one.

/// What can be left out. Each is asked for at one place, that of the barrier itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "canaries"), allow(dead_code, unreachable_pub))]
pub enum Canary {
    /// Group mode acknowledges a batch that no flush covers.
    FlushBeforeAck,
    /// A batch that answers nobody is not waited for: later ones are published while its log write is under way.
    AckOrder,
    /// Superblocks 2 and 3 are written before 0 and 1 are durable.
    FlushBetweenSuperblocks,
    /// A new superblock is taken for durable before superblocks 2 and 3 are.
    FlushBehindSuperblocks,
    /// The superblock points to an image that no flush covers.
    ImageFlush,
    /// The LSN that an image states for a unit is read some time after the unit was copied: it covers what is not in the copy.
    CoveredLsn,
    /// Replay applies entries that the image of their unit covers.
    UnitLsnInReplay,
    /// Units of the log count whatever their CRC says.
    LogUnitCrc,
    /// Payloads count whatever the CRCs of their chunks say.
    RecordCrc,
    /// The CRCs of a record do not depend on the tenant of its block.
    VbnInMask,
    /// Units of an image count whatever their CRC says.
    ImageCrc,
    /// Opening goes on in the epoch of the run before.
    EpochRaised,
    /// Log pages of a lower epoch count behind those of a higher one.
    EpochHonoured,
    /// Entries that recovery found nothing behind are forgotten, not voided.
    VoidWritten,
    /// Replay applies what an earlier recovery voided.
    VoidHonoured,
    /// A Move takes effect when it is published, wherever the key is by then.
    MoveConditionLive,
    /// A Move takes effect in replay, wherever the key is by then.
    MoveConditionInReplay,
    /// A retired block is free before a flush covers its retirement.
    RetireDurable,
    /// A block is written to before a flush covers its header and its opening.
    OpenDurable,
    /// The page of the log that is being filled stays open when a flush is issued.
    LogPageClosed,
    /// The page of records that is being filled stays open when a flush is issued.
    RecordPageClosed,
    /// A manifest is published while parts are under way.
    ManifestLast,
    /// In replay the first Put of a named key wins, not the last.
    LastPutWins,
    /// An image copies a unit without its lock: others change what is copied already while the rest is being copied.
    UnitLock,
    /// Reclaim retires a block without waiting for what becomes of the Moves out of it.
    MoveOutcomes,
}

#[cfg(feature = "canaries")]
mod switch {
    use super::Canary;
    use crate::{format::types::Lsn, map::table::Table};
    use std::cell::Cell;

    thread_local! {
        static LEFT_OUT: Cell<Option<Canary>> = const { Cell::new(None) };
        static PASSED: Cell<u64> = const { Cell::new(0) };
    }

    /// Whether this thread leaves it out now.
    pub(crate) fn leaves_out(canary: Canary) -> bool {
        let left_out = LEFT_OUT.get() == Some(canary);
        PASSED.set(PASSED.get() + u64::from(left_out));
        left_out
    }

    /// Leaves something out on this thread for as long as it lives.
    #[derive(Debug)]
    pub struct LeftOut(());

    impl LeftOut {
        /// Leaves `canary` out, and nothing else.
        ///
        /// # Panics
        /// If something is left out already.
        pub fn new(canary: Canary) -> Self {
            assert_eq!(LEFT_OUT.replace(Some(canary)), None, "one at a time");
            PASSED.set(0);
            Self(())
        }
        /// How often the engine came to the place and went on without it.
        pub fn passed(&self) -> u64 {
            PASSED.get()
        }
    }

    impl Drop for LeftOut {
        fn drop(&mut self) {
            LEFT_OUT.set(None);
        }
    }

    /// Gives way so often that many batches can be published meanwhile.
    pub(crate) async fn others_go_on() {
        for _ in 0..400 {
            tokio::task::yield_now().await;
        }
    }

    /// What an image without the lock would have of a unit whose copy, made under it, is `bytes`: the front as it was then, the rest
    /// as it is some time later. With [`Canary::CoveredLsn`] only the LSN is that of later.
    pub(crate) async fn copied_late(table: &Table, unit: u32, bytes: &mut [u8], lsn: Lsn) -> Lsn {
        if leaves_out(Canary::UnitLock) {
            others_go_on().await;
            let mut later = vec![0; bytes.len()];
            table.copy_unit(unit, &mut later);
            let half = bytes.len() / 2;
            bytes[half..].copy_from_slice(&later[half..]);
        }
        if leaves_out(Canary::CoveredLsn) {
            others_go_on().await;
            return table.copy_unit(unit, &mut vec![0; bytes.len()]);
        }
        lsn
    }
}

#[cfg(feature = "canaries")]
pub use switch::LeftOut;
#[cfg(feature = "canaries")]
pub(crate) use switch::{copied_late, leaves_out, others_go_on};

/// Nothing is left out.
#[cfg(not(feature = "canaries"))]
pub(crate) const fn leaves_out(_: Canary) -> bool {
    false
}

/// Nobody waits for others to go on.
#[cfg(not(feature = "canaries"))]
pub(crate) async fn others_go_on() {}
