//! Page-aligned buffers for direct I/O, reused through a bounded pool.
//!
//! Always true here: a buffer's memory is initialised from its allocation on; a slab is in the pool or in one buffer, never
//! both; the pool keeps at most [`RETAINED_BYTES_MAX`] and allocates and frees outside of its locks.
#![allow(unsafe_code)] // island: aligned memory

use super::PAGE_BYTES;
use parking_lot::Mutex;
use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    fmt,
    mem::ManuallyDrop,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    slice,
    sync::{
        LazyLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

/// The most bytes of unused buffers that the process keeps for reuse.
pub const RETAINED_BYTES_MAX: usize = 64 << 20;

/// Sizes of slabs in KiB. Records that are cached stay in the buffer that they came in, so that from 64 KiB on, where those begin, a
/// buffer has at most a quarter more than was asked for; 68 and 1,028 are 64 KiB and 1 MiB with a page of headers. Larger ones are not pooled.
const CLASS_KIB: [usize; CLASSES] =
    [4, 8, 16, 32, 64, 68, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1028, 1088];
const CLASSES: usize = 24;
/// The same in bytes.
const CLASS_BYTES: [usize; CLASSES] = {
    let mut bytes = CLASS_KIB;
    let mut class = 0;
    while class < CLASSES {
        bytes[class] <<= 10;
        class += 1;
    }
    bytes
};

static POOL: LazyLock<Pool> = LazyLock::new(|| Pool::new(RETAINED_BYTES_MAX));

/// Memory of whole pages, aligned to a page. Goes back to the pool when dropped.
pub struct AlignedBuf {
    slab: ManuallyDrop<Slab>,
    len: usize,
}

impl AlignedBuf {
    /// A buffer of `len_bytes` zeros, rounded up to whole pages; at least one page.
    pub fn zeroed(len_bytes: usize) -> Self {
        Self::new(len_bytes, true)
    }

    /// A buffer of `len_bytes`, rounded up to whole pages; at least one page. Its content is whatever an earlier user of the
    /// memory left: whoever takes one overwrites all that is going to leave it.
    pub fn take(len_bytes: usize) -> Self {
        Self::new(len_bytes, false)
    }

    fn new(len_bytes: usize, zeroed: bool) -> Self {
        let len = len_bytes.max(1).next_multiple_of(PAGE_BYTES);
        let pooled = class_of(len).and_then(|class| POOL.take(class));
        let fresh = pooled.is_none();
        let slab = pooled.unwrap_or_else(|| Slab::allocate(class_of(len).map_or(len, |class| CLASS_BYTES[class])));
        POOL.lent_bytes.fetch_add(slab.layout.size(), Relaxed);
        let mut buf = Self { slab: ManuallyDrop::new(slab), len };
        if zeroed && !fresh {
            buf.fill(0);
        }
        buf
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: the buffer is being dropped: nothing reads the field after this.
        let slab = unsafe { ManuallyDrop::take(&mut self.slab) };
        POOL.lent_bytes.fetch_sub(slab.layout.size(), Relaxed);
        POOL.give(slab);
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the slab has at least `len` bytes, initialised, which this value owns.
        unsafe { slice::from_raw_parts(self.slab.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the borrow is exclusive.
        unsafe { slice::from_raw_parts_mut(self.slab.ptr.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

/// What the pool of buffers has done since the process started, and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BufferPoolStats {
    /// Bytes of unused buffers that are kept.
    pub retained_bytes: usize,
    /// Bytes of buffers that somebody holds: callers, devices, the cache.
    pub lent_bytes: usize,
    /// The bound of `retained_bytes`.
    pub retained_bytes_max: usize,
    /// Buffers that were served from the pool.
    pub reused: u64,
    /// Buffers that needed fresh memory though their size is pooled.
    pub missed: u64,
    /// Returned buffers that were freed for want of room.
    pub freed: u64,
}

/// The state of the process's buffer pool.
pub fn buffer_pool_stats() -> BufferPoolStats {
    POOL.stats()
}

/// What a buffer for `len_bytes` takes of the memory.
pub(crate) fn taken_bytes(len_bytes: usize) -> usize {
    class_of(len_bytes).map_or(len_bytes.next_multiple_of(PAGE_BYTES), |class| CLASS_BYTES[class])
}

/// The smallest class that holds `len` bytes.
fn class_of(len: usize) -> Option<usize> {
    Some(CLASS_BYTES.partition_point(|class| *class < len)).filter(|class| *class < CLASSES)
}

/// One aligned, initialised allocation.
struct Slab {
    ptr: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the slab owns its memory exclusively; nothing else points to it.
unsafe impl Send for Slab {}
// SAFETY: a shared slab gives no access but through a shared buffer, which only reads.
unsafe impl Sync for Slab {}

impl Slab {
    fn allocate(bytes: usize) -> Self {
        assert!(bytes > 0, "a slab has at least a page");
        let layout = Layout::from_size_align(bytes, PAGE_BYTES).expect("a buffer is far below the address space");
        // SAFETY: the layout has a size above zero, asserted above.
        let ptr = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(ptr) else { handle_alloc_error(layout) };
        Self { ptr, layout }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: allocated in `allocate` with this layout, and freed only here.
        unsafe { dealloc(self.ptr.as_ptr(), self.layout) }
    }
}

/// Unused slabs by class. Each class has a lock of its own, and none is ever held with another.
struct Pool {
    classes: [Class; CLASS_BYTES.len()],
    retained_bytes: AtomicUsize,
    lent_bytes: AtomicUsize,
    retained_bytes_max: usize,
    reused: AtomicU64,
    missed: AtomicU64,
    freed: AtomicU64,
}

struct Class {
    /// Has the capacity it can ever need, so that a push never allocates.
    free: Mutex<Vec<Slab>>,
    /// Bytes in `free`, to find the largest class without the locks.
    bytes: AtomicUsize,
}

impl Pool {
    fn new(retained_bytes_max: usize) -> Self {
        Self {
            classes: CLASS_BYTES
                .map(|bytes| Class { free: Mutex::new(Vec::with_capacity(retained_bytes_max / bytes)), bytes: AtomicUsize::new(0) }),
            retained_bytes: AtomicUsize::new(0),
            lent_bytes: AtomicUsize::new(0),
            retained_bytes_max,
            reused: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            freed: AtomicU64::new(0),
        }
    }

    fn take(&self, class: usize) -> Option<Slab> {
        let slab = self.pop(class);
        let counter = if slab.is_some() { &self.reused } else { &self.missed };
        counter.fetch_add(1, Relaxed);
        slab
    }

    fn pop(&self, class: usize) -> Option<Slab> {
        let slab = self.classes[class].free.lock().pop()?;
        self.classes[class].bytes.fetch_sub(CLASS_BYTES[class], Relaxed);
        self.retained_bytes.fetch_sub(CLASS_BYTES[class], Relaxed);
        Some(slab)
    }

    /// Keeps the slab, in place of slabs of the class that holds most if there is no room; frees it if that is its own.
    fn give(&self, slab: Slab) {
        let bytes = slab.layout.size();
        let Some(class) = class_of(bytes).filter(|class| CLASS_BYTES[*class] == bytes) else {
            return; // too large to pool: freed here
        };
        while !self.reserve(bytes) {
            let largest =
                (0..CLASS_BYTES.len()).max_by_key(|class| self.classes[*class].bytes.load(Relaxed)).filter(|largest| *largest != class);
            self.freed.fetch_add(1, Relaxed);
            match largest.and_then(|largest| self.pop(largest)) {
                Some(other) => drop(other),
                None => return, // freed here
            }
        }
        self.classes[class].bytes.fetch_add(bytes, Relaxed);
        self.classes[class].free.lock().push(slab);
    }

    fn reserve(&self, bytes: usize) -> bool {
        self.retained_bytes.fetch_update(Relaxed, Relaxed, |now| Some(now + bytes).filter(|sum| *sum <= self.retained_bytes_max)).is_ok()
    }

    fn stats(&self) -> BufferPoolStats {
        BufferPoolStats {
            retained_bytes: self.retained_bytes.load(Relaxed),
            lent_bytes: self.lent_bytes.load(Relaxed),
            retained_bytes_max: self.retained_bytes_max,
            reused: self.reused.load(Relaxed),
            missed: self.missed.load(Relaxed),
            freed: self.freed.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_whole_aligned_pages() {
        for (asked, got) in [(0, 4096), (1, 4096), (4097, 8192), (1 << 20, 1 << 20), (3 << 20, 3 << 20)] {
            let buf = AlignedBuf::zeroed(asked);
            assert_eq!(buf.len(), got);
            assert_eq!(buf.as_ptr() as usize % PAGE_BYTES, 0);
        }
    }

    #[test]
    fn a_reused_buffer_asked_for_zeros_has_zeros() {
        for _ in 0..64 {
            let mut buf = AlignedBuf::zeroed(12_288);
            assert!(buf.iter().all(|byte| *byte == 0));
            buf.fill(0xff);
        }
    }

    #[test]
    fn one_mebibyte_and_a_header_page_fit_a_class_closely() {
        let len = (1 << 20) + PAGE_BYTES;
        let class = CLASS_BYTES[class_of(len).expect("pooled")];
        assert!(class - len < len / 16);
        assert_eq!(class_of(2 << 20), None);
        assert!(CLASS_BYTES.is_sorted());
        for kib in 64..=1024 {
            let (asked, taken) = (kib << 10, taken_bytes(kib << 10));
            assert!(asked <= taken && taken * 4 <= asked * 5, "{taken} bytes for {asked}");
        }
        assert_eq!(taken_bytes((2 << 20) + 1), (2 << 20) + PAGE_BYTES);
    }

    #[test]
    fn the_pool_gives_memory_again_and_keeps_its_bound() {
        let pool = Pool::new(64 << 10);
        for _ in 0..100 {
            pool.give(Slab::allocate(4 << 10));
        }
        let full = pool.stats();
        assert_eq!(full.retained_bytes, 64 << 10);
        assert_eq!(full.freed, 100 - 16);
        assert!(pool.take(0).is_some());
        assert_eq!(pool.stats().reused, 1);
        assert!(pool.take(3).is_none());
        assert_eq!(pool.stats().missed, 1);
    }

    #[test]
    fn a_full_pool_makes_room_at_the_cost_of_its_largest_class() {
        let pool = Pool::new(64 << 10);
        for _ in 0..16 {
            pool.give(Slab::allocate(4 << 10));
        }
        pool.give(Slab::allocate(32 << 10));
        assert!(pool.take(class_of(32 << 10).unwrap()).is_some());
        assert!(pool.stats().retained_bytes <= 64 << 10);
        // A slab over the whole bound is freed, whatever it displaces.
        pool.give(Slab::allocate(128 << 10));
        assert!(pool.stats().retained_bytes <= 64 << 10);
    }

    #[test]
    fn threads_share_the_pool_without_sharing_memory() {
        std::thread::scope(|scope| {
            for byte in 0..4u8 {
                scope.spawn(move || {
                    for round in 0..2_000 {
                        let mut buf = AlignedBuf::take(4096 << (round % 4));
                        buf.fill(byte);
                        std::thread::yield_now();
                        assert!(buf.iter().all(|b| *b == byte));
                    }
                });
            }
        });
        assert!(buffer_pool_stats().retained_bytes <= RETAINED_BYTES_MAX);
    }
}
