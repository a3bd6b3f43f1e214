//! A read request that is consistent in itself. The head checks that the dataset, its fields and symbols exist.

use crate::{
    error::{Code, Error, Result},
    name::{DatasetName, FieldName, Symbol},
    pb,
    range::TimeRange,
    spec::FIELDS_MAX,
};

/// Most symbols listed in one request: a message of about 1 MiB. `*` has no such limit.
pub const SYMBOLS_MAX: usize = 20_000;

/// The symbols.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Symbols {
    /// Every symbol of the dataset.
    All,
    /// The listed symbols: sorted, each once, at least one.
    List(Vec<Symbol>),
}

impl Symbols {
    /// Sorts and checks a list of symbols; `["*"]` is [`Symbols::All`].
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] for an empty list (one that is empty by mistake must not read every symbol), a bad name, `*`
    /// beside other symbols, or more than [`SYMBOLS_MAX`]. A symbol that is named twice is read once.
    pub fn new<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Result<Self> {
        let mut all = false;
        let mut list = Vec::new();
        for name in names {
            match name.as_ref() {
                "*" => all = true,
                name => list.push(Symbol::new(name)?),
            }
        }
        match (all, list.len()) {
            (true, 0) => return Ok(Self::All),
            (true, _) => {
                return Err(Error::new(Code::InvalidRequest, "\"*\" stands beside other symbols")
                    .hint("ask for [\"*\"] alone, or for the symbols by name"));
            }
            (false, 0) => {
                return Err(Error::new(Code::InvalidRequest, "the list of symbols is empty")
                    .hint("ask for [\"*\"] to read every symbol"));
            }
            (false, n) if n > SYMBOLS_MAX => {
                return Err(Error::new(
                    Code::TooLarge,
                    format!("{n} symbols in one request; at most {SYMBOLS_MAX} are allowed"),
                )
                .hint("ask for [\"*\"], or send several requests"));
            }
            _ => {}
        }
        list.sort_unstable();
        list.dedup();
        Ok(Self::List(list))
    }
}

/// A read request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeriesQuery {
    /// The dataset.
    pub dataset: DatasetName,
    /// The fields in the order of the answer; empty: all, in the order of the schema.
    pub fields: Vec<FieldName>,
    /// The symbols.
    pub symbols: Symbols,
    /// The event times.
    pub range: TimeRange,
    /// The knowledge time; `None`: the latest.
    pub as_of: Option<i64>,
    /// Whether rows that may not be the latest are accepted.
    pub allow_stale: bool,
    /// Whether the answer has a `known_at` column.
    pub known_at: bool,
    /// Most rows of the answer; 0: the head's limit.
    pub rows_max: u64,
}

impl SeriesQuery {
    /// A request for every field and row of `symbols`, as of the latest.
    #[must_use]
    pub fn new(dataset: DatasetName, symbols: Symbols) -> Self {
        Self {
            dataset,
            fields: Vec::new(),
            symbols,
            range: TimeRange::ALL,
            as_of: None,
            allow_stale: false,
            known_at: false,
            rows_max: 0,
        }
    }
}

impl TryFrom<pb::SeriesRequest> for SeriesQuery {
    type Error = Error;

    fn try_from(wire: pb::SeriesRequest) -> Result<Self> {
        let dataset = DatasetName::new(wire.dataset)?;
        let refuse = |code, why: String| Err(Error::new(code, why).dataset(&dataset));
        if wire.fields.len() > FIELDS_MAX {
            let why =
                format!("{} fields in one request; at most {FIELDS_MAX} are allowed", wire.fields.len());
            return refuse(Code::TooLarge, why);
        }
        let fields = wire.fields.into_iter().map(FieldName::new).collect::<Result<Vec<_>>>()?;
        let mut names: Vec<&FieldName> = fields.iter().collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return refuse(Code::InvalidRequest, format!("the field {} is asked for twice", twice[0]));
        }
        let options = wire.options.unwrap_or_default();
        Ok(Self {
            symbols: Symbols::new(wire.symbols).map_err(|e| e.dataset(&dataset))?,
            range: TimeRange::new(wire.start_ns, wire.end_ns).map_err(|e| e.dataset(&dataset))?,
            dataset,
            fields,
            as_of: wire.as_of_ns,
            allow_stale: options.allow_stale,
            known_at: options.known_at,
            rows_max: options.rows_max,
        })
    }
}

impl From<&SeriesQuery> for pb::SeriesRequest {
    fn from(query: &SeriesQuery) -> Self {
        Self {
            dataset: query.dataset.to_string(),
            fields: query.fields.iter().map(FieldName::to_string).collect(),
            symbols: match &query.symbols {
                Symbols::All => vec!["*".to_owned()],
                Symbols::List(list) => list.iter().map(Symbol::to_string).collect(),
            },
            start_ns: query.range.start,
            end_ns: query.range.end,
            as_of_ns: query.as_of,
            options: Some(pb::ReadOptions {
                allow_stale: query.allow_stale,
                known_at: query.known_at,
                rows_max: query.rows_max,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_list_of_symbols_does_not_read_the_world() {
        assert_eq!(Symbols::new(Vec::<&str>::new()).unwrap_err().code(), Code::InvalidRequest);
        assert_eq!(Symbols::new(["*"]).unwrap(), Symbols::All);
        assert!(Symbols::new(["*", "AMZN"]).is_err());
    }

    #[test]
    fn symbols_are_sorted_and_read_once() {
        let Symbols::List(list) = Symbols::new(["B", "A", "B"]).unwrap() else { panic!("a list") };
        assert_eq!(list.iter().map(Symbol::as_str).collect::<Vec<_>>(), ["A", "B"]);
    }

    #[test]
    fn a_field_asked_for_twice_is_refused() {
        let wire = pb::SeriesRequest {
            dataset: "equities.daily".into(),
            fields: vec!["close".into(), "open".into(), "close".into()],
            symbols: vec!["AMZN".into()],
            ..Default::default()
        };
        let error = SeriesQuery::try_from(wire).unwrap_err();
        assert_eq!(error.code(), Code::InvalidRequest);
        assert!(error.message().contains("close"));
    }
}
