//! `blockstore-load` against the real daemon: every phase and every kind of operation does its work without an error, and what is
//! written as JSON says so.
//!
//! The daemon is another package's program: the one beside the tool, which `cargo test --workspace` builds, or what `BLOCKSTORED` names.

use blockstore_tests::daemon::{Daemon, Spec};
use std::{
    env, fs,
    path::Path,
    process::{Command, Output},
};
use tempfile::TempDir;

const TOOL: &str = env!("CARGO_BIN_EXE_blockstore-load");

fn daemon() -> String {
    let beside = || Path::new(TOOL).with_file_name("blockstored").to_str().expect("a path in UTF-8").to_owned();
    let daemon = env::var("BLOCKSTORED").unwrap_or_else(|_| beside());
    assert!(Path::new(&daemon).exists(), "{daemon} is not there: cargo build -p blockstore-server");
    daemon
}

/// A daemon, its folder, and where it answers, as arguments.
struct Server {
    daemon: Daemon,
    dir: TempDir,
}

impl Server {
    fn start(size: &str) -> Self {
        let dir = TempDir::new().expect("a directory");
        let daemon = Spec::new(&daemon()).dir(&dir.path().join("store"), size).args("--cache-size 16MiB").start();
        Self { daemon, dir }
    }

    /// Runs the tool with these arguments and `--json`; its output and what it wrote.
    fn load(&self, arguments: &str) -> (Output, serde_json::Value) {
        let path = self.dir.path().join("results.json");
        let arguments = arguments.replace("GRPC", &self.daemon.grpc.to_string()).replace("HTTP", &self.daemon.http.to_string());
        let output = tool(&format!("{arguments} --json {}", path.display()));
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{arguments}: {error}: {output:?}"));
        (output, serde_json::from_str(&text).expect("it is JSON"))
    }

    /// The same, which is to succeed.
    fn loaded(&self, arguments: &str) -> serde_json::Value {
        let (output, results) = self.load(arguments);
        assert!(output.status.success(), "{output:?}");
        results
    }
}

fn tool(arguments: &str) -> Output {
    Command::new(TOOL).args(arguments.split_whitespace()).output().expect("the tool starts")
}

/// Of these kinds, each is there with operations and without errors.
fn assert_worked(part: &serde_json::Value, kinds: &[&str]) {
    for kind in kinds {
        let found = part["kinds"].as_array().expect("a list").iter().find(|found| found["kind"] == *kind);
        let found = found.unwrap_or_else(|| panic!("no {kind}: {part:#}"));
        assert!(found["operations"].as_u64() > Some(0) && found["errors"] == 0, "{found:#}");
    }
}

fn misses(part: &serde_json::Value, kind: &str) -> u64 {
    let found = part["kinds"].as_array().expect("a list").iter().find(|found| found["kind"] == kind);
    found.expect("it was done")["misses"].as_u64().expect("a count")
}

#[test]
fn every_phase_of_the_goals_works() {
    let server = Server::start("3GiB");
    // The process of the test stands for the server's: any will do to have figures.
    let pid = std::process::id();
    let arguments = format!("goals --remote GRPC --http HTTP --seconds 0.05 --runs 1 --upload-bytes-max 16MiB --server-pid {pid}");
    let (output, results) = server.load(&arguments);
    assert!(output.status.success(), "{output:?}");
    let phases = results["phases"].as_array().expect("a list");
    assert_eq!(phases.len(), 16, "{results:#}");
    let table = String::from_utf8(output.stdout).expect("text");
    assert!(table.contains("GB/s"), "{table}");
    for phase in phases {
        let run = &phase["runs"][0];
        assert_eq!(run["errors"], 0, "{phase:#}");
        let done = ["operations", "units", "bytes"].map(|count| run[count].as_u64().expect("a count"));
        assert!(done.iter().all(|count| *count > 0), "{phase:#}");
        assert!(run["server"]["memory_bytes_max"].as_u64() > Some(1 << 20), "{phase:#}");
        let name = phase["phase"].as_str().expect("a name");
        assert!(table.lines().any(|line| line.starts_with(name)), "{name} is not in {table}");
    }
}

