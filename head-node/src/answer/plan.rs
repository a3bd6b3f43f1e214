//! The plan of a request: finds its fields and symbols, cuts its range to the dataset's bounds, and estimates its size before anything is
//! read. Pure: facts in, a plan or a refusal out.

use std::ops::Range;

use trellis_proto::{
    Code, DatasetSpec, Error, FieldName, Result, SeriesQuery, Symbol, Symbols, TimeRange, name::Suggest,
};

use super::slice::Window;

/// An estimate assumes that rows are spread evenly over symbols and time, which real rows are not. So a request is refused unread only if
/// its estimate is this many times over the limit. Rows of other requests are counted while they are read.
const ESTIMATE_SLACK: f64 = 2.0;

/// A series of more bytes is read in steps of this many, so that a reader that stops in the middle holds two steps in memory and not the
/// whole series. (The engine bounds how many series are read ahead.)
pub(crate) const STEP_BYTES: u64 = 32 << 20;

/// Most steps of one answer: each is an entry of a list, and has at least one chunk.
const STEPS_MAX: f64 = 65_536.0;

/// The facts of a dataset that a plan needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) spec: &'a DatasetSpec,
    /// Rows of all symbols, every version counted.
    pub(crate) rows: u64,
    /// Event times of the first and the last row; `None`: there are no rows.
    pub(crate) first_ts: Option<i64>,
    pub(crate) last_ts: Option<i64>,
    /// The known ones, sorted: with all that the request names and the dataset has.
    pub(crate) symbols: &'a [Symbol],
    /// Symbols of the dataset, also of those that are not known.
    pub(crate) symbols_of_all: u64,
}

/// Most rows and bytes of one answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AnswerLimits {
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
}

/// A request that can be served.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    /// Positions in the dataset's fields, in the order asked.
    pub(crate) fields: Vec<usize>,
    /// Sorted; the answer's dictionary.
    pub(crate) symbols: Vec<Symbol>,
    /// The range asked for, cut to the dataset's bounds, and the knowledge time.
    pub(crate) window: Window,
    /// Most rows of this answer.
    pub(crate) rows_max: u64,
    /// Estimated rows.
    pub(crate) rows: f64,
}

/// A part of an answer that is one read: all symbols over the whole range, or one symbol over a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// Positions in the plan's symbols.
    pub(crate) symbols: Range<usize>,
    pub(crate) start: i64,
    pub(crate) end: i64,
}

/// The error of an answer with too many rows.
pub(crate) fn too_many_rows(query: &SeriesQuery, max: u64, found: &str) -> Error {
    let whose = if query.rows_max == max { "the request allows" } else { "the limit is" };
    by_parts(query, format!("the answer has {found} rows; {whose} {max}"))
}

/// The error of an answer with too many bytes.
pub(crate) fn too_many_bytes(query: &SeriesQuery, max: u64, found: &str) -> Error {
    by_parts(query, format!("the answer has {found}; the limit is {}", size(max as f64)))
}

fn by_parts(query: &SeriesQuery, message: String) -> Error {
    Error::new(Code::TooLarge, message)
        .hint("ask by parts: fewer symbols, fewer fields, or one part of the range after the other")
        .dataset(&query.dataset)
        .range(query.range)
}

fn size(bytes: f64) -> String {
    match bytes {
        b if b >= (1u64 << 30) as f64 => format!("{:.1} GiB", b / (1u64 << 30) as f64),
        b if b >= (1u64 << 20) as f64 => format!("{:.1} MiB", b / (1u64 << 20) as f64),
        b => format!("{b:.0} bytes"),
    }
}

/// Bytes of a row of the answer; of text a guess.
fn row_bytes(spec: &DatasetSpec, fields: &[usize], known_at: bool) -> usize {
    let of_fields: usize = fields.iter().map(|&i| spec.fields[i].data_type.width()).sum();
    size_of::<i32>() + size_of::<i64>() + of_fields + if known_at { size_of::<i64>() } else { 0 }
}

