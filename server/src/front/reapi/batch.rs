//! `BatchUpdateBlobs` and `BatchReadBlobs`: many small blobs in one message, a status for each.
//!
//! Always true here: what is wrong with one blob is told in its own status and hurts no other; an answer is never larger than
//! [`ANSWER_BYTES_MAX`](super::ANSWER_BYTES_MAX), which every client can decode. Compressed blobs of a batch are worked on off the
//! runtime's threads, and what they decompress to counts before memory is taken for it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::spawn_blocking;

use blockstore_proto::reapi::compressor::Value as Compressor;
use tonic::Status;

use super::{
    ANSWER_BYTES_MAX, Shared,
    batch_wire::{Entry, Kind, ReadRequest, SentDigest, UpdateRequest, answer},
    grpc::{Answer, Call},
    request,
    resource::by_length,
    status::{bad_field, blob_missing, decompress_status, store_status},
};
use crate::{
    log::access::Resource,
    metrics::labels::BlobOutcome,
    store::{
        BatchBlob, Digest, DigestFunction, StoreError,
        compression::{DecompressError, decompress_whole},
    },
};

/// What a blob costs in an answer beside its data: its digest, a status and their keys. No status is longer.
pub(super) const ENTRY_BYTES: u64 = 512;
/// The number of zstd among the compressors.
const ZSTD: u8 = Compressor::Zstd as u8;
/// Blobs in one batch, so that their entries fit into an answer.
const BATCH_BLOBS_MAX: u64 = ANSWER_BYTES_MAX / ENTRY_BYTES;

pub(super) async fn update(shared: Arc<Shared>, mut call: Call) -> Result<Answer, Status> {
    let received = call.messages.only().await?;
    let message = &received.message;
    let request = UpdateRequest::read(message)?;
    let instance = request::instance(request.instance_name)?;
    check_count("requests", request.blobs.len())?;
    call.about(Resource::Blobs(request.blobs.len()));
    let digests = request.blobs.iter().map(|blob| &blob.digest);
    let function = function(request.function, digests, &shared.functions(&instance))?;

    // The blobs that are worth a try.
    let mut blobs = Vec::with_capacity(request.blobs.len());
    let mut room_bytes = shared.options.decompressed_bytes_max;
    let mut entries = Vec::with_capacity(request.blobs.len());
    for (place, blob) in request.blobs.iter().enumerate() {
        let parsed = blob.digest.parse("digest", function).and_then(|digest| {
            let decompressed_bytes = match Compressor::try_from(blob.compressor) {
                Ok(Compressor::Identity) => None,
                Ok(Compressor::Zstd) => {
                    let size_bytes = usize::try_from(digest.size_bytes).ok();
                    let room = size_bytes.and_then(|size_bytes| Some((size_bytes, room_bytes.checked_sub(size_bytes)?)));
                    let (size_bytes, rest_bytes) = room.ok_or_else(too_large)?;
                    room_bytes = rest_bytes;
                    Some(size_bytes)
                }
                _ => return Err(bad_field("compressor", "is not supported".into())),
            };
            Ok((digest, decompressed_bytes))
        });
        let error = match parsed {
            Ok((digest, decompressed_bytes)) => {
                blobs.push(Sent { place, digest, data: message.slice_ref(blob.data), decompressed_bytes });
                None
            }
            Err(status) => Some(status),
        };
        entries.push(Entry::new(blob.digest, error));
    }
    // Held until the store has the blobs.
    let _room = shared.decompressed.take(shared.options.decompressed_bytes_max - room_bytes).await?;
    let mut whole = Vec::with_capacity(blobs.len());
    let mut places = Vec::with_capacity(blobs.len());
    for (place, blob) in decompressed(blobs).await? {
        match blob {
            Ok(blob) => {
                whole.push(blob);
                places.push(place);
            }
            Err(error) => {
                if let Some(entry) = entries.get_mut(place) {
                    entry.error = Some(decompress_status(&error));
                }
            }
        }
    }
    let outcomes = shared.store.write_batch(&instance, whole).await;
    for (place, outcome) in places.into_iter().zip(outcomes) {
        if let (Err(error), Some(entry)) = (outcome, entries.get_mut(place)) {
            entry.error = Some(store_status(&error));
        }
    }
    let stored = entries.iter().filter(|entry| entry.error.is_none()).count();
    call.blobs(BlobOutcome::Stored, stored);
    call.blobs(BlobOutcome::Error, entries.len() - stored);
    Ok(Answer::one(answer(Kind::Update, &entries)))
}

/// A blob of a batch as it was sent.
struct Sent {
    /// Where in the answer its status belongs.
    place: usize,
    digest: Digest,
    data: Bytes,
    /// Its size, if it was sent compressed.
    decompressed_bytes: Option<usize>,
}

