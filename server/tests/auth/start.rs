//! Files of users with which the server does not start.

use crate::{
    server::spec,
    users::{ALICE, BOB, spec_with},
};
use tempfile::TempDir;

#[test]
fn a_file_that_is_wrong_is_refused_with_its_line_and_what_would_be_right() {
    for (text, named) in [
        (format!("{ALICE}\nbob\n"), "users:3: this is no name, colon and hash; `htpasswd -B` writes such lines"),
        (
            format!("{ALICE}bob:$apr1$abcdefgh$7WQjTIDkIRUI7VGQpNNWv.\n"),
            "users:2: an MD5 hash is guessed too quickly; make the line again with",
        ),
        (format!("# us\n{BOB}{ALICE}{BOB}"), "users:4: line 2 has the same user"),
        ("alice:wonderland\n".into(), "users:1: this is a password in plain text"),
        ("# nobody\n".into(), "there is no user in it"),
    ] {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let line = spec_with(&dir, &text).refusal();
        assert!(line.contains("--htpasswd-file") && line.contains(named) && !line.contains("wonderland"), "{line}");
        assert!(!dir.path().join("store.blockstore").exists(), "nothing was made on disk");
    }
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let line = spec(&dir).arg("--htpasswd-file").arg(dir.path().join("nowhere")).refusal();
    assert!(line.contains("nowhere: cannot open: ") && line.contains("htpasswd -cB"), "{line}");
    let line = spec(&dir).args("--anonymous read").refusal();
    assert!(line.contains("--anonymous goes with --htpasswd-file"), "{line}");
}
