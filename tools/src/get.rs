//! `blockstore-tool get`: the bytes of one key.

use crate::{
    name,
    output::{Failure, Verdict, defect, json},
    store::{self, Target},
};
use blockstore_engine::offline::Trust;
use std::{
    fs::File,
    io::{self, Write},
    path::PathBuf,
};

/// Read one blob, or what is under another key, and write it to stdout or a file
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// A digest, [FUNCTION/]HASH[/SIZE], or a key as `ls` prints it
    name: String,
    /// Write the bytes here (and with --json what they are to stdout)
    #[arg(long, short, value_name = "FILE", required_if_eq("json", "true"))]
    output: Option<PathBuf>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<Verdict, Failure> {
    let (key, size_bytes) = name::parse(&arguments.name)?;
    let store = store::read(&arguments.target.path(), false, Trust::One).await?;
    let told = |what| Failure::damage(format!("{} {}", arguments.name, defect(what)));
    let Some(mut object) = store.find(&key, size_bytes).await.map_err(told)? else {
        return Err(Failure::usage(format!("{} is not in the store", arguments.name)));
    };
    let mut out: Box<dyn Write> = match &arguments.output {
        Some(file) => Box::new(File::create(file).map_err(|error| Failure::usage(format!("--output {}: {error}", file.display())))?),
        None => Box::new(io::stdout().lock()),
    };
    while let Some(piece) = crate::decode::next(&mut object).await {
        out.write_all(&piece.map_err(told)?)?;
    }
    out.flush()?;
    if arguments.target.json {
        let record = object.record;
        json(&serde_json::json!({
            "kind": name::kind(&record), "name": name::of(&record.key, record.size_bytes), "size_bytes": record.size_bytes,
            "age_ticks": record.age_ticks, "block": record.block, "offset_bytes": record.offset_bytes,
        }))?;
    }
    Ok(Verdict::Sound)
}
