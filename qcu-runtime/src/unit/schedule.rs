//! Which session is due. Pure: the clock, the calendar and the state of the grid are arguments.
//!
//! The rule: a unit runs the sessions after the newest one that it has published, oldest first, as soon as each is ready. A unit
//! that has published nothing starts at the newest ready session; a backfill makes the history, not the schedule.
//! A session is ready when its time has come and every input covers it. With `at_close` its time has come when the close and the
//! delay have passed; with `after`, when every unit upstream has published the session. An input without a
//! watermark covers the sessions up to its newest row. An input with an end, and the unit's own output, do not have to cover it.
//! A session that a person names does not wait for the clock, but it waits for the same units and inputs.
//!
//! With `after`, a unit waits until each unit upstream has published the *session* itself. It is not enough that their datasets
//! reach further: after a failure or a backfill there may be a newer session without an older one. A session that was published
//! without rows leaves no date behind. The newest of those shows in the watermark; an older one counts as not published.

use chrono::NaiveDate;
use trellis_proto::{Code, DatasetName, Error, Result, pb, time::DAY_NS, time::parse_duration};

use super::{
    calendar::{Calendar, date_of, midnight_ns},
    manifest::{Manifest, Schedule},
};

/// Most sessions that a unit catches up with. A unit that was away for longer than a quarter starts again at the newest session.
const CATCH_UP_SESSIONS_MAX: u32 = 66;

/// How far one dataset has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Coverage {
    /// The dataset is complete up to this event time, exclusive. `None` if no shard says so.
    pub watermark_ns: Option<i64>,
    /// Newest event time.
    pub last_ts_ns: Option<i64>,
}

impl Coverage {
    /// The coverage that a description of the dataset tells.
    #[must_use]
    pub(crate) fn of(description: &pb::DatasetDescription) -> Self {
        Self { watermark_ns: description.watermark_ns, last_ts_ns: description.last_ts_ns }
    }

    /// Whether the dataset has come as far as `session`: complete past its midnight, or with a row in or after its day.
    #[must_use]
    pub(crate) fn covers(&self, session: NaiveDate) -> bool {
        let Some(midnight) = midnight_ns(session) else { return false };
        self.watermark_ns.is_some_and(|w| w >= midnight.saturating_add(DAY_NS))
            || self.last_ts_ns.is_some_and(|last| last >= midnight)
    }

    /// The newest session of `calendar` that [`Coverage::covers`].
    #[must_use]
    pub(crate) fn newest(&self, calendar: Calendar) -> Option<NaiveDate> {
        let by_watermark = self.watermark_ns.and_then(|w| date_of(w.checked_sub(DAY_NS)?));
        let by_rows = self.last_ts_ns.and_then(date_of);
        calendar.at_or_before(by_watermark.max(by_rows)?)
    }
}

/// What a unit upstream has published.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Published {
    /// How far it has come.
    pub progress: Coverage,
    /// The sessions for which the dataset has rows, as far back as the schedule looks.
    pub sessions: Vec<NaiveDate>,
}

impl Published {
    /// Whether `session` itself was published.
    #[must_use]
    pub(crate) fn has(&self, session: NaiveDate) -> bool {
        let Some(midnight) = midnight_ns(session) else { return false };
        let newest_and_empty =
            self.progress.watermark_ns.is_some_and(|w| w >= midnight.saturating_add(DAY_NS))
                && self.progress.last_ts_ns.is_none_or(|last| last < midnight);
        self.sessions.contains(&session) || newest_and_empty
    }
}

/// The state of the grid from which [`due`] decides.
#[derive(Debug, Clone, Default)]
pub(crate) struct ScheduleFacts {
    /// The unit's own output, if it exists.
    pub output: Coverage,
    /// Each input, in the order of the manifest.
    pub inputs: Vec<Coverage>,
    /// For `after`: each unit upstream, in the order of the manifest.
    pub upstream: Vec<Published>,
}

