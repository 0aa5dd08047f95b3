//! Blobs that came in chunks, over HTTP.

use blockstore_tests::{
    blob::{Blob, digest_of},
    client::{Client, Found},
};

use crate::server::{Http, Server, spec};

#[tokio::test]
async fn a_blob_that_came_in_chunks_is_got_as_any_other_also_after_a_restart() {
    let server = Server::start();
    let grpc = Client::connect(server.daemon.grpc).await;
    let blob = Blob::new(1, 5_000_000);
    let bytes = blob.bytes();
    let mut chunks = Vec::new();
    for part in [0..100, 100..3_000_000, 3_000_000..5_000_000].map(|range| bytes.slice(range)) {
        let name = digest_of(&part);
        assert_eq!(server.http.put(&format!("/cas/{}", name.hash), part).await, 200);
        chunks.push(name);
    }
    let path = format!("/cas/{}", blob.digest().hash);
    assert_eq!(server.http.get(&path).await.status, 404);
    grpc.splice(blob.digest(), chunks).await.unwrap();

    let expect = async |http: &Http| {
        let found = http.get(&path).await;
        found.assert_is(200, &bytes);
        assert_eq!(found.header("content-length"), Some("5000000"));
        assert_eq!(http.head(&path).await.header("content-length"), Some("5000000"));
        for (range, expected) in
            [("bytes=90-110", &bytes[90..111]), ("bytes=2999999-3000000", &bytes[2_999_999..3_000_001]), ("bytes=-3", &bytes[4_999_997..])]
        {
            http.get_with(&path, "range", range).await.assert_is(206, expected);
        }
        assert_eq!(http.put(&path, bytes.clone()).await, 200);
    };
    expect(&server.http).await;
    // What was acknowledged outlives the process, however that ends.
    let Server { daemon, dir, .. } = server;
    daemon.kill();
    let daemon = spec(&dir).start();
    expect(&Http::new(&daemon, false)).await;
    expect(&Http::new(&daemon, true)).await;
    let grpc = Client::connect(daemon.grpc).await;
    assert_eq!(grpc.check(blob).await.unwrap(), Found::Exact);
    daemon.stop();
    let daemon = spec(&dir).start();
    expect(&Http::new(&daemon, false)).await;
}
