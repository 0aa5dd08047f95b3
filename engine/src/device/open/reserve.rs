//! Making the file of a new store: its space, and what its file system must not do to it.
//!
//! Always true here: a file that was not reserved in full is removed again.

use super::DeviceError;
use rustix::{
    fs::{self, FallocateFlags, IFlags, Mode, OFlags},
    io::Errno,
};
use std::{
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

/// File systems that write a changed page to a new place, by the magic number of statfs(2).
const BTRFS: u64 = 0x9123_683e;
const BCACHEFS: u64 = 0xca45_1a4e;
const ZFS: u64 = 0x2fc1_2fc1;

/// Removes a file when dropped, unless it was kept.
pub(super) struct RemoveUnlessKept {
    path: Option<PathBuf>,
}

impl RemoveUnlessKept {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: Some(path.to_owned()) }
    }

    pub(super) fn keep(&mut self) {
        self.path = None;
    }
}

impl Drop for RemoveUnlessKept {
    fn drop(&mut self) {
        if let Some(path) = &self.path
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::error!(path = %path.display(), %error, "failed to remove an unfinished store");
        }
    }
}

/// Asks for pages that stay where they are, while the file is still empty.
pub(super) fn avoid_copy_on_write(path: &Path, fd: BorrowedFd<'_>) {
    let Ok(stat) = fs::fstatfs(fd) else { return };
    let magic = u64::try_from(stat.f_type).unwrap_or(0);
    let done = match magic {
        BTRFS => fs::ioctl_getflags(fd).and_then(|flags| fs::ioctl_setflags(fd, flags | IFlags::NOCOW)).is_ok(),
        BCACHEFS | ZFS => false,
        _ => true,
    };
    if !done {
        tracing::warn!(
            path = %path.display(),
            "the file system copies on write: the reserved space may not suffice, and writes are slower"
        );
    }
}

/// Gives the file, which has `have_bytes`, its size and all its space, durably.
pub(super) fn reserve(path: &Path, fd: BorrowedFd<'_>, have_bytes: u64, len_bytes: u64) -> Result<(), DeviceError> {
    // Asked first: a file system may fill itself up before it finds that the space does not suffice.
    let free_bytes = free_bytes(fd);
    if free_bytes.is_some_and(|free| free < len_bytes.saturating_sub(have_bytes)) {
        return Err(no_space(path, fd, len_bytes));
    }
    loop {
        match fs::fallocate(fd, FallocateFlags::empty(), have_bytes, len_bytes.saturating_sub(have_bytes)) {
            Ok(()) => break,
            Err(Errno::INTR) => {}
            Err(Errno::NOSPC | Errno::DQUOT) => return Err(no_space(path, fd, len_bytes)),
            Err(Errno::FBIG) => {
                return Err(DeviceError::unsupported(path, format!("a file of {len_bytes} bytes is too large for this file system")));
            }
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                return Err(DeviceError::unsupported(path, "its file system cannot reserve space: use another, or a block device"));
            }
            Err(errno) => return Err(DeviceError::of(path, "reserve the space of", errno)),
        }
    }
    fs::fsync(fd).map_err(|errno| DeviceError::of(path, "sync", errno))?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::open(parent, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(fs::fsync)
        .map_err(|errno| DeviceError::of(path, "sync the directory of", errno))
}

fn no_space(path: &Path, fd: BorrowedFd<'_>, needed_bytes: u64) -> DeviceError {
    DeviceError::NoSpace { path: path.to_owned(), needed_bytes, free_bytes: free_bytes(fd).unwrap_or(0) }
}

/// What this user may still use; `None` where the file system does not say.
fn free_bytes(fd: BorrowedFd<'_>) -> Option<u64> {
    let stat = fs::fstatvfs(fd).ok()?;
    (stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize))
}
