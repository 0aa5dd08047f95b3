//! The phases over gRPC whose blobs are small: what is sent, what must come back, and what is stored before a phase starts.

use super::{GoalsOptions, phase::Phase};
use crate::{
    connect::connect,
    data::{SmallBlob, missing_digest, small_blob},
    grpc::{Session, decode, missing_in},
    http::Pool,
    measure::{Bounds, Done, Outcome, phase},
    process::ServerProcess,
};
use blockstore_proto::reapi::{ActionResult, BatchReadBlobsResponse, Digest, OutputFile, batch_read_blobs_response::Response};
use blockstore_tests::blob::{Random, digest_of};
use bytes::Bytes;
use std::sync::Arc;

/// Blobs in one batch.
const BATCH_BLOBS: usize = 200;
/// Digests in one question.
const FIND_DIGESTS: usize = 1000;
/// Small blobs that are stored for the phases that read.
const SMALL_BLOBS: usize = 20_000;
/// Different requests of a phase that reads; they are sent over and over.
const REQUESTS: usize = 64;
/// What is made ahead for the phase of batch updates, in bytes.
const PREPARED_BYTES_MAX: u64 = 256 << 20;
/// Action results that are stored for the phase that reads them.
const ACTIONS: u64 = 4096;

/// The server and what has been stored there.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    pub(super) options: &'a GoalsOptions,
    pub(super) random: Random,
    session: Option<Session>,
    pool: Option<Pool>,
    pub(super) process: Option<&'a ServerProcess>,
    /// Stored once a phase needs them.
    small: Option<Arc<Vec<SmallBlob>>>,
}

impl<'a> Bench<'a> {
    /// Opens the connections.
    pub(super) async fn connect(options: &'a GoalsOptions, seed: u64, process: Option<&'a ServerProcess>) -> Result<Self, String> {
        let (session, pool) = connect(&options.client).await?;
        Ok(Self { options, random: Random::new(seed), session, pool, process, small: None })
    }

    /// Forgets what was stored, which the server may have dropped since.
    pub(super) fn begin_run(&mut self) {
        self.small = None;
    }

    /// Prepares a phase and runs it.
    pub(super) async fn run(&mut self, phase: Phase) -> Result<Outcome, String> {
        match phase {
            Phase::BatchPut => self.batch_put().await,
            Phase::FindHit => self.find(true).await,
            Phase::FindMiss => self.find(false).await,
            Phase::BatchGet => self.batch_get().await,
            Phase::AcPut => self.action_put().await,
            Phase::AcGet => self.action_get().await,
            Phase::BsPut64k | Phase::BsPut1m | Phase::BsPutBig | Phase::HttpPut64k | Phase::HttpPut1m => self.put(phase).await,
            Phase::BsGet64k | Phase::BsGet1m | Phase::BsGetBig | Phase::HttpGet64k | Phase::HttpGet1m => self.get(phase).await,
        }
    }

    pub(super) fn session(&self) -> Result<Session, String> {
        self.session.clone().ok_or_else(|| "needs --remote".into())
    }

    pub(super) fn pool(&self) -> Result<Pool, String> {
        self.pool.clone().ok_or_else(|| "needs --http".into())
    }

    pub(super) fn bounds(&self, operations_max: u64) -> Bounds {
        Bounds { duration: self.options.seconds, operations_max, in_flight: self.options.client.in_flight.into() }
    }

    async fn batch_put(&mut self) -> Result<Outcome, String> {
        let session = self.session()?;
        let mut requests = Vec::new();
        let mut prepared_bytes = 0;
        while prepared_bytes < PREPARED_BYTES_MAX.min(self.options.upload_bytes_max()) {
            let blobs: Vec<_> = (0..BATCH_BLOBS).map(|_| small_blob(&mut self.random)).collect();
            let request = session.update_request(&blobs);
            prepared_bytes += request.len() as u64;
            requests.push((request, payload_bytes(&blobs)));
        }
        let bounds = self.bounds(requests.len() as u64);
        let requests: Arc<[(Bytes, u64)]> = requests.into();
        phase(bounds, self.process, move |number| {
            let (session, requests) = (session.clone(), requests.clone());
            async move {
                let (request, bytes) = &requests[number as usize];
                session.update(number, request.clone()).await?;
                Ok(Done { units: BATCH_BLOBS as u64, bytes: *bytes })
            }
        })
        .await
    }

    /// Blobs that are stored, and stay so while nothing rotates.
    async fn small(&mut self) -> Result<Arc<Vec<SmallBlob>>, String> {
        if let Some(small) = &self.small {
            return Ok(small.clone());
        }
        let session = self.session()?;
        let blobs: Vec<_> = (0..SMALL_BLOBS).map(|_| small_blob(&mut self.random)).collect();
        for (number, batch) in (0..).zip(blobs.chunks(BATCH_BLOBS)) {
            session.update(number, session.update_request(batch)).await?;
        }
        Ok(self.small.insert(Arc::new(blobs)).clone())
    }