/// What a unit does now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Due {
    /// Run this session.
    Run(NaiveDate),
    /// Wait for the time of a session.
    At {
        /// The next session.
        session: NaiveDate,
        /// Its close and the delay, nanoseconds UTC.
        at_ns: i64,
    },
    /// Wait until an input covers the session.
    Input {
        /// The next session.
        session: NaiveDate,
        /// Name of the input.
        input: String,
        /// The dataset of the input.
        dataset: DatasetName,
        /// The newest session that the dataset covers.
        reached: Option<NaiveDate>,
    },
    /// Wait until the units upstream have published.
    Upstream {
        /// The session that the unit waits for; `None` if any new one will do.
        session: Option<NaiveDate>,
        /// The units that have not published it.
        units: Vec<String>,
    },
    /// The unit never runs by itself.
    Never,
}

/// What is due at `now_ns`.
///
/// # Errors
/// `InvalidRequest` only for a manifest that [`Manifest::check`] refuses too.
pub(crate) fn due(manifest: &Manifest, state: &ScheduleFacts, now_ns: i64) -> Result<Due> {
    let calendar = manifest.calendar()?;
    let published = state.output.newest(calendar);
    match &manifest.schedule {
        Schedule::Manual => Ok(Due::Never),
        Schedule::AtClose { delay, .. } => {
            let delay = parse_duration(delay)?;
            let Some(closed) = calendar.newest_closed(now_ns, delay).map(|s| s.date) else {
                return Ok(Due::Never);
            };
            // a person may publish a session that is yet to come; the unit does not skip to the one after it
            let ahead = published.filter(|published| *published > closed);
            let published = published.map(|published| published.min(closed));
            if let Some(&session) = candidates(calendar, published, closed).first() {
                return Ok(ready_or_waiting(manifest, calendar, state, session));
            }
            let next = calendar.next(closed);
            let next = if next == ahead { next.and_then(|next| calendar.next(next)) } else { next };
            let at = next.and_then(|date| calendar.session(date));
            Ok(at.map_or(Due::Never, |session| Due::At {
                session: session.date,
                at_ns: session.close_ns.saturating_add(delay),
            }))
        }
        Schedule::After { units } => {
            let newest = state.upstream.iter().map(|up| up.progress.newest(calendar)).min().flatten();
            let candidates = newest.map(|newest| candidates(calendar, published, newest)).unwrap_or_default();
            let all_have = |session: &NaiveDate| state.upstream.iter().all(|up| up.has(*session));
            let Some(session) = candidates.into_iter().find(all_have) else {
                let units = units.iter().map(|up| up.unit.clone()).collect();
                return Ok(Due::Upstream { session: None, units });
            };
            Ok(ready_or_waiting(manifest, calendar, state, session))
        }
    }
}

/// The sessions that may come next, the best first. After `published`: those up to `newest`, oldest first. If nothing recent was
/// published: those up to `newest`, newest first.
fn candidates(calendar: Calendar, published: Option<NaiveDate>, newest: NaiveDate) -> Vec<NaiveDate> {
    let horizon = catch_up_from(calendar, newest).unwrap_or(newest);
    let up_to_newest = |from: NaiveDate| calendar.range(from, newest).chain([newest]);
    match published.and_then(|published| calendar.next(published)) {
        Some(next) if next > newest => Vec::new(),
        Some(next) if next >= horizon => up_to_newest(next).collect(),
        _ => {
            let mut all: Vec<NaiveDate> = up_to_newest(horizon).collect();
            all.reverse();
            all
        }
    }
}

/// The first session that a unit catches up with if `newest` is the newest.
#[must_use]
pub(crate) fn catch_up_from(calendar: Calendar, newest: NaiveDate) -> Option<NaiveDate> {
    calendar.offset(newest, 1 - i64::from(CATCH_UP_SESSIONS_MAX))
}

fn ready_or_waiting(
    manifest: &Manifest,
    calendar: Calendar,
    state: &ScheduleFacts,
    session: NaiveDate,
) -> Due {
    match late_input(manifest, calendar, &state.inputs, session) {
        None => Due::Run(session),
        Some(late) => Due::Input { session, input: late.input, dataset: late.dataset, reached: late.reached },
    }
}

/// An input that does not reach a session yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LateInput {
    /// Name of the input.
    pub input: String,
    /// The dataset of the input.
    pub dataset: DatasetName,
    /// The newest session that the dataset covers.
    pub reached: Option<NaiveDate>,
}

