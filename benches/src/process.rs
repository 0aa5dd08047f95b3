//! What the server's process has used, from /proc.

use std::{fs, time::Duration};

/// Ticks a second in /proc: part of the kernel's interface on every architecture that matters here.
const TICKS_PER_SECOND: u64 = 100;

/// A process that is watched.
#[derive(Debug)]
pub(crate) struct ServerProcess {
    pid: u32,
}

impl ServerProcess {
    /// The process of that number, if it runs.
    pub(crate) fn new(pid: u32) -> Result<Self, String> {
        let process = Self { pid };
        process.cpu()?;
        Ok(process)
    }

    /// User and system time so far, of all threads; counted in ticks of 10 ms.
    pub(crate) fn cpu(&self) -> Result<Duration, String> {
        let stat = self.read("stat")?;
        // The name, in parentheses, may hold anything.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
        match (ticks(11), ticks(12)) {
            (Some(user), Some(system)) => Ok(Duration::from_millis((user + system) * 1000 / TICKS_PER_SECOND)),
            _ => Err(format!("read CPU time of process {}: unexpected /proc/{}/stat", self.pid, self.pid)),
        }
    }

    /// The most memory that it has had at a time, in bytes.
    pub(crate) fn memory_bytes_max(&self) -> Result<u64, String> {
        let status = self.read("status")?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<u64>().ok());
        kib.map(|kib| kib * 1024).ok_or_else(|| format!("read memory of process {}: no line VmHWM", self.pid))
    }

    fn read(&self, file: &str) -> Result<String, String> {
        fs::read_to_string(format!("/proc/{}/{file}", self.pid)).map_err(|error| format!("--server-pid {}: {error}", self.pid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_something() {
        let process = ServerProcess::new(std::process::id()).unwrap();
        assert!(process.memory_bytes_max().unwrap() > 1 << 20);
        assert!(ServerProcess::new(u32::MAX).is_err());
    }
}
