//! Moments in the life of a commit, seen from outside: inotify tells when a file appears in a table's folder, and a test can
//! kill a process some microseconds later. So the binaries need no hooks for tests.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The moments in the life of a commit, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Moment {
    /// The rows are being written to a temporary file, which no reader opens.
    WritingRows,
    /// The rows are in their file, but no log entry names it yet.
    RowsWritten,
    /// The log entry is being written under a temporary name.
    WritingEntry,
    /// The log entry is there: the commit is done, but not acknowledged.
    Committed,
}

impl Moment {
    /// Every moment, in order.
    pub const ALL: [Self; 4] = [Self::WritingRows, Self::RowsWritten, Self::WritingEntry, Self::Committed];

    fn is(self, name: &str) -> bool {
        let staged = name.starts_with('.') && name.ends_with(".staged");
        match self {
            Self::WritingRows => staged && name.contains(".parquet."),
            Self::RowsWritten => !staged && name.starts_with("part-") && name.ends_with(".parquet"),
            Self::WritingEntry => staged && name.contains(".json."),
            Self::Committed => !staged && name.len() == 25 && name.ends_with(".json"),
        }
    }
}

/// Watches tables' folders.
#[derive(Debug)]
pub struct Watcher {
    fd: OwnedFd,
}

impl Watcher {
    /// Watches the tables in `folders`, which must exist.
    ///
    /// # Errors
    /// Any error of the system.
    pub fn of<'a>(folders: impl IntoIterator<Item = &'a Path>) -> io::Result<Self> {
        Self::look(folders.into_iter().flat_map(|folder| [folder.to_owned(), folder.join("_delta_log")]))
    }

    /// Watches one folder of any kind.
    ///
    /// # Errors
    /// Any error of the system.
    pub fn of_folder(folder: &Path) -> io::Result<Self> {
        Self::look([folder.to_owned()])
    }

    fn look(folders: impl IntoIterator<Item = PathBuf>) -> io::Result<Self> {
        // SAFETY: a plain system call; the new descriptor is checked and owned at once.
        let fd = unsafe {
            let fd = libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        for folder in folders {
            let path = CString::new(folder.as_os_str().as_bytes())?;
            let mask = libc::IN_CREATE | libc::IN_MOVED_TO;
            // SAFETY: `path` ends with a zero and outlives the call.
            if unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), mask) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Self { fd })
    }

    /// Blocks until `moment` comes in one of the tables, for at most `limit`. Returns whether it came.
    ///
    /// # Errors
    /// Any error of the system.
    pub fn wait(&self, moment: Moment, limit: Duration) -> io::Result<bool> {
        self.wait_for(|name| moment.is(name), limit)
    }

    /// Blocks until a file with such a name appears, for at most `limit`. Returns whether it did.
    ///
    /// # Errors
    /// Any error of the system.
    pub fn wait_for(&self, is_it: impl Fn(&str) -> bool, limit: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + limit;
        // Aligned for the headers of events, and larger than any event.
        let mut buffer = [0_u64; 512];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            let ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
            // SAFETY: the descriptor is open, and the buffer has the given length.
            let read = unsafe {
                if libc::poll(&mut poll, 1, ms) == 0 {
                    return Ok(false);
                }
                libc::read(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), size_of_val(&buffer))
            };
            let read = match usize::try_from(read) {
                Ok(read) => read,
                Err(_) => match io::Error::last_os_error() {
                    again
                        if matches!(again.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
                    {
                        continue;
                    }
                    error => return Err(error),
                },
            };
            // SAFETY: the kernel has filled this many bytes of the buffer.
            let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), read) };
            if names(bytes).any(&is_it) {
                return Ok(true);
            }
        }
    }
}

/// The names in the kernel's `struct inotify_event`s: 16 bytes of header, the last four of them the length of the name,
/// which is padded with zeros.
fn names(mut events: &[u8]) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let header = events.get(..16)?;
        let len = u32::from_ne_bytes(header[12..16].try_into().ok()?) as usize;
        let name = events.get(16..16 + len)?;
        events = &events[16 + len..];
        let end = name.iter().position(|&b| b == 0).unwrap_or(len);
        Some(std::str::from_utf8(&name[..end]).unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_moment_is_told_from_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("_delta_log");
        std::fs::create_dir(&log).unwrap();
        let names = [
            dir.path().join(".part-0a.parquet.77.staged"),
            dir.path().join("part-0a.parquet"),
            log.join(".00000000000000000012.json.77.staged"),
            log.join("00000000000000000012.json"),
        ];
        for (moment, path) in Moment::ALL.into_iter().zip(&names) {
            let watcher = Watcher::of([dir.path()]).unwrap();
            for other in names.iter().filter(|other| *other != path) {
                std::fs::write(other, "").unwrap();
                std::fs::remove_file(other).unwrap();
            }
            assert!(!watcher.wait(moment, Duration::ZERO).unwrap(), "{moment:?}");
            std::fs::write(path, "").unwrap();
            assert!(watcher.wait(moment, Duration::from_secs(5)).unwrap(), "{moment:?}");
            std::fs::remove_file(path).unwrap();
        }
    }
}
