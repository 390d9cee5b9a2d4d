//! The allocator: the first 64 KiB come from a fixed area, the rest from the C library.
//!
//! Start-up makes some hundred small allocations, and from musl each new size costs a mapping and a page fault: 40 µs
//! of a start of 1 ms.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicUsize, Ordering};

const AREA_BYTES: usize = 64 << 10;

#[repr(align(64))]
struct Area(UnsafeCell<[u8; AREA_BYTES]>);

// SAFETY: each part of the area is handed out once, by an atomic counter.
unsafe impl Sync for Area {}

static AREA: Area = Area(UnsafeCell::new([0; AREA_BYTES]));
static USED: AtomicUsize = AtomicUsize::new(0);

/// Never gives back what came from the area.
pub struct Heap;

// SAFETY: a block is either a part of the area that nobody else got, or System's own.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match take(layout) {
            Some(block) => block,
            // SAFETY: the caller's promises are passed on.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match take(layout) {
            // The area starts as zeroes and no part of it is handed out twice.
            Some(block) => block,
            // SAFETY: the caller's promises are passed on.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if !is_ours(block) {
            // SAFETY: a block outside the area came from System with this layout.
            unsafe { System.dealloc(block, layout) }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !is_ours(block) {
            // SAFETY: a block outside the area came from System with this layout.
            return unsafe { System.realloc(block, layout, size) };
        }
        // SAFETY: the caller promises a valid size for this alignment; both blocks are at least as long as the copy.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                new.copy_from_nonoverlapping(block, layout.size().min(size));
            }
            new
        }
    }
}

/// A part of the area that nobody else gets; `None` when what is left is too small.
fn take(layout: Layout) -> Option<*mut u8> {
    if layout.align() > align_of::<Area>() {
        return None;
    }
    let end_after = |used: usize| {
        let end = used.next_multiple_of(layout.align()).checked_add(layout.size())?;
        (end <= AREA_BYTES).then_some(end)
    };
    let used = USED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, end_after).ok()?;
    Some(AREA.0.get().cast::<u8>().wrapping_add(used.next_multiple_of(layout.align())))
}

fn is_ours(block: *mut u8) -> bool {
    let start = AREA.0.get().addr();
    (start..start + AREA_BYTES).contains(&block.addr())
}
