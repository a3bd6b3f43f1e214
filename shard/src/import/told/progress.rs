//! How far an import has come.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// An import reports its progress once in this many rows: every few tens of milliseconds.
const PROGRESS_ROWS: u64 = 16_384;

/// How far an import has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The phase.
    pub phase: Phase,
    /// The file at work; empty while sorting.
    pub file: &'a str,
    /// Rows seen in this phase.
    pub rows: u64,
    /// Bytes of files read, of all phases.
    pub bytes: u64,
    /// Bytes that all phases will have read.
    pub bytes_total: u64,
}

/// The phases of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Looking at the columns.
    Survey,
    /// Reading rows.
    Read,
    /// Sorting, checking for doubles, making batches.
    Sort,
}

/// Counts rows and bytes, and reports now and then.
pub(crate) struct Ticker<'a> {
    report: &'a mut dyn FnMut(Progress<'_>),
    phase: Phase,
    file: String,
    rows: u64,
    bytes: Arc<AtomicU64>,
    bytes_total: u64,
}

impl<'a> Ticker<'a> {
    /// `report` is called now and then, and where a phase or a file begins.
    pub(crate) fn new(report: &'a mut dyn FnMut(Progress<'_>), bytes_total: u64) -> Self {
        Self {
            report,
            phase: Phase::Survey,
            file: String::new(),
            rows: 0,
            bytes: Arc::default(),
            bytes_total,
        }
    }

    pub(crate) fn start(&mut self, phase: Phase, file: &str) {
        if self.phase != phase {
            self.rows = 0;
        }
        self.phase = phase;
        file.clone_into(&mut self.file);
        self.tell();
    }

    pub(crate) fn tick(&mut self) {
        self.rows += 1;
        if self.rows.is_multiple_of(PROGRESS_ROWS) {
            self.tell();
        }
    }

    fn tell(&mut self) {
        (self.report)(Progress {
            phase: self.phase,
            file: &self.file,
            rows: self.rows,
            // The directory of an archive is read more than once.
            bytes: self.bytes.load(Ordering::Relaxed).min(self.bytes_total),
            bytes_total: self.bytes_total,
        });
    }

    pub(crate) fn bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.bytes)
    }

    pub(crate) fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}
