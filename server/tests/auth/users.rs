//! Servers that ask for credentials, and credentials.

use crate::{
    page::Page,
    server::{Answer, Http, Server, spec, whole},
};
use blockstore_tests::{client::Client, daemon::Spec};
use std::{fs, thread, time::Duration, time::Instant};
use tempfile::TempDir;

/// Made by Apache's htpasswd 2.4.71: alice has `wonderland`, bob `build-it`, carol `crypted`.
pub const ALICE: &str = "alice:$2y$04$nOkICUsgGg6PyVyqzneLJeeuZsGr4W6hJM52MtGCgY/rxzAHG9IKW\n";
pub const BOB: &str = "bob:$2y$04$2OIxVeBGa/GDg21wqeSRp.EaXnMFGbjAfGfUwvvP0NU7b5oRmZUZW\n";
pub const CAROL: &str =
    "carol:$6$rounds=1000$D6bIeLBPrnpSJ5Eq$l/A8oWuFRum52wlbeImDxGAz12pEzTKhATOxkDQty9lx3H32AbmbiRIeV7yFDMs6s5lEuuFkOVOqCz.WNzUIv.\n";
/// The same alice with `looking-glass`.
pub const ALICE_AGAIN: &str = "alice:$2y$04$QHIGWwbqumj9jSSz8A8NEufnni5edjN/EQoWdiursRTMmHI1CJyoG\n";

/// `alice:wonderland`, as `Authorization` has it.
pub const AS_ALICE: &str = "Basic YWxpY2U6d29uZGVybGFuZA==";
/// `bob:build-it`.
pub const AS_BOB: &str = "Basic Ym9iOmJ1aWxkLWl0";
/// `carol:crypted`.
pub const AS_CAROL: &str = "Basic Y2Fyb2w6Y3J5cHRlZA==";
/// `alice:looking-glass`.
pub const AS_ALICE_AGAIN: &str = "Basic YWxpY2U6bG9va2luZy1nbGFzcw==";
/// `mallory:wonderland`.
pub const AS_MALLORY: &str = "Basic bWFsbG9yeTp3b25kZXJsYW5k";

/// How to start a server with these users.
pub fn spec_with(dir: &TempDir, users: &str) -> Spec {
    write(dir, users);
    spec(dir).arg("--htpasswd-file").arg(dir.path().join("users"))
}

/// Replaces the file, as htpasswd and editors do.
pub fn write(dir: &TempDir, users: &str) {
    let (new, path) = (dir.path().join("users.new"), dir.path().join("users"));
    fs::write(&new, users).unwrap();
    fs::rename(new, path).unwrap();
}

/// A server with alice, bob and carol.
pub fn start(arguments: &str) -> Server {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let daemon = spec_with(&dir, &[ALICE, BOB, CAROL].concat()).args(arguments).start();
    let http = Http::new(&daemon, false);
    Server { daemon, http, dir }
}

pub async fn client(server: &Server, authorization: &str) -> Client {
    Client::connect_as(server.daemon.grpc, authorization).await
}

pub async fn get(server: &Server, path: &str, authorization: &str) -> Answer {
    server.http.get_with(path, "authorization", authorization).await
}

pub async fn put(server: &Server, path: &str, authorization: &str, body: &'static str) -> u16 {
    server.http.send("PUT", path, &[("authorization", authorization)], whole(body)).await.status.as_u16()
}

/// Asks for the page as alice, until it is as it has to become.
pub async fn page_when(server: &Server, ready: impl Fn(&Page) -> bool) -> Page {
    let since = Instant::now();
    loop {
        let answer = get(server, "/metrics", AS_ALICE).await;
        let page = Page::parse(std::str::from_utf8(&answer.body.unwrap()).unwrap());
        if ready(&page) {
            return page;
        }
        assert!(since.elapsed() < Duration::from_secs(180), "never came: {page:#?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Requests that came to that.
pub fn counted(page: &Page, protocol: &str, outcome: &str) -> f64 {
    page.sum("blockstore_auth_total", &[("protocol", protocol), ("outcome", outcome)])
}
