//! Stores that are damaged at random: no command crashes, hangs or says that all is well when it read damage.
//!
//! `BLOCKSTORE_TOOL_IMAGES=10000 cargo test --release -p blockstore-tool --test tool random` is the long run; `BLOCKSTORE_TOOL_SEED` begins
//! elsewhere.

use crate::store::*;
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n.max(1)
    }
}

/// Damages some ranges, mostly where structures and records are. Gives what was there.
fn damage(file: &mut File, random: &mut Random, interesting: &[std::ops::Range<u64>]) -> Vec<(u64, Vec<u8>)> {
    let mut before = Vec::new();
    for _ in 0..1 + random.below(6) {
        let range = &interesting[random.below(interesting.len() as u64) as usize];
        let at = range.start + random.below(range.end - range.start);
        let len = [1, 4, 64, 512, 4096, 65536][random.below(6) as usize].min(range.end - at);
        let mut bytes = vec![0; len as usize];
        file.seek(SeekFrom::Start(at)).unwrap();
        file.read_exact(&mut bytes).unwrap();
        before.push((at, bytes.clone()));
        match random.below(4) {
            0 => bytes.fill(0),
            1 => bytes.fill(0xff),
            2 => bytes.iter_mut().for_each(|byte| *byte = random.below(256) as u8),
            _ => {
                let bit = random.below(bytes.len() as u64 * 8) as usize;
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&bytes).unwrap();
    }
    before
}

#[test]
fn nothing_crashes_or_hangs_on_random_damage() {
    let images = setting("BLOCKSTORE_TOOL_IMAGES", 12);
    let first = setting("BLOCKSTORE_TOOL_SEED", 1);
    let made = make(false);
    let original = made.bytes();
    let report = made.inspect();
    let at = |path: &str| number(&report, path);
    let blocks = at("/blocks_offset_bytes");
    let block_bytes = at("/block_bytes");
    let image_bytes = at("/image_offsets_bytes/1") - at("/image_offsets_bytes/0");
    let mut interesting = vec![
        0..2 * PAGE as u64,
        STORE_BYTES - 2 * PAGE as u64..STORE_BYTES,
        at("/log_offset_bytes")..at("/log_offset_bytes") + 16 * PAGE as u64,
        at("/image_offsets_bytes/0")..at("/image_offsets_bytes/0") + image_bytes,
        at("/image_offsets_bytes/1")..at("/image_offsets_bytes/1") + image_bytes,
    ];
    for (block, row) in (0..).zip(report["block_map"].as_array().unwrap()).filter(|(_, row)| number(row, "/live_slots") > 0) {
        let start = blocks + block * block_bytes;
        interesting.push(start..start + PAGE as u64);
        interesting.push(start..start + number(row, "/filled_bytes").max(PAGE as u64));
    }
    let mut file = File::options().read(true).write(true).open(&made.path).unwrap();
    for seed in first..first + images {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let before = damage(&mut file, &mut random, &interesting);
        let damaged = made.bytes();
        for arguments in
            [&["inspect", "--json"][..], &["verify", "--json", "--content"], &["ls", "--json"], &["repair", "--dry-run", "--json"]]
        {
            let output = tool(arguments, &made.path);
            assert!([0, 1, 3].contains(&status(&output)), "seed {seed}: {arguments:?}: {}", stderr(&output));
            assert!(!stderr(&output).contains("panicked"), "seed {seed}: {}", stderr(&output));
        }
        assert!(made.bytes() == damaged, "seed {seed}: a command that only reads wrote");
        if status(&tool(&["repair"], &made.path)) == 0 {
            let verified = tool(&["verify", "--json", "--content"], &made.path);
            assert_eq!(status(&verified), 0, "seed {seed}: damage is left behind a repair: {}", stdout(&verified));
        }
        let rebuilt = tool(&["rebuild", "--force", "--json"], &made.path);
        assert!([0, 3].contains(&status(&rebuilt)), "seed {seed}: {}", stderr(&rebuilt));
        if status(&rebuilt) == 0 {
            let verified = tool(&["verify", "--json", "--content"], &made.path);
            assert_eq!(status(&verified), 0, "seed {seed}: damage is left behind a rebuild: {}", stdout(&verified));
        }
        drop(before);
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(&original).unwrap();
    }
}
