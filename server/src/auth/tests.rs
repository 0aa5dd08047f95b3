//! The guard over a file of users.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::HeaderValue;
use tempfile::TempDir;
use tokio::sync::OwnedSemaphorePermit;

use super::*;

/// A file of users, whose passwords are their names and `-password`.
pub(crate) struct Written {
    pub(crate) path: PathBuf,
    _dir: TempDir,
}

impl Written {
    pub(crate) fn new(names: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let written = Self { path: dir.path().join("users"), _dir: dir };
        written.write(names);
        written
    }

    pub(crate) fn write(&self, names: &[&str]) {
        let lines = names.iter().map(|name| line(name, &format!("{name}-password")));
        std::fs::write(&self.path, lines.collect::<String>()).unwrap();
    }
}

fn line(name: &str, password: &str) -> String {
    let salt = *blake3::hash(name.as_bytes()).as_bytes().first_chunk().unwrap();
    let hash = bcrypt::hash_with_salt(password, 4, salt).unwrap().format_for_version(bcrypt::Version::TwoY);
    format!("{name}:{hash}\n")
}

/// Headers with these credentials.
pub(crate) fn basic(name: &str, password: &str) -> HeaderMap {
    let value = format!("Basic {}", STANDARD.encode(format!("{name}:{password}")));
    HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::try_from(value).unwrap())])
}

/// A guard that compares one password at a time, and its users' file.
pub(crate) struct Guarded {
    pub(crate) guard: Guard,
    metrics: Arc<Metrics>,
    written: Written,
}

impl Guarded {
    pub(crate) fn new(anonymous: Rights) -> Self {
        let written = Written::new(&["alice", "bob"]);
        let metrics = Arc::new(Metrics::default());
        let options = Options { htpasswd_file: written.path.clone(), anonymous };
        let limits = Limits { comparing_max: 1, waiting_max: 2, wait_max: Duration::from_secs(10) };
        let guard = Guard::with_limits(&options, [3; 32], metrics.clone(), limits).unwrap();
        Self { guard, metrics, written }
    }

    /// As comparisons would that do not end.
    pub(crate) fn take_turns(&self) -> OwnedSemaphorePermit {
        self.guard.0.users.take_turns()
    }

    async fn check(&self, right: Right, headers: &HeaderMap) -> Result<Pass, Refusal> {
        match self.guard.check(Protocol::Grpc, right, headers) {
            Check::Now(checked) => checked,
            Check::Later(checked) => checked.await,
        }
    }

    /// What is counted: comparisons, and requests by what they came to.
    fn counted(&self) -> (u64, HashMap<String, u64>) {
        let page = self.metrics.page(0).unwrap();
        let number = |line: &str| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap();
        let comparisons = page.lines().find(|line| line.starts_with("blockstore_auth_comparisons_total ")).map(number).unwrap();
        let outcomes = page.lines().filter(|line| line.starts_with("blockstore_auth_total{") && line.contains("protocol=\"grpc\""));
        let outcomes = outcomes.filter(|line| number(line) > 0).map(|line| (line.split('"').nth(1).unwrap().to_owned(), number(line)));
        (comparisons, outcomes.collect())
    }
}

fn granted(name: &str) -> Result<Pass, Refusal> {
    Ok(Pass { rights: Rights::ALL, user: Some(name.into()) })
}

fn refused(why: Why, name: Option<&str>) -> Result<Pass, Refusal> {
    Err(Refusal { why, user: name.map(Into::into) })
}

#[tokio::test]
async fn who_is_right_may_do_everything_and_is_compared_once() {
    let guarded = Guarded::new(Rights::NONE);
    let alice = basic("alice", "alice-password");
    let (first, second) = tokio::join!(guarded.check(Right::Write, &alice), guarded.check(Right::Read, &alice));
    assert_eq!((first, second), (granted("alice"), granted("alice")));
    assert!(matches!(guarded.guard.check(Protocol::Grpc, Right::Write, &alice), Check::Now(Ok(_))));
    assert_eq!(guarded.check(Right::Write, &basic("bob", "bob-password")).await, granted("bob"));
    assert_eq!(guarded.counted(), (2, HashMap::from([("granted".into(), 4)])));
}

