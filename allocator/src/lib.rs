//! The memory allocator of stepgate. A crate of its own because the others forbid `unsafe`.

pub use mimalloc::MiMalloc;

/// Returns to the operating system what this thread freed. The allocator keeps it for a second or more otherwise, for each thread, which a
/// process with a small memory limit cannot afford after a large evaluation. Walks every block of this thread: not for every request.
pub fn return_freed_memory() {
    // SAFETY: the function takes no pointer, and may be called at any time on any thread.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
