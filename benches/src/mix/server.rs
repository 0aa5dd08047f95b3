//! The server, by either protocol: blobs and action results that are known by a key.
//!
//! Always true here: what is read is compared with what its key stands for, byte for byte, unless that was switched off; what the
//! server does not have is told apart from what it got wrong.

use super::Key;
use crate::{
    connect::connect,
    data::{Series, SmallBlob},
    grpc::{Session, decode, missing_in},
    http::Pool,
    options::ClientOptions,
};
use blockstore_proto::reapi::{ActionResult, Digest, OutputFile};
use blockstore_tests::blob::digest_of;
use prost::Message;
use std::{
    collections::HashSet,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Blobs up to this size go as a batch of one over gRPC, and as a stream above it.
const BATCH_BYTES_MAX: u64 = 32 << 10;

/// Connections of one protocol or of both, which take turns then.
#[derive(Debug)]
pub(super) struct Server {
    session: Option<Session>,
    pool: Option<Pool>,
    seed: u64,
    message_bytes: usize,
    verify: bool,
    turn: AtomicU64,
}

enum Way<'a> {
    Grpc(&'a Session, u64),
    Http(&'a Pool),
}

impl Server {
    /// Opens the connections.
    pub(super) async fn connect(client: &ClientOptions, seed: u64) -> Result<Self, String> {
        let (session, pool) = connect(client).await?;
        let (message_bytes, verify) = (client.message_bytes(), !client.no_verify);
        Ok(Self { session, pool, seed, message_bytes, verify, turn: AtomicU64::new(0) })
    }

    fn way(&self) -> Result<Way<'_>, String> {
        let turn = self.turn.fetch_add(1, Relaxed);
        match (&self.session, &self.pool) {
            (Some(_), Some(pool)) if turn % 2 == 1 => Ok(Way::Http(pool)),
            // Connections take turns among the calls of their protocol.
            (Some(session), Some(_)) => Ok(Way::Grpc(session, turn / 2)),
            (Some(session), None) => Ok(Way::Grpc(session, turn)),
            (None, Some(pool)) => Ok(Way::Http(pool)),
            (None, None) => Err("needs --remote or --http".into()),
        }
    }

    fn series(&self, key: Key) -> Series {
        Series::new(self.seed, usize::try_from(key.size_bytes).unwrap_or(usize::MAX), self.message_bytes)
    }

    /// Stores a blob.
    pub(super) async fn put(&self, key: Key) -> Result<(), String> {
        let series = self.series(key);
        match self.way()? {
            Way::Grpc(session, number) if key.size_bytes <= BATCH_BYTES_MAX => {
                let blob = SmallBlob { digest: series.digest(key.number), data: series.whole(key.number) };
                session.update(number, session.update_request(&[blob])).await
            }
            Way::Grpc(session, number) => session.write(number, &series, key.number).await,
            Way::Http(pool) => pool.write(&series, key.number).await,
        }
    }

    /// Reads a blob; whether it was there.
    pub(super) async fn get(&self, key: Key) -> Result<bool, String> {
        let series = self.series(key);
        let digest = series.digest(key.number);
        match self.way()? {
            Way::Grpc(session, number) if key.size_bytes <= BATCH_BYTES_MAX => {
                session.read_small(number, &series, key.number, digest).await
            }
            Way::Grpc(session, number) => session.read(number, &series, key.number, &digest).await,
            Way::Http(pool) => pool.read(&series, key.number, &digest.hash).await,
        }
    }

    /// How many of these blobs are missing.
    pub(super) async fn find(&self, keys: &[Key]) -> Result<u64, String> {
        let digests: Vec<_> = keys.iter().map(|key| self.series(*key).digest(key.number)).collect();
        match self.way()? {
            Way::Grpc(session, number) => {
                let missing = missing_in(session.find(number, session.find_request(digests.clone())).await?)?;
                let asked: HashSet<_> = digests.iter().map(|digest| &digest.hash).collect();
                if let Some(other) = missing.iter().find(|digest| !asked.contains(&digest.hash)) {
                    return Err(format!("{} is said to be missing, but was not asked for", other.hash));
                }
                Ok(missing.len() as u64)
            }
            Way::Http(pool) => {
                let mut missing = 0;
                for digest in &digests {
                    missing += u64::from(!pool.has(&digest.hash).await?);
                }
                Ok(missing)
            }
        }
    }

    /// Stores the result of an action, which names the blob of its key; its size in bytes.
    pub(super) async fn action_put(&self, key: Key) -> Result<u64, String> {
        let (action, result) = (self.action(key), self.result(key));
        match self.way()? {
            Way::Grpc(session, number) => session.update_action(number, action, result).await,
            Way::Http(pool) => {
                let result = result.encode_to_vec();
                let bytes = result.len() as u64;
                pool.update_action(&action.hash, result.into()).await?;
                Ok(bytes)
            }
        }
    }

    /// Reads the result of an action; its size in bytes if it was there.
    pub(super) async fn action_get(&self, key: Key) -> Result<Option<u64>, String> {
        let action = self.action(key);
        let answer = match self.way()? {
            Way::Grpc(session, number) => session.action(number, session.action_request(action)).await?,
            Way::Http(pool) => pool.action(&action.hash).await?,
        };
        let Some(answer) = answer else { return Ok(None) };
        let bytes = answer.len() as u64;
        if self.verify && decode::<ActionResult>(answer)?.output_files != self.result(key).output_files {
            return Err("another result was read than was stored".into());
        }
        Ok(Some(bytes))
    }

    fn action(&self, key: Key) -> Digest {
        digest_of(format!("action {} {} {}", self.seed, key.number, key.size_bytes).as_bytes())
    }

    fn result(&self, key: Key) -> ActionResult {
        let digest = Some(self.series(key).digest(key.number));
        let output = OutputFile { path: "out/lib/library.a".into(), digest, ..OutputFile::default() };
        ActionResult { output_files: vec![output], ..ActionResult::default() }
    }
}
