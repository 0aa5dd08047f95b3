//! `blockstore-tool inspect`.

use crate::store;
use blockstore_engine::offline::{StoreReport, SuperblockCopy};
use bytesize::ByteSize;
use std::path::Path;

/// Prints what the store is. True: nothing of what was read is damaged.
pub(crate) async fn run(path: &Path) -> Result<bool, String> {
    let report = store::read(path).await?.report();
    print(&report);
    Ok(!report.is_damaged())
}

fn print(report: &StoreReport) {
    let line = |name: &str, value: String| println!("{name:<18}{value}");
    let uuid: String = report.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    line("store", uuid);
    line("superblocks", report.superblocks.map(superblock).join(", "));
    line("opened", format!("{} times", report.epoch));
    line("closed in order", if report.clean { "yes" } else { "no: opening it replays the log" }.into());
    line("size", bytes(report.device_bytes));
    line(
        "blocks",
        format!(
            "{} of {}: {} free, {} open, {} sealed",
            report.block_count,
            bytes(report.block_bytes),
            report.blocks.free,
            report.blocks.open,
            report.blocks.sealed
        ),
    );
    line(
        "image",
        match report.image {
            Some(image) => format!(
                "number {} in slot {}, up to log position {}",
                image.number,
                if image.slot == 0 { "A" } else { "B" },
                image.replay_after
            ),
            None => "none yet".into(),
        },
    );
    line("log", format!("{} of {} pages to replay, {} entries", report.log_used_pages, report.log_pages, report.log_entries));
    if report.void_entries > 0 {
        line("", format!("{} entries without a record behind them", report.void_entries));
    }
    line("objects", format!("{} (with parts of large ones) of {} slots", report.live_slots, report.slots));
    line("their records", format!("at most {}", bytes(report.live_bytes)));
    line(
        "damage",
        match report.is_damaged() {
            false => "none in superblocks, log, image and block headers".into(),
            true => format!(
                "{} superblocks, {} log pages or entries, {} image units, {} block headers",
                report.superblocks.iter().filter(|copy| !matches!(copy, SuperblockCopy::Whole(_))).count(),
                report.damaged_entries,
                report.damaged_units,
                report.damaged_heads
            ),
        },
    );
}

fn superblock(copy: SuperblockCopy) -> String {
    match copy {
        SuperblockCopy::Whole(sequence) => format!("whole ({sequence})"),
        SuperblockCopy::Damaged => "damaged".into(),
        _ => "absent".into(),
    }
}

fn bytes(bytes: u64) -> String {
    format!("{} ({bytes} B)", ByteSize(bytes))
}
