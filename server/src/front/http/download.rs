//! Answers that carry what was found: whole or in part, as it is or compressed, or only the word that the client has it already.
//!
//! Always true here: a blob and its zstd frames have an entity tag each; parts are parts of the blob as it is, and who asks for one gets it
//! as it is, so that no two frames of one blob are ever put together; the answer to HEAD is that of the blob as it is.

use axum::body::Body;
use bytes::Bytes;
use futures::{StreamExt, stream, stream::BoxStream};
use http::{HeaderValue, Method, Response, StatusCode, header};

use super::{
    Asked, Cache,
    answer::{Answer, Pieces, empty, missing, store_error, text},
    conditions::{Part, etag, is_known, part},
    encoding::Takes,
};
use crate::store::{BlobRead, ByteRange, DigestFunction, Hasher, Instance, OpenBlob, StoreError, compression};

/// What is compressed where it is: a fraction of a millisecond. Also how much of a blob tells whether it is worth it.
const AT_ONCE_BYTES_MAX: usize = 64 << 10;

/// What bytes are said to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bytes,
    Json,
}

impl Kind {
    fn value(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Bytes => "application/octet-stream",
            Self::Json => "application/json",
        })
    }
}

/// A blob, under the hash that it was asked for by, in the coding that the client likes best.
pub(super) async fn blob(cache: &Cache, instance: &Instance, hash_hex: &str, found: OpenBlob, asked: &Asked) -> Answer {
    let mut answer = coded(cache, instance, hash_hex, found, asked).await;
    answer.headers_mut().insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    answer
}

async fn coded(cache: &Cache, instance: &Instance, hash_hex: &str, found: OpenBlob, asked: &Asked) -> Answer {
    let (Some(tag), Some(zstd_tag)) = (etag(hash_hex), etag(&format!("{hash_hex}-zstd"))) else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "hash is no header");
    };
    let takes = Takes::of(&asked.headers);
    let get = asked.method == Method::GET;
    if get && !takes.plain && !takes.zstd {
        return text(StatusCode::NOT_ACCEPTABLE, "blobs are sent as they are, or as zstd; Accept-Encoding excludes both");
    }
    // What the client has may be either, if it takes it.
    if get && takes.zstd && is_known(&asked.headers, &zstd_tag) {
        return known(zstd_tag);
    }
    // A blob and its part have to be of one coding, or they would not fit together.
    let ranged = asked.headers.contains_key(header::RANGE);
    if get && takes.zstd && (!takes.plain || (takes.rather_zstd && !ranged && !is_known(&asked.headers, &tag))) {
        return match found.is_zstd {
            true => match cache.store.read_zstd(instance, &found.digest, 0).await {
                Ok(Some(frames)) => stored(frames, zstd_tag),
                Ok(None) => missing(),
                Err(error) => store_error(&error),
            },
            false => compressed(found, takes, tag, zstd_tag, asked).await,
        };
    }
    plain(cache, instance, found, Decided::new(asked, tag, Kind::Bytes)).await
}

