//! What is said when the store cannot do what it is asked: no room, and a device that fails.

use blockstore_tests::{
    blob::Blob,
    daemon::Spec,
    disk::{LoopDevice, SmallDisk, sparse_file},
};
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};
use tempfile::TempDir;

use crate::server::{Http, Server, whole};

fn path(blob: Blob) -> String {
    format!("/cas/{}", blob.digest().hash)
}

#[tokio::test]
async fn an_upload_for_which_there_is_no_room_is_507_and_may_be_tried_again() {
    let server = Server::start();
    // Running uploads may hold half of the store together; this one does so alone, and stands still.
    let large = Blob::new(1, 150 << 20);
    let mut running = TcpStream::connect(server.daemon.http).unwrap();
    running.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let more = format!("Expect: 100-continue\r\nContent-Length: {}", large.size_bytes);
    write!(running, "PUT {} HTTP/1.1\r\nHost: test\r\n{more}\r\n\r\n", path(large)).unwrap();
    running.read_exact(&mut [0; 25]).unwrap();
    running.write_all(&large.bytes()[..1 << 20]).unwrap();

    let second = Blob::new(2, 20 << 20);
    let answer = server.http.send("PUT", &path(second), &[], whole(second.bytes())).await;
    assert_eq!(answer.status, 507, "{answer:?}");
    assert!(answer.header("retry-after").is_some());
    assert_eq!(server.http.get(&path(second)).await.status, 404);
    // Small ones need no such room, and what was refused is taken once there is.
    let small = Blob::new(3, 10_000);
    assert_eq!(server.http.put(&path(small), small.bytes()).await, 200);
    drop(running);
    let mut status = 507;
    for _ in 0..10 {
        status = server.http.put(&path(second), second.bytes()).await.as_u16();
        if status != 507 {
            break;
        }
    }
    assert_eq!(status, 200);
    assert_eq!(server.http.get(&path(large)).await.status, 404);
}

#[tokio::test]
async fn a_store_whose_device_failed_serves_what_it_has_and_refuses_the_rest_for_now() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // A device that is larger than the disk on which it is kept: what does not fit there cannot be written.
    let Some(disk) = SmallDisk::mount(&dir.path().join("disk"), 48 << 20) else {
        return;
    };
    let file = disk.path().join("device");
    sparse_file(&file, 512 << 20);
    let Some(device) = LoopDevice::attach(&file) else {
        return;
    };
    let daemon = Spec::new(env!("CARGO_BIN_EXE_blockstored")).device(device.path()).args("--format --cache-size 64MiB").start();
    let http = Http::new(&daemon, false);
    let kept = Blob::new(1, 100_000);
    assert_eq!(http.put(&path(kept), kept.bytes()).await, 200);
    assert_eq!(http.put("/kv/kept", "entry").await, 200);
    let mut refused = None;
    for seed in 0..400 {
        let blob = Blob::new(10 + seed, 2 << 20);
        let answer = http.send("PUT", &path(blob), &[], whole(blob.bytes())).await;
        match answer.status.as_u16() {
            200 => {}
            503 => {
                refused = Some(answer);
                break;
            }
            _ => panic!("{answer:?}"),
        }
    }
    let refused = refused.expect("the device is full by now");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    let hash = kept.digest().hash;
    for (method, path) in
        [("PUT", path(Blob::new(2, 5))), ("PUT", format!("/ac/{hash}")), ("PUT", "/kv/x".into()), ("DELETE", "/kv/kept".into())]
    {
        let body = if path.contains("/cas/") { Blob::new(2, 5).bytes() } else { "x".into() };
        let answer = http.send(method, &path, &[], whole(body)).await;
        assert_eq!(answer.status, 503, "{method} {path}");
        assert!(answer.header("retry-after").is_some(), "{method} {path}");
    }
    http.get(&path(kept)).await.assert_is(200, &kept.bytes());
    http.get("/kv/kept").await.assert_is(200, b"entry");
    drop(daemon);
}
