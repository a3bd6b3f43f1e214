//! The roles of a file's columns (symbol, time, field), from their names alone. Pure.

use trellis_proto::{FieldName, Symbol};

use super::{
    names::{shell, snake_case},
    spec::{FieldChoice, ImportSpec},
};
use crate::{files::RETRACTED, import::told::ImportError};

/// Names that a time column commonly has, tried in this order where the caller names none.
const TS_NAMES: [&str; 4] = ["ts", "timestamp", "date", "datetime"];
/// The same for the symbol column.
const SYMBOL_NAMES: [&str; 2] = ["symbol", "ticker"];

/// What the columns of one file are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// The names in the file, for messages; a nameless column has its position.
    pub(crate) names: Vec<String>,
    /// `None`: the symbol is a constant, or the columns are symbols.
    pub(crate) symbol: Option<usize>,
    pub(crate) ts: usize,
    /// The column of the time of the day, if there is one.
    pub(crate) time: Option<usize>,
    pub(crate) known_at: Option<usize>,
    /// Fields in the order of the file, or of the caller's choice. With tickers: the one field, at the first of them.
    pub(crate) fields: Vec<(FieldName, usize)>,
    /// The columns that are symbols.
    pub(crate) tickers: Vec<usize>,
    /// Columns with the index of another tool; they are left out.
    pub(crate) left_out: Vec<usize>,
}

impl Header {
    /// The columns whose cells are values of the field at `place`.
    pub(crate) fn columns_of(&self, place: usize) -> &[usize] {
        if self.tickers.is_empty() { std::slice::from_ref(&self.fields[place].1) } else { &self.tickers }
    }

    /// The column of the time, in words.
    pub(crate) fn ts_name(&self) -> String {
        match self.time {
            Some(time) => format!("{},{}", self.names[self.ts], self.names[time]),
            None => self.names[self.ts].clone(),
        }
    }
}

/// The field that a column called `name` becomes.
fn field_of(name: &str) -> Result<FieldName, String> {
    match FieldName::new(snake_case(name)) {
        Ok(field) if field.as_str() == RETRACTED => Err("the lake marks retractions so".to_owned()),
        Ok(field) => Ok(field),
        Err(e) => Err(e.message().to_owned()),
    }
}

/// Whether a column is an index that another tool wrote.
fn is_index(name: &str) -> bool {
    let number = |rest: &str| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit());
    name.is_empty()
        || name.strip_prefix("Unnamed: ").is_some_and(number)
        || name.strip_prefix("__index_level_").and_then(|n| n.strip_suffix("__")).is_some_and(number)
}

/// Finds the roles of the columns called `names` (of the file `file`).
pub(crate) fn resolve(file: &str, names: &[String], spec: &ImportSpec) -> Result<Header, ImportError> {
    let names: Vec<String> = names.iter().map(|n| n.trim().to_owned()).collect();
    let header = Columns { file, names: &names, given: !spec.columns.is_empty() };
    for (i, name) in names.iter().enumerate() {
        let left_out = is_index(name) || (header.given && name == "_");
        if let Some(first) = names[..i].iter().position(|n| n == name).filter(|_| !left_out) {
            return Err(ImportError::file(
                file,
                format!("has the column {name:?} twice, as columns {} and {}", first + 1, i + 1),
                "rename one in the file; of a CSV file, or skip its header and name the columns yourself with \
                 --skip-rows and --columns",
            ));
        }
    }
    let (ts, time) = header.time(spec)?;
    let symbol = match (&spec.symbol, &spec.symbol_column) {
        _ if spec.symbol.is_some() || spec.symbol_from_name.is_some() || spec.wide.is_some() => None,
        (_, Some(name)) => Some(header.find(name, "--symbol-column")?),
        (_, None) => Some(header.usual(
            &SYMBOL_NAMES,
            "symbol",
            "--symbol-column NAME; --symbol NAME if all rows are of one symbol; --symbol-from-name '{}' if the file \
             is named by it; --wide FIELD if each column is a symbol",
        )?),
    };
    let known_at =
        spec.known_at_column.as_ref().map(|name| header.find(name, "--known-at-column")).transpose()?;
    let keys: Vec<usize> = symbol.into_iter().chain([ts]).chain(time).chain(known_at).collect();
    let tickers = if spec.wide.is_some() { header.tickers(&keys)? } else { Vec::new() };
    let fields = match (&spec.wide, tickers.first()) {
        (Some(field), Some(first)) => vec![(field.clone(), *first)],
        _ if spec.retract => Vec::new(),
        _ if spec.fields.is_empty() => header.all_fields(&keys)?,
        _ => header.chosen_fields(&spec.fields)?,
    };
    let mut used: Vec<usize> = keys.iter().copied().chain(fields.iter().map(|(_, column)| *column)).collect();
    used.sort_unstable();
    if let Some(twice) = used.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(ImportError::options(
            format!("the column {:?} of {file} is used twice", names[twice[0]]),
            "a column is the symbol, the time, the knowledge time or one field",
        ));
    }
    let left_out: Vec<usize> = match spec.fields.is_empty() {
        true => (0..names.len()).filter(|i| is_index(&names[*i]) && !used.contains(i)).collect(),
        false => Vec::new(),
    };
    let shown = names
        .iter()
        .enumerate()
        .map(|(i, name)| if name.is_empty() { format!("column {}", i + 1) } else { name.clone() })
        .collect();
    Ok(Header { names: shown, symbol, ts, time, known_at, fields, tickers, left_out })
}

