//! Answers that carry what was found: whole or in part, or only the word that the client has it already.

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderValue, Method, Response, StatusCode, header};

use super::{
    Asked, Cache,
    answer::{Answer, Pieces, empty, missing, store_error, text},
    conditions::{Part, etag, is_known, part},
};
use crate::store::{BlobRead, ByteRange, DigestFunction, Hasher, Instance, OpenBlob, StoreError};

/// A blob, under the hash that it was asked for by.
pub(super) async fn blob(cache: &Cache, instance: &Instance, hash_hex: &str, found: OpenBlob, asked: &Asked) -> Answer {
    let Some(etag) = etag(hash_hex) else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "hash is no header");
    };
    let size_bytes = found.digest.size_bytes;
    let decided = Decided::of(asked, etag, size_bytes);
    let Some((offset_bytes, len_bytes)) = decided.wanted else {
        return decided.answer(Body::empty());
    };
    if len_bytes == size_bytes {
        return send(decided, found.read, len_bytes).await;
    }
    let read = match found.read {
        BlobRead::Whole(data) => slice(&data, offset_bytes, len_bytes).map(BlobRead::Whole),
        BlobRead::Pieces(_) => {
            let range = ByteRange { offset_bytes, limit_bytes: Some(len_bytes) };
            match cache.store.read(instance, &found.digest, range).await {
                Ok(read) => read,
                Err(error) => return store_error(&error),
            }
        }
    };
    match read {
        Some(read) => send(decided, read, len_bytes).await,
        None => missing(),
    }
}

/// Bytes that are all in memory.
pub(super) fn bytes(data: Bytes, asked: &Asked) -> Answer {
    let Some(etag) = etag(&Hasher::digest(DigestFunction::Blake3, &data).hash_hex()) else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "hash is no header");
    };
    let decided = Decided::of(asked, etag, data.len() as u64);
    match decided.wanted {
        None => decided.answer(Body::empty()),
        Some((offset_bytes, len_bytes)) => match slice(&data, offset_bytes, len_bytes) {
            Some(part) => decided.answer(Body::from(part)),
            None => text(StatusCode::INTERNAL_SERVER_ERROR, "range is not in the data"),
        },
    }
}

/// An answer of which only the body is missing.
struct Decided {
    head: Answer,
    /// Offset and length of the bytes that belong into the body, if any do.
    wanted: Option<(u64, u64)>,
}

impl Decided {
    fn of(asked: &Asked, etag: HeaderValue, size_bytes: u64) -> Self {
        if is_known(&asked.headers, &etag) {
            let mut head = empty(StatusCode::NOT_MODIFIED);
            head.headers_mut().insert(header::ETAG, etag);
            return Self { head, wanted: None };
        }
        let get = asked.method == Method::GET;
        let (status, wanted) = match part(&asked.headers, &etag, size_bytes) {
            Part::Range { offset_bytes, len_bytes } if get => (StatusCode::PARTIAL_CONTENT, Some((offset_bytes, len_bytes))),
            Part::None if get => {
                let mut head = text(StatusCode::RANGE_NOT_SATISFIABLE, "range begins behind the end");
                head.headers_mut().insert(header::CONTENT_RANGE, value(&format!("bytes */{size_bytes}")));
                return Self { head, wanted: None };
            }
            _ => (StatusCode::OK, get.then_some((0, size_bytes))),
        };
        let mut head = empty(status);
        let headers = head.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(header::ETAG, etag);
        if let (StatusCode::PARTIAL_CONTENT, Some((offset_bytes, len_bytes))) = (status, wanted) {
            let last = offset_bytes + len_bytes - 1;
            headers.insert(header::CONTENT_RANGE, value(&format!("bytes {offset_bytes}-{last}/{size_bytes}")));
        }
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(wanted.map_or(size_bytes, |(_, len_bytes)| len_bytes)));
        Self { head, wanted }
    }

    /// The answer; a body that the head has already stays.
    fn answer(self, body: Body) -> Answer {
        match self.wanted {
            Some(_) => Response::from_parts(self.head.into_parts().0, body),
            None => self.head,
        }
    }
}

fn value(ascii: &str) -> HeaderValue {
    HeaderValue::from_str(ascii).unwrap_or(HeaderValue::from_static(""))
}

fn slice(data: &Bytes, offset_bytes: u64, len_bytes: u64) -> Option<Bytes> {
    let start = usize::try_from(offset_bytes).ok()?;
    let end = start.checked_add(usize::try_from(len_bytes).ok()?)?;
    (end <= data.len()).then(|| data.slice(start..end))
}

/// The first piece decides: what cannot be read from its beginning is not there.
async fn send(decided: Decided, read: BlobRead, len_bytes: u64) -> Answer {
    let mut pieces = match read {
        BlobRead::Whole(data) => return decided.answer(Body::from(data)),
        BlobRead::Pieces(pieces) => pieces,
    };
    match pieces.next().await {
        Some(Ok(first)) => decided.answer(Pieces::body(first, pieces, len_bytes)),
        None | Some(Err(StoreError::Lost { .. })) => missing(),
        Some(Err(error)) => store_error(&error),
    }
}
