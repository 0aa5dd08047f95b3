//! The canaries: each leaves one barrier, checksum or order out of the engine, and a history must notice.
//!
//! A history is played first as the engine is, and must pass; then with the canary's part left out, until a check fails. A canary that no
//! history notices fails here: then either the histories have a gap, or the engine does something for nothing.

#![allow(missing_docs, unreachable_pub)]

#[path = "canaries/cage.rs"]
mod cage;
mod common;
#[path = "histories/disk.rs"]
mod disk;
#[path = "histories/ledger.rs"]
mod ledger;
#[path = "shared/all.rs"]
mod shared;

use blockstore_engine::canary::Canary;
use cage::caught;
use shared::*;

/// A test for each canary, and the proof that there is one for each.
macro_rules! canaries {
    ($($test:ident: $canary:ident, $history:expr;)+) => {
        $(
            #[test]
            fn $test() {
                caught(Canary::$canary, $history);
            }
        )+

        #[allow(dead_code)]
        fn each_has_one_test(canary: Canary) {
            match canary {
                $(Canary::$canary => {})+
            }
        }
    };
}

canaries! {
    canary_flush_before_ack_is_caught: FlushBeforeAck, |seed| publishing::cut_off_by_power(seed, true);
    canary_acknowledgement_order_is_caught: AckOrder, |seed| publishing::killed_among_many_clients(seed, 60 + seed * 7);
    canary_flush_between_superblocks_is_caught: FlushBetweenSuperblocks, opening::two_openings_cut_off;
    canary_flush_behind_superblocks_is_caught: FlushBehindSuperblocks, |_| opening::an_open_is_durable_when_it_ends();
    canary_image_before_flush_is_caught: ImageFlush, images::cut_off_at_the_end_of_an_image;
    canary_covered_lsn_is_caught: CoveredLsn, images::puts_beside_an_image;
    canary_unit_lsn_in_replay_is_caught: UnitLsnInReplay, images::rotten_entries_that_the_image_covers;
    canary_log_entry_crc_is_caught: LogUnitCrc, replay::a_rotten_opening;
    canary_record_crc_is_caught: RecordCrc, rot::rot_somewhere;
    canary_vbn_in_the_crc_is_caught: VbnInMask, rot::an_earlier_version_at_the_very_offset;
    canary_image_crc_is_caught: ImageCrc, images::rot_somewhere_in_an_image;
    canary_epoch_not_raised_is_caught: EpochRaised, |seed| opening::a_page_as_full_as_the_lost_one(127 - seed % 13, seed);
    canary_lower_epoch_honoured_is_caught: EpochHonoured, |seed| opening::a_page_as_full_as_the_lost_one(127 - seed % 13, seed);
    canary_void_not_written_is_caught: VoidWritten, |seed| _ = replay::voids_outlast_what_comes(seed);
    canary_void_not_honoured_is_caught: VoidHonoured, |seed| _ = replay::voids_outlast_what_comes(seed);
    canary_conditional_move_live_is_caught: MoveConditionLive, |_| reuse::moves_behind_newer_puts();
    canary_conditional_move_in_replay_is_caught: MoveConditionInReplay, |_| reuse::moves_behind_newer_puts();
    canary_reuse_before_flush_is_caught: RetireDurable, |seed| reuse::nothing_is_used_again_before_a_flush(60 + seed);
    canary_write_before_open_is_durable_is_caught: OpenDurable, reuse::a_block_has_its_header_before_anything_else;
    canary_log_page_rewritten_is_caught: LogPageClosed, |seed| log::pages_are_closed_by_a_flush(seed % 2 == 1);
    canary_record_page_rewritten_is_caught: RecordPageClosed, |seed| log::pages_are_closed_by_a_flush(seed % 2 == 1);
    canary_manifest_last_is_caught: ManifestLast, |seed| large::killed_behind_large_objects(seed, 4096 + seed as usize * 999);
    canary_order_of_named_keys_is_caught: LastPutWins, replay::nothing_is_lost;
    canary_relocation_during_an_image_is_caught: UnitLock, images::puts_beside_an_image;
    canary_retirement_before_move_outcomes_is_caught: MoveOutcomes, |seed| reuse::what_is_carried_is_present_at_every_moment(70 + seed);
}
