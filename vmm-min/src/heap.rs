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

// SAFETY: there is one thread, and each part of the area is handed out once.
unsafe impl Sync for Area {}

static AREA: Area = Area(UnsafeCell::new([0; AREA_BYTES]));
static USED: AtomicUsize = AtomicUsize::new(0);

/// Never gives back what came from the area.
pub struct Heap;

// SAFETY: a block is either a part of the area that nobody else got, or System's own.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() <= 64 {
            let start = USED.load(Ordering::Relaxed).next_multiple_of(layout.align());
            if let Some(end) = start.checked_add(layout.size())
                && end <= AREA_BYTES
            {
                USED.store(end, Ordering::Relaxed);
                // SAFETY: start..end lies inside the area and was given to nobody else.
                return unsafe { AREA.0.get().cast::<u8>().add(start) };
            }
        }
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if !(AREA.0.get().addr()..AREA.0.get().addr() + AREA_BYTES).contains(&block.addr()) {
            // SAFETY: a block outside the area came from System with this layout.
            unsafe { System.dealloc(block, layout) }
        }
    }
}
