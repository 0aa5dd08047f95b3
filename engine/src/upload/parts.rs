//! Large objects: parts that are written while more arrives, then a manifest that makes them an object.

use super::{
    TURN_WAIT_MAX,
    paged::{Accept, Paged, write_paged},
    put_packed,
};
use crate::{
    canary::{self, Canary},
    core::Core,
    error::PutError,
    format::{
        log::Location,
        record::{Manifest, RecordKey, RecordKind},
        types::{KeyHash, Place},
    },
    key::Key,
    stats::count,
    upload::Lead,
    value::{Codec, Value},
};
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{task::JoinHandle, time::Instant};

/// Parts of one upload that are being written at once.
const PARTS_IN_FLIGHT_MAX: usize = 2;

/// An upload in parts.
pub(super) struct Parts {
    core: Arc<Core>,
    object: Key,
    id: [u8; 16],
    size_bytes: u64,
    part_bytes: u64,
    open: Option<Paged>,
    started: u64,
    stored_bytes: Vec<u32>,
    codec: Codec,
    in_flight: VecDeque<JoinHandle<Result<(Place, Location), PutError>>>,
    written: Vec<(Place, KeyHash)>,
    unaccepted: Arc<AtomicU64>,
    published: bool,
}

impl Parts {
    /// Waits until the upload may hold its bytes.
    pub(super) async fn begin(core: &Arc<Core>, object: Key, size_bytes: u64) -> Result<Self, PutError> {
        let limit_bytes = core.object_bytes_max();
        if size_bytes > limit_bytes {
            return Err(PutError::TooLarge { size_bytes, limit_bytes });
        }
        let number = core.uploads.next_id.fetch_add(1, Ordering::Relaxed);
        // Unique without chance: no other opening has this epoch, and no other upload of this one the number.
        let mut id = [0; 16];
        id[..4].copy_from_slice(&core.epoch.0.to_le_bytes());
        id[4..12].copy_from_slice(&number.to_le_bytes());
        let start = Instant::now();
        let half = core.layout.capacity_bytes() / 2;
        loop {
            let ended = core.uploads.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            {
                let mut running = core.uploads.running.lock();
                if running.ids.is_empty() || running.declared_bytes + size_bytes <= half {
                    running.ids.insert(id);
                    running.declared_bytes += size_bytes;
                    break;
                }
            }
            if start.elapsed().is_zero() {
                count(&core.counters.uploads_waited, 1);
            }
            if tokio::time::timeout_at(start + TURN_WAIT_MAX, ended).await.is_err() {
                return Err(PutError::NoRoom(format!(
                    "running uploads hold half of the capacity, and none ended in {} s",
                    TURN_WAIT_MAX.as_secs()
                )));
            }
        }
        Ok(Self {
            core: core.clone(),
            object,
            id,
            size_bytes,
            part_bytes: core.part_bytes(size_bytes),
            open: None,
            started: 0,
            stored_bytes: Vec::new(),
            codec: Codec::Plain,
            in_flight: VecDeque::new(),
            written: Vec::new(),
            unaccepted: Arc::default(),
            published: false,
        })
    }
    /// Bytes that every part but the last stands for.
    pub(super) fn part_bytes(&self) -> u64 {
        self.part_bytes
    }
    /// Takes what stands for the next part; how many bytes that is. Parts are encoded all or none, in one way.
    pub(super) async fn write_encoded(&mut self, codec: Codec, payload: &[u8]) -> Result<u64, PutError> {
        let part = self.size_bytes.saturating_sub(self.started * self.part_bytes).min(self.part_bytes);
        if part == 0 || self.open.is_some() || (self.started > 0 && self.codec != codec) {
            return Err(PutError::Unavailable("an encoded part came where none belongs".into()));
        }
        self.codec = codec;
        let mut paged = Paged::new(&self.core, RecordKind::Part, payload.len()).await?.encoded(codec, part);
        paged.push(payload);
        while self.in_flight.len() >= PARTS_IN_FLIGHT_MAX {
            self.settle_one().await?;
        }
        self.open = Some(paged);
        self.start_part();
        Ok(part)
    }
    pub(super) async fn write(&mut self, mut data: &[u8]) -> Result<(), PutError> {
        if self.codec != Codec::Plain {
            return Err(PutError::Unavailable("bytes came behind an encoded part".into()));
        }
        while !data.is_empty() {
            if self.open.is_none() {
                let left = self.size_bytes - self.started * self.part_bytes;
                let bytes = usize::try_from(left.min(self.part_bytes)).map_err(|_| PutError::Unavailable("part is too large".into()))?;
                self.open = Some(Paged::new(&self.core, RecordKind::Part, bytes).await?);
            }
            let Some(open) = self.open.as_mut() else { break };
            let (now, rest) = data.split_at(data.len().min(open.room()));
            open.push(now);
            data = rest;
            if open.room() == 0 {
                while self.in_flight.len() >= PARTS_IN_FLIGHT_MAX {
                    self.settle_one().await?;
                }
                self.start_part();
            }
        }
        Ok(())
    }
    fn start_part(&mut self) {
        let Some(paged) = self.open.take() else { return };
        let key = RecordKey::Part { upload_id: self.id, index: self.started, object: self.object };
        self.started += 1;
        self.stored_bytes.push(paged.payload_bytes as u32);
        let accept = Accept::IfOverReserve(self.unaccepted.clone());
        self.in_flight.push_back(tokio::spawn(write_paged(self.core.clone(), paged, key, RecordKind::Part, accept)));
    }
    /// Waits for the oldest part in flight. Its handle stays in the queue until it is done: a cancelled wait forgets nothing.
    async fn settle_one(&mut self) -> Result<(), PutError> {
        let Some(task) = self.in_flight.front_mut() else { return Ok(()) };
        let result = task.await.unwrap_or_else(|e| Err(PutError::Unavailable(format!("write task ended: {e}"))));
        self.in_flight.pop_front();
        let (place, location) = result?;
        self.written.push((place, location.hash));
        Ok(())
    }
    /// What leads to the bytes of an upload that is complete, once all of them are written; and where its first part is.
    pub(super) async fn settle(&mut self) -> Result<Option<(Manifest, Place)>, PutError> {
        while !self.in_flight.is_empty() {
            self.settle_one().await?;
        }
        let manifest =
            Manifest { upload_id: self.id, part_bytes: self.part_bytes, stored_bytes: self.stored_bytes.clone(), codec: self.codec };
        Ok(self.written.first().map(|(place, _)| (manifest, *place)))
    }
    pub(super) async fn finish(mut self: Box<Self>, lead: &Lead) -> Result<(), PutError> {
        while !self.in_flight.is_empty() && !canary::leaves_out(Canary::ManifestLast) {
            self.settle_one().await?;
            lead.progress();
        }
        let stored_bytes = std::mem::take(&mut self.stored_bytes);
        let manifest = Manifest { upload_id: self.id, part_bytes: self.part_bytes, stored_bytes, codec: self.codec };
        let accept_bytes = self.unaccepted.load(Ordering::Relaxed);
        let value = Value::encoded(self.codec, manifest.encode().into(), self.size_bytes);
        put_packed(&self.core, RecordKey::Object(self.object), RecordKind::Manifest, value, accept_bytes).await?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let core = self.core.clone();
        let (id, size_bytes, unaccepted) = (self.id, self.size_bytes, self.unaccepted.clone());
        let in_flight = std::mem::take(&mut self.in_flight);
        let written = std::mem::take(&mut self.written);
        let published = self.published;
        let end = move |core: &Core| {
            let bytes = unaccepted.load(Ordering::Relaxed);
            if !published {
                core.uploads.left_bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            core.uploads.unaccepted_bytes.fetch_sub(bytes, Ordering::Relaxed);
            let mut running = core.uploads.running.lock();
            running.ids.remove(&id);
            running.declared_bytes -= size_bytes;
            drop(running);
            core.uploads.ended.notify_waiters();
            core.space.wake();
        };
        if published {
            return end(&core);
        }
        count(&core.counters.uploads_aborted, 1);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return end(&core) };
        runtime.spawn(async move {
            let mut gone = written;
            for task in in_flight {
                if let Ok(Ok((place, location))) = task.await {
                    gone.push((place, location.hash));
                }
            }
            for (place, hash) in gone {
                core.table.remove(core.table.address(&hash), place, None);
            }
            end(&core);
        });
    }
}