impl LateInput {
    /// The refusal of a run of `session`.
    #[must_use]
    pub(crate) fn refusal(&self, session: NaiveDate) -> Error {
        let Self { input, dataset, reached } = self;
        let (told, earlier) = match reached {
            Some(reached) => {
                (format!("has come to {reached}"), format!("run {reached} or a session before it, or "))
            }
            None => ("has no rows".to_owned(), String::new()),
        };
        Error::new(Code::NotArrived, format!("input {input} has not arrived for {session}: {dataset} {told}"))
            .hint(format!("{earlier}run {session} again when {dataset} has its rows"))
            .dataset(dataset)
    }
}

/// The first input that does not reach `session`. `inputs`: how far each input has come, in the order of the manifest.
#[must_use]
pub(crate) fn late_input(
    manifest: &Manifest,
    calendar: Calendar,
    inputs: &[Coverage],
    session: NaiveDate,
) -> Option<LateInput> {
    let mut inputs = manifest.inputs.iter().zip(inputs);
    let (input, progress) = inputs.find(|(input, progress)| {
        // an input with an end does not grow to the session, and the run itself makes the unit's output grow to it
        input.until.is_none() && input.dataset != manifest.output.dataset && !progress.covers(session)
    })?;
    let (input, dataset) = (input.name.clone(), input.dataset.clone());
    Some(LateInput { input, dataset, reached: progress.newest(calendar) })
}

