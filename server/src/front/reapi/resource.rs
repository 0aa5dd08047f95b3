//! Resource names of `google.bytestream` as the Remote Execution API builds them.
//!
//! ```text
//! [{instance}/]blobs/[{function}/]{hash}/{size}
//! [{instance}/]compressed-blobs/{compressor}/[{function}/]{hash}/{size}
//! [{instance}/]uploads/{uuid}/…either of these…[/{anything}]
//! ```
//!
//! Always true here: what is tolerated beyond that is listed at [`parse_read`] and [`parse_write`]; everything else is
//! refused with a reason. An instance name never has a reserved segment, so that a name has one meaning.

use std::borrow::Cow;

use thiserror::Error;

use crate::store::{Digest, DigestError, DigestFunction, Instance};

/// Longest resource name in bytes.
pub(super) const NAME_BYTES_MAX: usize = 4096;

/// Segments that no instance name may have (Remote Execution API).
const RESERVED: [&str; 7] = ["blobs", "uploads", "actions", "actionResults", "operations", "capabilities", "compressed-blobs"];

/// How the bytes are encoded on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Identity,
    Zstd,
}

/// A blob that a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BlobName {
    pub(super) instance: Instance,
    pub(super) compression: Compression,
    /// Of the uncompressed blob.
    pub(super) digest: Digest,
}

/// An upload that a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UploadName {
    pub(super) uuid: String,
    pub(super) blob: BlobName,
}

/// Why a name is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum NameError {
    #[error("resource name is longer than {NAME_BYTES_MAX} bytes")]
    TooLong,
    #[error("resource name has an empty segment")]
    EmptySegment,
    #[error("resource name has no `{0}` segment")]
    NoKeyword(&'static str),
    #[error("instance name in the resource name has the reserved segment `{0}`")]
    Reserved(&'static str),
    #[error("resource name ends before its {0}")]
    Incomplete(&'static str),
    #[error("resource name goes on after the size")]
    Trailing,
    #[error("compressor of the resource name is not known")]
    Compressor,
    #[error("digest function of the resource name is not offered")]
    Function,
    #[error("size in the resource name is not a number of bytes")]
    Size,
    #[error("digest in the resource name: {0}")]
    Digest(#[from] DigestError),
}

/// Parses the name of a read. Tolerated: one leading slash, and an explicit segment for a function that needs none
/// (`blobs/sha256/…`).
pub(super) fn parse_read<'f>(name: &str, offered: impl FnOnce(&Instance) -> Cow<'f, [DigestFunction]>) -> Result<BlobName, NameError> {
    let segments = segments(name)?;
    let at = segments.iter().position(|s| matches!(*s, "blobs" | "compressed-blobs")).ok_or(NameError::NoKeyword("blobs"))?;
    let (instance, rest) = segments.split_at(at);
    let (blob, trailing) = parse_blob(instance, rest, offered)?;
    if !trailing.is_empty() {
        return Err(NameError::Trailing);
    }
    Ok(blob)
}

/// Parses the name of a write. Tolerated as for reads, and anything behind the size.
pub(super) fn parse_write<'f>(name: &str, offered: impl FnOnce(&Instance) -> Cow<'f, [DigestFunction]>) -> Result<UploadName, NameError> {
    let segments = segments(name)?;
    let at = segments.iter().position(|s| *s == "uploads").ok_or(NameError::NoKeyword("uploads"))?;
    let (instance, rest) = segments.split_at(at);
    let (uuid, rest) = match rest {
        [_, uuid, rest @ ..] => (*uuid, rest),
        _ => return Err(NameError::Incomplete("upload id")),
    };
    let (blob, _) = parse_blob(instance, rest, offered)?;
    Ok(UploadName { uuid: uuid.to_owned(), blob })
}

fn segments(name: &str) -> Result<Vec<&str>, NameError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong);
    }
    let segments: Vec<_> = name.strip_prefix('/').unwrap_or(name).split('/').collect();
    if segments.contains(&"") {
        return Err(NameError::EmptySegment);
    }
    Ok(segments)
}

