//! From a path to something that can be read: which kind a file is, by its name and checked against its first bytes,
//! and one [`Source`] for each table in it.
//!
//! A kind is never guessed from the content: a file that is named `.csv` and holds gzip was renamed by somebody, and the
//! next tool would trip over it too.

use std::{
    fs::File,
    io::{self, Read, Seek},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use chrono::NaiveDate;
use flate2::read::MultiGzDecoder;
use zip::ZipArchive;

use super::problem::ImportError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Csv,
    Gzip,
    Zip(usize),
    Parquet,
}

/// One table: a file, or a member of an archive.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    /// As messages call it.
    pub(crate) name: String,
    /// Names that may hold a date, the most exact first.
    titles: Vec<String>,
    kind: Kind,
}

const SUFFIXES: &str = "files are .csv, .csv.gz (or .gz), .zip of .csv, and .parquet (or .pq)";

impl Source {
    pub(crate) fn is_parquet(&self) -> bool {
        self.kind == Kind::Parquet
    }

    /// Hands the text of a CSV source to `use_it`, counting the bytes of the file as they are read.
    pub(crate) fn read<T>(
        &self,
        bytes: &Arc<AtomicU64>,
        use_it: impl FnOnce(&mut dyn Read) -> Result<T, ImportError>,
    ) -> Result<T, ImportError> {
        let mut file = Counted { file: self.open()?, bytes: Arc::clone(bytes) };
        match self.kind {
            Kind::Csv | Kind::Parquet => use_it(&mut file),
            Kind::Gzip => use_it(&mut MultiGzDecoder::new(file)),
            Kind::Zip(index) => {
                let mut archive = ZipArchive::new(file).map_err(|e| self.broken_zip(&e))?;
                use_it(&mut archive.by_index(index).map_err(|e| self.broken_zip(&e))?)
            }
        }
    }

    pub(crate) fn open(&self) -> Result<File, ImportError> {
        File::open(&self.path).map_err(|e| unreadable(&self.name, &e))
    }

    fn broken_zip(&self, error: &zip::result::ZipError) -> ImportError {
        ImportError::file(&self.name, format!("not a zip archive that can be read: {error}"), "")
    }

    /// Says what an error in the middle of reading means.
    pub(crate) fn failed(&self, error: &io::Error) -> ImportError {
        let message = match (self.kind, error.kind()) {
            (Kind::Gzip, io::ErrorKind::UnexpectedEof) => {
                "the gzip stream is cut off before its end".to_owned()
            }
            (Kind::Gzip, io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => {
                format!("the gzip stream is damaged: {error}")
            }
            (Kind::Zip(_), _) => format!("the archive is damaged: {error}"),
            (Kind::Gzip | Kind::Csv | Kind::Parquet, _) => error.to_string(),
        };
        let hint = if self.kind == Kind::Csv { "" } else { "fetch or pack the file again" };
        ImportError::file(&self.name, message, hint)
    }

    /// The day that the file's name holds, as `20140501` or `2014-05-01`.
    pub(crate) fn date_in_name(&self) -> Option<NaiveDate> {
        self.titles.iter().find_map(|title| {
            let mut days = dates_in(title);
            days.sort_unstable();
            days.dedup();
            match days.as_slice() {
                [day] => Some(*day),
                _ => None,
            }
        })
    }
}

/// Every date written in `title`; digits that touch further digits are no date.
fn dates_in(title: &str) -> Vec<NaiveDate> {
    let bytes = title.as_bytes();
    let digit = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_digit);
    let mut days = Vec::new();
    for start in 0..bytes.len() {
        if start > 0 && digit(start - 1) {
            continue;
        }
        for (length, format) in [(8, "%Y%m%d"), (10, "%Y-%m-%d")] {
            if digit(start + length) {
                continue;
            }
            if let Some(day) = title.get(start..start + length)
                && (length != 8 || day.bytes().all(|b| b.is_ascii_digit()))
                && let Ok(day) = NaiveDate::parse_from_str(day, format)
            {
                days.push(day);
            }
        }
    }
    days
}

