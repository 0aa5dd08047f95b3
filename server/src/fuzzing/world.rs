//! A server without sockets: both front-ends over a store on a simulated device.

use std::{sync::Arc, time::Duration};

use axum::Router;
use blockstore_engine::{
    Engine, FormatOptions, OpenOptions,
    device::{Latency, SimDevice, SimOptions},
};
use tokio::{runtime, sync::watch, time::timeout};

use super::known::Known;
use crate::{
    front::{
        gate::Gate,
        http::{self, Front},
        reapi::{Options, Services},
        uploads::Uploads,
    },
    phase::Phase,
    store::{
        BlobStore, ByteRange, DigestFunction, Instance, chunked::ChunkedBlobs, completeness::CompleteActionResults, local::LocalStore,
    },
};

const DEVICE_BYTES: u64 = 40 << 20;
const FORMAT: FormatOptions = FormatOptions { block_bytes: Some(1 << 20), objects: Some(3000) };
/// What one call may take: a thousand times of what it does take.
const TIME_MAX: Duration = Duration::from_secs(20);

pub(super) struct World {
    pub(super) grpc: Router,
    pub(super) http: Front,
    store: Arc<dyn BlobStore>,
    /// Says that the server serves for as long as it is there.
    _phase: watch::Sender<Phase>,
}

impl World {
    /// Plays something on a server of its own, then looks at what became of its blobs.
    pub(super) fn play(play: impl AsyncFnOnce(&Self)) {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let world = Self::new().await;
            play(&world).await;
            world.check().await;
        });
    }

    /// The answer, which must come.
    pub(super) async fn ends<T>(what: &str, call: impl Future<Output = T>) -> T {
        timeout(TIME_MAX, call).await.unwrap_or_else(|_| panic!("{what}: does not come to an end"))
    }

    async fn new() -> Self {
        let device = Arc::new(SimDevice::new(SimOptions { latency: Latency::None, ..SimOptions::new(DEVICE_BYTES, 1) }));
        Engine::format(device.clone(), &FORMAT).await.expect("format");
        let options = OpenOptions { cache_bytes: 1 << 20, ..OpenOptions::default() };
        let (engine, _) = Engine::open(device, options).await.expect("open");
        let local = Arc::new(LocalStore::new(engine, DigestFunction::ALL.to_vec()));
        let store: Arc<dyn BlobStore> = Arc::new(CompleteActionResults::new(Arc::new(ChunkedBlobs::new(local))));
        let blobs = Known::all().blobs().iter().filter(|blob| blob.stored);
        let blobs = blobs.map(|blob| (blob.digest(DigestFunction::Sha256), blob.data.clone()));
        for stored in store.write_batch(&Instance::new(""), blobs.collect()).await {
            stored.expect("a blob is stored");
        }
        let services = Services::new(store.clone(), Options::default()).await;
        let (phase, seen) = watch::channel(Phase::Serving);
        let front = Front::new(seen.clone(), Gate::new(seen), http::Limits::default());
        front.open(store.clone(), http::Options::default(), Uploads::default());
        Self { grpc: services.router(), http: front, store, _phase: phase }
    }

    async fn check(&self) {
        let instance = Instance::new("");
        for blob in Known::all().blobs() {
            for function in DigestFunction::ALL {
                let digest = blob.digest(function);
                let read = self.store.read(&instance, &digest, ByteRange::ALL).await.expect("the store reads");
                let Some(read) = read else {
                    assert!(!blob.stored || function != DigestFunction::Sha256, "{digest:?} was stored and is gone");
                    continue;
                };
                let data = read.collect(blob.data.len()).await.expect("the blob reads");
                assert!(data == blob.data, "{digest:?} has other bytes");
            }
        }
    }
}
