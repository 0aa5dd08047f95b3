//! What clients keep under names of their own.

use blockstore_tests::{blob::Blob, client::Client};
use http::StatusCode;

use crate::server::{Http, Server, chunked, spec, whole};

#[tokio::test]
async fn an_entry_is_put_replaced_got_and_deleted() {
    let server = Server::start();
    let path = "/kv/a/b%20c";
    assert_eq!(server.http.get(path).await.status, 404);
    assert_eq!(server.http.send("DELETE", path, &[], whole("")).await.status, 404);
    for (seed, size) in [(1, 0), (2, 1), (3, 70_000), (4, 500_000)] {
        let bytes = Blob::new(seed, size).bytes();
        assert_eq!(server.http.put(path, bytes.clone()).await, 200);
        let found = server.http.get(path).await;
        found.assert_is(200, &bytes);
        assert_eq!(found.header("content-length"), Some(size.to_string().as_str()));
        assert_eq!(server.http.head(path).await.header("content-length"), Some(size.to_string().as_str()));
        let tag = found.header("etag").unwrap().to_owned();
        assert_eq!(server.http.get_with(path, "if-none-match", &tag).await.status, 304);
        if size > 1 {
            server.http.get_with(path, "range", "bytes=1-2").await.assert_is(206, &bytes[1..3]);
        }
    }
    assert_eq!(server.http.send("PUT", path, &[], chunked(vec!["in ".into(), "chunks".into()])).await.status, 200);
    // Another way to write the same name.
    server.http.get("/kv/%61/b%20c").await.assert_is(200, b"in chunks");
    let Server { daemon, dir, .. } = server;
    daemon.kill();
    let daemon = spec(&dir).start();
    let http = Http::new(&daemon, false);
    http.get(path).await.assert_is(200, b"in chunks");
    assert_eq!(http.send("DELETE", path, &[], whole("")).await.status, 204);
    assert_eq!(http.get(path).await.status, 404);
}

#[tokio::test]
async fn entries_are_apart_by_instance_and_have_nothing_to_do_with_the_rest() {
    let server = Server::start();
    let hex = Blob::new(1, 100).digest().hash;
    for (path, bytes) in [
        ("/kv/x", "none"),
        ("/i/kv/x", "one"),
        ("/i/j/kv/x", "two"),
        ("/kv/i/kv/x", "name"),
        (&format!("/kv/{hex}"), "hash"),
        (&format!("/kv/ac/{hex}"), "ac"),
    ] {
        assert_eq!(server.http.put(path, bytes).await, 200, "{path}");
    }
    server.http.get("/kv/x").await.assert_is(200, b"none");
    server.http.get("/i/kv/x").await.assert_is(200, b"one");
    server.http.get("/i/j/kv/x").await.assert_is(200, b"two");
    server.http.get(&format!("/kv/ac/{hex}")).await.assert_is(200, b"ac");
    assert_eq!(server.http.get(&format!("/ac/{hex}")).await.status, 404);
    assert_eq!(server.http.get(&format!("/cas/{hex}")).await.status, 404);
    let grpc = Client::connect(server.daemon.grpc).await;
    assert_eq!(grpc.action(Blob::new(1, 100).digest()).await.unwrap(), None);
}

#[tokio::test]
async fn names_and_entries_are_bounded() {
    let server = Server::start();
    let longest = format!("/kv/{}", "n".repeat(1024));
    assert_eq!(server.http.put(&longest, "x").await, 200);
    server.http.get(&longest).await.assert_is(200, b"x");
    assert_eq!(server.http.put(&format!("{longest}n"), "x").await, 400);
    assert_eq!(server.http.put("/kv/", "x").await, 400);
    assert_eq!(server.http.put("/kv/large", vec![0; 10 << 20]).await, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn a_webdav_client_finds_its_folders_and_entries() {
    let server = Server::start();
    let find = async |path: &str| server.http.send("PROPFIND", path, &[("depth", "0")], whole("<propfind/>")).await;
    for folder in ["/kv/", "/kv", "/kv/a/", "/i/kv/a/b/"] {
        let answer = find(folder).await;
        let text = String::from_utf8(answer.body.unwrap().to_vec()).unwrap();
        assert_eq!(answer.status, 207);
        assert!(text.contains(&format!("<D:href>{folder}</D:href>")) && text.contains("<D:collection/>"), "{text}");
    }
    assert_eq!(server.http.send("MKCOL", "/kv/a/", &[], whole("")).await.status, 201);
    assert_eq!(find("/kv/a/x").await.status, 404);
    assert_eq!(server.http.put("/kv/a/x", "twelve bytes").await, 200);
    let answer = find("/kv/a/x").await;
    let text = String::from_utf8(answer.body.unwrap().to_vec()).unwrap();
    assert_eq!(answer.status, 207);
    assert!(text.contains("<D:getcontentlength>12</D:getcontentlength>") && !text.contains("collection"), "{text}");
    assert!(text.contains("<D:getlastmodified>") && text.contains("HTTP/1.1 200 OK"), "{text}");
}
