//! The footers of data files in memory: the ones that were used last, within a bound of bytes.
//!
//! A footer of a file of one row has about ten kilobytes. A shard with a thousand datasets of sixty small files each would have most
//! of a gigabyte of footers if each file kept its own.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use parking_lot::Mutex;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;

use super::checksum::Pages;

/// Bytes of all footers in memory. One of the largest file, of eight million rows, has two or three megabytes.
pub(super) const FOOTERS_BYTES_MAX: usize = 64 << 20;

/// The footer of a data file, and its page index.
#[derive(Debug)]
pub(crate) struct Footer {
    pub(super) metadata: ArrowReaderMetadata,
    pub(super) pages: Vec<Page>,
    /// `None`: another tool or an earlier release wrote the file, without checksums.
    pub(super) checksums: Option<Arc<Pages>>,
}

/// Rows `[start, end)` of the file and the bounds of their event time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Page {
    pub(super) start: u32,
    pub(super) end: u32,
    pub(super) first_ts: i64,
    pub(super) last_ts: i64,
}

/// Footers by the number of their file.
#[derive(Debug)]
pub(crate) struct Footers<T> {
    most: usize,
    held: Mutex<Held<T>>,
}

#[derive(Debug)]
struct Held<T> {
    by_file: HashMap<u64, Kept<T>>,
    /// Files by the time of their last use.
    uses: BTreeMap<u64, u64>,
    clock: u64,
    files: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Kept<T> {
    footer: Arc<T>,
    bytes: usize,
    used: u64,
}

impl<T> Footers<T> {
    pub(super) fn new(most: usize) -> Self {
        let held = Held { by_file: HashMap::new(), uses: BTreeMap::new(), clock: 0, files: 0, bytes: 0 };
        Self { most, held: Mutex::new(held) }
    }

    /// A number for a file.
    pub(super) fn file(&self) -> u64 {
        let mut held = self.held.lock();
        held.files += 1;
        held.files
    }

    pub(super) fn get(&self, file: u64) -> Option<Arc<T>> {
        let mut held = self.held.lock();
        let Held { by_file, uses, clock, .. } = &mut *held;
        let kept = by_file.get_mut(&file)?;
        uses.remove(&kept.used);
        *clock += 1;
        kept.used = *clock;
        uses.insert(*clock, file);
        Some(kept.footer.clone())
    }

    pub(super) fn put(&self, file: u64, footer: Arc<T>, bytes: usize) {
        let mut held = self.held.lock();
        held.forget(file);
        held.clock += 1;
        let used = held.clock;
        held.uses.insert(used, file);
        held.bytes += bytes;
        held.by_file.insert(file, Kept { footer, bytes, used });
        while held.bytes > self.most
            && let Some((_, &oldest)) = held.uses.first_key_value()
        {
            held.forget(oldest);
        }
    }

    pub(super) fn forget(&self, file: u64) {
        self.held.lock().forget(file);
    }

    /// Bytes of the footers.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.held.lock().bytes
    }
}

impl<T> Held<T> {
    fn forget(&mut self, file: u64) {
        if let Some(gone) = self.by_file.remove(&file) {
            self.uses.remove(&gone.used);
            self.bytes -= gone.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let footers = Footers::new(10);
        let [a, b, c] = [footers.file(), footers.file(), footers.file()];
        footers.put(a, Arc::new("a"), 4);
        footers.put(b, Arc::new("b"), 4);
        assert_eq!(footers.get(a).as_deref(), Some(&"a"));
        footers.put(c, Arc::new("c"), 4);
        assert!(footers.get(b).is_none());
        assert_eq!((footers.get(a).is_some(), footers.get(c).is_some(), footers.bytes()), (true, true, 8));
        footers.forget(a);
        footers.put(b, Arc::new("b"), 11);
        assert_eq!(
            (footers.get(b).is_some(), footers.bytes()),
            (false, 0),
            "one that is too large is not kept"
        );
        assert!(footers.held.lock().uses.is_empty());
    }
}
