//! The directory of a bazel-remote, version 2 of its layout: which files are in it, and what they hold.
//!
//! ```text
//! cas.v2/ab/HASH-RANDOM.v1        a blob as it is
//! cas.v2/ab/HASH-SIZE-RANDOM      a skippable zstd frame that says size, compression and where chunks lie, then the blob, in zstd frames
//! ac.v2/ab/HASH-RANDOM            an action result
//! raw.v2/ab/HASH-RANDOM           what HTTP clients stored under an action's name, unchecked
//! ```
//! Always true here: nothing in the directory is changed; a blob counts only if its bytes have the SHA-256 that its name says, and no more
//! is decompressed than it may have; what was used longest ago comes first.

use crate::{import::Importer, output::Failure, progress};
use blockstore_names::{ActionKey, Digest, DigestFunction, Hasher, Instance, keys, value};
use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Magic number of the frame that a compressed blob begins with.
const SKIPPABLE_FRAME: u32 = 0x184D_2A50;
/// What is before the table of chunks: magic and length of the frame, size, compression, bytes of a chunk, number of offsets.
const HEAD_BYTES: usize = 4 + 4 + 8 + 1 + 4 + 8;
const STORED_AS_IT_IS: u8 = 0;
const ZSTD: u8 = 1;
/// Largest window that a blob may need: 2^27 bytes, what zstd's own tool takes.
const WINDOW_LOG_MAX: u32 = 27;
/// Largest action result that is read.
const RESULT_BYTES_MAX: u64 = 64 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Blob,
    Result,
}

/// What a file's name says.
#[derive(Debug, PartialEq, Eq)]
struct Name {
    hash: [u8; 32],
    /// Whether the bytes lie there as they are.
    is_plain: bool,
}

struct Found {
    used_s: i64,
    kind: Kind,
    name: Name,
    path: PathBuf,
}

/// Puts all that is in the directory into a store; action results become those of `instance`.
pub(crate) async fn import(importer: &mut Importer, directory: &Path, instance: &str) -> Result<(), Failure> {
    let instance = Instance::new(instance);
    let mut files = find(directory)?;
    // A result after the blobs of its time.
    files.sort_unstable_by_key(|found| (found.used_s, found.kind));
    let bar = progress::bytes("import", files.len() as u64);
    for Found { kind, name, path, .. } in files {
        bar.inc(1);
        let unreadable = |error: io::Error| Failure::cannot_open(format!("cannot read {}: {error}", path.display()));
        let file = match File::open(&path) {
            Ok(file) => file,
            // A bazel-remote that runs has evicted it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(unreadable(error)),
        };
        match kind {
            Kind::Blob => blob(importer, &name, file).await?,
            Kind::Result => {
                let mut result = Vec::new();
                file.take(RESULT_BYTES_MAX + 1).read_to_end(&mut result).map_err(unreadable)?;
                if result.len() as u64 > RESULT_BYTES_MAX {
                    importer.done.too_large += 1;
                    continue;
                }
                let Some(digest) = digest(&name.hash, 0) else { continue };
                let key = keys::action_key(&instance, &ActionKey { digest, size_known: false });
                importer.put(key, value::action_value(value::SIZE_UNKNOWN, &result)).await?;
            }
        }
    }
    bar.finish_and_clear();
    Ok(())
}

fn digest(hash: &[u8; 32], size_bytes: u64) -> Option<Digest> {
    Digest::new(DigestFunction::Sha256, hash, size_bytes).ok()
}

async fn blob(importer: &mut Importer, name: &Name, file: File) -> Result<(), Failure> {
    let (size_bytes, data) = match content(name, file) {
        Ok(content) => content,
        Err(_) => {
            importer.done.damaged += 1;
            return Ok(());
        }
    };
    let Some(expected) = digest(&name.hash, size_bytes).filter(|digest| digest.size_bytes > 0) else { return Ok(()) };
    let hasher = std::cell::RefCell::new(Some(Hasher::new(DigestFunction::Sha256, size_bytes)));
    let see = |data: &[u8]| {
        if let Some(hasher) = hasher.borrow_mut().as_mut() {
            hasher.update(data);
        }
    };
    let is_right = || hasher.borrow_mut().take().is_some_and(|hasher| hasher.finish() == expected);
    importer.put_content(keys::content_key(&expected), size_bytes, data, see, is_right).await
}

