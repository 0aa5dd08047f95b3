//! Compressed uploads that claim or yield more than they may, against the real process: refused, and without the memory.

use blockstore_proto::reapi::{BatchUpdateBlobsRequest, batch_update_blobs_request::Request};
use blockstore_tests::{
    blob::{Blob, digest_of},
    client::{Client, Found, upload_name},
    daemon::Spec,
};
use bytes::Bytes;
use tempfile::TempDir;
use tonic::Code;
use zstd::stream::{raw::CParameter, write::Encoder};

/// How much more memory the process may have after all of it. A single bomb of these would be more.
const GROWTH_BYTES_MAX: u64 = 160 << 20;
const BOMB_BYTES: u64 = 512 << 20;

fn compressed_name(digest: &blockstore_proto::reapi::Digest) -> String {
    upload_name(digest).replace("/blobs/", "/compressed-blobs/zstd/")
}

/// A frame of zeros that were never all in memory.
fn bomb(window_log: u32) -> Bytes {
    let mut encoder = Encoder::new(Vec::new(), 1).unwrap();
    encoder.set_parameter(CParameter::WindowLog(window_log)).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), BOMB_BYTES), &mut encoder).unwrap();
    encoder.finish().unwrap().into()
}

#[tokio::test]
async fn bombs_are_refused_and_take_no_memory() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let daemon = Spec::new(env!("CARGO_BIN_EXE_blockstored")).dir(dir.path(), "1GiB").args("--cache-size 16MiB").start();
    let client = Client::connect(daemon.grpc).await;
    let kept = Blob::new(1, 3_000_000);
    client.put(kept).await.unwrap();
    let before_bytes = daemon.memory_bytes_max();

    let digest = Blob::new(2, 2_000_000).digest();
    for window_log in [19, 23, 27] {
        let bomb = bomb(window_log);
        // Many at once, in one message each.
        let attempts = (0..16).map(|_| {
            let name = compressed_name(&digest);
            let bomb = bomb.clone();
            let client = client.clone();
            async move { client.write_as(&name, vec![bomb], true).await }
        });
        for answer in futures::future::join_all(attempts).await {
            assert_eq!(answer.unwrap_err().code(), Code::InvalidArgument, "window of 2^{window_log}");
        }
    }
    // A batch of blobs that are much smaller than what they are sent as, and one that claims more than a batch may hold.
    let frame = bomb(19);
    let request = |size_bytes: i64| {
        let digest = Some(blockstore_proto::reapi::Digest { size_bytes, ..digest_of(b"x") });
        Request { digest, data: frame.clone(), compressor: 1 }
    };
    let requests = (0..200).map(|n| request(10_000 + n)).chain([request(1 << 40)]).collect();
    let batch = BatchUpdateBlobsRequest { requests, ..Default::default() };
    let codes = client.put_batch_of(batch).await.unwrap();
    assert_eq!(codes, vec![Code::InvalidArgument; 201]);

    assert_eq!(client.missing(vec![digest.clone()]).await.unwrap(), [digest]);
    assert_eq!(client.check(kept).await.unwrap(), Found::Exact);
    let grown_bytes = daemon.memory_bytes_max() - before_bytes;
    println!("{} MiB more memory than before", grown_bytes >> 20);
    assert!(grown_bytes < GROWTH_BYTES_MAX, "{} MiB", grown_bytes >> 20);
    daemon.stop();
}
