//! What is left of a simulated disk after a power cut, or after the death of the process.
//!
//! Always true here: what a flush made durable is left as it was, except in sectors that a later write had begun to change.

use super::{
    SimDevice,
    image::{Image, Page, Write},
    rng::Rng,
};
use crate::device::PAGE_BYTES;
use std::{collections::BTreeMap, sync::Arc};

/// What a power cut may do to a write that it interrupts. The default allows everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrashModel {
    /// Sectors may be left with bytes that are neither old nor new.
    pub garbage: bool,
    /// Sectors may be left so that they cannot be read until they are written.
    pub unreadable: bool,
}

impl Default for CrashModel {
    fn default() -> Self {
        Self { garbage: true, unreadable: true }
    }
}

/// Which of a write's sectors survive.
#[derive(Clone, Copy)]
enum Share {
    None,
    All,
    Some,
}

impl Share {
    fn draw(rng: &mut Rng) -> Self {
        match rng.below(3) {
            0 => Self::None,
            1 => Self::All,
            _ => Self::Some,
        }
    }

    fn takes(self, rng: &mut Rng) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Some => rng.chance(4),
        }
    }
}

/// The image that a power cut leaves of `before`.
pub(super) fn power_cut(before: &Image, seed: u64, model: CrashModel) -> Image {
    let mut rng = Rng::new(seed);
    let mut after = Image::new(before.sector_bytes);
    after.durable = before.durable.clone();
    after.unreadable = before.unreadable.clone();

    // Any subset of the unflushed sectors: each write all, none or some of its own, and the newest that survived wins.
    let mut shares = BTreeMap::new();
    for (page, versions) in &before.cache {
        for version in versions {
            let share = *shares.entry(version.sequence).or_insert_with(|| Share::draw(&mut rng));
            for sector in 0..before.sectors_per_page() {
                if share.takes(&mut rng) {
                    set_sector(&mut after, *page, sector, &version.page);
                }
            }
        }
    }
    for write in before.in_flight.values() {
        interrupt(&mut after, write, &mut rng, model);
    }
    after
}

/// Leaves each unit of a write under way old, new, garbage or unreadable.
fn interrupt(after: &mut Image, write: &Write, rng: &mut Rng, model: CrashModel) {
    let share = Share::draw(rng);
    // Drives that emulate small sectors damage a whole physical one.
    let whole_pages = rng.chance(2);
    for (page, content) in (write.first_page..).zip(&write.pages) {
        let per_page = after.sectors_per_page();
        let unit = if whole_pages { per_page } else { 1 };
        for first in (0..per_page).step_by(usize::try_from(unit).unwrap_or(1)) {
            let damage = match (share, rng.below(8)) {
                (Share::Some, 0) => model.garbage.then_some(Damage::Garbage),
                (Share::Some, 1) => model.unreadable.then_some(Damage::Unreadable),
                _ => None,
            };
            let new = share.takes(rng);
            for sector in first..first + unit {
                match damage {
                    Some(Damage::Garbage) => {
                        let mut garbage = [0; PAGE_BYTES];
                        rng.fill(&mut garbage);
                        set_sector(after, page, sector, &Arc::new(garbage));
                    }
                    Some(Damage::Unreadable) => {
                        after.unreadable.insert(page * per_page + sector);
                    }
                    None if new => set_sector(after, page, sector, content),
                    None => {}
                }
            }
        }
    }
}

enum Damage {
    Garbage,
    Unreadable,
}

/// Writes one sector of the durable image.
fn set_sector(image: &mut Image, page: u64, sector: u64, content: &Page) {
    let mut stored = image.durable_page(page).clone();
    let start = usize::try_from(sector).unwrap_or(0) * image.sector_bytes;
    let range = start..start + image.sector_bytes;
    Arc::make_mut(&mut stored)[range.clone()].copy_from_slice(&content[range]);
    image.durable.insert(page, stored);
    image.unreadable.remove(&(page * image.sectors_per_page() + sector));
}

/// The image that the death of the process leaves: the kernel has all that completed, and any part of what was under way.
pub(super) fn process_death(before: &Image, seed: u64) -> Image {
    let mut rng = Rng::new(seed);
    let mut after = before.clone();
    let in_flight = std::mem::take(&mut after.in_flight);
    for write in in_flight.values() {
        match Share::draw(&mut rng) {
            Share::None => {}
            Share::All => after.complete(write),
            Share::Some => after.complete_in_part(write, &mut rng),
        }
    }
    after
}

impl SimDevice {
    /// The device as a power cut would leave it now: any subset of the sectors that no flush covered survives, and each
    /// sector of a write under way is old, new, garbage or unreadable. This device goes on as if nothing had happened.
    pub fn crash(&self, seed: u64) -> Self {
        self.crash_with(seed, CrashModel::default())
    }

    /// As [`SimDevice::crash`], with a choice of what may happen to interrupted writes.
    pub fn crash_with(&self, seed: u64, model: CrashModel) -> Self {
        self.successor(seed, |image| power_cut(image, seed, model))
    }

    /// The device as the death of the process would leave it now: every completed write is there, flushed or not, and a part
    /// of those under way. What was not flushed is still lost in a later power cut.
    pub fn snapshot_completed(&self, seed: u64) -> Self {
        self.successor(seed, |image| process_death(image, seed))
    }
}
