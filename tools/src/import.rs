//! `blockstore-tool import`: puts what an archive of `export`, or a bazel-remote directory, holds into a store.
//!
//! Always true here: nothing is put whose bytes do not have the hash that the archive, or its key, says; what does not fit is counted and
//! left out; memory is bounded by one batch and a piece of a large blob.

use crate::{
    bazel_remote,
    export::{FIRST, HASH_RECORD, Header, LAST, Sums, VERSION},
    name,
    output::{Failure, Lines, Verdict, json},
    progress,
    store::{self, Target},
};
use blockstore_engine::{Begin, Engine, Key, KeySpace, PutError, PutOutcome};
use blockstore_names::{Hasher, keys};
use bytes::Bytes;
use bytesize::ByteSize;
use sha2::{Digest as _, Sha256};
use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

/// Values up to this size are put from memory, in batches.
const WHOLE_BYTES_MAX: u64 = 1 << 20;
const BATCH_BYTES_MAX: usize = 4 << 20;
const BATCH_MAX: usize = 256;
const PIECE_BYTES: usize = 1 << 20;

/// Put blobs, action results and entries into a store: from an archive that `export` wrote, or from the directory of a bazel-remote
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// The archive; - is stdin
    #[arg(required_unless_present = "from_bazel_remote", conflicts_with = "from_bazel_remote")]
    archive: Option<PathBuf>,
    /// The directory of a bazel-remote (its --dir), uncompressed or zstd, while it does not run
    #[arg(long, value_name = "DIR")]
    from_bazel_remote: Option<PathBuf>,
    /// The instance whose action results those of the bazel-remote become
    #[arg(long, default_value = "", requires = "from_bazel_remote")]
    instance: String,
}

/// What was put, and what was not.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Imported {
    pub(crate) contents: u64,
    pub(crate) named: u64,
    pub(crate) bytes: u64,
    pub(crate) present: u64,
    pub(crate) damaged: u64,
    pub(crate) too_large: u64,
}

/// A store that things are put into, in batches.
pub(crate) struct Importer {
    engine: Engine,
    batch: Vec<(Key, Bytes)>,
    batch_bytes: usize,
    pub(crate) done: Imported,
}

pub(crate) async fn run(arguments: Arguments) -> Result<Verdict, Failure> {
    let engine = store::open(&arguments.target.path()).await?;
    let mut importer = Importer { engine: engine.clone(), batch: Vec::new(), batch_bytes: 0, done: Imported::default() };
    let result = match (&arguments.from_bazel_remote, &arguments.archive) {
        (Some(directory), _) => bazel_remote::import(&mut importer, directory, &arguments.instance).await,
        (None, Some(archive)) => from_archive(&mut importer, archive).await,
        (None, None) => Err(Failure::usage("name an archive, or a directory with --from-bazel-remote")),
    };
    let result = match result {
        Ok(()) => importer.put_batch().await,
        failed => failed,
    };
    // What was put stays, also where the rest could not be.
    let closed = engine.close().await;
    result?;
    closed?;
    let done = importer.done;
    let verdict = Verdict::of(done.damaged > 0);
    if arguments.target.json {
        json(&serde_json::json!({
            "verdict": verdict.word(), "contents": done.contents, "named": done.named, "bytes": done.bytes, "present": done.present,
            "damaged": done.damaged, "too_large": done.too_large,
        }))?;
        return Ok(verdict);
    }
    let mut out = Lines::new();
    out.plain(format!("{} blobs and {} named values were stored ({})", done.contents, done.named, ByteSize(done.bytes)))?;
    for (n, what) in [
        (done.present, "were there already"),
        (done.damaged, "were left out because they are damaged"),
        (done.too_large, "were left out because they are larger than this store takes"),
    ] {
        if n > 0 {
            out.plain(format!("{n} {what}"))?;
        }
    }
    Ok(verdict)
}

impl Importer {
    /// Puts a value that is in memory, sooner or later.
    pub(crate) async fn put(&mut self, key: Key, data: Bytes) -> Result<(), Failure> {
        if key.space == KeySpace::Named && data.len() as u64 > self.engine.named_bytes_max() {
            self.done.too_large += 1;
            return Ok(());
        }
        self.batch_bytes += data.len();
        self.batch.push((key, data));
        match self.batch.len() >= BATCH_MAX || self.batch_bytes >= BATCH_BYTES_MAX {
            true => self.put_batch().await,
            false => Ok(()),
        }
    }

    async fn put_batch(&mut self) -> Result<(), Failure> {
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        let about: Vec<(KeySpace, u64)> = batch.iter().map(|(key, data)| (key.space, data.len() as u64)).collect();
        for (result, (space, size_bytes)) in self.engine.put_batch(batch).await.into_iter().zip(about) {
            self.count(result, space, size_bytes)?;
        }
        Ok(())
    }

    fn count(&mut self, result: Result<PutOutcome, PutError>, space: KeySpace, size_bytes: u64) -> Result<(), Failure> {
        match (result, space) {
            (Ok(PutOutcome::AlreadyPresent), _) => self.done.present += 1,
            (Ok(PutOutcome::Stored), KeySpace::Content) => self.done.contents += 1,
            (Ok(PutOutcome::Stored), KeySpace::Named) => self.done.named += 1,
            (Err(PutError::TooLarge { .. }), _) => {
                self.done.too_large += 1;
                return Ok(());
            }
            (Err(error), _) => return Err(error.into()),
        }
        self.done.bytes += size_bytes;
        Ok(())
    }

