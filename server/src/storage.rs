//! Where the store's bytes are: the file under `--dir` or the block device, created or found, and formatted where that was asked
//! for.
//!
//! Always true here: a file bears its final name only once it holds a whole, empty store, so that an interrupted first start
//! leaves nothing that the next one could take for a store; nothing that holds a byte which this program did not write is
//! formatted without `--force`; every message names the setting and the place.

use crate::{
    config::{self, Format, Io, Place, Settings},
    memory,
};
use blockstore_engine::{
    Engine, FormatOptions, OpenError,
    device::{self, Device, DeviceError, DeviceOptions, Direct, IoBackend, PAGE_BYTES, first_and_last_mib_are_zero},
};
use bytesize::ByteSize;
use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tracing::{info, warn};

/// Name of the store's file under `--dir`.
pub const FILE_NAME: &str = "store.blockstore";
/// Its name while it is being created.
const NEW_FILE_NAME: &str = "store.blockstore.new";
/// How long to wait for another process to let go of the store. One that was killed is gone only when the kernel has finished its
/// last flush, which takes a slow disk seconds.
const HELD_WAIT: Duration = Duration::from_secs(10);
/// Least memory for the cache of verified records where it is not configured, and all of it under `--dir`, in bytes.
const CACHE_BYTES_MIN: u64 = 256 << 20;
/// Memory for everything but index and cache, in bytes.
const OTHER_BYTES: u64 = 256 << 20;
/// Most that the index takes for an object it has room for, in bytes.
const INDEX_BYTES_PER_OBJECT: u64 = 24;
/// Bytes of the store for each object that the index has room for by default.
const STORE_BYTES_PER_OBJECT: u64 = 8192;

/// A place that holds a store.
pub struct Opened {
    /// Locked against other processes for as long as it lives.
    pub device: Arc<dyn Device>,
    /// Budget of the cache of verified records in bytes.
    pub cache_bytes: u64,
}

/// What a place is called in messages.
pub fn name(place: &Place) -> String {
    match place {
        Place::File { dir, .. } => dir.join(FILE_NAME).display().to_string(),
        Place::Device { path, .. } => path.display().to_string(),
    }
}

/// The line for a store that was found but cannot be opened.
pub fn cannot_open(place: &Place, error: &OpenError) -> String {
    let advice = match (place, error) {
        (Place::File { .. }, OpenError::NotABlockstore(_)) => "; move the file away, or give another --dir",
        (Place::Device { .. }, OpenError::NotABlockstore(_)) => "; check --device, or add --format to write a new store to it",
        _ => "",
    };
    format!("{}: {error}{advice}", name(place))
}

/// Finds or creates the store that the settings name.
pub async fn open(settings: &Settings) -> Result<Opened, String> {
    let device = match &settings.place {
        Place::File { dir, size_bytes } => open_in_dir(settings, dir, *size_bytes).await?,
        Place::Device { path, format } => open_device(settings, path, *format).await?,
    };
    let geometry = device.geometry();
    info!(
        store = %name(&settings.place),
        size = %ByteSize(geometry.len_bytes),
        io = geometry.backend,
        direct = geometry.direct,
        sector_bytes = geometry.logical_sector_bytes,
        "storage is open"
    );
    let cache_bytes =
        settings.cache_bytes.unwrap_or_else(|| cache_bytes_default(geometry.block_device, geometry.len_bytes, settings.objects));
    Ok(Opened { device, cache_bytes })
}

/// On a device, half of the memory that the index and the rest of the process leave.
fn cache_bytes_default(block_device: bool, len_bytes: u64, objects: Option<u64>) -> u64 {
    if !block_device {
        return CACHE_BYTES_MIN;
    }
    let objects = objects.unwrap_or(len_bytes / STORE_BYTES_PER_OBJECT);
    let index_bytes = objects.saturating_mul(INDEX_BYTES_PER_OBJECT);
    let left = memory::limit_bytes().saturating_sub(index_bytes).saturating_sub(OTHER_BYTES);
    (left / 2).max(CACHE_BYTES_MIN)
}

