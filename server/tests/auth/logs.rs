//! What logs say of users, and what they never do.

use crate::{
    server::{Http, Server},
    users::{ALICE, AS_ALICE, AS_BOB, AS_MALLORY, BOB, client, get, spec_with},
};
use serde_json::Value;
use tempfile::TempDir;

/// `alice:wrong-one`.
const AS_ALICE_WRONG: &str = "Basic YWxpY2U6d3Jvbmctb25l";

#[tokio::test]
async fn requests_are_named_with_users_who_exist_and_nothing_is_a_secret() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let spec = spec_with(&dir, &[ALICE, BOB].concat()).args("--log-format json --access-log");
    let daemon = spec.through(&["env", "RUST_LOG=trace"]).start();
    let http = Http::new(&daemon, false);
    let server = Server { daemon, http, dir };
    let rights = [(AS_ALICE, "alice"), (AS_BOB, "bob")];
    for (credentials, _) in rights {
        assert_eq!(get(&server, "/kv/http", credentials).await.status, 404);
        client(&server, credentials).await.missing(vec![]).await.unwrap();
    }
    for credentials in [AS_ALICE_WRONG, AS_MALLORY, "Bearer d29uZGVybGFuZA=="] {
        assert_eq!(get(&server, "/kv/http", credentials).await.status, 401);
        client(&server, credentials).await.missing(vec![]).await.unwrap_err();
    }
    assert_eq!(server.http.get("/kv/http").await.status, 401);
    let Server { daemon, dir: _dir, .. } = server;
    let log = daemon.stop();
    let secrets = ["wonderland", "build-it", "wrong-one", "mallory", "d29uZGVybGFuZA", "YWxpY2U6", "Ym9iOmJ1", "bWFsbG9y", "$2y$"];
    for line in &log {
        assert!(!secrets.iter().any(|secret| line.contains(secret)), "{line}");
    }
    let lines: Vec<Value> = log.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let logged = |protocol: &str, field: &str, name: &str| {
        let of = lines.iter().filter(|line| line["protocol"] == protocol && line[field] == name);
        of.map(|line| line["status"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for (_, name) in rights {
        assert_eq!((logged("http", "user", name), logged("grpc", "user", name)), (vec!["404".into()], vec!["OK".into()]), "{name}");
    }
    assert_eq!(logged("http", "refused_user", "alice"), ["401"]);
    assert_eq!(logged("grpc", "refused_user", "alice"), ["Unauthenticated"]);
    let nobody = lines.iter().filter(|line| line["status"] == "401" && line.get("user").is_none() && line.get("refused_user").is_none());
    assert_eq!(nobody.count(), 3);
    assert!(lines.iter().any(|line| line["message"] == "credentials are asked for" && line["users"] == 2));
    assert!(!log.iter().any(|line| line.contains("whoever is on the way")), "nobody is, on this machine");
}
