//! What a path stands for.
//!
//! ```text
//! /healthz  /readyz
//! [/{instance…}]/cas/{hash}
//! [/{instance…}]/ac/{hash}
//! [/{instance…}]/kv[/{any name}]
//! ```
//!
//! Always true here: a path has one meaning. The first segment that is `cas`, `ac` or `kv` ends the instance, so that no instance has
//! such a segment, and a name may have as many as it likes.

use percent_encoding::percent_decode_str;
use thiserror::Error;

use crate::store::{Digest, DigestFunction, Instance};

/// The functions that a hash may be of here, told by its length; SHA256TREE and GITSHA1 have no name of their own in a path.
const FUNCTIONS: [DigestFunction; 6] = [
    DigestFunction::Sha256,
    DigestFunction::Sha1,
    DigestFunction::Md5,
    DigestFunction::Sha384,
    DigestFunction::Sha512,
    DigestFunction::Blake3,
];

/// Longest name of an entry in bytes.
pub(super) const NAME_BYTES_MAX: usize = 1024;

/// What a path stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Alive,
    Ready,
    Status,
    Metrics,
    Blob {
        instance: Instance,
        hash: Hash,
    },
    Action {
        instance: Instance,
        hash: Hash,
    },
    Entry {
        instance: Instance,
        /// Decoded. Empty for `/kv` itself, which is no entry.
        name: Vec<u8>,
    },
}

/// A hash of one function or another: its size in digits has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hash(String);

/// Why a path is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum PathError {
    #[error("path is none of [/instance]/cas/hash, [/instance]/ac/hash and [/instance]/kv/name")]
    Unknown,
    #[error("path has an empty segment")]
    EmptySegment,
    #[error("instance name is not UTF-8")]
    InstanceText,
    #[error("instance name is longer than {} bytes", Instance::BYTES_MAX)]
    InstanceLong,
    #[error("path does not end with a hash in lowercase hex, of 32, 40, 64, 96 or 128 digits")]
    Hash,
    #[error("name is longer than {NAME_BYTES_MAX} bytes")]
    NameLong,
}

impl Target {
    /// Reads a path as it stands in a request.
    pub(super) fn parse(path: &str) -> Result<Self, PathError> {
        match path {
            "/healthz" => return Ok(Self::Alive),
            "/readyz" => return Ok(Self::Ready),
            "/status" => return Ok(Self::Status),
            "/metrics" => return Ok(Self::Metrics),
            _ => {}
        }
        let path = path.strip_prefix('/').ok_or(PathError::Unknown)?;
        let mut before = Vec::new();
        let mut rest = path;
        loop {
            let (segment, behind) = match rest.split_once('/') {
                Some((segment, behind)) => (segment, Some(behind)),
                None => (rest, None),
            };
            let instance = || instance(&before);
            match (segment, behind) {
                ("cas", Some(hash)) => return Ok(Self::Blob { instance: instance()?, hash: Hash::parse(hash)? }),
                ("ac", Some(hash)) => return Ok(Self::Action { instance: instance()?, hash: Hash::parse(hash)? }),
                ("kv", name) => return Ok(Self::Entry { instance: instance()?, name: self::name(name.unwrap_or_default())? }),
                ("", Some(_)) => return Err(PathError::EmptySegment),
                (_, None) => return Err(PathError::Unknown),
                (segment, Some(behind)) => {
                    before.push(segment);
                    rest = behind;
                }
            }
        }
    }

    /// The methods that it answers, as `Allow` has them.
    pub(super) fn methods(&self) -> &'static str {
        match self {
            Self::Alive | Self::Ready | Self::Status | Self::Metrics => "GET, HEAD",
            Self::Blob { .. } | Self::Action { .. } => "GET, HEAD, PUT",
            Self::Entry { .. } => "GET, HEAD, PUT, DELETE, PROPFIND, MKCOL",
        }
    }
}

fn instance(segments: &[&str]) -> Result<Instance, PathError> {
    if segments.is_empty() {
        return Ok(Instance::new(""));
    }
    let name = segments.join("/");
    let name = percent_decode_str(&name).decode_utf8().map_err(|_| PathError::InstanceText)?;
    if name.len() > Instance::BYTES_MAX {
        return Err(PathError::InstanceLong);
    }
    Ok(Instance::new(&name))
}

fn name(raw: &str) -> Result<Vec<u8>, PathError> {
    let name: Vec<u8> = percent_decode_str(raw).collect();
    if name.len() > NAME_BYTES_MAX {
        return Err(PathError::NameLong);
    }
    Ok(name)
}

impl Hash {
    fn parse(hex: &str) -> Result<Self, PathError> {
        let hash = Self(hex.to_owned());
        if hash.digests(0, &FUNCTIONS).is_empty() {
            return Err(PathError::Hash);
        }
        Ok(hash)
    }

