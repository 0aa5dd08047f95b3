//! Blobs in chunks, both generations: unary `SplitBlob` and `SpliceBlob` (API 2.12), and `GetChunkMapping` and `RegisterChunkMapping`,
//! whose lists are spread over messages (API 2.13).
//!
//! Always true here: a list is registered only once the client has closed its side; no answer is larger than a client can decode; a long
//! list in memory counts against a budget, and then its stream must not stand still.

use std::{borrow::Cow, sync::Arc};

use blockstore_proto::reapi;
use bytes::Bytes;
use futures::{StreamExt, stream};
use prost::Message;
use tokio::{sync::OwnedSemaphorePermit, time::timeout};
use tonic::{Code, Status};

use super::{
    ANSWER_BYTES_MAX, Shared,
    grpc::{Answer, Call, Outgoing, STALL_MAX, decode},
    request,
    status::{bad_field, blob_missing, store_status},
};
use crate::{
    log::access::Resource,
    store::{
        ChunkList, ChunkListBuilder, Chunking, Digest, DigestFunction, Instance, StoreError, WriteOutcome,
        chunk_list::{CHUNKS_MAX, INLINE_BYTES_MAX},
    },
};

/// Digests in a message of `GetChunkMapping`. With the longest hashes and sizes they have a third of what a client decodes.
const MESSAGE_DIGESTS_MAX: usize = 8 << 10;
/// What a digest takes in a message at least, beside its hash: keys and lengths.
const DIGEST_BYTES_MIN: usize = 4;

/// `SpliceBlobRequest` and `RegisterChunkMappingRequest`, whose fields have the same numbers, with the chunks left encoded: decoded all at
/// once they would take several times the memory that the message did.
#[derive(Clone, PartialEq, Message)]
struct Splice {
    #[prost(string, tag = "1")]
    instance_name: String,
    #[prost(message, optional, tag = "2")]
    blob_digest: Option<reapi::Digest>,
    #[prost(bytes = "bytes", repeated, tag = "3")]
    chunk_digests: Vec<Bytes>,
    #[prost(int32, tag = "4")]
    digest_function: i32,
    #[prost(int32, tag = "5")]
    chunking_function: i32,
}

fn offered<'a>(shared: &'a Shared, instance: &Instance) -> Result<Cow<'a, [DigestFunction]>, Status> {
    match shared.store.capabilities().chunked_blobs {
        true => Ok(shared.functions(instance)),
        false => Err(Status::unimplemented("this server does not split or splice blobs")),
    }
}

/// The newer methods do without a guess.
fn check_set(digest_function: i32) -> Result<(), Status> {
    match digest_function {
        0 => Err(bad_field("digest_function", "is required".into())),
        _ => Ok(()),
    }
}

fn wire(digest: &Digest) -> reapi::Digest {
    reapi::Digest { hash: digest.hash_hex(), size_bytes: i64::try_from(digest.size_bytes).unwrap_or(i64::MAX) }
}

/// The chunks of a blob. A client may wish for an algorithm, but has to take what it gets: so a wish that is not understood is none.
async fn chunks(shared: &Shared, instance: &Instance, digest: &Digest, chunking: i32) -> Result<ChunkList, Status> {
    let chunking = Chunking::from_number(chunking).unwrap_or_default();
    let list = shared.store.chunk_list(instance, digest, chunking).await.map_err(|error| store_status(&error))?;
    list.ok_or_else(|| blob_missing(digest))
}

pub(super) async fn split(shared: Arc<Shared>, mut call: Call) -> Result<Answer, Status> {
    let received = call.messages.only().await?;
    let request: reapi::SplitBlobRequest = decode(received.message)?;
    let instance = request::instance(&request.instance_name)?;
    let digest = request::sole_digest("blob_digest", request.blob_digest.as_ref(), request.digest_function, &offered(&shared, &instance)?)?;
    call.about(Resource::Digest(digest));
    let list = chunks(&shared, &instance, &digest, request.chunking_function).await?;
    let too_long = || Status::resource_exhausted(format!("{} chunks do not fit into one answer; call GetChunkMapping", list.len()));
    if (list.len() * (digest.function.hex_digits() + DIGEST_BYTES_MIN)) as u64 > ANSWER_BYTES_MAX {
        return Err(too_long());
    }
    let response =
        reapi::SplitBlobResponse { chunk_digests: list.iter().map(|chunk| wire(&chunk)).collect(), chunking_function: list.chunking() };
    match response.encoded_len() as u64 <= ANSWER_BYTES_MAX {
        true => Ok(Answer::one(Outgoing::message(&response))),
        false => Err(too_long()),
    }
}

