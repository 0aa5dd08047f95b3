//! A client of the build-cache protocol that knows what it may get.
//!
//! Always true here: what is read is compared as it arrives with what was stored, byte for byte, so that a test cannot take a
//! wrong answer for a hit.

use crate::blob::{Blob, digest_of};
use blockstore_proto::{
    bytestream::{QueryWriteStatusRequest, ReadRequest, WriteRequest, byte_stream_client::ByteStreamClient},
    grpc::health::v1::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient},
    reapi::{
        ActionResult, BatchReadBlobsRequest, BatchUpdateBlobsRequest, Digest, FindMissingBlobsRequest, GetActionResultRequest,
        GetCapabilitiesRequest, ServerCapabilities, SpliceBlobRequest, UpdateActionResultRequest, action_cache_client::ActionCacheClient,
        batch_update_blobs_request::Request, capabilities_client::CapabilitiesClient,
        content_addressable_storage_client::ContentAddressableStorageClient,
    },
};
use bytes::{Buf, Bytes};
use futures::{
    Stream,
    channel::mpsc::{self, UnboundedSender},
    stream,
};
use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
};
use tokio::task::JoinHandle;
use tonic::{
    Code, Status,
    metadata::AsciiMetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

/// Largest message that is decoded, in bytes.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

static UPLOADS: AtomicU64 = AtomicU64::new(0);

/// Adds credentials to every call, if there are any.
#[derive(Clone, Debug)]
pub struct Credentials(Option<AsciiMetadataValue>);

impl Interceptor for Credentials {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// A connection that adds them.
type Connection = InterceptedService<Channel, Credentials>;

/// One connection to a daemon.
#[derive(Clone, Debug)]
pub struct Client {
    cas: ContentAddressableStorageClient<Connection>,
    actions: ActionCacheClient<Connection>,
    streams: ByteStreamClient<Connection>,
    capabilities: CapabilitiesClient<Connection>,
    health: HealthClient<Connection>,
}

/// What a read came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Every byte as it was stored.
    Exact,
    /// A miss.
    Missing,
    /// Right bytes, and then an error instead of the rest.
    Cut,
}

impl Client {
    /// Connects.
    pub async fn connect(addr: SocketAddr) -> Self {
        Self::connect_with(addr, None).await
    }

    /// Connects, and sends this as `authorization` with every call.
    pub async fn connect_as(addr: SocketAddr, authorization: &str) -> Self {
        Self::connect_with(addr, Some(authorization.parse().expect("credentials are a header"))).await
    }

    async fn connect_with(addr: SocketAddr, authorization: Option<AsciiMetadataValue>) -> Self {
        let channel = Endpoint::from_shared(format!("http://{addr}"))
            .expect("an address is a URI")
            .connect()
            .await
            .unwrap_or_else(|error| panic!("cannot connect to {addr}: {error:?}"));
        let channel = InterceptedService::new(channel, Credentials(authorization));
        Self {
            cas: ContentAddressableStorageClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX),
            actions: ActionCacheClient::new(channel.clone()),
            capabilities: CapabilitiesClient::new(channel.clone()),
            streams: ByteStreamClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX),
            health: HealthClient::new(channel),
        }
    }

    /// Uploads a blob by a stream.
    pub async fn put(&self, blob: Blob) -> Result<(), Status> {
        let digest = blob.digest();
        let committed = self.write(&digest, blob.pieces().collect::<Vec<_>>(), true).await?;
        assert_eq!(committed, digest.size_bytes, "committed size of {blob:?}");
        Ok(())
    }

    /// Uploads a large blob by a stream, making its bytes as they are sent.
    pub async fn put_lazily(&self, blob: Blob, digest: &Digest) -> Result<(), Status> {
        let name = upload_name(digest);
        let committed = self.send(write_requests(name, blob.pieces(), blob.size_bytes)).await?;
        assert_eq!(committed, digest.size_bytes, "committed size of {blob:?}");
        Ok(())
    }

    /// Sends these pieces as the blob of that name, and the end of it or not; what the server says it has.
    pub async fn write(&self, digest: &Digest, pieces: Vec<Bytes>, finish: bool) -> Result<i64, Status> {
        self.write_as(&upload_name(digest), pieces, finish).await
    }

    /// The same under a resource name that the caller chose.
    pub async fn write_as(&self, name: &str, pieces: Vec<Bytes>, finish: bool) -> Result<i64, Status> {
        let end = if finish { pieces.iter().map(|piece| piece.len() as u64).sum() } else { u64::MAX };
        self.send(write_requests(name.to_owned(), pieces.into_iter(), end)).await
    }

    /// Sends a stream of requests as it is.
    pub async fn send(&self, requests: impl Stream<Item = WriteRequest> + Send + 'static) -> Result<i64, Status> {
        Ok(self.streams.clone().write(requests).await?.into_inner().committed_size)
    }

    /// How much of an upload the server has, and whether that is all.
    pub async fn write_status(&self, name: &str) -> Result<(i64, bool), Status> {
        let request = QueryWriteStatusRequest { resource_name: name.to_owned() };
        let answer = self.streams.clone().query_write_status(request).await?.into_inner();
        Ok((answer.committed_size, answer.complete))
    }

    /// Uploads blobs in one message; which of them were taken, in order.
    pub async fn put_batch(&self, blobs: &[Blob]) -> Result<Vec<Code>, Status> {
        let items: Vec<_> = blobs.iter().map(|blob| (blob.digest(), blob.bytes())).collect();
        self.put_batch_as(items).await
    }

    /// The same under names that the caller chose.
    pub async fn put_batch_as(&self, items: Vec<(Digest, Bytes)>) -> Result<Vec<Code>, Status> {
        let names: Vec<_> = items.iter().map(|(digest, _)| digest.clone()).collect();
        let requests = items.into_iter().map(|(digest, data)| Request { digest: Some(digest), data, ..Request::default() });
        let request = BatchUpdateBlobsRequest { requests: requests.collect(), ..BatchUpdateBlobsRequest::default() };
        let answer = self.cas.clone().batch_update_blobs(request).await?.into_inner();
        assert_eq!(answer.responses.len(), names.len(), "one answer for each blob");
        let codes = answer.responses.into_iter().zip(names).map(|(response, name)| {
            assert_eq!(response.digest.as_ref(), Some(&name), "answers are in order");
            Code::from_i32(response.status.map_or(0, |status| status.code))
        });
        Ok(codes.collect())
    }

    /// Sends a batch as it is; how each of its blobs fared.
    pub async fn put_batch_of(&self, request: BatchUpdateBlobsRequest) -> Result<Vec<Code>, Status> {
        let answer = self.cas.clone().batch_update_blobs(request).await?.into_inner();
        Ok(answer.responses.into_iter().map(|response| Code::from_i32(response.status.map_or(0, |status| status.code))).collect())
    }

    /// Which of these the server misses.
    pub async fn missing(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, Status> {
        let request = FindMissingBlobsRequest { blob_digests: digests, ..FindMissingBlobsRequest::default() };
        Ok(self.cas.clone().find_missing_blobs(request).await?.into_inner().missing_blob_digests)
    }

    /// Makes a blob of others that the server has.
    pub async fn splice(&self, blob: Digest, chunks: Vec<Digest>) -> Result<(), Status> {
        let request = SpliceBlobRequest { blob_digest: Some(blob), chunk_digests: chunks, ..SpliceBlobRequest::default() };
        self.cas.clone().splice_blob(request).await.map(drop)
    }

    /// Reads a blob by a stream and compares it. Panics at the first wrong byte.
    pub async fn check(&self, blob: Blob) -> Result<Found, Status> {
        self.check_named(blob, &blob.digest()).await
    }

    /// The same, for a caller that knows the digest.
    pub async fn check_named(&self, blob: Blob, digest: &Digest) -> Result<Found, Status> {
        let request = ReadRequest { resource_name: format!("blobs/{}/{}", digest.hash, digest.size_bytes), ..ReadRequest::default() };
        let mut answer = match self.streams.clone().read(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) if status.code() == Code::NotFound => return Ok(Found::Missing),
            Err(status) => return Err(status),
        };
        let mut pieces = blob.pieces();
        let mut expected = Bytes::new();
        let mut read_bytes = 0;
        loop {
            let mut data = match answer.message().await {
                Ok(Some(response)) => response.data,
                Ok(None) => break,
                Err(status) => match status.code() {
                    Code::NotFound if read_bytes == 0 => return Ok(Found::Missing),
                    Code::DataLoss if read_bytes > 0 => return Ok(Found::Cut),
                    _ => return Err(status),
                },
            };
            while data.has_remaining() {
                if expected.is_empty() {
                    expected = pieces.next().unwrap_or_else(|| panic!("{blob:?}: more bytes than were stored"));
                }
                let len = data.len().min(expected.len());
                assert!(data[..len] == expected[..len], "{blob:?}: wrong bytes between {read_bytes} and {}", read_bytes + len as u64);
                read_bytes += len as u64;
                data.advance(len);
                expected.advance(len);
            }
        }
        assert_eq!(read_bytes, blob.size_bytes, "{blob:?}: bytes read of a stream that ended well");
        Ok(Found::Exact)
    }

    /// Reads blobs in one message and compares them. Panics at the first wrong byte.
    pub async fn check_batch(&self, blobs: &[Blob]) -> Result<Vec<Found>, Status> {
        let request =
            BatchReadBlobsRequest { digests: blobs.iter().map(|blob| blob.digest()).collect(), ..BatchReadBlobsRequest::default() };
        let answer = self.cas.clone().batch_read_blobs(request).await?.into_inner();
        assert_eq!(answer.responses.len(), blobs.len(), "one answer for each blob");
        let mut found = Vec::with_capacity(blobs.len());
        for (response, &blob) in answer.responses.into_iter().zip(blobs) {
            assert_eq!(response.digest, Some(blob.digest()), "answers are in order");
            let status = response.status.unwrap_or_default();
            found.push(match Code::from_i32(status.code) {
                Code::Ok => {
                    assert!(response.data == blob.bytes(), "{blob:?}: wrong bytes");
                    Found::Exact
                }
                Code::NotFound => Found::Missing,
                code => return Err(Status::new(code, status.message)),
            });
        }
        Ok(found)
    }

    /// Stores an action result.
    pub async fn put_action(&self, action: Digest, result: ActionResult) -> Result<(), Status> {
        let request =
            UpdateActionResultRequest { action_digest: Some(action), action_result: Some(result), ..UpdateActionResultRequest::default() };
        self.actions.clone().update_action_result(request).await.map(drop)
    }

    /// Reads an action result; `None` is a miss.
    pub async fn action(&self, action: Digest) -> Result<Option<ActionResult>, Status> {
        let request = GetActionResultRequest { action_digest: Some(action), ..GetActionResultRequest::default() };
        match self.actions.clone().get_action_result(request).await {
            Ok(answer) => Ok(Some(answer.into_inner())),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// What the server says that it can do, and that this client may.
    pub async fn capabilities(&self) -> Result<ServerCapabilities, Status> {
        Ok(self.capabilities.clone().get_capabilities(GetCapabilitiesRequest::default()).await?.into_inner())
    }

    /// The first thing that the server says to who watches its health.
    pub async fn watched_health(&self) -> Result<ServingStatus, Status> {
        let first = self.health.clone().watch(HealthCheckRequest::default()).await?.into_inner().message().await?;
        Ok(first.expect("a watch says something").status())
    }

    /// What the whole server says of its health.
    pub async fn health(&self) -> Result<ServingStatus, Status> {
        let answer = self.health.clone().check(HealthCheckRequest::default()).await?;
        Ok(answer.into_inner().status())
    }
}

/// Names of blobs that a test knows to be stored, asked for all at once; panics with how many are missing.
pub async fn assert_all_present(client: &Client, digests: &[Digest], when: &str) {
    let distinct: HashSet<_> = digests.iter().map(|digest| &digest.hash).collect();
    let missing = client.missing(digests.to_vec()).await.expect("FindMissingBlobs answers");
    assert!(missing.is_empty(), "{when}: {} of {} are missing, the first is {:?}", missing.len(), distinct.len(), missing.first());
}

/// A digest that stands for an action of this number. The action itself is not stored.
pub fn action_digest(seed: u64) -> Digest {
    digest_of(format!("action {seed}").as_bytes())
}

/// A resource name for an upload of its own.
pub fn upload_name(digest: &Digest) -> String {
    let upload = UPLOADS.fetch_add(1, Ordering::Relaxed);
    format!("uploads/{:08x}-0000-4000-8000-{upload:012x}/blobs/{}/{}", std::process::id(), digest.hash, digest.size_bytes)
}

/// An upload whose requests are sent one by one, and that ends when the test says so.
#[derive(Debug)]
pub struct OpenUpload {
    requests: UnboundedSender<WriteRequest>,
    answer: JoinHandle<Result<i64, Status>>,
}

impl OpenUpload {
    /// Starts an upload under this resource name with these bytes.
    pub fn start(client: &Client, name: &str, data: Bytes) -> Self {
        let (requests, sent) = mpsc::unbounded();
        let client = client.clone();
        let upload = Self { requests, answer: tokio::spawn(async move { client.send(sent).await }) };
        upload.send(WriteRequest { resource_name: name.to_owned(), data, ..WriteRequest::default() });
        upload
    }

    /// Sends the rest of the bytes, from `offset_bytes` on, and waits for the answer.
    pub async fn finish(self, offset_bytes: usize, data: Bytes) -> Result<i64, Status> {
        self.send(WriteRequest {
            write_offset: i64::try_from(offset_bytes).expect("blobs of tests are small"),
            finish_write: true,
            data,
            ..WriteRequest::default()
        });
        self.end().await
    }

    /// Ends the stream without having said that this is all, and waits for the answer.
    pub async fn end(self) -> Result<i64, Status> {
        drop(self.requests);
        self.answer.await.expect("the upload's task does not panic")
    }

    /// Drops the call: the connection tells the server that nobody waits for it any more.
    pub fn abort(self) {
        self.answer.abort();
    }

    fn send(&self, request: WriteRequest) {
        // Who has answered already takes no more; the answer tells.
        let _ = self.requests.unbounded_send(request);
    }
}

/// Write requests for pieces in order; the one that reaches `end` says that it is the last.
fn write_requests(
    name: String,
    pieces: impl Iterator<Item = Bytes> + Send + 'static,
    end: u64,
) -> impl Stream<Item = WriteRequest> + Send + 'static {
    let mut sent = 0;
    let mut name = Some(name);
    let mut pieces = pieces.peekable();
    // A blob without bytes still takes one request.
    let first = pieces.peek().is_none().then(Bytes::new);
    stream::iter(first.into_iter().chain(pieces).map(move |data| {
        let write_offset = sent;
        sent += data.len() as u64;
        WriteRequest {
            resource_name: name.take().unwrap_or_default(),
            write_offset: i64::try_from(write_offset).expect("blobs of tests are small"),
            finish_write: sent >= end,
            data,
        }
    }))
}
