//! Recorded operations: a text file with one a line, read as it is replayed.
//!
//! ```text
//! # operation size key
//! put 65536 17
//! get 64KiB 17
//! find 64KiB 17
//! ac-put 2300 18
//! ac-get 2300 18
//! ```
//!
//! A key is a number from 0 to 2^64 − 1; together with its size it stands for one blob, or for the action whose result names that
//! blob. Empty lines and what begins with `#` count for nothing.
//!
//! Always true here: what is in memory is a line and a bounded queue of operations, however long the file is.

use super::{Key, sizes::parse_size, work::Step};
use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::sync::{Mutex, mpsc};

/// Longest line in bytes.
const LINE_BYTES_MAX: u64 = 1024;
/// Operations that wait for their turn.
const QUEUED_MAX: usize = 1024;

/// A file that is being replayed. Operations are begun in its order.
#[derive(Debug)]
pub(super) struct Trace {
    steps: Mutex<mpsc::Receiver<Result<Step, String>>>,
    bytes: u64,
    read_bytes: Arc<AtomicU64>,
}

impl Trace {
    /// Begins to read.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let failed = |error| format!("--trace {}: {error}", path.display());
        let file = File::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        let (sender, receiver) = mpsc::channel(QUEUED_MAX);
        let read_bytes = Arc::new(AtomicU64::new(0));
        let name = format!("--trace {}", path.display());
        let read = read_bytes.clone();
        // It ends with the file, or when nobody takes its operations any more.
        tokio::task::spawn_blocking(move || {
            let mut lines = BufReader::new(file);
            let mut number = 0;
            loop {
                number += 1;
                let step = match next_line(&mut lines) {
                    Ok(None) => return,
                    Ok(Some((line, len))) => {
                        read.fetch_add(len, Relaxed);
                        parse(&line)
                    }
                    Err(error) => Err(error),
                };
                let step = match step {
                    Ok(None) => continue,
                    Ok(Some(step)) => Ok(step),
                    Err(error) => Err(format!("{name}, line {number}: {error}")),
                };
                let last = step.is_err();
                if sender.blocking_send(step).is_err() || last {
                    return;
                }
            }
        });
        Ok(Self { steps: Mutex::new(receiver), bytes, read_bytes })
    }

    /// The next operation, until the file ends.
    pub(super) async fn next(&self) -> Option<Result<Step, String>> {
        self.steps.lock().await.recv().await
    }

    /// How much of the file has been read, from 0 to 1.
    pub(super) fn progress(&self) -> f64 {
        self.read_bytes.load(Relaxed) as f64 / self.bytes.max(1) as f64
    }
}

/// A line and its length in bytes with its end.
fn next_line(lines: &mut impl BufRead) -> Result<Option<(String, u64)>, String> {
    let mut line = Vec::new();
    let len = lines.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(|error| error.to_string())? as u64;
    if len == LINE_BYTES_MAX && line.last() != Some(&b'\n') {
        return Err(format!("longer than {LINE_BYTES_MAX} bytes"));
    }
    let line = String::from_utf8(line).map_err(|_| "not UTF-8".to_owned())?;
    Ok((len > 0).then_some((line, len)))
}

/// The operation of a line, if it has one.
fn parse(line: &str) -> Result<Option<Step>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let words: Vec<_> = line.split_whitespace().collect();
    let [operation, size, number] = words[..] else {
        return Err(format!("{line:?} is not an operation, a size and a key, such as `put 64KiB 17`"));
    };
    let number = number.parse().map_err(|_| format!("{number:?} is no key: a number from 0 to {}", u64::MAX))?;
    let key = Key { number, size_bytes: parse_size(size)? };
    Ok(Some(match operation {
        "put" => Step::Put(key),
        "get" => Step::Get(key),
        "find" => Step::Find(vec![key]),
        "ac-put" => Step::AcPut(key),
        "ac-get" => Step::AcGet(key),
        _ => return Err(format!("{operation:?} is no operation: put, get, find, ac-put or ac-get")),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    async fn replayed(text: &[u8]) -> Vec<Result<Step, String>> {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("trace");
        std::fs::write(&path, text).unwrap();
        let trace = Trace::open(&path).unwrap();
        let mut steps = Vec::new();
        while let Some(step) = trace.next().await {
            steps.push(step);
        }
        if steps.iter().all(Result::is_ok) {
            assert_eq!(trace.progress(), 1.0);
        }
        steps
    }

    #[tokio::test]
    async fn every_operation_has_a_line() {
        let key = |size_bytes, number| Key { number, size_bytes };
        let text = "# a build\nput 65536 17\n\n  get 64KiB 17  \nfind 9 2\r\nac-put 2300 18\nac-get 0 18446744073709551615";
        let expected = [
            Step::Put(key(65_536, 17)),
            Step::Get(key(65_536, 17)),
            Step::Find(vec![key(9, 2)]),
            Step::AcPut(key(2300, 18)),
            Step::AcGet(key(0, u64::MAX)),
        ];
        assert_eq!(replayed(text.as_bytes()).await, expected.map(Ok));
    }

    #[tokio::test]
    async fn a_wrong_line_is_told_by_its_number_and_ends_it() {
        let long = ["put 1 2\n", &"x".repeat(2000), "\nput 1 2\n"].concat();
        for (text, expected) in [
            (&b"put 1 2\n# no\nput 1\nput 1 2"[..], "line 3: \"put 1\" is not an operation, a size and a key"),
            (b"put 1 2\npop 1 2", "line 2: \"pop\" is no operation"),
            (b"put 1 2\nput x 2", "line 2: \"x\" is no size"),
            (b"put 1 2\nput 1 -2", "line 2: \"-2\" is no key"),
            (b"put 1 2\n\xff", "line 2: not UTF-8"),
            (long.as_bytes(), "line 2: longer than 1024 bytes"),
        ] {
            let steps = replayed(text).await;
            assert_eq!(steps.len(), 2);
            assert!(steps[1].as_ref().unwrap_err().contains(expected), "{steps:?}");
        }
    }
}
