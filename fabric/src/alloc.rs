//! The allocator of every process of the grid, and of the extension module.
//!
//! Chunks and messages are buffers of 50 KB to 1 MiB, many of which live for milliseconds. glibc gives such memory back to
//! the kernel and has it faulted in again: a third of the CPU time of a reader of large answers went there. mimalloc keeps
//! it for the next buffer, and gives it back when it has been idle for a while.

// the tests of this crate link it a second time, as their helper
#[cfg(not(test))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
