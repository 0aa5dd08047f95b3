//! Calls over gRPC: what is sent, and what must come back.
//!
//! Always true here: what a server does not have is told apart from what it got wrong; bytes are compared as they arrive.

use crate::{
    data::{Series, SmallBlob},
    options::ClientOptions,
    wire,
};
use blockstore_proto::{
    bytestream::{ReadRequest, WriteRequest, byte_stream_client::ByteStreamClient},
    reapi::{
        ActionResult, BatchReadBlobsRequest, BatchReadBlobsResponse, BatchUpdateBlobsRequest, BatchUpdateBlobsResponse, Digest,
        FindMissingBlobsRequest, FindMissingBlobsResponse, GetActionResultRequest, UpdateActionResultRequest,
        batch_update_blobs_request::Request,
    },
};
use blockstore_tests::client::upload_name;
use bytes::Bytes;
use futures::stream;
use prost::Message;
use std::{sync::Arc, time::Duration};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

const BATCH_UPDATE: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs";
const BATCH_READ: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs";
const FIND_MISSING: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs";
const UPDATE_ACTION: &str = "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult";
const GET_ACTION: &str = "/build.bazel.remote.execution.v2.ActionCache/GetActionResult";

/// Window of a stream and of a connection in bytes, as large as any client's.
const WINDOW_BYTES: u32 = 8 << 20;
/// Largest message of a stream that is taken, in bytes.
const STREAM_MESSAGE_BYTES_MAX: usize = 16 << 20;

/// The connections, and what every call says. Calls of different numbers take different connections in turn.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    channels: Arc<[Channel]>,
    pub(crate) instance: Arc<str>,
    pub(crate) verify: bool,
}