    async fn find(&mut self, present: bool) -> Result<Outcome, String> {
        let session = self.session()?;
        let mut requests = Vec::new();
        for _ in 0..REQUESTS {
            let digests: Vec<_> = match present {
                true => {
                    let small = self.small().await?;
                    (0..FIND_DIGESTS).map(|_| pick(&mut self.random, &small).digest.clone()).collect()
                }
                false => (0..FIND_DIGESTS).map(|_| missing_digest(&mut self.random)).collect(),
            };
            let expected = if present { Vec::new() } else { digests.clone() };
            requests.push((session.find_request(digests), expected));
        }
        let requests: Arc<[(Bytes, Vec<Digest>)]> = requests.into();
        phase(self.bounds(u64::MAX), self.process, move |number| {
            let (session, requests) = (session.clone(), requests.clone());
            async move {
                let (request, expected) = &requests[number as usize % REQUESTS];
                let answer = session.find(number, request.clone()).await?;
                // Present or not is checked in any case; which ones are missing takes more of the client.
                if answer.is_empty() != expected.is_empty() {
                    return Err(format!("answer of {} bytes, but {} digests are missing", answer.len(), expected.len()));
                }
                if session.verify && missing_in(answer)? != *expected {
                    return Err("other digests are missing than should be".into());
                }
                Ok(Done { units: FIND_DIGESTS as u64, bytes: request.len() as u64 })
            }
        })
        .await
    }

    async fn batch_get(&mut self) -> Result<Outcome, String> {
        let session = self.session()?;
        let small = self.small().await?;
        let mut requests = Vec::new();
        for _ in 0..REQUESTS {
            let blobs: Vec<_> = (0..BATCH_BLOBS).map(|_| pick(&mut self.random, &small).clone()).collect();
            requests.push((session.read_request(blobs.iter().map(|blob| blob.digest.clone()).collect()), blobs));
        }
        let requests: Arc<[(Bytes, Vec<SmallBlob>)]> = requests.into();
        phase(self.bounds(u64::MAX), self.process, move |number| {
            let (session, requests) = (session.clone(), requests.clone());
            async move {
                let (request, blobs) = &requests[number as usize % REQUESTS];
                let answer = session.read_batch(number, request.clone()).await?;
                let bytes = payload_bytes(blobs);
                if (answer.len() as u64) < bytes {
                    return Err(format!("answer of {} bytes for blobs of {bytes}", answer.len()));
                }
                if session.verify {
                    let answer: BatchReadBlobsResponse = decode(answer)?;
                    let equal =
                        |(read, blob): (&Response, &SmallBlob)| read.digest.as_ref() == Some(&blob.digest) && read.data == blob.data;
                    if answer.responses.len() != blobs.len() || !answer.responses.iter().zip(blobs).all(equal) {
                        return Err("other bytes were read than were stored".into());
                    }
                }
                Ok(Done { units: BATCH_BLOBS as u64, bytes })
            }
        })
        .await
    }

    async fn action_put(&mut self) -> Result<Outcome, String> {
        let session = self.session()?;
        let actions = self.actions().await?;
        phase(self.bounds(u64::MAX), self.process, move |number| {
            let (session, actions) = (session.clone(), actions.clone());
            async move {
                let bytes = session.update_action(number, actions.digest(number), actions.result(number)).await?;
                Ok(Done { units: 1, bytes })
            }
        })
        .await
    }

    async fn action_get(&mut self) -> Result<Outcome, String> {
        let session = self.session()?;
        let actions = self.actions().await?;
        for number in 0..ACTIONS {
            session.update_action(number, actions.digest(number), actions.result(number)).await?;
        }
        let requests: Arc<[Bytes]> = (0..ACTIONS).map(|number| session.action_request(actions.digest(number))).collect();
        phase(self.bounds(u64::MAX), self.process, move |number| {
            let (session, requests, actions) = (session.clone(), requests.clone(), actions.clone());
            async move {
                let action = number * 1009 % ACTIONS;
                let answer = session.action(number, requests[action as usize].clone()).await?;
                let answer = answer.ok_or("the result of an action is missing that was stored")?;
                let bytes = answer.len() as u64;
                if session.verify && decode::<ActionResult>(answer)?.output_files != actions.result(action).output_files {
                    return Err("another result was read than was stored".into());
                }
                Ok(Done { units: 1, bytes })
            }
        })
        .await
    }

    async fn actions(&mut self) -> Result<Actions, String> {
        Ok(Actions { seed: self.random.next(), outputs: self.small().await? })
    }
}

/// Action results that can be made again: each names two blobs that are stored.
#[derive(Clone, Debug)]
struct Actions {
    seed: u64,
    outputs: Arc<Vec<SmallBlob>>,
}

impl Actions {
    fn digest(&self, number: u64) -> Digest {
        let mut action = self.seed.to_le_bytes().to_vec();
        action.extend_from_slice(&number.to_le_bytes());
        digest_of(&action)
    }

    fn result(&self, number: u64) -> ActionResult {
        let mut random = Random::new(self.seed ^ number);
        let output_files = ["out/lib/library.a", "out/lib/library.d"].map(|path| OutputFile {
            path: path.into(),
            digest: Some(pick(&mut random, &self.outputs).digest.clone()),
            ..OutputFile::default()
        });
        ActionResult { output_files: output_files.into(), ..ActionResult::default() }
    }
}

fn pick<'b>(random: &mut Random, blobs: &'b [SmallBlob]) -> &'b SmallBlob {
    &blobs[random.below(blobs.len() as u64) as usize]
}

fn payload_bytes(blobs: &[SmallBlob]) -> u64 {
    blobs.iter().map(|blob| blob.data.len() as u64).sum()
}