/// The position of each requested field in the dataset, in the order of the request. A request without fields gets all.
///
/// # Errors
/// [`Code::UnknownField`] with the nearest name.
pub(crate) fn field_positions(spec: &DatasetSpec, asked: &[FieldName]) -> Result<Vec<usize>> {
    if asked.is_empty() {
        return Ok((0..spec.fields.len()).collect());
    }
    asked
        .iter()
        .map(|name| {
            spec.field(name.as_str()).map(|(position, _)| position).ok_or_else(|| {
                let known = spec.fields.iter().map(|field| field.name.as_str());
                let hint = Suggest::default().among(name.as_str(), "fields", known);
                Error::new(Code::UnknownField, format!("{} has no field {name}", spec.dataset))
                    .hint(hint)
                    .dataset(&spec.dataset)
            })
        })
        .collect()
}

fn symbols(facts: Facts<'_>, asked: &Symbols) -> Result<Vec<Symbol>> {
    let Facts { spec, symbols: known, .. } = facts;
    let Symbols::List(asked) = asked else { return Ok(known.to_vec()) };
    if let Some(unknown) = asked.iter().find(|symbol| known.binary_search(symbol).is_err()) {
        let several: Vec<&str> = unknown.as_str().split(',').map(str::trim).collect();
        let hint = match Suggest::default().nearest(unknown.as_str(), known.iter().map(Symbol::as_str)) {
            _ if several.len() > 1 => format!("give several symbols as a list: {several:?}"),
            Some(near) => format!("did you mean {near}?"),
            None => format!("{} has {} symbols; \"*\" reads them all", spec.dataset, facts.symbols_of_all),
        };
        return Err(Error::new(Code::UnknownSymbol, format!("{} has no symbol {unknown}", spec.dataset))
            .hint(hint)
            .dataset(&spec.dataset)
            .symbol(unknown));
    }
    Ok(asked.clone())
}

/// The range asked for, cut to the dataset's bounds: an open end must not become a chunk for every week since 1677.
fn window(query: &SeriesQuery, facts: Facts<'_>) -> Window {
    let (Some(first), Some(last)) = (facts.first_ts, facts.last_ts) else {
        return Window { start: 0, end: 0, as_of: query.as_of };
    };
    let TimeRange { start, end } = query.range;
    let start = start.unwrap_or(first).max(first);
    let end = end.unwrap_or(i64::MAX).min(last.saturating_add(1));
    Window { start, end: end.max(start), as_of: query.as_of }
}

fn estimate(facts: Facts<'_>, symbols: usize, window: &Window) -> f64 {
    let (Some(first), Some(last)) = (facts.first_ts, facts.last_ts) else { return 0.0 };
    if window.start >= window.end || facts.symbols_of_all == 0 {
        return 0.0;
    }
    let of_time = (window.end as f64 - window.start as f64) / (last as f64 - first as f64 + 1.0);
    let of_symbols = symbols as f64 / facts.symbols_of_all as f64;
    facts.rows as f64 * of_time.min(1.0) * of_symbols
}

impl Plan {
    /// Plans a request.
    ///
    /// # Errors
    /// [`Code::UnknownField`] and [`Code::UnknownSymbol`] with the nearest names, [`Code::TooLarge`] with how to ask by parts.
    pub(crate) fn new(query: &SeriesQuery, facts: Facts<'_>, limits: AnswerLimits) -> Result<Self> {
        let fields = field_positions(facts.spec, &query.fields)?;
        let symbols = symbols(facts, &query.symbols)?;
        let window = window(query, facts);
        let rows_max = if query.rows_max == 0 { limits.rows } else { query.rows_max.min(limits.rows) };
        let rows = estimate(facts, symbols.len(), &window);
        let plan = Self { fields, symbols, window, rows_max, rows };
        let row_bytes = row_bytes(facts.spec, &plan.fields, query.known_at) as f64;
        if rows > rows_max as f64 * ESTIMATE_SLACK {
            return Err(too_many_rows(query, rows_max, &format!("about {rows:.0}")));
        }
        if rows * row_bytes > limits.bytes as f64 * ESTIMATE_SLACK {
            return Err(too_many_bytes(query, limits.bytes, &format!("about {}", size(rows * row_bytes))));
        }
        Ok(plan)
    }

