//! Which column of a file is the symbol, the time, and which field: pure, from the names alone.

use trellis_proto::FieldName;

use super::{FieldChoice, ImportSpec, problem::ImportError};

/// Names that a time column commonly has, tried in this order where the caller names none.
const TS_NAMES: [&str; 4] = ["ts", "timestamp", "date", "datetime"];
/// The same for the symbol column.
const SYMBOL_NAMES: [&str; 2] = ["symbol", "ticker"];

/// What the columns of one file are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// As the file has them, for messages; a nameless one by its position.
    pub(crate) names: Vec<String>,
    /// `None`: the symbol is a constant.
    pub(crate) symbol: Option<usize>,
    pub(crate) ts: usize,
    pub(crate) known_at: Option<usize>,
    /// Fields in the order of the file, or of the caller's choice.
    pub(crate) fields: Vec<(FieldName, usize)>,
}

/// `Adj. Close`, `adj-close` and `AdjClose` -> `adj_close`; `OHLCV` -> `ohlcv`.
pub(crate) fn snake_case(name: &str) -> String {
    let chars: Vec<char> = name.chars().collect();
    let mut snake = String::with_capacity(name.len() + 4);
    for (i, &c) in chars.iter().enumerate() {
        if !c.is_alphanumeric() {
            if !snake.is_empty() && !snake.ends_with('_') {
                snake.push('_');
            }
            continue;
        }
        let before = i.checked_sub(1).map(|i| chars[i]);
        let word_starts = c.is_uppercase()
            && before.is_some_and(|b| {
                b.is_lowercase()
                    || b.is_ascii_digit()
                    || (b.is_uppercase() && chars.get(i + 1).is_some_and(|n| n.is_lowercase()))
            });
        if word_starts && !snake.ends_with('_') {
            snake.push('_');
        }
        snake.extend(c.to_lowercase());
    }
    while snake.ends_with('_') {
        snake.pop();
    }
    snake
}

/// An index that some tool wrote beside the data.
fn is_index(name: &str) -> bool {
    let number = |rest: &str| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit());
    name.is_empty()
        || name.strip_prefix("Unnamed: ").is_some_and(number)
        || name.strip_prefix("__index_level_").and_then(|n| n.strip_suffix("__")).is_some_and(number)
}

/// Finds the roles of the columns called `names` (of the file `file`).
pub(crate) fn resolve(file: &str, names: &[String], spec: &ImportSpec) -> Result<Header, ImportError> {
    let names: Vec<String> = names.iter().map(|n| n.trim().to_owned()).collect();
    let header = Columns { file, names: &names };
    for (i, name) in names.iter().enumerate() {
        if let Some(first) = names[..i].iter().position(|n| n == name).filter(|_| !is_index(name)) {
            return Err(ImportError::file(
                file,
                format!("has the column {name:?} twice, as columns {} and {}", first + 1, i + 1),
                "rename one in the file",
            ));
        }
    }
    let ts = match &spec.ts_column {
        Some(name) => header.find(name, "--ts-column")?,
        None => header.usual(&TS_NAMES, "time", "--ts-column NAME")?,
    };
    let symbol = match (&spec.symbol, &spec.symbol_column) {
        (Some(_), _) => None,
        (None, Some(name)) => Some(header.find(name, "--symbol-column")?),
        (None, None) => Some(header.usual(
            &SYMBOL_NAMES,
            "symbol",
            "--symbol-column NAME, or --symbol NAME if all rows are of one symbol",
        )?),
    };
    let known_at =
        spec.known_at_column.as_ref().map(|name| header.find(name, "--known-at-column")).transpose()?;
    let keys: Vec<usize> = symbol.into_iter().chain([ts]).chain(known_at).collect();
    let fields = if spec.fields.is_empty() {
        header.all_fields(&keys)?
    } else {
        header.chosen_fields(&spec.fields)?
    };
    let mut used: Vec<usize> = keys.iter().copied().chain(fields.iter().map(|(_, column)| *column)).collect();
    used.sort_unstable();
    if let Some(twice) = used.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(ImportError::options(
            format!("the column {:?} of {file} is used twice", names[twice[0]]),
            "a column is the symbol, the time, the knowledge time or one field",
        ));
    }
    let shown = names
        .iter()
        .enumerate()
        .map(|(i, name)| if name.is_empty() { format!("column {}", i + 1) } else { name.clone() })
        .collect();
    Ok(Header { names: shown, symbol, ts, known_at, fields })
}

struct Columns<'a> {
    file: &'a str,
    names: &'a [String],
}

impl Columns<'_> {
    fn list(&self) -> String {
        let names: Vec<String> = self.names.iter().map(|n| format!("{n:?}")).collect();
        format!("the columns of {} are {}", self.file, names.join(", "))
    }

    /// The column that somebody called `wanted`: exactly, or else in lower snake case.
    fn find(&self, wanted: &str, option: &str) -> Result<usize, ImportError> {
        let wanted = wanted.trim();
        let matches = |test: &dyn Fn(&str) -> bool| -> Vec<usize> {
            (0..self.names.len()).filter(|&i| test(&self.names[i])).collect()
        };
        let exact = matches(&|name| name == wanted);
        let found = if exact.is_empty() && !wanted.is_empty() {
            matches(&|name| !name.is_empty() && snake_case(name) == snake_case(wanted))
        } else {
            exact
        };
        match found.as_slice() {
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
        for (i, name) in self.names.iter().enumerate() {
            if keys.contains(&i) || is_index(name) || name == "_" {
                continue;
            }
            let field = FieldName::new(snake_case(name)).map_err(|e| {
                ImportError::options(
                    format!("the column {name:?} of {} gives no field: {}", self.file, e.message()),
                    format!(
                        "choose and rename columns with --fields, for example --fields close=Close,{}",
                        example(name)
                    ),
                )
            })?;
            if let Some((_, first)) = fields.iter().find(|(known, _)| *known == field) {
                return Err(ImportError::options(
                    format!(
                        "the columns {:?} and {name:?} of {} would both be the field {field}",
                        self.names[*first], self.file
                    ),
                    "choose and rename columns with --fields",
                ));
            }
            fields.push((field, i));
        }
        Ok(fields)
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

fn example(name: &str) -> String {
    let plain: String = snake_case(name).chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    format!("x_{plain}={name}")
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
    }
}
