//! The messages of batches, read where they lie and written once: a batch has thousands of blobs, and its answer repeats their digests
//! as they came.
//!
//! Always true here: nothing is copied from a request, and memory is taken for its entries only; an answer is as long as was computed
//! before.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use tonic::Status;

use super::{
    grpc::Outgoing,
    status::{bad_digest, bad_field, rpc_status},
    wire::{Fields, Malformed, Value, bytes_field_len, digest_fields, malformed, put_bytes_field},
};
use crate::store::{Digest, DigestFunction};

/// A digest that is longer than this, encoded, is none of ours: the longest hash, a size, and the keys of both.
const ECHO_BYTES_MAX: usize = crate::store::HASH_BYTES_MAX * 2 + 16;

/// A digest of a request as it was sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SentDigest<'a> {
    /// `None` where there is none.
    encoded: Option<&'a [u8]>,
    hash_hex: &'a [u8],
    size_bytes: i64,
}

impl<'a> SentDigest<'a> {
    fn read(encoded: &'a [u8]) -> Result<Self, Malformed> {
        let (hash_hex, size_bytes) = digest_fields(encoded)?;
        Ok(Self { encoded: Some(encoded), hash_hex, size_bytes })
    }

    /// Hex digits of its hash; `None` where there is no digest.
    pub(super) fn hash_digits(&self) -> Option<usize> {
        self.encoded.map(|_| self.hash_hex.len())
    }

    /// The digest, which has to be there.
    pub(super) fn parse(&self, field: &str, function: DigestFunction) -> Result<Digest, Status> {
        if self.encoded.is_none() {
            return Err(bad_field(field, "is required".into()));
        }
        Digest::parse(function, self.hash_hex, self.size_bytes).map_err(|error| bad_digest(field, error))
    }

    /// What the answer says: the same, unless it is too long to be one.
    fn echo(&self) -> Option<&'a [u8]> {
        self.encoded.filter(|encoded| encoded.len() <= ECHO_BYTES_MAX)
    }
}

/// A blob of a `BatchUpdateBlobsRequest`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SentBlob<'a> {
    pub(super) digest: SentDigest<'a>,
    pub(super) data: &'a [u8],
    pub(super) compressor: i32,
}

/// `BatchUpdateBlobsRequest`.
#[derive(Debug, Default)]
pub(super) struct UpdateRequest<'a> {
    pub(super) instance_name: &'a str,
    pub(super) function: i32,
    pub(super) blobs: Vec<SentBlob<'a>>,
}

impl<'a> UpdateRequest<'a> {
    pub(super) fn read(message: &'a [u8]) -> Result<Self, Status> {
        let mut request = Self::default();
        for field in Fields::new(message) {
            match field.map_err(malformed)? {
                (1, Value::Len(name)) => request.instance_name = text(name)?,
                (2, Value::Len(blob)) => request.blobs.push(Self::blob(blob).map_err(malformed)?),
                (5, Value::Varint(function)) => request.function = number(function),
                _ => {}
            }
        }
        Ok(request)
    }

    fn blob(encoded: &'a [u8]) -> Result<SentBlob<'a>, Malformed> {
        let mut blob = SentBlob::default();
        for field in Fields::new(encoded) {
            match field? {
                (1, Value::Len(digest)) => blob.digest = SentDigest::read(digest)?,
                (2, Value::Len(data)) => blob.data = data,
                (3, Value::Varint(compressor)) => blob.compressor = number(compressor),
                _ => {}
            }
        }
        Ok(blob)
    }
}

/// `BatchReadBlobsRequest`.
#[derive(Debug, Default)]
pub(super) struct ReadRequest<'a> {
    pub(super) instance_name: &'a str,
    pub(super) function: i32,
    pub(super) digests: Vec<SentDigest<'a>>,
    pub(super) compressors: Vec<i32>,
}

impl<'a> ReadRequest<'a> {
    pub(super) fn read(message: &'a [u8]) -> Result<Self, Status> {
        let mut request = Self { digests: Vec::with_capacity(message.len() / 70), ..Self::default() };
        for field in Fields::new(message) {
            match field.map_err(malformed)? {
                (1, Value::Len(name)) => request.instance_name = text(name)?,
                (2, Value::Len(digest)) => request.digests.push(SentDigest::read(digest).map_err(malformed)?),
                (3, Value::Varint(compressor)) => request.compressors.push(number(compressor)),
                (3, Value::Len(packed)) => {
                    for compressor in Fields::numbers(packed) {
                        request.compressors.push(number(compressor.map_err(malformed)?));
                    }
                }
                (4, Value::Varint(function)) => request.function = number(function),
                _ => {}
            }
        }
        Ok(request)
    }
}

/// A number of an enumeration, of which Protocol Buffers keep the low 32 bits.
fn number(value: u64) -> i32 {
    value as u32 as i32
}

fn text(name: &[u8]) -> Result<&str, Status> {
    std::str::from_utf8(name).map_err(|_| bad_field("instance_name", "is not UTF-8".into()))
}

