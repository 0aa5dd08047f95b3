//! Loop devices, and damage to what is on a disk.
//!
//! Always true here: a loop device is detached when its value is dropped; damage is written through the file that is meant and
//! nowhere else.

use crate::blob::Random;
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

/// A block device over a file.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches a free loop device to a file. `None`, with the reason printed, where this process may not.
    pub fn attach(file: &Path) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: a loop device needs root");
            return None;
        }
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        match output {
            Ok(output) if output.status.success() => Some(Self { path: String::from_utf8_lossy(&output.stdout).trim().into() }),
            Ok(output) => {
                println!("skipped: losetup: {}", String::from_utf8_lossy(&output.stderr).trim());
                None
            }
            Err(error) => {
                println!("skipped: cannot run losetup: {error}");
                None
            }
        }
    }

    /// The device node.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.path).status();
        if !detached.is_ok_and(|status| status.success()) {
            eprintln!("cannot detach {}", self.path.display());
        }
    }
}

/// A file of zeros that takes no space yet.
pub fn sparse_file(path: &Path, len_bytes: u64) -> File {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
    let file = file.unwrap_or_else(|error| panic!("cannot create {}: {error}", path.display()));
    file.set_len(len_bytes).expect("a sparse file of that size");
    file
}

/// Writes a file system to a file or device. `None`, with the reason printed, where there is no program for it.
pub fn make_ext4(path: &Path) -> Option<()> {
    let output = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(path).output();
    match output {
        Ok(output) => {
            assert!(output.status.success(), "mkfs.ext4: {}", String::from_utf8_lossy(&output.stderr));
            Some(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            println!("skipped: there is no mkfs.ext4 here");
            None
        }
        Err(error) => panic!("cannot run mkfs.ext4: {error}"),
    }
}

/// Overwrites `count` sectors of 512 bytes at random places from `from_bytes` on with random bytes.
pub fn damage(path: &Path, random: &mut Random, from_bytes: u64, count: u64) {
    let file = OpenOptions::new().write(true).open(path).expect("the store's file can be written");
    let sectors = (fs::metadata(path).expect("the store's file").len() - from_bytes) / 512;
    for _ in 0..count {
        let offset = from_bytes + random.below(sectors) * 512;
        let mut sector = [0; 512];
        sector.chunks_mut(8).for_each(|word| word.copy_from_slice(&random.next().to_le_bytes()));
        file.write_all_at(&sector, offset).expect("a sector of the store's file");
    }
    file.sync_all().expect("the store's file is synced");
}

/// Makes the kernel forget what it has cached of a file, so that the next read comes from the disk.
pub fn forget_cached(path: &Path) {
    let file = File::open(path).expect("the store's file can be read");
    file.sync_all().expect("the store's file is synced");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("advice is taken");
}

/// A file system in memory of a size of its own, on which whatever lies there ends with it.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one at a directory that is made for it. `None`, with the reason printed, where this process may not.
    pub fn mount(path: &Path, size_bytes: u64) -> Option<Self> {
        fs::create_dir(path).unwrap_or_else(|error| panic!("cannot create {}: {error}", path.display()));
        let size = format!("size={size_bytes}");
        let output = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).output();
        match output {
            Ok(output) if output.status.success() => Some(Self { path: path.into() }),
            Ok(output) => {
                println!("skipped: mount: {}", String::from_utf8_lossy(&output.stderr).trim());
                None
            }
            Err(error) => {
                println!("skipped: cannot run mount: {error}");
                None
            }
        }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whatever still has a file open there keeps it until it ends.
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.path).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.path.display());
        }
    }
}
