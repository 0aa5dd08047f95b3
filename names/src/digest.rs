//! Names of blobs: digest functions, hashes and digests.
//!
//! Always true here: a [`Digest`] holds a hash of exactly the length its function makes and a size of zero or more; bytes
//! behind the hash's length are zero, so that equality and hashing need not look at the length.

use std::fmt;

use faster_hex::{CheckCase, hex_decode_with_case, hex_string};
use thiserror::Error;

/// Longest hash of any function, in bytes.
pub const HASH_BYTES_MAX: usize = 64;

/// A digest function of the Remote Execution API (`DigestFunction.Value`), as far as it is implemented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum DigestFunction {
    /// SHA-256, 32 bytes.
    Sha256 = 1,
    /// SHA-1, 20 bytes.
    Sha1 = 2,
    /// MD5, 16 bytes.
    Md5 = 3,
    /// SHA-384, 48 bytes.
    Sha384 = 5,
    /// SHA-512, 64 bytes.
    Sha512 = 6,
    /// SHA-256 over a binary tree of pieces of 1 KiB, 32 bytes.
    Sha256Tree = 8,
    /// BLAKE3 with 32 bytes of output.
    Blake3 = 9,
    /// SHA-1 as Git names its blobs, 20 bytes.
    GitSha1 = 10,
}

impl DigestFunction {
    /// Every function, in the order in which an unset one is guessed: the first whose length fits.
    pub const ALL: [Self; 8] =
        [Self::Sha256, Self::Sha1, Self::Md5, Self::Sha384, Self::Sha512, Self::Sha256Tree, Self::Blake3, Self::GitSha1];

    /// Length of the raw hash in bytes.
    pub const fn hash_bytes(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 | Self::GitSha1 => 20,
            Self::Sha256 | Self::Sha256Tree | Self::Blake3 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// Length of the hash in hex digits.
    pub const fn hex_digits(self) -> usize {
        self.hash_bytes() * 2
    }

    /// The number on the wire (`DigestFunction.Value` of the Remote Execution API).
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The function that a number on the wire stands for; `None` if it is not implemented here, and for 0 (unset).
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|f| i32::from(f.number()) == number)
    }

    /// The name in lowercase, as resource names and configuration use it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha1 => "sha1",
            Self::Md5 => "md5",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
            Self::Sha256Tree => "sha256tree",
            Self::Blake3 => "blake3",
            Self::GitSha1 => "gitsha1",
        }
    }

    /// Whether resource names have to say the function, because another one with hashes of the same length goes without.
    pub const fn is_named(self) -> bool {
        matches!(self, Self::Sha256Tree | Self::Blake3 | Self::GitSha1)
    }

    /// The function of that (lowercase) name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.name() == name)
    }
}

impl fmt::Display for DigestFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a digest that a client sent is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DigestError {
    /// The hash has the wrong number of digits.
    #[error("hash of {digits} digits is not a {function} hash, which has {}", function.hex_digits())]
    Length {
        /// Function of the request.
        function: DigestFunction,
        /// Digits sent.
        digits: usize,
    },
    /// The hash has a character that is not a lowercase hex digit.
    #[error("hash has a character that is not a lowercase hex digit")]
    NotHex,
    /// The size is negative.
    #[error("size of {0} bytes is negative")]
    NegativeSize(i64),
}

/// Name of a blob: function, hash and size.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    /// Function of the hash.
    pub function: DigestFunction,
    hash: [u8; HASH_BYTES_MAX],
    /// Size of the blob in bytes.
    pub size_bytes: u64,
}

impl Digest {
    /// A digest from raw hash bytes.
    ///
    /// # Errors
    /// [`DigestError::Length`] if the hash is not as long as the function's.
    pub fn new(function: DigestFunction, hash: &[u8], size_bytes: u64) -> Result<Self, DigestError> {
        let mut padded = [0; HASH_BYTES_MAX];
        match padded.get_mut(..function.hash_bytes()) {
            Some(place) if place.len() == hash.len() => place.copy_from_slice(hash),
            _ => {
                return Err(DigestError::Length { function, digits: hash.len() * 2 });
            }
        }
        Ok(Self { function, hash: padded, size_bytes })
    }

