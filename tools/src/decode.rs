//! Payloads as the bytes that they stand for.
//!
//! Always true here: what is handed on is never a frame; a frame that makes no sense, or yields more than a record may, is a defect.

use blockstore_engine::{
    Codec,
    offline::{Defect, OfflineObject},
};
use bytes::Bytes;

/// Bytes that one payload stands for at most: more than the engine puts into a record.
const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// The bytes that a payload stands for.
pub(crate) fn payload(codec: Codec, payload: Bytes) -> Result<Bytes, Defect> {
    match codec {
        Codec::Plain => Ok(payload),
        Codec::Zstd => zstd::bulk::decompress(&payload, PAYLOAD_BYTES_MAX).map(Bytes::from).map_err(|_| Defect::Content),
    }
}

/// The next bytes of an object; `None` at the end.
pub(crate) async fn next(object: &mut OfflineObject) -> Option<Result<Bytes, Defect>> {
    let codec = object.codec();
    Some(object.next().await?.and_then(|piece| payload(codec, piece)))
}
