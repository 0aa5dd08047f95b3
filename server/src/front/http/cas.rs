//! Blobs by their hash: `…/cas/{hash}`.
//!
//! Always true here: a hash of 64 digits is one of SHA-256 or of BLAKE3, whichever the bytes have; a body whose size is known goes to the
//! store as it arrives. The store has to know a blob's size before its first byte, so that a body in chunks without `X-Digest-SizeBytes`
//! is gathered first, up to [`CHUNKED_BYTES_MAX`]. Bytes that are read are right or refused, also where the blob is there already; only
//! who waits to be told whether to send, or speaks HTTP/2, which can answer while a body comes, is told at once that it is.

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Version};

use super::{
    Asked, Cache, Call,
    answer::{Answer, empty, missing, refused, store_error, text, text_later},
    download,
    encoding::{Coding, CodingError, decompress_error},
    memory::SMALL_BYTES_MAX,
    path::Hash,
    upload::{Broken, Incoming},
};
use crate::store::{
    BeginWrite, BlobUpload, Instance, PresentUpload, StoreError,
    compression::{self, DecompressError, ZstdUpload},
};

/// Largest body of a PUT that says its size nowhere.
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
    match put_body(cache, instance, hash, &call.asked.headers, &mut incoming, version).await {
        Ok(()) => empty(StatusCode::OK),
        Err(refusal) => refused(refusal, incoming, version).await,
    }
}

async fn put_body(
    cache: &Cache,
    instance: &Instance,
    hash: &Hash,
    headers: &HeaderMap,
    incoming: &mut Incoming,
    version: Version,
) -> Result<(), Answer> {
    let capabilities = cache.store.capabilities();
    let coding = Coding::of(headers).map_err(CodingError::answer)?;
    let (size_bytes, gathered) = match (coding, incoming.declared_bytes()) {
        (Coding::Plain { size_bytes: Some(said) }, Some(declared)) if said != declared => {
            let line = format!("X-Digest-SizeBytes is {said}, but Content-Length is {declared}");
            return Err(text(StatusCode::BAD_REQUEST, &line));
        }
        (Coding::Plain { size_bytes: None }, None) => {
            let gathered = incoming.gather(CHUNKED_BYTES_MAX.min(capabilities.blob_bytes_max), 0, &cache.memory).await;
            let gathered = gathered.map_err(|broken| broken.answer())?;
            (gathered.len() as u64, Some(gathered))
        }
        (Coding::Zstd { size_bytes }, _) | (Coding::Plain { size_bytes: Some(size_bytes) }, None) | (_, Some(size_bytes)) => {
            (size_bytes, None)
        }
    };
    let digests = hash.digests(size_bytes, &capabilities.digest_functions);
    let Some(_turn) = cache.uploads.begin() else {
        return Err(text_later(StatusCode::SERVICE_UNAVAILABLE, "too many uploads at the same time"));
    };
    if digests.is_empty() {
        return Err(text(StatusCode::BAD_REQUEST, "digest function of the hash is not offered"));
    }
    if gathered.is_none() && size_bytes <= capabilities.blob_bytes_max {
        let held_bytes = match coding {
            Coding::Plain { .. } => size_bytes.min(SMALL_BYTES_MAX),
            Coding::Zstd { .. } => size_bytes.min(1 << compression::WINDOW_LOG_MAX),
        };
        incoming.reserve(held_bytes, &cache.memory).await.map_err(|broken| broken.answer())?;
    }
    let upload = match cache.store.write_any(instance, &digests).await {
        Ok(BeginWrite::Upload(upload)) => upload,
        // Who can be told without a word of the body is.
        Ok(BeginWrite::AlreadyPresent) if gathered.is_none() && (incoming.waits() || version == Version::HTTP_2) => return Ok(()),
        Ok(BeginWrite::AlreadyPresent) => Box::new(PresentUpload::new(digests)),
        Err(error) => return Err(store_error(&error)),
    };
    let sent = match (coding, gathered) {
        (Coding::Zstd { .. }, _) => send_frames(upload, size_bytes, incoming).await,
        (Coding::Plain { .. }, gathered) => send(upload, gathered, incoming).await,
    };
    sent.map_err(|failed| match failed {
        Failed::Body(broken) => broken.answer(),
        Failed::Store(error) => store_error(&error),
        Failed::Frames(error) => decompress_error(&error),
    })
}

enum Failed {
    Body(Broken),
    Store(StoreError),
    Frames(DecompressError),
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

impl From<DecompressError> for Failed {
    fn from(error: DecompressError) -> Self {
        Self::Frames(error)
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

async fn send_frames(upload: Box<dyn BlobUpload>, size_bytes: u64, incoming: &mut Incoming) -> Result<(), Failed> {
    let mut upload = ZstdUpload::new(upload, size_bytes)?;
    while let Some(piece) = incoming.next().await? {
        upload.write(&piece).await?;
    }
    upload.finish().await?;
    Ok(())
}
