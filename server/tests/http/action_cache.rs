//! Action results: the same entries as gRPC's, and bytes of other kinds beside them.

use blockstore_proto::reapi::{ActionResult, Digest, OutputFile};
use blockstore_server::store::{DigestFunction, Hasher};
use blockstore_tests::{
    blob::{Blob, digest_of},
    client::{Client, action_digest},
};
use prost::Message;

use crate::server::{Server, whole};

fn result_with(output: Blob) -> ActionResult {
    let file = OutputFile { path: "out".into(), digest: Some(output.digest()), ..OutputFile::default() };
    ActionResult { output_files: vec![file], stdout_raw: "said".into(), ..ActionResult::default() }
}

fn path(action: &Digest) -> String {
    format!("/ac/{}", action.hash)
}

/// No result at all, one that is malformed, and one that no client could use.
fn opaque() -> [Vec<u8>; 3] {
    let absolute = OutputFile { path: "/etc/x".into(), digest: Some(action_digest(0)), ..OutputFile::default() };
    let unusable = ActionResult { output_files: vec![absolute], ..ActionResult::default() };
    [b"cCrS\x01 whatever a compiler cache writes".to_vec(), vec![0xff; 100], unusable.encode_to_vec()]
}

#[tokio::test]
async fn who_may_not_store_results_stores_no_entries_either() {
    let server = Server::with("--ac-updates off --ac-updates ci=on");
    let hash = "a".repeat(64);
    for (instance, permitted) in [("", false), ("/ci", true), ("/ci/x", true), ("/other", false)] {
        let (action, entry) = (format!("{instance}/ac/{hash}"), format!("{instance}/kv/name"));
        let (stored, removed, found) = if permitted { (200, 204, 200) } else { (403, 403, 404) };
        for path in [&action, &entry] {
            assert_eq!(server.http.put(path, "opaque").await, stored, "{path}");
            assert_eq!(server.http.get(path).await.status, found, "{path}");
        }
        let answer = server.http.send("DELETE", &entry, &[], whole("")).await;
        assert_eq!(answer.status, removed, "{entry}");
        // Blobs are everybody's.
        assert_eq!(server.http.put(&format!("{instance}/cas/{}", digest_of(b"blob").hash), "blob").await, 200);
    }
}

#[tokio::test]
async fn both_protocols_have_one_action_cache() {
    let server = Server::start();
    let grpc = Client::connect(server.daemon.grpc).await;
    let output = Blob::new(1, 2_000);
    grpc.put(output).await.unwrap();
    let result = result_with(output);

    let by_http = action_digest(1);
    assert_eq!(server.http.get(&path(&by_http)).await.status, 404);
    assert_eq!(server.http.put(&path(&by_http), result.encode_to_vec()).await, 200);
    assert_eq!(grpc.action(by_http.clone()).await.unwrap(), Some(result.clone()));
    let by_grpc = action_digest(2);
    grpc.put_action(by_grpc.clone(), result.clone()).await.unwrap();
    let found = server.http.get(&path(&by_grpc)).await;
    found.assert_is(200, &result.encode_to_vec());
    assert_eq!(found.header("content-length"), Some(result.encoded_len().to_string().as_str()));
    let head = server.http.head(&path(&by_grpc)).await;
    assert_eq!((head.status.as_u16(), head.header("content-length")), (200, found.header("content-length")));
    // gRPC said the size; HTTP, which does not know it, does not take it away.
    let resized = Digest { size_bytes: by_grpc.size_bytes + 1, ..by_grpc.clone() };
    assert_eq!(grpc.action(resized.clone()).await.unwrap(), None);
    assert_eq!(server.http.put(&path(&by_grpc), result.encode_to_vec()).await, 200);
    assert_eq!(grpc.action(resized).await.unwrap(), None);
    assert_eq!(grpc.action(by_grpc.clone()).await.unwrap(), Some(result.clone()));
    // Where nobody said it, any is right.
    let resized = Digest { size_bytes: by_http.size_bytes + 1, ..by_http.clone() };
    assert_eq!(grpc.action(resized).await.unwrap(), Some(result));
    // Entries are apart by instance, and gRPC has asked for that of no name.
    assert_eq!(server.http.get(&format!("/other{}", path(&by_http))).await.status, 404);
    assert_eq!(server.http.put(&format!("/other{}", path(&action_digest(3))), "").await, 200);
    assert_eq!(grpc.action(action_digest(3)).await.unwrap(), None);
}

#[tokio::test]
async fn a_result_comes_back_byte_for_byte_and_its_tag_is_that_of_its_bytes() {
    let server = Server::start();
    let action = path(&action_digest(1));
    let mut encoded = ActionResult { exit_code: 3, ..ActionResult::default() }.encode_to_vec();
    // A field that this program does not know, and one twice.
    encoded.extend([0xf8, 0x07, 1]);
    encoded.extend(ActionResult { exit_code: 4, ..ActionResult::default() }.encode_to_vec());
    assert_eq!(server.http.put(&action, encoded.clone()).await, 200);
    let found = server.http.get(&action).await;
    found.assert_is(200, &encoded);
    let tag = found.header("etag").unwrap().to_owned();
    assert_eq!(server.http.get_with(&action, "if-none-match", &tag).await.status, 304);
    assert_eq!(server.http.put(&action, "").await, 200);
    server.http.get_with(&action, "if-none-match", &tag).await.assert_is(200, b"");
}

