//! The allocators of the grid's processes.
//!
//! Chunks and messages are buffers of 2 KB to 1 MiB, many of which live for milliseconds. Shards, units and the extension
//! module use [`MiMalloc`]: it keeps such memory for the next buffer, where glibc gives it back to the kernel and has it faulted in
//! again: a third of the CPU time of a reader of large answers. A program chooses it by
//! `#[global_allocator] static ALLOCATOR: MiMalloc = MiMalloc;`.
//!
//! A head's memory is bounded, and mimalloc's pages belong to one size of block: those of five thousand requests that have
//! ended served no chunk, nor went back to the kernel, because a few requests of slow readers lived in each. The process took 1.3
//! to 1.4 times its budget where glibc, told to ([`bound`]), takes 0.90 to 1.07.

pub use mimalloc::MiMalloc;

/// Arenas of glibc's allocator; eight for each core otherwise, and what is free in one serves no thread of another. With one, a head
/// whose memory was full took 0.90 to 1.07 times its budget, with two 0.94 to 1.15; a herd, and a shift of the working set, took
/// as long. Measured on two cores only: where many more threads wait for each other here, `MALLOC_ARENA_MAX` says otherwise.
const ARENAS: libc::c_int = 1;

/// Buffers above this are mapped, and unmapped when they are freed: larger than a message, of which many are made and freed a
/// second. glibc's own bound is 128 KiB in the beginning, and grows.
const MMAP_BYTES: libc::c_int = 4 << 20;

/// What is free at an arena's end goes back to the kernel above this: room for a message of each of sixteen clients.
const TRIM_BYTES: libc::c_int = 16 << 20;

/// Option of glibc's allocator, the environment's name for it, and its value here.
const OPTIONS: [(libc::c_int, &str, libc::c_int); 3] = [
    (libc::M_ARENA_MAX, "MALLOC_ARENA_MAX", ARENAS),
    (libc::M_MMAP_THRESHOLD, "MALLOC_MMAP_THRESHOLD_", MMAP_BYTES),
    (libc::M_TRIM_THRESHOLD, "MALLOC_TRIM_THRESHOLD_", TRIM_BYTES),
];

/// For a process whose memory is bounded and whose allocator is glibc's: what one kind of load has left behind serves the next, or
/// is given back, and there are no huge pages of which a small part is in use. What the environment says of an option stays. To be
/// called first in `main`.
///
/// Not for the extension module: huge pages are the whole process's, and a researcher's arrays want them.
pub fn bound() {
    set_options();
    // SAFETY: a request to the kernel that takes no pointers. An old kernel refuses it, which costs memory only.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

/// Returns those that the allocator does not take.
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
