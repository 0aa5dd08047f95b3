//! The pure decoders under bytes that nobody wrote: the committed corpus of the fuzz targets, and mutations of it.
//!
//! `DECODERS_TRIES=100` tries a hundred times as many. `DECODERS_WRITE_CORPUS=1` writes the corpus anew, from the seeds that the targets make themselves. `fuzz/README.md` says how the
//! long form runs.

mod common;

use blockstore_engine::fuzzing::TARGETS;
use common::Rng;
use std::{
    fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
};

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target)
}

fn inputs(target: &str) -> Vec<Vec<u8>> {
    let mut files: Vec<_> = fs::read_dir(corpus(target)).expect("a corpus").map(|file| file.expect("a file").path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).expect("an input")).collect()
}

/// Flips, overwrites, cuts, repeats and joins.
fn mutate(rng: &mut Rng, from: &[Vec<u8>]) -> Vec<u8> {
    let pick = |rng: &mut Rng| from[rng.below(from.len() as u64) as usize].clone();
    let mut out = pick(rng);
    for _ in 0..1 + rng.below(6) {
        let at = rng.below(out.len() as u64 + 1) as usize;
        match rng.below(7) {
            0 => out.truncate(at),
            1 => out.splice(at..at, (0..rng.below(40)).map(|n| n as u8)).for_each(drop),
            2 => out.extend(pick(rng).into_iter().skip(at / 2)),
            3 => {
                let word = [0, 1, u64::MAX, rng.next(), 1 << rng.below(64)][rng.below(5) as usize].to_le_bytes();
                out.iter_mut().skip(at / 4 * 4).zip(word).for_each(|(to, from)| *to = from);
            }
            _ => out.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << rng.below(8)),
        }
    }
    out.truncate(200_000);
    out
}

#[test]
fn the_corpus_holds_every_targets_own_seeds() {
    for target in TARGETS {
        for (n, seed) in (target.seeds)().into_iter().enumerate() {
            let file = corpus(target.name).join(format!("seed-{n}"));
            if std::env::var_os("DECODERS_WRITE_CORPUS").is_some() {
                fs::create_dir_all(corpus(target.name)).expect("a directory");
                fs::write(&file, &seed).expect("an input");
            }
            assert!(fs::read(&file).ok() == Some(seed), "{} is not what the target makes: was the format changed?", file.display());
        }
    }
}

#[test]
fn no_decoder_breaks_its_word_whatever_the_bytes() {
    let times: u64 = std::env::var("DECODERS_TRIES").map_or(1, |n| n.parse().expect("a number"));
    for target in TARGETS {
        let corpus = inputs(target.name);
        let mut rng = Rng(corpus.len() as u64);
        let mutated = std::iter::repeat_with(|| mutate(&mut rng, &corpus)).take((target.tries * times) as usize);
        for input in corpus.iter().cloned().chain([Vec::new()]).chain(mutated) {
            let checked = catch_unwind(|| (target.check)(&input));
            assert!(checked.is_ok(), "{}: {}", target.name, input.iter().map(|b| format!("{b:02x}")).collect::<String>());
        }
    }
}
