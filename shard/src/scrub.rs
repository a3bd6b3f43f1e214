//! Compares the lake's bytes with their checksums. A shard does so slowly and without end; `trellis doctor` does so once.

use std::{collections::BTreeSet, future::Future, sync::Arc, time::Duration};

use trellis_proto::{Code, DatasetName, Error, Result};
use url::Url;

use crate::{
    files::{Checked, FileRef, Lake, check_file},
    shard::Shard,
    table::Log,
};

/// Time between two reads of the shard's check. So it is a third of a request to the store each second, however many files there are.
const READ_EVERY: Duration = Duration::from_secs(3);
/// Reads that it takes to open a table, about: two listings, an entry twice, a footer.
const OPEN_READS: u32 = 6;
/// Time between two rounds over all files: a lake of few files is not read again and again.
const ROUND_EVERY: Duration = Duration::from_secs(3_600);
/// Bytes of one read while a lake is checked at once: bounds memory.
const DOCTOR_READ_BYTES: u64 = 4 << 20;

/// What a check found.
#[derive(Debug, Default)]
pub struct Report {
    /// Datasets, dropped ones included.
    pub datasets: u64,
    /// Data files and files of the logs.
    pub files: u64,
    /// Bytes of the data files.
    pub bytes: u64,
    /// Those of the files that have no checksums: other tools or earlier releases wrote them. Only their footers, and the lines of log
    /// entries, were read.
    pub without_checksums: u64,
    /// What is wrong, each with its dataset. An error of the kind [`Code::DataCorrupt`] names a damaged or missing file; any other
    /// says why something could not be checked.
    pub problems: Vec<Error>,
}

impl Report {
    fn add(&mut self, dataset: &DatasetName, checked: Result<Checked>) {
        self.files += 1;
        match checked {
            Ok(Checked::Whole) => {}
            Ok(Checked::NoChecksums) => self.without_checksums += 1,
            Err(error) => self.problems.push(error.dataset(dataset)),
        }
    }
}

/// Checks every file of a lake: each entry and checkpoint of the logs, and each data file of the newest versions.
///
/// # Errors
/// The lake cannot be used or listed.
pub async fn check_lake(lake: &Url) -> Result<Report> {
    let lake = Lake::open(lake)?;
    let mut report = Report::default();
    for name in lake.datasets().await? {
        let log = Log::new(&name, lake.folder(&name));
        // The check tells nobody of the rows of the version, so the version need not be durable.
        let state = match log.open(i64::MAX).await {
            Ok(Some(state)) => Ok(state),
            Ok(None) => continue,
            Err(error) => Err(error),
        };
        report.datasets += 1;
        let damaged = report.problems.len();
        check_log(&log, &name, || std::future::ready(()), &mut report).await?;
        match state {
            Ok(state) => {
                for file in state.files {
                    report.bytes += file.size;
                    let checked =
                        check_file(&log.folder, &file, DOCTOR_READ_BYTES, || std::future::ready(())).await;
                    report.add(&name, checked);
                }
            }
            // The check of the log has named the file already.
            Err(_) if report.problems.len() > damaged => {}
            Err(error) => report.problems.push(error.dataset(&name)),
        }
    }
    lake.settle().await;
    Ok(report)
}

async fn check_log<F: Future<Output = ()>>(
    log: &Log,
    dataset: &DatasetName,
    pause: impl Fn() -> F,
    report: &mut Report,
) -> Result<()> {
    log.check(pause, |checked| report.add(dataset, checked)).await
}

/// Checks the files of all datasets that this shard is home to, again and again, at the rate that the configuration allows.
pub(crate) async fn scrub(shard: Arc<Shard>) {
    let rate = shard.config.upkeep.scrub_bytes;
    if rate == 0 {
        return;
    }
    loop {
        let piece = rate.saturating_mul(READ_EVERY.as_secs());
        round(&shard, piece, || tokio::time::sleep(READ_EVERY)).await;
        tokio::time::sleep(ROUND_EVERY).await;
    }
}