#[test]
fn what_goals_wrote_is_compared() {
    let server = Server::start("1GiB");
    server.loaded("goals --remote GRPC --seconds 0.05 --runs 2 --only ac-get,find-miss");
    let path = server.dir.path().join("results.json");
    let same = tool(&format!("compare {0} {0} --worse-than 1", path.display()));
    assert!(same.status.success() && String::from_utf8_lossy(&same.stdout).contains("ac-get"), "{same:?}");
    let slower = server.dir.path().join("slower.json");
    let mut results = read(&path);
    for run in results["phases"][0]["runs"].as_array_mut().expect("a list") {
        run["units_per_s"] = (run["units_per_s"].as_f64().expect("a number") / 2.0).into();
    }
    fs::write(&slower, results.to_string()).unwrap();
    let compare = |factor| tool(&format!("compare {} {} --worse-than {factor}", path.display(), slower.display())).status.code();
    assert_eq!((compare("1.9"), compare("2.1")), (Some(1), Some(0)));
}

#[test]
fn a_mixture_works_over_both_protocols() {
    let server = Server::start("1GiB");
    let both = "run --remote GRPC --http HTTP --sizes 300:6,40KiB:3,1MiB:1 --connections 2";
    let results = server.loaded(&format!("{both} --seconds 1 --keys 500 --fill --writes 0"));
    assert_eq!(misses(&results["total"], "get"), 0, "all was written before: {results:#}");
    assert_worked(&results["total"], &["get", "find", "ac-put", "ac-get"]);
    assert_worked(&results["fill"], &["put"]);
    assert!(results["first_tenth"].is_object() && results["last_tenth"].is_object(), "{results:#}");
    let results = server.loaded(&format!("{both} --seconds 1 --keys 100 --writes 50"));
    assert_worked(&results["total"], &["put", "get", "find", "ac-put", "ac-get"]);
}

#[test]
fn a_trace_is_replayed() {
    let server = Server::start("1GiB");
    let path = server.dir.path().join("trace");
    fs::write(
        &path,
        "# one at a time\nget 40KiB 1\nput 40KiB 1\nget 40KiB 1\nac-get 0 2\nput 9 2\nac-put 9 2\nac-get 9 2\nfind 9 3\nfind 9 2\n",
    )
    .unwrap();
    for way in ["--remote GRPC", "--http HTTP"] {
        let results = server.loaded(&format!("run {way} --trace {} --in-flight 1", path.display()));
        let total = &results["total"];
        let counts: Vec<_> =
            total["kinds"].as_array().expect("a list").iter().map(|kind| (kind["operations"].as_u64(), kind["misses"].as_u64())).collect();
        let count = |operations, misses| (Some(operations), Some(misses));
        assert_eq!(counts, [count(2, 0), count(2, 1), count(2, 1), count(1, 0), count(2, 1)], "{way}: {total:#}");
    }
    let wrong = server.dir.path().join("wrong");
    fs::write(&wrong, "put 9 2\nput 9\n").unwrap();
    let output = tool(&format!("run --remote {} --trace {}", server.daemon.grpc, wrong.display()));
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("line 2"), "{output:?}");
}

#[test]
fn what_a_server_lost_is_missed_and_written_again() {
    let server = Server::start("1GiB");
    let results = server.loaded("run --remote GRPC --seconds 1 --keys 50 --writes 0 --zipf 0 --in-flight 1");
    let total = &results["total"];
    assert!((1..=50).contains(&misses(total, "get")), "each key is missed until it was written: {total:#}");
    assert_worked(total, &["put", "get", "find", "ac-put", "ac-get"]);
}

/// A store whose every blob is damaged on disk would be misses; what counts as an error is another blob under the name. A server that
/// answers so is made up here.
#[test]
fn wrong_bytes_are_errors() {
    use std::io::{BufRead, BufReader, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().expect("a socket has handles")).lines();
                while let Some(Ok(line)) = lines.next() {
                    if line.is_empty() && (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nwrong one").is_err() {
                        return;
                    }
                }
            });
        }
    });
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("results.json");
    let arguments = "--seconds 60 --writes 0 --actions 0 --finds 0 --sizes 9 --in-flight 2";
    let output = tool(&format!("run --http {address} {arguments} --json {}", path.display()));
    assert!(!output.status.success(), "{output:?}");
    let results = read(&path);
    assert!(results["total"]["kinds"][0]["errors"].as_u64() >= Some(100), "{results:#}");
    assert_eq!(results["first_error"], "get: wrong bytes from 0 on");
}

fn read(path: &Path) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(path).expect("it was written")).expect("it is JSON")
}
