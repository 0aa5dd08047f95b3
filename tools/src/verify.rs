//! `blockstore-tool verify`.

use crate::store;
use blockstore_engine::offline::{BadRecord, Defect};
use bytesize::ByteSize;
use std::path::Path;

/// Damaged records that are listed; all are counted.
const LISTED_MAX: u64 = 100;

/// Checks all records. True: nothing is damaged.
pub(crate) async fn run(path: &Path) -> Result<bool, String> {
    let store = store::read(path).await?;
    let index = store.report();
    let mut seen = 0;
    let report = store
        .verify(|bad| {
            seen += 1;
            if seen <= LISTED_MAX {
                println!("{}", told(&bad));
            }
        })
        .await;
    if seen > LISTED_MAX {
        println!("… and {} more", seen - LISTED_MAX);
    }
    println!("{} records are whole ({}), {} are damaged", report.good, ByteSize(report.payload_bytes), report.bad);
    if index.is_damaged() {
        println!("superblocks, log, image or block headers are damaged: see `blockstore-tool inspect`");
    }
    Ok(report.bad == 0 && !index.is_damaged())
}

fn told(bad: &BadRecord) -> String {
    let what = match bad.defect {
        Defect::Unreadable => "cannot be read",
        Defect::Head => "has a damaged header",
        Defect::OtherKey => "belongs to another key",
        Defect::Payload => "has damaged bytes",
        Defect::MissingParts => "lacks parts of its object",
        _ => "is damaged",
    };
    format!("record at byte {} (block {}) {what}", bad.offset_bytes, bad.block)
}
