//! The tasks that keep blocks coming: opening free ones ahead of need, ageing what is in the table, and having blocks reclaimed.

use crate::{
    core::Core,
    device::{AlignedBuf, PAGE_BYTES},
    error::PutError,
    format::{
        block::BlockHead,
        record::RecordKey,
        types::{SlotKind, Vbn},
    },
    map::table::Found,
    read::manifest_at,
    reclaim::Reclaim,
    sequencer::Change,
};
use futures::future::try_join_all;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Opens blocks ahead of need until the store closes.
pub(crate) async fn open_blocks(core: Arc<Core>) {
    loop {
        core.space.opening.notified().await;
        let blocks: Vec<(u32, Vbn)> = std::iter::from_fn(|| core.space.start_opening()).collect();
        if !blocks.is_empty() && open(&core, blocks).await.is_err() {
            return;
        }
    }
}

/// Writes the headers of the blocks' next tenants and logs them.
async fn open(core: &Core, blocks: Vec<(u32, Vbn)>) -> Result<(), PutError> {
    let lsn = core.published();
    let writes = blocks.iter().map(|&(physical, vbn)| {
        let mut page = AlignedBuf::zeroed(PAGE_BYTES);
        BlockHead { vbn, physical, lsn }.encode(&core.mask, &core.uuid, &mut page);
        core.write(core.layout.block_offset(physical), page, "block header")
    });
    try_join_all(writes).await?;
    core.submit_control(blocks.into_iter().map(|(physical, vbn)| Change::BlockOpen { physical, vbn }).collect()).await?;
    Ok(())
}

/// Ages the table and reclaims blocks until the store closes.
pub(crate) async fn reclaim_blocks(core: Arc<Core>) {
    let mut reclaim = Reclaim::new(core.clone());
    loop {
        core.space.reclaim.notified().await;
        loop {
            while core.clock.due() {
                tick(&core).await;
            }
            match reclaim.step().await {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) if core.poison.reason().is_some() => return,
                Err(error) => {
                    // What was moved is moved; the block is tried again when somebody next wants room.
                    tracing::warn!(%error, "reclaim stopped");
                    break;
                }
            }
        }
    }
}

/// Goes to the next tick, after what would look new again was marked as old.
async fn tick(core: &Core) {
    let (from, to) = core.clock.stamps_before_tick();
    for unit in 0..core.table.units() {
        core.table.restamp_unit(unit, from, to);
        if unit % 64 == 63 {
            tokio::task::yield_now().await;
        }
    }
    core.clock.advance();
}

/// Touches the parts of large objects that were touched, until the store closes.
pub(crate) async fn touch_parts(core: Arc<Core>, mut touched: mpsc::Receiver<Found>) {
    while let Some(found) = touched.recv().await {
        let Some((RecordKey::Object(object), manifest)) = manifest_at(&core, found.place, found.class).await else { continue };
        for index in 0..manifest.stored_bytes.len() as u64 {
            let hash = core.hash(&RecordKey::Part { upload_id: manifest.upload_id, index, object });
            let _ = core.present(&hash, SlotKind::Part, None);
            if index % 1024 == 1023 {
                tokio::task::yield_now().await;
            }
        }
    }
}
