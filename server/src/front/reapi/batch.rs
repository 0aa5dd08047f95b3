//! `BatchUpdateBlobs` and `BatchReadBlobs`: many small blobs in one message, a status for each.
//!
//! Always true here: what is wrong with one blob is told in its own status and hurts no other; an answer is never larger than
//! [`ANSWER_BYTES_MAX`](super::ANSWER_BYTES_MAX), which every client can decode. Compressed blobs of a batch are worked on off the
//! runtime's threads, and what they decompress to counts before memory is taken for it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::spawn_blocking;

use blockstore_proto::{
    reapi::{self, batch_read_blobs_response, batch_update_blobs_response, compressor::Value as Compressor},
    rpc,
};
use tonic::{Code, Status};

use super::{
    ANSWER_BYTES_MAX, Shared,
    grpc::{Answer, Call, Outgoing, decode},
    request,
    resource::by_length,
    status::{bad_field, blob_missing, decompress_status, rpc_status, store_status},
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
const ENTRY_BYTES: u64 = 512;
/// Blobs in one batch, so that their entries fit into an answer.
const BATCH_BLOBS_MAX: u64 = ANSWER_BYTES_MAX / ENTRY_BYTES;

pub(super) async fn update(shared: Arc<Shared>, mut call: Call) -> Result<Answer, Status> {
    let received = call.messages.only().await?;
    let request: reapi::BatchUpdateBlobsRequest = decode(received.message)?;
    let instance = request::instance(&request.instance_name)?;
    check_count("requests", request.requests.len())?;
    call.about(Resource::Blobs(request.requests.len()));
    let digests = request.requests.iter().filter_map(|r| r.digest.as_ref());
    let function = function(request.digest_function, digests, &shared.functions(&instance))?;

    // The blobs that are worth a try.
    let mut blobs = Vec::with_capacity(request.requests.len());
    let mut room_bytes = shared.options.decompressed_bytes_max;
    let mut responses = Vec::with_capacity(request.requests.len());
    for (place, blob) in request.requests.into_iter().enumerate() {
        let parsed = request::digest("digest", blob.digest.as_ref(), function).and_then(|digest| {
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
        let status = match parsed {
            Ok((digest, decompressed_bytes)) => {
                blobs.push(Sent { place, digest, data: blob.data, decompressed_bytes });
                rpc::Status::default()
            }
            Err(status) => rpc_status(&status),
        };
        responses.push(batch_update_blobs_response::Response { digest: echo(blob.digest), status: Some(status) });
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
                if let Some(response) = responses.get_mut(place) {
                    response.status = Some(rpc_status(&decompress_status(&error)));
                }
            }
        }
    }
    let outcomes = shared.store.write_batch(&instance, whole).await;
    for (place, outcome) in places.into_iter().zip(outcomes) {
        if let (Err(error), Some(response)) = (outcome, responses.get_mut(place)) {
            response.status = Some(rpc_status(&store_status(&error)));
        }
    }
    let stored = responses.iter().filter(|response| code(response.status.as_ref()) == Code::Ok).count();
    call.blobs(BlobOutcome::Stored, stored);
    call.blobs(BlobOutcome::Error, responses.len() - stored);
    Ok(Answer::one(Outgoing::message(&reapi::BatchUpdateBlobsResponse { responses })))
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
    let request: reapi::BatchReadBlobsRequest = decode(received.message)?;
    let instance = request::instance(&request.instance_name)?;
    check_count("digests", request.digests.len())?;
    let function = function(request.digest_function, request.digests.iter(), &shared.functions(&instance))?;
    call.about(Resource::Blobs(request.digests.len()));

    let mut room_bytes = ANSWER_BYTES_MAX - ENTRY_BYTES * request.digests.len() as u64;
    let mut wanted = Vec::with_capacity(request.digests.len());
    let mut places = Vec::with_capacity(request.digests.len());
    let mut responses = Vec::with_capacity(request.digests.len());
    for (place, sent) in request.digests.into_iter().enumerate() {
        let admitted = request::digest("digests", Some(&sent), function).and_then(|digest| {
            room_bytes = room_bytes.checked_sub(digest.size_bytes).ok_or_else(no_room)?;
            Ok(digest)
        });
        let status = match admitted {
            Ok(digest) => {
                wanted.push(digest);
                places.push(place);
                rpc::Status::default()
            }
            Err(status) => rpc_status(&status),
        };
        responses.push(batch_read_blobs_response::Response { digest: echo(Some(sent)), status: Some(status), ..Default::default() });
    }
    let found = match request.acceptable_compressors.contains(&Compressor::Zstd.into()) {
        true => shared.store.read_batch_zstd(&instance, &wanted).await,
        false => {
            let found = shared.store.read_batch(&instance, &wanted).await;
            found.into_iter().map(|blob| blob.map(|blob| blob.map(BatchBlob::Plain))).collect()
        }
    };
    for ((place, digest), found) in places.into_iter().zip(&wanted).zip(found) {
        let Some(response) = responses.get_mut(place) else {
            continue;
        };
        match found {
            Ok(Some(BatchBlob::Plain(data))) => response.data = data,
            Ok(Some(BatchBlob::Zstd(frames))) => {
                response.data = frames;
                response.compressor = Compressor::Zstd.into();
            }
            // Nothing of it was given out, so that a damaged blob is a missing one.
            Ok(None) | Err(StoreError::Lost { .. }) => {
                response.status = Some(rpc_status(&blob_missing(digest)));
            }
            Err(error) => response.status = Some(rpc_status(&store_status(&error))),
        }
    }
    let with = |wanted| responses.iter().filter(|response| code(response.status.as_ref()) == wanted).count();
    let (hits, misses) = (with(Code::Ok), with(Code::NotFound));
    call.blobs(BlobOutcome::Hit, hits);
    call.blobs(BlobOutcome::Miss, misses);
    call.blobs(BlobOutcome::Error, responses.len() - hits - misses);
    Ok(Answer::one(Outgoing::message(&reapi::BatchReadBlobsResponse { responses })))
}

/// The code of a blob's status.
fn code(status: Option<&rpc::Status>) -> Code {
    status.map_or(Code::Ok, |status| Code::from_i32(status.code))
}

fn too_large() -> Status {
    bad_field("digest", "compressed blobs of a batch are too large together; write them with ByteStream.Write".into())
}

fn no_room() -> Status {
    Status::resource_exhausted("blob does not fit into this answer; read it with ByteStream.Read")
}

fn check_count(field: &str, count: usize) -> Result<(), Status> {
    if count as u64 > BATCH_BLOBS_MAX {
        return Err(bad_field(field, format!("has {count} blobs, more than {BATCH_BLOBS_MAX}")));
    }
    Ok(())
}

/// The function of a batch; where none is set, the first digest that can be one tells.
fn function<'a>(
    number: i32,
    mut digests: impl Iterator<Item = &'a reapi::Digest>,
    offered: &[DigestFunction],
) -> Result<DigestFunction, Status> {
    let digits = digests.find_map(|d| by_length(d.hash.len(), offered).map(|_| d.hash.len()));
    request::digest_function(number, digits, offered)
}

/// The digest of an answer, as it was sent unless it is too long to be one.
fn echo(digest: Option<reapi::Digest>) -> Option<reapi::Digest> {
    digest.filter(|d| d.hash.len() <= crate::store::HASH_BYTES_MAX * 2)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn no_entry_is_larger_than_what_is_set_aside() {
        let digest = reapi::Digest { hash: "f".repeat(128), size_bytes: i64::MAX };
        let of = |status: Status| {
            let response = batch_read_blobs_response::Response {
                digest: Some(digest.clone()),
                status: Some(rpc_status(&status)),
                ..Default::default()
            };
            response.encoded_len() as u64 + 8
        };
        let blob = Digest::parse(DigestFunction::Sha512, &[b'f'; 128], i64::MAX).unwrap();
        for status in [
            blob_missing(&blob),
            no_room(),
            too_large(),
            decompress_status(&DecompressError::Cut),
            decompress_status(&decompress_whole(b"no frame", 1).unwrap_err()),
            store_status(&StoreError::HashMismatch { declared: Box::new(blob), computed: Box::new(blob) }),
            bad_field("compressor", "is not supported".into()),
        ] {
            assert!(of(status.clone()) <= ENTRY_BYTES, "{} {status}", of(status.clone()));
        }
    }
}
