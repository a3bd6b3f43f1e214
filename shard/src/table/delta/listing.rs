//! The files in a table's `_delta_log`: entries and checkpoints, and which of them nobody needs any more. Pure.

use std::collections::BTreeMap;

use object_store::path::Path;

/// The folder of the log, in that of the table.
pub(super) const LOG_FOLDER: &str = "_delta_log";

/// An entry, or a file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LogFile {
    pub(super) version: u64,
    pub(super) kind: Kind,
    pub(super) path: Path,
    pub(super) modified_ms: i64,
    pub(super) size: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Entry,
    /// One of `of` files that together are a checkpoint.
    Checkpoint {
        of: usize,
    },
    /// A file whose name has the checksum of a file of a checkpoint.
    Checksum,
}

/// The end of the name of a checksum. The name begins with a dot, and every tool leaves out such files.
const CHECKSUM_SUFFIX: &str = ".xxh3";

/// The file beside `path` whose name has the checksum of it.
pub(super) fn checksum_path(path: &Path, sum: &str) -> Path {
    let name = format!(".{}.{sum}{CHECKSUM_SUFFIX}", path.filename().unwrap_or_default());
    let folder = path.parts().count().saturating_sub(1);
    path.parts().take(folder).collect::<Path>().join(name)
}

/// The file and the checksum that the name of a checksum has.
fn checksum_of(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix('.')?.strip_suffix(CHECKSUM_SUFFIX)?.rsplit_once('.')
}

/// The version and kind of a file in `_delta_log`, by its name.
pub(super) fn log_file(name: &str) -> Option<(u64, Kind)> {
    if let Some((of, _)) = checksum_of(name) {
        return log_file(of).map(|(version, _)| (version, Kind::Checksum));
    }
    let (digits, rest) = name.split_at_checked(20)?;
    let version = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())??;
    let kind = match rest.split('.').collect::<Vec<_>>()[..] {
        ["", "json"] => Kind::Entry,
        // A name with an id is a checkpoint of Delta's version V2.
        ["", "checkpoint", "parquet"] | ["", "checkpoint", _, "parquet"] => Kind::Checkpoint { of: 1 },
        ["", "checkpoint", _, of, "parquet"] => Kind::Checkpoint { of: of.parse().ok()? },
        _ => return None,
    };
    Some((version, kind))
}

/// What is written of the bytes of a checkpoint's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// Nothing: another tool or an earlier release wrote the file.
    Nothing,
    /// A shard wrote these bytes.
    Same,
    /// Shards wrote other bytes.
    Other,
}

/// The files in `_delta_log`, by version.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) files: Vec<LogFile>,
}

