//! Computing digests, one pass over the bytes as they arrive.

use sha2::Digest as _;

use super::digest::{Digest, DigestFunction};

mod tree;

use tree::Sha256Tree;

/// The state of one digest computation.
pub struct Hasher {
    state: State,
    size_bytes: u64,
}

enum State {
    Sha256(sha2::Sha256),
    Sha1(sha1::Sha1),
    Md5(md5::Md5),
    Sha384(sha2::Sha384),
    Sha512(sha2::Sha512),
    Sha256Tree(Box<Sha256Tree>),
    Blake3(Box<blake3::Hasher>),
    GitSha1(sha1::Sha1),
}

impl Hasher {
    /// Starts a computation for bytes that shall be this many: Git's function hashes the size first. If they turn out to be
    /// others, so does the size of the digest.
    pub fn new(function: DigestFunction, size_bytes: u64) -> Self {
        let state = match function {
            DigestFunction::Sha256 => State::Sha256(sha2::Sha256::new()),
            DigestFunction::Sha1 => State::Sha1(sha1::Sha1::new()),
            DigestFunction::Md5 => State::Md5(md5::Md5::new()),
            DigestFunction::Sha384 => State::Sha384(sha2::Sha384::new()),
            DigestFunction::Sha512 => State::Sha512(sha2::Sha512::new()),
            DigestFunction::Sha256Tree => State::Sha256Tree(Box::default()),
            DigestFunction::Blake3 => State::Blake3(Box::default()),
            DigestFunction::GitSha1 => State::GitSha1(sha1::Sha1::new_with_prefix(format!("blob {size_bytes}\0"))),
        };
        Self { state, size_bytes: 0 }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, data: &[u8]) {
        self.size_bytes += data.len() as u64;
        match &mut self.state {
            State::Sha256(h) => h.update(data),
            State::Sha1(h) | State::GitSha1(h) => h.update(data),
            State::Md5(h) => h.update(data),
            State::Sha384(h) => h.update(data),
            State::Sha512(h) => h.update(data),
            State::Sha256Tree(h) => h.update(data),
            State::Blake3(h) => {
                h.update(data);
            }
        }
    }

    /// The digest of all bytes taken.
    pub fn finish(self) -> Digest {
        let size_bytes = self.size_bytes;
        let digest = |function, hash: &[u8]| Digest::new(function, hash, size_bytes).expect("a function makes hashes of its length");
        match self.state {
            State::Sha256(h) => digest(DigestFunction::Sha256, &h.finalize()),
            State::Sha1(h) => digest(DigestFunction::Sha1, &h.finalize()),
            State::Md5(h) => digest(DigestFunction::Md5, &h.finalize()),
            State::Sha384(h) => digest(DigestFunction::Sha384, &h.finalize()),
            State::Sha512(h) => digest(DigestFunction::Sha512, &h.finalize()),
            State::Sha256Tree(h) => digest(DigestFunction::Sha256Tree, &h.finish()),
            State::Blake3(h) => digest(DigestFunction::Blake3, h.finalize().as_bytes()),
            State::GitSha1(h) => digest(DigestFunction::GitSha1, &h.finalize()),
        }
    }

    /// The digest of bytes that are all there.
    pub fn digest(function: DigestFunction, data: &[u8]) -> Digest {
        let mut hasher = Self::new(function, data.len() as u64);
        hasher.update(data);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published test vectors of "abc"; what `git hash-object` says of it; of so few bytes, the tree's hash is that of SHA-256.
    #[test]
    fn vectors() {
        let expected = [
            (DigestFunction::Sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (DigestFunction::Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
            (DigestFunction::Md5, "900150983cd24fb0d6963f7d28e17f72"),
            (
                DigestFunction::Sha384,
                "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed\
                 8086072ba1e7cc2358baeca134c825a7",
            ),
            (
                DigestFunction::Sha512,
                "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                 2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
            ),
            (DigestFunction::Sha256Tree, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (DigestFunction::Blake3, "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"),
            (DigestFunction::GitSha1, "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f"),
        ];
        for (function, hex) in expected {
            let mut hasher = Hasher::new(function, 3);
            hasher.update(b"a");
            hasher.update(b"bc");
            let digest = hasher.finish();
            assert_eq!((digest.hash_hex().as_str(), digest.size_bytes), (hex, 3), "{function}");
        }
        assert_eq!(expected.len(), DigestFunction::ALL.len());
    }
}
