//! The front-ends under calls that nobody would make: the committed corpus of the fuzz targets, and inputs at random.
//!
//! `FUZZ_TRIES=100` tries a hundred times as many. `FUZZ_WRITE_CORPUS=1` writes the targets' own seeds anew. `fuzz/README.md` says how
//! the long form runs.

use std::{
    fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
};

use blockstore_server::fuzzing::TARGETS;
use blockstore_tests::blob::Random;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target)
}

/// Bytes at random; some of them, since a list of choices goes on where a few bytes of it were changed, a seed but for some bytes.
fn input(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = corpus[random.below(corpus.len() as u64) as usize].clone();
    if input.is_empty() || random.below(3) > 0 {
        return (0..1 + random.below(500)).map(|_| random.next() as u8).collect();
    }
    for _ in 0..1 + random.below(20) {
        let at = random.below(input.len() as u64) as usize;
        input[at] = random.next() as u8;
    }
    input
}

#[test]
fn no_front_end_breaks_its_word_whatever_the_input() {
    let times: u64 = std::env::var("FUZZ_TRIES").map_or(1, |times| times.parse().expect("a number"));
    for target in TARGETS {
        if std::env::var_os("FUZZ_WRITE_CORPUS").is_some() {
            fs::create_dir_all(corpus(target.name)).expect("a directory");
            for (number, seed) in (target.seeds)().into_iter().enumerate() {
                fs::write(corpus(target.name).join(format!("seed-{number}")), seed).expect("an input");
            }
        }
        let mut files: Vec<_> = fs::read_dir(corpus(target.name)).expect("a corpus").map(|file| file.expect("a file").path()).collect();
        files.sort();
        let corpus: Vec<_> = files.iter().map(|file| fs::read(file).expect("an input")).collect();
        let mut random = Random::new(1);
        let made = std::iter::repeat_with(|| input(&mut random, &corpus)).take((target.tries * times) as usize);
        for input in corpus.iter().cloned().chain(made) {
            let checked = catch_unwind(|| (target.check)(&input));
            assert!(checked.is_ok(), "{}: {}", target.name, input.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        }
    }
}