    /// Whether there is nothing to read.
    pub(crate) fn is_empty(&self) -> bool {
        self.window.start >= self.window.end || self.symbols.is_empty()
    }

    /// The steps in which to read an answer with rows of `row_bytes`, in the answer's order.
    pub(crate) fn steps(&self, spec: &DatasetSpec, row_bytes: usize) -> Vec<Step> {
        if self.is_empty() {
            return Vec::new();
        }
        let Window { start, end, .. } = self.window;
        let of_symbol = self.rows * row_bytes as f64 / self.symbols.len() as f64;
        if of_symbol <= STEP_BYTES as f64 {
            return vec![Step { symbols: 0..self.symbols.len(), start, end }];
        }
        // cut between chunks, so that no chunk is read twice
        let chunks = spec.chunk.cover(start, end);
        let cuts = (of_symbol / STEP_BYTES as f64).ceil().min(STEPS_MAX / self.symbols.len() as f64).max(1.0);
        let of_step = ((chunks.end - chunks.start) as f64 / cuts).ceil().max(1.0) as i64;
        let mut steps = Vec::new();
        for symbol in 0..self.symbols.len() {
            let mut chunk = chunks.start;
            while chunk < chunks.end {
                let next = chunk.saturating_add(of_step).min(chunks.end);
                steps.push(Step {
                    symbols: symbol..symbol + 1,
                    start: spec.chunk.start(chunk).max(start),
                    end: if next == chunks.end { end } else { spec.chunk.start(next) },
                });
                chunk = next;
            }
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use trellis_proto::{ChunkSpan, DatasetName, FieldType, spec::FieldSpec, time::DAY_NS};

    fn spec() -> DatasetSpec {
        let field = |name| FieldSpec {
            name: FieldName::new(name).unwrap(),
            data_type: FieldType::Float64,
            nullable: true,
        };
        let fields = ["open", "close", "volume"].map(field).into();
        DatasetSpec::new(
            DatasetName::new("equities.daily").unwrap(),
            fields,
            ChunkSpan::new(64 * DAY_NS).unwrap(),
        )
        .unwrap()
    }

    fn symbols(names: &[&str]) -> Vec<Symbol> {
        names.iter().map(|name| Symbol::new(name).unwrap()).collect()
    }

    fn query() -> SeriesQuery {
        SeriesQuery::new(DatasetName::new("equities.daily").unwrap(), Symbols::All)
    }

    const LIMITS: AnswerLimits = AnswerLimits { rows: 1_000_000, bytes: 1 << 30 };

    #[test]
    fn no_fields_named_are_all_in_the_order_of_the_schema_and_named_ones_in_theirs() {
        let named = |names: &[&str]| {
            let names: Vec<FieldName> = names.iter().map(|name| FieldName::new(name).unwrap()).collect();
            field_positions(&spec(), &names)
        };
        assert_eq!(named(&[]).unwrap(), [0, 1, 2]);
        assert_eq!(named(&["volume", "open"]).unwrap(), [2, 0]);
        let error = named(&["clse"]).unwrap_err();
        assert_eq!((error.code(), error.hint_text()), (Code::UnknownField, "did you mean close?"));
        assert_eq!(named(&["dividend"]).unwrap_err().hint_text(), "its fields are open, close, volume");
    }

    #[test]
    fn a_symbol_in_the_wrong_case_is_refused_with_the_right_one() {
        let (spec, known) = (spec(), symbols(&["AAPL", "AMZN", "IBM"]));
        let facts = Facts {
            spec: &spec,
            rows: 3,
            first_ts: Some(0),
            last_ts: Some(9),
            symbols: &known,
            symbols_of_all: 3,
        };
        let mut query = query();
        query.symbols = Symbols::new(["amzn"]).unwrap();
        let error = Plan::new(&query, facts, LIMITS).unwrap_err();
        assert_eq!((error.code(), error.place().1), (Code::UnknownSymbol, "amzn"));
        assert_eq!(error.hint_text(), "did you mean AMZN?");
        query.symbols = Symbols::new(["ZZZZZZ"]).unwrap();
        let error = Plan::new(&query, facts, LIMITS).unwrap_err();
        assert_eq!(error.hint_text(), "equities.daily has 3 symbols; \"*\" reads them all");
    }

    #[test]
    fn open_ends_are_the_datasets() {
        let (spec, known) = (spec(), symbols(&["A"]));
        let facts = Facts {
            spec: &spec,
            rows: 9,
            first_ts: Some(-50),
            last_ts: Some(100),
            symbols: &known,
            symbols_of_all: 1,
        };
        let window = |start, end| {
            let mut query = query();
            query.range = TimeRange { start, end };
            let window = Plan::new(&query, facts, LIMITS).unwrap().window;
            (window.start, window.end)
        };
        assert_eq!(window(None, None), (-50, 101));
        assert_eq!(window(Some(-9_999), Some(i64::MAX)), (-50, 101));
        assert_eq!(window(Some(7), Some(8)), (7, 8));
        let (start, end) = window(Some(500), Some(600));
        assert!(start >= end, "nothing there");
        let none = Facts { rows: 0, first_ts: None, last_ts: None, ..facts };
        let plan = Plan::new(&query(), none, LIMITS).unwrap();
        assert!(plan.is_empty() && plan.steps(&spec, 20).is_empty());
    }

    #[test]
    fn ten_gigabytes_are_refused_before_they_are_read() {
        let (spec, known) = (spec(), symbols(&["A", "B"]));
        let last = 3_650 * DAY_NS;
        let facts = Facts {
            spec: &spec,
            rows: 300_000_000,
            first_ts: Some(0),
            last_ts: Some(last),
            symbols: &known,
            symbols_of_all: 2,
        };
        let limits = AnswerLimits { rows: u64::MAX, bytes: 4 << 30 };
        let error = Plan::new(&query(), facts, limits).unwrap_err();
        assert_eq!(error.code(), Code::TooLarge);
        assert_eq!(error.message(), "the answer has about 10.1 GiB; the limit is 4.0 GiB");
        assert!(error.hint_text().contains("parts"));
        let mut part = query();
        part.range = TimeRange { start: Some(0), end: Some(last / 10) };
        assert!(Plan::new(&part, facts, limits).is_ok());
        part.rows_max = 1_000;
        assert!(Plan::new(&part, facts, limits).unwrap_err().message().contains("the request allows 1000"));
    }

    proptest! {
        #[test]
        fn steps_cover_the_range_once_in_order(
            count in 1usize..40, rows in 1u64..60_000_000, start in 0i64..400, days in 1i64..4_000,
        ) {
            let spec = spec();
            let names: Vec<String> = (0..count).map(|i| format!("S{i:03}")).collect();
            let known = symbols(&names.iter().map(String::as_str).collect::<Vec<_>>());
            let facts = Facts { spec: &spec, rows, first_ts: Some(0), last_ts: Some(4_400 * DAY_NS), symbols: &known, symbols_of_all: count as u64 };
            let mut query = query();
            query.range = TimeRange { start: Some(start * DAY_NS + 7), end: Some((start + days) * DAY_NS + 9) };
            let plan = Plan::new(&query, facts, AnswerLimits { rows: u64::MAX, bytes: u64::MAX }).unwrap();
            let steps = plan.steps(&spec, 36);
            let mut next = (0, plan.window.start);
            for step in &steps {
                prop_assert_eq!((step.symbols.start, step.start), next);
                prop_assert!(step.start < step.end && !step.symbols.is_empty());
                next = if step.end == plan.window.end {
                    (step.symbols.end, plan.window.start)
                } else {
                    prop_assert_eq!(step.symbols.len(), 1);
                    prop_assert_eq!(spec.chunk.start(spec.chunk.chunk_of(step.end)), step.end);
                    (step.symbols.start, step.end)
                };
            }
            prop_assert_eq!(next, (count, plan.window.start));
        }
    }
}