/// For a session that a person named: may it run now? It waits for the units upstream and the inputs, not for the clock.
///
/// # Errors
/// `InvalidRequest` if `session` is no session of the unit's calendar.
pub(crate) fn named_is_ready(manifest: &Manifest, state: &ScheduleFacts, session: NaiveDate) -> Result<Due> {
    let calendar = manifest.calendar()?;
    if !calendar.is_session(session) {
        let why = format!("{session} is no session of {}", manifest.calendar);
        return Err(Error::new(Code::InvalidRequest, why));
    }
    if let Schedule::After { units } = &manifest.schedule {
        let waiting: Vec<String> = units
            .iter()
            .zip(&state.upstream)
            .filter(|(_, published)| !published.has(session))
            .map(|(up, _)| up.unit.clone())
            .collect();
        if !waiting.is_empty() {
            return Ok(Due::Upstream { session: Some(session), units: waiting });
        }
    }
    Ok(ready_or_waiting(manifest, calendar, state, session))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::manifest::Upstream;
    use super::*;

    fn day(text: &str) -> NaiveDate {
        text.parse().unwrap()
    }

    fn unit() -> Manifest {
        let mut unit = Manifest::parse(include_str!("../../tests/golden/unit.json")).unwrap();
        unit.inputs.truncate(1);
        unit
    }

    fn after() -> Manifest {
        let upstream = Upstream { unit: "mom".into(), dataset: "signals.mom".parse().unwrap() };
        Manifest { schedule: Schedule::After { units: vec![upstream] }, ..unit() }
    }

    fn rows_to(date: &str) -> Coverage {
        Coverage { watermark_ns: None, last_ts_ns: midnight_ns(day(date)) }
    }

    fn published(dates: &[&str]) -> Published {
        Published {
            progress: dates.iter().max().map(|date| rows_to(date)).unwrap_or_default(),
            sessions: dates.iter().map(|date| day(date)).collect(),
        }
    }

    /// 20 minutes after the close of a summer session.
    fn evening(date: &str) -> i64 {
        midnight_ns(day(date)).unwrap() + (20 * 60 + 20) * 60_000_000_000
    }

    fn state(output: Coverage, input: Coverage) -> ScheduleFacts {
        ScheduleFacts { output, inputs: vec![input], upstream: vec![] }
    }

    #[test]
    fn a_new_unit_starts_at_the_newest_closed_session() {
        let got =
            due(&unit(), &state(Coverage::default(), rows_to("2016-08-10")), evening("2016-08-10")).unwrap();
        assert_eq!(got, Due::Run(day("2016-08-10")));
    }

    #[test]
    fn before_close_and_delay_the_session_waits_for_its_time() {
        let state = state(rows_to("2016-08-09"), rows_to("2016-08-09"));
        let got = due(&unit(), &state, evening("2016-08-10") - 1).unwrap();
        assert_eq!(got, Due::At { session: day("2016-08-10"), at_ns: evening("2016-08-10") });
    }

    #[test]
    fn a_unit_that_was_away_catches_up_oldest_first() {
        let state = state(rows_to("2016-08-05"), rows_to("2016-08-10"));
        let got = due(&unit(), &state, evening("2016-08-10")).unwrap();
        assert_eq!(got, Due::Run(day("2016-08-08")), "the Monday after the Friday");
    }

    #[test]
    fn a_unit_that_was_away_for_long_starts_again_at_the_newest() {
        let state = state(rows_to("2016-01-05"), rows_to("2016-08-10"));
        assert_eq!(due(&unit(), &state, evening("2016-08-10")).unwrap(), Due::Run(day("2016-08-10")));
    }

    #[test]
    fn an_input_that_has_not_come_is_waited_for_by_name() {
        let state = state(rows_to("2016-08-09"), rows_to("2016-08-09"));
        let expected = Due::Input {
            session: day("2016-08-10"),
            input: "px".into(),
            dataset: "equities.daily".parse().unwrap(),
            reached: Some(day("2016-08-09")),
        };
        assert_eq!(due(&unit(), &state, evening("2016-08-10")).unwrap(), expected);
    }

    #[test]
    fn a_session_that_somebody_published_before_its_time_is_no_reason_to_wait_for_the_one_after_it() {
        let state = state(rows_to("2016-08-15"), rows_to("2016-08-10"));
        let waits = Due::At { session: day("2016-08-11"), at_ns: evening("2016-08-11") };
        assert_eq!(due(&unit(), &state, evening("2016-08-10")).unwrap(), waits);
        let near = ScheduleFacts { output: rows_to("2016-08-11"), ..state.clone() };
        let waits = Due::At { session: day("2016-08-12"), at_ns: evening("2016-08-12") };
        assert_eq!(due(&unit(), &near, evening("2016-08-10")).unwrap(), waits);
        let state = ScheduleFacts { inputs: vec![rows_to("2016-08-16")], ..state };
        assert_eq!(due(&unit(), &state, evening("2016-08-16")).unwrap(), Due::Run(day("2016-08-16")));
    }

    #[test]
    fn a_session_published_without_rows_is_covered_by_the_watermark() {
        let end = midnight_ns(day("2016-08-11"));
        let output = Coverage { watermark_ns: end, last_ts_ns: midnight_ns(day("2016-08-09")) };
        let got = due(&unit(), &state(output, rows_to("2016-08-10")), evening("2016-08-10")).unwrap();
        assert_eq!(got, Due::At { session: day("2016-08-11"), at_ns: evening("2016-08-11") });
    }

    #[test]
    fn after_runs_what_every_upstream_has_published() {
        let mut now = ScheduleFacts {
            output: Coverage::default(),
            inputs: vec![rows_to("2016-08-10")],
            upstream: vec![Published::default()],
        };
        assert!(matches!(due(&after(), &now, 0).unwrap(), Due::Upstream { session: None, .. }));
        now.upstream = vec![published(&["2016-08-10"])];
        assert_eq!(due(&after(), &now, 0).unwrap(), Due::Run(day("2016-08-10")), "whatever the clock says");
        now.output = rows_to("2016-08-10");
        assert!(matches!(due(&after(), &now, 0).unwrap(), Due::Upstream { .. }));
    }

    #[test]
    fn a_session_that_upstream_skipped_is_not_run() {
        let mut now = ScheduleFacts {
            output: rows_to("2016-08-05"),
            inputs: vec![rows_to("2016-08-10")],
            upstream: vec![],
        };
        now.upstream = vec![published(&["2016-08-05", "2016-08-09", "2016-08-10"])];
        assert_eq!(due(&after(), &now, 0).unwrap(), Due::Run(day("2016-08-09")), "there is no 2016-08-08");
        let waiting = named_is_ready(&after(), &now, day("2016-08-08")).unwrap();
        assert!(matches!(waiting, Due::Upstream { .. }));
        now.upstream.push(published(&["2016-08-10"]));
        assert_eq!(due(&after(), &now, 0).unwrap(), Due::Run(day("2016-08-10")), "what all have");
    }

    #[test]
    fn an_upstream_session_without_rows_counts_while_it_is_the_newest() {
        let mut up = published(&["2016-08-09"]);
        up.progress.watermark_ns = midnight_ns(day("2016-08-11"));
        assert!(up.has(day("2016-08-10")) && up.has(day("2016-08-09")) && !up.has(day("2016-08-08")));
        assert!(!up.has(day("2016-08-11")));
    }

    #[test]
    fn a_named_session_waits_for_upstream_units_and_inputs_but_not_for_the_clock() {
        let session = day("2016-08-10");
        let facts = |input: Coverage, upstream: &[&str]| ScheduleFacts {
            upstream: vec![published(upstream)],
            ..state(Coverage::default(), input)
        };
        let ready = facts(rows_to("2016-08-10"), &["2016-08-10"]);
        assert_eq!(named_is_ready(&unit(), &ready, session).unwrap(), Due::Run(session));
        assert_eq!(named_is_ready(&after(), &ready, session).unwrap(), Due::Run(session));
        let upstream = facts(rows_to("2016-08-10"), &["2016-08-09"]);
        let waiting = named_is_ready(&after(), &upstream, session).unwrap();
        assert!(matches!(waiting, Due::Upstream { session: Some(s), .. } if s == session));
        let input = facts(rows_to("2016-08-09"), &["2016-08-10"]);
        for unit in [unit(), after()] {
            let waiting = named_is_ready(&unit, &input, session).unwrap();
            assert!(matches!(waiting, Due::Input { reached: Some(r), .. } if r == day("2016-08-09")));
        }
        assert!(named_is_ready(&unit(), &ready, day("2016-08-13")).is_err());
    }

    #[test]
    fn an_input_with_an_end_and_the_units_own_output_need_not_reach_the_session() {
        let (session, calendar) = (day("2016-08-10"), Calendar::named("XNYS").unwrap());
        let late = |unit: &Manifest| late_input(unit, calendar, &[rows_to("2016-08-08")], session);
        let mut unit = unit();
        let told = late(&unit).unwrap();
        assert_eq!((told.input.as_str(), told.reached), ("px", Some(day("2016-08-08"))));
        unit.inputs[0].until = Some("2016-08-01".into());
        assert_eq!(late(&unit), None);
        unit.inputs[0].until = None;
        unit.inputs[0].dataset = unit.output.dataset.clone();
        assert_eq!(late(&unit), None);
    }

    #[test]
    fn the_refusal_of_a_run_says_how_far_the_input_has_come_and_what_to_run() {
        let session = day("2016-08-10");
        let mut late = LateInput {
            input: "px".into(),
            dataset: "equities.daily".parse().unwrap(),
            reached: Some(day("2016-08-08")),
        };
        let refusal = late.refusal(session);
        assert_eq!((refusal.code(), refusal.retryable()), (Code::NotArrived, true));
        let told = "input px has not arrived for 2016-08-10: equities.daily has come to 2016-08-08";
        assert_eq!(refusal.message(), told);
        let hint =
            "run 2016-08-08 or a session before it, or run 2016-08-10 again when equities.daily has its rows";
        assert_eq!(refusal.hint_text(), hint);
        late.reached = None;
        assert!(late.refusal(session).message().ends_with("equities.daily has no rows"));
    }

    proptest! {
        /// A model of a unit's life: whatever the gaps in its attention, it publishes each session at most once, in
        /// order, never before its time.
        #[test]
        fn a_unit_publishes_in_order_each_session_once_and_never_early(hours in proptest::collection::vec(0_i64..200, 1..60)) {
            let (unit, calendar) = (unit(), Calendar::named("XNYS").unwrap());
            let mut now = evening("2016-03-01");
            let mut published: Vec<NaiveDate> = vec![];
            for step in hours {
                now += step * 3_600_000_000_000;
                let output = Coverage { watermark_ns: None, last_ts_ns: published.last().and_then(|d| midnight_ns(*d)) };
                let data = Coverage { watermark_ns: None, last_ts_ns: Some(now) };
                match due(&unit, &state(output, data), now).unwrap() {
                    Due::Run(session) => {
                        prop_assert!(calendar.session(session).unwrap().close_ns + 20 * 60_000_000_000 <= now);
                        prop_assert!(published.last().is_none_or(|last| *last < session));
                        published.push(session);
                    }
                    Due::At { session, at_ns } => {
                        prop_assert!(at_ns > now && published.last().is_none_or(|last| *last < session));
                    }
                    other => prop_assert!(false, "{:?}", other),
                }
            }
            let gaps = published.windows(2).filter(|two| calendar.next(two[0]) != Some(two[1])).count();
            prop_assert!(gaps <= 60 / 2);
        }
    }
}
