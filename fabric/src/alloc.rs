//! The allocators of the grid's processes.
//!
//! Chunks and messages are buffers of 2 KB to 1 MiB, and many live for milliseconds only. Units and the extension module use
//! [`MiMalloc`], which keeps freed memory for the next buffer. glibc gives it back to the kernel and takes it again, which
//! costs a reader of large answers a third of its CPU time. A program chooses mimalloc by
//! `#[global_allocator] static ALLOCATOR: MiMalloc = MiMalloc;`.
//!
//! The memory of heads and shards is bounded, so they use glibc's allocator with the options of [`bound`]. In mimalloc a page holds blocks
//! of one size. After five thousand requests of a head had ended, their pages could neither hold chunks nor go back to the kernel,
//! because a few requests of slow readers lived in each page. The process took 1.3 to 1.4 times its budget; with glibc it takes 0.90
//! to 1.07. A shard works on dozens of blocking threads, and mimalloc keeps freed memory for each of them: with a thousand outputs a
//! shard took 568 MB after 18,800 publishes. With glibc it took 234 MB after 17,400, and reads and publishes were as fast.

pub use mimalloc::MiMalloc;

/// Arenas of glibc's allocator. The default is eight for each core, and free memory of one arena serves no other. With one arena, a
/// head with a full memory took 0.90 to 1.07 times its budget, with two arenas 0.94 to 1.15; a herd and a shift of the
/// working set took as long with either. Measured on two cores. On many cores threads may wait for each other here; then set
/// `MALLOC_ARENA_MAX`.
const ARENAS: libc::c_int = 1;

/// Larger buffers are mapped, and unmapped when they are freed. The bound is above the size of a message, because a head makes and
/// frees many messages each second. glibc's own bound begins at 128 KiB and grows.
const MMAP_BYTES: libc::c_int = 4 << 20;

/// Free memory at the end of an arena above this goes back to the kernel. It is room for a message of each of sixteen clients.
const TRIM_BYTES: libc::c_int = 16 << 20;

/// Option of glibc's allocator, the environment's name for it, and its value here.
const OPTIONS: [(libc::c_int, &str, libc::c_int); 3] = [
    (libc::M_ARENA_MAX, "MALLOC_ARENA_MAX", ARENAS),
    (libc::M_MMAP_THRESHOLD, "MALLOC_MMAP_THRESHOLD_", MMAP_BYTES),
    (libc::M_TRIM_THRESHOLD, "MALLOC_TRIM_THRESHOLD_", TRIM_BYTES),
];

/// Tunes glibc's allocator for a process whose memory is bounded. Memory that one kind of load has freed then serves the next one or
/// goes back to the kernel, and there are no huge pages. An option that the environment sets stays as it is. Call it first in
/// `main`.
///
/// Do not call it in the extension module: it switches huge pages off for the whole process, and a researcher's arrays need them.
pub fn bound() {
    set_options();
    // SAFETY: a request to the kernel that takes no pointers. An old kernel refuses it, which costs memory only.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

/// Returns the names of the options that the allocator refuses.
fn set_options() -> Vec<&'static str> {
    let free = OPTIONS.into_iter().filter(|(_, name, _)| std::env::var_os(name).is_none());
    // SAFETY: the allocator's function for this, while no other thread runs that could look at the options.
    free.filter(|(option, _, value)| unsafe { libc::mallopt(*option, *value) } == 0)
        .map(|(_, name, _)| name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_taken() {
        assert_eq!(set_options(), [""; 0]);
    }
}
