//! The machine that measures: what a reader must know to compare two of them.

use crate::data::noise;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs,
    hint::black_box,
    num::NonZero,
    thread::available_parallelism,
    time::{Instant, SystemTime},
};

/// The speed in GB/s of the machine that the goals are for.
pub(crate) const SHA256_GIGABYTES_PER_S: f64 = 1.79;
/// How often a mebibyte is hashed; the fastest counts.
const HASHES: usize = 48;

/// What work is measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// Name of the first processor.
    pub(crate) cpu: String,
    /// Processors that this process may use.
    pub(crate) cores: usize,
    /// Version of the kernel.
    pub(crate) kernel: String,
    /// How fast one core hashes with SHA-256 now, in GB/s.
    pub(crate) sha256_gigabytes_per_s: f64,
}

impl Machine {
    /// This one; takes some 50 ms.
    pub(crate) fn here() -> Self {
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        Self {
            cpu: name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned()),
            cores: available_parallelism().map_or(1, NonZero::get),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            sha256_gigabytes_per_s: sha256_gigabytes_per_s(),
        }
    }

    /// One line.
    pub(crate) fn line(&self) -> String {
        format!(
            "{}, {} cores, Linux {}; SHA-256 on one core: {:.2} GB/s (the goals are for {SHA256_GIGABYTES_PER_S} GB/s)",
            self.cpu, self.cores, self.kernel, self.sha256_gigabytes_per_s
        )
    }
}

/// The time in UTC, to the second.
pub(crate) fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

fn sha256_gigabytes_per_s() -> f64 {
    let bytes = noise();
    let once = || {
        let start = Instant::now();
        black_box(Sha256::digest(black_box(&bytes[..])));
        start.elapsed()
    };
    let fastest = (0..HASHES).map(|_| once()).min().unwrap_or_default();
    bytes.len() as f64 / 1e9 / fastest.as_secs_f64().max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_name_a_speed_and_a_date() {
        let machine = Machine::here();
        assert!(!machine.cpu.is_empty() && !machine.kernel.is_empty() && machine.cores > 0);
        assert!((1e-3..100.0).contains(&machine.sha256_gigabytes_per_s), "{}", machine.line());
        assert!(now().starts_with("20") && now().ends_with('Z'));
    }
}
