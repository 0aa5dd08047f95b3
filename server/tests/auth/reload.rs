//! The file of users, read again on SIGHUP.

use crate::{
    server::Server,
    users::{ALICE, ALICE_AGAIN, AS_ALICE, AS_ALICE_AGAIN, AS_BOB, AS_CAROL, BOB, CAROL, client, get, start, write},
};
use blockstore_tests::{blob::Blob, daemon::Signal};
use std::{fs, thread, time::Duration, time::Instant};
use tonic::Code;

/// Has the file read again, and waits until the log says so for the n-th time.
fn reload(server: &Server, said: &str, n: usize) {
    server.daemon.signal(Signal::HUP);
    let since = Instant::now();
    while server.daemon.log().iter().filter(|line| line.contains(said)).count() < n {
        assert!(since.elapsed() < Duration::from_secs(180), "never said {said:?} again: {:#?}", server.daemon.log());
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether these credentials do, over both protocols.
async fn does(server: &Server, authorization: &str) -> bool {
    let http = get(server, "/kv/x", authorization).await.status.as_u16();
    let grpc = client(server, authorization).await.missing(vec![]).await.map_err(|status| status.code());
    match (http, grpc) {
        (404, Ok(_)) => true,
        (401, Err(Code::Unauthenticated)) => false,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn who_is_gone_or_has_another_password_is_refused_at_once() {
    let server = start("");
    let all = async |expected: [bool; 4]| {
        for (credentials, expected) in [AS_ALICE, AS_ALICE_AGAIN, AS_BOB, AS_CAROL].into_iter().zip(expected) {
            // Twice: the second time it is remembered.
            assert_eq!([does(&server, credentials).await, does(&server, credentials).await], [expected; 2], "{credentials}");
        }
    };
    all([true, false, true, true]).await;
    // On a connection that was there before.
    let bob = client(&server, AS_BOB).await;
    bob.put(Blob::new(1, 1000)).await.unwrap();
    write(&server.dir, &[ALICE_AGAIN, CAROL].concat());
    reload(&server, "users were read again", 1);
    assert_eq!(bob.put(Blob::new(2, 1000)).await.unwrap_err().code(), Code::Unauthenticated);
    all([false, true, false, true]).await;
    write(&server.dir, &[ALICE, BOB].concat());
    reload(&server, "users were read again", 2);
    bob.put(Blob::new(2, 1000)).await.unwrap();
    all([true, false, true, false]).await;
}

#[tokio::test]
async fn a_file_that_is_wrong_leaves_all_as_it_was() {
    let server = start("");
    assert!(does(&server, AS_BOB).await);
    for (n, (text, why)) in (1..).zip([("alice:wonderland\n", "users:1: this is a password in plain text"), ("", "there is no user in it")])
    {
        write(&server.dir, text);
        reload(&server, "the users from before stay", n);
        let log = server.daemon.log();
        let line = log.iter().rfind(|line| line.contains("the users from before stay")).unwrap();
        assert!(line.contains("ERROR") && line.contains("--htpasswd-file") && line.contains(why), "{line}");
        assert!(does(&server, AS_BOB).await && does(&server, AS_ALICE).await);
    }
    fs::remove_file(server.dir.path().join("users")).unwrap();
    reload(&server, "the users from before stay", 3);
    assert!(does(&server, AS_CAROL).await && !does(&server, AS_ALICE_AGAIN).await);
    write(&server.dir, BOB);
    reload(&server, "users were read again", 1);
    assert!(does(&server, AS_BOB).await && !does(&server, AS_CAROL).await);
    assert!(!server.daemon.stop().iter().any(|line| line.contains("wonderland")));
}