impl Listing {
    /// The versions of the entries, in order.
    pub(super) fn entries(&self) -> impl DoubleEndedIterator<Item = u64> + '_ {
        self.files.iter().filter(|file| file.kind == Kind::Entry).map(|file| file.version)
    }

    /// The files of each checkpoint. A checkpoint with a file missing does not count: it is still being written.
    pub(super) fn checkpoints(&self) -> BTreeMap<u64, Vec<&Path>> {
        let mut found: BTreeMap<(u64, usize), Vec<&Path>> = BTreeMap::new();
        for file in &self.files {
            if let Kind::Checkpoint { of } = file.kind {
                found.entry((file.version, of)).or_default().push(&file.path);
            }
        }
        let all_there = found.into_iter().filter(|((_, of), files)| files.len() >= *of);
        all_there.map(|((version, _), files)| (version, files)).collect()
    }

    /// What the names beside the file of a checkpoint say of its checksum; `None`: the file is not in this listing. Of `path` only the
    /// last part counts.
    pub(super) fn says(&self, path: &Path, sum: &str) -> Option<Said> {
        if !self.files.iter().any(|file| file.path.filename() == path.filename()) {
            return None;
        }
        let sums = self.files.iter().filter(|file| file.kind == Kind::Checksum);
        let named = sums.filter_map(|file| checksum_of(file.path.filename()?));
        let of_it: Vec<&str> =
            named.filter(|(of, _)| Some(*of) == path.filename()).map(|(_, written)| written).collect();
        Some(match of_it.as_slice() {
            [] => Said::Nothing,
            sums if sums.contains(&sum) => Said::Same,
            _ => Said::Other,
        })
    }

    /// The newest checkpoint.
    pub(super) fn checkpoint(&self) -> Option<(u64, Vec<&Path>)> {
        self.checkpoints().pop_last()
    }

    /// The newest checkpoint from which `version` can be read.
    pub(super) fn checkpoint_before(&self, version: u64) -> Option<(u64, Vec<&Path>)> {
        self.checkpoints().into_iter().take_while(|(checkpoint, _)| *checkpoint <= version).last()
    }

    /// Bytes of the checkpoint that a reader of `version` reads.
    pub(super) fn checkpoint_bytes(&self, version: u64) -> u64 {
        let read = self.checkpoint_before(version).map_or_else(Vec::new, |(_, paths)| paths);
        self.files.iter().filter(|file| read.contains(&&file.path)).map(|file| file.size).sum()
    }

    pub(super) fn newest(&self) -> Option<u64> {
        self.entries().next_back().max(self.checkpoint().map(|c| c.0))
    }

    /// The files that no reader needs. Readers may read `newest`, each version with a file from `before_ms` or later, and all
    /// versions after those. So every file goes that is older than the last checkpoint from which all of these can be read.
    pub(super) fn superfluous(&self, newest: u64, before_ms: i64) -> impl Iterator<Item = &LogFile> {
        let recent = self.files.iter().filter(|file| file.modified_ms >= before_ms).map(|file| file.version);
        let first = recent.fold(newest, u64::min);
        let from = self.checkpoints().range(..=first).next_back().map_or(0, |(version, _)| *version);
        self.files.iter().filter(move |file| file.version < from)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_checkpoint(log: &[LogFile], version: u64) -> bool {
        let here: Vec<_> = log.iter().filter(|file| file.version == version).collect();
        here.iter().any(|file| file.kind == Kind::Checkpoint { of: 1 })
            || here.iter().filter(|file| file.kind == Kind::Checkpoint { of: 2 }).count() == 2
    }

    /// Whether there is a way to `version`: a checkpoint, or the empty table, and every entry after it.
    fn readable(log: &[LogFile], version: u64) -> bool {
        let entry = |of: u64| log.iter().any(|file| file.kind == Kind::Entry && file.version == of);
        (0..=version).all(entry)
            || (0..=version).any(|from| is_checkpoint(log, from) && (from + 1..=version).all(entry))
    }

    proptest! {
        /// A file of the log goes only if each version that may still be read can begin from a checkpoint that comes after
        /// the file. So each of these versions that could be read before can still be read, even if only some of the files
        /// are gone.
        #[test]
        fn what_goes_from_the_log_is_what_no_version_needs_that_may_be_read(
            files in prop::collection::btree_map((0u64..8, 0usize..5), 0i64..6, 0..24),
            newest in 0u64..9,
            before_ms in 0i64..7,
            left in prop::collection::vec(any::<bool>(), 24),
        ) {
            let named = |((version, what), modified_ms): ((u64, usize), i64)| {
                let end = match what {
                    0 => ".json",
                    1 => ".checkpoint.parquet",
                    4 => ".checkpoint.parquet.0123456789abcdef.xxh3",
                    2 => ".checkpoint.0000000001.0000000002.parquet",
                    _ => ".checkpoint.0000000002.0000000002.parquet",
                };
                let name = format!("{}{version:020}{end}", if what == 4 { "." } else { "" });
                let (version, kind) = log_file(&name).unwrap();
                LogFile { version, kind, path: Path::from(name), modified_ms, size: 0 }
            };
            let log: Vec<LogFile> = files.into_iter().map(named).collect();
            let recent = |of: u64| log.iter().any(|file| file.version <= of && file.modified_ms >= before_ms);
            let read: Vec<u64> = (0..=newest).filter(|version| *version == newest || recent(*version)).collect();
            let needless = |file: &&LogFile| {
                read.iter().all(|version| (file.version + 1..=*version).any(|from| is_checkpoint(&log, from)))
            };
            let expected: Vec<&LogFile> = log.iter().filter(needless).collect();
            let listing = Listing { files: log.clone() };
            let gone: Vec<&LogFile> = listing.superfluous(newest, before_ms).collect();
            prop_assert_eq!(&gone, &expected);
            let mut left = left.into_iter();
            let rest: Vec<LogFile> = log.iter()
                .filter(|file| !gone.contains(file) || left.next().unwrap_or(false)).cloned().collect();
            for version in read {
                prop_assert!(!readable(&log, version) || readable(&rest, version), "version {}", version);
            }
        }
    }

    #[test]
    fn a_file_of_the_log_is_what_its_name_says() {
        let of = |rest: &str| log_file(&format!("00000000000000000012{rest}"));
        assert_eq!(of(".json"), Some((12, Kind::Entry)));
        assert_eq!(of(".checkpoint.parquet"), Some((12, Kind::Checkpoint { of: 1 })));
        let id = ".checkpoint.80a083e8-7026-4e79-81be-64bd76c43a11.parquet";
        assert_eq!(of(id), Some((12, Kind::Checkpoint { of: 1 })));
        assert_eq!(of(".checkpoint.0000000003.0000000010.parquet"), Some((12, Kind::Checkpoint { of: 10 })));
        let checkpoint = Path::from("a/_delta_log/00000000000000000012.checkpoint.parquet");
        let path = checksum_path(&checkpoint, "0123456789abcdef");
        assert!(path.as_ref().starts_with("a/_delta_log/.0000"), "{path}");
        let (version, kind) = log_file(path.filename().unwrap()).unwrap();
        assert_eq!((version, kind), (12, Kind::Checksum));
        let sum = LogFile { version, kind, path, modified_ms: 0, size: 0 };
        let file = LogFile { path: checkpoint.clone(), kind: Kind::Checkpoint { of: 1 }, ..sum.clone() };
        let says = |files: &[&LogFile], sum: &str| {
            Listing { files: files.iter().copied().cloned().collect() }.says(&checkpoint, sum)
        };
        assert_eq!(says(&[&sum, &file], "0123456789abcdef"), Some(Said::Same));
        assert_eq!(says(&[&sum, &file], "fedcba9876543210"), Some(Said::Other));
        assert_eq!(says(&[&file], "0123456789abcdef"), Some(Said::Nothing));
        assert_eq!(says(&[&sum], "0123456789abcdef"), None, "a file that came after the listing");
        let other = Path::from("a/_delta_log/00000000000000000013.checkpoint.parquet");
        let other = LogFile { path: other, ..file };
        assert_eq!(Listing { files: vec![sum, other.clone()] }.says(&other.path, "0"), Some(Said::Nothing));
        for other in [".crc", ".00000000000000000014.compacted.json", ".checkpoint", "0.json", ""] {
            assert_eq!(of(other), None, "{other}");
        }
        assert_eq!(log_file("+0000000000000000012.json"), None);
        assert_eq!(log_file("_last_checkpoint"), None);
    }
}
