//! `blockstore-tool ls`: what is in a store.
//!
//! Always true here: a list in the order of the store is printed as it is read; a sorted one holds no more than its limit.

use crate::{
    name,
    output::{Failure, Verdict, defect, json_line},
    store::{self, Target},
};
use blockstore_engine::offline::{Record, RecordKind, Trust, VisitOptions, Visited, Want};
use bytesize::ByteSize;
use clap::ValueEnum;
use serde_json::json;
use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io::{self, BufWriter, Write},
    ops::ControlFlow,
};

/// Most lines of a sorted list: what is held in memory.
const SORTED_MAX: usize = 1_000_000;

/// List what is in a store: kind, age, size and name of each blob, action result and entry
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Order: as they lie, longest unwanted first, or largest first
    #[arg(long, value_enum, default_value_t = Order::Place)]
    by: Order,
    /// Most lines; at most 1,000,000 (the default) of a sorted list
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Only this kind: blob, `large_blob`, `action_result`, entry, part, or "unknown kind N"
    #[arg(long)]
    kind: Option<String>,
    /// Only blobs of this digest function, e.g. sha256
    #[arg(long)]
    function: Option<String>,
    /// Only keys whose hash begins with these hex digits
    #[arg(long, value_name = "HEX")]
    prefix: Option<String>,
    /// Only what is at least so large
    #[arg(long, value_name = "BYTES")]
    size_min: Option<ByteSize>,
    /// Only what is at most so large
    #[arg(long, value_name = "BYTES")]
    size_max: Option<ByteSize>,
    /// Only what was last wanted at least so many ticks ago (0 to 7)
    #[arg(long, value_name = "TICKS")]
    age_min: Option<u8>,
    /// Only what was last wanted at most so many ticks ago
    #[arg(long, value_name = "TICKS")]
    age_max: Option<u8>,
    /// Also parts of large blobs
    #[arg(long)]
    parts: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Order {
    Place,
    Age,
    Size,
}

/// A record in a sorted list; the greatest is printed first.
#[derive(PartialEq, Eq)]
struct Ranked {
    rank: u64,
    offset_bytes: Reverse<u64>,
    record: Record,
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.rank, self.offset_bytes).cmp(&(other.rank, other.offset_bytes))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<Verdict, Failure> {
    let limit = match (arguments.by, arguments.limit) {
        (Order::Place, limit) => limit.unwrap_or(usize::MAX),
        (_, Some(limit)) if limit > SORTED_MAX => {
            return Err(Failure::usage(format!(
                "--limit {limit}: a sorted list has at most {SORTED_MAX} lines; sort the list by place instead"
            )));
        }
        (_, limit) => limit.unwrap_or(SORTED_MAX),
    };
    let store = store::read(&arguments.target.path(), false, Trust::One).await?;
    let options = VisitOptions { want: Want::Heads, without_parts: !wants_parts(&arguments), ..VisitOptions::default() };
    let mut out = BufWriter::new(io::stdout().lock());
    let mut ranked: BinaryHeap<Reverse<Ranked>> = BinaryHeap::new();
    let (mut printed, mut bad_records) = (0usize, 0u64);
    let mut failed: Option<io::Error> = None;
    let _ = store
        .visit(0..store.block_count(), &options, |visited| {
            let record = match visited {
                Visited::Record(record, _) if wanted(&arguments, &record) => record,
                Visited::Bad(bad) => {
                    bad_records += 1;
                    eprintln!("blockstore-tool: record at byte {} (block {}) {}", bad.offset_bytes, bad.block, defect(bad.defect));
                    return ControlFlow::Continue(());
                }
                _ => return ControlFlow::Continue(()),
            };
            let rank = match arguments.by {
                Order::Place => {
                    printed += 1;
                    if printed > limit {
                        return ControlFlow::Break(());
                    }
                    return match line(&mut out, &record, arguments.target.json) {
                        Ok(()) => ControlFlow::Continue(()),
                        Err(error) => {
                            failed = Some(error);
                            ControlFlow::Break(())
                        }
                    };
                }
                Order::Age => u64::from(record.age_ticks),
                Order::Size => record.size_bytes,
            };
            ranked.push(Reverse(Ranked { rank, offset_bytes: Reverse(record.offset_bytes), record }));
            if ranked.len() > limit {
                ranked.pop();
            }
            ControlFlow::Continue(())
        })
        .await;
    if let Some(error) = failed {
        return Err(error.into());
    }
    for Reverse(Ranked { record, .. }) in ranked.into_sorted_vec() {
        line(&mut out, &record, arguments.target.json)?;
    }
    out.flush()?;
    Ok(Verdict::of(bad_records > 0))
}

fn wants_parts(arguments: &Arguments) -> bool {
    arguments.parts || arguments.kind.as_deref() == Some("part")
}

fn wanted(arguments: &Arguments, record: &Record) -> bool {
    let age = arguments.age_min.is_none_or(|age| record.age_ticks >= age) && arguments.age_max.is_none_or(|age| record.age_ticks <= age);
    let size = arguments.size_min.is_none_or(|size| record.size_bytes >= size.as_u64())
        && arguments.size_max.is_none_or(|size| record.size_bytes <= size.as_u64());
    let kind = arguments.kind.as_ref().is_none_or(|kind| *kind == name::kind(record));
    let function = arguments.function.as_ref().is_none_or(|function| name::function(&record.key).is_some_and(|f| f.name() == function));
    let prefix = arguments.prefix.as_ref().is_none_or(|prefix| hex::encode(record.key.hash).starts_with(&prefix.to_lowercase()));
    age && size && kind && function && prefix
}

fn line(out: &mut impl Write, record: &Record, as_json: bool) -> io::Result<()> {
    let key_name = match record.kind {
        RecordKind::Part => format!("part {} of {}", record.part.unwrap_or(0), name::of(&record.key, 0).trim_end_matches("/0")),
        _ => name::of(&record.key, record.size_bytes),
    };
    if as_json {
        let digest = name::digest(&record.key, record.size_bytes).filter(|_| record.kind != RecordKind::Part);
        return json_line(
            out,
            &json!({
                "kind": name::kind(record), "name": key_name,
                "function": name::function(&record.key).map(|function| function.name()), "function_number": record.key.function,
                "hash": digest.map(|digest| digest.hash_hex()), "key": hex::encode(record.key.hash), "part": record.part,
                "size_bytes": record.size_bytes, "record_bytes": record.record_bytes, "age_ticks": record.age_ticks,
                "block": record.block, "offset_bytes": record.offset_bytes, "epoch": record.epoch, "lsn": record.lsn,
            }),
        );
    }
    writeln!(out, "{:<14} {} {:>12} {key_name}", name::kind(record), record.age_ticks, record.size_bytes)
}
