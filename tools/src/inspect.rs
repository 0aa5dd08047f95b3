//! `blockstore-tool inspect`: what a store is, and what opening it would do. Works with any superblock that is left.

use crate::{
    output::{self, Failure, Lines, Verdict, bytes},
    served::{self, Address},
    store,
};
use blockstore_engine::offline::{BlockReport, BlockState, StoreReport, SuperblockCopy, Trust};
use bytesize::ByteSize;
use serde_json::{Value, json};
use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    time::Instant,
};

/// Blocks of a line of the map, and lines of it.
const MAP_COLUMNS: usize = 64;
const MAP_LINES_MAX: usize = 64;

/// Say what a store is: superblocks, geometry, log, images, blocks, objects, ages, and what opening it would do. Of a store that a server
/// holds, what the server says
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The directory given to `blockstored --dir`, a store's file, or a device
    #[arg(required_unless_present = "server")]
    store: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Ask the server that answers HTTP there. One that holds the store of a directory is found without
    #[arg(long, value_name = "[http://][USER:PASSWORD@]HOST:PORT", conflicts_with = "store")]
    server: Option<Address>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<Verdict, Failure> {
    let start = Instant::now();
    let path = match (&arguments.server, &arguments.store) {
        (Some(address), _) => {
            let status = served::ask(address).await.map_err(Failure::cannot_open)?;
            return served::print(address, &status, arguments.json);
        }
        (None, Some(store)) => store::path(store),
        (None, None) => return Err(Failure::usage("give a STORE, or --server")),
    };
    let store = match store::read(&path, false, Trust::One).await {
        Err(held) if held.is_held() => {
            let Some(address) = served::beside(&path) else {
                return Err(held.but("if that is a server, give its HTTP port: --server HOST:PORT"));
            };
            let status = served::ask(&address).await.map_err(|why| held.but(why))?;
            return served::print(&address, &status, arguments.json);
        }
        read => read?,
    };
    let recovery_ms = start.elapsed().as_millis() as u64;
    let report = store.report();
    let verdict = Verdict::of(report.is_damaged());
    match arguments.json {
        true => output::json(&document(&report, recovery_ms, verdict))?,
        false => print(&report, recovery_ms, verdict)?,
    }
    Ok(verdict)
}

fn copy_word(copy: &SuperblockCopy) -> &'static str {
    match copy {
        SuperblockCopy::Whole(_) => "whole",
        SuperblockCopy::Damaged => "damaged",
        SuperblockCopy::TooNew => "too_new",
        SuperblockCopy::Unreadable => "unreadable",
        _ => "absent",
    }
}

fn state_word(state: BlockState) -> &'static str {
    match state {
        BlockState::Free => "free",
        BlockState::Open => "open",
        BlockState::Sealed => "sealed",
    }
}

fn slot_letter(slot: u8) -> &'static str {
    if slot == 0 { "A" } else { "B" }
}

fn uuid(report: &StoreReport) -> String {
    hex::encode(report.uuid)
}

