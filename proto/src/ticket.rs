//! A read request as a Flight ticket: protobuf, or JSON of the same fields, so that any Flight client can read without our
//! package:
//!
//! ```json
//! {"dataset": "equities.daily", "fields": ["close"], "symbols": ["AMZN"],
//!  "start": "2006-08-10", "end": "2016-08-10", "as_of": null}
//! ```
//!
//! In JSON, times are ISO 8601 text or integer nanoseconds. A time beyond 64 bit nanoseconds is no bound. Without `fields`
//! the answer has all fields. `symbols` may be `"*"`. The options (`allow_stale`, `known_at`, `rows_max`) are keys of the
//! same object. An unknown key is refused, because a typing error must not widen an answer.

use bytes::Bytes;
use prost::Message;
use serde::Deserialize;

use crate::{
    error::{Code, Error, Result},
    name, pb,
    query::{SeriesQuery, Symbols},
    range::TimeRange,
    time,
};

/// Longest ticket in bytes: room for 20,000 symbols of usual length. It bounds the work before a request is refused.
pub const TICKET_BYTES_MAX: usize = 4 << 20;

/// Reads a ticket.
///
/// # Errors
/// [`Code::InvalidRequest`] if it has neither form or is not a valid request; [`Code::TooLarge`] if it is too long.
pub fn decode(ticket: &[u8]) -> Result<SeriesQuery> {
    if ticket.len() > TICKET_BYTES_MAX {
        return Err(Error::new(
            Code::TooLarge,
            format!("the ticket has {} bytes; at most {TICKET_BYTES_MAX} are allowed", ticket.len()),
        ));
    }
    // The first byte decides: no protobuf ticket starts with `{` (0x7b, a group of field 15).
    match ticket.iter().find(|byte| !byte.is_ascii_whitespace()) {
        None => Err(Error::new(Code::InvalidRequest, "the ticket is empty").hint(FORMS)),
        Some(b'{') => decode_json(ticket),
        Some(_) => {
            let wire = pb::SeriesRequest::decode(ticket).map_err(|error| {
                Error::new(Code::InvalidRequest, format!("the ticket cannot be read: {error}")).hint(FORMS)
            })?;
            SeriesQuery::try_from(wire)
        }
    }
}

/// Writes a request as a protobuf ticket.
#[must_use]
pub fn encode(query: &SeriesQuery) -> Bytes {
    pb::SeriesRequest::from(query).encode_to_vec().into()
}

const FORMS: &str = "a ticket is a trellis.v1.SeriesRequest in protobuf or JSON: \
    {\"dataset\": \"equities.daily\", \"fields\": [\"close\"], \"symbols\": [\"AMZN\"], \"start\": \"2006-08-10\", \"end\": \"2016-08-10\"}";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonTicket {
    dataset: String,
    #[serde(default)]
    fields: Option<Vec<String>>,
    #[serde(default)]
    symbols: Option<OneOrMany>,
    #[serde(default)]
    start: serde_json::Value,
    #[serde(default)]
    end: serde_json::Value,
    #[serde(default)]
    as_of: serde_json::Value,
    #[serde(default)]
    allow_stale: bool,
    #[serde(default)]
    known_at: bool,
    #[serde(default)]
    rows_max: u64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// ISO 8601 text or an integer as nanoseconds, without a check of the range. Errors name `key`.
fn time_of(value: serde_json::Value, key: &str) -> Result<Option<i128>> {
    use serde_json::Value;
    let number = match &value {
        Value::Null => return Ok(None),
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) if !number.to_string().contains(['.', 'e', 'E']) => Ok(number.to_string()),
        other => Err(Error::new(Code::InvalidRequest, format!("{other} is not a time"))
            .hint("a time is ISO 8601 text such as \"2016-08-10\", or integer nanoseconds")),
    };
    number.and_then(|text| time::parse_ns(&text)).map(Some).map_err(|error| {
        Error::new(error.code(), format!("{key}: {}", error.message())).hint(error.hint_text())
    })
}