/// Checks each file once, and returns the paths of the damaged ones.
pub(crate) async fn round<F: Future<Output = ()>>(
    shard: &Shard,
    piece: u64,
    pause: impl Fn() -> F,
) -> BTreeSet<String> {
    let mut damaged = BTreeSet::new();
    let mut last = None;
    while let Some(name) = shard.catalog.next(&mut last) {
        if shard.check_home(&name).is_err() {
            tokio::task::yield_now().await;
            continue;
        }
        // A table that does not open is found damaged below.
        let table = shard.catalog.table(&name);
        if table.snapshot().is_none() {
            for _ in 0..OPEN_READS {
                pause().await;
            }
            let _ = table.refresh().await;
        }
        let mut report = Report::default();
        if let Err(error) = check_log(&table.log, &table.name, &pause, &mut report).await {
            report.problems.push(error);
        }
        let files: Vec<FileRef> =
            table.snapshot().iter().flat_map(|now| now.files.iter().map(|file| file.file.clone())).collect();
        for file in files {
            let checked = check_file(&table.log.folder, &file, piece, &pause).await;
            // A file that was replaced meanwhile may be gone.
            let held = table.snapshot().is_some_and(|now| now.files.iter().any(|f| f.file == file));
            if checked.is_ok() || held {
                report.add(&table.name, checked);
            }
        }
        for error in report.problems {
            if error.code() == Code::DataCorrupt {
                shard.metrics.files_damaged.add(1, &[]);
                tracing::error!(dataset = %table.name, %error, "a file of the lake is damaged");
                damaged.insert(error.message().to_owned());
            } else {
                tracing::warn!(dataset = %table.name, %error, "a file of the lake could not be checked");
            }
        }
    }
    damaged
}

#[cfg(test)]
mod tests {
    use std::{fs, future::ready, path::PathBuf};

    use tokio::sync::mpsc;
    use trellis_proto::{
        fetch::{Answer, Awaited},
        pb,
    };

    use super::*;
    use crate::{
        files::{DataFile, FileRef},
        testing::{Grid, spec},
    };

    const PIECE: u64 = 1 << 20;

    async fn grid() -> Grid {
        let grid = Grid::new().await;
        let rows: Vec<(&str, i64, f64)> =
            ["A", "B"].iter().flat_map(|s| (0..300).map(move |i| (*s, i, i as f64 / 7.0))).collect();
        grid.import(&rows).await.unwrap();
        grid.retract(&[("A", 7), ("B", 9)]).await.unwrap();
        grid
    }

    /// The file with the retractions, and the file with the rows.
    fn files(grid: &Grid) -> [(FileRef, PathBuf); 2] {
        let mut files: Vec<_> =
            grid.table().snapshot().unwrap().files.iter().map(|f| f.file.clone()).collect();
        files.sort_by_key(|file| file.size);
        let [small, large] = <[FileRef; 2]>::try_from(files).unwrap();
        [small, large].map(|file| (file.clone(), grid.path().join(&file.path)))
    }