fn document(report: &StoreReport, recovery_ms: u64, verdict: Verdict) -> Value {
    let copies: Vec<Value> = report
        .copies
        .iter()
        .map(|copy| match &copy.copy {
            SuperblockCopy::Whole(s) => json!({
                "offset_bytes": copy.offset_bytes, "state": "whole", "sequence": s.sequence, "epoch": s.epoch, "clean": s.clean,
                "image_number": s.image_number, "in_force": SuperblockCopy::Whole(report.superblock.clone()) == copy.copy,
            }),
            other => json!({ "offset_bytes": copy.offset_bytes, "state": copy_word(other) }),
        })
        .collect();
    let blocks: Vec<Value> = (0u32..)
        .zip(&report.blocks)
        .map(|(block, b)| {
            json!({
                "block": block, "state": state_word(b.state), "vbn": b.vbn, "filled_bytes": b.filled_bytes, "live_bytes": b.live_bytes(),
                "live_slots": b.live_slots, "youngest_age_ticks": b.youngest_age_ticks(),
            })
        })
        .collect();
    let s = &report.superblock;
    json!({
        "uuid": uuid(report),
        "verdict": verdict.word(),
        "superblocks": copies,
        "superblocks_agree": report.superblocks_agree,
        "epoch": s.epoch,
        "clean": s.clean,
        "device_bytes": report.device_bytes,
        "store_bytes": s.store_bytes,
        "sector_bytes": s.sector_bytes,
        "block_bytes": s.block_bytes,
        "block_count": s.block_count,
        "vbn_stride": s.vbn_stride,
        "log_offset_bytes": s.log_offset_bytes,
        "image_offsets_bytes": s.image_offsets_bytes,
        "blocks_offset_bytes": s.blocks_offset_bytes,
        "blocks": { "free": report.sums.free, "open": report.sums.open, "sealed": report.sums.sealed },
        "block_map": blocks,
        "image": report.image.map(|image| json!({
            "number": image.number, "slot": slot_letter(image.slot), "replay_after_lsn": image.replay_after,
            "entries_behind": image.entries_behind,
        })),
        "previous_image_number": s.previous_image_number,
        "log": {
            "pages": report.log_pages, "used_pages": report.log_used_pages, "last_lsn": report.last_lsn, "durable_lsn": report.durable_lsn,
        },
        "slots": report.slots,
        "live_slots": report.live_slots,
        "live_bytes": report.live_bytes,
        "objects": {
            "total": report.contents + report.large_objects + report.named, "contents": report.contents,
            "large_objects": report.large_objects, "named": report.named, "parts": report.parts,
        },
        "sizes": report.slots_by_record_bytes_max.iter()
            .map(|(bytes, slots)| json!({ "record_bytes_max": bytes, "slots": slots })).collect::<Vec<_>>(),
        "ages": report.slots_by_age.iter().zip(report.bytes_by_age).enumerate()
            .map(|(age, (slots, bytes))| json!({ "age_ticks": age, "slots": slots, "bytes": bytes })).collect::<Vec<_>>(),
        "retention": {
            "capacity_bytes": report.retention.capacity_bytes, "window_bytes": report.retention.window_bytes,
            "tick": report.retention.tick, "tick_bytes": report.retention.window_bytes / 4,
            "reclaim_slots": report.retention.reclaim_slots, "spare_blocks_wanted": report.retention.spare_blocks_wanted,
        },
        "recovery": {
            "expected_ms": recovery_ms, "read_bytes": report.recovery.read_bytes, "log_entries": report.recovery.log_entries,
            "unflushed_bytes": report.recovery.unflushed_bytes, "void_entries": report.recovery.void_entries,
        },
        "damage": {
            "superblocks": report.damaged_superblocks(), "log_entries": report.damaged_entries, "image_units": report.damaged_units,
            "block_heads": report.damaged_heads,
        },
    })
}

fn print(report: &StoreReport, recovery_ms: u64, verdict: Verdict) -> io::Result<()> {
    let mut out = Lines::new();
    let s = &report.superblock;
    out.line("store", uuid(report))?;
    for (number, copy) in report.copies.iter().enumerate() {
        let name = if number == 0 { "superblocks" } else { "" };
        let state = match &copy.copy {
            SuperblockCopy::Whole(s) => format!("whole, sequence {}", s.sequence),
            other => copy_word(other).replace('_', " "),
        };
        out.line(name, format!("{number} at byte {}: {state}", copy.offset_bytes))?;
    }
    if !report.superblocks_agree {
        out.line("", "no two agree: this is what the latest one alone says, and a server refuses the store (see `repair`)")?;
    }
    out.line("opened", format!("{} times", s.epoch))?;
    out.line("closed in order", if s.clean { "yes" } else { "no: opening it replays the log" })?;
    out.line("size", bytes(s.store_bytes))?;
    if report.device_bytes / 4096 * 4096 != s.store_bytes {
        out.line("", format!("of a device of {}: `grow` takes the rest", bytes(report.device_bytes)))?;
    }
    let sums = report.sums;
    let use_ = format!("{} free, {} open, {} sealed", sums.free, sums.open, sums.sealed);
    out.line("blocks", format!("{} of {}: {use_}", s.block_count, bytes(s.block_bytes)))?;
    match report.image {
        Some(i) => {
            let text = format!("number {} in slot {}, up to log position {}", i.number, slot_letter(i.slot), i.replay_after);
            out.line("image", format!("{text}, {} positions ago", i.entries_behind))?;
        }
        None => out.line("image", "none yet")?,
    }
    let percent = report.log_used_pages * 100 / report.log_pages.max(1);
    out.line("log", format!("{} of {} pages in use ({percent} %)", report.log_used_pages, report.log_pages))?;
    out.line("", format!("ends at position {}, flushed up to {}", report.last_lsn, report.durable_lsn))?;
    let objects = report.contents + report.large_objects + report.named;
    out.line("objects", format!("{objects}: {} small, {} large, {} named", report.contents, report.large_objects, report.named))?;
    out.line("index", format!("{} of {} slots, {} of them parts of large objects", report.live_slots, report.slots, report.parts))?;
    out.line("their records", format!("at most {}", bytes(report.live_bytes)))?;
    let r = &report.retention;
    out.line("capacity", bytes(r.capacity_bytes))?;
    out.line("retention", format!("what is wanted stays while less than {} is accepted after it", ByteSize(r.window_bytes)))?;
    let reclaim = format!("below {} free blocks, or from {} slots on", r.spare_blocks_wanted, r.reclaim_slots);
    out.line("room is made", reclaim)?;
    let recovery = &report.recovery;
    out.line("opening it", format!("reads {}, about {recovery_ms} ms", ByteSize(recovery.read_bytes)))?;
    out.line("", format!("goes through {} log entries, checks {} of records", recovery.log_entries, ByteSize(recovery.unflushed_bytes)))?;
    out.line("", format!("drops {} entries that nothing durable stands behind", recovery.void_entries))?;
    histogram(&mut out, report)?;
    map(&mut out, report)?;
    out.line(
        "damage",
        match verdict {
            Verdict::Sound => "none in superblocks, log, image and block headers".into(),
            Verdict::Damaged => format!(
                "{} superblocks, {} log pages or entries, {} image units, {} block headers",
                report.damaged_superblocks(),
                report.damaged_entries,
                report.damaged_units,
                report.damaged_heads
            ),
        },
    )
}