/// A blob of an answer.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub(super) digest: SentDigest<'a>,
    /// Why it was not stored or is not here; `None` for OK.
    pub(super) error: Option<Status>,
    /// What was read; always empty in the answer of an update.
    pub(super) data: Bytes,
    /// The number of the compressor of the data; 0 for none.
    pub(super) compressor: u8,
}

impl<'a> Entry<'a> {
    pub(super) fn new(digest: SentDigest<'a>, error: Option<Status>) -> Self {
        Self { digest, error, data: Bytes::new(), compressor: 0 }
    }
}

/// Which of the two answers is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `BatchUpdateBlobsResponse`.
    Update,
    /// `BatchReadBlobsResponse`.
    Read,
}

/// The answer.
pub(super) fn answer(kind: Kind, entries: &[Entry<'_>]) -> Outgoing {
    let status_field = match kind {
        Kind::Update => 2,
        Kind::Read => 3,
    };
    // A status of no bytes is OK, and there all the same.
    let statuses: Vec<Vec<u8>> =
        entries.iter().map(|entry| entry.error.as_ref().map_or_else(Vec::new, |error| rpc_status(error).encode_to_vec())).collect();
    let entry_len = |entry: &Entry<'_>, status: &[u8]| {
        let digest = entry.digest.echo().map_or(0, |digest| bytes_field_len(digest.len()));
        let data = if entry.data.is_empty() { 0 } else { bytes_field_len(entry.data.len()) };
        digest + data + bytes_field_len(status.len()) + if entry.compressor == 0 { 0 } else { 2 }
    };
    let all = || entries.iter().zip(&statuses);
    let len = all().map(|(entry, status)| bytes_field_len(entry_len(entry, status))).sum();
    Outgoing::written(len, |out: &mut BytesMut| {
        for (entry, status) in all() {
            out.put_u8(1 << 3 | 2);
            prost::encoding::encode_varint(entry_len(entry, status) as u64, out);
            if let Some(digest) = entry.digest.echo() {
                put_bytes_field(out, 1, digest);
            }
            if !entry.data.is_empty() {
                put_bytes_field(out, 2, &entry.data);
            }
            put_bytes_field(out, status_field, status);
            if entry.compressor != 0 {
                out.put_slice(&[4 << 3, entry.compressor]);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use blockstore_proto::reapi::{
        self, BatchReadBlobsRequest, BatchReadBlobsResponse, BatchUpdateBlobsRequest, BatchUpdateBlobsResponse, batch_read_blobs_response,
        batch_update_blobs_request, batch_update_blobs_response, compressor::Value as Compressor,
    };

    use super::*;
    use crate::{
        front::reapi::{
            batch::ENTRY_BYTES,
            status::{blob_missing, decompress_status, store_status},
        },
        store::{
            StoreError,
            compression::{DecompressError, decompress_whole},
        },
    };

    fn digest(n: u8) -> reapi::Digest {
        reapi::Digest { hash: format!("{n:02x}").repeat(32), size_bytes: i64::from(n) }
    }

    fn decoded<M: Message + Default>(answer: Outgoing) -> M {
        M::decode(answer.into_message()).unwrap()
    }

    #[test]
    fn reads_what_prost_encodes() {
        let request = |n: u8| batch_update_blobs_request::Request {
            digest: (n != 2).then(|| digest(n)),
            data: vec![n; usize::from(n)].into(),
            compressor: i32::from(n % 2),
        };
        let sent = BatchUpdateBlobsRequest { instance_name: "a/b".into(), requests: (0..4).map(request).collect(), digest_function: 1 };
        let message = sent.encode_to_vec();
        let read = UpdateRequest::read(&message).unwrap();
        assert_eq!((read.instance_name, read.function, read.blobs.len()), ("a/b", 1, 4));
        for (read, sent) in read.blobs.iter().zip(&sent.requests) {
            assert_eq!((read.data, read.compressor), (&sent.data[..], sent.compressor));
            match &sent.digest {
                Some(sent) => {
                    let digest = read.digest.parse("digest", DigestFunction::Sha256).unwrap();
                    assert_eq!((digest.hash_hex(), digest.size_bytes), (sent.hash.clone(), sent.size_bytes as u64));
                    assert_eq!(read.digest.hash_digits(), Some(64));
                }
                None => {
                    assert!(read.digest.parse("digest", DigestFunction::Sha256).unwrap_err().message().contains("required"));
                    assert_eq!(read.digest.hash_digits(), None);
                }
            }
        }
        // Whoever does not pack numbers sends them one by one.
        let sent = BatchReadBlobsRequest {
            instance_name: "c".into(),
            digests: vec![digest(1), digest(2)],
            acceptable_compressors: vec![0, 1, 300],
            digest_function: 9,
        };
        let unpacked = [&sent.encode_to_vec()[..], &[3 << 3, 2]].concat();
        let read = ReadRequest::read(&unpacked).unwrap();
        assert_eq!((read.instance_name, read.function, read.digests.len()), ("c", 9, 2));
        assert_eq!(read.compressors, [0, 1, 300, 2]);
    }

    #[test]
    fn cut_or_spoiled_requests_are_errors_of_the_client() {
        let requests = vec![batch_update_blobs_request::Request { digest: Some(digest(3)), data: vec![1; 9].into(), compressor: 0 }];
        let update = BatchUpdateBlobsRequest { instance_name: "i".into(), requests, digest_function: 1 }.encode_to_vec();
        let read = BatchReadBlobsRequest {
            instance_name: "i".into(),
            digests: vec![digest(1)],
            acceptable_compressors: vec![1],
            digest_function: 1,
        };
        let read = read.encode_to_vec();
        let mut refused = 0;
        for (message, is_update) in [(&update, true), (&read, false)] {
            for len in 0..message.len() {
                let cut = &message[..len];
                let (status, expected) = match is_update {
                    true => (UpdateRequest::read(cut).err(), BatchUpdateBlobsRequest::decode(cut).is_err()),
                    false => (ReadRequest::read(cut).err(), BatchReadBlobsRequest::decode(cut).is_err()),
                };
                assert_eq!(status.is_some(), expected, "{is_update} {len}");
                refused += u32::from(expected);
                assert!(status.is_none_or(|status| status.code() == tonic::Code::InvalidArgument));
            }
        }
        assert!(refused > 100, "{refused}");
        assert!(UpdateRequest::read(&[0x0a, 1, 0xff]).unwrap_err().message().contains("instance_name"));
    }

    #[test]
    fn answers_what_prost_decodes() {
        let encoded: Vec<_> = (0..4).map(|n| digest(n).encode_to_vec()).collect();
        let sent: Vec<_> = encoded.iter().map(|encoded| SentDigest::read(encoded).unwrap()).collect();
        let refused = || bad_field("digest", "is wrong".into());
        let entries = [Entry::new(sent[0], None), Entry::new(sent[1], Some(refused())), Entry::new(SentDigest::default(), Some(refused()))];
        let response = |digest, error: Option<Status>| batch_update_blobs_response::Response {
            digest,
            status: Some(error.as_ref().map(rpc_status).unwrap_or_default()),
        };
        let expected = vec![response(Some(digest(0)), None), response(Some(digest(1)), Some(refused())), response(None, Some(refused()))];
        assert_eq!(decoded::<BatchUpdateBlobsResponse>(answer(Kind::Update, &entries)).responses, expected);

        let data = Bytes::from(vec![7; 1000]);
        let entries = [
            Entry { data: data.clone(), ..Entry::new(sent[2], None) },
            Entry { data: data.clone(), compressor: 1, ..Entry::new(sent[3], None) },
            Entry::new(sent[0], Some(refused())),
        ];
        let response = |digest, data, compressor: Compressor, error: Option<Status>| batch_read_blobs_response::Response {
            digest: Some(digest),
            data,
            compressor: compressor.into(),
            status: Some(error.as_ref().map(rpc_status).unwrap_or_default()),
        };
        let expected = vec![
            response(digest(2), data.clone(), Compressor::Identity, None),
            response(digest(3), data, Compressor::Zstd, None),
            response(digest(0), Bytes::new(), Compressor::Identity, Some(refused())),
        ];
        assert_eq!(decoded::<BatchReadBlobsResponse>(answer(Kind::Read, &entries)).responses, expected);
    }

    #[test]
    fn what_is_too_long_to_be_a_digest_is_not_repeated() {
        let long = reapi::Digest { hash: "f".repeat(500), size_bytes: 1 }.encode_to_vec();
        let sent = SentDigest::read(&long).unwrap();
        let error = sent.parse("digest", DigestFunction::Sha256).unwrap_err();
        let response: BatchUpdateBlobsResponse = decoded(answer(Kind::Update, &[Entry::new(sent, Some(error))]));
        assert_eq!((response.responses.len(), &response.responses[0].digest), (1, &None));
    }

    #[test]
    fn no_entry_is_larger_than_what_is_set_aside() {
        let encoded = reapi::Digest { hash: "f".repeat(128), size_bytes: i64::MAX }.encode_to_vec();
        let sent = SentDigest::read(&encoded).unwrap();
        let blob = Digest::parse(DigestFunction::Sha512, &[b'f'; 128], i64::MAX).unwrap();
        for status in [
            blob_missing(&blob),
            super::super::batch::no_room(),
            super::super::batch::too_large(),
            decompress_status(&DecompressError::Cut),
            decompress_status(&decompress_whole(b"no frame", 1).unwrap_err()),
            store_status(&StoreError::HashMismatch { declared: Box::new(blob), computed: Box::new(blob) }),
            bad_field("compressor", "is not supported".into()),
        ] {
            let told = status.to_string();
            let entry = answer(Kind::Read, &[Entry { compressor: 1, ..Entry::new(sent, Some(status)) }]).into_message();
            assert!(entry.len() as u64 + 8 <= ENTRY_BYTES, "{} {told}", entry.len());
        }
    }
}