async fn open_in_dir(settings: &Settings, dir: &Path, size_bytes: Option<u64>) -> Result<Arc<dyn Device>, String> {
    let path = dir.join(FILE_NAME);
    if !is_there(dir, &path)?
        && let Some(device) = create_in_dir(settings, dir, size_bytes).await?
    {
        return Ok(device);
    }
    let device = open_path(settings, path, device::open_file).await?;
    let formatted_bytes = device.geometry().len_bytes;
    if let Some(asked_bytes) = size_bytes.map(whole_pages)
        && asked_bytes != formatted_bytes
    {
        warn!(
            "--size {} differs from the size that the store was created with, {}, which it keeps; \
             to change it, stop blockstored and use `blockstore-tool grow` or `shrink`",
            ByteSize(asked_bytes),
            ByteSize(formatted_bytes)
        );
    }
    note_fixed_at_format(settings);
    Ok(device)
}

/// Creates the store's file. `None`: meanwhile another process has.
async fn create_in_dir(settings: &Settings, dir: &Path, size_bytes: Option<u64>) -> Result<Option<Arc<dyn Device>>, String> {
    let Some(size_bytes) = size_bytes else {
        return Err(format!("--dir: there is no store in {} yet: give --size to create one, e.g. --size 10GiB", dir.display()));
    };
    let len_bytes = whole_pages(size_bytes);
    fs::create_dir_all(dir).map_err(|error| in_dir(dir, "create", &error))?;
    let _only_creator = lock_dir(dir)?;
    let path = dir.join(FILE_NAME);
    if is_there(dir, &path)? {
        return Ok(None);
    }
    let new_path = dir.join(NEW_FILE_NAME);
    if is_there(dir, &new_path)? {
        info!("starting over with a store whose creation was interrupted");
        fs::remove_file(&new_path).map_err(|error| in_dir(dir, "remove an unfinished store from", &error))?;
    }
    let device = open_path(settings, new_path.clone(), move |path, options| device::create_file(path, len_bytes, options)).await?;
    if let Err(error) = Engine::format(device.clone(), &format_options(settings)).await {
        drop(device);
        remove(&new_path);
        return Err(match error {
            OpenError::Geometry(_) => format!("--size {}: {error}", ByteSize(size_bytes)),
            _ => format!("{}: cannot create the store: {error}", path.display()),
        });
    }
    fs::rename(&new_path, &path).and_then(|()| File::open(dir)?.sync_all()).map_err(|error| in_dir(dir, "create the store in", &error))?;
    info!(store = %path.display(), size = %ByteSize(len_bytes), "store is created");
    Ok(Some(device))
}

async fn open_device(settings: &Settings, path: &Path, format: Format) -> Result<Arc<dyn Device>, String> {
    let device = open_path(settings, path.to_owned(), device::open_block_device).await?;
    if format == Format::No {
        note_fixed_at_format(settings);
        return Ok(device);
    }
    if format == Format::Blank
        && !first_and_last_mib_are_zero(&*device).await.map_err(|error| format!("--device: cannot read {}: {error}", path.display()))?
    {
        return Err(format!(
            "--format: {} is not blank, there is data in its first or last MiB; check that it is the right device, then \
             leave --format out to open a store that is on it, or add --force to overwrite what it holds",
            path.display()
        ));
    }
    Engine::format(device.clone(), &format_options(settings)).await.map_err(|error| format!("--format: {}: {error}", path.display()))?;
    info!(store = %path.display(), "device is formatted");
    Ok(device)
}

fn format_options(settings: &Settings) -> FormatOptions {
    FormatOptions { block_bytes: settings.block_bytes, objects: settings.objects }
}