impl Session {
    /// Opens the connections.
    pub(crate) async fn connect(remote: &str, options: &ClientOptions) -> Result<Self, String> {
        let mut channels = Vec::new();
        for _ in 0..options.connections {
            let endpoint = Endpoint::from_shared(format!("http://{remote}"))
                .map_err(|error| format!("--remote {remote}: {error}"))?
                .connect_timeout(Duration::from_secs(10))
                .initial_stream_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES * 8)
                .max_frame_size(options.frame_bytes());
            let channel = endpoint.connect().await.map_err(|error| format!("cannot connect to {remote}: {error:?}"))?;
            channels.push(channel);
        }
        Ok(Self { channels: channels.into(), instance: options.instance.as_str().into(), verify: !options.no_verify })
    }

    fn channel(&self, number: u64) -> &Channel {
        &self.channels[number as usize % self.channels.len()]
    }

    /// Sends an encoded message; `None` is an answer of "not found".
    async fn ask(&self, number: u64, path: &'static str, message: Bytes) -> Result<Option<Bytes>, String> {
        found(wire::unary(self.channel(number), path, message).await)
    }

    async fn unary(&self, number: u64, path: &'static str, message: Bytes) -> Result<Bytes, String> {
        wire::unary(self.channel(number), path, message).await.map_err(|status| told(&status))
    }

    /// A batch of uploads, encoded.
    pub(crate) fn update_request(&self, blobs: &[SmallBlob]) -> Bytes {
        let requests =
            blobs.iter().map(|blob| Request { digest: Some(blob.digest.clone()), data: blob.data.clone(), ..Request::default() });
        let request = BatchUpdateBlobsRequest {
            instance_name: self.instance.to_string(),
            requests: requests.collect(),
            ..BatchUpdateBlobsRequest::default()
        };
        request.encode_to_vec().into()
    }

    /// Sends a batch of uploads; all are to be taken.
    pub(crate) async fn update(&self, number: u64, request: Bytes) -> Result<(), String> {
        let answer: BatchUpdateBlobsResponse = decode(self.unary(number, BATCH_UPDATE, request).await?)?;
        let refused = answer.responses.iter().filter_map(|response| response.status.as_ref()).find(|status| status.code != 0);
        match refused {
            None => Ok(()),
            Some(status) => Err(format!("a blob was refused with code {}: {}", status.code, status.message)),
        }
    }

    /// A question for missing blobs, encoded.
    pub(crate) fn find_request(&self, digests: Vec<Digest>) -> Bytes {
        let request = FindMissingBlobsRequest {
            instance_name: self.instance.to_string(),
            blob_digests: digests,
            ..FindMissingBlobsRequest::default()
        };
        request.encode_to_vec().into()
    }

    /// The encoded answer to a question for missing blobs; [`missing_in`] tells what it says.
    pub(crate) async fn find(&self, number: u64, request: Bytes) -> Result<Bytes, String> {
        self.unary(number, FIND_MISSING, request).await
    }

    /// A batch of reads, encoded.
    pub(crate) fn read_request(&self, digests: Vec<Digest>) -> Bytes {
        let request = BatchReadBlobsRequest { instance_name: self.instance.to_string(), digests, ..BatchReadBlobsRequest::default() };
        request.encode_to_vec().into()
    }

    /// The encoded answer to a batch of reads.
    pub(crate) async fn read_batch(&self, number: u64, request: Bytes) -> Result<Bytes, String> {
        self.unary(number, BATCH_READ, request).await
    }

    /// Stores an action's result; its size in bytes.
    pub(crate) async fn update_action(&self, number: u64, action: Digest, result: ActionResult) -> Result<u64, String> {
        let bytes = result.encoded_len() as u64;
        let request = UpdateActionResultRequest {
            instance_name: self.instance.to_string(),
            action_digest: Some(action),
            action_result: Some(result),
            ..UpdateActionResultRequest::default()
        };
        self.unary(number, UPDATE_ACTION, request.encode_to_vec().into()).await?;
        Ok(bytes)
    }

    /// A question for an action's result, encoded.
    pub(crate) fn action_request(&self, action: Digest) -> Bytes {
        let request = GetActionResultRequest {
            instance_name: self.instance.to_string(),
            action_digest: Some(action),
            ..GetActionResultRequest::default()
        };
        request.encode_to_vec().into()
    }

    /// The encoded result of an action, if there is one.
    pub(crate) async fn action(&self, number: u64, request: Bytes) -> Result<Option<Bytes>, String> {
        self.ask(number, GET_ACTION, request).await
    }

    fn prefix(&self) -> String {
        if self.instance.is_empty() { String::new() } else { format!("{}/", self.instance) }
    }

    /// Uploads a blob by a stream.
    pub(crate) async fn write(&self, number: u64, series: &Series, blob: u64) -> Result<(), String> {
        let mut name = self.prefix() + &upload_name(&series.digest(blob));
        let size_bytes = series.size_bytes();
        let requests = series.clone().pieces(blob).map(move |(at, data)| WriteRequest {
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

    /// Reads a blob by a stream; whether it was there.
    pub(crate) async fn read(&self, number: u64, series: &Series, blob: u64, digest: &Digest) -> Result<bool, String> {
        let resource_name = format!("{}blobs/{}/{}", self.prefix(), digest.hash, digest.size_bytes);
        let mut client = ByteStreamClient::new(self.channel(number).clone()).max_decoding_message_size(STREAM_MESSAGE_BYTES_MAX);
        let request = ReadRequest { resource_name, ..ReadRequest::default() };
        let Some(answer) = found(client.read(request).await)? else { return Ok(false) };
        let mut answer = answer.into_inner();
        let mut read_bytes = 0;
        loop {
            let response = match answer.message().await {
                Ok(Some(response)) => response,
                Ok(None) => break,
                // A server may find out once the stream has begun.
                Err(status) if status.code() == Code::NotFound && read_bytes == 0 => return Ok(false),
                Err(status) => return Err(told(&status)),
            };
            if self.verify && !series.is_part(blob, read_bytes, &response.data) {
                return Err(format!("wrong bytes from {read_bytes} on"));
            }
            read_bytes += response.data.len();
        }
        if read_bytes != series.size_bytes() {
            return Err(format!("{read_bytes} bytes were read of {}", series.size_bytes()));
        }
        Ok(true)
    }

    /// Reads a small blob as a batch of one; whether it was there.
    pub(crate) async fn read_small(&self, number: u64, series: &Series, blob: u64, digest: Digest) -> Result<bool, String> {
        let answer: BatchReadBlobsResponse = decode(self.read_batch(number, self.read_request(vec![digest.clone()])).await?)?;
        let [response] = &answer.responses[..] else {
            return Err(format!("{} answers for one blob", answer.responses.len()));
        };
        match &response.status {
            Some(status) if status.code == Code::NotFound as i32 => return Ok(false),
            Some(status) if status.code != 0 => return Err(format!("a read failed with code {}: {}", status.code, status.message)),
            _ => {}
        }
        let whole = response.data.len() == series.size_bytes() && response.digest.as_ref() == Some(&digest);
        if !whole || (self.verify && !series.is_part(blob, 0, &response.data)) {
            return Err("other bytes were read than were stored".into());
        }
        Ok(true)
    }
}

/// Which of `asked` are missing by an encoded answer.
pub(crate) fn missing_in(answer: Bytes) -> Result<Vec<Digest>, String> {
    Ok(decode::<FindMissingBlobsResponse>(answer)?.missing_blob_digests)
}

/// Decodes an answer.
pub(crate) fn decode<M: Message + Default>(message: Bytes) -> Result<M, String> {
    M::decode(message).map_err(|error| format!("malformed answer: {error}"))
}

fn found<T>(answer: Result<T, Status>) -> Result<Option<T>, String> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(told(&status)),
    }
}

fn told(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