    /// A digest as a message carries it: lowercase hex and a signed size (Remote Execution API, message `Digest`).
    ///
    /// # Errors
    /// Uppercase digits, a wrong length and a negative size are refused.
    pub fn parse(function: DigestFunction, hash_hex: &[u8], size_bytes: i64) -> Result<Self, DigestError> {
        let size_bytes = u64::try_from(size_bytes).map_err(|_| DigestError::NegativeSize(size_bytes))?;
        if hash_hex.len() != function.hex_digits() {
            return Err(DigestError::Length { function, digits: hash_hex.len() });
        }
        let mut hash = [0; HASH_BYTES_MAX];
        let place = &mut hash[..function.hash_bytes()];
        hex_decode_with_case(hash_hex, place, CheckCase::Lower).map_err(|_| DigestError::NotHex)?;
        Ok(Self { function, hash, size_bytes })
    }

    /// The same hash for a blob of that size.
    pub const fn with_size(self, size_bytes: u64) -> Self {
        Self { size_bytes, ..self }
    }

    /// The hash, as long as the function makes it.
    pub fn hash(&self) -> &[u8] {
        // The length is a constant of the function, never more than the array.
        &self.hash[..self.function.hash_bytes()]
    }

    /// The hash in lowercase hex.
    pub fn hash_hex(&self) -> String {
        hex_string(self.hash())
    }
}

/// `hash/size`, with the function in front where it has to be said: as in a resource name.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.function.is_named() {
            write!(f, "{}/", self.function)?;
        }
        write!(f, "{}/{}", self.hash_hex(), self.size_bytes)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.function, self.hash_hex(), self.size_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_it_prints() {
        let hex = "00ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e";
        let digest = Digest::parse(DigestFunction::Sha256, hex.as_bytes(), 7).unwrap();
        assert_eq!(digest.hash_hex(), hex);
        assert_eq!(digest.to_string(), format!("{hex}/7"));
        assert_eq!(Digest::new(DigestFunction::Sha256, digest.hash(), 7).unwrap(), digest);
    }

    #[test]
    fn refuses_what_is_no_digest() {
        let function = DigestFunction::Sha1;
        let good = [b'a'; 40];
        assert!(Digest::parse(function, &good, 0).is_ok());
        assert_eq!(Digest::parse(function, &good, -1), Err(DigestError::NegativeSize(-1)));
        let length = |digits| Err(DigestError::Length { function, digits });
        assert_eq!(Digest::parse(function, &good[1..], 0), length(39));
        assert_eq!(Digest::parse(function, b"", 0), length(0));
        for bad in [b'A', b'g', b' ', 0xff] {
            let mut hex = good;
            hex[39] = bad;
            assert_eq!(Digest::parse(function, &hex, 0), Err(DigestError::NotHex));
        }
        assert!(Digest::new(function, &[0; 21], 0).is_err());
    }

    #[test]
    fn numbers_and_names_are_those_of_the_specification() {
        let expected = [
            (1, "sha256", 64),
            (2, "sha1", 40),
            (3, "md5", 32),
            (5, "sha384", 96),
            (6, "sha512", 128),
            (8, "sha256tree", 64),
            (9, "blake3", 64),
            (10, "gitsha1", 40),
        ];
        assert_eq!(expected.len(), DigestFunction::ALL.len());
        for (number, name, digits) in expected {
            let function = DigestFunction::from_number(number).unwrap();
            assert_eq!((function.name(), function.hex_digits()), (name, digits));
            assert_eq!(DigestFunction::from_name(name), Some(function));
        }
        for number in [-1, 0, 4, 7, 11] {
            assert_eq!(DigestFunction::from_number(number), None);
        }
    }
}