/// A blob's place in the answer, and the blob or why it is none.
type Decompressed = (usize, Result<(Digest, Bytes), DecompressError>);

/// All of them uncompressed, in order.
async fn decompressed(blobs: Vec<Sent>) -> Result<Vec<Decompressed>, Status> {
    let any = blobs.iter().any(|blob| blob.decompressed_bytes.is_some());
    let work = || {
        let whole = |blob: Sent| {
            let data = match blob.decompressed_bytes {
                Some(size_bytes) => decompress_whole(&blob.data, size_bytes),
                None => Ok(blob.data),
            };
            (blob.place, data.map(|data| (blob.digest, data)))
        };
        blobs.into_iter().map(whole).collect()
    };
    if any { off_thread(work).await } else { Ok(work()) }
}

/// Does work that takes long where it keeps nobody waiting.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    spawn_blocking(work).await.map_err(|error| Status::internal(format!("task of a batch ended: {error}")))
}

pub(super) async fn read(shared: Arc<Shared>, mut call: Call) -> Result<Answer, Status> {
    let received = call.messages.only().await?;
    let request = ReadRequest::read(&received.message)?;
    let instance = request::instance(request.instance_name)?;
    check_count("digests", request.digests.len())?;
    let function = function(request.function, request.digests.iter(), &shared.functions(&instance))?;
    call.about(Resource::Blobs(request.digests.len()));

    let mut room_bytes = ANSWER_BYTES_MAX - ENTRY_BYTES * request.digests.len() as u64;
    let mut wanted = Vec::with_capacity(request.digests.len());
    let mut places = Vec::with_capacity(request.digests.len());
    let mut entries = Vec::with_capacity(request.digests.len());
    for (place, sent) in request.digests.iter().enumerate() {
        let admitted = sent.parse("digests", function).and_then(|digest| {
            room_bytes = room_bytes.checked_sub(digest.size_bytes).ok_or_else(no_room)?;
            Ok(digest)
        });
        let error = match admitted {
            Ok(digest) => {
                wanted.push(digest);
                places.push(place);
                None
            }
            Err(status) => Some(status),
        };
        entries.push(Entry::new(*sent, error));
    }
    let found = match request.compressors.contains(&Compressor::Zstd.into()) {
        true => shared.store.read_batch_zstd(&instance, &wanted).await,
        false => {
            let found = shared.store.read_batch(&instance, &wanted).await;
            found.into_iter().map(|blob| blob.map(|blob| blob.map(BatchBlob::Plain))).collect()
        }
    };
    let mut misses = 0;
    for ((place, digest), found) in places.into_iter().zip(&wanted).zip(found) {
        let Some(entry) = entries.get_mut(place) else {
            continue;
        };
        match found {
            Ok(Some(BatchBlob::Plain(data))) => entry.data = data,
            Ok(Some(BatchBlob::Zstd(frames))) => {
                entry.data = frames;
                entry.compressor = ZSTD;
            }
            // Nothing of it was given out, so that a damaged blob is a missing one.
            Ok(None) | Err(StoreError::Lost { .. }) => {
                misses += 1;
                entry.error = Some(blob_missing(digest));
            }
            Err(error) => entry.error = Some(store_status(&error)),
        }
    }
    let hits = entries.iter().filter(|entry| entry.error.is_none()).count();
    call.blobs(BlobOutcome::Hit, hits);
    call.blobs(BlobOutcome::Miss, misses);
    call.blobs(BlobOutcome::Error, entries.len() - hits - misses);
    Ok(Answer::one(answer(Kind::Read, &entries)))
}

pub(super) fn too_large() -> Status {
    bad_field("digest", "compressed blobs of a batch are too large together; write them with ByteStream.Write".into())
}

pub(super) fn no_room() -> Status {
    Status::resource_exhausted("blob does not fit into this answer; read it with ByteStream.Read")
}

fn check_count(field: &str, count: usize) -> Result<(), Status> {
    if count as u64 > BATCH_BLOBS_MAX {
        return Err(bad_field(field, format!("has {count} blobs, more than {BATCH_BLOBS_MAX}")));
    }
    Ok(())
}

/// The function of a batch; where none is set, the first digest that can be one tells.
fn function<'a, 'm: 'a>(
    number: i32,
    mut digests: impl Iterator<Item = &'a SentDigest<'m>>,
    offered: &[DigestFunction],
) -> Result<DigestFunction, Status> {
    let digits = digests.find_map(|digest| digest.hash_digits().filter(|digits| by_length(*digits, offered).is_some()));
    request::digest_function(number, digits, offered)
}
