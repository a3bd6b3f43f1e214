//! What an import gives back: the dataset, its rows in parts, and what was understood of the files.

use arrow_array::RecordBatch;
use trellis_proto::{ChunkSpan, DatasetSpec, FieldType, Symbol, time::format_time};

use super::problem::{ImportError, Problem};
use crate::scan::CHUNKS_MAX;

/// The result of an import.
#[derive(Debug)]
pub struct Import {
    /// The spec of the dataset, as it is or is to be made.
    pub spec: DatasetSpec,
    /// The rows. If rows have knowledge times of their own, there is one part for each time, in ascending order. Each part is
    /// published by itself, in this order.
    pub parts: Vec<Part>,
    /// Good rows, of all parts.
    pub rows: u64,
    /// The first bad rows; they are in the quarantine.
    pub problems: Vec<Problem>,
    /// How many bad rows there are.
    pub problems_total: u64,
    /// Least event time, nanoseconds UTC.
    pub first_ts: i64,
    /// Greatest event time, nanoseconds UTC.
    pub last_ts: i64,
    /// Symbols with rows, sorted.
    pub symbols: Vec<Symbol>,
    /// SHA-256 over the spec and the sorted rows of all parts, in hexadecimal. The order and the format of the files do not change
    /// it.
    pub content_digest: String,
    /// Notes for the user: columns that were missing, empty or left out, and changes of the dataset.
    pub notes: Vec<String>,
    /// What the import understood of each field.
    pub sample: Vec<FieldSample>,
    /// The columns of the event times, by their names in the files; several if files differ.
    pub ts_columns: Vec<String>,
    /// The columns of the symbols; none if an option gives the symbol.
    pub symbol_columns: Vec<String>,
}

impl Import {
    /// The batches of all parts.
    pub fn batches(&self) -> impl Iterator<Item = &RecordBatch> {
        self.parts.iter().flat_map(|part| &part.batches)
    }

    /// Refuses rows that would make the dataset too long for one read. `stored` is its least and greatest time now.
    ///
    /// # Errors
    /// [`ImportError::Options`].
    pub fn check_span(&self, stored: Option<(i64, i64)>) -> Result<(), ImportError> {
        let (first, last) = stored
            .map_or((self.first_ts, self.last_ts), |(a, b)| (self.first_ts.min(a), self.last_ts.max(b)));
        let chunks = chunks_of(self.spec.chunk, first, last);
        if chunks <= CHUNKS_MAX {
            return Ok(());
        }
        let then = if stored.is_some() { "import into a new dataset" } else { "say --chunk 6h" };
        Err(ImportError::options(
            format!(
                "from {} to {} are {chunks} chunks of {}, and a read takes {CHUNKS_MAX}: such a far time is mostly a \
                 wrong one",
                format_time(first),
                format_time(last),
                self.spec.dataset
            ),
            format!("mend the time; or, if it is right, {then}"),
        ))
    }
}

/// Rows of one knowledge time: one publish.
#[derive(Debug, Clone)]
pub struct Part {
    /// When the rows became known, nanoseconds UTC. Absent: at the commit.
    pub known_at_ns: Option<i64>,
    /// The rows, in the schema of [`DatasetSpec::rows_schema`] (of a retraction `symbol` and `ts` alone), sorted by (symbol, ts), each
    /// key once.
    pub batches: Vec<RecordBatch>,
    /// The number of rows.
    pub rows: u64,
    /// SHA-256 over spec, knowledge time and rows, in hexadecimal.
    pub digest: String,
}

impl Part {
    /// The run id of its publish. If the same rows are imported again, they are acknowledged, and not stored twice.
    #[must_use]
    pub fn run_id(&self) -> String {
        format!("import-{}", self.digest)
    }
}

/// What the import understood of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldSample {
    /// The field.
    pub field: String,
    /// Its type.
    pub data_type: FieldType,
    /// The name of its column in the first file that has it, or the number of columns if each symbol has one. Absent: no file has it.
    pub column: Option<String>,
    /// Rows without a value.
    pub missing: u64,
    /// The first values, in the order of the rows; absent where there is none.
    pub first: Vec<Option<String>>,
}

/// The number of chunks from the first time to the last.
pub(crate) fn chunks_of(chunk: ChunkSpan, first: i64, last: i64) -> i64 {
    let cover = chunk.cover(first, last.saturating_add(1));
    cover.end - cover.start
}