fn note_fixed_at_format(settings: &Settings) {
    for (setting, given) in [("--block-size", settings.block_bytes.is_some()), ("--objects", settings.objects.is_some())] {
        if given {
            info!("{setting} has no effect: it was fixed when the store was created");
        }
    }
}

/// Files and devices are used in whole pages.
fn whole_pages(bytes: u64) -> u64 {
    bytes - bytes % PAGE_BYTES as u64
}

/// Opens a device off the runtime's threads: reserving space may take long.
async fn open_path<F>(settings: &Settings, path: PathBuf, open: F) -> Result<Arc<dyn Device>, String>
where
    F: Fn(&Path, DeviceOptions) -> Result<Arc<dyn Device>, DeviceError> + Send + 'static,
{
    let options = DeviceOptions {
        io: match settings.io {
            Io::Auto => IoBackend::Auto,
            Io::IoUring => IoBackend::IoUring,
            Io::Sync => IoBackend::Sync,
        },
        direct: match settings.direct {
            config::Direct::Auto => Direct::Auto,
            config::Direct::On => Direct::On,
            config::Direct::Off => Direct::Off,
        },
    };
    let opening = move || {
        let until = Instant::now() + HELD_WAIT;
        let mut told = false;
        loop {
            match open(&path, options) {
                Err(error @ DeviceError::Held { .. }) if Instant::now() < until => {
                    if !std::mem::replace(&mut told, true) {
                        warn!("{error}: waiting for it to end");
                    }
                }
                opened => return opened,
            }
        }
    };
    let opened = tokio::task::spawn_blocking(opening).await;
    let opened = opened.map_err(|error| format!("cannot open the store: {error}"))?;
    opened.map_err(|error| match (&settings.place, &error) {
        (Place::File { .. }, DeviceError::NoSpace { .. } | DeviceError::TooSmall { .. }) => {
            format!("--size: {error}")
        }
        (Place::File { .. }, _) => format!("--dir: {error}"),
        (Place::Device { .. }, _) => format!("--device: {error}"),
    })
}

/// Keeps two processes from creating a store in one directory at a time, for as long as the file lives.
fn lock_dir(dir: &Path) -> Result<File, String> {
    let file = File::open(dir).map_err(|error| in_dir(dir, "open", &error))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            Err(format!("--dir: another process is creating a store in {}: stop it, or give another --dir", dir.display()))
        }
        Err(TryLockError::Error(error)) => {
            // Some file systems cannot lock a directory. The file itself is locked once it is there.
            warn!("cannot lock {}: {error}", dir.display());
            Ok(file)
        }
        Ok(()) => Ok(file),
    }
}

fn is_there(dir: &Path, path: &Path) -> Result<bool, String> {
    path.try_exists().map_err(|error| in_dir(dir, "look into", &error))
}

fn in_dir(dir: &Path, verb: &str, error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; make the directory writable for this user, or give another --dir"
        }
        _ => "",
    };
    format!("--dir: cannot {verb} {}: {error}{advice}", dir.display())
}

/// Removes what a failed creation leaves; the next start would do so too.
fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        warn!("cannot remove {}: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_of_a_file_is_small_and_that_of_a_device_is_what_memory_leaves() {
        assert_eq!(cache_bytes_default(false, 1 << 40, None), CACHE_BYTES_MIN);
        let of_device = cache_bytes_default(true, 1 << 30, None);
        assert!(of_device >= CACHE_BYTES_MIN && of_device <= memory::limit_bytes().max(CACHE_BYTES_MIN));
        // An index that takes all memory leaves the least.
        assert_eq!(cache_bytes_default(true, 1 << 30, Some(u64::MAX)), CACHE_BYTES_MIN);
    }

    #[test]
    fn sizes_are_cut_to_pages() {
        assert_eq!(whole_pages(10 << 30), 10 << 30);
        assert_eq!(whole_pages(10_000_000_000), 10_000_000_000 - 10_000_000_000 % 4096);
        assert_eq!(whole_pages(1), 0);
    }
}