struct Counted {
    file: File,
    bytes: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.bytes.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

impl Seek for Counted {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

fn unreadable(name: &str, error: &io::Error) -> ImportError {
    let message = match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "this user may not read it".to_owned(),
        _ => error.to_string(),
    };
    ImportError::file(name, message, "")
}

/// The tables in a file.
pub(crate) fn sources(path: &Path) -> Result<Vec<Source>, ImportError> {
    let name = path.display().to_string();
    let metadata = std::fs::metadata(path).map_err(|e| unreadable(&name, &e))?;
    if metadata.is_dir() {
        return Err(ImportError::file(&name, "is a folder", "name the files in it"));
    }
    if metadata.len() == 0 {
        return Err(ImportError::file(&name, "is empty", "a CSV file has at least a line of column names"));
    }
    let title = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let kind = kind_of(&title).ok_or_else(|| ImportError::file(&name, "is of no known kind", SUFFIXES))?;
    let first = first_bytes(path).map_err(|e| unreadable(&name, &e))?;
    check_first_bytes(&name, kind, &first)?;
    if kind != Kind::Zip(0) {
        return Ok(vec![Source { path: path.to_owned(), name, titles: vec![title], kind }]);
    }
    members(path, &name, &title)
}

fn members(path: &Path, name: &str, title: &str) -> Result<Vec<Source>, ImportError> {
    let broken = |e: &dyn std::fmt::Display| {
        ImportError::file(
            name,
            format!("not a zip archive that can be read: {e}"),
            "fetch or pack the file again",
        )
    };
    let file = File::open(path).map_err(|e| unreadable(name, &e))?;
    let mut archive = ZipArchive::new(file).map_err(|e| broken(&e))?;
    let mut found = Vec::new();
    for index in 0..archive.len() {
        // raw: an encrypted member can be listed, and is refused by name when it is read
        let member = archive.by_index_raw(index).map_err(|e| broken(&e))?;
        let inside = member.name().to_owned();
        let hidden = inside.split('/').any(|part| part.starts_with('.') || part == "__MACOSX");
        if member.is_dir() || hidden {
            continue;
        }
        if !inside.to_ascii_lowercase().ends_with(".csv") {
            return Err(ImportError::file(
                name,
                format!("its member {inside} is not .csv"),
                "unpack the archive and name the files to import",
            ));
        }
        if member.encrypted() {
            return Err(ImportError::file(
                name,
                format!("its member {inside} is encrypted"),
                "unpack it first",
            ));
        }
        found.push((index, inside));
    }
    if found.is_empty() {
        return Err(ImportError::file(name, "the archive holds no .csv file", ""));
    }
    let one = found.len() == 1;
    Ok(found
        .into_iter()
        .map(|(index, inside)| Source {
            path: path.to_owned(),
            name: if one { name.to_owned() } else { format!("{name}:{inside}") },
            titles: vec![inside, title.to_owned()],
            kind: Kind::Zip(index),
        })
        .collect())
}

fn kind_of(title: &str) -> Option<Kind> {
    let (_, suffix) = title.rsplit_once('.')?;
    match suffix.to_ascii_lowercase().as_str() {
        "csv" => Some(Kind::Csv),
        "gz" => Some(Kind::Gzip),
        "zip" => Some(Kind::Zip(0)),
        "parquet" | "pq" => Some(Kind::Parquet),
        _ => None,
    }
}

fn first_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut first = Vec::new();
    File::open(path)?.take(4).read_to_end(&mut first)?;
    Ok(first)
}

fn check_first_bytes(name: &str, kind: Kind, first: &[u8]) -> Result<(), ImportError> {
    let is = |magic: &[u8]| first.starts_with(magic);
    let content = if is(b"\x1f\x8b") {
        Some(("gzip", Kind::Gzip, ".gz"))
    } else if is(b"PK\x03\x04") || is(b"PK\x05\x06") {
        Some(("a zip archive", Kind::Zip(0), ".zip"))
    } else if is(b"PAR1") {
        Some(("Parquet", Kind::Parquet, ".parquet"))
    } else {
        None
    };
    if is(b"\xff\xfe") || is(b"\xfe\xff") {
        return Err(ImportError::file(name, "is UTF-16 text", "save it as UTF-8"));
    }
    match content {
        Some((_, found, _)) if found == kind => Ok(()),
        Some((what, _, suffix)) => Err(ImportError::file(
            name,
            format!("its content is {what}"),
            format!("rename it to end in {suffix}"),
        )),
        None if kind == Kind::Csv => Ok(()),
        None => {
            let what = match kind {
                Kind::Gzip => "gzip",
                Kind::Zip(_) => "a zip archive",
                Kind::Csv | Kind::Parquet => "Parquet",
            };
            Err(ImportError::file(
                name,
                format!("its content is not {what}, though its name says so"),
                SUFFIXES,
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn days(title: &str) -> Vec<String> {
        dates_in(title).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_date_is_found_in_a_name_only_where_it_stands_alone() {
        assert_eq!(days("20140501_eurusd_minute_quote.csv"), ["2014-05-01"]);
        assert_eq!(days("ticks-2014-05-01.csv.gz"), ["2014-05-01"]);
        assert_eq!(days("id1234567890.csv"), Vec::<String>::new());
        assert_eq!(days("20141350.csv"), Vec::<String>::new());
        assert_eq!(days("20140501-20140502.csv"), ["2014-05-01", "2014-05-02"]);
    }
}
