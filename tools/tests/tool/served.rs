//! Stores that a server holds: the server is asked, and nothing else is done.

use crate::{server::serve, store::*};
use blockstore_engine::device::{DeviceOptions, open_file};
use blockstore_tests::{blob::Blob, client::Client};
use std::{
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    process::Command,
    thread,
};
use tempfile::TempDir;

fn inspect_server(address: &str) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_blockstore-tool")).args(["inspect", "--json", "--server", address]).output().unwrap()
}

#[test]
fn inspect_asks_the_server_that_holds_the_store() {
    let dir = TempDir::new().unwrap();
    let daemon = serve(dir.path());
    let blobs: Vec<Blob> = (0..7).map(|seed| Blob::new(seed, 900)).collect();
    run(async {
        Client::connect(daemon.grpc).await.put_batch(&blobs).await.unwrap();
    });
    let http = daemon.http.to_string();
    let store_file = dir.path().join("store.blockstore");
    // Found by itself in the directory, by the file, and told.
    for output in [tool(&["inspect", "--json"], dir.path()), tool(&["inspect", "--json"], &store_file), inspect_server(&http)] {
        let report = json(&output);
        assert_eq!((status(&output), report["served"].as_bool()), (0, Some(true)), "{}", stderr(&output));
        assert_eq!((report["verdict"].as_str(), report["server"].as_str()), (Some("sound"), Some(&*http)));
        assert_eq!((number(&report, "/status/NumFiles"), report["status"]["phase"].as_str()), (7, Some("serving")), "{report:#}");
    }
    let text = stdout(&tool(&["inspect"], dir.path()));
    assert!(text.contains(&format!("the server at {http}")) && text.contains("serving"), "{text}");
    // Everything else is refused.
    for arguments in
        [&["verify"][..], &["ls"], &["repair"], &["rebuild"], &["grow", "--size", "1GiB"], &["shrink", "--size", "40MiB"], &["bench"]]
    {
        let output = tool(arguments, &store_file);
        assert_eq!((status(&output), stdout(&output).as_str()), (4, ""), "{arguments:?}: {}", stderr(&output));
    }

    // A server that was killed holds nothing: what it left beside its store means nothing.
    daemon.kill();
    assert!(dir.path().join("server.json").exists());
    let output = tool(&["inspect", "--json"], dir.path());
    assert_eq!((status(&output), number(&json(&output), "/objects/total")), (0, 7), "{}", stderr(&output));
    // Held by somebody else, it names a server that does not answer.
    let held = open_file(&store_file, DeviceOptions::default()).unwrap();
    let output = tool(&["inspect"], dir.path());
    assert_eq!((status(&output), stdout(&output).as_str()), (4, ""));
    assert!(stderr(&output).contains("held by another process") && stderr(&output).contains("does not answer"), "{}", stderr(&output));
    drop(held);

    let daemon = serve(dir.path());
    assert_eq!(json(&tool(&["inspect", "--json"], dir.path()))["server"], daemon.http.to_string());
    daemon.stop();
    assert!(!dir.path().join("server.json").exists(), "a server that ends in order takes it along");
    assert_eq!(status(&tool(&["inspect"], dir.path())), 0);
}

/// Answers one request with this, and gives what was asked.
fn answer_once(answer: &'static str) -> (String, thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut asked, mut buf) = (Vec::new(), [0; 4096]);
        while !asked.windows(4).any(|end| end == b"\r\n\r\n") {
            let n = stream.read(&mut buf).unwrap();
            asked.extend_from_slice(&buf[..n]);
        }
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8(asked).unwrap()
    });
    (address, asked)
}

#[test]
fn credentials_are_sent_and_never_shown() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 41\r\n\r\n{\"phase\":\"serving\",\"engine\":null,\"x\":123}";
    let (address, asked) = answer_once(answer);
    let output = inspect_server(&format!("http://me:secret@{address}"));
    assert_eq!((status(&output), json(&output)["server"].as_str()), (0, Some(&*address)), "{}", stderr(&output));
    let asked = asked.join().unwrap().to_lowercase();
    // me:secret
    assert!(asked.starts_with("get /status ") && asked.contains("authorization: basic bwu6c2vjcmv0\r\n"), "{asked}");

    let (address, asked) = answer_once("HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n");
    let output = inspect_server(&format!("me:secret@{address}"));
    asked.join().unwrap();
    assert_eq!((status(&output), stdout(&output).as_str()), (3, ""));
    assert!(stderr(&output).contains("USER:PASSWORD") && !stderr(&output).contains("secret"), "{}", stderr(&output));
}

#[test]
fn what_is_no_blockstored_is_told_and_damage_counts() {
    for (answer, told) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", "something else"),
        ("HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n", "302"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\nhel", "does not finish"),
        ("", "does not answer"),
    ] {
        let (address, asked) = answer_once(answer);
        let output = inspect_server(&address);
        asked.join().unwrap();
        assert_eq!(status(&output), 3, "{answer}");
        assert!(stderr(&output).contains(told) && stderr(&output).lines().count() == 1, "{told}: {}", stderr(&output));
    }
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 55\r\n\r\n{\"phase\":\"serving\",\"engine\":{\"damaged_records\":1}}     ";
    let (address, asked) = answer_once(answer);
    let output = inspect_server(&address);
    asked.join().unwrap();
    assert_eq!((status(&output), json(&output)["verdict"].as_str()), (1, Some("damaged")), "{}", stderr(&output));
    for wrong in ["nonsense", "https://127.0.0.1:1", "127.0.0.1:1/status"] {
        assert_eq!(status(&inspect_server(wrong)), 2, "{wrong}");
    }
    let both = tool(&["inspect", "--server", "127.0.0.1:1"], Path::new("somewhere"));
    assert_eq!(status(&both), 2, "a store or a server");
}
