//! Errors of rows, files and options, and how many of them are kept.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use trellis_proto::{Code, Error};

/// Most bytes of a bad cell that a message shows: enough to find the cell.
const VALUE_BYTES_SHOWN: usize = 80;

/// Most bad rows that a quarantine takes. Each is remembered until all files are read (about 150 bytes); an import with
/// a million bad rows was started with the wrong options.
pub(crate) const QUARANTINE_ROWS_MAX: usize = 1_000_000;

/// The reason for a row whose symbol and time an earlier row has.
pub(crate) const REPEATED: &str = "has this time already";

/// One bad row.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// The file as it was named; for an archive of several, `archive.zip:member.csv`.
    pub file: String,
    /// Line on which the row begins, from 1, quoted line breaks counted. Of Parquet: the row, from 1.
    pub line: u64,
    /// The column as the file calls it; absent where the row as a whole is wrong.
    pub column: Option<String>,
    /// The cell's text, shortened.
    pub value: String,
    /// Why it is refused.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.file, self.line)?;
        if let Some(column) = &self.column {
            write!(f, "{column}:")?;
        }
        write!(f, " {}", self.reason)?;
        if !self.value.is_empty() {
            write!(f, ": {:?}", self.value)?;
        }
        Ok(())
    }
}

/// The error of an import. Nothing has been imported then.
#[derive(Debug)]
pub enum ImportError {
    /// The options contradict each other, or do not fit the files or the dataset.
    Options {
        /// What is wrong.
        message: String,
        /// What to do about it; may be empty.
        hint: String,
    },
    /// A file cannot be read at all.
    File {
        /// The file as it was named.
        file: String,
        /// What is wrong.
        message: String,
        /// What to do about it; may be empty.
        hint: String,
    },
    /// Some rows are bad.
    Rows {
        /// The first of them, by file and line.
        problems: Vec<Problem>,
        /// How many there are.
        total: u64,
        /// How many rows are good.
        good: u64,
        /// What to do about it.
        hint: String,
    },
    /// No row is left to import.
    Empty {
        /// What was found instead.
        message: String,
    },
    /// More rows or text than one import takes.
    TooLarge {
        /// The limit that the import is over.
        message: String,
    },
    /// The quarantine file cannot be written.
    Quarantine {
        /// Where it should have been.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl ImportError {
    pub(crate) fn options(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Options { message: message.into(), hint: hint.into() }
    }

    pub(crate) fn file(file: impl fmt::Display, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::File { file: file.to_string(), message: message.into(), hint: hint.into() }
    }

    /// What to do about it; may be empty.
    #[must_use]
    pub fn hint(&self) -> &str {
        match self {
            Self::Options { hint, .. } | Self::File { hint, .. } | Self::Rows { hint, .. } => hint,
            Self::Empty { .. } => "",
            Self::TooLarge { .. } => "import in several parts, by file or by year",
            Self::Quarantine { .. } => "name a file in a folder that exists and can be written",
        }
    }
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Options { message, .. } | Self::Empty { message } | Self::TooLarge { message } => {
                f.write_str(message)
            }
            Self::File { file, message, .. } => write!(f, "{file}: {message}"),
            Self::Rows { problems, total, good, .. } => {
                let rows = if *total == 1 { "row is" } else { "rows are" };
                write!(f, "{total} {rows} bad ({good} good), nothing was imported")?;
                for problem in problems {
                    write!(f, "\n  {problem}")?;
                }
                let more = total.saturating_sub(problems.len() as u64);
                if more > 0 {
                    write!(f, "\n  and {more} more")?;
                }
                Ok(())
            }
            Self::Quarantine { path, source } => {
                write!(f, "the quarantine {} cannot be written: {source}", path.display())
            }
        }
    }
}

impl std::error::Error for ImportError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Quarantine { source, .. } => Some(source),
            Self::Options { .. }
            | Self::File { .. }
            | Self::Rows { .. }
            | Self::Empty { .. }
            | Self::TooLarge { .. } => None,
        }
    }
}

impl From<ImportError> for Error {
    fn from(error: ImportError) -> Self {
        let code = match &error {
            ImportError::Options { .. } | ImportError::Quarantine { .. } => Code::InvalidRequest,
            ImportError::File { .. } | ImportError::Rows { .. } | ImportError::Empty { .. } => Code::BadRows,
            ImportError::TooLarge { .. } => Code::TooLarge,
        };
        Error::new(code, error.to_string()).hint(error.hint())
    }
}

/// Where a row stands: the index of its source, and its line.
pub(crate) type Place = (u32, u64);

/// A bad row without the name of its file.
#[derive(Debug, Clone)]
pub(crate) struct Bad {
    pub(crate) column: Option<String>,
    pub(crate) value: String,
    pub(crate) reason: String,
}

impl Bad {
    pub(crate) fn row(reason: impl Into<String>) -> Self {
        Self { column: None, value: String::new(), reason: reason.into() }
    }

    pub(crate) fn cell(column: &str, value: &str, reason: impl Into<String>) -> Self {
        let mut end = value.len().min(VALUE_BYTES_SHOWN);
        while !value.is_char_boundary(end) {
            end -= 1;
        }
        let dots = if end < value.len() { "…" } else { "" };
        Self {
            column: Some(column.to_owned()),
            value: format!("{}{dots}", &value[..end]),
            reason: reason.into(),
        }
    }
}

/// The bad rows with the smallest places, and the count of all.
pub(crate) struct BadRows {
    kept: BTreeMap<Place, Bad>,
    keep: usize,
    pub(crate) total: u64,
}

impl BadRows {
    pub(crate) fn new(keep: usize) -> Self {
        Self { kept: BTreeMap::new(), keep, total: 0 }
    }

    /// Takes the bad row at `place`; describes it only if it will be shown.
    pub(crate) fn add(&mut self, place: Place, describe: impl FnOnce() -> Bad) {
        self.total += 1;
        let full = self.kept.len() >= self.keep;
        if full && self.kept.last_key_value().is_none_or(|(last, _)| *last < place) {
            return;
        }
        self.kept.insert(place, describe());
        if self.kept.len() > self.keep {
            self.kept.pop_last();
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Place, &Bad)> {
        self.kept.iter()
    }

    /// The bad rows of one source, by line.
    pub(crate) fn of_source(&self, source: u32) -> impl Iterator<Item = (u64, &Bad)> {
        self.kept.range((source, 0)..=(source, u64::MAX)).map(|((_, line), bad)| (*line, bad))
    }
}
