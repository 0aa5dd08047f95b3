//! Images: copies of the table from which recovery starts, so that the log can be short.
//!
//! Always true here: the superblock points to an image only after a flush that was issued after its last unit was written; the
//! image in force is never overwritten; the log before the image in force is released when the next one begins. One image is written at
//! a time, and to its end: a write that was left behind would land in the next one, which has its number.

use crate::{
    canary::{self, Canary},
    core::Core,
    device::{AlignedBuf, PAGE_BYTES},
    error::PutError,
    format::{
        image::{BlockTable, UNIT_BYTES, seal_unit},
        layout::Layout,
        superblock::ImageInForce,
        types::Lsn,
    },
    sequencer::{Control, Snapshot},
    stats::count,
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::sync::oneshot;

/// An image is due at so many bytes of log, or at a share of the table's where that is more: what a start replays, about a second's worth,
/// and what an image costs each put, 256 bytes at most.
const IMAGE_LOG_BYTES: u64 = 48 << 20;
const IMAGE_TABLE_SHARE: u64 = 8;
/// An image is written at least this often while the log grows.
const IMAGE_INTERVAL: Duration = Duration::from_secs(600);
/// Units that one write carries.
const UNITS_PER_WRITE: u32 = 16;

/// Asks for a flush that covers everything complete now; gives the LSN that it covers.
pub(crate) async fn flush(core: &Core) -> Result<Lsn, PutError> {
    let (send, receive) = oneshot::channel();
    let closed = || PutError::Unavailable("store is closed".into());
    core.control.send(Control::Flush(send)).await.map_err(|_| closed())?;
    receive.await.map_err(|_| closed())?
}

/// Pages of log behind which an image is due.
fn image_due_pages(layout: &Layout) -> u64 {
    let table_bytes = u64::from(layout.table_units) * UNIT_BYTES as u64;
    let pages = (table_bytes / IMAGE_TABLE_SHARE).max(IMAGE_LOG_BYTES) / PAGE_BYTES as u64;
    pages.min(layout.log_pages.div_ceil(3))
}

/// Writes images when the log has become long, or now and then.
pub(crate) async fn run(core: Arc<Core>) {
    let mut last = core.superblocks.current().await.image;
    let due_pages = image_due_pages(&core.layout);
    let mut timer = tokio::time::interval(IMAGE_INTERVAL);
    timer.tick().await;
    loop {
        let changed = core.log_changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        let used = (core.log_head.load(Ordering::Acquire) + 1).saturating_sub(last.replay_page);
        let mut wanted = used >= due_pages;
        if !wanted {
            tokio::select! {
                () = changed => continue,
                _ = timer.tick() => wanted = Lsn(core.changed.load(Ordering::Acquire)) > last.replay_after,
                () = core.poison.happened() => return,
            }
        }
        if wanted {
            match write_image(&core).await {
                Ok(image) => last = image,
                Err(_) => return,
            }
        }
    }
}

/// Writes an image and puts it in force. Must not be dropped on the way while the store goes on.
pub(crate) async fn write_image(core: &Core) -> Result<ImageInForce, PutError> {
    let _turn = core.images.lock().await;
    image(core).await
}

/// Writes the last image, ends the sequencer and marks the store clean. No image is begun behind it. Must not be dropped on the way.
pub(crate) async fn close(core: &Core) -> Result<(), PutError> {
    let mut ended = core.images.lock().await;
    if *ended {
        return Ok(());
    }
    image(core).await?;
    let closed = || PutError::Unavailable("store is closed".into());
    let (reply, receive) = oneshot::channel();
    core.control.send(Control::Close(reply)).await.map_err(|_| closed())?;
    let mark = receive.await.map_err(|_| closed())??;
    core.superblocks
        .update(|s| {
            s.mark = mark;
            s.clean = true;
        })
        .await
        .map_err(|e| PutError::Unavailable(format!("write superblocks: {e}")))?;
    *ended = true;
    Ok(())
}

async fn image(core: &Core) -> Result<ImageInForce, PutError> {
    let previous = core.superblocks.current().await.image;
    let closed = || PutError::Unavailable("store is closed".into());
    let (send, receive) = oneshot::channel();
    core.control.send(Control::Snapshot(send)).await.map_err(|_| closed())?;
    let Snapshot { published, replay_page, rows } = receive.await.map_err(|_| closed())?;
    let image = ImageInForce {
        slot: if previous.number == 0 { 0 } else { 1 - previous.slot },
        number: previous.number + 1,
        replay_after: published,
        replay_page,
    };
    // From here on the slot's old image is gone, and with it the need for the log before the one in force.
    if previous.number > 0 {
        core.log_tail.store(previous.replay_page, Ordering::Release);
        core.log_changed.notify_waiters();
    }
    let units = core.table.units();
    let mut first = 0;
    while first < units {
        let n = UNITS_PER_WRITE.min(units - first);
        let mut buf = AlignedBuf::take(n as usize * UNIT_BYTES);
        for (unit, bytes) in (first..first + n).zip(buf.chunks_exact_mut(UNIT_BYTES)) {
            let lsn = core.table.copy_unit(unit, bytes);
            #[cfg(feature = "canaries")]
            let lsn = canary::copied_late(&core.table, unit, bytes, lsn).await;
            seal_unit(&core.mask, image.number, unit, lsn, bytes);
        }
        core.write(core.layout.image_unit_offset(image.slot, first), buf, "image").await?;
        first += n;
    }
    // The rows are those of the start; the tick is that of the end, since a stamp from a later one would look like the oldest.
    let table = BlockTable { lsn: published, tick: core.clock.tick(), rows };
    let copy_bytes = BlockTable::copy_bytes(core.layout.block_count) as usize;
    for copy in 0..2 {
        let mut buf = AlignedBuf::take(copy_bytes);
        table.encode(&core.mask, image.number, &mut buf[..copy_bytes]);
        core.write(core.layout.block_table_offset(image.slot, copy), buf, "block table").await?;
    }
    let mark = if canary::leaves_out(Canary::ImageFlush) { *core.durable.borrow() } else { flush(core).await? };
    core.superblocks
        .update(|s| {
            s.previous_image = s.image;
            s.image = image;
            s.mark = mark;
        })
        .await
        .map_err(|e| core.poison.set(format!("write superblocks: {e}")))?;
    // A store without an older image needs nothing before this one.
    if previous.number == 0 {
        core.log_tail.store(image.replay_page, Ordering::Release);
    }
    core.log_changed.notify_waiters();
    count(&core.counters.images, 1);
    tracing::debug!(number = image.number, units, replay_page, "image written");
    Ok(image)
}

const _: () = assert!(UNIT_BYTES.is_multiple_of(PAGE_BYTES));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::FormatOptions;

    #[test]
    fn an_image_is_due_at_a_third_of_the_ring_or_at_what_is_replayed_in_time() {
        let layout = |gib: u64, objects| {
            let options = FormatOptions { objects: Some(objects), ..FormatOptions::default() };
            Layout::plan(gib << 30, &options).unwrap()
        };
        let log_bytes = |layout: &Layout| image_due_pages(layout) * PAGE_BYTES as u64;
        let small = layout(1, 100_000);
        assert_eq!(image_due_pages(&small), small.log_pages.div_ceil(3));
        assert_eq!(log_bytes(&layout(12, 10_000_000)), IMAGE_LOG_BYTES);
        let large = layout(200, 100_000_000);
        let table_bytes = u64::from(large.table_units) * UNIT_BYTES as u64;
        assert!(log_bytes(&large).abs_diff(table_bytes / IMAGE_TABLE_SHARE) < PAGE_BYTES as u64);
        assert!(log_bytes(&large) > IMAGE_LOG_BYTES);
    }
}