/// Whether one of `names` is a usual name of a time column. A line with such a name is probably a header.
pub(crate) fn has_time(names: &[String]) -> bool {
    names.iter().any(|name| is_time(name))
}

fn is_time(name: &str) -> bool {
    TS_NAMES.contains(&snake_case(name).as_str())
}

struct Columns<'a> {
    file: &'a str,
    names: &'a [String],
    /// The caller named them.
    given: bool,
}

impl Columns<'_> {
    fn list(&self) -> String {
        let names: Vec<String> = self.names.iter().map(|n| format!("{n:?}")).collect();
        format!("the columns of {} are {}", self.file, names.join(", "))
    }

    /// The column of the time, and that of the time of the day if there are two.
    fn time(&self, spec: &ImportSpec) -> Result<(usize, Option<usize>), ImportError> {
        let Some(said) = &spec.ts_column else {
            let option = if self.names.iter().any(String::is_empty) {
                "--ts-column NAME ('' for the column without a name)"
            } else {
                "--ts-column NAME"
            };
            let ts = self.usual(&TS_NAMES, "time", option)?;
            let beside = (0..self.names.len()).find(|&i| snake_case(&self.names[i]) == "time");
            if let (Some(time), "date") = (beside, snake_case(&self.names[ts]).as_str()) {
                let (date, time) = (&self.names[ts], &self.names[time]);
                return Err(ImportError::options(
                    format!("{} has a column {date:?} and a column {time:?}", self.file),
                    format!(
                        "say --ts-column {} if both are the time of a row, or --ts-column {} if the date alone is",
                        shell(&format!("{date},{time}")),
                        shell(date)
                    ),
                ));
            }
            let times: Vec<&String> = self.names.iter().filter(|name| is_time(name)).collect();
            if let [first, second, ..] = times.as_slice() {
                let each: Vec<String> =
                    times.iter().map(|name| format!("--ts-column {}", shell(name))).collect();
                return Err(ImportError::options(
                    format!("{} has a column {first:?} and a column {second:?}", self.file),
                    format!("say which is the time of a row: {}", each.join(" or ")),
                ));
            }
            return Ok((ts, None));
        };
        match (self.matching(said).as_slice(), said.split_once(',')) {
            ([], Some((date, time))) => {
                Ok((self.find(date, "--ts-column")?, Some(self.find(time, "--ts-column")?)))
            }
            _ => Ok((self.find(said, "--ts-column")?, None)),
        }
    }

    fn matching(&self, wanted: &str) -> Vec<usize> {
        let wanted = wanted.trim();
        let matches = |test: &dyn Fn(&str) -> bool| -> Vec<usize> {
            (0..self.names.len()).filter(|&i| test(&self.names[i])).collect()
        };
        let exact = matches(&|name| name == wanted);
        if exact.is_empty() && !wanted.is_empty() {
            matches(&|name| !name.is_empty() && snake_case(name) == snake_case(wanted))
        } else {
            exact
        }
    }

    /// The column with the name `wanted`: exactly, or else in lower snake case.
    fn find(&self, wanted: &str, option: &str) -> Result<usize, ImportError> {
        let wanted = wanted.trim();
        match self.matching(wanted).as_slice() {
            [one] => Ok(*one),
            [] => Err(ImportError::options(
                format!("{option}: {} has no column {wanted:?}", self.file),
                self.list(),
            )),
            [first, second, ..] => Err(ImportError::options(
                format!(
                    "{option}: {wanted:?} could be column {} or column {} of {}",
                    first + 1,
                    second + 1,
                    self.file
                ),
                self.list(),
            )),
        }
    }

    fn usual(&self, usual: &[&str], what: &str, option: &str) -> Result<usize, ImportError> {
        usual
            .iter()
            .find_map(|usual| {
                let mut found = (0..self.names.len()).filter(|&i| snake_case(&self.names[i]) == *usual);
                found.next().filter(|_| found.next().is_none())
            })
            .ok_or_else(|| {
                ImportError::options(
                    format!("which column of {} holds the {what} is not said", self.file),
                    format!("say {option}; {}", self.list()),
                )
            })
    }

    fn all_fields(&self, keys: &[usize]) -> Result<Vec<(FieldName, usize)>, ImportError> {
        let mut fields: Vec<(FieldName, usize)> = Vec::new();
        for i in self.of_fields(keys) {
            let name = &self.names[i];
            let field = match field_of(name) {
                Ok(field) => field,
                Err(why) => {
                    let known = snake_case(name) == "known_at";
                    let or = if known {
                        format!(
                            "if it says when each row became known: --known-at-column {}; otherwise ",
                            shell(name)
                        )
                    } else {
                        String::new()
                    };
                    return Err(ImportError::options(
                        format!("the column {name:?} of {} gives no field: {why}", self.file),
                        format!("{or}choose and rename columns: --fields {}", self.list_of_fields(keys)),
                    ));
                }
            };
            if let Some((_, first)) = fields.iter().find(|(known, _)| *known == field) {
                return Err(ImportError::options(
                    format!(
                        "the columns {:?} and {name:?} of {} would both be the field {field}",
                        self.names[*first], self.file
                    ),
                    format!("choose and rename columns: --fields {}", self.list_of_fields(keys)),
                ));
            }
            fields.push((field, i));
        }
        Ok(fields)
    }

    /// The columns that are fields by default.
    fn of_fields<'a>(&'a self, keys: &'a [usize]) -> impl Iterator<Item = usize> + 'a {
        (0..self.names.len()).filter(|i| {
            let name = self.names[*i].as_str();
            let left_out = self.given && name == "_";
            !(keys.contains(i) || is_index(name) || left_out)
        })
    }

    /// A value of `--fields` that gives every column a valid field name.
    fn list_of_fields(&self, keys: &[usize]) -> String {
        let mut taken: Vec<String> = Vec::new();
        let mut items = Vec::new();
        // a name that the list would cut has another
        let typed = |name: &str| if name.contains([',', '=']) { snake_case(name) } else { name.to_owned() };
        for i in self.of_fields(keys) {
            let name = &self.names[i];
            let mut field = snake_case(name);
            if field_of(name).is_err() || taken.contains(&field) {
                let plain: String =
                    field.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                field = format!("x_{plain}");
                while taken.contains(&field) {
                    field.push('_');
                }
                items.push(format!("{field}={}", typed(name)));
            } else {
                items.push(typed(name));
            }
            taken.push(field);
        }
        shell(&items.join(","))
    }

    /// Every column but the keys, as a symbol.
    fn tickers(&self, keys: &[usize]) -> Result<Vec<usize>, ImportError> {
        let found: Vec<usize> = self.of_fields(keys).collect();
        for &i in &found {
            Symbol::new(&self.names[i]).map_err(|e| {
                ImportError::options(
                    format!(
                        "--wide: the column {:?} of {} is no symbol: {}",
                        self.names[i],
                        self.file,
                        e.message()
                    ),
                    "rename it in the file",
                )
            })?;
        }
        if found.is_empty() {
            return Err(ImportError::options(
                format!("--wide: {} has no column beside the time", self.file),
                self.list(),
            ));
        }
        Ok(found)
    }

    fn chosen_fields(&self, choices: &[FieldChoice]) -> Result<Vec<(FieldName, usize)>, ImportError> {
        let mut fields: Vec<(FieldName, usize)> = Vec::new();
        for choice in choices {
            if fields.iter().any(|(name, _)| *name == choice.field) {
                return Err(ImportError::options(format!("--fields names {} twice", choice.field), ""));
            }
            fields.push((choice.field.clone(), self.find(&choice.column, "--fields")?));
        }
        Ok(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    fn fields_of(header: &Header) -> Vec<&str> {
        header.fields.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn field_names_are_the_headers_in_lower_snake_case() {
        for (name, snake) in [
            ("Adj. Close", "adj_close"),
            ("Ex-Dividend", "ex_dividend"),
            ("Split Ratio", "split_ratio"),
            ("AdjClose", "adj_close"),
            ("ExDividend", "ex_dividend"),
            ("OHLCV", "ohlcv"),
            ("VWAPPrice", "vwap_price"),
            ("close (USD)", "close_usd"),
            ("SMA20Day", "sma20_day"),
            ("already_snake", "already_snake"),
        ] {
            assert_eq!(snake_case(name), snake, "{name}");
        }
    }

    #[test]
    fn keys_are_found_by_name_and_an_index_is_left_out() {
        let spec = ImportSpec { symbol_column: Some("Stock".into()), ..ImportSpec::default() };
        let header = resolve("f", &names(&["", "Date", "Open", "Unnamed: 3", "Stock"]), &spec).unwrap();
        assert_eq!((header.symbol, header.ts), (Some(4), 1));
        assert_eq!(fields_of(&header), ["open"]);
        let spec = ImportSpec {
            symbol: Some("XNYS".into()),
            ts_column: Some(String::new()),
            ..ImportSpec::default()
        };
        assert_eq!(resolve("f", &names(&["", "open"]), &spec).unwrap().ts, 0);
    }

    #[test]
    fn a_date_beside_a_time_is_asked_about() {
        let spec = ImportSpec { symbol: Some("A".into()), ..ImportSpec::default() };
        let columns = names(&["Date", "Time", "close"]);
        let error = resolve("f", &columns, &spec).unwrap_err();
        assert!(error.hint().contains("--ts-column Date,Time"), "{}", error.hint());
        let both = ImportSpec { ts_column: Some("Date,Time".into()), ..spec.clone() };
        let header = resolve("f", &columns, &both).unwrap();
        assert_eq!((header.ts, header.time, fields_of(&header)), (0, Some(1), vec!["close"]));
        let date = ImportSpec { ts_column: Some("Date".into()), ..spec };
        assert_eq!(fields_of(&resolve("f", &columns, &date).unwrap()), ["time", "close"]);
    }

    #[test]
    fn two_columns_of_times_are_asked_about() {
        let spec = ImportSpec { symbol: Some("A".into()), ..ImportSpec::default() };
        let columns = names(&["Date", "timestamp", "close"]);
        let error = resolve("f", &columns, &spec).unwrap_err();
        assert!(error.hint().contains("--ts-column Date or --ts-column timestamp"), "{}", error.hint());
        let date = ImportSpec { ts_column: Some("Date".into()), ..spec };
        assert_eq!(fields_of(&resolve("f", &columns, &date).unwrap()), ["timestamp", "close"]);
    }

    #[test]
    fn wide_columns_are_symbols() {
        let spec = ImportSpec { wide: Some(FieldName::new("close").unwrap()), ..ImportSpec::default() };
        let header = resolve("f", &names(&["", "Date", "AAPL", "BRK.B"]), &spec).unwrap();
        assert_eq!((header.tickers.as_slice(), fields_of(&header)), (&[2, 3][..], vec!["close"]));
        assert!(resolve("f", &names(&["Date"]), &spec).is_err());
    }

    #[test]
    fn two_headers_of_one_field_are_refused_with_both() {
        let spec = ImportSpec { symbol: Some("A".into()), ..ImportSpec::default() };
        let error = resolve("f", &names(&["date", "Adj Close", "adj_close"]), &spec).unwrap_err().to_string();
        assert!(error.contains("\"Adj Close\"") && error.contains("\"adj_close\""), "{error}");
        let error = resolve("f", &names(&["date", "close", "close"]), &spec).unwrap_err().to_string();
        assert!(error.contains("columns 2 and 3"), "{error}");
    }

    #[test]
    fn what_is_not_said_or_not_there_is_answered_with_the_columns() {
        let none = ImportSpec::default();
        let error = resolve("f", &names(&["date", "close"]), &none).unwrap_err();
        assert!(error.to_string().contains("symbol") && error.hint().contains("\"close\""), "{error}");
        let spec = ImportSpec { symbol_column: Some("Nam".into()), ..ImportSpec::default() };
        let error = resolve("f", &names(&["date", "Name"]), &spec).unwrap_err();
        assert!(error.to_string().contains("\"Nam\"") && error.hint().contains("\"Name\""), "{error}");
    }

    #[test]
    fn chosen_fields_are_renamed_and_ordered_as_chosen() {
        let spec = ImportSpec {
            symbol: Some("A".into()),
            fields: FieldChoice::parse_list("last=Close, open").unwrap(),
            ..ImportSpec::default()
        };
        let header = resolve("f", &names(&["date", "Open", "Close", "known_at"]), &spec).unwrap();
        assert_eq!(fields_of(&header), ["last", "open"]);
        let all = ImportSpec { fields: Vec::new(), ..spec };
        let error = resolve("f", &names(&["date", "Open", "known_at"]), &all).unwrap_err();
        assert!(error.to_string().contains("\"known_at\""), "{error}");
        assert!(error.hint().contains("--known-at-column known_at"), "{}", error.hint());
        assert!(error.hint().ends_with("--fields Open,x_known_at=known_at"), "{}", error.hint());
        assert!(
            resolve("f", &names(&["date", "_"]), &all).is_err(),
            "_ leaves out only where names are given"
        );
    }
}
