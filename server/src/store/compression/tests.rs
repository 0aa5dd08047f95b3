use async_trait::async_trait;
use parking_lot::Mutex;
use std::sync::Arc;

use super::*;

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Bytes that compress somewhat.
fn text(len: usize) -> Vec<u8> {
    (0..).flat_map(|n: u64| format!("line {} of a log, {}\n", n, n * n % 1009).into_bytes()).take(len).collect()
}

fn zstd(data: &[u8]) -> Vec<u8> {
    bulk::compress(data, 3).unwrap()
}

/// What reached the store, and the largest piece of it.
#[derive(Default)]
struct Seen {
    bytes: Vec<u8>,
    piece_bytes_max: usize,
    finished: bool,
}

struct Recording {
    seen: Arc<Mutex<Seen>>,
    offset_bytes: u64,
}

#[async_trait]
impl BlobUpload for Recording {
    fn written_bytes(&self) -> u64 {
        self.offset_bytes + self.seen.lock().bytes.len() as u64
    }
    async fn write(&mut self, data: Bytes) -> Result<(), StoreError> {
        let mut seen = self.seen.lock();
        seen.piece_bytes_max = seen.piece_bytes_max.max(data.len());
        seen.bytes.extend_from_slice(&data);
        Ok(())
    }
    async fn finish(self: Box<Self>) -> Result<WriteOutcome, StoreError> {
        self.seen.lock().finished = true;
        Ok(WriteOutcome::Stored)
    }
}

fn upload_from(offset_bytes: u64, size_bytes: u64) -> (ZstdUpload, Arc<Mutex<Seen>>) {
    let seen = Arc::<Mutex<Seen>>::default();
    let inner = Recording { seen: seen.clone(), offset_bytes };
    (ZstdUpload::new(Box::new(inner), size_bytes).unwrap(), seen)
}

async fn receive(sent: &[u8], message_bytes: usize, size_bytes: usize) -> Result<Arc<Mutex<Seen>>, DecompressError> {
    let (mut upload, seen) = upload_from(0, size_bytes as u64);
    for message in sent.chunks(message_bytes) {
        upload.write(message).await?;
    }
    upload.finish().await?;
    Ok(seen)
}

async fn send(data: &[u8], piece_bytes: usize) -> Vec<u8> {
    let pieces: Vec<_> = data.chunks(piece_bytes).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let mut frame = Vec::new();
    let mut compressed = compress(stream::iter(pieces).boxed(), data.len() as u64).unwrap();
    while let Some(piece) = compressed.next().await {
        let piece = piece.unwrap();
        assert!(!piece.is_empty() && piece.len() <= OUTPUT_BYTES + 4096, "{}", piece.len());
        frame.extend_from_slice(&piece);
    }
    frame
}

#[tokio::test]
async fn what_is_compressed_is_decompressed_whatever_its_pieces() {
    for data in [vec![], vec![7], noise(1000), text(100_000), noise(1_500_000), text(3_000_000), vec![0; 5 << 20]] {
        for piece_bytes in [777, 64 << 10, 1 << 20] {
            let frame = send(&data, piece_bytes).await;
            assert!(decompress_whole(&frame, data.len()).unwrap() == data, "{} bytes", data.len());
            let seen = receive(&frame, piece_bytes, data.len()).await.unwrap();
            let seen = seen.lock();
            assert!(seen.bytes == data && seen.finished, "{} bytes", data.len());
            assert!(seen.piece_bytes_max <= PIECE_BYTES);
        }
    }
    assert!(send(&text(3_000_000), 1 << 20).await.len() < 1_500_000);
}

#[tokio::test]
async fn a_frame_says_how_large_its_blob_is() {
    let frame = send(&text(300_000), 1 << 20).await;
    assert_eq!(::zstd::zstd_safe::get_frame_content_size(&frame).unwrap(), Some(300_000));
}

#[tokio::test]
async fn an_error_ends_a_compressed_stream() {
    let pieces = vec![Ok(Bytes::from(text(1000))), Err(StoreError::Lost { offset_bytes: 1000 }), Ok(Bytes::from(text(1000)))];
    let compressed: Vec<_> = compress(stream::iter(pieces).boxed(), 2000).unwrap().collect().await;
    assert!(matches!(compressed.last(), Some(Err(StoreError::Lost { offset_bytes: 1000 }))), "{compressed:?}");
    assert!(compressed.len() == 1);
}

