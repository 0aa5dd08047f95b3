//! `blockstore-tool export`: what is in a store, as a tar archive.
//!
//! Always true here: everything in the archive passed its checksums on the way; what was wanted longest ago comes first, so that an import
//! into a smaller store keeps the newest; the last entry says how many there are, so that an archive that was cut off is known.
//!
//! The form (version 1): `blockstore-export.json` first, then `content/N/KEY` and `named/N/KEY` (the key's function in decimal, the key
//! in hex) with the value as the store has it, each with its SHA-256 in hex in the PAX record `BLOCKSTORE.sha256`, and `end.json` last.

use crate::{
    name,
    output::{Failure, Lines, Verdict, defect, json},
    progress,
    store::{self, Target},
};
use blockstore_engine::{
    Key, KeySpace,
    offline::{OfflineStore, Record, RecordKind, Trust, VisitOptions, Visited},
};
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    ops::ControlFlow,
    path::PathBuf,
    sync::Arc,
};

/// Version of the archive's form.
pub(crate) const VERSION: u32 = 1;
pub(crate) const FIRST: &str = "blockstore-export.json";
pub(crate) const LAST: &str = "end.json";
pub(crate) const HASH_RECORD: &str = "BLOCKSTORE.sha256";
/// Blocks that are visited before the large blobs among them are read.
const BLOCKS_PER_STEP: u32 = 16;
/// Ages in ticks, and one more.
const AGES: u8 = 8;

/// What the first entry says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) store: String,
}

/// What the last entry says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sums {
    pub(crate) contents: u64,
    pub(crate) named: u64,
    pub(crate) bytes: u64,
}

/// Write all blobs, action results and entries of a store to a tar archive that `import` reads
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// The archive; - is stdout
    archive: PathBuf,
}

type Archive = tar::Builder<Box<dyn Write>>;

pub(crate) async fn run(arguments: Arguments) -> Result<Verdict, Failure> {
    let to_stdout = arguments.archive.as_os_str() == "-";
    if to_stdout && arguments.target.json {
        return Err(Failure::usage("--json: stdout is the archive already; name a file for it"));
    }
    let store = store::read(&arguments.target.path(), true, Trust::One).await?;
    let out: Box<dyn Write> = match to_stdout {
        true => Box::new(BufWriter::new(io::stdout())),
        false => {
            let file = File::options().write(true).create_new(true).open(&arguments.archive);
            Box::new(BufWriter::with_capacity(
                1 << 20,
                file.map_err(|error| Failure::usage(format!("cannot create {}: {error}", arguments.archive.display())))?,
            ))
        }
    };
    let report = store.report();
    let bar = progress::bytes("export", report.live_bytes);
    let mut archive = Archive::new(out);
    let header = Header { version: VERSION, store: hex::encode(report.uuid) };
    append_json(&mut archive, FIRST, &header)?;
    let (mut sums, mut bad_records) = (Sums::default(), 0);
    for age in (0..AGES).rev() {
        let options = VisitOptions { age_ticks: Some(age), without_parts: true, ..VisitOptions::default() };
        for first in (0..store.block_count()).step_by(BLOCKS_PER_STEP as usize) {
            let mut large = Vec::new();
            let mut failed: Option<io::Error> = None;
            let _ = store
                .visit(first..first + BLOCKS_PER_STEP, &options, |visited| {
                    match visited {
                        Visited::Record(record, _) if record.kind == RecordKind::LargeObject => large.push(record),
                        Visited::Record(record, payload) => {
                            bar.inc(record.record_bytes);
                            let payload = match crate::decode::payload(record.codec, payload) {
                                Ok(payload) => payload,
                                Err(what) => {
                                    bad_records += 1;
                                    eprintln!("blockstore-tool: {} {}", name::of(&record.key, record.size_bytes), defect(what));
                                    return ControlFlow::Continue(());
                                }
                            };
                            let hash = hex::encode(Sha256::digest(&payload));
                            if let Err(error) = append(&mut archive, &record, &hash, &payload[..], &mut sums) {
                                failed = Some(error);
                                return ControlFlow::Break(());
                            }
                        }
                        Visited::Bad(bad) => {
                            bad_records += 1;
                            eprintln!("blockstore-tool: record at byte {} (block {}) {}", bad.offset_bytes, bad.block, defect(bad.defect));
                        }
                        _ => {}
                    }
                    ControlFlow::Continue(())
                })
                .await;
            if let Some(error) = failed {
                return Err(error.into());
            }
            for record in large {
                bar.inc(record.size_bytes);
                bad_records += u64::from(!append_large(&mut archive, &store, &record, &mut sums).await?);
            }
        }
    }
    append_json(&mut archive, LAST, &sums)?;
    archive.into_inner()?.flush()?;
    bar.finish_and_clear();
    let verdict = Verdict::of(bad_records > 0);
    if arguments.target.json {
        json(&serde_json::json!({
            "verdict": verdict.word(), "contents": sums.contents, "named": sums.named, "bytes": sums.bytes, "bad_records": bad_records,
        }))?;
    } else if !to_stdout {
        let bad = if bad_records == 0 { String::new() } else { format!("; {bad_records} damaged records were left out") };
        Lines::new().plain(format!("{} blobs and {} named values ({}){bad}", sums.contents, sums.named, ByteSize(sums.bytes)))?;
    }
    Ok(verdict)
}

