//! The gRPC front-end: Remote Execution API v2 as a cache speaks it, ByteStream, health and reflection.
//!
//! Always true here: a request, however wrong, gets a status and no panic, and never UNKNOWN; only what is implemented is
//! announced; every bound on messages, batches and kept uploads is a named constant or an option below.
//!
//! To mount it: [`Services::new`] within a Tokio runtime, then [`Services::router`] into a server whose HTTP/2 side was given
//! [`http2`].

use std::{borrow::Cow, sync::Arc};

use axum::Router;
use blockstore_proto::FILE_DESCRIPTOR_SET;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;

use crate::{
    front::uploads::Uploads,
    instances::InstanceRules,
    metrics::Metrics,
    store::{BlobStore, DigestFunction, Instance, directories},
};

mod action_cache;
mod batch;
mod batch_wire;
mod capabilities;
mod chunks;
mod find_missing;
mod grpc;
mod pieces;
mod read;
mod request;
mod resource;
mod status;
mod suspended;
mod tool;
mod tree;
mod wire;
mod write;

pub use status::{retry_later, store_status};
pub use suspended::{SuspendedLimits, SuspendedReading};
pub use tool::{METADATA, ToolRules, request_metadata};

/// Announced as `max_batch_total_size_bytes`. Just under 4 MiB and not 0: some clients take 0 for unlimited and overflow the
/// 4 MiB that is gRPC's default limit of a message.
pub const BATCH_ANNOUNCED_BYTES_MAX: i64 = (4 << 20) - (64 << 10);
/// Largest answer in bytes: what a client decodes that was not configured otherwise, less room for keys.
pub const ANSWER_BYTES_MAX: u64 = (4 << 20) - 1024;
/// Largest message of the methods that take many blobs or digests, in bytes, where nothing else is set: more than is announced.
pub const LARGE_MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Largest message of `ByteStream.Write` in bytes, unless less is set.
pub const WRITE_MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Bytes of long lists of chunks that arrive in streams, in memory at the same time. The longest of any digest function fits.
const CHUNK_LISTS_BYTES_MAX: u32 = 64 << 20;
/// Largest message of the other methods in bytes, unless less is set.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// How the front-end behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// What differs by instance: who may store action results, and which function is meant where none is named.
    pub instances: Arc<InstanceRules>,
    /// Whether an action result is refused unless its `Action` is in the CAS. Off by default: some clients never upload it.
    pub actions_must_exist: bool,
    /// Largest message of the methods that take many blobs or digests, in bytes. The others have bounds of their own below it.
    pub message_bytes_max: usize,
    /// Bytes of large request messages that are in memory at the same time; a client waits for its turn. The blobs that batches
    /// decompress to may take as much again.
    pub request_bytes_max: u32,
    /// Bytes that the compressed blobs of one batch may decompress to.
    pub decompressed_bytes_max: usize,
    /// Levels of directories below the root of a tree.
    pub directory_depth_max: u32,
    /// Uploads that run at the same time; shared with other front-ends.
    pub uploads: Uploads,
    /// Bounds of uploads that are kept after their stream was cut.
    pub suspended: SuspendedLimits,
    /// Which clients expect other answers to compressed uploads than the rest.
    pub tools: ToolRules,
    /// Where messages and blobs are counted.
    pub metrics: Arc<Metrics>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            instances: Arc::default(),
            actions_must_exist: false,
            message_bytes_max: LARGE_MESSAGE_BYTES_MAX,
            request_bytes_max: 256 << 20,
            decompressed_bytes_max: 64 << 20,
            directory_depth_max: directories::DEPTH_MAX,
            uploads: Uploads::default(),
            suspended: SuspendedLimits::default(),
            tools: ToolRules::default(),
            metrics: Arc::default(),
        }
    }
}

/// What all calls share.
#[derive(Debug)]
struct Shared {
    store: Arc<dyn BlobStore>,
    options: Options,
    suspended: Arc<suspended::Suspended>,
    walks: tree::Walks,
    /// Bytes that compressed blobs of batches decompress to. Taken after a message's own share and never the other way round.
    decompressed: grpc::Budget,
    /// Bytes of lists of chunks that arrive. Taken while no message's share is held.
    chunk_lists: grpc::Budget,
}

impl Shared {
    /// The functions that are offered, in the order in which one that a request for this instance leaves open is guessed.
    fn functions(&self, instance: &Instance) -> Cow<'_, [DigestFunction]> {
        self.options.instances.functions(instance, &self.store.capabilities().digest_functions)
    }
}

/// The services over a store.
#[derive(Debug)]
pub struct Services {
    shared: Arc<Shared>,
    router: Router,
    health: HealthReporter,
}

/// Names of the services that are offered, as health checks know them.
pub const SERVICE_NAMES: [&str; 4] = [
    "build.bazel.remote.execution.v2.ActionCache",
    "build.bazel.remote.execution.v2.Capabilities",
    "build.bazel.remote.execution.v2.ContentAddressableStorage",
    "google.bytestream.ByteStream",
];

