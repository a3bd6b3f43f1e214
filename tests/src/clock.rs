//! Wall clocks that a test can set while a process runs: a small C library that is built here and preloaded.
//!
//! A time namespace would not do: it moves only the monotonic clocks, and answers depend on the wall clock.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};

use crate::processes::Node;

/// Builds the library in `folder`. Without a C compiler it prints a line and returns `None`; in CI that is an error.
///
/// # Errors
/// When the compiler fails.
pub fn library(folder: &Path) -> Result<Option<PathBuf>> {
    let (source, library) = (folder.join("skew.c"), folder.join("skew.so"));
    fs::write(&source, include_str!("skew.c"))?;
    match Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).output() {
        Ok(out) => {
            ensure!(out.status.success(), "skew.c: {}", String::from_utf8_lossy(&out.stderr));
            Ok(Some(library))
        }
        Err(error) => {
            ensure!(std::env::var("CI").is_err(), "cc does not run: {error}");
            println!("clocks are not skewed: cc does not run: {error}");
            Ok(None)
        }
    }
}

/// The clock of one process.
#[derive(Debug)]
pub struct Clock {
    file: PathBuf,
}

impl Clock {
    /// Gives `node` a clock, whose offset is in `file`. The node must not be running yet.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn of(node: &mut Node, library: &Path, file: PathBuf) -> Result<Self> {
        let clock = Self { file };
        clock.set(0)?;
        node.set("LD_PRELOAD", &library.to_string_lossy());
        node.set("CLOCK_OFFSET_FILE", &clock.file.to_string_lossy());
        Ok(clock)
    }

    /// Sets the clock `seconds` ahead of the machine's clock, or behind it if negative.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set(&self, seconds: i64) -> Result<()> {
        use std::io::Write;
        // Written in place, because the process has mapped the file's page.
        let mut file = fs::File::options().create(true).write(true).truncate(false).open(&self.file)?;
        Ok(file.write_all(&seconds.to_ne_bytes())?)
    }
}
