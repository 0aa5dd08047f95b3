//! `ByteStream.Read`.
//!
//! Always true here: the store's own buffers go to the socket behind a head of a few bytes each, unless they are compressed; an
//! error before the first byte is an error of the call, a later one ends the stream.

use std::{collections::VecDeque, sync::Arc};

use blockstore_proto::bytestream;
use bytes::Bytes;
use futures::{StreamExt, stream, stream::BoxStream};
use tonic::Status;

use super::{
    Shared,
    grpc::{Answer, Call, Outgoing, decode},
    resource::{self, Compression},
    status::{bad_field, blob_missing, store_status},
};
use crate::{
    log::access::Resource,
    store::{BlobRead, ByteRange, Instance, StoreError},
};

/// Data in one message at most. Larger than the 64 KiB that is common, because each message costs; every client takes 4 MiB.
const MESSAGE_DATA_BYTES_MAX: usize = 1 << 20;

/// Field number of `ReadResponse.data`.
const DATA: u32 = 10;

pub(super) async fn call(shared: Arc<Shared>, mut call: Call) -> Result<Answer, Status> {
    let received = call.messages.only().await?;
    let request: bytestream::ReadRequest = decode(received.message)?;
    let offered = |instance: &Instance| shared.functions(instance);
    let name = resource::parse_read(&request.resource_name, offered).map_err(|error| bad_field("resource_name", error.to_string()))?;
    call.about(Resource::Digest(name.digest));
    let range = range(request.read_offset, request.read_limit)?;
    if name.compression == Compression::Zstd && range.limit_bytes.is_some() {
        return Err(bad_field("read_limit", "has to be 0 for compressed reads".into()));
    }
    let (instance, digest) = (&name.instance, &name.digest);
    let read = match name.compression {
        Compression::Identity => shared.store.read(instance, digest, range).await,
        Compression::Zstd => shared.store.read_zstd(instance, digest, range.offset_bytes).await,
    };
    match read.map_err(|error| store_status(&error))?.ok_or_else(|| blob_missing(digest))? {
        BlobRead::Whole(data) if data.is_empty() => Ok(Answer::stream(stream::empty().boxed())),
        BlobRead::Whole(data) if data.len() <= MESSAGE_DATA_BYTES_MAX => Ok(Answer::one(Outgoing::bytes_field(DATA, data))),
        BlobRead::Whole(data) => Ok(answer(stream::iter([Ok(data)]).boxed())),
        BlobRead::Pieces(mut pieces) => match pieces.next().await {
            None => Ok(Answer::stream(stream::empty().boxed())),
            Some(Ok(first)) => Ok(answer(stream::iter([Ok(first)]).chain(pieces).boxed())),
            Some(Err(StoreError::Lost { .. })) => Err(blob_missing(digest)),
            Some(Err(error)) => Err(store_status(&error)),
        },
    }
}

/// The range that a request asks for.
fn range(offset: i64, limit: i64) -> Result<ByteRange, Status> {
    let offset_bytes = u64::try_from(offset).map_err(|_| Status::out_of_range(format!("read_offset {offset} is negative")))?;
    let limit = u64::try_from(limit).map_err(|_| bad_field("read_limit", format!("{limit} is negative")))?;
    Ok(ByteRange { offset_bytes, limit_bytes: (limit > 0).then_some(limit) })
}

/// Messages of all pieces, each of them cut where it is too large for one.
fn answer(pieces: BoxStream<'static, Result<Bytes, StoreError>>) -> Answer {
    let messages = pieces.flat_map(|piece| {
        let messages = match piece {
            Ok(data) => cut(data),
            Err(error) => VecDeque::from([Err(store_status(&error))]),
        };
        stream::iter(messages)
    });
    Answer::stream(messages.boxed())
}

fn cut(mut data: Bytes) -> VecDeque<Result<Outgoing, Status>> {
    let mut messages = VecDeque::with_capacity(1);
    while !data.is_empty() {
        let message = data.split_to(data.len().min(MESSAGE_DATA_BYTES_MAX));
        messages.push_back(Ok(Outgoing::bytes_field(DATA, message)));
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_as_the_specification_has_them() {
        assert_eq!(range(0, 0).unwrap(), ByteRange::ALL);
        assert_eq!(range(5, 7).unwrap(), ByteRange { offset_bytes: 5, limit_bytes: Some(7) });
        assert_eq!(range(-1, 0).unwrap_err().code(), tonic::Code::OutOfRange);
        assert_eq!(range(0, -1).unwrap_err().code(), tonic::Code::InvalidArgument);
    }

    #[test]
    fn large_pieces_are_cut() {
        let data = Bytes::from(vec![1; MESSAGE_DATA_BYTES_MAX * 2 + 1]);
        assert_eq!(cut(data).len(), 3);
        assert!(cut(Bytes::new()).is_empty());
    }
}
