//! Which log entries count: pure over the pages that were read.
//!
//! At or below the highest mark everything was flushed, so what is invalid there is damage: it is skipped and counted. Above the
//! mark the first invalid entry or hole is where the last run ended; nothing behind it counts.

use crate::{
    canary::{self, Canary},
    format::{
        crc::CrcMask,
        log::{Entry, PageHead, UNIT_BYTES, UNITS_PER_PAGE},
        types::{Epoch, Lsn},
    },
    log_writer::LogEnd,
};

/// A page that was read, in ring order; `None` if the device could not read it.
pub(crate) struct RawPage<'a> {
    pub(crate) number: u64,
    pub(crate) bytes: Option<&'a [u8]>,
}

/// The entries that count.
#[derive(Debug, Default)]
pub(crate) struct Accepted {
    pub(crate) entries: Vec<(Lsn, Epoch, Entry)>,
    pub(crate) end: LogEnd,
    pub(crate) mark: Lsn,
    /// Units and pages below the mark that were skipped.
    pub(crate) damaged: u64,
}

struct Page<'a> {
    head: PageHead,
    bytes: &'a [u8],
}

impl Page<'_> {
    fn entry(&self, mask: &CrcMask, unit: usize) -> Option<Entry> {
        let lsn = self.head.first.plus(unit as u64);
        Entry::decode(mask, self.head.epoch, lsn, self.bytes.get((unit + 1) * UNIT_BYTES..)?)
    }
    /// The highest mark on the page.
    fn mark(&self, mask: &CrcMask) -> Option<Lsn> {
        let marks = (0..UNITS_PER_PAGE).filter_map(|unit| {
            // One in a hundred: what is none by its tag is not checked here.
            let may_be = self.bytes.get((unit + 1) * UNIT_BYTES..).is_some_and(Entry::may_be_durable);
            match may_be.then(|| self.entry(mask, unit))?? {
                Entry::Durable { lsn } => Some(lsn),
                _ => None,
            }
        });
        marks.max()
    }
}

