//! What a simulated disk holds: a sparse durable image, the volatile cache over it, and the writes under way.
//!
//! Always true here: a page's versions in the cache are in the order of their completion; every version that completed since
//! the last flush is kept, since a power cut may leave any of them.

use super::rng::Rng;
use crate::device::PAGE_BYTES;
use rustix::io::Errno;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::Range,
    sync::Arc,
};

/// The content of a page. Shared between versions and images, never changed in place while shared.
pub(super) type Page = Arc<[u8; PAGE_BYTES]>;

/// A page as it was after one completed write.
#[derive(Clone)]
pub(super) struct Version {
    /// The place of the write in the order of completions.
    pub(super) sequence: u64,
    pub(super) page: Page,
    /// A failed flush has forgotten it: it is read, and no later flush makes it durable.
    pub(super) doomed: bool,
}

/// A write that was issued and has not completed.
#[derive(Clone)]
pub(super) struct Write {
    pub(super) first_page: u64,
    pub(super) pages: Vec<Page>,
    /// Nobody waits for it: it completes after so many more operations.
    pub(super) orphaned: Option<u32>,
}

#[derive(Clone)]
pub(super) struct Image {
    pub(super) sector_bytes: usize,
    pub(super) durable: BTreeMap<u64, Page>,
    /// Sectors, by number, of the durable image that answer with an error until they are written.
    pub(super) unreadable: BTreeSet<u64>,
    pub(super) cache: BTreeMap<u64, Vec<Version>>,
    pub(super) in_flight: BTreeMap<u64, Write>,
    pub(super) sequence: u64,
    zeros: Page,
}

impl Image {
    pub(super) fn new(sector_bytes: usize) -> Self {
        Self {
            sector_bytes,
            durable: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            cache: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            sequence: 0,
            zeros: Arc::new([0; PAGE_BYTES]),
        }
    }

    pub(super) fn pages_of(bytes: &[u8]) -> Vec<Page> {
        let (pages, _) = bytes.as_chunks::<PAGE_BYTES>();
        pages.iter().map(|page| Arc::new(*page)).collect()
    }

    pub(super) fn sectors_per_page(&self) -> u64 {
        (PAGE_BYTES / self.sector_bytes) as u64
    }

    pub(super) fn durable_page(&self, page: u64) -> &Page {
        self.durable.get(&page).unwrap_or(&self.zeros)
    }

    /// The bytes of a page that a read sees, apart from writes under way. `Err` if a sector cannot be read.
    pub(super) fn current(&self, page: u64) -> io::Result<&Page> {
        if let Some(version) = self.cache.get(&page).and_then(|versions| versions.last()) {
            return Ok(&version.page);
        }
        match self.unreadable.range(self.sectors(page)).next() {
            Some(_) => Err(Errno::IO.into()),
            None => Ok(self.durable_page(page)),
        }
    }

    pub(super) fn sectors(&self, page: u64) -> Range<u64> {
        let per_page = self.sectors_per_page();
        page * per_page..(page + 1) * per_page
    }

    /// Puts a page into the cache, as the newest version.
    pub(super) fn cache_page(&mut self, page: u64, content: Page) {
        let version = Version { sequence: self.sequence, page: content, doomed: false };
        self.cache.entry(page).or_default().push(version);
    }

    /// Makes the write the newest version of its pages.
    pub(super) fn complete(&mut self, write: &Write) {
        self.sequence += 1;
        for (page, content) in (write.first_page..).zip(&write.pages) {
            self.cache_page(page, content.clone());
        }
    }

    /// Leaves each sector of the write old or new, as a write does that failed.
    pub(super) fn complete_in_part(&mut self, write: &Write, rng: &mut Rng) {
        self.sequence += 1;
        for (page, content) in (write.first_page..).zip(&write.pages) {
            let mixed = match self.current(page) {
                Ok(old) => self.mix(old, content, rng),
                Err(_) => continue,
            };
            self.cache_page(page, mixed);
        }
    }

    /// A page with each sector from one of two.
    pub(super) fn mix(&self, old: &Page, new: &Page, rng: &mut Rng) -> Page {
        let mut mixed = old.clone();
        let bytes = Arc::make_mut(&mut mixed);
        for (to, from) in bytes.chunks_mut(self.sector_bytes).zip(new.chunks(self.sector_bytes)) {
            if rng.chance(4) {
                to.copy_from_slice(from);
            }
        }
        mixed
    }

    /// Puts content onto the medium, under whatever the cache has.
    pub(super) fn store(&mut self, page: u64, content: Page) {
        for sector in self.sectors(page) {
            self.unreadable.remove(&sector);
        }
        if *content == *self.zeros {
            self.durable.remove(&page);
        } else {
            self.durable.insert(page, content);
        }
    }

    /// Makes durable what had completed at `mark`.
    pub(super) fn flush(&mut self, mark: u64) {
        self.settle(mark, |_| Fate::Durable);
    }

    /// Does to everything that a flush would have covered what a failed flush may do.
    pub(super) fn fail_flush(&mut self, mark: u64, rng: &mut Rng) {
        self.settle(mark, |_| match rng.below(3) {
            0 => Fate::Durable,
            1 => Fate::Doomed,
            _ => Fate::Lost,
        });
    }

    /// Forgets what is read of these pages and will never be durable.
    pub(super) fn forget_doomed(&mut self, pages: Range<u64>) {
        for (_, versions) in self.cache.range_mut(pages) {
            versions.retain(|version| !version.doomed);
        }
    }

    fn settle(&mut self, mark: u64, mut fate: impl FnMut(u64) -> Fate) {
        let mut cache = std::mem::take(&mut self.cache);
        cache.retain(|page, versions| {
            let covered = versions.partition_point(|version| version.sequence <= mark);
            let Some(newest) = versions[..covered].iter().rfind(|version| !version.doomed) else {
                return !versions.is_empty();
            };
            match fate(*page) {
                Fate::Durable => {
                    // A doomed version that is newer goes on hiding what is durable.
                    let (sequence, content) = (newest.sequence, newest.page.clone());
                    versions.retain(|version| version.sequence > sequence);
                    self.store(*page, content);
                }
                Fate::Doomed => {
                    for version in &mut versions[..covered] {
                        version.doomed = true;
                    }
                }
                Fate::Lost => drop(versions.drain(..covered)),
            }
            !versions.is_empty()
        });
        self.cache = cache;
    }
}

enum Fate {
    Durable,
    Doomed,
    Lost,
}
