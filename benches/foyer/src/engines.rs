//! Both engines behind one interface: put an object, get it, and wait until the kernel has what was put.

use blockstore_engine::{
    Durability, Engine, FormatOptions, Key, KeySpace, OpenOptions,
    device::{DeviceOptions, Direct, create_file},
};
use bytes::Bytes;
use foyer::{
    BlockEngineConfig, Code, DeviceBuilder, FsDeviceBuilder, HybridCache, HybridCacheBuilder, HybridCachePolicy, PsyncIoEngineConfig,
    Result as FoyerResult,
};
use std::{error::Error, path::PathBuf};

/// What a task of ours may fail with.
pub type Failure = Box<dyn Error + Send + Sync>;

/// Queue of foyer in bytes: what exceeds it is dropped.
const QUEUE_BYTES: usize = 64 << 20;
/// Our puts are not flushed more often than this while they are measured.
const FLUSH_MS_MAX: u64 = 60_000;

/// Where the files are and what each engine may have.
#[derive(Clone, Debug)]
pub struct Place {
    pub dir: PathBuf,
    pub size_bytes: u64,
    pub memory_bytes: u64,
    pub direct: bool,
}

/// What a key looks like to both: a hash of 32 bytes.
pub type Hash = [u8; 32];

/// An engine that is measured.
pub trait Subject: Clone + Send + Sync + 'static {
    /// Puts objects, together where the engine can.
    fn put(&self, objects: &[(Hash, Bytes)]) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Gets an object, if it is there: its length, and its first and last bytes.
    fn get(&self, hash: Hash) -> impl Future<Output = Result<Option<Seen>, Failure>> + Send;
    /// Waits until the kernel has all that was put.
    fn settle(&self) -> impl Future<Output = ()> + Send;
    /// How many bytes may be put before [`Subject::settle`] must be awaited, if that is bounded.
    fn unsettled_bytes_max(&self) -> Option<u64>;
    /// Ends it.
    fn close(self) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// What was read of an object: enough to tell it from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub len: usize,
    pub first: u8,
    pub last: u8,
}

impl Seen {
    /// Of bytes, of which there is at least one.
    pub fn of(data: &[u8]) -> Self {
        Self { len: data.len(), first: data[0], last: data[data.len() - 1] }
    }
}

/// Ours.
#[derive(Clone)]
pub struct Ours(Engine);

impl Ours {
    /// A new store.
    pub async fn open(place: &Place) -> Result<Self, Failure> {
        let options = DeviceOptions { direct: if place.direct { Direct::On } else { Direct::Off }, ..DeviceOptions::default() };
        let device = create_file(&place.dir.join("ours"), place.size_bytes, options)?;
        let format = FormatOptions { objects: Some(place.size_bytes / 2048), ..FormatOptions::default() };
        Engine::format(device.clone(), &format).await?;
        let open = OpenOptions {
            durability: Durability::Interval,
            flush_ms_max: FLUSH_MS_MAX,
            cache_bytes: place.memory_bytes,
            ..OpenOptions::default()
        };
        Ok(Self(Engine::open(device, open).await?.0))
    }
}

fn key(hash: Hash) -> Key {
    Key { space: KeySpace::Content, function: 1, hash }
}

impl Subject for Ours {
    async fn put(&self, objects: &[(Hash, Bytes)]) -> Result<(), Failure> {
        let items = objects.iter().map(|(hash, data)| (key(*hash), data.clone())).collect();
        for outcome in self.0.put_batch(items).await {
            outcome?;
        }
        Ok(())
    }

    async fn get(&self, hash: Hash) -> Result<Option<Seen>, Failure> {
        let key = key(hash);
        if let Some(whole) = self.0.get_cached(&key, None) {
            return Ok(Some(Seen::of(&whole.into_bytes())));
        }
        let Some(object) = self.0.get(&key, None).await else { return Ok(None) };
        if let Some(whole) = object.whole() {
            return Ok(Some(Seen::of(&whole.into_bytes())));
        }
        let mut reader = object.reader(0, None)?;
        let mut seen: Option<Seen> = None;
        while let Some(piece) = reader.next().await {
            let piece = Seen::of(&piece?.into_bytes());
            seen = Some(seen.map_or(piece, |seen| Seen { len: seen.len + piece.len, first: seen.first, last: piece.last }));
        }
        Ok(seen)
    }

    /// A put that was acknowledged is with the kernel.
    async fn settle(&self) {}

    fn unsettled_bytes_max(&self) -> Option<u64> {
        None
    }

    async fn close(self) -> Result<(), Failure> {
        Ok(self.0.close().await?)
    }
}

/// A hash as foyer's key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Id(Hash);

impl Code for Id {
    fn encode(&self, writer: &mut impl std::io::Write) -> FoyerResult<()> {
        writer.write_all(&self.0).map_err(foyer::Error::io_error)
    }

    fn decode(reader: &mut impl std::io::Read) -> FoyerResult<Self> {
        let mut hash = [0; 32];
        reader.read_exact(&mut hash).map_err(foyer::Error::io_error)?;
        Ok(Self(hash))
    }

    fn estimated_size(&self) -> usize {
        self.0.len()
    }
}

/// foyer's hybrid cache; each object goes to disk when it is put.
#[derive(Clone)]
pub struct Foyer(HybridCache<Id, Bytes>);

impl Foyer {
    /// A new cache.
    pub async fn open(place: &Place) -> Result<Self, Failure> {
        let device = FsDeviceBuilder::new(place.dir.join("foyer"))
            .with_capacity(usize::try_from(place.size_bytes)?)
            .with_direct(place.direct)
            .build()?;
        let engine = BlockEngineConfig::new(device)
            .with_block_size(16 << 20)
            .with_flushers(2)
            .with_buffer_pool_size(QUEUE_BYTES)
            .with_submit_queue_size_threshold(QUEUE_BYTES);
        let cache = HybridCacheBuilder::new()
            .with_policy(HybridCachePolicy::WriteOnInsertion)
            .with_flush_on_close(false)
            .memory(usize::try_from(place.memory_bytes)?)
            .with_weighter(|_: &Id, data: &Bytes| size_of::<Id>() + data.len())
            .storage()
            .with_io_engine_config(PsyncIoEngineConfig::new())
            .with_engine_config(engine)
            .build()
            .await?;
        Ok(Self(cache))
    }
}

impl Subject for Foyer {
    async fn put(&self, objects: &[(Hash, Bytes)]) -> Result<(), Failure> {
        for (hash, data) in objects {
            self.0.insert(Id(*hash), data.clone());
        }
        Ok(())
    }

    async fn get(&self, hash: Hash) -> Result<Option<Seen>, Failure> {
        Ok(self.0.get(&Id(hash)).await?.map(|entry| Seen::of(entry.value())))
    }

    async fn settle(&self) {
        self.0.storage().wait().await;
    }

    /// In its queue an entry takes a multiple of 4 KiB.
    fn unsettled_bytes_max(&self) -> Option<u64> {
        Some(QUEUE_BYTES as u64 / 4)
    }

    async fn close(self) -> Result<(), Failure> {
        Ok(self.0.close().await?)
    }
}
