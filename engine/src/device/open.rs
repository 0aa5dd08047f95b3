//! Opening real devices: which file, which backend, direct or not, and every way in which that is refused.
//!
//! Always true here: what is returned is locked against other processes and has its space reserved; nothing that was not
//! made here is ever removed or changed.

use super::{AlignedBuf, Device, Geometry, PAGE_BYTES, backing::Backing, sync::SyncDevice, uring::UringDevice};
use rustix::{
    fs::{self, FileType, Mode, OFlags},
    io::Errno,
};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

mod reserve;

#[cfg(test)]
mod tests;

/// How long a lock is waited for that a process which has just ended may still have: the kernel lets go of the file only
/// when the last I/O of its ring is over.
const LOCK_WAIT: Duration = Duration::from_secs(1);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Which system calls a device uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoBackend {
    /// io_uring if this system allows it, else threads, with a warning.
    #[default]
    Auto,
    /// io_uring, or an error.
    IoUring,
    /// A pool of threads.
    Sync,
}

/// Whether reads and writes bypass the page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direct {
    /// On for block devices, off for files.
    #[default]
    Auto,
    /// On, or an error.
    On,
    /// Off.
    Off,
}

/// How a device is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Which system calls it uses.
    pub io: IoBackend,
    /// Whether it bypasses the page cache.
    pub direct: Direct,
}

/// Why a device could not be opened or created: one line that names the path and what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// Nothing is there.
    #[error("store {} does not exist", path.display())]
    NotFound {
        /// What was asked for.
        path: PathBuf,
    },
    /// A file that was to be created is there already.
    #[error("store {} exists already: open it, or name another path", path.display())]
    Exists {
        /// What was asked for.
        path: PathBuf,
    },
    /// Another process has the lock.
    #[error("store {} is held by another process", path.display())]
    Held {
        /// What was asked for.
        path: PathBuf,
    },
    /// The device is mounted, or part of another volume.
    #[error("device {} is in use by the system: unmount it, or name another device", path.display())]
    InUse {
        /// What was asked for.
        path: PathBuf,
    },
    /// Permissions or a read-only file system forbid writing.
    #[error("store {} cannot be opened for writing ({reason}): make it writable for this user", path.display())]
    NotWritable {
        /// What was asked for.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
    },
    /// The file system has too little space.
    #[error("no space for store {}: {needed_bytes} bytes are needed, {free_bytes} are free: free some, or ask for less", path.display())]
    NoSpace {
        /// What was asked for.
        path: PathBuf,
        /// Bytes to be reserved.
        needed_bytes: u64,
        /// Bytes that were free.
        free_bytes: u64,
    },
    /// The device has no whole page.
    #[error("store {} has {len_bytes} bytes: at least {min_bytes} are needed", path.display())]
    TooSmall {
        /// What was asked for.
        path: PathBuf,
        /// Its size.
        len_bytes: u64,
        /// The least size.
        min_bytes: u64,
    },
    /// This file, file system or kernel cannot do what was asked for.
    #[error("store {}: {what}", path.display())]
    Unsupported {
        /// What was asked for.
        path: PathBuf,
        /// What is not possible, and what would be.
        what: String,
    },
    /// Any other error of the system.
    #[error("failed to {what} store {}: {source}", path.display())]
    Io {
        /// What was asked for.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl DeviceError {
    /// The kind that an error of the system amounts to.
    fn of(path: &Path, what: &'static str, error: impl Into<io::Error>) -> Self {
        let (path, source) = (path.to_owned(), error.into());
        match Errno::from_io_error(&source) {
            Some(Errno::NOENT) => Self::NotFound { path },
            Some(Errno::EXIST) => Self::Exists { path },
            Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => Self::NotWritable { path, reason: source },
            _ => Self::Io { path, what, source },
        }
    }

    fn unsupported(path: &Path, what: impl Into<String>) -> Self {
        Self::Unsupported { path: path.to_owned(), what: what.into() }
    }
}

/// Opens a store in a regular file, of the size that the file has.
///
/// Blocks for up to a second while another process holds the lock.
pub fn open_file(path: &Path, options: DeviceOptions) -> Result<Arc<dyn Device>, DeviceError> {
    let fd = fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| match errno {
        Errno::ISDIR => DeviceError::unsupported(path, "is a directory: name a file inside of it"),
        errno => DeviceError::of(path, "open", errno),
    })?;
    let stat = fs::fstat(&fd).map_err(|errno| DeviceError::of(path, "inspect", errno))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::BlockDevice => {
            return Err(DeviceError::unsupported(path, "is a block device: open it as one"));
        }
        _ => return Err(DeviceError::unsupported(path, "is not a regular file")),
    }
    let backing = lock(path, fd)?;
    let len_bytes = u64::try_from(stat.st_size).unwrap_or(0);
    start(path, backing, file_geometry(len_bytes), options)
}

/// Opens a store for reading and writing in whatever is at the path, a regular file or a block device.
///
/// Blocks for up to a second while another process holds it.
pub fn open_any(path: &Path, options: DeviceOptions) -> Result<Arc<dyn Device>, DeviceError> {
    let stat = fs::stat(path).map_err(|errno| DeviceError::of(path, "inspect", errno))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => open_block_device(path, options),
        _ => open_file(path, options),
    }
}

