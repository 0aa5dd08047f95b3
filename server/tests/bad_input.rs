//! What clients must not do, or may break off: each gets its status, and nothing that was stored is lost.

use blockstore_proto::{bytestream::WriteRequest, reapi::Digest};
use blockstore_tests::{
    blob::Blob,
    client::{Client, Found, OpenUpload, assert_all_present, upload_name},
    daemon::{Daemon, Spec},
};
use bytes::Bytes;
use futures::{future::join_all, stream};
use tempfile::TempDir;
use tonic::{Code, Status};

const STORE_BYTES: u64 = 128 << 20;

/// A server that holds some blobs, which must all be there at the end.
struct Fixture {
    _dir: TempDir,
    spec: Spec,
    daemon: Daemon,
    client: Client,
    stored: Vec<Blob>,
}

impl Fixture {
    async fn new() -> Self {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let spec = Spec::new(env!("CARGO_BIN_EXE_blockstored")).dir(dir.path(), &STORE_BYTES.to_string());
        let daemon = spec.start();
        let client = Client::connect(daemon.grpc).await;
        let mut stored: Vec<_> = (0..200).map(|seed| Blob::new(seed, 50 * seed)).collect();
        stored.push(Blob::new(1, 2_500_000));
        for &blob in &stored {
            client.put(blob).await.unwrap();
        }
        Self { _dir: dir, spec, daemon, client, stored }
    }

    async fn assert_nothing_is_lost(self) {
        let digests: Vec<_> = self.stored.iter().map(|blob| blob.digest()).collect();
        assert_all_present(&self.client, &digests, "at the end").await;
        // Also for the process that comes after it.
        self.daemon.kill();
        let daemon = self.spec.start();
        let client = Client::connect(daemon.grpc).await;
        for blob in self.stored {
            assert_eq!(client.check(blob).await.unwrap(), Found::Exact, "{blob:?}");
        }
        daemon.stop();
    }
}

#[track_caller]
fn assert_code<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code) {
    match answer {
        Err(status) => assert_eq!(status.code(), code, "{status:?}"),
        Ok(answer) => panic!("accepted: {answer:?}"),
    }
}

#[tokio::test]
async fn a_wrong_digest_in_a_batch_concerns_only_its_own_blob() {
    let fixture = Fixture::new().await;
    let [good, bad] = [Blob::new(1_000, 3_000), Blob::new(1_001, 3_000)];
    let short = Digest { size_bytes: bad.digest().size_bytes - 1, ..bad.digest() };
    let codes = fixture
        .client
        .put_batch_as(vec![(bad.digest(), good.bytes()), (good.digest(), good.bytes()), (short.clone(), bad.bytes())])
        .await
        .unwrap();
    assert_eq!(codes, [Code::InvalidArgument, Code::Ok, Code::InvalidArgument]);
    let missing = fixture.client.missing(vec![good.digest(), bad.digest(), short.clone()]).await.unwrap();
    assert_eq!(missing, [bad.digest(), short]);
    fixture.assert_nothing_is_lost().await;
}

#[tokio::test]
async fn a_stream_of_wrong_short_or_overlong_bytes_is_refused_and_stores_nothing() {
    let fixture = Fixture::new().await;
    let client = &fixture.client;
    // Below and above what is gathered in memory.
    for size_bytes in [3_000, 3_000_000] {
        let blob = Blob::new(2_000, size_bytes);
        let digest = blob.digest();
        let wrong = Blob::new(2_001, size_bytes).bytes();
        assert_code(client.write(&digest, vec![wrong], true).await, Code::InvalidArgument);
        let short = blob.bytes().slice(..usize::try_from(size_bytes).unwrap() - 1);
        assert_code(client.write(&digest, vec![short], true).await, Code::InvalidArgument);
        let overlong = vec![blob.bytes(), Bytes::from_static(b"more")];
        assert_code(client.write(&digest, overlong, true).await, Code::InvalidArgument);
        assert_eq!(client.missing(vec![digest.clone()]).await.unwrap(), [digest]);
        assert_eq!(client.check(blob).await.unwrap(), Found::Missing);
        // The right bytes are welcome afterwards.
        client.put(blob).await.unwrap();
        assert_eq!(client.check(blob).await.unwrap(), Found::Exact);
    }
    fixture.assert_nothing_is_lost().await;
}