    /// Flips one bit after the other, `step` bits apart. The step is odd, so that each bit of a byte has its turn.
    async fn each_flip(path: &PathBuf, step: usize, check: impl AsyncFn(usize)) {
        let right = fs::read(path).unwrap();
        for bit in (0..8 * right.len()).step_by(step) {
            let mut bytes = right.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(path, bytes).unwrap();
            check(bit).await;
        }
        fs::write(path, right).unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_flipped_bit_of_a_data_file_is_believed() {
        let grid = grid().await;
        let folder = grid.table().log.folder.clone();
        for (file, path) in files(&grid) {
            let read = async || {
                let opened = DataFile::open(&folder, file.clone()).await?;
                opened.read_exact(&spec()).await
            };
            let right = read().await.unwrap();
            assert_eq!(check_file(&folder, &file, PIECE, || ready(())).await.unwrap(), Checked::Whole);
            let refused = std::cell::Cell::new(0);
            each_flip(&path, 31, async |bit| {
                let error = check_file(&folder, &file, PIECE, || ready(())).await.unwrap_err();
                assert_eq!(error.code(), Code::DataCorrupt, "bit {bit}: {error}");
                match read().await {
                    // Nobody reads the columns for people, `ts` and `known_at`.
                    Ok(rows) => assert_eq!(rows, right, "bit {bit}"),
                    Err(error) => {
                        assert_eq!(error.code(), Code::DataCorrupt, "bit {bit}: {error}");
                        assert!(error.message().contains(&file.path), "{error}");
                        refused.set(refused.get() + 1);
                    }
                }
            })
            .await;
            assert!(refused.get() > 8 * file.size / 31 / 2, "{} of {} bits", refused.get(), 8 * file.size);
            assert_eq!(read().await.unwrap(), right);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_fetch_from_a_damaged_file_fails_and_names_it() {
        let grid = grid().await;
        let [_, (file, path)] = files(&grid);
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let shard = grid.beside().await;
        let (out, mut replies) = mpsc::channel(4);
        let request = pb::FetchRequest {
            ranges: vec![Grid::range("B", 0, 1)],
            order: pb::FetchOrder::OldestFirst.into(),
            epoch: 1,
        };
        let mut awaited = Awaited::of(&request);
        tokio::spawn(async move { shard.fetch(request, &out).await });
        let reply = replies.recv().await.unwrap().unwrap();
        let Answer::Failures(failures) = awaited.accept(reply).unwrap() else { panic!("it has rows") };
        assert_eq!(failures[0].error.code(), Code::DataCorrupt);
        assert!(failures[0].error.message().contains(&file.path), "{:?}", failures[0].error);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_flipped_bit_of_a_checkpoint_is_believed() {
        let grid = grid().await;
        let log = grid.table().log.clone();
        log.checkpoint(1).await.unwrap();
        let right = log.open(0).await.unwrap().unwrap();
        let folder = grid.path().join("_delta_log");
        let path = folder.join("00000000000000000001.checkpoint.parquet");
        each_flip(&path, 211, async |bit| {
            let error = log.open(0).await.unwrap_err();
            assert_eq!(error.code(), Code::DataCorrupt, "bit {bit}: {error}");
            assert!(error.message().contains("1.checkpoint.parquet"), "{error}");
        })
        .await;
        // Another tool's checkpoint has no checksum, and is read.
        for file in fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()) {
            if file.extension().is_some_and(|end| end == "xxh3") {
                fs::remove_file(file).unwrap();
            }
        }
        let without = log.open(0).await.unwrap().unwrap();
        assert_eq!((without.version, without.txns), (right.version, right.txns));
        let report = check_lake(&grid.shard.config.lake).await.unwrap();
        assert_eq!((report.without_checksums, report.problems.len()), (1, 0));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_check_of_the_lake_names_every_damaged_and_missing_file() {
        let grid = grid().await;
        grid.table().log.checkpoint(1).await.unwrap();
        let lake = grid.shard.config.lake.clone();
        let whole = check_lake(&lake).await.unwrap();
        assert!(whole.problems.is_empty(), "{:?}", whole.problems);
        // Two data files, two entries, one checkpoint.
        assert_eq!((whole.datasets, whole.files, whole.without_checksums), (1, 5, 0));
        assert!(round(&grid.shard, PIECE, || ready(())).await.is_empty());
        let log = grid.path().join("_delta_log");
        let [(_, small), (_, large)] = files(&grid);
        let broken = [
            log.join("00000000000000000000.json"),
            log.join("00000000000000000001.checkpoint.parquet"),
            large,
        ];
        for path in &broken {
            let mut bytes = fs::read(path).unwrap();
            let at = bytes.len() / 2;
            bytes[at] ^= 0x10;
            fs::write(path, bytes).unwrap();
        }
        fs::remove_file(&small).unwrap();
        let found = round(&grid.shard, PIECE, || ready(())).await;
        assert_eq!(found.len(), 4, "{found:?}");
        for path in broken.iter().chain([&small]) {
            let name = path.file_name().unwrap().to_string_lossy();
            assert!(found.iter().any(|what| what.contains(&*name)), "{name}: {found:?}");
        }
        // A log that does not open names its files, and no others.
        let report = check_lake(&lake).await.unwrap();
        let named: Vec<&str> = report.problems.iter().map(Error::message).collect();
        assert_eq!(named.len(), 2, "{named:?}");
        assert!(report.problems.iter().all(|error| error.code() == Code::DataCorrupt));
    }
}
