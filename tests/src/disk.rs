//! A disk that can be full or read-only: a small `tmpfs`. To mount one, tests must run as root, as in most containers. If
//! they may not mount, callers do less and print that.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

/// The unit of filling: a page.
pub const PAGE: usize = 4096;
const FILLER: &str = ".filler";

/// A mounted disk; unmounted when dropped.
#[derive(Debug)]
pub struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    /// Mounts a disk of `bytes`. If mounting is not permitted, prints the reason and returns `None`.
    ///
    /// # Errors
    /// When there is no temporary folder.
    pub fn mount(bytes: usize) -> Result<Option<Self>> {
        let folder = tempfile::tempdir()?;
        let size = format!("size={bytes},mode=0755");
        let out =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        match out {
            Ok(out) if out.status.success() => Ok(Some(Self { folder })),
            Ok(out) => {
                println!("no disk can be mounted here: {}", String::from_utf8_lossy(&out.stderr).trim());
                Ok(None)
            }
            Err(error) => {
                println!("no disk can be mounted here: {error}");
                Ok(None)
            }
        }
    }

    /// The folder that it is mounted at.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Fills the disk except for `pages` pages.
    ///
    /// # Errors
    /// Any error but a full disk, or if fewer pages are free.
    pub fn fill_but(&self, pages: usize) -> Result<()> {
        self.free()?;
        let mut filler = File::create(self.filler())?;
        let page = [0x5a_u8; PAGE];
        let mut written = 0_usize;
        loop {
            match filler.write(&page) {
                Ok(n) => written += n,
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => return Err(error).context("filling the disk"),
            }
        }
        let left = written.checked_sub(pages * PAGE).context("the disk is too small")?;
        filler.set_len(left as u64)?;
        Ok(())
    }

    /// Frees the space that [`Disk::fill_but`] took.
    ///
    /// # Errors
    /// Any error of the system.
    pub fn free(&self) -> Result<()> {
        match fs::remove_file(self.filler()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Makes the disk read-only, or writable again.
    ///
    /// # Errors
    /// Any error of the system: a disk cannot become read-only while a file is open for writing.
    pub fn set_read_only(&self, read_only: bool) -> Result<()> {
        let mode = if read_only { "remount,ro" } else { "remount,rw" };
        let out = Command::new("mount").args(["-o", mode]).arg(self.path()).output()?;
        ensure!(out.status.success(), "{mode}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(())
    }

    fn filler(&self) -> PathBuf {
        self.path().join(FILLER)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A lazy unmount frees the folder even if a process has a file open.
        let _ = Command::new("umount").arg("-l").arg(self.path()).output();
    }
}

/// The bytes of the file at `path` without its end, as after a crash before a sync.
///
/// # Errors
/// A cut beyond the end, or any error of the system.
pub fn truncate(path: &Path, keep: u64) -> Result<()> {
    let file = File::options().write(true).open(path).with_context(|| path.display().to_string())?;
    let size = file.metadata()?.len();
    if keep > size {
        bail!("{} has {size} bytes, fewer than {keep}", path.display());
    }
    Ok(file.set_len(keep)?)
}
