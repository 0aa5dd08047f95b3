//! Against published vectors: those of the API for FastCDC, and those of the module that defines RepMaxCDC.

use sha2::{Digest as _, Sha256};

use super::*;
use crate::store::{DigestFunction, Hasher};

const FAST_CDC: &str = include_str!("../../../tests/data/fastcdc2020_test_vectors.txt");
const REP_MAX_CDC: &str = include_str!("../../../tests/data/repmaxcdc_test_vectors.txt");
/// The input of the former.
const PICTURE: &[u8] = include_bytes!("../../../tests/data/SekienAkashita.jpg");

/// Sizes of the pieces in which an input comes: all at once, by byte, and odd ones.
const PIECES_BYTES: [usize; 5] = [usize::MAX, 1, 63, 4097, 100_003];

fn chunks(mut cutter: Cutter, input: &[u8], piece_bytes: usize) -> Vec<Bytes> {
    let mut chunks = Vec::new();
    for piece in input.chunks(piece_bytes) {
        cutter.push(piece);
        chunks.extend(std::iter::from_fn(|| cutter.next()));
    }
    cutter.end();
    chunks.extend(std::iter::from_fn(|| cutter.next()));
    assert!(cutter.data.is_empty());
    chunks
}

#[test]
fn fast_cdc_as_the_api_publishes_it() {
    let hash = |data: &[u8]| Hasher::digest(DigestFunction::Sha256, data).hash_hex();
    assert_eq!(hash(PICTURE), "d9e749d9367fc908876749d6502eb212fee88c9a94892fb07da5ef3ba8bc39ed");
    let mut seen = 0;
    for (section, seed) in [("# Seed: 0", 0), ("# Seed: 666", 666)] {
        let lines = FAST_CDC.lines().skip_while(|line| *line != section).skip(1).take_while(|line| !line.is_empty());
        let expected: Vec<(usize, usize, String)> = lines
            .map(|line| {
                let mut columns = line.split('\t');
                let mut next = || columns.next().unwrap();
                (next().parse().unwrap(), next().parse().unwrap(), next().into())
            })
            .collect();
        for piece_bytes in PIECES_BYTES {
            let mut offset = 0;
            let mut found = Vec::new();
            for chunk in chunks(Cutter::with(FastCdc::new(16_384, seed)), PICTURE, piece_bytes) {
                found.push((offset, chunk.len(), hash(&chunk)));
                offset += chunk.len();
            }
            assert_eq!(found, expected, "seed {seed} in pieces of {piece_bytes}");
            seen += found.len();
        }
    }
    assert_eq!(seen, 12 * PIECES_BYTES.len());
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn input(kind: &str, seed: u64, len: usize) -> Vec<u8> {
    match kind {
        "noise" => noise(seed, len),
        "bits" => noise(seed, len).into_iter().map(|byte| byte & 1).collect(),
        "same" => vec![u8::try_from(seed).unwrap(); len],
        "period" => noise(seed, 4099).into_iter().cycle().take(len).collect(),
        kind => panic!("no such input: {kind}"),
    }
}

#[test]
fn rep_max_cdc_as_the_module_that_defines_it_cuts() {
    let mut seen = 0;
    for line in REP_MAX_CDC.lines().filter(|line| !line.starts_with('#')) {
        let (case, lengths) = line.split_once(" :").unwrap();
        let columns: Vec<_> = case.split(' ').collect();
        let [kind, seed, len, hash, "min", min, "horizon", horizon] = columns[..] else { panic!("{line}") };
        let input = input(kind, seed.parse().unwrap(), len.parse().unwrap());
        assert!(Hasher::digest(DigestFunction::Sha256, &input).hash_hex().starts_with(hash), "{case}");
        for piece_bytes in PIECES_BYTES {
            // By byte, every byte asks for a look at what is there.
            if piece_bytes < 1000 && input.len() > 200_000 {
                continue;
            }
            let cutter = Cutter::with(RepMax::new(min.parse().unwrap(), horizon.parse().unwrap()));
            let found: Vec<_> = chunks(cutter, &input, piece_bytes).iter().map(|chunk| chunk.len().to_string()).collect();
            let found = match found.len() {
                0..=120 => found.iter().map(|length| format!(" {length}")).collect(),
                count => {
                    let all: String = found.iter().map(|length| format!("{length}\n")).collect();
                    format!(" {count} chunks {}", hex_of(&Sha256::digest(all)))
                }
            };
            assert_eq!(found, lengths, "{case} in pieces of {piece_bytes}");
        }
        seen += 1;
    }
    assert_eq!(seen, 60);
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn what_waits_is_bounded() {
    let input = noise(1, 30 << 20);
    for (chunking, window_bytes) in
        [(Chunking::FastCdc2020, FAST_CDC_AVERAGE_BYTES * 4), (Chunking::RepMaxCdc, 2 * REP_MAX_CDC_MIN_BYTES + REP_MAX_CDC_HORIZON_BYTES)]
    {
        let mut cutter = Cutter::new(chunking);
        let mut cut_bytes = 0;
        for piece in input.chunks(70_001) {
            cutter.push(piece);
            assert!(cutter.data.len() < window_bytes + 70_001, "{chunking:?}");
            while let Some(chunk) = cutter.next() {
                assert!(chunk[..] == input[cut_bytes..cut_bytes + chunk.len()]);
                cut_bytes += chunk.len();
            }
        }
        assert!(cut_bytes > input.len() - window_bytes, "{chunking:?}");
    }
}
