//! The real server beside the tool.

use blockstore_tests::daemon::{Daemon, Spec};
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The server's program, built like this test. Cargo names a test the programs of its own package only.
fn binary() -> &'static str {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    let built = BINARY.get_or_init(|| {
        let tool = Path::new(env!("CARGO_BIN_EXE_blockstore-tool"));
        let profile = tool.parent().unwrap();
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--offline", "-p", "blockstore-server", "--bin", "blockstored"]);
        build.arg("--target-dir").arg(profile.parent().unwrap());
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "blockstored is built");
        profile.join("blockstored")
    });
    built.to_str().unwrap()
}

/// A server on a store of 48 MiB in a directory.
pub(crate) fn spec(dir: &Path) -> Spec {
    Spec::new(binary()).dir(dir, "48MiB")
}

pub(crate) fn serve(dir: &Path) -> Daemon {
    spec(dir).start()
}
