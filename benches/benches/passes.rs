//! Passes over the bytes of a blob: what hashing, checking and compressing cost, without anything else.
//!
//! The floor is what one core does by hand: SHA-256 1.79 GB/s with its instructions, BLAKE3 4.6, CRC-32 32, a copy 13.5. A blob that is
//! uploaded has one pass of its hash, one of CRC-32 and two copies; one that is read has one of CRC-32 unless it is in the cache.

mod support;

use blockstore_names::{DigestFunction, Hasher};
use blockstore_server::store::compression;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use support::noise;

const SIZES: [(&str, usize); 3] = [("2.3 KB", 2300), ("64 KiB", 64 << 10), ("1 MiB", 1 << 20)];

fn hashes(c: &mut Criterion) {
    let mut group = c.benchmark_group("hash");
    for (name, len) in SIZES {
        let data = noise(len);
        group.throughput(Throughput::Bytes(len as u64));
        for function in [DigestFunction::Sha256, DigestFunction::Blake3, DigestFunction::Sha1] {
            group.bench_function(format!("{function} of {name}"), |b| b.iter(|| black_box(Hasher::digest(function, black_box(&data)))));
        }
    }
    group.finish();
}

fn checks(c: &mut Criterion) {
    let mut group = c.benchmark_group("crc");
    for (name, len) in SIZES {
        let data = noise(len);
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("CRC-32 of {name}"), |b| b.iter(|| black_box(crc32fast::hash(black_box(&data)))));
        group.bench_function(format!("copy of {name}"), |b| b.iter(|| black_box(black_box(&data[..]).to_vec())));
    }
    group.finish();
}

/// Bytes of which about two thirds go, as of object files.
fn compressible(len: usize) -> Vec<u8> {
    let noise = noise(len);
    noise.chunks(24).flat_map(|chunk| [&chunk[..chunk.len() / 3], &[0; 16][..chunk.len() - chunk.len() / 3]].concat()).collect()
}

fn zstd(c: &mut Criterion) {
    let mut group = c.benchmark_group("zstd");
    for (name, len) in SIZES {
        let data = compressible(len);
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("compress {name}"), |b| b.iter(|| compression::compress_whole(black_box(&data)).expect("a frame")));
        let frame = compression::compress_whole(&data).expect("a frame");
        group.bench_function(format!("decompress {name}"), |b| {
            b.iter(|| {
                let back = compression::decompress_whole(black_box(&frame), len).expect("the bytes");
                assert_eq!(back.len(), len);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, hashes, checks, zstd);
criterion_main!(benches);
