//! Where a running server answers, for tools that find only its directory: a small file beside the store.
//!
//! Always true here: the file is written whole, under its name only once it is; who reads it must find the store held, since one that a
//! killed server left is stale and only means that nobody may answer there; that it cannot be written stops no server.

use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};
use tracing::warn;

/// Name of the file under `--dir`.
pub const FILE_NAME: &str = "server.json";
/// Its name while it is being written.
const NEW_FILE_NAME: &str = "server.json.new";

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Where gRPC is answered.
    pub grpc: SocketAddr,
    /// Where HTTP is answered.
    pub http: SocketAddr,
    /// The process.
    pub pid: u32,
}

/// A file that is there; it goes with this value.
#[derive(Debug)]
pub struct Told {
    path: PathBuf,
}

impl Addresses {
    /// Writes them into a directory, for as long as what comes back lives. `None`: it cannot be written, which is logged.
    pub fn tell(&self, dir: &Path) -> Option<Told> {
        let path = dir.join(FILE_NAME);
        match self.write(dir, &path) {
            Ok(()) => Some(Told { path }),
            Err(error) => {
                warn!(path = %path.display(), %error, "cannot write where this server answers: blockstore-tool must be given --server");
                None
            }
        }
    }

    fn write(&self, dir: &Path, path: &Path) -> io::Result<()> {
        let new = dir.join(NEW_FILE_NAME);
        fs::write(&new, serde_json::to_vec(self).map_err(io::Error::from)?)?;
        fs::rename(&new, path)
    }

    /// What a directory's file says; `None` where there is none that makes sense.
    pub fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join(FILE_NAME)).ok()?).ok()
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        // One that stays is stale, and known to be.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    #[test]
    fn what_is_told_is_read_until_it_goes() {
        let dir = TempDir::new().unwrap();
        let addresses = Addresses { grpc: "127.0.0.1:1".parse().unwrap(), http: "[::1]:2".parse().unwrap(), pid: 3 };
        assert_eq!(Addresses::read(dir.path()), None);
        let told = addresses.tell(dir.path());
        assert_eq!(Addresses::read(dir.path()), Some(addresses));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        drop(told);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        fs::write(dir.path().join(FILE_NAME), "{\"grpc\":").unwrap();
        assert_eq!(Addresses::read(dir.path()), None, "half a file says nothing");
        assert!(addresses.tell(&dir.path().join("nothing")).is_none(), "no directory, and no failure");
    }
}