/// Makes a store's file larger, to `len_bytes` rounded down to whole pages, and reserves the space. What is in it stays; the store on it
/// goes on with the size that it had. A file that is larger already stays as it is.
///
/// Blocks for up to a second while another process holds the lock.
pub fn extend_file(path: &Path, len_bytes: u64) -> Result<(), DeviceError> {
    let len_bytes = whole_pages(path, len_bytes)?;
    let fd = fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| DeviceError::of(path, "open", errno))?;
    let stat = fs::fstat(&fd).map_err(|errno| DeviceError::of(path, "inspect", errno))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(DeviceError::unsupported(path, "is not a regular file"));
    }
    let have_bytes = u64::try_from(stat.st_size).unwrap_or(0);
    let backing = lock(path, fd)?;
    if have_bytes < len_bytes {
        reserve::reserve(path, backing.as_fd(), have_bytes, len_bytes)?;
    }
    Ok(())
}

/// Opens a store in a regular file or on a block device for reading: every write to it fails. It is locked like one that is
/// written, because a running store changes under who reads it.
///
/// Blocks for up to a second while another process holds the lock.
pub fn open_read_only(path: &Path, options: DeviceOptions) -> Result<Arc<dyn Device>, DeviceError> {
    // A device that is mounted or being written elsewhere may be read: the lock tells whether a store runs on it.
    let fd = fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()).map_err(|errno| match errno {
        Errno::ACCESS | Errno::PERM => DeviceError::Io { path: path.to_owned(), what: "read", source: errno.into() },
        errno => DeviceError::of(path, "open", errno),
    })?;
    let stat = fs::fstat(&fd).map_err(|errno| DeviceError::of(path, "inspect", errno))?;
    let geometry = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => file_geometry(u64::try_from(stat.st_size).unwrap_or(0)),
        FileType::BlockDevice => device_geometry(path, &fd)?,
        FileType::Directory => return Err(DeviceError::unsupported(path, "is a directory: name a file inside of it")),
        _ => return Err(DeviceError::unsupported(path, "is neither a regular file nor a block device")),
    };
    start(path, lock(path, fd)?, geometry, options)
}

/// Creates a store in a new file of `len_bytes`, rounded down to whole pages, whose space is reserved in full. If that fails
/// halfway, nothing is left.
pub fn create_file(path: &Path, len_bytes: u64, options: DeviceOptions) -> Result<Arc<dyn Device>, DeviceError> {
    let len_bytes = whole_pages(path, len_bytes)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let fd = fs::open(path, flags, mode).map_err(|errno| match errno {
        Errno::NOENT => DeviceError::NotFound { path: path.parent().unwrap_or(path).to_owned() },
        errno => DeviceError::of(path, "create", errno),
    })?;
    let mut partial = reserve::RemoveUnlessKept::new(path);
    let backing = lock(path, fd)?;
    reserve::avoid_copy_on_write(path, backing.as_fd());
    reserve::reserve(path, backing.as_fd(), 0, len_bytes)?;
    let device = start(path, backing, file_geometry(len_bytes), options)?;
    partial.keep();
    Ok(device)
}

/// Opens a whole block device. One that is mounted, or part of another volume, is refused.
///
/// Blocks for up to a second while another process holds the device.
pub fn open_block_device(path: &Path, options: DeviceOptions) -> Result<Arc<dyn Device>, DeviceError> {
    let plain = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let stat = fs::stat(path).map_err(|errno| DeviceError::of(path, "inspect", errno))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
        return Err(DeviceError::unsupported(path, "is not a block device"));
    }
    let until = Instant::now() + LOCK_WAIT;
    let fd = loop {
        match fs::open(path, plain | OFlags::EXCL, Mode::empty()) {
            Ok(fd) => break fd,
            Err(Errno::BUSY) if Instant::now() < until => thread::sleep(LOCK_RETRY),
            Err(Errno::BUSY) => return Err(who_holds(path, plain)),
            Err(errno) => return Err(DeviceError::of(path, "open", errno)),
        }
    };
    let geometry = device_geometry(path, &fd)?;
    let backing = lock(path, fd)?;
    start(path, backing, geometry, options)
}