async fn plain(cache: &Cache, instance: &Instance, found: OpenBlob, decided: impl FnOnce(u64) -> Decided) -> Answer {
    let size_bytes = found.digest.size_bytes;
    let decided = decided(size_bytes);
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

/// A blob as the frames that the store has.
fn stored(frames: BlobRead, zstd_tag: HeaderValue) -> Answer {
    match frames {
        BlobRead::Whole(frame) => encoded(Some(frame.len()), Body::from(frame), zstd_tag),
        BlobRead::Pieces(frames) => encoded(None, Body::from_stream(frames), zstd_tag),
    }
}

/// A blob as one zstd frame, or as it is where that is not worth it and the client takes it.
async fn compressed(found: OpenBlob, takes: Takes, tag: HeaderValue, zstd_tag: HeaderValue, asked: &Asked) -> Answer {
    let len_bytes = found.digest.size_bytes;
    let (first, rest) = match begin(found.read).await {
        Ok(Some(pieces)) => pieces,
        Ok(None) => return missing(),
        Err(error) => return store_error(&error),
    };
    let sample = first.get(..AT_ONCE_BYTES_MAX).unwrap_or(&first);
    let whole = sample.len() as u64 == len_bytes;
    let smaller = compression::compress_if_smaller(sample);
    if smaller.is_none() && takes.plain {
        return Decided::new(asked, tag, Kind::Bytes)(len_bytes).answer(Pieces::body(first, rest, len_bytes));
    }
    let frame = match (whole, smaller) {
        (true, Some(frame)) => Ok((Some(frame.len()), Body::from(frame))),
        (true, None) => compression::compress_whole(sample).map(|frame| (Some(frame.len()), Body::from(frame))),
        (false, _) => {
            compression::compress(stream::iter([Ok(first)]).chain(rest).boxed(), len_bytes).map(|frame| (None, Body::from_stream(frame)))
        }
    };
    match frame {
        Ok((frame_bytes, body)) => encoded(frame_bytes, body, zstd_tag),
        Err(error) => store_error(&error),
    }
}

fn encoded(frame_bytes: Option<usize>, body: Body, zstd_tag: HeaderValue) -> Answer {
    let mut answer = Response::new(body);
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, Kind::Bytes.value());
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("zstd"));
    headers.insert(header::ETAG, zstd_tag);
    if let Some(bytes) = frame_bytes {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    }
    answer
}

/// Bytes that are all in memory. `vary` names the header of the request that chose them.
pub(super) fn bytes(data: Bytes, kind: Kind, vary: Option<&'static str>, asked: &Asked) -> Answer {
    let Some(etag) = etag(&Hasher::digest(DigestFunction::Blake3, &data).hash_hex()) else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "hash is no header");
    };
    let mut decided = Decided::new(asked, etag, kind)(data.len() as u64);
    if let Some(vary) = vary {
        decided.head.headers_mut().insert(header::VARY, HeaderValue::from_static(vary));
    }
    match decided.wanted {
        None => decided.answer(Body::empty()),
        Some((offset_bytes, len_bytes)) => match slice(&data, offset_bytes, len_bytes) {
            Some(part) => decided.answer(Body::from(part)),
            None => text(StatusCode::INTERNAL_SERVER_ERROR, "range is not in the data"),
        },
    }
}

/// The client has it.
fn known(etag: HeaderValue) -> Answer {
    let mut answer = empty(StatusCode::NOT_MODIFIED);
    answer.headers_mut().insert(header::ETAG, etag);
    answer
}

/// An answer of which only the body is missing.
struct Decided {
    head: Answer,
    /// Offset and length of the bytes that belong into the body, if any do.
    wanted: Option<(u64, u64)>,
}

impl Decided {
    /// What is decided once the size is known.
    fn new(asked: &Asked, etag: HeaderValue, kind: Kind) -> impl FnOnce(u64) -> Self {
        move |size_bytes| Self::of(asked, etag, kind, size_bytes)
    }

    fn of(asked: &Asked, etag: HeaderValue, kind: Kind, size_bytes: u64) -> Self {
        if is_known(&asked.headers, &etag) {
            return Self { head: known(etag), wanted: None };
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
        headers.insert(header::CONTENT_TYPE, kind.value());
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

type Rest = BoxStream<'static, Result<Bytes, StoreError>>;

/// The first piece and the others. The first one decides: what cannot be read from its beginning is not there.
async fn begin(read: BlobRead) -> Result<Option<(Bytes, Rest)>, StoreError> {
    let mut pieces = match read {
        BlobRead::Whole(data) => return Ok(Some((data, stream::empty().boxed()))),
        BlobRead::Pieces(pieces) => pieces,
    };
    match pieces.next().await {
        Some(Ok(first)) => Ok(Some((first, pieces))),
        None | Some(Err(StoreError::Lost { .. })) => Ok(None),
        Some(Err(error)) => Err(error),
    }
}

async fn send(decided: Decided, read: BlobRead, len_bytes: u64) -> Answer {
    match begin(read).await {
        Ok(Some((first, _))) if first.len() as u64 == len_bytes => decided.answer(Body::from(first)),
        Ok(Some((first, rest))) => decided.answer(Pieces::body(first, rest, len_bytes)),
        Ok(None) => missing(),
        Err(error) => store_error(&error),
    }
}