    /// In lowercase hex.
    pub(super) fn hex(&self) -> &str {
        &self.0
    }

    /// The blobs of that size that it may name, one for each function whose hashes are as long, the likeliest first.
    pub(super) fn digests(&self, size_bytes: u64, offered: &[DigestFunction]) -> Vec<Digest> {
        let fitting = FUNCTIONS.into_iter().filter(|function| function.hex_digits() == self.0.len() && offered.contains(function));
        fitting.filter_map(|function| Some(Digest::parse(function, self.0.as_bytes(), 0).ok()?.with_size(size_bytes))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn blob(instance: &str) -> Result<Target, PathError> {
        Ok(Target::Blob { instance: Instance::new(instance), hash: Hash(HEX.into()) })
    }

    fn entry(instance: &str, name: &[u8]) -> Result<Target, PathError> {
        Ok(Target::Entry { instance: Instance::new(instance), name: name.to_vec() })
    }

    #[test]
    fn an_instance_is_optional_and_may_have_several_segments() {
        for (before, instance) in [("", ""), ("/main", "main"), ("/a/b/c", "a/b/c"), ("/a%20b", "a b"), ("/blobs", "blobs")] {
            assert_eq!(Target::parse(&format!("{before}/cas/{HEX}")), blob(instance), "{before}");
            let action = Target::Action { instance: Instance::new(instance), hash: Hash(HEX.into()) };
            assert_eq!(Target::parse(&format!("{before}/ac/{HEX}")), Ok(action), "{before}");
            assert_eq!(Target::parse(&format!("{before}/kv/x")), entry(instance, b"x"), "{before}");
        }
    }

    #[test]
    fn names_are_free_and_the_first_keyword_counts() {
        assert_eq!(Target::parse(&format!("/kv/ac/{HEX}")), entry("", format!("ac/{HEX}").as_bytes()));
        assert_eq!(Target::parse("/a/kv/kv//b/"), entry("a", b"kv//b/"));
        assert_eq!(Target::parse("/kv/%00%ff"), entry("", &[0, 0xff]));
        assert_eq!(Target::parse("/kv"), entry("", b""));
        assert_eq!(Target::parse("/kv/"), entry("", b""));
        assert_eq!(Target::parse(&format!("/kv/{}", "x".repeat(1024))), entry("", &[b'x'; 1024]));
        assert_eq!(Target::parse(&format!("/kv/{}", "x".repeat(1025))), Err(PathError::NameLong));
        assert_eq!(Target::parse(&format!("/kv/{}", "%20".repeat(1024))), entry("", &[b' '; 1024]));
    }

    #[test]
    fn every_other_path_is_refused() {
        for path in ["*", "", "/", "/nothing", "/cas", "/a/ac", "/status/x"] {
            assert_eq!(Target::parse(path), Err(PathError::Unknown), "{path}");
        }
        for path in ["//cas/{}", "/a//cas/{}", "//kv/x"] {
            assert_eq!(Target::parse(&path.replace("{}", HEX)), Err(PathError::EmptySegment), "{path}");
        }
        let upper = HEX.to_uppercase();
        let wrong = [&HEX[1..], &upper, "", "x", &format!("{HEX}/"), &format!("{HEX}/3"), &format!("sha256/{HEX}"), &format!("cas/{HEX}")];
        for hash in wrong {
            assert_eq!(Target::parse(&format!("/cas/{hash}")), Err(PathError::Hash), "{hash}");
            assert_eq!(Target::parse(&format!("/ac/{hash}")), Err(PathError::Hash), "{hash}");
        }
        assert_eq!(Target::parse(&format!("/%ff/cas/{HEX}")), Err(PathError::InstanceText));
        assert_eq!(Target::parse(&format!("/{}/cas/{HEX}", "x".repeat(1025))), Err(PathError::InstanceLong));
    }

    #[test]
    fn the_functions_of_a_hash_are_told_by_its_length() {
        let functions = |digits: usize, offered: &[DigestFunction]| -> Vec<_> {
            let hash = Hash("a".repeat(digits));
            hash.digests(7, offered).into_iter().map(|digest| (digest.function, digest.size_bytes)).collect()
        };
        for (digits, function) in
            [(32, DigestFunction::Md5), (40, DigestFunction::Sha1), (96, DigestFunction::Sha384), (128, DigestFunction::Sha512)]
        {
            assert_eq!(functions(digits, &DigestFunction::ALL), [(function, 7)]);
        }
        assert_eq!(functions(64, &DigestFunction::ALL), [(DigestFunction::Sha256, 7), (DigestFunction::Blake3, 7)]);
        assert_eq!(functions(64, &[DigestFunction::Blake3]), [(DigestFunction::Blake3, 7)]);
        assert_eq!(functions(40, &[DigestFunction::Blake3]), []);
    }
}
