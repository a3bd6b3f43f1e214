use chrono::Datelike as _;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    desired::{Files, tests::example},
    ledger::Ledger,
    plan::{Plan, plan},
};

// The rules by which a unit's program computes the sessions. Only this test reads another crate's file.
#[path = "../../../../qcu-runtime/src/unit/new_york.rs"]
mod new_york;

fn ns(text: &str) -> i64 {
    text.parse::<DateTime<chrono::Utc>>().unwrap().timestamp_nanos_opt().unwrap()
}

/// The example with `count` units that are due at the close, each with a window of an hour.
fn many(count: usize) -> (Desired, Plan) {
    let mut files: Files = example();
    let grid = files["grid.json"].replace("vcpu\": 100,", "vcpu\": 100000,");
    files.insert("grid.json".to_owned(), grid);
    let unit: serde_json::Value = serde_json::from_str(&files["units/mom_12_1.json"]).unwrap();
    files.retain(|name, _| !name.starts_with("units/"));
    for i in 0..count {
        let mut unit = unit.clone();
        unit["unit"] = json!(format!("u{i}"));
        unit["schedule"]["delay"] = json!("0s");
        files.insert(format!("units/u{i}.json"), unit.to_string());
    }
    let desired = Desired::parse(&files).unwrap();
    let plan = plan(&desired, &Ledger::default());
    assert!(plan.is_applicable(), "{plan}");
    (desired, plan)
}

#[test]
fn the_calendar_of_the_example_has_the_sessions_of_the_units_own_rules() {
    let desired = Desired::parse(&example()).unwrap();
    let calendar = &desired.calendars["XNYS"];
    let first = NaiveDate::from_ymd_opt(2026, 1, 1).unwrap();
    let mut sessions = 0;
    for date in first.iter_days().take_while(|date| *date <= calendar.until()) {
        let rule = new_york::is_session(date).then(|| {
            let (_, close_min) = new_york::hours(date).unwrap();
            ns(&format!("{date}T00:00:00Z")) + close_min * 60 * SECOND_NS
        });
        assert_eq!(calendar.close_ns(date), Ok(rule), "{date}");
        sessions += usize::from(rule.is_some());
    }
    assert_eq!((sessions, calendar.until().year()), (502, 2027));
    assert_eq!(new_york::FIRST_YEAR, 1990);
}

#[test]
fn a_task_starts_before_its_session_is_due_and_ends_after_the_window() {
    let desired = Desired::parse(&example()).unwrap();
    let plan = plan(&desired, &Ledger::default());
    let name = "trellis-unit-mom_12_1";
    // the close of a Monday in New York is 21:00 UTC in winter; the unit waits for 20 minutes more and has an hour
    let due = ns("2026-11-30T21:20:00Z");
    let table = Timetable::around(&desired, &plan.services, due).unwrap();
    let at = |ns| table.desired(name, ns);
    assert_eq!(at(due - LEAD_NS - SECOND_NS), Some(0));
    assert_eq!(at(due - LEAD_NS), Some(1));
    assert_eq!(at(due + 3_599 * SECOND_NS), Some(1));
    assert_eq!(at(due + 3_600 * SECOND_NS), Some(0));
    assert_eq!(table.desired("trellis-unit-risk", due), None, "it always runs");
    let sunday = table.events(ns("2026-11-29T00:00:00Z"), ns("2026-11-30T00:00:00Z"));
    assert_eq!(sunday, []);
}

#[test]
fn after_the_calendars_last_day_nothing_is_guessed() {
    let desired = Desired::parse(&example()).unwrap();
    let plan = plan(&desired, &Ledger::default());
    for day in ["2028-01-03", "2028-06-01"] {
        let at = ns(&format!("{day}T21:20:00Z"));
        let table = Timetable::around(&desired, &plan.services, at).unwrap();
        let sentence = format!("calendars/XNYS.json says nothing about {day}; it ends at 2027-12-31");
        assert!(table.uncovered.contains(&sentence), "{:?}", table.uncovered);
        assert_eq!(table.desired("trellis-unit-mom_12_1", at), Some(0), "{day}");
        assert_eq!(table.desired("trellis-unit-risk", at), None, "it always runs");
    }
}

#[test]
fn units_that_are_due_at_once_start_one_after_the_other_before_it() {
    let (desired, plan) = many(2_000);
    let due = ns("2026-11-30T21:00:00Z");
    let table = Timetable::around(&desired, &plan.services, due).unwrap();
    let (from, to) = (ns("2026-11-30T12:00:00Z"), ns("2026-12-01T12:00:00Z"));
    let events = table.events(from, to);
    let starts: Vec<_> = events.iter().filter(|event| event.desired == 1).map(|event| event.at_ns).collect();
    assert_eq!((starts.len(), events.len()), (2_000, 4_000));
    assert!(starts.iter().all(|at| *at <= due - LEAD_NS));
    assert_eq!(starts[1_999] - starts[0], 1_999 * SLOT_NS, "as late as the rate allows");
    assert!(events.windows(2).all(|pair| pair[0].at_ns < pair[1].at_ns), "no two calls in one slot");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Every task is there from its start until the end of its window, no slot has two calls, and no start could be later.
    #[test]
    fn starts_are_as_late_as_the_rate_allows(dues in prop::collection::vec((0_i64..6_000, 1_i64..600), 1..120)) {
        let base = ns("2026-11-30T21:00:00Z");
        let session = NaiveDate::from_ymd_opt(2026, 11, 30).unwrap();
        let names: Vec<String> = (0..dues.len()).map(|i| format!("s{i:03}")).collect();
        let windows: Vec<_> = dues.iter().zip(&names).map(|((due, length), name)| {
            let due_ns = base + due * SECOND_NS / 7;
            (Window { due_ns, end_ns: due_ns + length * SECOND_NS, session }, name.as_str())
        }).collect();
        let spans = spread(windows.clone());
        let mut slots = BTreeSet::new();
        for (service, start, end) in &spans {
            let (window, _) = windows.iter().find(|(_, name)| name == service).unwrap();
            prop_assert!(*start <= window.due_ns - LEAD_NS && *end >= window.end_ns);
            prop_assert!(slots.insert(*start) && slots.insert(*end), "two calls in one slot");
            prop_assert_eq!((start.rem_euclid(SLOT_NS), end.rem_euclid(SLOT_NS)), (0, 0));
        }
        // a start that could move one slot later would be in a free slot before its own latest moment
        let starts: BTreeSet<_> = spans.iter().map(|(_, start, _)| *start).collect();
        for (service, start, _) in &spans {
            let (window, _) = windows.iter().find(|(_, name)| name == service).unwrap();
            let later = start + SLOT_NS;
            prop_assert!(later > window.due_ns - LEAD_NS || starts.contains(&later));
        }
    }
}