/// Parses from the keyword on; what follows the size is given back. `offered` tells the functions of an instance, in the order in
/// which one that is not named is guessed.
fn parse_blob<'a, 'b, 'f>(
    instance: &[&str],
    segments: &'b [&'a str],
    offered: impl FnOnce(&Instance) -> Cow<'f, [DigestFunction]>,
) -> Result<(BlobName, &'b [&'a str]), NameError> {
    for reserved in RESERVED {
        if instance.contains(&reserved) {
            return Err(NameError::Reserved(reserved));
        }
    }
    let (compression, rest) = match segments {
        ["blobs", rest @ ..] => (Compression::Identity, rest),
        ["compressed-blobs", compressor, rest @ ..] => match *compressor {
            "zstd" => (Compression::Zstd, rest),
            _ => return Err(NameError::Compressor),
        },
        ["compressed-blobs"] => return Err(NameError::Incomplete("compressor")),
        _ => return Err(NameError::NoKeyword("blobs")),
    };
    let (named, rest) = match rest {
        [name, rest @ ..] => match DigestFunction::from_name(name) {
            Some(function) => (Some(function), rest),
            None => (None, segments.get(segments.len() - rest.len() - 1..).unwrap_or_default()),
        },
        [] => return Err(NameError::Incomplete("hash")),
    };
    let (hash, size, trailing) = match rest {
        [hash, size, trailing @ ..] => (*hash, *size, trailing),
        [_] => return Err(NameError::Incomplete("size")),
        [] => return Err(NameError::Incomplete("hash")),
    };
    let instance = Instance::new(&instance.join("/"));
    let offered = offered(&instance);
    let function = match named {
        Some(function) if offered.contains(&function) => function,
        Some(_) => return Err(NameError::Function),
        None => by_length(hash.len(), &offered).ok_or(NameError::Function)?,
    };
    // `parse` would take a sign.
    if !size.bytes().all(|b| b.is_ascii_digit()) {
        return Err(NameError::Size);
    }
    let size_bytes = size.parse::<i64>().map_err(|_| NameError::Size)?;
    let digest = Digest::parse(function, hash.as_bytes(), size_bytes)?;
    Ok((BlobName { instance, compression, digest }, trailing))
}