#[tokio::test]
async fn frames_may_follow_each_other() {
    let data = text(500_000);
    let mut sent: Vec<u8> = data.chunks(16 << 10).flat_map(zstd).collect();
    // A frame that is to be skipped: its magic number, its length, and what is skipped.
    sent.extend([0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
    sent.extend(zstd(b""));
    for message_bytes in [1, 5000, 1 << 20] {
        assert!(receive(&sent, message_bytes, data.len()).await.unwrap().lock().bytes == data);
    }
    assert!(decompress_whole(&sent, data.len()).unwrap() == data);
}

#[tokio::test]
async fn bytes_beyond_the_size_end_an_upload_at_once() {
    for (declared_bytes, real_bytes) in [(0, 1), (10, 11), (10, 64 << 20), (PIECE_BYTES, PIECE_BYTES + 1), (1 << 20, 64 << 20)] {
        let bomb = zstd(&vec![0; real_bytes]);
        let (mut upload, seen) = upload_from(0, declared_bytes as u64);
        let error = upload.write(&bomb).await.unwrap_err();
        let DecompressError::Store(StoreError::SizeMismatch { declared_bytes: declared, sent_bytes }) = error else { panic!("{error}") };
        assert_eq!((declared, sent_bytes), (declared_bytes as u64, declared_bytes as u64 + 1));
        assert!(seen.lock().bytes.len() <= declared_bytes);
        assert!(matches!(decompress_whole(&bomb, declared_bytes), Err(DecompressError::Malformed(_))));
    }
}

#[tokio::test]
async fn a_window_beyond_the_limit_is_refused() {
    // A header that asks for a window of 2^(10 + exponent), and the beginning of a raw block.
    let header = |exponent: u8| [0x28, 0xb5, 0x2f, 0xfd, 0, exponent << 3, 0, 0, 0];
    let refused = |exponent| async move { upload_from(0, 1 << 30).0.write(&header(exponent)).await.is_err() };
    assert!(!refused(13).await);
    assert!(refused(14).await && refused(21).await);
}

#[tokio::test]
async fn what_is_no_frame_or_half_of_one_is_refused() {
    let data = text(10_000);
    let frame = zstd(&data);
    let mut spoiled = frame.clone();
    spoiled[20] ^= 0xff;
    for (sent, cut) in [(&b"no frame"[..], false), (&frame[..frame.len() - 1], true), (&frame[..3], true), (&spoiled, false)] {
        let error = receive(sent, 1000, data.len()).await.err().unwrap();
        assert_eq!(matches!(error, DecompressError::Cut), cut, "{error}");
        assert!(decompress_whole(sent, data.len()).is_err());
    }
    let trailing = [&frame[..], b"more"].concat();
    assert!(receive(&trailing, 1000, data.len()).await.is_err());
}

#[tokio::test]
async fn an_upload_goes_on_with_a_new_frame() {
    let data = text(400_000);
    let (mut upload, seen) = upload_from(150_000, data.len() as u64);
    assert_eq!(upload.written_bytes(), 150_000);
    upload.write(&zstd(&data[150_000..])).await.unwrap();
    upload.flush().await.unwrap();
    assert_eq!(upload.written_bytes(), 400_000);
    assert!(seen.lock().bytes == data[150_000..]);
    // Of a blob, no more than its end fits.
    let (mut upload, _) = upload_from(150_000, data.len() as u64);
    assert!(upload.write(&zstd(&data[149_999..])).await.is_err());
}

#[test]
fn only_what_saves_is_compressed() {
    assert_eq!(compress_if_smaller(&[0; 100]), None);
    assert_eq!(compress_if_smaller(&noise(100_000)), None);
    for data in [text(300), text(100_000), vec![0; 1 << 20]] {
        let frame = compress_if_smaller(&data).unwrap();
        assert!(frame.len() <= data.len() - data.len() / 16);
        assert!(decompress_whole(&frame, data.len()).unwrap() == data);
    }
    assert!(decompress_whole(&compress_whole(b"x").unwrap(), 1).unwrap() == b"x".as_slice());
}