/// What an entry is called.
pub(crate) fn path_of(key: &Key) -> String {
    let space = match key.space {
        KeySpace::Content => "content",
        KeySpace::Named => "named",
    };
    format!("{space}/{}/{}", key.function, hex::encode(key.hash))
}

fn header(size_bytes: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(size_bytes);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    header
}

fn append_json(archive: &mut Archive, path: &str, value: &impl Serialize) -> io::Result<()> {
    let bytes = serde_json::to_vec(value).map_err(io::Error::from)?;
    archive.append_data(&mut header(bytes.len() as u64), path, &bytes[..])
}

fn append(archive: &mut Archive, record: &Record, hash: &str, data: impl Read, sums: &mut Sums) -> io::Result<()> {
    archive.append_pax_extensions([(HASH_RECORD, hash.as_bytes())])?;
    archive.append_data(&mut header(record.size_bytes), path_of(&record.key), data)?;
    match record.key.space {
        KeySpace::Content => sums.contents += 1,
        KeySpace::Named => sums.named += 1,
    }
    sums.bytes += record.size_bytes;
    Ok(())
}

/// False: some of it is damaged, and it was left out.
async fn append_large(archive: &mut Archive, store: &Arc<OfflineStore>, record: &Record, sums: &mut Sums) -> Result<bool, Failure> {
    // An entry begins with its size and its hash: all of it is read before the first byte is written.
    let mut hasher = Sha256::new();
    let mut size_bytes = 0;
    let told = |what| eprintln!("blockstore-tool: {} {}", name::of(&record.key, record.size_bytes), defect(what));
    let Ok(Some(mut object)) = store.find(&record.key, Some(record.size_bytes)).await else { return Ok(false) };
    while let Some(piece) = crate::decode::next(&mut object).await {
        match piece {
            Ok(piece) => {
                hasher.update(&piece);
                size_bytes += piece.len() as u64;
            }
            Err(what) => {
                told(what);
                return Ok(false);
            }
        }
    }
    if size_bytes != record.size_bytes {
        return Ok(false);
    }
    let hash = hex::encode(hasher.finalize());
    archive.append_pax_extensions([(HASH_RECORD, hash.as_bytes())])?;
    let mut head = header(size_bytes);
    head.set_path(path_of(&record.key))?;
    head.set_cksum();
    let lost = || Failure::damage(format!("{} became unreadable: the archive is incomplete", name::of(&record.key, record.size_bytes)));
    let out = archive.get_mut();
    out.write_all(head.as_bytes())?;
    let mut object = store.find(&record.key, Some(record.size_bytes)).await.map_err(|_| lost())?.ok_or_else(lost)?;
    while let Some(piece) = crate::decode::next(&mut object).await {
        out.write_all(&piece.map_err(|_| lost())?)?;
    }
    // Entries of an archive are whole units of 512 bytes.
    out.write_all(&[0; 512][..(size_bytes.next_multiple_of(512) - size_bytes) as usize])?;
    sums.contents += 1;
    sums.bytes += size_bytes;
    Ok(true)
}
