//! What a well-formed action result is.
//!
//! Always true here: what passes has a digest for every output and every log that it names, so that whether it is complete can be found
//! out, and no path that a client could write to outside of its working directory's tree by an absolute name.

use blockstore_proto::reapi;
use bytes::Bytes;
use prost::Message;
use thiserror::Error;

use super::{Digest, DigestFunction};

/// Why bytes are no well-formed action result.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{field}: {why}")]
pub struct InvalidResult {
    /// The field of `ActionResult`; `action_result` for the whole.
    pub field: &'static str,
    /// What is wrong with it.
    pub why: String,
}

fn invalid(field: &'static str, why: impl ToString) -> InvalidResult {
    InvalidResult { field, why: why.to_string() }
}

/// The action result that the bytes are, if a reader can use it (Remote Execution API, `UpdateActionResult`).
///
/// # Errors
/// No message `ActionResult`, absolute or empty paths, outputs without a digest of that function.
pub fn parse(encoded: Bytes, function: DigestFunction) -> Result<reapi::ActionResult, InvalidResult> {
    let result = reapi::ActionResult::decode(encoded).map_err(|error| invalid("action_result", format!("malformed message: {error}")))?;
    validate(&result, function)?;
    Ok(result)
}

/// The blobs that a result names itself: outputs, trees and logs, not what is in trees.
pub fn named(result: &reapi::ActionResult, function: DigestFunction) -> impl Iterator<Item = Digest> {
    let files = result.output_files.iter().map(|file| &file.digest);
    let directories = result.output_directories.iter().flat_map(|directory| [&directory.tree_digest, &directory.root_directory_digest]);
    let digests = files.chain(directories).chain([&result.stdout_digest, &result.stderr_digest]).flatten();
    digests.filter_map(move |digest| Digest::parse(function, digest.hash.as_bytes(), digest.size_bytes).ok())
}

fn validate(result: &reapi::ActionResult, function: DigestFunction) -> Result<(), InvalidResult> {
    for file in &result.output_files {
        check_path("output_files.path", &file.path)?;
        let digest = file.digest.as_ref().ok_or_else(|| invalid("output_files.digest", "is required"))?;
        check_digest("output_files.digest", digest, function)?;
    }
    for directory in &result.output_directories {
        // The working directory itself has an empty path.
        if directory.path.starts_with('/') {
            return Err(invalid("output_directories.path", "is an absolute path"));
        }
        if directory.tree_digest.is_none() && directory.root_directory_digest.is_none() {
            return Err(invalid("output_directories.tree_digest", "is required"));
        }
        for (field, digest) in [
            ("output_directories.tree_digest", &directory.tree_digest),
            ("output_directories.root_directory_digest", &directory.root_directory_digest),
        ] {
            digest.iter().try_for_each(|digest| check_digest(field, digest, function))?;
        }
    }
    #[allow(deprecated)] // older clients fill the fields that output_symlinks replaced
    let symlinks = [
        ("output_symlinks", &result.output_symlinks),
        ("output_file_symlinks", &result.output_file_symlinks),
        ("output_directory_symlinks", &result.output_directory_symlinks),
    ];
    for (field, symlinks) in symlinks {
        for symlink in symlinks {
            check_path(field, &symlink.path)?;
            if symlink.target.is_empty() {
                return Err(invalid(field, "has a symlink without a target"));
            }
        }
    }
    for (field, digest) in [("stdout_digest", &result.stdout_digest), ("stderr_digest", &result.stderr_digest)] {
        digest.iter().try_for_each(|digest| check_digest(field, digest, function))?;
    }
    Ok(())
}

fn check_digest(field: &'static str, digest: &reapi::Digest, function: DigestFunction) -> Result<(), InvalidResult> {
    Digest::parse(function, digest.hash.as_bytes(), digest.size_bytes).map(drop).map_err(|error| invalid(field, error))
}

fn check_path(field: &'static str, path: &str) -> Result<(), InvalidResult> {
    match path.chars().next() {
        None => Err(invalid(field, "has an empty path")),
        Some('/') => Err(invalid(field, "has an absolute path")),
        Some(_) => Ok(()),
    }
}

/// A well-formed result, for the tests of who reads and writes results.
#[cfg(test)]
pub(crate) mod fixtures {
    use super::*;
    use crate::store::Hasher;

    pub(crate) const FUNCTION: DigestFunction = DigestFunction::Sha256;

    pub(crate) fn digest(data: &[u8]) -> Option<reapi::Digest> {
        let digest = Hasher::digest(FUNCTION, data);
        Some(reapi::Digest { hash: digest.hash_hex(), size_bytes: data.len() as i64 })
    }

    fn file(path: &str, data: &[u8]) -> reapi::OutputFile {
        reapi::OutputFile { path: path.into(), digest: digest(data), ..Default::default() }
    }

    pub(crate) fn result() -> reapi::ActionResult {
        reapi::ActionResult {
            output_files: vec![file("a/b", b"one"), file("c", b"two")],
            output_directories: vec![reapi::OutputDirectory { tree_digest: digest(b"tree"), ..Default::default() }],
            output_symlinks: vec![reapi::OutputSymlink { path: "l".into(), target: "/absolute/is/allowed".into(), ..Default::default() }],
            stdout_digest: digest(b"out"),
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        fixtures::{FUNCTION, result},
        *,
    };

    fn parsed(result: &reapi::ActionResult) -> Result<reapi::ActionResult, InvalidResult> {
        parse(result.encode_to_vec().into(), FUNCTION)
    }

    #[test]
    fn bytes_of_another_kind_are_no_result() {
        assert_eq!(parse(Bytes::from_static(b"cCrS\x01"), FUNCTION).unwrap_err().field, "action_result");
    }

    #[test]
    fn a_good_result_is_valid() {
        assert!(parsed(&result()).is_ok());
        assert!(parsed(&reapi::ActionResult::default()).is_ok());
    }

    #[test]
    fn a_bad_result_is_an_error_of_the_client() {
        type Spoil = fn(&mut reapi::ActionResult);
        let bad: [(&str, &str, Spoil); 10] = [
            ("absolute file", "output_files.path", |r| r.output_files[0].path = "/a".into()),
            ("file without a path", "output_files.path", |r| r.output_files[0].path.clear()),
            ("file without a digest", "output_files.digest", |r| r.output_files[1].digest = None),
            ("file with a bad digest", "output_files.digest", |r| r.output_files[1].digest.as_mut().unwrap().size_bytes = -1),
            ("absolute directory", "output_directories.path", |r| r.output_directories[0].path = "/d".into()),
            ("directory without a digest", "output_directories.tree_digest", |r| r.output_directories[0].tree_digest = None),
            ("absolute symlink", "output_symlinks", |r| r.output_symlinks[0].path = "/l".into()),
            ("symlink without a target", "output_symlinks", |r| r.output_symlinks[0].target.clear()),
            ("bad stdout", "stdout_digest", |r| r.stdout_digest = Some(reapi::Digest::default())),
            ("bad stderr", "stderr_digest", |r| r.stderr_digest = Some(reapi::Digest::default())),
        ];
        for (what, field, spoil) in bad {
            let mut result = result();
            spoil(&mut result);
            assert_eq!(parsed(&result).unwrap_err().field, field, "{what}");
        }
    }
}
