//! `blockstore-tool rebuild`: the index of a store from its blocks alone.

use crate::{
    output::{Failure, Lines, Verdict, json},
    progress,
    store::{self, Target},
};
use blockstore_engine::offline::{self, OfflineStore, Trust};
use serde_json::json;

/// Make a new index from the blocks alone, where log and images are gone or damaged. Of a named key the latest value wins; a deleted one
/// may return
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Also where log and image are whole: what was dropped or deleted may come back
    #[arg(long)]
    force: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<Verdict, Failure> {
    let path = arguments.target.path();
    let device = store::device_to_write(&path)?;
    let told = |error: blockstore_engine::OpenError| Failure::cannot_open(format!("store {}: {error}", path.display()));
    if !arguments.force
        && let Ok(store) = OfflineStore::read(device.clone(), Trust::One).await
    {
        let structures = store.check_structures(|_| {}).await;
        if structures.log_damaged + structures.image_units_damaged + structures.block_tables_damaged + structures.block_heads_damaged == 0
            && (structures.image_units > 0 || structures.log_pages > 0)
        {
            return Err(Failure::usage(format!(
                "{}: log and image are whole, so nothing must be rebuilt (`repair` puts superblocks and records right); add --force to do it all the same",
                path.display()
            )));
        }
    }
    let bar = progress::bytes("rebuild", device.geometry().len_bytes);
    let report = offline::rebuild(&device, |bytes| bar.inc(bytes)).await.map_err(told)?;
    bar.finish_and_clear();
    if arguments.target.json {
        json(&json!({
            "blocks": report.blocks, "headers_restored": report.headers_restored, "blocks_lost": report.blocks_lost,
            "records": report.records, "unreadable_pages": report.unreadable_pages, "contents": report.contents,
            "large_objects": report.large_objects, "named": report.named, "incomplete_objects": report.incomplete_objects,
            "deleted": report.deleted, "over_table": report.over_table, "blocks_left_out": report.blocks_left_out,
            "left_out_with_blocks": report.left_out_with_blocks,
        }))?;
        return Ok(Verdict::Sound);
    }
    let mut out = Lines::new();
    out.plain(format!("{} blocks were read, with {} whole records", report.blocks, report.records))?;
    for (n, what) in [
        (report.headers_restored, "damaged block headers were found out and written anew"),
        (report.blocks_lost, "blocks have neither a header nor a record that tells whose they are: what they hold is lost"),
        (report.unreadable_pages, "pages could not be read"),
        (report.incomplete_objects, "large blobs lack parts and were left out"),
        (report.deleted, "names were deleted last"),
        (report.over_table, "records were left out because the index has no room for them"),
        (report.left_out_with_blocks, "records were left out with blocks that had to be freed"),
    ] {
        if n > 0 {
            out.plain(format!("{n} {what}"))?;
        }
    }
    out.plain(format!(
        "the new index has {} blobs, {} large ones and {} named values",
        report.contents, report.large_objects, report.named
    ))?;
    Ok(Verdict::Sound)
}
