//! What std would bring: the allocator, the panic handler, and the symbols that the prebuilt `alloc` refers to.

use core::alloc::{GlobalAlloc, Layout};
use core::panic::PanicInfo;

use crate::say;

/// musl's malloc. It aligns to 16 bytes, which nothing here exceeds; a request for more is refused.
struct Malloc;

// SAFETY: malloc and free of one library, with alignments that malloc guarantees.
unsafe impl GlobalAlloc for Malloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() > 16 {
            return core::ptr::null_mut();
        }
        // SAFETY: any size may be asked for.
        unsafe { libc::malloc(layout.size()).cast() }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, _layout: Layout) {
        // SAFETY: the caller gives back what alloc returned.
        unsafe { libc::free(pointer.cast()) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, _layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller gives back what alloc returned; the alignment stays.
        unsafe { libc::realloc(pointer.cast(), size).cast() }
    }
}

#[global_allocator]
static ALLOCATOR: Malloc = Malloc;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say(format_args!("internal error: {info}"));
    crate::end(guest_init::status::REFUSED)
}

/// The prebuilt `alloc` was compiled for unwinding; with panic = "abort" nothing calls these.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    crate::end(guest_init::status::REFUSED)
}

// `libc` without std leaves the C library to whoever links the program.
#[cfg(target_env = "musl")]
#[link(name = "c", kind = "static", modifiers = "-bundle")]
unsafe extern "C" {}
