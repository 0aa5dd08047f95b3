//! Finding and reading the store that a command is about.

use blockstore_engine::{
    device::{DeviceOptions, open_read_only},
    offline::OfflineStore,
};
use std::path::Path;

/// Name of the store's file in the directory that a server was given.
const FILE_NAME: &str = "store.blockstore";

/// Reads the store at `path`, which nobody may have open; one line if that is not possible.
pub(crate) async fn read(path: &Path) -> Result<OfflineStore, String> {
    let path = if path.is_dir() { path.join(FILE_NAME) } else { path.to_owned() };
    let device = open_read_only(&path, DeviceOptions::default()).map_err(|error| error.to_string())?;
    OfflineStore::read(device).await.map_err(|error| format!("store {}: {error}", path.display()))
}