fn bar(n: u64, most: u64) -> String {
    "#".repeat(n.saturating_mul(40).div_ceil(most.max(1)) as usize)
}

fn histogram(out: &mut Lines, report: &StoreReport) -> io::Result<()> {
    // Length classes are an eighth apart: for people, powers of two.
    let mut sizes: Vec<(u64, u64)> = Vec::new();
    for (record_bytes, slots) in &report.slots_by_record_bytes_max {
        let power = record_bytes.next_power_of_two();
        match sizes.last_mut().filter(|(last, _)| *last == power) {
            Some((_, sum)) => *sum += slots,
            None => sizes.push((power, *slots)),
        }
    }
    let most = sizes.iter().map(|(_, slots)| *slots).max().unwrap_or(0);
    for (row, (record_bytes, slots)) in sizes.iter().enumerate() {
        let name = if row == 0 { "record sizes" } else { "" };
        out.line(name, format!("up to {:>9} {slots:>10} {}", ByteSize(*record_bytes).to_string(), bar(*slots, most)))?;
    }
    let most = report.bytes_by_age.iter().copied().max().unwrap_or(0);
    for (age, (slots, bytes)) in report.slots_by_age.iter().zip(report.bytes_by_age).enumerate() {
        let name = if age == 0 { "last wanted" } else { "" };
        let when = if age == 7 { "7 ticks ago or before".to_string() } else { format!("{age} ticks ago") };
        out.line(name, format!("{when:<22} {slots:>10} {:>9} {}", ByteSize(bytes).to_string(), bar(bytes, most)))?;
    }
    Ok(())
}

/// A character for each block, or for several where there are many.
fn map(out: &mut Lines, report: &StoreReport) -> io::Result<()> {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    // From what was wanted just now to what was wanted long ago.
    const COLOURS: [u8; 8] = [46, 82, 118, 154, 190, 220, 208, 196];
    let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let each = report.blocks.len().div_ceil(MAP_COLUMNS * MAP_LINES_MAX).max(1);
    let draw = |blocks: &[BlockReport]| -> String {
        let live: u64 = blocks.iter().map(BlockReport::live_bytes).sum();
        let room = report.superblock.block_bytes * blocks.len() as u64;
        let level = (live.saturating_mul(8) / room.max(1)).min(7) as usize;
        let character = match blocks.iter().map(|block| block.state).find(|state| *state != BlockState::Free) {
            None => '.',
            Some(BlockState::Open) => 'o',
            Some(_) => LEVELS.get(level).copied().unwrap_or('█'),
        };
        let age = blocks.iter().filter_map(BlockReport::youngest_age_ticks).min();
        match age.and_then(|age| COLOURS.get(usize::from(age))).filter(|_| colour) {
            Some(code) => format!("\x1b[38;5;{code}m{character}\x1b[0m"),
            None => character.to_string(),
        }
    };
    let meaning = if each == 1 { String::new() } else { format!(", each {each} blocks") };
    let ages = if colour { "; green was wanted just now, red long ago" } else { "" };
    out.line("block map", format!(". free, o open, ▁ to █ sealed by how much of it is in use{meaning}{ages}"))?;
    let cells: Vec<String> = report.blocks.chunks(each).map(draw).collect();
    for line in cells.chunks(MAP_COLUMNS) {
        out.line("", line.concat())?;
    }
    Ok(())
}
