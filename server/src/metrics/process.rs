//! The process as the kernel sees it, under the names that every client library of Prometheus uses.
//!
//! Always true here: what cannot be read or understood is left out; nothing is shown as zero that is not.

use std::{fs, path::Path};

use rustix::param::{clock_ticks_per_second, page_size};

use super::families::Families;

/// Reads what there is.
pub(super) fn read(families: &mut Families) {
    read_under(Path::new("/proc"), families);
}

fn read_under(proc: &Path, families: &mut Families) {
    let ticks = clock_ticks_per_second() as f64;
    if let Some(stat) = fs::read_to_string(proc.join("self/stat")).ok().as_deref().and_then(Stat::parse) {
        families.counter("process_cpu_seconds_total", "CPU time of the process, user and system.", stat.cpu_ticks / ticks);
        families.gauge("process_threads", "Threads of the process.", stat.threads);
        families.gauge("process_virtual_memory_bytes", "Address space of the process.", stat.virtual_bytes);
        families.gauge("process_resident_memory_bytes", "Memory of the process.", stat.resident_pages * page_size() as f64);
        if let Some(boot_seconds) = field(proc, "stat", "btime ") {
            let seconds = boot_seconds + stat.start_ticks / ticks;
            families.gauge("process_start_time_seconds", "When the process was started, in seconds since 1970.", seconds);
        }
    }
    if let Ok(entries) = fs::read_dir(proc.join("self/fd")) {
        families.gauge("process_open_fds", "File descriptors that are open.", entries.count() as f64);
    }
    if let Some(max) = field(proc, "self/limits", "Max open files") {
        families.gauge("process_max_fds", "File descriptors that may be open.", max);
    }
}

/// The number that follows `name` at the beginning of a line.
fn field(proc: &Path, file: &str, name: &str) -> Option<f64> {
    let text = fs::read_to_string(proc.join(file)).ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// What is wanted of `/proc/self/stat` (proc(5)).
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: f64,
    threads: f64,
    start_ticks: f64,
    virtual_bytes: f64,
    resident_pages: f64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name of the program is in parentheses and may have any character, these and blanks included.
        let (_, fields) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        // The first field here is the third in the manual.
        let number = |place: usize| fields.get(place - 3)?.parse::<f64>().ok();
        Some(Self {
            cpu_ticks: number(14)? + number(15)?,
            threads: number(20)?,
            start_ticks: number(22)?,
            virtual_bytes: number(23)?,
            resident_pages: number(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_be_called_anything() {
        let text = "7 (a) b) (c) S 1 7 7 0 -1 4194560 100 0 0 0 30 12 0 0 20 0 5 0 800 4096000 250 18446744073709551615 0 0";
        let stat = Stat { cpu_ticks: 42.0, threads: 5.0, start_ticks: 800.0, virtual_bytes: 4_096_000.0, resident_pages: 250.0 };
        assert_eq!(Stat::parse(text), Some(stat));
        for broken in ["", "7 (a", "7 (a) S", "7 (a) S 1 x"] {
            assert_eq!(Stat::parse(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn this_process_is_shown_and_what_is_missing_is_not() {
        let mut families = Families::default();
        read(&mut families);
        assert_eq!(families.into_inner().len(), 7);
        let mut families = Families::default();
        read_under(Path::new("/nowhere"), &mut families);
        assert!(families.into_inner().is_empty());
    }
}
