//! The oracle: a dataset as a sorted list of rows. It answers slowly, but its code is plainly right.

use std::collections::BTreeMap;

use trellis_proto::TimeRange;

/// One known version of one row: its values in the order of the dataset's fields.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Symbol.
    pub symbol: String,
    /// Event time, nanoseconds.
    pub ts: i64,
    /// Knowledge time, nanoseconds.
    pub known_at: i64,
    /// One value for each field; `None` is null.
    pub values: Vec<Option<f64>>,
}

/// Symbol, event time and knowledge time.
type Key = (String, i64, i64);
/// One value for each field; a retraction has none.
type Values = Option<Vec<Option<f64>>>;
/// Knowledge time and values of a row.
type Known<'a> = (i64, Option<&'a Vec<Option<f64>>>);

/// Every known version of every row of a dataset.
#[derive(Debug, Clone, Default)]
pub struct Oracle {
    /// Field names, in the order of [`Row::values`].
    pub fields: Vec<String>,
    rows: BTreeMap<Key, Values>,
}

impl Oracle {
    /// A dataset without rows.
    #[must_use]
    pub fn new(fields: &[&str]) -> Self {
        Self { fields: fields.iter().map(|&f| f.to_owned()).collect(), rows: BTreeMap::new() }
    }

    /// Adds a row.
    pub fn learn(&mut self, row: Row) {
        self.rows.insert((row.symbol, row.ts, row.known_at), Some(row.values));
    }

    /// Retracts a row.
    pub fn retract(&mut self, symbol: &str, ts: i64, known_at: i64) {
        self.rows.insert((symbol.to_owned(), ts, known_at), None);
    }

    /// Symbols that any row has, sorted.
    #[must_use]
    pub fn symbols(&self) -> Vec<String> {
        let mut symbols: Vec<String> = self.rows.keys().map(|(symbol, ..)| symbol.clone()).collect();
        symbols.dedup();
        symbols
    }

    /// The right answer of a read: for each (symbol, ts) the row with the greatest `known_at <= as_of`, unless that is a
    /// retraction; sorted, with only `fields`.
    #[must_use]
    pub fn read(
        &self,
        symbols: &[String],
        fields: &[String],
        range: TimeRange,
        as_of: Option<i64>,
    ) -> Vec<Row> {
        let columns: Vec<usize> =
            fields.iter().filter_map(|f| self.fields.iter().position(|known| known == f)).collect();
        let mut latest: BTreeMap<(&str, i64), Known<'_>> = BTreeMap::new();
        for ((symbol, ts, known_at), values) in &self.rows {
            let wanted = symbols.iter().any(|s| s == symbol) && range.contains(*ts);
            if wanted && as_of.is_none_or(|as_of| *known_at <= as_of) {
                // Within a (symbol, ts), keys ascend by known_at, so the last one stays.
                latest.insert((symbol, *ts), (*known_at, values.as_ref()));
            }
        }
        latest
            .into_iter()
            .filter_map(|((symbol, ts), (known_at, values))| {
                let values = values?;
                let values = columns.iter().map(|&c| values[c]).collect();
                Some(Row { symbol: symbol.to_owned(), ts, known_at, values })
            })
            .collect()
    }
}