impl Services {
    /// Sets up the services; all of them are healthy from the start. Has to be called within a Tokio runtime, because it
    /// starts the task that forgets suspended uploads.
    pub async fn new(store: Arc<dyn BlobStore>, options: Options) -> Self {
        let suspended = Arc::new(suspended::Suspended::new(options.suspended));
        suspended.expire_in_background();
        let walks = tree::Walks::default();
        let decompressed = grpc::Budget::new(options.request_bytes_max, options.metrics.clone());
        let chunk_lists = grpc::Budget::new(CHUNK_LISTS_BYTES_MAX, options.metrics.clone());
        let shared = Arc::new(Shared { store, options, suspended, walks, decompressed, chunk_lists });
        let (health, health_service) = tonic_health::server::health_reporter();
        let routes = Routes::new(health_service);
        let routes = match reflection() {
            Ok((v1, v1alpha)) => routes.add_service(v1).add_service(v1alpha),
            Err(error) => {
                tracing::error!(%error, "cannot offer reflection");
                routes
            }
        };
        let router = methods(&shared, routes.into_axum_router());
        let services = Self { shared, router, health };
        services.set_serving(true).await;
        services
    }

    /// The routes, one for each method, with UNIMPLEMENTED for every other path: a server that speaks other protocols on the same
    /// port sends requests here whose content type begins with `application/grpc`. Layers for authorisation, tracing and limits go
    /// around it. Give it to `tonic::transport::Server::add_routes` with `.into()`, or serve it as any axum router over HTTP/2.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// Tells health checks whether this server wants calls; false while it drains.
    pub async fn set_serving(&self, serving: bool) {
        use tonic_health::ServingStatus::{NotServing, Serving};
        let status = if serving { Serving } else { NotServing };
        for service in SERVICE_NAMES.into_iter().chain([""]) {
            self.health.set_service_status(service, status).await;
        }
    }

    /// Reads, as often as it is called, what became of uploads whose stream was cut.
    pub fn suspended_reader(&self) -> impl Fn() -> SuspendedReading + Send + Sync + 'static {
        let suspended = self.shared.suspended.clone();
        move || suspended.reading()
    }
}

fn methods(shared: &Arc<Shared>, router: Router) -> Router {
    let budget = grpc::Budget::new(shared.options.request_bytes_max, shared.options.metrics.clone());
    let large_bytes_max = shared.options.message_bytes_max;
    let write_bytes_max = WRITE_MESSAGE_BYTES_MAX.min(large_bytes_max);
    let bytes_max = MESSAGE_BYTES_MAX.min(large_bytes_max);
    macro_rules! methods {
        ($router:expr, $($path:literal, $bytes_max:expr, $handler:path;)*) => {{
            let mut router = $router;
            $(router = grpc::method(router, shared, &budget, $path, $bytes_max, $handler);)*
            router
        }};
    }
    methods! { router,
        "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities",
            bytes_max, capabilities::get;
        "/build.bazel.remote.execution.v2.ActionCache/GetActionResult",
            bytes_max, action_cache::get;
        "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult",
            bytes_max, action_cache::update;
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs",
            large_bytes_max, find_missing::call;
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs",
            large_bytes_max, batch::update;
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs",
            bytes_max, batch::read;
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/GetTree",
            bytes_max, tree::get;
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/SplitBlob",
            bytes_max, chunks::split;
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/GetChunkMapping",
            bytes_max, chunks::get_mapping;
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/SpliceBlob",
            large_bytes_max, chunks::splice;
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/RegisterChunkMapping",
            bytes_max, chunks::register_mapping;
        "/google.bytestream.ByteStream/Read",
            bytes_max, read::call;
        "/google.bytestream.ByteStream/Write",
            write_bytes_max, write::call;
        "/google.bytestream.ByteStream/QueryWriteStatus",
            bytes_max, write::query;
    }
}

type Reflection<S> = Result<S, tonic_reflection::server::Error>;

/// Server reflection in both of its versions, for the services that are offered.
#[allow(clippy::type_complexity)] // both services have a name of their own
fn reflection() -> Reflection<(
    tonic_reflection::server::v1::ServerReflectionServer<impl tonic_reflection::server::v1::ServerReflection>,
    tonic_reflection::server::v1alpha::ServerReflectionServer<impl tonic_reflection::server::v1alpha::ServerReflection>,
)> {
    let builder = || {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .with_service_name("grpc.health.v1.Health");
        SERVICE_NAMES.into_iter().fold(builder, |builder, name| builder.with_service_name(name))
    };
    Ok((builder().build_v1()?, builder().build_v1alpha()?))
}

/// HTTP/2 settings, for whatever server carries the routes.
pub mod http2 {
    use std::time::Duration;

    /// Flow-control window of a stream in bytes: a round trip of 5 ms at 10 Gbit/s.
    pub const STREAM_WINDOW_BYTES: u32 = 8 << 20;
    /// Flow-control window of a connection in bytes.
    pub const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
    /// Largest frame that is accepted, in bytes. Larger frames are fewer pieces for an upload.
    pub const FRAME_BYTES_MAX: u32 = 1 << 20;
    /// Calls on one connection at the same time, where nothing else is set. Clients such as Bazel queue what is above it.
    pub const STREAMS_MAX: u32 = 1024;
    /// Calls that a client may have cancelled before we looked at them; a build that is interrupted cancels all it has.
    pub const RESET_STREAMS_MAX: usize = 1024;
    /// How often a connection that is silent is pinged, so that a dead one is noticed.
    pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
    /// How long the answer to a ping may take.
    pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

    /// Gives these settings to a tonic server, with so many calls on a connection at the same time. Pings of clients need no setting:
    /// they are answered at any rate and never end a connection. `TCP_NODELAY` is set.
    pub fn configure<L>(server: tonic::transport::Server<L>, streams_max: u32) -> tonic::transport::Server<L> {
        server
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX)
            .max_concurrent_streams(streams_max)
            .http2_max_pending_accept_reset_streams(Some(RESET_STREAMS_MAX))
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .tcp_nodelay(true)
    }
}
