//! `blockstore-tool verify`: reads every structure and every record, and says what is not whole.
//!
//! Always true here: memory is bounded by the index, what is in flight, and the large objects of a few blocks; what a run found is in
//! its state file before it goes on, so that a run that was ended is taken up again without loss.

use crate::{
    name,
    output::{self, Failure, Lines, Verdict, defect, defect_word},
    progress,
    store::{self, Target},
};
use blockstore_engine::Codec;
use blockstore_engine::{
    Key,
    offline::{BadRecord, Check, OfflineStore, Record, RecordKind, StructureReport, Trust, VisitOptions, Visited},
};
use blockstore_names::{Hasher, keys};
use bytes::Bytes;
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Damaged records that are listed; all are counted.
const LISTED_MAX: usize = 1000;
/// Blocks between two notes in the state file.
const BLOCKS_PER_STEP: u32 = 16;

/// Read every structure and record and check it; with --content also that bytes have the hashes that their keys say
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Also compute the hash of every blob whose key has one
    #[arg(long)]
    content: bool,
    /// Most bytes to read in a second, e.g. 100MiB
    #[arg(long, value_name = "BYTES")]
    rate: Option<ByteSize>,
    /// Begin with this block
    #[arg(long, value_name = "BLOCK", conflicts_with = "state")]
    from_block: Option<u32>,
    /// Note in this file how far it is, and go on from there if the file is there; it is removed at the end
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// List every block, not only damaged ones
    #[arg(long)]
    blocks: bool,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct BlockCount {
    block: u32,
    good_records: u64,
    bad_records: u64,
    payload_bytes: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Bad {
    block: u32,
    offset_bytes: u64,
    defect: String,
    key: Option<String>,
    #[serde(skip)]
    told: &'static str,
}

/// What was found so far; what a state file holds.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Found {
    uuid: String,
    content: bool,
    next_block: u32,
    good_records: u64,
    bad_records: u64,
    payload_bytes: u64,
    hashed_records: u64,
    unknown_function_records: u64,
    blocks: Vec<BlockCount>,
    bad: Vec<Bad>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<Verdict, Failure> {
    let path = arguments.target.path();
    let store = store::read(&path, true, Trust::One).await?;
    let report = store.report();
    let mut found = begin(&arguments, hex::encode(report.uuid))?;
    let bar = progress::bytes("verify", report.live_bytes);
    let structures = store.check_structures(|_| {}).await;
    let counts = Arc::new(Counts::default());
    let options = VisitOptions {
        rate_bytes_per_s: arguments.rate.map(|rate| rate.as_u64().max(1)),
        check: arguments.content.then(|| content_check(counts.clone())),
        ..VisitOptions::default()
    };
    while found.next_block < store.block_count() {
        let end = (found.next_block + BLOCKS_PER_STEP).min(store.block_count());
        let large = step(&store, found.next_block..end, &options, &mut found, |bytes| bar.inc(bytes)).await;
        if arguments.content {
            for record in large {
                check_large(&store, &record, &mut found, &counts).await;
            }
        }
        found.next_block = end;
        (found.hashed_records, found.unknown_function_records) =
            (found.hashed_records + counts.hashed.swap(0, Relaxed), found.unknown_function_records + counts.unknown.swap(0, Relaxed));
        if let Some(file) = &arguments.state {
            save(file, &found)?;
        }
    }
    bar.finish_and_clear();
    let verdict = Verdict::of(found.bad_records > 0 || structures.damaged() > 0 || !report.superblocks_agree);
    match arguments.target.json {
        true => output::json(&document(&found, &structures, verdict))?,
        false => print(&found, &structures, arguments.blocks)?,
    }
    if let Some(file) = arguments.state.as_deref().filter(|file| file.exists()) {
        fs::remove_file(file).map_err(|error| Failure::cannot_open(format!("cannot remove {}: {error}", file.display())))?;
    }
    Ok(verdict)
}

/// What an earlier run found, or nothing.
fn begin(arguments: &Arguments, uuid: String) -> Result<Found, Failure> {
    let fresh = Found { uuid, content: arguments.content, next_block: arguments.from_block.unwrap_or(0), ..Found::default() };
    let Some(file) = arguments.state.as_deref().filter(|file| file.exists()) else { return Ok(fresh) };
    let read = fs::read(file).map_err(|error| Failure::usage(format!("--state: cannot read {}: {error}", file.display())))?;
    let found: Found =
        serde_json::from_slice(&read).map_err(|error| Failure::usage(format!("--state: {} is no state file: {error}", file.display())))?;
    if (&found.uuid, found.content) != (&fresh.uuid, fresh.content) {
        let what = if found.uuid == fresh.uuid { "a run with another --content" } else { "another store" };
        return Err(Failure::usage(format!("--state: {} is of {what}: remove it, or name another file", file.display())));
    }
    Ok(found)
}

fn save(file: &Path, found: &Found) -> Result<(), Failure> {
    let new = file.with_extension("new");
    let written = serde_json::to_vec(found).map_err(io::Error::from).and_then(|bytes| fs::write(&new, bytes));
    written
        .and_then(|()| fs::rename(&new, file))
        .map_err(|error| Failure::cannot_open(format!("--state: cannot write {}: {error}", file.display())))
}

/// Visits some blocks. Gives the large objects in them.
async fn step(
    store: &Arc<OfflineStore>,
    blocks: std::ops::Range<u32>,
    options: &VisitOptions,
    found: &mut Found,
    read: impl Fn(u64),
) -> Vec<Record> {
    let mut large = Vec::new();
    let mut count = BlockCount::default();
    let _ = store
        .visit(blocks, options, |visited| {
            match visited {
                Visited::Record(record, payload) => {
                    count.good_records += 1;
                    count.payload_bytes += payload.len() as u64;
                    if record.kind == RecordKind::LargeObject {
                        large.push(record);
                    }
                }
                Visited::Bad(bad) => {
                    count.bad_records += 1;
                    list(found, &bad);
                }
                Visited::Read(bytes) => read(bytes),
                Visited::BlockEnd(block) => {
                    count.block = block;
                    found.good_records += count.good_records;
                    found.bad_records += count.bad_records;
                    found.payload_bytes += count.payload_bytes;
                    found.blocks.push(std::mem::take(&mut count));
                }
                _ => {}
            }
            ControlFlow::Continue(())
        })
        .await;
    large
}

fn list(found: &mut Found, bad: &BadRecord) {
    if found.bad.len() < LISTED_MAX {
        found.bad.push(Bad {
            block: bad.block,
            offset_bytes: bad.offset_bytes,
            defect: defect_word(bad.defect).into(),
            key: bad.key.as_ref().map(|key| name::of(key, 0)).map(|name| name.trim_end_matches("/0").to_string()),
            told: defect(bad.defect),
        });
    }
}

#[derive(Default)]
struct Counts {
    hashed: AtomicU64,
    unknown: AtomicU64,
}

/// Whether a blob of one record has the hash that its key says; true of what says none.
fn content_check(counts: Arc<Counts>) -> Check {
    Arc::new(move |record: &Record, payload: &[u8]| {
        if record.kind != RecordKind::Content {
            return true;
        }
        let Some(function) = name::function(&record.key) else {
            counts.unknown.fetch_add(1, Relaxed);
            return true;
        };
        counts.hashed.fetch_add(1, Relaxed);
        let digest = match record.codec {
            Codec::Plain => Hasher::digest(function, payload),
            codec => match crate::decode::payload(codec, Bytes::copy_from_slice(payload)) {
                Ok(bytes) => Hasher::digest(function, &bytes),
                Err(_) => return false,
            },
        };
        digest.size_bytes == record.size_bytes && keys::content_key(&digest) == record.key
    })
}

/// The same of a blob in parts. A part that cannot be read was told already.
async fn check_large(store: &Arc<OfflineStore>, record: &Record, found: &mut Found, counts: &Counts) {
    let Some(function) = name::function(&record.key) else {
        counts.unknown.fetch_add(1, Relaxed);
        return;
    };
    let Ok(Some(key)) = hash_of(store, &record.key, record.size_bytes, Hasher::new(function, record.size_bytes)).await else { return };
    counts.hashed.fetch_add(1, Relaxed);
    if key != record.key {
        found.good_records = found.good_records.saturating_sub(1);
        found.bad_records += 1;
        if let Some(block) = found.blocks.iter_mut().find(|count| count.block == record.block) {
            block.good_records = block.good_records.saturating_sub(1);
            block.bad_records += 1;
        }
        if found.bad.len() < LISTED_MAX {
            let what = blockstore_engine::offline::Defect::Content;
            found.bad.push(Bad {
                block: record.block,
                offset_bytes: record.offset_bytes,
                defect: defect_word(what).into(),
                key: Some(name::of(&record.key, record.size_bytes)),
                told: defect(what),
            });
        }
    }
}

async fn hash_of(
    store: &Arc<OfflineStore>,
    key: &Key,
    size_bytes: u64,
    mut hasher: Hasher,
) -> Result<Option<Key>, blockstore_engine::offline::Defect> {
    let Some(mut object) = store.find(key, Some(size_bytes)).await? else { return Ok(None) };
    while let Some(piece) = crate::decode::next(&mut object).await {
        hasher.update(&piece?);
    }
    Ok(Some(keys::content_key(&hasher.finish())))
}

#[derive(Serialize)]
struct Structures {
    superblocks: u64,
    superblocks_damaged: u64,
    log_pages: u64,
    log_damaged: u64,
    block_tables: u64,
    block_tables_damaged: u64,
    image_units: u64,
    image_units_damaged: u64,
    block_heads: u64,
    block_heads_damaged: u64,
}

impl From<&StructureReport> for Structures {
    fn from(report: &StructureReport) -> Self {
        Self {
            superblocks: report.superblocks,
            superblocks_damaged: report.superblocks_damaged,
            log_pages: report.log_pages,
            log_damaged: report.log_damaged,
            block_tables: report.block_tables,
            block_tables_damaged: report.block_tables_damaged,
            image_units: report.image_units,
            image_units_damaged: report.image_units_damaged,
            block_heads: report.block_heads,
            block_heads_damaged: report.block_heads_damaged,
        }
    }
}

fn document(found: &Found, structures: &StructureReport, verdict: Verdict) -> serde_json::Value {
    serde_json::json!({
        "uuid": found.uuid,
        "verdict": verdict.word(),
        "content": found.content,
        "good_records": found.good_records,
        "bad_records": found.bad_records,
        "payload_bytes": found.payload_bytes,
        "hashed_records": found.hashed_records,
        "unknown_function_records": found.unknown_function_records,
        "structures": Structures::from(structures),
        "blocks": found.blocks,
        "bad": found.bad,
    })
}

fn print(found: &Found, structures: &StructureReport, all_blocks: bool) -> io::Result<()> {
    let mut out = Lines::new();
    for bad in &found.bad {
        let whose = bad.key.as_ref().map_or(String::new(), |key| format!(": {key}"));
        let told = if bad.told.is_empty() { bad.defect.as_str() } else { bad.told };
        out.plain(format!("record at byte {} (block {}) {told}{whose}", bad.offset_bytes, bad.block))?;
    }
    if found.bad_records > found.bad.len() as u64 {
        out.plain(format!("… and {} more", found.bad_records - found.bad.len() as u64))?;
    }
    for count in found.blocks.iter().filter(|count| all_blocks || count.bad_records > 0) {
        let BlockCount { block, good_records, bad_records, payload_bytes } = count;
        out.plain(format!("block {block}: {good_records} records are whole ({}), {bad_records} are damaged", ByteSize(*payload_bytes)))?;
    }
    if structures.damaged() > 0 {
        out.plain(format!(
            "damaged: {} of 4 superblocks, {} log pages or entries, {} block tables, {} image units, {} block headers",
            structures.superblocks_damaged,
            structures.log_damaged,
            structures.block_tables_damaged,
            structures.image_units_damaged,
            structures.block_heads_damaged
        ))?;
    }
    if found.content {
        let unknown = match found.unknown_function_records {
            0 => String::new(),
            n => format!(", {n} have keys of a function that this program does not know"),
        };
        out.plain(format!("{} blobs were hashed{unknown}", found.hashed_records))?;
    }
    out.plain(format!("{} records are whole ({}), {} are damaged", found.good_records, ByteSize(found.payload_bytes), found.bad_records))
}
