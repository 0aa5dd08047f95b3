//! The rows: what is sent, what must come back, and what is stored before a row starts.

use crate::{
    data::{Series, SmallBlob, missing_digest, small_blob},
    options::Options,
    process::ServerProcess,
    run::{Bounds, Done, Outcome, phase},
    wire,
};
use blockstore_proto::{
    bytestream::{ReadRequest, WriteRequest, byte_stream_client::ByteStreamClient},
    reapi::{
        ActionResult, BatchReadBlobsRequest, BatchReadBlobsResponse, BatchUpdateBlobsRequest, BatchUpdateBlobsResponse, Digest,
        FindMissingBlobsRequest, FindMissingBlobsResponse, GetActionResultRequest, OutputFile, UpdateActionResultRequest,
        batch_update_blobs_request::Request,
    },
};
use blockstore_tests::{
    blob::{Random, digest_of},
    client::upload_name,
};
use bytes::Bytes;
use clap::ValueEnum;
use futures::stream;
use prost::Message;
use std::{sync::Arc, time::Duration};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

const BATCH_UPDATE: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs";
const BATCH_READ: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs";
const FIND_MISSING: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs";
const UPDATE_ACTION: &str = "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult";
const GET_ACTION: &str = "/build.bazel.remote.execution.v2.ActionCache/GetActionResult";

/// Blobs in one batch.
const BATCH_BLOBS: usize = 200;
/// Digests in one question.
const FIND_DIGESTS: usize = 1000;
/// Small blobs that are stored for the rows that read.
const SMALL_BLOBS: usize = 20_000;
/// Different requests of a row that reads; they are sent over and over.
const REQUESTS: usize = 64;
/// What is made ahead for the row of batch updates, in bytes.
const PREPARED_BYTES_MAX: u64 = 256 << 20;
/// Action results that are stored for the row that reads them.
const ACTIONS: u64 = 4096;
/// Stored for a row that reads streams, in bytes: one blob at least.
const STREAM_SET_BYTES: u64 = 64 << 20;
/// Bytes of large blobs that are in flight at the same time, at most, if that allows four.
const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;
/// Window of a stream and of a connection in bytes, as large as any client's.
const WINDOW_BYTES: u32 = 8 << 20;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Row {
    BatchUpdate,
    FindHit,
    FindMiss,
    BatchRead,
    UpdateAction,
    GetAction,
    #[value(name = "write-64k")]
    Write64k,
    #[value(name = "read-64k")]
    Read64k,
    #[value(name = "write-1m")]
    Write1m,
    #[value(name = "read-1m")]
    Read1m,
    #[value(name = "write-256m")]
    Write256m,
    #[value(name = "read-256m")]
    Read256m,
}

/// What the cost of a row is told in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Blob,
    Digest,
    Call,
    Gigabyte,
}

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Blob => "µs/blob",
            Self::Digest => "µs/digest",
            Self::Call => "µs/call",
            Self::Gigabyte => "CPU-s/GB",
        }
    }

    /// Whether bytes count, and not blobs, digests or calls.
    pub(crate) fn per_gigabyte(self) -> bool {
        self == Self::Gigabyte
    }
}

impl Row {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BatchUpdate => "batch-update",
            Self::FindHit => "find-hit",
            Self::FindMiss => "find-miss",
            Self::BatchRead => "batch-read",
            Self::UpdateAction => "update-action",
            Self::GetAction => "get-action",
            Self::Write64k => "write-64k",
            Self::Read64k => "read-64k",
            Self::Write1m => "write-1m",
            Self::Read1m => "read-1m",
            Self::Write256m => "write-256m",
            Self::Read256m => "read-256m",
        }
    }

    pub(crate) fn unit(self) -> Unit {
        match self {
            Self::BatchUpdate | Self::BatchRead => Unit::Blob,
            Self::FindHit | Self::FindMiss => Unit::Digest,
            Self::UpdateAction | Self::GetAction => Unit::Call,
            _ => Unit::Gigabyte,
        }
    }
}

/// The server and what has been stored there.
#[derive(Debug)]
pub(crate) struct Bench {
    options: Options,
    random: Random,
    session: Session,
    /// Stored once a row needs them.
    small: Option<Arc<Vec<SmallBlob>>>,
}

/// The connections, and what every call says.
#[derive(Clone, Debug)]
struct Session {
    channels: Arc<[Channel]>,
    instance: Arc<str>,
    verify: bool,
}