/// The function of a hash of that many digits when none was named: the first offered one whose length fits.
pub(super) fn by_length(digits: usize, offered: &[DigestFunction]) -> Option<DigestFunction> {
    offered.iter().copied().find(|function| function.hex_digits() == digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA256: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const SHA1: &str = "a9993e364706816aba3e25717850c26c9cd0d89d";

    fn read(name: &str) -> Result<BlobName, NameError> {
        parse_read(name, |_| DigestFunction::ALL.as_slice().into())
    }

    fn write(name: &str) -> Result<UploadName, NameError> {
        parse_write(name, |_| DigestFunction::ALL.as_slice().into())
    }

    fn blob(instance: &str, function: DigestFunction, hash: &str, size: i64) -> BlobName {
        BlobName {
            instance: Instance::new(instance),
            compression: Compression::Identity,
            digest: Digest::parse(function, hash.as_bytes(), size).unwrap(),
        }
    }

    #[test]
    fn plain_names() {
        let sha256 = DigestFunction::Sha256;
        assert_eq!(read(&format!("main/blobs/{SHA256}/3")), Ok(blob("main", sha256, SHA256, 3)));
        let upload = write(&format!("main/uploads/u-1/blobs/{SHA256}/3")).unwrap();
        assert_eq!(upload.blob, blob("main", sha256, SHA256, 3));
        assert_eq!(upload.uuid, "u-1");
    }

    #[test]
    fn an_instance_may_be_empty_or_have_several_segments() {
        let sha256 = DigestFunction::Sha256;
        assert_eq!(read(&format!("blobs/{SHA256}/3")), Ok(blob("", sha256, SHA256, 3)));
        assert_eq!(read(&format!("a/b/c/blobs/{SHA256}/3")), Ok(blob("a/b/c", sha256, SHA256, 3)));
        assert!(write(&format!("uploads/u/blobs/{SHA256}/3")).is_ok());
    }

    #[test]
    fn one_leading_slash_is_tolerated_and_no_empty_segment_inside() {
        let expected = blob("", DigestFunction::Sha256, SHA256, 3);
        assert_eq!(read(&format!("/blobs/{SHA256}/3")), Ok(expected.clone()));
        assert_eq!(write(&format!("/uploads/u/blobs/{SHA256}/3")).unwrap().blob, expected);
        for name in ["//blobs/{}/3", "a//blobs/{}/3", "blobs//{}/3", "blobs/{}//3", "blobs/{}/3/", ""] {
            let name = name.replace("{}", SHA256);
            assert_eq!(read(&name), Err(NameError::EmptySegment), "{name}");
        }
    }

    #[test]
    fn the_function_is_named_or_known_by_its_length() {
        let functions = [
            ("sha256/", SHA256, DigestFunction::Sha256),
            ("blake3/", SHA256, DigestFunction::Blake3),
            ("sha256tree/", SHA256, DigestFunction::Sha256Tree),
            ("gitsha1/", SHA1, DigestFunction::GitSha1),
            ("", SHA256, DigestFunction::Sha256),
            ("", SHA1, DigestFunction::Sha1),
            ("sha1/", SHA1, DigestFunction::Sha1),
        ];
        for (segment, hash, function) in functions {
            assert_eq!(read(&format!("blobs/{segment}{hash}/3")), Ok(blob("", function, hash, 3)));
        }
        let only_blake3 = |_: &Instance| Cow::Borrowed([DigestFunction::Blake3].as_slice());
        let name = format!("blobs/{SHA256}/3");
        assert_eq!(parse_read(&name, only_blake3).unwrap().digest.function, DigestFunction::Blake3);
        let name = format!("blobs/sha256/{SHA256}/3");
        assert_eq!(parse_read(&name, only_blake3), Err(NameError::Function));
        assert!(read(&format!("blobs/sha1/{SHA256}/3")).is_err());
        assert!(read(&format!("blobs/gitsha1/{SHA256}/3")).is_err());
        for unknown in ["murmur3", "vso", "SHA256", "unknown"] {
            assert!(read(&format!("blobs/{unknown}/{SHA256}/3")).is_err(), "{unknown}");
        }
    }

    #[test]
    fn metadata_may_follow_the_size_of_a_write_only() {
        let name = format!("uploads/u/blobs/{SHA256}/3/some/file.txt");
        assert_eq!(write(&name).unwrap().blob, blob("", DigestFunction::Sha256, SHA256, 3));
        // What follows is opaque: keywords in it mean nothing.
        assert!(write(&format!("uploads/u/blobs/{SHA256}/3/uploads/blobs")).is_ok());
        assert_eq!(read(&format!("blobs/{SHA256}/3/x")), Err(NameError::Trailing));
    }

    #[test]
    fn reserved_segments_are_no_part_of_an_instance() {
        for reserved in ["actions", "actionResults", "operations", "capabilities"] {
            let name = format!("a/{reserved}/blobs/{SHA256}/3");
            assert_eq!(read(&name), Err(NameError::Reserved(reserved)));
            let name = format!("a/{reserved}/uploads/u/blobs/{SHA256}/3");
            assert_eq!(write(&name), Err(NameError::Reserved(reserved)));
        }
        assert_eq!(read(&format!("uploads/u/blobs/{SHA256}/3")), Err(NameError::Reserved("uploads")));
        assert_eq!(write(&format!("blobs/uploads/u/blobs/{SHA256}/3")), Err(NameError::Reserved("blobs")));
    }

    #[test]
    fn compressed_names() {
        let name = read(&format!("i/compressed-blobs/zstd/{SHA256}/3")).unwrap();
        assert_eq!(name.compression, Compression::Zstd);
        assert_eq!(name.digest, blob("", DigestFunction::Sha256, SHA256, 3).digest);
        let name = write(&format!("uploads/u/compressed-blobs/zstd/blake3/{SHA256}/3/x")).unwrap();
        assert_eq!(name.blob.digest.function, DigestFunction::Blake3);
        assert_eq!(read(&format!("compressed-blobs/brotli/{SHA256}/3")), Err(NameError::Compressor));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(read("main"), Err(NameError::NoKeyword("blobs")));
        assert_eq!(read("blobs"), Err(NameError::Incomplete("hash")));
        assert_eq!(read("blobs/sha256"), Err(NameError::Incomplete("hash")));
        assert_eq!(read(&format!("blobs/{SHA256}")), Err(NameError::Incomplete("size")));
        assert_eq!(read("compressed-blobs"), Err(NameError::Incomplete("compressor")));
        assert_eq!(write("uploads"), Err(NameError::Incomplete("upload id")));
        assert_eq!(write("uploads/u"), Err(NameError::NoKeyword("blobs")));
        assert_eq!(write(&format!("blobs/{SHA256}/3")), Err(NameError::NoKeyword("uploads")));
        for size in ["-1", "+3", "3x", "99999999999999999999"] {
            assert_eq!(read(&format!("blobs/{SHA256}/{size}")), Err(NameError::Size));
        }
        let upper = SHA256.to_uppercase();
        assert_eq!(read(&format!("blobs/{upper}/3")), Err(DigestError::NotHex.into()));
        assert_eq!(read(&"x/".repeat(3000)), Err(NameError::TooLong));
    }
}
