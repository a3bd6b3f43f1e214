//! From a session and a unit's declared inputs to requests. Pure.
//!
//! An input covers `[midnight UTC of the first session of its lookback, midnight UTC after the session)`, so a daily row stamped
//! anywhere in a session's UTC day is inside, and nothing of the next session is.

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};
use trellis_proto::{
    Code, Error, Result, SeriesQuery, TimeRange,
    time::{DAY_NS, parse_duration, parse_time},
};

use super::{
    calendar::{Calendar, midnight_ns},
    manifest::{AsOf, InputSpec, Lookback, Manifest},
};

/// The sessions that an input covers: those of a calendar in `[start_ns, end_ns)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// The dataset's calendar, or the unit's if the dataset has none.
    pub calendar: String,
    /// First nanosecond inside.
    pub start_ns: Option<i64>,
    /// First nanosecond after.
    pub end_ns: Option<i64>,
}

/// The request of each input for `session`. A request for the latest has no `as_of` yet.
///
/// # Errors
/// `InvalidRequest` if `session` is no session of the unit's calendar, or a lookback begins before the calendar does.
pub fn plan(manifest: &Manifest, session: NaiveDate) -> Result<Vec<SeriesQuery>> {
    let calendar = manifest.calendar()?;
    if !calendar.is_session(session) {
        let mut error = Error::new(
            Code::InvalidRequest,
            format!("{session} is no session of {}, the calendar of {}", calendar.name(), manifest.unit),
        );
        if let Some(before) = calendar.previous(session) {
            error = error.hint(format!("the session before it is {before}"));
        }
        return Err(error);
    }
    manifest.inputs.iter().map(|input| query(input, calendar, session)).collect()
}

fn query(input: &InputSpec, calendar: Calendar, session: NaiveDate) -> Result<SeriesQuery> {
    let outside = |what: &str| {
        Error::new(Code::InvalidRequest, format!("input {}: {what}", input.name)).dataset(&input.dataset)
    };
    let midnight =
        midnight_ns(session).ok_or_else(|| outside("the session is beyond what nanoseconds reach"))?;
    let mut end = midnight.saturating_add(DAY_NS);
    let start = match (&input.since, &input.lookback) {
        (Some(since), _) => parse_time(since)?,
        (None, Some(Lookback::Sessions(n))) => {
            let first = calendar.offset(session, 1 - i64::from(*n)).and_then(midnight_ns);
            first.ok_or_else(|| {
                outside(&format!(
                    "{n} sessions back from {session} is before the calendar {} begins",
                    calendar.name()
                ))
            })?
        }
        (None, Some(Lookback::Duration(text))) => end.saturating_sub(parse_duration(text)?),
        (None, None) => midnight,
    };
    if let Some(until) = &input.until {
        end = end.min(parse_time(until)?);
    }
    let as_of = match &input.as_of {
        AsOf::Latest => None,
        AsOf::Close(delay) => {
            let close = calendar.session(session).ok_or_else(|| outside("no such session"))?.close_ns;
            Some(close.saturating_add(parse_duration(delay)?))
        }
    };
    Ok(SeriesQuery {
        fields: input.fields.clone(),
        // a session before `since` reads nothing
        range: TimeRange { start: Some(start), end: Some(end.max(start)) },
        as_of,
        ..SeriesQuery::new(input.dataset.clone(), input.symbols()?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit() -> Manifest {
        Manifest::parse(include_str!("../../tests/golden/unit.json")).unwrap()
    }

    fn day(text: &str) -> NaiveDate {
        text.parse().unwrap()
    }

    #[test]
    fn a_lookback_counts_sessions_and_includes_the_session() {
        let queries = plan(&unit(), day("2016-08-10")).unwrap();
        let range = queries[0].range;
        // 259 sessions before 2016-08-10 is 2015-07-31
        assert_eq!(range.start, midnight_ns(day("2015-07-31")));
        assert_eq!(range.end, midnight_ns(day("2016-08-11")));
        assert_eq!(queries[0].as_of, None);
    }

    #[test]
    fn since_and_until_bound_an_input_and_close_pins_it() {
        let queries = plan(&unit(), day("2016-08-10")).unwrap();
        let q = &queries[1];
        assert_eq!(q.range.start, midnight_ns(day("2006-08-10")));
        assert_eq!(q.range.end, midnight_ns(day("2016-08-11")));
        assert_eq!(q.as_of, Some(parse_time("2016-08-10T20:20:00Z").unwrap()));
        let later = plan(&unit(), day("2016-08-12")).unwrap();
        assert_eq!(later[1].range.end, midnight_ns(day("2016-08-11")), "until caps");
        let before = plan(&unit(), day("2006-01-03")).unwrap();
        assert!(before[1].range.is_empty(), "a session before since reads nothing");
    }

    #[test]
    fn without_lookback_an_input_is_the_session_alone_and_durations_count_back_from_its_end() {
        let mut unit = unit();
        unit.inputs[0].lookback = None;
        let session = day("2016-08-10");
        assert_eq!(plan(&unit, session).unwrap()[0].range.start, midnight_ns(session));
        unit.inputs[0].lookback = Some(Lookback::Duration("10d".into()));
        assert_eq!(plan(&unit, session).unwrap()[0].range.start, midnight_ns(day("2016-08-01")));
    }

    #[test]
    fn a_day_without_session_is_refused_with_the_session_before() {
        let error = plan(&unit(), day("2016-08-13")).unwrap_err();
        assert_eq!(error.code(), Code::InvalidRequest);
        assert!(error.to_string().contains("2016-08-12"), "{error}");
        assert!(plan(&unit(), day("1990-06-01")).unwrap_err().to_string().contains("begins"));
    }
}