impl Bench {
    /// Opens the connections.
    pub(crate) async fn connect(options: Options) -> Result<Self, String> {
        let mut channels = Vec::new();
        for _ in 0..options.connections {
            let endpoint = Endpoint::from_shared(format!("http://{}", options.remote))
                .map_err(|error| format!("--remote {}: {error}", options.remote))?
                .connect_timeout(Duration::from_secs(10))
                .initial_stream_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES * 8)
                .max_frame_size(options.frame_bytes());
            let channel = endpoint.connect().await.map_err(|error| format!("cannot connect to {}: {error:?}", options.remote))?;
            channels.push(channel);
        }
        let session = Session { channels: channels.into(), instance: options.instance.as_str().into(), verify: !options.no_verify };
        Ok(Self { random: Random::new(options.seed()), session, options, small: None })
    }

    /// Prepares a row and runs it.
    pub(crate) async fn run(&mut self, row: Row, process: Option<&ServerProcess>) -> Result<Outcome, String> {
        const KIB: usize = 1 << 10;
        match row {
            Row::BatchUpdate => self.batch_update(process).await,
            Row::FindHit => self.find(true, process).await,
            Row::FindMiss => self.find(false, process).await,
            Row::BatchRead => self.batch_read(process).await,
            Row::UpdateAction => self.update_action(process).await,
            Row::GetAction => self.get_action(process).await,
            Row::Write64k => self.write(64 * KIB, process).await,
            Row::Write1m => self.write(KIB * KIB, process).await,
            Row::Write256m => self.write(256 * KIB * KIB, process).await,
            Row::Read64k => self.read(64 * KIB, process).await,
            Row::Read1m => self.read(KIB * KIB, process).await,
            Row::Read256m => self.read(256 * KIB * KIB, process).await,
        }
    }

    fn bounds(&self, operations_max: u64) -> Bounds {
        Bounds { duration: self.options.duration(), operations_max, in_flight: self.options.in_flight.into() }
    }

    /// The same, with fewer calls in flight where blobs are large.
    fn stream_bounds(&self, size_bytes: usize) -> Bounds {
        let mut bounds = self.bounds(self.options.upload_bytes_max() / size_bytes as u64);
        bounds.in_flight = bounds.in_flight.min((IN_FLIGHT_BYTES_MAX / size_bytes).max(4));
        bounds
    }

    async fn batch_update(&mut self, process: Option<&ServerProcess>) -> Result<Outcome, String> {
        let mut requests = Vec::new();
        let mut prepared_bytes = 0;
        while prepared_bytes < PREPARED_BYTES_MAX {
            let blobs: Vec<_> = (0..BATCH_BLOBS).map(|_| small_blob(&mut self.random)).collect();
            let request = self.session.update_request(&blobs);
            prepared_bytes += request.len() as u64;
            requests.push((request, payload_bytes(&blobs)));
        }
        let session = self.session.clone();
        let bounds = self.bounds(requests.len() as u64);
        let requests: Arc<[(Bytes, u64)]> = requests.into();
        phase(bounds, process, move |number| {
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
        let blobs: Vec<_> = (0..SMALL_BLOBS).map(|_| small_blob(&mut self.random)).collect();
        for (number, batch) in (0..).zip(blobs.chunks(BATCH_BLOBS)) {
            self.session.update(number, self.session.update_request(batch)).await?;
        }
        Ok(self.small.insert(Arc::new(blobs)).clone())
    }

    async fn find(&mut self, present: bool, process: Option<&ServerProcess>) -> Result<Outcome, String> {
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
            let request = FindMissingBlobsRequest {
                instance_name: self.session.instance.to_string(),
                blob_digests: digests,
                ..FindMissingBlobsRequest::default()
            };
            requests.push((Bytes::from(request.encode_to_vec()), expected));
        }
        let session = self.session.clone();
        let requests: Arc<[(Bytes, Vec<Digest>)]> = requests.into();
        phase(self.bounds(u64::MAX), process, move |number| {
            let (session, requests) = (session.clone(), requests.clone());
            async move {
                let (request, expected) = &requests[number as usize % REQUESTS];
                let answer = session.unary(number, FIND_MISSING, request.clone()).await?;
                // Present or not is checked in any case; which ones are missing takes more of the client.
                if answer.is_empty() != expected.is_empty() {
                    return Err(format!("answer of {} bytes, but {} digests are missing", answer.len(), expected.len()));
                }
                if session.verify && decode::<FindMissingBlobsResponse>(answer)?.missing_blob_digests != *expected {
                    return Err("other digests are missing than should be".into());
                }
                Ok(Done { units: FIND_DIGESTS as u64, bytes: request.len() as u64 })
            }
        })
        .await
    }

    async fn batch_read(&mut self, process: Option<&ServerProcess>) -> Result<Outcome, String> {
        let small = self.small().await?;
        let mut requests = Vec::new();
        for _ in 0..REQUESTS {
            let blobs: Vec<_> = (0..BATCH_BLOBS).map(|_| pick(&mut self.random, &small).clone()).collect();
            let request = BatchReadBlobsRequest {
                instance_name: self.session.instance.to_string(),
                digests: blobs.iter().map(|blob| blob.digest.clone()).collect(),
                ..BatchReadBlobsRequest::default()
            };
            requests.push((Bytes::from(request.encode_to_vec()), blobs));
        }
        let session = self.session.clone();
        let requests: Arc<[(Bytes, Vec<SmallBlob>)]> = requests.into();
        phase(self.bounds(u64::MAX), process, move |number| {
            let (session, requests) = (session.clone(), requests.clone());
            async move {
                let (request, blobs) = &requests[number as usize % REQUESTS];
                let answer = session.unary(number, BATCH_READ, request.clone()).await?;
                let bytes = payload_bytes(blobs);
                if (answer.len() as u64) < bytes {
                    return Err(format!("answer of {} bytes for blobs of {bytes}", answer.len()));
                }
                if session.verify {
                    let answer: BatchReadBlobsResponse = decode(answer)?;
                    let equal = |(read, blob): (_, &SmallBlob)| {
                        let read: &blockstore_proto::reapi::batch_read_blobs_response::Response = read;
                        read.digest.as_ref() == Some(&blob.digest) && read.data == blob.data
                    };
                    if answer.responses.len() != blobs.len() || !answer.responses.iter().zip(blobs).all(equal) {
                        return Err("other bytes were read than were stored".into());
                    }
                }
                Ok(Done { units: BATCH_BLOBS as u64, bytes })
            }
        })
        .await
    }

    async fn update_action(&mut self, process: Option<&ServerProcess>) -> Result<Outcome, String> {
        let actions = self.actions().await?;
        let session = self.session.clone();
        phase(self.bounds(u64::MAX), process, move |number| {
            let (session, actions) = (session.clone(), actions.clone());
            async move {
                let bytes = session.update_action(&actions, number).await?;
                Ok(Done { units: 1, bytes })
            }
        })
        .await
    }

    async fn get_action(&mut self, process: Option<&ServerProcess>) -> Result<Outcome, String> {
        let actions = self.actions().await?;
        for number in 0..ACTIONS {
            self.session.update_action(&actions, number).await?;
        }
        let requests: Arc<[Bytes]> = (0..ACTIONS)
            .map(|number| {
                let request = GetActionResultRequest {
                    instance_name: self.session.instance.to_string(),
                    action_digest: Some(actions.digest(number)),
                    ..GetActionResultRequest::default()
                };
                request.encode_to_vec().into()
            })
            .collect();
        let session = self.session.clone();
        phase(self.bounds(u64::MAX), process, move |number| {
            let (session, requests, actions) = (session.clone(), requests.clone(), actions.clone());
            async move {
                let action = number * 1009 % ACTIONS;
                let answer = session.unary(number, GET_ACTION, requests[action as usize].clone()).await?;
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

    async fn write(&mut self, size_bytes: usize, process: Option<&ServerProcess>) -> Result<Outcome, String> {
        let session = self.session.clone();
        let series = Series::new(self.random.next(), size_bytes, self.options.message_bytes());
        phase(self.stream_bounds(size_bytes), process, move |number| {
            let (session, series) = (session.clone(), series.clone());
            async move {
                session.write(&series, number).await?;
                Ok(Done { units: 1, bytes: size_bytes as u64 })
            }
        })
        .await
    }

    async fn read(&mut self, size_bytes: usize, process: Option<&ServerProcess>) -> Result<Outcome, String> {
        let session = self.session.clone();
        let series = Series::new(self.random.next(), size_bytes, self.options.message_bytes());
        let stored = (STREAM_SET_BYTES / size_bytes as u64).max(1);
        for number in 0..stored {
            session.write(&series, number).await?;
        }
        let digests: Arc<[Digest]> = (0..stored).map(|number| series.digest(number)).collect();
        let bounds = Bounds { operations_max: u64::MAX, ..self.stream_bounds(size_bytes) };
        phase(bounds, process, move |number| {
            let (session, series, digests) = (session.clone(), series.clone(), digests.clone());
            async move {
                let blob = number % digests.len() as u64;
                session.read(number, &series, blob, &digests[blob as usize]).await?;
                Ok(Done { units: 1, bytes: size_bytes as u64 })
            }
        })
        .await
    }
}

impl Session {
    fn channel(&self, number: u64) -> &Channel {
        &self.channels[number as usize % self.channels.len()]
    }

    async fn unary(&self, number: u64, path: &'static str, message: Bytes) -> Result<Bytes, String> {
        wire::unary(self.channel(number), path, message).await.map_err(|status| told(&status))
    }

    fn update_request(&self, blobs: &[SmallBlob]) -> Bytes {
        let requests =
            blobs.iter().map(|blob| Request { digest: Some(blob.digest.clone()), data: blob.data.clone(), ..Request::default() });
        let request = BatchUpdateBlobsRequest {
            instance_name: self.instance.to_string(),
            requests: requests.collect(),
            ..BatchUpdateBlobsRequest::default()
        };
        request.encode_to_vec().into()
    }

    async fn update(&self, number: u64, request: Bytes) -> Result<(), String> {
        let answer: BatchUpdateBlobsResponse = decode(self.unary(number, BATCH_UPDATE, request).await?)?;
        let refused = answer.responses.iter().filter_map(|response| response.status.as_ref()).find(|status| status.code != 0);
        match refused {
            None => Ok(()),
            Some(status) => Err(format!("a blob was refused with code {}: {}", status.code, status.message)),
        }
    }

    async fn update_action(&self, actions: &Actions, number: u64) -> Result<u64, String> {
        let result = actions.result(number);
        let bytes = result.encoded_len() as u64;
        let request = UpdateActionResultRequest {
            instance_name: self.instance.to_string(),
            action_digest: Some(actions.digest(number)),
            action_result: Some(result),
            ..UpdateActionResultRequest::default()
        };
        self.unary(number, UPDATE_ACTION, request.encode_to_vec().into()).await?;
        Ok(bytes)
    }

    fn prefix(&self) -> String {
        if self.instance.is_empty() { String::new() } else { format!("{}/", self.instance) }
    }

    async fn write(&self, series: &Series, number: u64) -> Result<(), String> {
        let mut name = self.prefix() + &upload_name(&series.digest(number));
        let size_bytes = series.size_bytes();
        let requests = series.clone().pieces(number).map(move |(at, data)| WriteRequest {
            resource_name: std::mem::take(&mut name),
            write_offset: at as i64,
            finish_write: at + data.len() == size_bytes,
            data,
        });
        let mut client = ByteStreamClient::new(self.channel(number).clone());
        let answer = client.write(stream::iter(requests)).await.map_err(|status| told(&status))?;
        match answer.into_inner().committed_size {
            committed if committed == size_bytes as i64 => Ok(()),
            committed => Err(format!("{committed} of {size_bytes} bytes were committed")),
        }
    }

    async fn read(&self, number: u64, series: &Series, blob: u64, digest: &Digest) -> Result<(), String> {
        let resource_name = format!("{}blobs/{}/{}", self.prefix(), digest.hash, digest.size_bytes);
        let mut client = ByteStreamClient::new(self.channel(number).clone()).max_decoding_message_size(16 << 20);
        let request = ReadRequest { resource_name, ..ReadRequest::default() };
        let mut answer = client.read(request).await.map_err(|status| told(&status))?.into_inner();
        let mut read_bytes = 0;
        while let Some(response) = answer.message().await.map_err(|status| told(&status))? {
            if self.verify && !series.is_part(blob, read_bytes, &response.data) {
                return Err(format!("wrong bytes from {read_bytes} on"));
            }
            read_bytes += response.data.len();
        }
        if read_bytes != series.size_bytes() {
            return Err(format!("{read_bytes} bytes were read of {}", series.size_bytes()));
        }
        Ok(())
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

fn pick<'a>(random: &mut Random, blobs: &'a [SmallBlob]) -> &'a SmallBlob {
    &blobs[random.below(blobs.len() as u64) as usize]
}

fn payload_bytes(blobs: &[SmallBlob]) -> u64 {
    blobs.iter().map(|blob| blob.data.len() as u64).sum()
}

fn decode<M: Message + Default>(message: Bytes) -> Result<M, String> {
    M::decode(message).map_err(|error| format!("malformed answer: {error}"))
}

fn told(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
