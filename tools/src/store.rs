//! Finding and opening the store that a command is about.

use crate::output::Failure;
use blockstore_engine::{
    Engine, OpenOptions,
    device::{Device, DeviceOptions, Direct, open_any, open_read_only},
    offline::{OfflineStore, Trust},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Name of the store's file in the directory that a server was given.
pub(crate) const FILE_NAME: &str = "store.blockstore";

/// Which store, and how to print.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// The directory given to `blockstored --dir`, a store's file, or a device
    pub(crate) store: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl Target {
    /// The file or device.
    pub(crate) fn path(&self) -> PathBuf {
        path(&self.store)
    }
}

/// The file or device that a STORE is.
pub(crate) fn path(store: &Path) -> PathBuf {
    if store.is_dir() { store.join(FILE_NAME) } else { store.to_owned() }
}

/// A device that is only read. `stream`: much of it will be read once, past the page cache if that is possible.
pub(crate) fn device_to_read(path: &Path, stream: bool) -> Result<Arc<dyn Device>, Failure> {
    if stream && let Ok(device) = open_read_only(path, DeviceOptions { direct: Direct::On, ..DeviceOptions::default() }) {
        return Ok(device);
    }
    Ok(open_read_only(path, DeviceOptions::default())?)
}

/// A device that is written to.
pub(crate) fn device_to_write(path: &Path) -> Result<Arc<dyn Device>, Failure> {
    Ok(open_any(path, DeviceOptions::default())?)
}

/// The store at `path`, read as opening it would.
pub(crate) async fn read(path: &Path, stream: bool, trust: Trust) -> Result<Arc<OfflineStore>, Failure> {
    let device = device_to_read(path, stream)?;
    let store =
        OfflineStore::read(device, trust).await.map_err(|error| Failure::cannot_open(format!("store {}: {error}", path.display())))?;
    Ok(Arc::new(store))
}

/// The store at `path`, opened to put things into it.
pub(crate) async fn open(path: &Path) -> Result<Engine, Failure> {
    let device = device_to_write(path)?;
    let options = OpenOptions { cache_bytes: 0, ..OpenOptions::default() };
    let (engine, _) =
        Engine::open(device, options).await.map_err(|error| Failure::cannot_open(format!("store {}: {error}", path.display())))?;
    Ok(engine)
}
