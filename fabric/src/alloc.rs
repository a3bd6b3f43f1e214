//! The allocator of every process of the grid, and of the extension module.
//!
//! Chunks and messages are buffers of 50 KB to 1 MiB, many of which live for milliseconds. glibc gives such memory back to
//! the kernel and has it faulted in again: a third of the CPU time of a reader of large answers went there. mimalloc keeps
//! it for the next buffer, and gives it back when it has been idle for a while.

// the tests of this crate link it a second time, as their helper
#[cfg(not(test))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long memory that is free stays with the process, unless the environment says so (`MIMALLOC_PURGE_DELAY`); the
/// allocator's own is a second.
const PURGE_DELAY_MS: libc::c_long = 100;
/// `mi_option_purge_delay` of mimalloc.h: a number, which another version may give to something else. A test looks.
const PURGE_DELAY: libc::c_int = 15;

unsafe extern "C" {
    fn mi_option_set_default(option: libc::c_int, value: libc::c_long);
    #[cfg(test)]
    fn mi_option_get(option: libc::c_int) -> libc::c_long;
}

/// For a process whose memory is bounded: what one kind of load has left behind is given back before the next one needs
/// room, and there are no huge pages of which a small part is in use. To be called first in `main`.
///
/// Not for the extension module: huge pages are the whole process's, and a researcher's arrays want them.
pub fn give_back_soon() {
    // SAFETY: the allocator's function for this, while no other thread runs that could look at the option; and a request to
    // the kernel that takes no pointers. An old kernel refuses it, which costs memory only.
    unsafe {
        mi_option_set_default(PURGE_DELAY, PURGE_DELAY_MS);
        libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    // links it, although it is not this test's allocator
    use mimalloc as _;

    use super::*;

    #[test]
    fn the_option_is_the_one_that_is_meant() {
        // SAFETY: reads a number.
        let get = || unsafe { mi_option_get(PURGE_DELAY) };
        assert_eq!(get(), 1_000, "the default that options.c has for the delay");
        give_back_soon();
        assert_eq!(get(), PURGE_DELAY_MS);
    }
}
