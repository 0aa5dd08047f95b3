//! A server for a test, and clients to it.

use std::{net::SocketAddr, sync::Arc};

use blockstore_engine::{
    Engine, FormatOptions, OpenOptions,
    device::{DeviceOptions, create_file},
};
use blockstore_proto::{
    bytestream::byte_stream_client::ByteStreamClient,
    reapi::{
        self, action_cache_client::ActionCacheClient, capabilities_client::CapabilitiesClient,
        content_addressable_storage_client::ContentAddressableStorageClient,
    },
};
use blockstore_server::{
    front::reapi::{Options, Services, http2},
    store::{
        BlobStore, Digest, DigestFunction, Hasher, chunked::ChunkedBlobs, completeness::CompleteActionResults, compression::Frames,
        local::LocalStore,
    },
};
use bytes::Bytes;
use tempfile::TempDir;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Channel;

/// What is in the store of a test at most.
const DEVICE_BYTES: u64 = 256 << 20;

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) services: Services,
    pub(crate) channel: Channel,
    pub(crate) engine: Engine,
    _folder: TempDir,
}

/// How blobs are stored unless a test says so itself: all of these tests hold either way.
fn frames_by_environment() -> Option<Frames> {
    std::env::var("BLOCKSTORE_TEST_STORAGE_COMPRESSION").is_ok_and(|text| text == "zstd").then(|| Frames::new(1))
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        Self::over(DEVICE_BYTES, options, frames_by_environment(), |store| store).await
    }

    /// A server that stores blobs compressed.
    pub(crate) async fn compressing() -> Self {
        Self::over(DEVICE_BYTES, Options::default(), Some(Frames::new(1)), |store| store).await
    }

    /// A server on a device of that size, whose store is in some other one.
    pub(crate) async fn over(
        device_bytes: u64,
        options: Options,
        frames: Option<Frames>,
        wrap: impl FnOnce(Arc<dyn BlobStore>) -> Arc<dyn BlobStore>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let device = create_file(&folder.path().join("store"), device_bytes, DeviceOptions::default()).unwrap();
        Engine::format(device.clone(), &FormatOptions::default()).await.unwrap();
        let open = OpenOptions { encode: frames.is_some(), ..OpenOptions::default() };
        let (engine, _) = Engine::open(device, open).await.unwrap();
        let mut local = LocalStore::new(engine.clone(), DigestFunction::ALL.to_vec());
        if let Some(frames) = frames {
            local = local.compressing(frames);
        }
        let store = wrap(Arc::new(CompleteActionResults::new(Arc::new(ChunkedBlobs::new(Arc::new(local))))));

        let services = Services::new(store, options).await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = http2::configure(tonic::transport::Server::builder(), http2::STREAMS_MAX);
        let serving = server.add_routes(services.router().into()).serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serving);
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Self { address, services, channel, engine, _folder: folder }
    }

    pub(crate) fn cas(&self) -> ContentAddressableStorageClient<Channel> {
        ContentAddressableStorageClient::new(self.channel.clone()).max_encoding_message_size(usize::MAX)
    }
    pub(crate) fn bytes(&self) -> ByteStreamClient<Channel> {
        ByteStreamClient::new(self.channel.clone())
    }
    pub(crate) fn actions(&self) -> ActionCacheClient<Channel> {
        ActionCacheClient::new(self.channel.clone())
    }
    pub(crate) fn capabilities(&self) -> CapabilitiesClient<Channel> {
        CapabilitiesClient::new(self.channel.clone())
    }

    /// Stores blobs in a batch and expects that all of them are.
    pub(crate) async fn put(&self, blobs: &[&[u8]]) -> Vec<reapi::Digest> {
        let requests = blobs.iter().map(|data| update(digest(data), data)).collect();
        let request = reapi::BatchUpdateBlobsRequest { requests, ..Default::default() };
        let response = self.cas().batch_update_blobs(request).await.unwrap().into_inner();
        assert!(response.responses.iter().all(|r| r.status.as_ref().unwrap().code == 0), "{response:?}");
        response.responses.into_iter().map(|r| r.digest.unwrap()).collect()
    }
}

pub(crate) fn update(digest: reapi::Digest, data: &[u8]) -> reapi::batch_update_blobs_request::Request {
    let data = Bytes::copy_from_slice(data);
    reapi::batch_update_blobs_request::Request { digest: Some(digest), data, compressor: 0 }
}

pub(crate) fn wire(digest: &Digest) -> reapi::Digest {
    reapi::Digest { hash: digest.hash_hex(), size_bytes: i64::try_from(digest.size_bytes).unwrap() }
}

/// The SHA-256 digest of data.
pub(crate) fn digest(data: &[u8]) -> reapi::Digest {
    wire(&Hasher::digest(DigestFunction::Sha256, data))
}

/// Bytes that no two seeds have in common.
pub(crate) fn data(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
