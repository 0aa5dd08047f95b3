//! How large blobs are: a named histogram, or a list of sizes with weights.

use crate::data;
use blockstore_tests::blob::Random;
use bytesize::ByteSize;
use std::str::FromStr;

/// Largest blob that is made, in bytes.
pub(super) const BLOB_BYTES_MAX: u64 = 64 << 30;
/// Most entries of a list.
const SIZES_MAX: usize = 1024;

/// Sizes, and how often each comes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Sizes {
    /// As seen in a real cache: 2.3 KB on average, a third under 100 B.
    Small,
    /// Size in bytes and weight, which is above zero.
    List(Vec<(u64, u64)>),
}

impl Sizes {
    /// The next size in bytes.
    pub(super) fn pick(&self, random: &mut Random) -> u64 {
        let list = match self {
            Self::Small => return data::size_bytes(random) as u64,
            Self::List(list) => list,
        };
        let mut rest = random.below(list.iter().map(|(_, weight)| weight).sum());
        for (size_bytes, weight) in list {
            if rest < *weight {
                return *size_bytes;
            }
            rest -= weight;
        }
        unreachable!("less than the sum of all weights is within one of them")
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "small" {
            return Ok(Self::Small);
        }
        let mut list = Vec::new();
        for part in text.split(',') {
            let wrong = || format!("{part:?} is no size with its weight; expected `small`, or a list such as 64KiB:50,1MiB:50");
            let (size, weight) = part.split_once(':').unwrap_or((part, "1"));
            let size_bytes = parse_size(size)?;
            let weight = weight.parse().ok().filter(|weight: &u32| *weight > 0).ok_or_else(wrong)?;
            list.push((size_bytes, u64::from(weight)));
        }
        if list.len() > SIZES_MAX {
            return Err(format!("{} sizes are more than {SIZES_MAX}", list.len()));
        }
        Ok(Self::List(list))
    }
}

/// The size of a blob in bytes, with or without a unit.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let size: ByteSize = text.parse().map_err(|_| format!("{text:?} is no size, such as 2300, 64KiB (2^10) or 64KB (10^3)"))?;
    match size.as_u64() {
        size_bytes if size_bytes <= BLOB_BYTES_MAX => Ok(size_bytes),
        _ => Err(format!("{text} is more than {}, the largest blob that is made", ByteSize(BLOB_BYTES_MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_followed() {
        let sizes: Sizes = "64KiB:3,1MiB,5:6".parse().unwrap();
        assert_eq!(sizes, Sizes::List(vec![(65_536, 3), (1 << 20, 1), (5, 6)]));
        let mut random = Random::new(1);
        let picked: Vec<_> = (0..100_000).map(|_| sizes.pick(&mut random)).collect();
        for (size_bytes, percent) in [(65_536, 30), (1 << 20, 10), (5, 60)] {
            let count = picked.iter().filter(|picked| **picked == size_bytes).count();
            assert!((count / 1000).abs_diff(percent) <= 1, "{count} of {size_bytes} B");
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        assert_eq!("small".parse(), Ok(Sizes::Small));
        for (text, expected) in
            [("large", "no size"), ("1KiB:0", "no size with its weight"), ("1KiB:x", "64KiB:50"), ("", "no size"), ("65GiB", "the largest")]
        {
            let refusal = text.parse::<Sizes>().unwrap_err();
            assert!(refusal.contains(expected), "{text}: {refusal}");
        }
    }
}
