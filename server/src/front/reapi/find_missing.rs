//! `FindMissingBlobs`, parsed in place: a request may name tens of thousands of digests, and the answer repeats some of them
//! as they came.

use std::{borrow::Cow, sync::Arc};

use tonic::Status;

use super::{
    Shared,
    grpc::{Answer, Call, Outgoing},
    request,
    status::{bad_digest, bad_field, store_status},
    wire::{Fields, Value, bytes_field_len, digest_fields, malformed, put_bytes_field},
};
use crate::{
    log::access::Resource,
    metrics::labels::BlobOutcome,
    store::{Digest, DigestFunction, Instance},
};

/// Fields of `FindMissingBlobsRequest`.
mod field {
    pub(super) const INSTANCE_NAME: u64 = 1;
    pub(super) const BLOB_DIGESTS: u64 = 2;
    pub(super) const DIGEST_FUNCTION: u64 = 3;
    /// Of `FindMissingBlobsResponse`.
    pub(super) const MISSING_BLOB_DIGESTS: u32 = 2;
}

pub(super) async fn call(shared: Arc<Shared>, mut call: Call) -> Result<Answer, Status> {
    let received = call.messages.only().await?;
    let request = Request::parse(&received.message, |instance| shared.functions(instance))?;
    call.about(Resource::Blobs(request.digests.len()));
    let missing = shared.store.find_missing(&request.instance, &request.digests).await.map_err(|error| store_status(&error))?;
    let misses = missing.iter().filter(|missing| **missing).count();
    call.blobs(BlobOutcome::Miss, misses);
    call.blobs(BlobOutcome::Hit, missing.len() - misses);
    let missing = request.as_sent.iter().zip(missing).filter_map(|(sent, m)| m.then_some(*sent));
    Ok(Answer::one(response(missing)))
}

struct Request<'a> {
    instance: Instance,
    digests: Vec<Digest>,
    /// The encoded digests, in the same order.
    as_sent: Vec<&'a [u8]>,
}

impl<'a> Request<'a> {
    fn parse<'f>(message: &'a [u8], offered: impl FnOnce(&Instance) -> Cow<'f, [DigestFunction]>) -> Result<Self, Status> {
        let mut instance: &[u8] = b"";
        let mut number = 0;
        let mut as_sent = Vec::with_capacity(message.len() / 70);
        for item in Fields::new(message) {
            match item.map_err(malformed)? {
                (field::INSTANCE_NAME, Value::Len(name)) => instance = name,
                (field::BLOB_DIGESTS, Value::Len(digest)) => as_sent.push(digest),
                (field::DIGEST_FUNCTION, Value::Varint(value)) => {
                    number = i32::try_from(value).unwrap_or(-1);
                }
                _ => {}
            }
        }
        let instance = std::str::from_utf8(instance).map_err(|_| bad_field("instance_name", "is not UTF-8".into()))?;
        let instance = request::instance(instance)?;
        let offered = offered(&instance);

        let mut function = None;
        let mut digests = Vec::with_capacity(as_sent.len());
        for sent in &as_sent {
            let (hash, size_bytes) = digest_fields(sent).map_err(malformed)?;
            let function = match function {
                Some(function) => function,
                None => *function.insert(request::digest_function(number, Some(hash.len()), &offered)?),
            };
            digests.push(Digest::parse(function, hash, size_bytes).map_err(|error| bad_digest("blob_digests", error))?);
        }
        Ok(Self { instance, digests, as_sent })
    }
}

fn response<'a>(missing: impl Iterator<Item = &'a [u8]> + Clone) -> Outgoing {
    let len = missing.clone().map(|digest| bytes_field_len(digest.len())).sum();
    Outgoing::written(len, |out| missing.for_each(|digest| put_bytes_field(out, field::MISSING_BLOB_DIGESTS, digest)))
}

#[cfg(test)]
mod tests {
    use blockstore_proto::reapi;
    use prost::Message;

    use super::*;
    use crate::store::Hasher;

    fn wire(digest: &Digest) -> reapi::Digest {
        reapi::Digest { hash: digest.hash_hex(), size_bytes: i64::try_from(digest.size_bytes).unwrap() }
    }

    fn parse(request: &reapi::FindMissingBlobsRequest) -> Result<(Instance, Vec<Digest>), Status> {
        let message = request.encode_to_vec();
        Request::parse(&message, |_| DigestFunction::ALL.as_slice().into()).map(|r| (r.instance, r.digests))
    }

    #[test]
    fn parses_what_prost_encodes() {
        let digests: Vec<_> = (0..300u16).map(|n| Hasher::digest(DigestFunction::Sha1, &n.to_le_bytes())).collect();
        let request = reapi::FindMissingBlobsRequest {
            instance_name: "a/b".into(),
            blob_digests: digests.iter().map(wire).collect(),
            digest_function: 0,
        };
        assert_eq!(parse(&request).unwrap(), (Instance::new("a/b"), digests));
        let empty = reapi::FindMissingBlobsRequest::default();
        assert_eq!(parse(&empty).unwrap(), (Instance::new(""), vec![]));
    }

    #[test]
    fn answers_what_prost_decodes() {
        let digests: Vec<_> = [b"a", b"b"].map(|d| Hasher::digest(DigestFunction::Sha256, d)).into();
        let encoded: Vec<_> = digests.iter().map(|d| wire(d).encode_to_vec()).collect();
        let response = response(encoded.iter().map(Vec::as_slice));
        let response = reapi::FindMissingBlobsResponse::decode(response.into_message()).unwrap();
        assert_eq!(response.missing_blob_digests, digests.iter().map(wire).collect::<Vec<_>>());
    }

    #[test]
    fn wrong_requests_are_errors_of_the_client() {
        let sha256 = wire(&Hasher::digest(DigestFunction::Sha256, b"x"));
        let sha1 = wire(&Hasher::digest(DigestFunction::Sha1, b"x"));
        let negative = reapi::Digest { size_bytes: -1, ..sha1.clone() };
        let wrong = [
            (vec![sha1.clone(), sha256.clone()], 0),
            (vec![sha1], 1),
            (vec![sha256.clone()], 4),
            (vec![reapi::Digest::default()], 0),
            (vec![negative], 0),
            (vec![reapi::Digest { hash: sha256.hash.to_uppercase(), ..sha256 }], 0),
        ];
        for (blob_digests, digest_function) in wrong {
            let request = reapi::FindMissingBlobsRequest { blob_digests, digest_function, ..Default::default() };
            assert_eq!(parse(&request).unwrap_err().code(), tonic::Code::InvalidArgument);
        }
        assert!(Request::parse(&[0x12, 9, 1], |_| DigestFunction::ALL.as_slice().into()).is_err());
    }
}
