//! Action results as JSON: the same entries, in another form.

use blockstore_proto::reapi::{ActionResult, Digest, OutputFile};
use blockstore_tests::{
    blob::Blob,
    client::{Client, action_digest},
};
use prost::Message;
use serde_json::json;

use crate::server::{Answer, Server, whole};

const JSON: &str = "application/json";

fn path(number: u64) -> String {
    format!("/ac/{}", action_digest(number).hash)
}

async fn put(server: &Server, path: &str, kind: &str, body: impl ToString) -> Answer {
    server.http.send("PUT", path, &[("content-type", kind)], whole(body.to_string())).await
}

fn said(answer: &Answer) -> String {
    String::from_utf8(answer.body.as_deref().unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn what_is_put_as_json_is_a_message_and_what_is_a_message_is_got_as_json() {
    let server = Server::start();
    let grpc = Client::connect(server.daemon.grpc).await;
    let output = Blob::new(1, 2_000);
    grpc.put(output).await.unwrap();
    let digest = output.digest();
    let written = json!({
        "outputFiles": [{"path": "a/b", "digest": {"hash": digest.hash, "sizeBytes": "2000"}, "isExecutable": true}],
        "exitCode": 3,
        "stdoutRaw": "c2FpZA==",
    });
    let file = OutputFile { path: "a/b".into(), digest: Some(digest), is_executable: true, ..Default::default() };
    let result = ActionResult { output_files: vec![file], exit_code: 3, stdout_raw: "said".into(), ..Default::default() };

    assert_eq!(put(&server, &path(1), "Application/JSON; charset=utf-8", &written).await.status, 200);
    assert_eq!(grpc.action(action_digest(1)).await.unwrap(), Some(result.clone()));
    server.http.get(&path(1)).await.assert_is(200, &result.encode_to_vec());
    grpc.put_action(action_digest(2), result.clone()).await.unwrap();
    let answer = server.http.get_with(&path(2), "accept", JSON).await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, Some(JSON)));
    assert_eq!(answer.header("vary"), Some("accept"));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&said(&answer)).unwrap(), written);
    assert_eq!(answer.header("content-length"), Some(said(&answer).len().to_string().as_str()));
    let head = server.http.send("HEAD", &path(2), &[("accept", JSON)], whole("")).await;
    assert_eq!(head.header("content-length"), answer.header("content-length"));
    // Two forms have two tags.
    let bytes = server.http.get(&path(2)).await;
    assert_eq!(bytes.header("vary"), Some("accept"));
    let tag = answer.header("etag").unwrap();
    assert_ne!(bytes.header("etag"), Some(tag));
    let asked = [("accept", JSON), ("if-none-match", tag)];
    assert_eq!(server.http.send("GET", &path(2), &asked, whole("")).await.status, 304);
    assert_eq!(server.http.get_with(&path(2), "if-none-match", tag).await.status, 200);
    // Who takes anything gets the bytes.
    for accepted in ["*/*", "text/html, */*", "application/json;q=0.1, application/octet-stream"] {
        server.http.get_with(&path(2), "accept", accepted).await.assert_is(200, &result.encode_to_vec());
    }
    assert_eq!(server.http.get_with(&path(3), "accept", JSON).await.status, 404);
    // An incomplete one is a miss in every form.
    let missing = json!({"outputFiles": [{"path": "a", "digest": {"hash": "a".repeat(64), "sizeBytes": "1"}}]});
    assert_eq!(put(&server, &path(4), JSON, missing).await.status, 200);
    assert_eq!(server.http.get_with(&path(4), "accept", JSON).await.status, 404);
}

#[tokio::test]
async fn json_that_is_no_usable_result_is_refused_whatever_else_is_taken() {
    for validation in ["lenient", "strict", "off"] {
        // Blocks of a size that leaves room for results of a MiB.
        let server = Server::with(&format!("--http-ac-validation {validation} --block-size 4MiB"));
        for (body, named) in [
            (r#""#.to_owned(), "line 1 column 0"),
            ("{\"exitCode\": 1,\n\"exit\": 2}".to_owned(), "line 2 column"),
            ("{\"exitCode\": 1,\n\"exit\": 2}".to_owned(), "'exit'"),
            (r#"{"exitCode": "many"}"#.to_owned(), "line 1 column 19"),
            (r#"[{}]"#.to_owned(), "line 1 column"),
            (r#"{"outputFiles": [{"path": "/absolute"}]}"#.to_owned(), "output_files.path"),
            (r#"{"outputFiles": [{"path": "a"}]}"#.to_owned(), "output_files.digest"),
            (format!("{}{}", "[".repeat(300_000), "]".repeat(300_000)), "too many"),
            (format!("{}1{}", r#"{"a":"#.repeat(1_000), "}".repeat(1_000)), "line 1 column"),
            (format!("{{\"outputFiles\":[{}{{}}]}}", "{},".repeat(300_000)), "too many"),
        ] {
            let answer = put(&server, &path(1), JSON, &body).await;
            assert_eq!(answer.status, 400, "{validation}: {}", &body[..body.len().min(50)]);
            assert!(said(&answer).contains(named), "{named}: {}", said(&answer));
        }
        assert_eq!(put(&server, &path(1), JSON, " ".repeat(9 << 20)).await.status, 413);
        assert_eq!(server.http.get(&path(1)).await.status, 404);
        assert_eq!(put(&server, &path(1), JSON, "{\"exitCode\": 4}").await.status, 200);
        let result = ActionResult { exit_code: 4, ..Default::default() };
        server.http.get(&path(1)).await.assert_is(200, &result.encode_to_vec());
    }
}

#[tokio::test]
async fn bytes_of_another_kind_have_no_json() {
    for validation in ["lenient", "off"] {
        let server = Server::with(&format!("--http-ac-validation {validation}"));
        assert_eq!(server.http.put(&path(1), "cCrS\x01 opaque").await, 200);
        let answer = server.http.get_with(&path(1), "accept", JSON).await;
        assert_eq!((answer.status.as_u16(), answer.header("vary")), (406, Some("accept")), "{validation}");
        assert!(said(&answer).contains("there is no JSON"), "{}", said(&answer));
        // Who can do without gets them.
        for accepted in ["application/json, */*;q=0.1", "application/json, application/octet-stream;q=0.5"] {
            let answer = server.http.get_with(&path(1), "accept", accepted).await;
            answer.assert_is(200, b"cCrS\x01 opaque");
            assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
        }
        // A message that no client could use is none.
        let file = OutputFile { path: "/etc/x".into(), digest: Some(Digest::default()), ..Default::default() };
        let unusable = ActionResult { output_files: vec![file], ..Default::default() }.encode_to_vec();
        assert_eq!(server.http.put(&path(2), unusable).await, 200);
        assert_eq!(server.http.get_with(&path(2), "accept", JSON).await.status, 406);
        // Only action results have JSON.
        assert_eq!(put(&server, "/kv/x", JSON, "{not JSON").await.status, 200);
        server.http.get_with("/kv/x", "accept", JSON).await.assert_is(200, b"{not JSON");
    }
}