pub(super) async fn get_mapping(shared: Arc<Shared>, mut call: Call) -> Result<Answer, Status> {
    let received = call.messages.only().await?;
    let request: reapi::GetChunkMappingRequest = decode(received.message)?;
    let instance = request::instance(&request.instance_name)?;
    let offered = offered(&shared, &instance)?;
    check_set(request.digest_function)?;
    let digest = request::sole_digest("blob_digest", request.blob_digest.as_ref(), request.digest_function, &offered)?;
    call.about(Resource::Digest(digest));
    let list = chunks(&shared, &instance, &digest, request.chunking_function).await?;
    // The first is sent also if there are no chunks.
    let starts = (0..list.len().max(1)).step_by(MESSAGE_DIGESTS_MAX);
    let messages = stream::iter(starts).map(move |start| Ok(Outgoing::message(&mapping_message(&list, start))));
    Ok(Answer::stream(messages.boxed()))
}

/// The message with the chunks from there on.
fn mapping_message(list: &ChunkList, start: usize) -> reapi::GetChunkMappingResponse {
    let end = list.len().min(start + MESSAGE_DIGESTS_MAX);
    let chunk_digests = (start..end).filter_map(|index| list.get(index)).map(|chunk| wire(&chunk)).collect();
    reapi::GetChunkMappingResponse { chunk_digests, chunking_function: if start == 0 { list.chunking() } else { 0 } }
}

/// A list on its way in.
struct Gather<'a> {
    shared: &'a Shared,
    blob: Digest,
    list: ChunkListBuilder,
    /// Held until the list is with the store.
    permit: Option<OwnedSemaphorePermit>,
}

impl<'a> Gather<'a> {
    /// `permit`: what the message holds whose chunks are all of them. The list is smaller than that.
    fn new(shared: &'a Shared, blob: Digest, chunking: i32, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self { shared, blob, list: ChunkListBuilder::new(blob.function, chunking), permit }
    }

    /// Takes more chunks. Memory for the longest list is asked for at once, so that two that arrive never wait for each other.
    async fn add(&mut self, chunks: Vec<Bytes>) -> Result<(), Status> {
        for chunk in chunks {
            let chunk = request::digest("chunk_digests", Some(&decode(chunk)?), self.blob.function)?;
            self.list.push(&chunk).map_err(|error| store_status(&error))?;
            if self.permit.is_none() && self.list.memory_bytes() > INLINE_BYTES_MAX {
                self.permit = self.shared.chunk_lists.take(CHUNKS_MAX * self.list.entry_bytes()).await?;
            }
        }
        Ok(())
    }

    /// Gives it to the store.
    async fn register(mut self, instance: &Instance) -> Result<WriteOutcome, Status> {
        let list = self.list.finish().map_err(|error| store_status(&error))?;
        if let Some(permit) = &mut self.permit {
            // What it does not need after all; the store takes its time.
            drop(permit.split(permit.num_permits().saturating_sub(list.memory_bytes())));
        }
        self.shared.store.put_chunk_list(instance, &self.blob, list).await.map_err(|error| splice_status(&error))
    }
}

/// What is wrong with the sum of chunks is told in the client's terms.
fn splice_status(error: &StoreError) -> Status {
    match error {
        StoreError::SizeMismatch { declared_bytes, sent_bytes } => {
            bad_field("blob_digest", format!("says {declared_bytes} bytes, but the chunks have {sent_bytes} together"))
        }
        StoreError::HashMismatch { computed, .. } => bad_field("blob_digest", format!("is not that of the chunks, which is {computed}")),
        error => store_status(error),
    }
}

pub(super) async fn splice(shared: Arc<Shared>, mut call: Call) -> Result<Answer, Status> {
    let received = call.messages.only().await?;
    let request: Splice = decode(received.message)?;
    let instance = request::instance(&request.instance_name)?;
    let blob = request::sole_digest("blob_digest", request.blob_digest.as_ref(), request.digest_function, &offered(&shared, &instance)?)?;
    call.about(Resource::Digest(blob));
    let mut gather = Gather::new(&shared, blob, request.chunking_function, received.permit);
    gather.add(request.chunk_digests).await?;
    // A blob that is there is what the client wants; it and its chunks count as used.
    gather.register(&instance).await?;
    Ok(Answer::one(Outgoing::message(&reapi::SpliceBlobResponse { blob_digest: Some(wire(&blob)) })))
}