#[tokio::test]
async fn who_is_wrong_is_refused_whether_there_is_such_a_user_or_not() {
    for anonymous in [Rights::NONE, Rights::READ] {
        let guarded = Guarded::new(anonymous);
        for _ in 0..3 {
            assert_eq!(guarded.check(Right::Read, &basic("alice", "bob-password")).await, refused(Why::Wrong, Some("alice")));
            // The password of whom the name stands for does not help.
            for password in ["alice-password", "bob-password"] {
                assert_eq!(guarded.check(Right::Read, &basic("carol", password)).await, refused(Why::Wrong, None));
            }
        }
        let bearer = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static("Bearer YWxpY2U6YWxpY2UtcGFzc3dvcmQ="))]);
        assert_eq!(guarded.check(Right::Read, &bearer).await, refused(Why::Wrong, None));
        let mut twice = basic("alice", "alice-password");
        twice.append(header::AUTHORIZATION, twice[header::AUTHORIZATION].clone());
        assert_eq!(guarded.check(Right::Read, &twice).await, refused(Why::Wrong, None));
        // Each was compared with a hash once, an unknown name as well.
        assert_eq!(guarded.counted(), (3, HashMap::from([("wrong".into(), 11)])));
    }
}

#[tokio::test]
async fn who_sends_nothing_may_do_what_was_configured() {
    let guarded = Guarded::new(Rights::NONE);
    for right in [Right::Read, Right::Write] {
        assert_eq!(guarded.check(right, &HeaderMap::new()).await, refused(Why::Missing, None));
    }
    let guarded = Guarded::new(Rights::READ);
    assert_eq!(guarded.check(Right::Read, &HeaderMap::new()).await, Ok(Pass { rights: Rights::READ, user: None }));
    assert_eq!(guarded.check(Right::Write, &HeaderMap::new()).await, refused(Why::Missing, None));
    assert_eq!(guarded.counted(), (0, HashMap::from([("anonymous".into(), 1), ("missing".into(), 1)])));
}

#[test]
fn a_user_who_may_not_is_told_so() {
    let guarded = Guarded::new(Rights::NONE);
    let reader = Verdict::Right { user: "alice".into(), rights: Rights::READ };
    let decide = |right| guarded.guard.0.decide(Protocol::Grpc, right, reader.clone());
    assert_eq!(decide(Right::Read), Ok(Pass { rights: Rights::READ, user: Some("alice".into()) }));
    assert_eq!(decide(Right::Write), refused(Why::Forbidden, Some("alice")));
    assert_eq!(guarded.counted().1, HashMap::from([("granted".into(), 1), ("forbidden".into(), 1)]));
}

