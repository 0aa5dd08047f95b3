//! Blobs by their hash: `…/cas/{hash}`.
//!
//! Always true here: a hash of 64 digits is one of SHA-256 or of BLAKE3, whichever the bytes have; a body of a declared length goes to
//! the store as it arrives. The store has to know a blob's size before its first byte, so that a body without a declared length is
//! gathered first, up to [`CHUNKED_BYTES_MAX`].

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};

use super::{
    Asked, Cache, Call,
    answer::{Answer, empty, missing, refused, store_error, text, text_later},
    download,
    path::Hash,
    upload::{Broken, Incoming},
};
use crate::store::{BeginWrite, BlobUpload, Instance, StoreError};

/// Largest body of a PUT without `Content-Length`.
const CHUNKED_BYTES_MAX: u64 = 64 << 20;

pub(super) async fn call(cache: &Cache, instance: &Instance, hash: &Hash, call: Call) -> Answer {
    match call.asked.method {
        Method::PUT => put(cache, instance, hash, call).await,
        _ => get(cache, instance, hash, &call.asked).await,
    }
}

async fn get(cache: &Cache, instance: &Instance, hash: &Hash, asked: &Asked) -> Answer {
    for digest in hash.digests(0, &cache.store.capabilities().digest_functions) {
        match cache.store.open(instance, &digest).await {
            Ok(Some(found)) => return download::blob(cache, instance, hash.hex(), found, asked).await,
            Ok(None) => {}
            Err(error) => return store_error(&error),
        }
    }
    missing()
}

async fn put(cache: &Cache, instance: &Instance, hash: &Hash, call: Call) -> Answer {
    let (version, mut incoming) = (call.version, call.incoming);
    if let Some(answer) = encoded(&call.asked.headers) {
        return refused(answer, incoming, version).await;
    }
    let (size_bytes, gathered) = match incoming.declared_bytes() {
        Some(bytes) => (bytes, None),
        None => match incoming.gather(CHUNKED_BYTES_MAX.min(cache.store.capabilities().blob_bytes_max), &cache.memory).await {
            Ok(gathered) => (gathered.data.len() as u64, Some(gathered)),
            Err(broken) => return refused(broken.answer(), incoming, version).await,
        },
    };
    let digests = hash.digests(size_bytes, &cache.store.capabilities().digest_functions);
    let Some(_turn) = cache.uploads.begin() else {
        return refused(text_later(StatusCode::SERVICE_UNAVAILABLE, "too many uploads at the same time"), incoming, version).await;
    };
    if digests.is_empty() {
        return refused(text(StatusCode::BAD_REQUEST, "digest function of the hash is not offered"), incoming, version).await;
    }
    let upload = match cache.store.write_any(instance, &digests).await {
        Ok(BeginWrite::Upload(upload)) => upload,
        Ok(BeginWrite::AlreadyPresent) => {
            if version != http::Version::HTTP_2 {
                incoming.drain().await;
            }
            return empty(StatusCode::OK);
        }
        Err(error) => return refused(store_error(&error), incoming, version).await,
    };
    match send(upload, gathered.as_ref().map(|gathered| gathered.data.clone()), &mut incoming).await {
        Ok(()) => empty(StatusCode::OK),
        Err(Failed::Body(broken)) => broken.answer(),
        Err(Failed::Store(error)) => refused(store_error(&error), incoming, version).await,
    }
}

enum Failed {
    Body(Broken),
    Store(StoreError),
}

impl From<Broken> for Failed {
    fn from(broken: Broken) -> Self {
        Self::Body(broken)
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

async fn send(mut upload: Box<dyn BlobUpload>, gathered: Option<Bytes>, incoming: &mut Incoming) -> Result<(), Failed> {
    match gathered {
        Some(data) => upload.write(data).await?,
        None => {
            while let Some(piece) = incoming.next().await? {
                upload.write(piece).await?;
            }
        }
    }
    upload.finish().await?;
    Ok(())
}

/// The refusal of a body that is encoded in a way that is not understood here.
pub(super) fn encoded(headers: &HeaderMap) -> Option<Answer> {
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    let plain = encodings.all(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity"));
    (!plain).then(|| text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Encoding is not supported"))
}
