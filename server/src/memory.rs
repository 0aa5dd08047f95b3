//! How much memory this process may use: the machine's, or less where a control group says so.
//!
//! Always true here: only reads; what cannot be read or understood sets no limit.

use std::{fs, path::Path};

/// The least of the machine's memory and the limits of the process's control groups, in bytes.
pub fn limit_bytes() -> u64 {
    limit_under(Path::new("/"))
}

fn limit_under(root: &Path) -> u64 {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let machine = read("proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(u64::MAX, |kib| kib.saturating_mul(1024));
    let mut least = machine;
    for line in read("proc/self/cgroup").lines() {
        // "0::/a/b" is version 2; "4:memory:/a/b" is version 1.
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let (mount, file) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            c if c.split(',').any(|c| c == "memory") => ("sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        // A limit of any ancestor holds as well. In a container the path may name the host's tree, of which only the
        // root is visible: that is the last ancestor.
        for ancestor in Path::new(path.trim_start_matches('/')).ancestors() {
            let text = fs::read_to_string(root.join(mount).join(ancestor).join(file)).unwrap_or_default();
            if let Ok(bytes) = text.trim().parse::<u64>() {
                least = least.min(bytes);
            }
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit_with(files: &[(&str, &str)]) -> u64 {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        limit_under(root.path())
    }

    const MACHINE: (&str, &str) = ("proc/meminfo", "MemTotal:        1024 kB\nMemFree: 3 kB\n");

    #[test]
    fn the_least_limit_holds() {
        assert_eq!(limit_with(&[MACHINE]), 1 << 20);
        let v2 = ("proc/self/cgroup", "0::/system.slice/cache.service\n");
        let max = "sys/fs/cgroup/system.slice/cache.service/memory.max";
        assert_eq!(limit_with(&[MACHINE, v2, (max, "max\n")]), 1 << 20);
        assert_eq!(limit_with(&[MACHINE, v2, (max, "65536\n")]), 65536);
        assert_eq!(limit_with(&[MACHINE, v2, (max, "65536\n"), ("sys/fs/cgroup/system.slice/memory.max", "4096\n")]), 4096);
        assert_eq!(limit_with(&[MACHINE, v2, ("sys/fs/cgroup/memory.max", "8192\n")]), 8192);
        let v1 = ("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/job\n0::/\n");
        assert_eq!(limit_with(&[MACHINE, v1, ("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "12288\n")]), 12288);
    }

    #[test]
    fn this_machine_has_memory() {
        assert!((1 << 20..u64::MAX).contains(&limit_bytes()));
    }
}