#[tokio::test]
async fn a_reload_counts_at_once_and_a_bad_file_not_at_all() {
    let guarded = Guarded::new(Rights::NONE);
    let check = async |name: &str, password: &str| guarded.check(Right::Write, &basic(name, password)).await;
    assert_eq!(check("alice", "alice-password").await, granted("alice"));
    assert_eq!(check("bob", "bob-password").await, granted("bob"));
    assert_eq!(check("carol", "carol-password").await, refused(Why::Wrong, None));
    assert_eq!(guarded.counted().0, 3);

    std::fs::write(&guarded.written.path, "alice:plain\n").unwrap();
    let said = guarded.guard.reload().unwrap_err();
    assert!(said.contains(":1: ") && said.contains("plain text"), "{said}");
    std::fs::remove_file(&guarded.written.path).unwrap();
    assert!(guarded.guard.reload().is_err());
    assert_eq!((check("alice", "alice-password").await, guarded.guard.users()), (granted("alice"), 2));
    assert_eq!(guarded.counted().0, 3);

    let lines = [line_of("alice"), line("bob", "another"), line_of("carol")].concat();
    std::fs::write(&guarded.written.path, lines).unwrap();
    assert_eq!(guarded.guard.reload(), Ok(3));
    assert_eq!(check("alice", "alice-password").await, granted("alice"));
    assert_eq!(guarded.counted().0, 3, "whose line is as it was is remembered");
    assert_eq!(check("bob", "bob-password").await, refused(Why::Wrong, Some("bob")));
    assert_eq!(check("bob", "another").await, granted("bob"));
    assert_eq!(check("carol", "carol-password").await, granted("carol"));
    guarded.written.write(&["bob"]);
    assert_eq!(guarded.guard.reload(), Ok(1));
    assert_eq!(check("alice", "alice-password").await, refused(Why::Wrong, None));
    assert_eq!(check("bob", "another").await, refused(Why::Wrong, Some("bob")));
    assert_eq!(check("bob", "bob-password").await, granted("bob"));
    let page = guarded.metrics.page(0).unwrap();
    for (outcome, n) in [("ok", 2), ("error", 2)] {
        assert!(page.contains(&format!("blockstore_auth_reloads_total{{outcome=\"{outcome}\"}} {n}\n")), "{page}");
    }
}

fn line_of(name: &str) -> String {
    line(name, &format!("{name}-password"))
}

#[tokio::test(start_paused = true)]
async fn waiting_is_bounded_in_number_and_in_time() {
    let guarded = Guarded::new(Rights::NONE);
    let users = &guarded.guard.0.users;
    let remembered = basic("bob", "bob-password");
    assert_eq!(guarded.check(Right::Write, &remembered).await, granted("bob"));
    let turns = guarded.take_turns();
    let asks = [basic("alice", "alice-password"), basic("alice", "a guess")];
    let waits: Vec<_> = asks.iter().map(|headers| guarded.guard.check(Protocol::Grpc, Right::Read, headers)).collect();
    assert!(waits.iter().all(|check| matches!(check, Check::Later(_))));
    assert_eq!(users.waiting(), 2);
    assert_eq!(guarded.check(Right::Read, &basic("alice", "another guess")).await, refused(Why::Busy, None));
    // The same credentials take no other place, and who is remembered waits for nobody.
    assert!(matches!(guarded.guard.check(Protocol::Grpc, Right::Read, &asks[0]), Check::Later(_)));
    assert_eq!(guarded.check(Right::Write, &remembered).await, granted("bob"));
    for check in waits {
        let Check::Later(checked) = check else { unreachable!() };
        assert_eq!(checked.await, refused(Why::Busy, None));
    }
    assert_eq!((users.waiting(), guarded.counted().0), (0, 1));
    drop(turns);
    assert_eq!(guarded.check(Right::Read, &asks[0]).await, granted("alice"));
    assert_eq!(guarded.check(Right::Read, &asks[1]).await, refused(Why::Wrong, Some("alice")));
}

#[tokio::test]
async fn who_goes_away_leaves_nothing_behind() {
    let guarded = Guarded::new(Rights::NONE);
    let alice = basic("alice", "alice-password");
    let Check::Later(checked) = guarded.guard.check(Protocol::Grpc, Right::Read, &alice) else { panic!("not compared") };
    drop(checked);
    while guarded.guard.0.users.waiting() > 0 {
        tokio::task::yield_now().await;
    }
    assert!(matches!(guarded.guard.check(Protocol::Grpc, Right::Read, &alice), Check::Now(Ok(_))));
}

#[test]
fn nothing_shows_a_hash_or_a_password() {
    let guarded = Guarded::new(Rights::READ);
    assert_eq!(format!("{:?}", guarded.guard), "Guard { users: 2, anonymous: Rights { read: true, write: false } }");
}
