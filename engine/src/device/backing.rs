//! The open file under a device, with the lock that keeps other processes away.
//!
//! Always true here: the lock belongs to the very description that the I/O goes through, so that it cannot be given away
//! while the kernel still works for a process that was killed.

use rustix::fs::{FlockOperation, flock};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

/// An open, locked file. Unlocked when dropped, even if a ring still refers to the file then.
#[derive(Debug)]
pub(super) struct Backing {
    fd: OwnedFd,
}

impl Backing {
    /// Takes the lock on `fd`, if no other description of the file has it; `None` if one has.
    pub(super) fn lock(fd: OwnedFd) -> io::Result<Result<Self, OwnedFd>> {
        match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Ok(Self { fd })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(Err(fd)),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Backing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Backing {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        // The file may live on for moments in the remains of a ring, and its lock with it.
        if let Err(errno) = flock(&self.fd, FlockOperation::Unlock) {
            tracing::warn!(error = %errno, "failed to unlock the store's file");
        }
    }
}
