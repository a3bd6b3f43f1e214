//! Opens files: finds the kind of a file by its name, checks it against the first bytes, and makes one [`Source`] for each table.
//!
//! The kind is never guessed from the content. A file named `.csv` that holds gzip was renamed by mistake, and other tools cannot
//! read it either.

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

use crate::import::told::ImportError;

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
    /// Its name in messages.
    pub(crate) name: String,
    /// Names that may hold a date, the most exact first.
    titles: Vec<String>,
    kind: Kind,
}

const SUFFIXES: &str = "files are .csv, .tsv or .txt, these as .gz, a .zip of them, and .parquet (or .pq)";

/// The suffixes of file names.
const ENDINGS: [&str; 7] = [".gz", ".csv", ".tsv", ".txt", ".zip", ".parquet", ".pq"];

/// Most names of an archive's members that a message lists.
const MEMBERS_SHOWN: usize = 8;

impl Source {
    pub(crate) fn is_parquet(&self) -> bool {
        self.kind == Kind::Parquet
    }

    /// The file's name without its folder and its suffixes.
    pub(crate) fn title(&self) -> &str {
        let name = self.titles.first().map_or("", String::as_str);
        let mut title = name.rsplit('/').next().unwrap_or(name);
        while let Some(short) = ENDINGS.iter().find_map(|ending| {
            let at = title.len().checked_sub(ending.len()).filter(|at| *at > 0)?;
            title.get(at..)?.eq_ignore_ascii_case(ending).then(|| &title[..at])
        }) {
            title = short;
        }
        title
    }

    /// The usual separator of files with this name.
    pub(crate) fn delimiter(&self) -> u8 {
        let name = self.titles.first().map_or("", String::as_str).to_ascii_lowercase();
        if name.trim_end_matches(".gz").ends_with(".tsv") { b'\t' } else { b',' }
    }

    /// Gives the text of a CSV source to `use_it`, and counts the bytes of the file as they are read.
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

    /// The error for a failed read in the middle of the file.
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

/// The tables in a file. `wanted` chooses members of an archive; `notes` tells which members are left out.
pub(crate) fn sources(
    path: &Path,
    wanted: &[String],
    notes: &mut Vec<String>,
) -> Result<Vec<Source>, ImportError> {
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
    members(path, &name, &title, wanted, notes)
}

pub(crate) fn is_archive(path: &Path) -> bool {
    path.file_name().is_some_and(|name| kind_of(&name.to_string_lossy()) == Some(Kind::Zip(0)))
}

/// The data files of an archive: the wanted ones, or every `.csv` and `.tsv`, or else every `.txt`. The extra files that macOS packs
/// are left out.
fn choose(inside: &[String], wanted: &[String]) -> Vec<bool> {
    let ends = |name: &str, endings: &[&str]| {
        let name = name.to_ascii_lowercase();
        endings.iter().any(|ending| name.ends_with(ending))
    };
    let beside = |name: &str| {
        name.split('/').any(|part| part == "__MACOSX")
            || name.rsplit('/').next().is_some_and(|n| n.starts_with("._"))
    };
    if !wanted.is_empty() {
        return inside.iter().map(|name| wanted.contains(name)).collect();
    }
    let by = |endings: &[&str]| -> Vec<bool> {
        inside.iter().map(|name| !beside(name) && ends(name, endings)).collect()
    };
    let tables = by(&[".csv", ".tsv"]);
    if tables.contains(&true) { tables } else { by(&[".txt"]) }
}

fn listed(names: &[&str]) -> String {
    let more = names.len().saturating_sub(MEMBERS_SHOWN);
    let shown = names[..names.len() - more].join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

fn members(
    path: &Path,
    name: &str,
    title: &str,
    wanted: &[String],
    notes: &mut Vec<String>,
) -> Result<Vec<Source>, ImportError> {
    let broken = |e: &dyn std::fmt::Display| {
        ImportError::file(
            name,
            format!("not a zip archive that can be read: {e}"),
            "fetch or pack the file again",
        )
    };
    let file = File::open(path).map_err(|e| unreadable(name, &e))?;
    let mut archive = ZipArchive::new(file).map_err(|e| broken(&e))?;
    let (mut inside, mut places) = (Vec::new(), Vec::new());
    for index in 0..archive.len() {
        // Raw access: an encrypted member can then be listed, and is refused by name if it is wanted.
        let member = archive.by_index_raw(index).map_err(|e| broken(&e))?;
        if !member.is_dir() {
            inside.push(member.name().to_owned());
            places.push((index, member.encrypted()));
        }
    }
    let chosen = choose(&inside, wanted);
    let of = |taken: bool| -> Vec<&str> {
        let names = inside.iter().zip(&chosen).filter(|(_, chosen)| **chosen == taken);
        names.map(|(name, _)| name.as_str()).collect()
    };
    if let Some(absent) = wanted.iter().find(|wanted| !inside.contains(wanted)) {
        return Err(ImportError::file(
            name,
            format!("the archive has no member {absent:?}"),
            format!("its members are {}", listed(&of(false))),
        ));
    }
    let left_out = of(false);
    if left_out.len() == inside.len() {
        let hint = if inside.is_empty() {
            "pack the file again".to_owned()
        } else {
            format!("its members are {}; unpack it, or choose with --member NAME", listed(&left_out))
        };
        return Err(ImportError::file(name, "the archive holds no .csv, .tsv or .txt file", hint));
    }
    if !left_out.is_empty() {
        notes.push(format!("{name}: left out {} (--member chooses)", listed(&left_out)));
    }
    let mut found = Vec::new();
    for ((inside, (index, encrypted)), chosen) in inside.iter().zip(places).zip(&chosen) {
        if !chosen {
            continue;
        }
        if encrypted {
            return Err(ImportError::file(
                name,
                format!("its member {inside} is encrypted"),
                "unpack it first",
            ));
        }
        found.push((index, inside.clone()));
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
        "csv" | "tsv" | "txt" => Some(Kind::Csv),
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
    fn data_is_chosen_by_its_suffix_and_dotted_folders_are_folders() {
        let chosen = |inside: &[&str], wanted: &[&str]| {
            let inside: Vec<String> = inside.iter().map(|&n| n.to_owned()).collect();
            let wanted: Vec<String> = wanted.iter().map(|&n| n.to_owned()).collect();
            let taken = choose(&inside, &wanted);
            inside.into_iter().zip(taken).filter(|(_, t)| *t).map(|(n, _)| n).collect::<Vec<_>>()
        };
        let inside = ["./a.csv", ".x/b.CSV", "__MACOSX/./._a.csv", "README.txt", "._a.csv", "c.tsv"];
        assert_eq!(chosen(&inside, &[]), ["./a.csv", ".x/b.CSV", "c.tsv"]);
        assert_eq!(chosen(&inside, &["README.txt"]), ["README.txt"]);
        assert_eq!(chosen(&["a.txt", "b.xlsx"], &[]), ["a.txt"]);
    }

    #[test]
    fn a_title_is_the_name_without_its_suffixes() {
        for (name, title) in [
            ("AMZN.csv.gz", "AMZN"),
            ("BRK.B.csv", "BRK.B"),
            ("in/x.txt", "x"),
            ("A.tsv", "A"),
            (".csv", ".csv"),
        ] {
            let source = Source {
                path: PathBuf::new(),
                name: String::new(),
                titles: vec![name.to_owned()],
                kind: Kind::Csv,
            };
            assert_eq!(source.title(), title);
        }
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
