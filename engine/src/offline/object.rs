//! Reading one object of a store that is not opened.
//!
//! Always true here: a byte is given out only after its checksum passed; one piece is in memory at a time.

use super::{Defect, OfflineStore, Record};
use crate::{
    format::{
        record::{Manifest, RecordKey, RecordKind},
        types::{SizeCheck, SlotKind},
    },
    key::Key,
    read::slot_kind,
    value::Codec,
};
use bytes::Bytes;
use std::sync::Arc;

/// An object that was found, read piece by piece.
pub struct OfflineObject {
    store: Arc<OfflineStore>,
    /// What its first record is.
    pub record: Record,
    pieces: Pieces,
}

enum Pieces {
    Whole(Option<Bytes>),
    Parts { manifest: Manifest, object: Key, next: u64 },
}

impl OfflineStore {
    /// Finds an object, by its size where that is known. `None`: nothing of that key is in the store.
    ///
    /// # Errors
    /// Something is, and it is damaged.
    pub async fn find(self: &Arc<Self>, key: &Key, size_bytes: Option<u64>) -> Result<Option<OfflineObject>, Defect> {
        let hash = self.state.hasher.hash(&RecordKey::Object(*key));
        let mut defect = None;
        for slot in self.state.table.find(&hash, slot_kind(key), size_bytes.map(SizeCheck::of)).iter() {
            let read = self.alone(&slot).await;
            let (head, payload) = match read.map_err(|defect| (defect, None)).and_then(|bytes| self.verified(slot.place, &bytes)) {
                Ok(verified) => verified,
                Err((bad, whose)) => {
                    if whose.is_none_or(|whose| whose == *key) {
                        defect = Some(bad);
                    }
                    continue;
                }
            };
            if head.key != RecordKey::Object(*key) || size_bytes.is_some_and(|size| size != head.logical_bytes) {
                continue;
            }
            let record = self.record(&head, &slot);
            let pieces = match head.kind {
                RecordKind::Manifest => {
                    let manifest = Manifest::decode(&payload, head.logical_bytes).ok_or(Defect::Payload)?;
                    Pieces::Parts { manifest, object: *key, next: 0 }
                }
                _ => Pieces::Whole(Some(payload)),
            };
            return Ok(Some(OfflineObject { store: self.clone(), record, pieces }));
        }
        defect.map_or(Ok(None), Err)
    }
}

impl OfflineObject {
    /// How each piece stands for the bytes.
    pub fn codec(&self) -> Codec {
        match &self.pieces {
            Pieces::Whole(_) => self.record.codec,
            Pieces::Parts { manifest, .. } => manifest.codec,
        }
    }

    /// The next piece as it is stored, none of them larger than about 8 MiB; `None` at the end. After an error there is nothing more to come.
    pub async fn next(&mut self) -> Option<Result<Bytes, Defect>> {
        match &mut self.pieces {
            Pieces::Whole(bytes) => bytes.take().map(Ok),
            Pieces::Parts { manifest, object, next } => {
                if *next >= manifest.stored_bytes.len() as u64 {
                    return None;
                }
                let key = RecordKey::Part { upload_id: manifest.upload_id, index: *next, object: *object };
                let piece = part(&self.store, &key).await;
                *next = if piece.is_ok() { *next + 1 } else { u64::MAX };
                Some(piece)
            }
        }
    }
}

async fn part(store: &Arc<OfflineStore>, key: &RecordKey) -> Result<Bytes, Defect> {
    let mut defect = Defect::MissingParts;
    for slot in store.state.table.find(&store.state.hasher.hash(key), SlotKind::Part, None).iter() {
        let bytes = store.alone(&slot).await?;
        match store.verified(slot.place, &bytes) {
            Ok((head, payload)) if head.key == *key => return Ok(payload),
            Ok(_) => {}
            Err((bad, _)) => defect = bad,
        }
    }
    Err(defect)
}
