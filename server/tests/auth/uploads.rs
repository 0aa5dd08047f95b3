//! Uploads of who may not: nothing of them is taken.

use crate::users::{AS_ALICE, AS_MALLORY, client, page_when, start};
use blockstore_tests::{
    blob::{Blob, digest_of},
    client::{Client, OpenUpload, upload_name},
};
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};
use tonic::Code;

/// Sends this and nothing more; what comes back until the server closes.
fn until_closed(stream: &mut TcpStream, text: &str) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_large_upload_is_refused_before_it_is_sent() {
    let server = start("");
    let hash = digest_of(b"x").hash;
    for authorization in ["", &format!("Authorization: {AS_MALLORY}\r\n")] {
        // Who would send more than is bearable is cut off; nothing of it was asked for.
        let head = format!("PUT /cas/{hash} HTTP/1.1\r\nHost: test\r\n{authorization}Content-Length: 1099511627776\r\n\r\n");
        let answer = until_closed(&mut TcpStream::connect(server.daemon.http).unwrap(), &head);
        assert!(
            answer.starts_with("HTTP/1.1 401 ") && answer.to_lowercase().contains("www-authenticate: basic realm=\"blockstore\""),
            "{answer}"
        );
        // Who waits is not told to go on.
        let mut stream = TcpStream::connect(server.daemon.http).unwrap();
        let head = head.replace("1099511627776", "1000").replace("\r\n\r\n", "\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n");
        let answer = until_closed(&mut stream, &head);
        assert!(answer.starts_with("HTTP/1.1 401 ") && !answer.contains("100 Continue"), "{answer}");
    }
    let page = page_when(&server, |_| true).await;
    assert_eq!(page.sum("blockstore_received_bytes_total", &[("protocol", "http"), ("kind", "cas")]), 0.0);
}

#[tokio::test]
async fn a_stream_that_goes_on_is_refused_and_not_read() {
    let server = start("");
    let blob = Blob::new(1, 600_000);
    for client in [Client::connect(server.daemon.grpc).await, client(&server, AS_MALLORY).await] {
        let upload = OpenUpload::start(&client, &upload_name(&blob.digest()), blob.bytes().slice(..300_000));
        // It is answered though its client would go on.
        assert_eq!(upload.end().await.unwrap_err().code(), Code::Unauthenticated);
        assert_eq!(client.put(blob).await.unwrap_err().code(), Code::Unauthenticated);
    }
    let page = page_when(&server, |_| true).await;
    assert_eq!(page.sum("blockstore_received_bytes_total", &[("protocol", "grpc")]), 0.0);
    assert_eq!(page.sum("blockstore_engine_accepted_bytes_total", &[]), 0.0);
    let alice = client(&server, AS_ALICE).await;
    assert_eq!(alice.missing(vec![blob.digest()]).await.unwrap(), [blob.digest()]);
}