/// Whether the first and the last MiB hold nothing but zeros, as a device does that nobody uses.
pub async fn first_and_last_mib_are_zero(device: &dyn Device) -> io::Result<bool> {
    const MIB: u64 = 1 << 20;
    let len_bytes = device.geometry().len_bytes;
    let probe_bytes = len_bytes.min(MIB);
    for offset_bytes in [0, len_bytes - probe_bytes] {
        let buf = AlignedBuf::take(usize::try_from(probe_bytes).unwrap_or(PAGE_BYTES));
        let (buf, result) = device.read(offset_bytes, buf).await;
        result?;
        if buf.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Tells a store of another process from a mounted file system.
fn who_holds(path: &Path, flags: OFlags) -> DeviceError {
    let path_owned = path.to_owned();
    let free = fs::open(path, flags, Mode::empty()).map(Backing::lock);
    match free {
        Ok(Ok(Err(_held))) => DeviceError::Held { path: path_owned },
        _ => DeviceError::InUse { path: path_owned },
    }
}

fn lock(path: &Path, fd: OwnedFd) -> Result<Backing, DeviceError> {
    let until = Instant::now() + LOCK_WAIT;
    let mut fd = fd;
    loop {
        match Backing::lock(fd).map_err(|error| DeviceError::of(path, "lock", error))? {
            Ok(backing) => return Ok(backing),
            Err(held) if Instant::now() < until => fd = held,
            Err(_) => {
                return Err(DeviceError::Held { path: path.to_owned() });
            }
        }
        thread::sleep(LOCK_RETRY);
    }
}

/// What is known of a file: not what its file system lies on, so the smallest sectors are assumed.
fn file_geometry(len_bytes: u64) -> Geometry {
    Geometry { len_bytes, logical_sector_bytes: 512, physical_sector_bytes: 4096, direct: false, backend: "", block_device: false }
}

/// What is known of a block device; refuses one whose sectors are no part of a page.
fn device_geometry(path: &Path, fd: &OwnedFd) -> Result<Geometry, DeviceError> {
    let len_bytes = fs::seek(fd, fs::SeekFrom::End(0)).map_err(|errno| DeviceError::of(path, "find the size of", errno))?;
    let sector = |size: Result<u32, Errno>| size.map_err(|errno| DeviceError::of(path, "find the sector size of", errno));
    let geometry = Geometry {
        len_bytes,
        logical_sector_bytes: sector(fs::ioctl_blksszget(fd))?,
        physical_sector_bytes: sector(fs::ioctl_blkpbszget(fd))?,
        direct: false,
        backend: "",
        block_device: true,
    };
    let page = u32::try_from(PAGE_BYTES).unwrap_or(u32::MAX);
    if !page.is_multiple_of(geometry.logical_sector_bytes.max(1)) {
        return Err(DeviceError::unsupported(
            path,
            format!("has sectors of {} bytes: only 512 to {PAGE_BYTES} are supported", geometry.logical_sector_bytes),
        ));
    }
    Ok(geometry)
}

fn whole_pages(path: &Path, len_bytes: u64) -> Result<u64, DeviceError> {
    let page = PAGE_BYTES as u64;
    if len_bytes < page {
        return Err(DeviceError::TooSmall { path: path.to_owned(), len_bytes, min_bytes: page });
    }
    Ok(len_bytes / page * page)
}

/// Settles what is still open of the geometry, and starts the backend.
fn start(path: &Path, backing: Backing, mut geometry: Geometry, options: DeviceOptions) -> Result<Arc<dyn Device>, DeviceError> {
    geometry.len_bytes = whole_pages(path, geometry.len_bytes)?;
    geometry.direct = match options.direct {
        Direct::Off => false,
        Direct::Auto if !geometry.block_device => false,
        wish => match go_direct(backing.as_fd()) {
            Ok(()) => true,
            Err(error) if wish == Direct::On => {
                return Err(DeviceError::unsupported(path, format!("direct i/o is refused here ({error}): choose direct auto or off")));
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "direct i/o is refused: using the page cache");
                false
            }
        },
    };
    let backing = match options.io {
        IoBackend::Sync => backing,
        wish => {
            geometry.backend = "io-uring";
            match UringDevice::start(backing, geometry.clone()) {
                Ok(device) => return Ok(Arc::new(device)),
                Err((error, Some(backing))) if wish == IoBackend::Auto => {
                    tracing::warn!(
                        path = %path.display(), %error,
                        "IO_URING IS REFUSED BY THIS SYSTEM: using threads, which cost more CPU"
                    );
                    backing
                }
                Err((error, Some(_))) => {
                    return Err(DeviceError::unsupported(
                        path,
                        format!("io_uring is refused by this system ({error}): choose io auto or sync"),
                    ));
                }
                Err((error, None)) => {
                    return Err(DeviceError::of(path, "start a thread for", error));
                }
            }
        }
    };
    geometry.backend = "sync";
    match SyncDevice::start(backing, geometry) {
        Ok(device) => Ok(Arc::new(device)),
        Err(error) => Err(DeviceError::of(path, "start a thread for", error)),
    }
}

/// Switches the file to direct I/O if an aligned read then works; else leaves it as it was.
fn go_direct(fd: impl AsFd) -> io::Result<()> {
    let before = fs::fcntl_getfl(&fd)?;
    fs::fcntl_setfl(&fd, before | OFlags::DIRECT)?;
    let mut page = AlignedBuf::take(PAGE_BYTES);
    let result = loop {
        match rustix::io::pread(&fd, &mut *page, 0) {
            Err(Errno::INTR) => {}
            Ok(PAGE_BYTES) => return Ok(()),
            // Damage of the first page, no refusal.
            Err(Errno::IO) => return Ok(()),
            Ok(_) => break io::Error::from(io::ErrorKind::UnexpectedEof),
            Err(errno) => break errno.into(),
        }
    };
    fs::fcntl_setfl(&fd, before)?;
    Err(result)
}