    /// Puts content from a reader of exactly `size_bytes`, if what comes is what `is_right` takes.
    pub(crate) async fn put_content(
        &mut self,
        key: Key,
        size_bytes: u64,
        mut data: impl Read,
        mut see: impl FnMut(&[u8]),
        is_right: impl FnOnce() -> bool,
    ) -> Result<(), Failure> {
        if size_bytes <= WHOLE_BYTES_MAX {
            // One byte more shows that there is more.
            let mut whole = Vec::with_capacity(size_bytes as usize);
            let read = data.take(size_bytes + 1).read_to_end(&mut whole);
            see(&whole);
            if read.is_err() || whole.len() as u64 != size_bytes || !is_right() {
                self.done.damaged += 1;
                return Ok(());
            }
            return self.put(key, whole.into()).await;
        }
        let mut upload = match self.engine.begin_upload(key, size_bytes).await {
            Ok(Begin::AlreadyPresent) => {
                self.done.present += 1;
                return Ok(());
            }
            Ok(Begin::Upload(upload)) => upload,
            Err(error) => return self.count(Err(error), KeySpace::Content, size_bytes),
        };
        let mut piece = vec![0; PIECE_BYTES];
        let mut left = size_bytes;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            let Some(part) = piece.get_mut(..want) else { break };
            if data.read_exact(part).is_err() {
                self.done.damaged += 1;
                return Ok(());
            }
            see(part);
            upload.write(part).await?;
            left -= want as u64;
        }
        let more = data.read(&mut [0]).map_or(true, |n| n > 0);
        if more || !is_right() {
            self.done.damaged += 1;
            return Ok(());
        }
        let outcome = upload.finish().await;
        self.count(outcome, KeySpace::Content, size_bytes)
    }
}

fn key_of(path: &Path) -> Option<Key> {
    let path = path.to_str()?;
    name::parse(&path.replace('/', ":")).ok().map(|(key, _)| key)
}

async fn from_archive(importer: &mut Importer, path: &Path) -> Result<(), Failure> {
    let input: Box<dyn Read> = match path.as_os_str() == "-" {
        true => Box::new(BufReader::new(io::stdin())),
        false => {
            let file = File::open(path).map_err(|error| Failure::usage(format!("cannot open {}: {error}", path.display())))?;
            let bar = progress::bytes("import", file.metadata().map_or(0, |metadata| metadata.len()));
            Box::new(BufReader::with_capacity(1 << 20, bar.wrap_read(file)))
        }
    };
    let mut archive = tar::Archive::new(input);
    let broken = |error: io::Error| Failure::damage(format!("{} is damaged or cut off: {error}", path.display()));
    let mut sums = Sums::default();
    let mut end: Option<Sums> = None;
    let mut begun = false;
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let entry_path = entry.path().map_err(broken)?.into_owned();
        let size_bytes = entry.header().size().map_err(broken)?;
        if entry_path == Path::new(FIRST) {
            let header: Header = small_json(&mut entry).map_err(broken)?;
            if header.version != VERSION {
                let why = format!("has form {}, this program reads form {VERSION}", header.version);
                return Err(Failure::usage(format!("{} {why}", path.display())));
            }
            begun = true;
            continue;
        }
        if !begun {
            return Err(Failure::usage(format!("{} is no archive of `blockstore-tool export`", path.display())));
        }
        if entry_path == Path::new(LAST) {
            end = Some(small_json(&mut entry).map_err(broken)?);
            continue;
        }
        let expected = pax_hash(&mut entry).map_err(broken)?;
        let (Some(key), Some(expected)) = (key_of(&entry_path), expected) else {
            importer.done.damaged += 1;
            continue;
        };
        match key.space {
            KeySpace::Content => sums.contents += 1,
            KeySpace::Named => sums.named += 1,
        }
        sums.bytes += size_bytes;
        let function = name::function(&key);
        if key.space == KeySpace::Named {
            if size_bytes > 64 << 20 {
                importer.done.too_large += 1;
                continue;
            }
            let mut value = Vec::new();
            entry.read_to_end(&mut value).map_err(broken)?;
            match hex::encode(Sha256::digest(&value)) == expected {
                true => importer.put(key, value.into()).await?,
                false => importer.done.damaged += 1,
            }
            continue;
        }
        let mut plain = Sha256::new();
        let mut own = function.map(|function| Hasher::new(function, size_bytes));
        let seen = std::cell::RefCell::new((&mut plain, &mut own));
        let see = |data: &[u8]| {
            let (plain, own) = &mut *seen.borrow_mut();
            plain.update(data);
            if let Some(own) = own {
                own.update(data);
            }
        };
        let is_right = || {
            let (plain, own) = &mut *seen.borrow_mut();
            hex::encode(std::mem::take(*plain).finalize()) == expected
                && own.take().is_none_or(|own| keys::content_key(&own.finish()) == key)
        };
        importer.put_content(key, size_bytes, &mut entry, see, is_right).await?;
    }
    match end {
        Some(end) if end == sums => Ok(()),
        Some(_) => Err(Failure::damage(format!("{} does not hold what its end says", path.display()))),
        None => Err(Failure::damage(format!("{} has no end: it was cut off; what it held was stored", path.display()))),
    }
}

fn small_json<T: serde::de::DeserializeOwned>(entry: &mut impl Read) -> io::Result<T> {
    let mut bytes = Vec::new();
    entry.take(64 << 10).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

fn pax_hash<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Option<String>> {
    let Some(records) = entry.pax_extensions()? else { return Ok(None) };
    for record in records {
        let record = record?;
        if record.key() == Ok(HASH_RECORD) {
            return Ok(record.value().ok().map(str::to_string));
        }
    }
    Ok(None)
}
