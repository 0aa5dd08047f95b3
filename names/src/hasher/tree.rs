//! SHA256TREE of the Remote Execution API: SHA-256 of leaves of 1 KiB, and a binary tree of single block operations above them.
//!
//! Always true here: memory is one hash a level. A tree's left side is the largest power of two of leaves that leaves something
//! for the right side, so that whole subtrees can be joined as soon as they are there.

use sha2::{Digest as _, Sha256, block_api::compress256};

/// Bytes of a leaf; the last one may have fewer.
const LEAF_BYTES: usize = 1024;

/// What the block operation starts with: the square roots of the 9th to the 16th prime.
const START: [u32; 8] = [0xcbbb_9d5d, 0x629a_292a, 0x9159_015a, 0x152f_ecd8, 0x6733_2667, 0x8eb4_4a87, 0xdb0c_2e0d, 0x47b5_481d];

/// The state of a computation.
#[derive(Default)]
pub(super) struct Sha256Tree {
    leaf: Sha256,
    leaf_bytes: usize,
    /// How many leaves are whole.
    leaves: u64,
    /// Hashes of whole subtrees from left to right, each of at most half of the leaves of the one before: a bit of `leaves` each.
    subtrees: Vec<[u8; 32]>,
}

impl Sha256Tree {
    /// Takes the next bytes.
    pub(super) fn update(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let (now, later) = data.split_at(data.len().min(LEAF_BYTES - self.leaf_bytes));
            self.leaf.update(now);
            self.leaf_bytes += now.len();
            data = later;
            if self.leaf_bytes == LEAF_BYTES {
                self.end_leaf();
            }
        }
    }

    fn end_leaf(&mut self) {
        let mut subtree = self.leaf.finalize_reset().into();
        self.leaf_bytes = 0;
        // As in counting: each carry joins two subtrees of one size.
        for _ in 0..self.leaves.trailing_ones() {
            subtree = match self.subtrees.pop() {
                Some(left) => join(&left, &subtree),
                None => subtree,
            };
        }
        self.leaves += 1;
        self.subtrees.push(subtree);
    }

    /// The hash of all bytes taken.
    pub(super) fn finish(mut self) -> [u8; 32] {
        if self.leaf_bytes > 0 || self.leaves == 0 {
            self.subtrees.push(self.leaf.finalize().into());
        }
        let mut subtrees = self.subtrees.into_iter().rev();
        let last = subtrees.next().unwrap_or_default();
        subtrees.fold(last, |right, left| join(&left, &right))
    }
}

/// The hash of a tree of two sides.
fn join(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    let mut block = [0; 64];
    block[..32].copy_from_slice(left);
    block[32..].copy_from_slice(right);
    let mut state = START;
    compress256(&mut state, &[block]);
    let mut hash = [0; 32];
    for ((place, word), start) in hash.chunks_exact_mut(4).zip(state).zip(START) {
        // SHA-256 adds what it started with; the tree's function does not.
        place.copy_from_slice(&word.wrapping_sub(start).to_be_bytes());
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published with the API: lengths of the sequence 0, 1, … 250, 0, 1, … and their hashes.
    const VECTORS: &str = include_str!("../../tests/data/sha256tree_test_vectors.txt");

    fn hash(data: &[u8], piece_bytes: usize) -> String {
        let mut tree = Sha256Tree::default();
        data.chunks(piece_bytes).for_each(|piece| tree.update(piece));
        tree.finish().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn published_vectors() {
        let mut seen = 0;
        for line in VECTORS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (len, expected) = line.split_once('\t').unwrap();
            let data: Vec<u8> = (0..=250).cycle().take(len.parse().unwrap()).collect();
            for piece_bytes in [1, 1000, 1024, 4097, usize::MAX] {
                assert_eq!(hash(&data, piece_bytes), expected, "{len} bytes");
            }
            seen += 1;
        }
        assert_eq!(seen, 18);
    }

    #[test]
    fn up_to_a_leaf_it_is_plain_sha256() {
        for len in [0, 1, 1023, 1024] {
            let data = vec![7; len];
            let expected: String = Sha256::digest(&data).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hash(&data, 100), expected);
        }
        assert_ne!(hash(&[7; 1025], 100), hash(&[7; 1024], 100));
    }
}