/// The size of the blob in a file, and its bytes.
fn content(name: &Name, mut file: File) -> io::Result<(u64, Box<dyn Read + Send>)> {
    let file_bytes = file.metadata()?.len();
    if name.is_plain {
        return Ok((file_bytes, Box::new(BufReader::new(file))));
    }
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_string());
    let mut head = [0; HEAD_BYTES];
    file.read_exact(&mut head)?;
    let word = |at: usize| head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes);
    if word(0) != SKIPPABLE_FRAME {
        return Err(bad("not a compressed blob"));
    }
    let size_bytes = u64::from(word(8)) | u64::from(word(12)) << 32;
    let frame_end = u64::from(word(4)) + 8;
    if frame_end >= file_bytes || size_bytes > i64::MAX as u64 {
        return Err(bad("impossible sizes"));
    }
    file.seek(SeekFrom::Start(frame_end))?;
    match head.get(16) {
        Some(&STORED_AS_IT_IS) => Ok((size_bytes, Box::new(BufReader::new(file)))),
        Some(&ZSTD) => {
            let mut decoder = zstd::stream::read::Decoder::new(file)?;
            decoder.window_log_max(WINDOW_LOG_MAX)?;
            Ok((size_bytes, Box::new(decoder)))
        }
        _ => Err(bad("unknown compression")),
    }
}

/// All files that have a name of their kind.
fn find(directory: &Path) -> Result<Vec<Found>, Failure> {
    let told = |path: &Path, error: io::Error| Failure::cannot_open(format!("cannot read {}: {error}", path.display()));
    if !directory.join("cas.v2").is_dir() {
        let older =
            if directory.join("cas").is_dir() { ": start a current bazel-remote on it once, which brings it to version 2" } else { "" };
        return Err(Failure::usage(format!("{} is no bazel-remote directory of version 2{older}", directory.display())));
    }
    let mut files = Vec::new();
    for (folder, kind) in [("cas.v2", Kind::Blob), ("ac.v2", Kind::Result), ("raw.v2", Kind::Result)] {
        let folder = directory.join(folder);
        let Ok(prefixes) = fs::read_dir(&folder) else { continue };
        for prefix in prefixes {
            let prefix = prefix.map_err(|error| told(&folder, error))?.path();
            if !prefix.is_dir() {
                continue;
            }
            for entry in fs::read_dir(&prefix).map_err(|error| told(&prefix, error))? {
                let entry = entry.map_err(|error| told(&prefix, error))?;
                let Some(name) = entry.file_name().to_str().and_then(|name| parse(name, kind)) else { continue };
                let Ok(metadata) = entry.metadata() else { continue };
                let used_s = metadata.atime().max(metadata.mtime());
                files.push(Found { used_s, kind, name, path: entry.path() });
            }
        }
    }
    Ok(files)
}

/// What a file's name says: `HASH[-SIZE]-RANDOM[.v1]`. `None`: it is none of theirs, or still being written.
fn parse(name: &str, kind: Kind) -> Option<Name> {
    let (stem, is_plain) = match name.strip_suffix(".v1") {
        Some(stem) => (stem, true),
        None => (name, kind == Kind::Result),
    };
    let words: Vec<&str> = stem.split('-').collect();
    let (hash, size, random) = match words.as_slice() {
        [hash, random] => (*hash, None, *random),
        [hash, size, random] => (*hash, Some(*size), *random),
        _ => return None,
    };
    let is_size = |size: &str| !size.starts_with('0') && !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_digit());
    let fits = size.is_none_or(is_size) && !random.is_empty() && random.bytes().all(|byte| byte.is_ascii_alphanumeric());
    // A compressed blob's name has its size, and nothing else's does.
    let form_fits = size.is_some() != is_plain;
    let lowercase = hash.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let hash = hex::decode(hash).ok()?.try_into().ok()?;
    (fits && form_fits && lowercase).then_some(Name { hash, is_plain })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_each_form_and_no_others() {
        let hash = "0a".repeat(32);
        let plain = Some(Name { hash: [10; 32], is_plain: true });
        let compressed = Some(Name { hash: [10; 32], is_plain: false });
        assert_eq!(parse(&format!("{hash}-123.v1"), Kind::Blob), plain);
        assert_eq!(parse(&format!("{hash}-77-aB3"), Kind::Blob), compressed);
        assert_eq!(parse(&format!("{hash}-998877"), Kind::Result), plain);
        for name in [
            hash.clone(),
            format!("{hash}-77"),
            format!("{hash}-07-1"),
            format!("{hash}-7-1-2"),
            format!("{hash}-7-x.v1"),
            format!("{hash}-"),
            format!("{}-1.v1", hash.to_uppercase()),
            format!("{}-1.v1", &hash[2..]),
            ".ds_store".into(),
        ] {
            assert_eq!(parse(&name, Kind::Blob), None, "{name}");
        }
    }
}