/// Sorts out `pages`, the first of which holds (or will hold) the entry behind `after`. `mark` is what the superblock says was flushed.
pub(crate) fn scan(mask: &CrcMask, pages: &[RawPage<'_>], after: Lsn, mark: Lsn) -> Accepted {
    let decoded: Vec<Option<Page<'_>>> =
        pages.iter().map(|p| p.bytes.and_then(|bytes| PageHead::decode(mask, p.number, bytes).map(|head| Page { head, bytes }))).collect();
    let mark = decoded.iter().flatten().filter_map(|p| p.mark(mask)).max().unwrap_or_default().max(mark);
    let first_page = pages.first().map_or(1, |p| p.number);
    let mut out =
        Accepted { mark, end: LogEnd { page: first_page.saturating_sub(1), used: 0, next: after.plus(1) }, ..Accepted::default() };
    // Nearly every unit is an entry: growing step by step would take three times the memory.
    out.entries.reserve_exact(decoded.iter().flatten().count() * UNITS_PER_PAGE);
    // What the next page should say; unknown at the first page and behind damage.
    let mut expected: Option<(Lsn, u16)> = None;
    let mut epoch = Epoch::default();
    let mut reached = after;
    for (i, slot) in decoded.iter().enumerate() {
        let below_mark = reached < mark;
        let page = slot.as_ref().filter(|p| p.head.epoch >= epoch || canary::leaves_out(Canary::EpochHonoured));
        // Behind damage only what the mark covers is known to be no dead run's. A run that began behind an image does not know
        // how many units the page before it has, and says 0.
        let continues = page.is_some_and(|p| match expected {
            Some((lsn, units)) => p.head.first == lsn && (p.head.units_before == units || p.head.units_before == 0),
            None => i == 0 || p.head.first <= mark.plus(1),
        });
        // The first page may begin before the image's mark, and nothing is known of what came before it.
        let page = match page {
            Some(p) if continues && (i > 0 || p.head.first <= after.plus(1)) => p,
            Some(p) if below_mark && p.head.first.0 > reached.0.saturating_sub(UNITS_PER_PAGE as u64) && p.head.first <= mark => {
                out.damaged += 1;
                p
            }
            _ if below_mark => {
                out.damaged += 1;
                expected = None;
                continue;
            }
            _ => break,
        };
        // How many units it should have: known if the next page follows it.
        let next = decoded.get(i + 1).and_then(Option::as_ref).map(|n| &n.head);
        let count = next.filter(|n| n.epoch >= page.head.epoch).and_then(|n| {
            let units = usize::try_from(n.first.0.checked_sub(page.head.first.0)?).ok().filter(|units| *units <= UNITS_PER_PAGE)?;
            (usize::from(n.units_before) == units || n.units_before == 0).then_some(units)
        });
        let mut unit = 0;
        let mut ended = false;
        while unit < count.unwrap_or(UNITS_PER_PAGE) {
            let lsn = page.head.first.plus(unit as u64);
            match page.entry(mask, unit) {
                Some(entry) => {
                    if lsn > after {
                        out.entries.push((lsn, page.head.epoch, entry));
                    }
                    unit += entry.units();
                }
                None if lsn <= mark && lsn > after => {
                    out.damaged += 1;
                    unit += 1;
                }
                None if lsn <= after => unit += 1,
                None => {
                    ended = true;
                    break;
                }
            }
        }
        epoch = page.head.epoch;
        let next_lsn = page.head.first.plus(unit as u64);
        reached = reached.max(next_lsn.prev());
        out.end = LogEnd { page: page.head.page, used: unit as u16, next: next_lsn };
        expected = Some((next_lsn, unit as u16));
        if ended && count.is_some() {
            // A write of this page was lost: what its successor says came after it does not count.
            break;
        }
    }
    // What was flushed was given out, even if it cannot be read any more: no LSN is used twice.
    out.end.next = out.end.next.max(mark.plus(1)).max(after.plus(1));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{device::PAGE_BYTES, format::types::Vbn, log_writer::LogWriter};
    use std::collections::BTreeMap;

    const MASK: [u8; 16] = [3; 16];

    #[derive(Clone)]
    struct Ring(BTreeMap<u64, Vec<u8>>);

    impl Ring {
        fn new() -> Self {
            Self(BTreeMap::new())
        }
        /// Appends entries in one page-batch, and closes the page.
        fn run(&mut self, epoch: u32, end: LogEnd, entries: &[Entry]) -> LogEnd {
            let mut log = LogWriter::new(CrcMask::new(&MASK), Epoch(epoch), end);
            entries.iter().for_each(|e| _ = log.append(e));
            if let Some(dirty) = log.take_dirty() {
                for (i, page) in dirty.bytes.chunks(PAGE_BYTES).enumerate() {
                    self.0.insert(dirty.first_page + i as u64, page.to_vec());
                }
            }
            log.end()
        }
        fn scan(&self, from: u64, after: u64) -> Accepted {
            let last = self.0.keys().max().copied().unwrap_or(0) + 3;
            let pages: Vec<_> = (from..=last).map(|number| RawPage { number, bytes: self.0.get(&number).map(Vec::as_slice) }).collect();
            scan(&CrcMask::new(&MASK), &pages, Lsn(after), Lsn(0))
        }
    }
    fn opens(n: u32) -> Vec<Entry> {
        (0..n).map(|i| Entry::BlockOpen { vbn: Vbn(i + 1) }).collect()
    }
    const START: LogEnd = LogEnd { page: 0, used: 0, next: Lsn(1) };

    #[test]
    fn every_entry_of_an_unharmed_log_counts() {
        let mut ring = Ring::new();
        let end = ring.run(1, START, &opens(1000));
        let end = ring.run(2, end, &opens(10));
        let got = ring.scan(1, 0);
        assert_eq!((got.entries.len(), got.end, got.damaged), (1010, end, 0));
    }

    #[test]
    fn entries_behind_a_hole_above_the_mark_do_not_count() {
        let mut ring = Ring::new();
        ring.run(1, START, &opens(1000));
        ring.0.remove(&4);
        let got = ring.scan(1, 0);
        assert_eq!((got.entries.len(), got.end.next, got.end.page), (3 * 127, Lsn(3 * 127 + 1), 3));
    }

    #[test]
    fn a_dead_runs_entries_are_not_taken_up_again_by_a_later_recovery() {
        // 127 entries a page. The first run loses page 3; pages 4.. survive. The second run writes page 3 and crashes.
        let mut ring = Ring::new();
        ring.run(1, START, &opens(1000));
        ring.0.remove(&3);
        let first = ring.scan(1, 0);
        let end = ring.run(2, first.end, &opens(127));
        let second = ring.scan(1, 0);
        assert_eq!((second.entries.len(), second.end), (3 * 127, end));
    }

    #[test]
    fn an_older_version_of_a_page_is_a_hole() {
        let mut ring = Ring::new();
        let mut log = LogWriter::new(CrcMask::new(&MASK), Epoch(1), START);
        opens(5).iter().for_each(|e| _ = log.append(e));
        let old = log.take_dirty().unwrap();
        opens(300).iter().for_each(|e| _ = log.append(e));
        let new = log.take_dirty().unwrap();
        for (i, page) in new.bytes.chunks(PAGE_BYTES).enumerate() {
            ring.0.insert(new.first_page + i as u64, page.to_vec());
        }
        assert_eq!(ring.scan(1, 0).entries.len(), 305);
        ring.0.insert(1, old.bytes);
        let got = ring.scan(1, 0);
        assert_eq!((got.entries.len(), got.end.page, got.end.used), (5, 1, 5));
    }

    #[test]
    fn damage_at_or_below_the_mark_costs_only_what_it_hit() {
        let mut ring = Ring::new();
        let mut entries = opens(1000);
        entries.push(Entry::Durable { lsn: Lsn(900) });
        let end = ring.run(1, START, &entries);
        let whole = ring.clone();
        // One unit.
        ring.0.get_mut(&2).unwrap()[32 * 10 + 9] ^= 1;
        let got = ring.scan(1, 0);
        assert_eq!((got.entries.len(), got.end, got.damaged), (1000, end, 1));
        // One whole page, unreadable.
        ring = whole.clone();
        ring.0.remove(&3);
        let got = ring.scan(1, 0);
        assert_eq!((got.entries.len(), got.end), (1001 - 127, end));
        // The page that the log starts with.
        ring = whole;
        ring.0.remove(&1);
        let got = ring.scan(1, 0);
        assert_eq!((got.entries.len(), got.end), (1001 - 127, end));
    }

    #[test]
    fn a_lost_end_below_the_mark_never_gives_an_lsn_out_twice() {
        let mut ring = Ring::new();
        let mut entries = opens(126);
        entries.push(Entry::Durable { lsn: Lsn(126) });
        let end = ring.run(1, START, &entries);
        ring.run(1, end, &opens(100));
        let pages: Vec<_> =
            ring.0.iter().map(|(number, b)| RawPage { number: *number, bytes: (*number != 2).then_some(b.as_slice()) }).collect();
        let got = scan(&CrcMask::new(&MASK), &pages, Lsn(0), Lsn(200));
        assert_eq!((got.mark, got.end.next), (Lsn(200), Lsn(201)));
    }
}