#[tokio::test]
async fn names_and_offsets_that_make_no_sense_are_refused() {
    let fixture = Fixture::new().await;
    let client = &fixture.client;
    let digest = Blob::new(3_000, 100).digest();
    for name in [
        String::new(),
        "uploads".into(),
        format!("uploads/u/blobs/{}", digest.hash),
        format!("uploads/u/blobs/{}/x", digest.hash),
        format!("uploads/u/blobs/{}/-1", digest.hash),
        format!("uploads/u/blobs/{}/100", digest.hash.get(1..).unwrap()),
        format!("uploads/u/blobs/{}/100", digest.hash.to_uppercase()),
        format!("a//uploads/u/blobs/{}/100", digest.hash),
    ] {
        let answer = client.write_as(&name, vec![Blob::new(3_000, 100).bytes()], true).await;
        assert_code(answer, Code::InvalidArgument);
    }
    let gap = [(0, false), (60, true)].map(|(write_offset, finish_write)| WriteRequest {
        resource_name: upload_name(&digest),
        write_offset,
        finish_write,
        data: Bytes::from_static(&[0; 50]),
    });
    assert_code(client.send(stream::iter(gap)).await, Code::InvalidArgument);
    let too_large = Digest { size_bytes: i64::MAX, ..digest.clone() };
    assert_code(client.write(&too_large, vec![Bytes::from_static(b"x")], false).await, Code::InvalidArgument);
    assert_eq!(client.missing(vec![digest.clone()]).await.unwrap(), [digest]);
    fixture.assert_nothing_is_lost().await;
}

#[tokio::test]
async fn aborted_streams_cost_nothing_that_was_stored() {
    let fixture = Fixture::new().await;
    // Together about what the store holds. What is asked for in between is retained, however many there are.
    let digests: Vec<_> = fixture.stored.iter().map(|blob| blob.digest()).collect();
    for seed in 0..60 {
        if seed % 8 == 0 {
            assert_all_present(&fixture.client, &digests, "between aborted uploads").await;
        }
        let blob = Blob::new(4_000 + seed, 4 << 20);
        let half = blob.bytes().slice(..2 << 20);
        let upload = OpenUpload::start(&fixture.client, &upload_name(&blob.digest()), half);
        if seed % 2 == 0 {
            // Gone without a word, at whatever point that is.
            tokio::task::yield_now().await;
            upload.abort();
        } else {
            // An orderly end, but not of the blob: no error, and not stored.
            upload.end().await.unwrap();
            assert_eq!(fixture.client.check(blob).await.unwrap(), Found::Missing);
        }
    }
    fixture.assert_nothing_is_lost().await;
}

#[tokio::test]
async fn an_upload_that_was_cut_is_resumed_where_it_ended() {
    let fixture = Fixture::new().await;
    let client = &fixture.client;
    for size_bytes in [600_000, 5_000_000_usize] {
        let blob = Blob::new(5_000, size_bytes as u64);
        let name = upload_name(&blob.digest());
        assert_eq!(client.write_status(&name).await.unwrap(), (0, false));
        let half = size_bytes / 2;
        let first = OpenUpload::start(client, &name, blob.bytes().slice(..half));
        assert_eq!(first.end().await.unwrap(), half as i64);
        assert_eq!(client.write_status(&name).await.unwrap(), (half as i64, false));
        let rest =
            WriteRequest { resource_name: name.clone(), write_offset: half as i64, finish_write: true, data: blob.bytes().slice(half..) };
        assert_eq!(client.send(stream::iter([rest])).await.unwrap(), size_bytes as i64);
        assert_eq!(client.check(blob).await.unwrap(), Found::Exact);
        assert_eq!(client.write_status(&name).await.unwrap(), (size_bytes as i64, true));
    }
    fixture.assert_nothing_is_lost().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_together_exceed_the_device_succeed_or_are_out_of_room() {
    let fixture = Fixture::new().await;
    // Twice what the store holds, all at once: no upload may hold on to room for ever. That is more than the bound within which what
    // was stored before is retained, so nothing is said of that here.
    let each_bytes = 16 << 20;
    let uploads = (0..2 * STORE_BYTES / each_bytes).map(|seed| {
        // On connections of their own: what waits for room fills the window of its connection.
        let addr = fixture.daemon.grpc;
        async move {
            let client = Client::connect(addr).await;
            let blob = Blob::new(6_000 + seed, each_bytes);
            (blob, client.put_lazily(blob, &blob.digest()).await)
        }
    });
    let answers = join_all(uploads).await;
    let mut stored = 0;
    for (blob, answer) in answers {
        match answer {
            Ok(()) => stored += 1,
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{blob:?}: {status:?}"),
        }
    }
    assert!(stored > 0, "not one upload had room");
    println!("{stored} uploads had room");
    fixture.client.put(Blob::new(7_000, 1_000)).await.unwrap();
    for blob in &fixture.stored {
        // Exact or missing: anything else is a panic.
        fixture.client.check(*blob).await.unwrap();
    }
}

#[tokio::test]
async fn an_object_larger_than_the_store_is_refused_at_once() {
    let fixture = Fixture::new().await;
    let digest = Digest { size_bytes: i64::try_from(2 * STORE_BYTES).unwrap(), ..Blob::new(8_000, 1).digest() };
    let first = vec![Blob::new(8_000, 1 << 20).bytes()];
    assert_code(fixture.client.write(&digest, first, false).await, Code::InvalidArgument);
    fixture.assert_nothing_is_lost().await;
}
