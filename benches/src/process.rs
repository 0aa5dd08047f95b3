//! What the server's process has used, from /proc.
//!
//! Always true here: figures only grow while a process runs, but for its memory; a thread that ended takes its switches along, so
//! that a difference is a lower bound and never negative.

use std::{fs, time::Duration};

/// Ticks a second in /proc: part of the kernel's interface on every architecture that matters here.
const TICKS_PER_SECOND: u64 = 100;

/// A process that is watched.
#[derive(Debug)]
pub(crate) struct ServerProcess {
    pid: u32,
}

/// What a process has used since it started, or between two moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// User and system time of all threads; counted in ticks of 10 ms.
    pub(crate) cpu: Duration,
    /// Pages that were mapped without reading them.
    pub(crate) minor_faults: u64,
    /// How often a thread waited for something.
    pub(crate) switches_voluntary: u64,
    /// How often a thread was put off its core.
    pub(crate) switches_involuntary: u64,
    /// Bytes from and to the device, where this user may know them.
    pub(crate) device: Option<DeviceBytes>,
}

/// Bytes that the kernel moved for a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DeviceBytes {
    /// Fetched from the device.
    pub(crate) read: u64,
    /// Sent to the device, or dirtied in the page cache.
    pub(crate) written: u64,
}

impl Usage {
    /// This and `other` together.
    pub(crate) fn and(&self, other: &Self) -> Self {
        Self {
            cpu: self.cpu + other.cpu,
            minor_faults: self.minor_faults + other.minor_faults,
            switches_voluntary: self.switches_voluntary + other.switches_voluntary,
            switches_involuntary: self.switches_involuntary + other.switches_involuntary,
            device: self
                .device
                .zip(other.device)
                .map(|(one, other)| DeviceBytes { read: one.read + other.read, written: one.written + other.written }),
        }
    }

    /// What was used since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            minor_faults: self.minor_faults.saturating_sub(before.minor_faults),
            switches_voluntary: self.switches_voluntary.saturating_sub(before.switches_voluntary),
            switches_involuntary: self.switches_involuntary.saturating_sub(before.switches_involuntary),
            device: self.device.zip(before.device).map(|(now, before)| DeviceBytes {
                read: now.read.saturating_sub(before.read),
                written: now.written.saturating_sub(before.written),
            }),
        }
    }
}

impl ServerProcess {
    /// The process of that number, if it runs.
    pub(crate) fn new(pid: u32) -> Result<Self, String> {
        let process = Self { pid };
        process.usage()?;
        Ok(process)
    }

    /// What it has used so far.
    pub(crate) fn usage(&self) -> Result<Usage, String> {
        let stat = self.read("stat")?;
        // The name, in parentheses, may hold anything.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
        let (Some(minor_faults), Some(user), Some(system)) = (number(7), number(11), number(12)) else {
            return Err(format!("read CPU time of process {}: unexpected /proc/{}/stat", self.pid, self.pid));
        };
        let (switches_voluntary, switches_involuntary) = self.switches()?;
        Ok(Usage {
            cpu: Duration::from_millis((user + system) * 1000 / TICKS_PER_SECOND),
            minor_faults,
            switches_voluntary,
            switches_involuntary,
            device: self.device_bytes(),
        })
    }

    /// The most memory that it has had at a time, in bytes.
    pub(crate) fn memory_bytes_max(&self) -> Result<u64, String> {
        self.memory("VmHWM")
    }

    /// The memory that it has now, in bytes.
    pub(crate) fn memory_bytes(&self) -> Result<u64, String> {
        self.memory("VmRSS")
    }

    fn memory(&self, name: &str) -> Result<u64, String> {
        let kib = number_of(&self.read("status")?, name);
        kib.map(|kib| kib * 1024).ok_or_else(|| format!("read memory of process {}: no line {name}", self.pid))
    }

    /// Of all threads that run.
    fn switches(&self) -> Result<(u64, u64), String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).map_err(|error| format!("--server-pid {}: {error}", self.pid))?;
        let mut sum = (0, 0);
        for task in tasks.flatten() {
            // One that has just ended says nothing any more.
            let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
            sum.0 += number_of(&status, "voluntary_ctxt_switches").unwrap_or(0);
            sum.1 += number_of(&status, "nonvoluntary_ctxt_switches").unwrap_or(0);
        }
        Ok(sum)
    }

    /// Another user's process does not tell.
    fn device_bytes(&self) -> Option<DeviceBytes> {
        let io = self.read("io").ok()?;
        Some(DeviceBytes { read: number_of(&io, "read_bytes")?, written: number_of(&io, "write_bytes")? })
    }

    fn read(&self, file: &str) -> Result<String, String> {
        fs::read_to_string(format!("/proc/{}/{file}", self.pid)).map_err(|error| format!("--server-pid {}: {error}", self.pid))
    }
}

/// The number in the line `name: number …`.
fn number_of(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_something() {
        let process = ServerProcess::new(std::process::id()).unwrap();
        assert!(process.memory_bytes_max().unwrap() > 1 << 20);
        assert!(process.memory_bytes().unwrap() > 1 << 20);
        let usage = process.usage().unwrap();
        assert!(usage.minor_faults > 0 && usage.switches_voluntary + usage.switches_involuntary > 0 && usage.device.is_some());
        assert!(ServerProcess::new(u32::MAX).is_err());
    }

    #[test]
    fn lines_are_told_apart_by_their_whole_name() {
        let status = "VmHWM:\t  12 kB\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t9\n";
        let names = ["VmHWM", "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches", "Vm"];
        assert_eq!(names.map(|name| number_of(status, name)), [Some(12), Some(7), Some(9), None]);
    }

    #[test]
    fn a_difference_is_never_negative() {
        let now = Usage {
            cpu: Duration::from_millis(30),
            minor_faults: 5,
            device: Some(DeviceBytes { read: 9, written: 1 }),
            ..Usage::default()
        };
        let before =
            Usage { cpu: Duration::from_millis(10), switches_voluntary: 3, device: Some(DeviceBytes { read: 4, written: 1 }), ..now };
        let used = now.since(&before);
        assert_eq!((used.cpu, used.minor_faults, used.switches_voluntary), (Duration::from_millis(20), 0, 0));
        assert_eq!(used.device, Some(DeviceBytes { read: 5, written: 0 }));
        assert_eq!(now.since(&Usage::default()).device, None);
    }
}
