//! A blob that is sent although it is there.
//!
//! Always true here: nothing is stored, and bytes that are not the blob are refused as if it were not there: a client whose bytes are
//! wrong must not hear that all is well.

use async_trait::async_trait;
use bytes::Bytes;

use super::{BlobUpload, Digest, Hasher, StoreError, WriteOutcome};

/// Hashing goes over the bytes in strides of this size, so that other tasks get a turn.
const STRIDE_BYTES: usize = 256 << 10;

/// Takes the bytes of a blob that the store has, and only looks whether they are that blob.
pub struct PresentUpload {
    /// The names that it may have, all of one size.
    digests: Vec<Digest>,
    hashers: Vec<Hasher>,
    size_bytes: u64,
    written_bytes: u64,
}

impl PresentUpload {
    /// `digests` are those that [`BlobStore::write_any`](super::BlobStore::write_any) was asked for; at least one.
    pub fn new(digests: Vec<Digest>) -> Self {
        let hashers = digests.iter().map(|digest| Hasher::new(digest.function, digest.size_bytes)).collect();
        let size_bytes = digests.first().map_or(0, |digest| digest.size_bytes);
        Self { digests, hashers, size_bytes, written_bytes: 0 }
    }

    fn mismatch(&self, sent_bytes: u64) -> StoreError {
        StoreError::SizeMismatch { declared_bytes: self.size_bytes, sent_bytes }
    }
}

#[async_trait]
impl BlobUpload for PresentUpload {
    fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    async fn write(&mut self, data: Bytes) -> Result<(), StoreError> {
        let sent_bytes = self.written_bytes.saturating_add(data.len() as u64);
        if sent_bytes > self.size_bytes {
            return Err(self.mismatch(sent_bytes));
        }
        self.written_bytes = sent_bytes;
        for (number, stride) in data.chunks(STRIDE_BYTES).enumerate() {
            if number > 0 {
                // A call that is dropped here has counted bytes that it did not hash: the blob is refused then, and never wrongly taken.
                tokio::task::yield_now().await;
            }
            self.hashers.iter_mut().for_each(|hasher| hasher.update(stride));
        }
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<WriteOutcome, StoreError> {
        if self.written_bytes != self.size_bytes {
            return Err(self.mismatch(self.written_bytes));
        }
        let computed: Vec<_> = self.hashers.into_iter().map(Hasher::finish).collect();
        if self.digests.iter().any(|digest| computed.contains(digest)) {
            return Ok(WriteOutcome::AlreadyPresent);
        }
        match (self.digests.first(), computed.first()) {
            (Some(declared), Some(computed)) => {
                Err(StoreError::HashMismatch { declared: Box::new(*declared), computed: Box::new(*computed) })
            }
            _ => Err(StoreError::Internal("blob that is there has no name".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::DigestFunction::{Blake3, Sha256};

    async fn sent(digests: Vec<Digest>, pieces: &[&'static [u8]]) -> Result<WriteOutcome, StoreError> {
        let mut upload = Box::new(PresentUpload::new(digests));
        for piece in pieces {
            upload.write(Bytes::from_static(piece)).await?;
        }
        upload.finish().await
    }

    #[tokio::test]
    async fn only_the_blob_itself_is_right() {
        static LARGE: [u8; STRIDE_BYTES * 2 + 1] = [7; STRIDE_BYTES * 2 + 1];
        for digests in [vec![Hasher::digest(Sha256, &LARGE)], vec![Hasher::digest(Blake3, &LARGE)]] {
            assert_eq!(sent(digests.clone(), &[&LARGE[..9], &LARGE[9..]]).await.unwrap(), WriteOutcome::AlreadyPresent);
            assert!(matches!(sent(digests.clone(), &[&LARGE[1..]]).await, Err(StoreError::SizeMismatch { .. })));
            assert!(matches!(sent(digests.clone(), &[&LARGE, b"x"]).await, Err(StoreError::SizeMismatch { .. })));
            let other = [&LARGE[1..], b"x"];
            assert!(matches!(sent(digests, &other).await, Err(StoreError::HashMismatch { .. })));
        }
        // Of one function or the other.
        let right = Hasher::digest(Blake3, b"bytes");
        let wrong = Hasher::digest(Sha256, b"other");
        assert_eq!(sent(vec![wrong, right], &[b"bytes"]).await.unwrap(), WriteOutcome::AlreadyPresent);
        assert!(sent(vec![wrong, right], &[b"third"]).await.is_err());
    }
}