fn decode_json(ticket: &[u8]) -> Result<SeriesQuery> {
    let json: JsonTicket = serde_json::from_slice(ticket).map_err(|error| {
        Error::new(Code::InvalidRequest, format!("the JSON ticket cannot be read: {error}")).hint(FORMS)
    })?;
    let mut query = SeriesQuery::new(
        name::DatasetName::new(json.dataset)?,
        match json.symbols {
            None => Symbols::All,
            Some(OneOrMany::One(symbol)) => Symbols::new([symbol])?,
            Some(OneOrMany::Many(symbols)) => Symbols::new(symbols)?,
        },
    );
    let start = time_of(json.start, "start")?.map(time::start_bound);
    query.range = TimeRange::new(start, time_of(json.end, "end")?.and_then(time::end_bound))?;
    query.as_of = time_of(json.as_of, "as_of")?.and_then(time::end_bound);
    query.allow_stale = json.allow_stale;
    query.known_at = json.known_at;
    query.rows_max = json.rows_max;
    // The checks of the protobuf form apply from here on.
    let mut wire = pb::SeriesRequest::from(&query);
    wire.fields = json.fields.unwrap_or_default();
    SeriesQuery::try_from(wire)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{FieldName, Symbol};

    fn query() -> impl Strategy<Value = SeriesQuery> {
        let symbols = prop_oneof![
            Just(Symbols::All),
            proptest::collection::vec("[A-Z.]{1,6}", 1..5).prop_map(|list| Symbols::new(list).unwrap()),
        ];
        let fields = proptest::collection::hash_set("[a-z_]{1,3}[a-z0-9_]{0,3}", 0..4)
            .prop_map(|set| set.into_iter().filter_map(|f| FieldName::new(f).ok()).collect::<Vec<_>>());
        let times = (any::<Option<i64>>(), any::<Option<i64>>(), any::<Option<i64>>());
        (symbols, fields, times, any::<(bool, bool, u64)>()).prop_map(
            |(symbols, fields, (a, b, as_of), flags)| {
                let range = TimeRange::new(a, b).or_else(|_| TimeRange::new(b, a)).unwrap();
                SeriesQuery {
                    dataset: "equities.daily".parse().unwrap(),
                    fields,
                    symbols,
                    range,
                    as_of,
                    allow_stale: flags.0,
                    known_at: flags.1,
                    rows_max: flags.2,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn a_request_round_trips_as_protobuf(query in query()) {
            prop_assert_eq!(decode(&encode(&query)).unwrap(), query);
        }

        #[test]
        fn a_request_round_trips_as_json(query in query()) {
            let integer = |ns: Option<i64>| ns.filter(|ns| time::check_integer((*ns).into()).is_ok());
            let query = SeriesQuery {
                range: TimeRange { start: integer(query.range.start), ..query.range },
                as_of: integer(query.as_of),
                ..query
            };
            let json = serde_json::json!({
                "dataset": query.dataset, "fields": query.fields,
                "symbols": match &query.symbols { Symbols::All => vec!["*".to_owned()], Symbols::List(l) => l.iter().map(Symbol::to_string).collect() },
                "start": query.range.start, "end": query.range.end.map(time::format_time), "as_of": query.as_of,
                "allow_stale": query.allow_stale, "known_at": query.known_at, "rows_max": query.rows_max,
            });
            prop_assert_eq!(decode(json.to_string().as_bytes()).unwrap(), query);
        }

        #[test]
        fn garbage_is_refused_and_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            // Random bytes may be a request by chance, but then it must be a valid one.
            if let Ok(query) = decode(&bytes) {
                prop_assert_eq!(decode(&encode(&query)).unwrap(), query);
            }
        }
    }

    #[test]
    fn the_ticket_of_the_readme_is_read() {
        let query = decode(
            br#"{"dataset": "equities.daily", "fields": ["close"], "symbols": ["AMZN"],
                 "start": "2006-08-10", "end": "2016-08-10", "as_of": null}"#,
        )
        .unwrap();
        assert_eq!(query.range.start, Some(time::parse_time("2006-08-10").unwrap()));
        assert_eq!(query.as_of, None);
    }

    #[test]
    fn a_misspelt_key_is_refused_by_name() {
        let error = decode(br#"{"dataset": "equities.daily", "symbol": ["AMZN"]}"#).unwrap_err();
        assert!(error.message().contains("`symbol`"), "{error}");
    }

    #[test]
    fn an_integer_that_looks_like_a_date_is_refused_with_the_date_as_text() {
        for (time, told) in [
            ("20160810", "2016-08-10"),
            ("2018", "2018-01-01"),
            ("1470787200", "seconds"),
            ("1.5", "1.5"),
            ("true", "true"),
            ("\"20160810\"", "2016-08-10"),
        ] {
            for key in ["start", "end", "as_of"] {
                let ticket = format!("{{\"dataset\": \"a.b\", \"{key}\": {time}}}");
                let error = decode(ticket.as_bytes()).unwrap_err();
                assert_eq!(error.code(), Code::InvalidRequest);
                assert!(error.to_string().contains(key) && error.to_string().contains(told), "{error}");
            }
        }
    }

    #[test]
    fn a_bound_beyond_all_time_is_all_there_is() {
        let query = decode(
            br#"{"dataset": "a.b", "start": "0001-01-01", "end": "9999-12-31", "as_of": 9223372036854775808}"#,
        )
        .unwrap();
        assert_eq!((query.range.start, query.range.end, query.as_of), (Some(i64::MIN), None, None));
    }

    #[test]
    fn end_before_start_is_refused() {
        let error = decode(br#"{"dataset": "a.b", "start": "2016-08-10", "end": "2006-08-10"}"#).unwrap_err();
        assert_eq!(error.code(), Code::InvalidRequest);
    }
}
