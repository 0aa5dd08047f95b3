//! Lays log entries out in pages.
//!
//! Always true here: a page's head never changes; a page is added to only until it is closed, which happens when a flush that
//! covers it is issued; the entry after that starts a new page, which says how many units the one before used.

use crate::{
    device::PAGE_BYTES,
    format::{
        crc::CrcMask,
        log::{Entry, PageHead, UNIT_BYTES, UNITS_PER_PAGE},
        types::{Epoch, Lsn},
    },
};

/// Where the log ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogEnd {
    /// Number of the last page in use; 0 if there is none yet.
    pub(crate) page: u64,
    /// Units used in it.
    pub(crate) used: u16,
    /// LSN of the next entry.
    pub(crate) next: Lsn,
}

/// Pages that a batch must write, one after another in the ring.
#[derive(Debug)]
pub(crate) struct DirtyPages {
    pub(crate) first_page: u64,
    pub(crate) bytes: Vec<u8>,
}

/// The end of the log, in memory.
pub(crate) struct LogWriter {
    mask: CrcMask,
    epoch: Epoch,
    end: LogEnd,
    /// The last page as it is on the device, or will be.
    page: Box<[u8; PAGE_BYTES]>,
    closed: bool,
    dirty: Option<DirtyPages>,
}

impl LogWriter {
    /// Goes on behind `end`, on a new page.
    pub(crate) fn new(mask: CrcMask, epoch: Epoch, end: LogEnd) -> Self {
        Self { mask, epoch, end, page: Box::new([0; PAGE_BYTES]), closed: true, dirty: None }
    }
    pub(crate) fn end(&self) -> LogEnd {
        self.end
    }
    /// The page on which the next entry will be, or the one before it where that is full.
    pub(crate) fn next_page(&self) -> u64 {
        if self.closed { self.end.page + 1 } else { self.end.page }
    }
    /// The next entry starts a new page.
    pub(crate) fn close_page(&mut self) {
        self.closed = true;
    }
    /// Adds an entry and says its LSN.
    pub(crate) fn append(&mut self, entry: &Entry) -> Lsn {
        if self.closed || usize::from(self.end.used) + entry.units() > UNITS_PER_PAGE {
            self.stash();
            let head = PageHead { epoch: self.epoch, first: self.end.next, page: self.end.page + 1, units_before: self.end.used };
            self.page.fill(0);
            head.encode(&self.mask, &mut self.page[..]);
            self.end.page += 1;
            self.end.used = 0;
            self.closed = false;
        }
        if self.dirty.is_none() {
            self.dirty = Some(DirtyPages { first_page: self.end.page, bytes: Vec::new() });
        }
        let lsn = self.end.next;
        let at = (usize::from(self.end.used) + 1) * UNIT_BYTES;
        entry.encode(&self.mask, self.epoch, lsn, &mut self.page[at..at + entry.units() * UNIT_BYTES]);
        self.end.used += entry.units() as u16;
        self.end.next = lsn.plus(entry.units() as u64);
        lsn
    }
    fn stash(&mut self) {
        if let Some(dirty) = &mut self.dirty {
            dirty.bytes.extend_from_slice(&self.page[..]);
        }
    }
    /// The pages that changed since the last call.
    pub(crate) fn take_dirty(&mut self) -> Option<DirtyPages> {
        self.stash();
        self.dirty.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::types::Vbn;

    #[test]
    fn pages_chain_by_lsn_and_units_and_a_closed_page_is_never_written_again() {
        let mask = CrcMask::new(&[1; 16]);
        let mut log = LogWriter::new(mask.clone(), Epoch(1), LogEnd { page: 4, used: 9, next: Lsn(100) });
        let mut written = std::collections::BTreeMap::new();
        let mut closed = Vec::new();
        for round in 0..50u32 {
            for _ in 0..round * 3 {
                log.append(&Entry::BlockOpen { vbn: Vbn(round) });
            }
            if let Some(dirty) = log.take_dirty() {
                for (i, page) in dirty.bytes.chunks(PAGE_BYTES).enumerate() {
                    let number = dirty.first_page + i as u64;
                    assert!(!closed.contains(&number));
                    written.insert(number, page.to_vec());
                }
            }
            if round % 7 == 0 {
                log.close_page();
                closed.extend(written.keys().copied());
            }
        }
        let (mut lsn, mut before) = (Lsn(100), 9);
        for (number, page) in &written {
            let head = PageHead::decode(&mask, *number, page).unwrap();
            assert_eq!((head.first, head.units_before), (lsn, before));
            before = 0;
            while let Some(entry) = page.get((usize::from(before) + 1) * UNIT_BYTES..).and_then(|b| Entry::decode(&mask, Epoch(1), lsn, b))
            {
                before += entry.units() as u16;
                lsn = lsn.plus(entry.units() as u64);
            }
        }
        assert_eq!(lsn, log.end().next);
        assert!(log.take_dirty().is_none());
    }
}
