//! Blobs that an input can speak of: some are in the store from the start, others are not.

use std::sync::LazyLock;

use blockstore_proto::reapi;
use bytes::Bytes;
use prost::Message;

use super::source::Source;
use crate::store::{Digest, DigestFunction, Hasher};

/// A blob, and whether the store has it before an input begins.
pub(super) struct KnownBlob {
    pub(super) data: Bytes,
    /// Its digest in every function.
    pub(super) digests: Vec<Digest>,
    pub(super) stored: bool,
}

impl KnownBlob {
    pub(super) fn digest(&self, function: DigestFunction) -> Digest {
        *self.digests.iter().find(|digest| digest.function == function).expect("one for each function")
    }
}

/// All of them.
pub(super) struct Known {
    blobs: Vec<KnownBlob>,
}

const INSTANCES: [&str; 6] = ["", "main", "a/b", "..", "blobs", "\u{e9}"];
const WORDS: [&str; 10] = ["", "a", "/etc/passwd", "../../x", "a/../b", "\u{1f980}", "a\0b", "%2e%2e", "zstd", "x\r\ny: z"];
const FUNCTION_SEGMENTS: [&str; 6] = ["", "sha256/", "blake3/", "sha256tree/", "gitsha1/", "nothing/"];

impl Known {
    /// Made once.
    pub(super) fn all() -> &'static Self {
        static ALL: LazyLock<Known> = LazyLock::new(Known::new);
        &ALL
    }

    fn new() -> Self {
        let pattern = |len: usize| -> Bytes { (0..len).map(|i| (i * 37 + (i >> 8) * 5 + len) as u8).collect() };
        let leaf = pattern(300);
        let name = |data: &[u8]| Some(wire(&Hasher::digest(DigestFunction::Sha256, data)));
        let inner = reapi::Directory {
            files: vec![reapi::FileNode { name: "f".into(), digest: name(&leaf), ..Default::default() }],
            ..Default::default()
        };
        let inner_bytes = inner.encode_to_vec();
        let outer = reapi::Directory {
            directories: vec![reapi::DirectoryNode { name: "d".into(), digest: name(&inner_bytes) }],
            ..Default::default()
        };
        let tree = reapi::Tree { root: Some(outer.clone()), children: vec![inner] };
        let stored = [leaf, inner_bytes.into(), outer.encode_to_vec().into(), tree.encode_to_vec().into(), pattern(70_000)];
        let others = [Bytes::new(), pattern(100), pattern(5000), pattern(1_200_000)];
        let blob = |stored| {
            move |data: Bytes| {
                let digests = DigestFunction::ALL.iter().map(|&function| Hasher::digest(function, &data)).collect();
                KnownBlob { data, digests, stored }
            }
        };
        Self { blobs: stored.map(blob(true)).into_iter().chain(others.map(blob(false))).collect() }
    }

    pub(super) fn blobs(&self) -> &[KnownBlob] {
        &self.blobs
    }

    /// The digest of one of the blobs, rather of SHA-256 than of another function.
    pub(super) fn digest(&self, source: &mut Source<'_>) -> Digest {
        let function = match source.below(3) {
            2 => *source.one_of(&DigestFunction::ALL),
            _ => DigestFunction::Sha256,
        };
        source.one_of(&self.blobs).digest(function)
    }

    /// Something where a hash belongs.
    pub(super) fn hash(&self, source: &mut Source<'_>) -> String {
        let right = self.digest(source).hash_hex();
        match source.below(10) {
            6 => right.to_uppercase(),
            7 => right[..source.below(right.len())].to_owned(),
            8 => "0".repeat(source.below(200)),
            9 => self.word(source),
            _ => right,
        }
    }

    /// Something where a name belongs.
    pub(super) fn word(&self, source: &mut Source<'_>) -> String {
        match source.below(8) {
            5 => String::from_utf8_lossy(source.bytes()).into_owned(),
            6 => "x".repeat(source.below(256) * 40),
            7 => self.hash_like(source),
            _ => (*source.one_of(&WORDS)).to_owned(),
        }
    }

    fn hash_like(&self, source: &mut Source<'_>) -> String {
        self.digest(source).hash_hex()
    }

    pub(super) fn instance(&self, source: &mut Source<'_>) -> String {
        match source.below(8) {
            7 => self.word(source),
            n => INSTANCES[n % INSTANCES.len()].to_owned(),
        }
    }

    /// Something where the name of a blob or of an upload belongs.
    pub(super) fn resource_name(&self, source: &mut Source<'_>) -> String {
        let digest = self.digest(source);
        let instance = match source.below(3) {
            0 => String::new(),
            _ => self.instance(source) + "/",
        };
        let kind = source.one_of(&["uploads/u/blobs/", "blobs/", "compressed-blobs/zstd/", "uploads/u/compressed-blobs/zstd/", "uploads/"]);
        let segment = match digest.function {
            DigestFunction::Blake3 => "blake3/",
            DigestFunction::Sha256Tree => "sha256tree/",
            DigestFunction::GitSha1 => "gitsha1/",
            _ => "",
        };
        let segment = if source.rarely(8) { *source.one_of(&FUNCTION_SEGMENTS) } else { segment };
        let hash = if source.rarely(8) { self.hash(source) } else { digest.hash_hex() };
        let size = if source.rarely(6) { (source.number() as i64).to_string() } else { digest.size_bytes.to_string() };
        let mut name = format!("{instance}{kind}{segment}{hash}/{size}");
        match source.below(12) {
            8 => name.insert(0, '/'),
            9 => name.push_str("/more/of/it"),
            10 => name = name.replace('/', "//"),
            11 => return self.word(source),
            _ => {}
        }
        name
    }

    /// Bytes of a blob, as they are, compressed, in part, or none that it has.
    pub(super) fn data(&self, source: &mut Source<'_>) -> Bytes {
        let whole = source.one_of(&self.blobs).data.clone();
        match source.below(8) {
            3 => zstd::bulk::compress(&whole, 1).unwrap_or_default().into(),
            4 => whole.slice(..whole.len() / (1 + source.below(5))),
            5 => Bytes::copy_from_slice(source.bytes()),
            6 => {
                let mut frame = zstd::bulk::compress(&whole, 1).unwrap_or_default();
                if let Some(at) = source.below(256).checked_rem(frame.len()) {
                    frame[at] ^= 1 << source.below(8);
                }
                frame.into()
            }
            7 => Bytes::new(),
            _ => whole,
        }
    }
}

pub(super) fn wire(digest: &Digest) -> reapi::Digest {
    reapi::Digest { hash: digest.hash_hex(), size_bytes: digest.size_bytes as i64 }
}