pub(super) async fn register_mapping(shared: Arc<Shared>, mut call: Call) -> Result<Answer, Status> {
    let first: Splice = decode(call.messages.only().await?.message)?;
    let instance = request::instance(&first.instance_name)?;
    let offered = offered(&shared, &instance)?;
    check_set(first.digest_function)?;
    let blob = request::sole_digest("blob_digest", first.blob_digest.as_ref(), first.digest_function, &offered)?;
    call.about(Resource::Digest(blob));
    let mut gather = Gather::new(&shared, blob, first.chunking_function, None);
    gather.add(first.chunk_digests).await?;
    // Told at once, so that the client need not send the rest.
    let missing = shared.store.find_missing(&instance, std::slice::from_ref(&blob)).await.map_err(|error| store_status(&error))?;
    if !missing.contains(&true) {
        return Err(already_exists(&blob));
    }
    loop {
        let next = call.messages.next();
        let next = match gather.permit {
            Some(_) => timeout(STALL_MAX, next).await.map_err(|_| Status::deadline_exceeded("list of chunks did not arrive in time"))?,
            None => next.await,
        };
        // Only a stream that was closed ends without an error: one that is cut registers nothing.
        let Some(received) = next? else {
            break;
        };
        // Of all but the first message only the chunks count.
        let more: Splice = decode(received.message)?;
        // Others may need its share before they are done with theirs of the lists.
        drop(received.permit);
        gather.add(more.chunk_digests).await?;
    }
    match gather.register(&instance).await? {
        WriteOutcome::Stored => Ok(Answer::one(Outgoing::message(&reapi::RegisterChunkMappingResponse { blob_digest: Some(wire(&blob)) }))),
        WriteOutcome::AlreadyPresent => Err(already_exists(&blob)),
    }
}

fn already_exists(blob: &Digest) -> Status {
    Status::new(Code::AlreadyExists, format!("blob {blob} exists; GetChunkMapping tells its chunks"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_requests_are_read_as_one() {
        let chunk = reapi::Digest { hash: "hash".into(), size_bytes: -3 };
        let blob = reapi::Digest { hash: "blob".into(), size_bytes: 7 };
        let unary = reapi::SpliceBlobRequest {
            instance_name: "main".into(),
            blob_digest: Some(blob.clone()),
            chunk_digests: vec![chunk.clone(); 2],
            digest_function: 9,
            chunking_function: -2,
        };
        let streamed = reapi::RegisterChunkMappingRequest {
            instance_name: "main".into(),
            blob_digest: Some(blob.clone()),
            chunk_digests: vec![chunk.clone(); 2],
            digest_function: 9,
            chunking_function: -2,
        };
        let expected = Splice {
            instance_name: "main".into(),
            blob_digest: Some(blob),
            chunk_digests: vec![chunk.encode_to_vec().into(); 2],
            digest_function: 9,
            chunking_function: -2,
        };
        for encoded in [unary.encode_to_vec(), streamed.encode_to_vec()] {
            assert_eq!(decode::<Splice>(encoded.into()).unwrap(), expected);
        }
    }

    #[test]
    fn the_largest_message_is_one_that_clients_decode() {
        let mut list = ChunkListBuilder::new(DigestFunction::Sha512, i32::MAX);
        let chunk = Digest::new(DigestFunction::Sha512, &[0xff; 64], i64::MAX as u64).unwrap();
        // One as long as can be; the rest has to be empty for the sum to be a size.
        list.push(&chunk).unwrap();
        for _ in 0..2 * MESSAGE_DIGESTS_MAX {
            list.push(&chunk.with_size(0)).unwrap();
        }
        let list = list.finish().unwrap();
        let digest = wire(&chunk);
        let longest = reapi::GetChunkMappingResponse { chunk_digests: vec![digest; MESSAGE_DIGESTS_MAX], chunking_function: i32::MAX };
        assert!((longest.encoded_len() as u64) < ANSWER_BYTES_MAX / 2);
        let messages = [0, MESSAGE_DIGESTS_MAX, 2 * MESSAGE_DIGESTS_MAX].map(|start| mapping_message(&list, start));
        assert_eq!(messages.each_ref().map(|message| message.chunk_digests.len()), [MESSAGE_DIGESTS_MAX, MESSAGE_DIGESTS_MAX, 1]);
        assert_eq!(messages.each_ref().map(|message| message.chunking_function), [i32::MAX, 0, 0]);
        // An estimate that must not be above the truth.
        let least = reapi::SplitBlobResponse { chunk_digests: vec![wire(&chunk.with_size(0))], chunking_function: 0 };
        assert!(least.encoded_len() >= chunk.function.hex_digits() + DIGEST_BYTES_MIN);
    }
}
