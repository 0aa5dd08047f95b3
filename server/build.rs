//! Tells the program which commit it is built from.
//!
//! Always true here: a build without Git, or outside of a repository, is the same build with `unknown`; a debug build does not look, so
//! that a commit does not have everything built again. `BLOCKSTORE_COMMIT` in the environment wins, for whoever packages.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=BLOCKSTORE_COMMIT");
    let given = env::var("BLOCKSTORE_COMMIT").ok().filter(|commit| is_plain(commit));
    let release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = given.or_else(|| if release { commit() } else { None });
    println!("cargo:rustc-env=BLOCKSTORE_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
}

fn commit() -> Option<String> {
    // Written whenever the commit changes that is checked out.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    if Path::new(&log).exists() {
        println!("cargo:rerun-if-changed={log}");
    }
    git(&["rev-parse", "HEAD"]).filter(|commit| is_plain(commit))
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// Whether it may stand in a label and in a page.
fn is_plain(commit: &str) -> bool {
    !commit.is_empty() && commit.len() <= 64 && commit.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._+".contains(&byte))
}