#[tokio::test]
async fn an_incomplete_result_is_a_miss_on_both_protocols() {
    let server = Server::start();
    let grpc = Client::connect(server.daemon.grpc).await;
    let output = Blob::new(1, 2_000);
    let result = result_with(output);
    let action = action_digest(1);
    grpc.put_action(action.clone(), result.clone()).await.unwrap();
    assert_eq!(grpc.action(action.clone()).await.unwrap(), None);
    assert_eq!(server.http.get(&path(&action)).await.status, 404);
    assert_eq!(server.http.head(&path(&action)).await.status, 404);
    assert_eq!(server.http.put(&format!("/cas/{}", output.digest().hash), output.bytes()).await, 200);
    assert_eq!(grpc.action(action.clone()).await.unwrap(), Some(result.clone()));
    server.http.get(&path(&action)).await.assert_is(200, &result.encode_to_vec());
}

#[tokio::test]
async fn bytes_of_another_kind_are_kept_for_http_and_are_a_miss_over_grpc() {
    let server = Server::start();
    let grpc = Client::connect(server.daemon.grpc).await;
    for (number, bytes) in opaque().into_iter().enumerate() {
        let action = action_digest(number as u64);
        assert_eq!(server.http.put(&path(&action), bytes.clone()).await, 200);
        server.http.get(&path(&action)).await.assert_is(200, &bytes);
        assert_eq!(grpc.action(action).await.unwrap(), None);
    }
    let large = Blob::new(1, 500_000).bytes();
    assert_eq!(server.http.put(&path(&action_digest(9)), large.clone()).await, 200);
    server.http.get(&path(&action_digest(9))).await.assert_is(200, &large);
}

#[tokio::test]
async fn strict_takes_action_results_only() {
    let server = Server::with("--http-ac-validation strict");
    for bytes in opaque() {
        assert_eq!(server.http.put(&path(&action_digest(1)), bytes).await, 400);
        assert_eq!(server.http.get(&path(&action_digest(1))).await.status, 404);
    }
    let result = ActionResult { exit_code: 3, ..ActionResult::default() }.encode_to_vec();
    assert_eq!(server.http.put(&path(&action_digest(1)), result.clone()).await, 200);
    server.http.get(&path(&action_digest(1))).await.assert_is(200, &result);
}

#[tokio::test]
async fn without_validation_everything_is_bytes() {
    let server = Server::with("--http-ac-validation off");
    let grpc = Client::connect(server.daemon.grpc).await;
    let incomplete = result_with(Blob::new(1, 2_000)).encode_to_vec();
    for (number, bytes) in opaque().into_iter().chain([incomplete]).enumerate() {
        let action = action_digest(number as u64);
        assert_eq!(server.http.put(&path(&action), bytes.clone()).await, 200);
        server.http.get(&path(&action)).await.assert_is(200, &bytes);
        // Which concerns HTTP alone.
        assert_eq!(grpc.action(action).await.unwrap(), None);
    }
}

#[tokio::test]
async fn actions_of_64_digits_are_of_the_function_of_what_they_name_or_the_one_that_was_configured() {
    let output = Blob::new(1, 3_000).bytes();
    let named = Hasher::digest(DigestFunction::Blake3, &output);
    let name = Digest { hash: named.hash_hex(), size_bytes: 3_000 };
    let file = OutputFile { path: "out".into(), digest: Some(name), ..OutputFile::default() };
    let result = ActionResult { output_files: vec![file], ..ActionResult::default() }.encode_to_vec();
    for (arguments, status) in [
        ("", 200),
        ("--http-ac-digest-function blake3", 200),
        ("--http-ac-digest-function sha256", 404),
        ("--default-digest-function sha256", 404),
    ] {
        let server = Server::with(arguments);
        assert_eq!(server.http.put(&format!("/cas/{}", named.hash_hex()), output.clone()).await, 200);
        assert_eq!(server.http.put(&path(&action_digest(1)), result.clone()).await, 200);
        // A digest of 64 digits in a result has the function of its action: only BLAKE3's is there.
        assert_eq!(server.http.get(&path(&action_digest(1))).await.status, status, "{arguments}");
        // One that names nothing is found whatever its function.
        assert_eq!(server.http.put(&path(&action_digest(2)), "").await, 200);
        assert_eq!(server.http.get(&path(&action_digest(2))).await.status, 200, "{arguments}");
        // Other lengths tell the function.
        let md5 = format!("/ac/{}", "a".repeat(32));
        assert_eq!(server.http.put(&md5, "").await, 200);
        server.http.get(&md5).await.assert_is(200, b"");
    }
}

#[tokio::test]
async fn encodings_that_are_not_understood_are_refused() {
    let server = Server::start();
    let action = path(&action_digest(1));
    for encoding in ["gzip", "br", "deflate, zstd"] {
        assert_eq!(server.http.send("PUT", &action, &[("content-encoding", encoding)], whole("{}")).await.status, 415);
    }
    assert_eq!(server.http.get(&action).await.status, 404);
}
