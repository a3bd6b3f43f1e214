//! A fleet is created, rolled and half removed, on paused time and with the formats of the wire.

use std::time::Duration;

use trellis_aws_fake::{Category, Failing, Settings};
use trellis_fleet::reconcile::{Mode, Outcome, Seen, Selection, Target};

use crate::support::{Fake, Grid, REGION, place, running};

/// Units of the big simulation. 40,000 is the target; this many take a debug build a minute.
const UNITS: usize = 360;
/// Changes a second that AWS allows an account: CreateService, UpdateService and DeleteService together.
const CHANGES_S: f64 = 5.0;
/// The bar: simulated time beside the floor of the rates, and changes beside those that were needed.
const BAR: f64 = 1.2;
/// What three waves that wait for their tasks may add: each at most this long (the fake's slowest task takes 130 s to be replaced and
/// counted healthy).
const WAVE: Duration = Duration::from_secs(140);

fn units() -> usize {
    std::env::var("TRELLIS_FLEET_UNITS").ok().map_or(UNITS, |units| units.parse().expect("a number of units"))
}

fn assert_runs(fake: &Fake, target: &Target) {
    let running = running(fake, target);
    let wanted: Vec<&str> = target.services.iter().map(|service| service.name.as_str()).collect();
    let missing: Vec<_> = wanted.iter().filter(|name| running.get(**name) != Some(&1)).take(5).collect();
    assert!(missing.is_empty(), "these do not run once: {missing:?}");
    assert_eq!(running.len(), wanted.len(), "others run, too");
}

/// What one phase took.
struct Phase {
    name: &'static str,
    seconds: f64,
    floor: f64,
    changes: u64,
    needed: u64,
    calls: u64,
    ecs: u64,
    throttled: u64,
}

/// Lets a phase run, and compares it with what it needs at least: `needed` changes, spread over the accounts.
async fn phase<F: Future<Output = ()>>(
    name: &'static str,
    fake: &Fake,
    accounts: usize,
    needed: usize,
    work: F,
) -> Phase {
    fake.world().reset_counters();
    let before = fake.elapsed();
    work.await;
    let world = fake.today();
    let changes = world.counters().sum(|_, category, _| category == Category::ServiceModify);
    let all = world.counters().all();
    let queue = world.counters().sum(|_, category, _| category == Category::Queue);
    let phase = Phase {
        name,
        seconds: (fake.elapsed() - before).as_secs_f64(),
        floor: needed as f64 / accounts as f64 / CHANGES_S,
        changes: changes.calls,
        needed: needed as u64,
        calls: all.calls,
        ecs: all.calls - queue.calls,
        throttled: all.throttled,
    };
    eprintln!(
        "{}: {:.1} simulated minutes, floor {:.1} ({:.2}); {} changes for {} ({:.2}); calls per unit {:.2}, without SQS {:.2}; {} throttled",
        phase.name,
        phase.seconds / 60.0,
        phase.floor / 60.0,
        phase.seconds / phase.floor,
        phase.changes,
        phase.needed,
        phase.changes as f64 / phase.needed as f64,
        phase.calls as f64 / phase.needed as f64,
        phase.ecs as f64 / phase.needed as f64,
        phase.throttled,
    );
    phase
}

impl Phase {
    /// Small fleets wait for their waves more than for the rates.
    fn assert_bars(&self, waves: u32) {
        let allowed = (self.floor * BAR).max(self.floor / 0.8 + (WAVE * waves).as_secs_f64());
        assert!(self.seconds <= allowed, "{}: {} s, allowed {allowed} s", self.name, self.seconds);
        assert!(self.changes as f64 <= self.needed as f64 * BAR, "{}: {} changes", self.name, self.changes);
    }
}

async fn apply(fake: &Fake, target: &Target, mode: Mode) {
    let (outcome, _) = fake.fleet(target, mode).await;
    assert_eq!(outcome, Outcome::Done(vec![]));
    assert_runs(fake, target);
}

#[tokio::test(start_paused = true)]
async fn a_fleet_is_created_rolled_and_half_removed_near_the_floor_of_the_rates() {
    let grid = Grid::units(units());
    let fake = grid.fake();
    let remove = Mode { remove: true, ..Mode::default() };

    let target = grid.target();
    let created = phase("created", &fake, 4, grid.units, apply(&fake, &target, Mode::default())).await;
    created.assert_bars(4);

    let rolled = Grid { image: 2, ..grid };
    let target = rolled.target();
    let phase_rolled = phase("rolled", &fake, 4, rolled.units, apply(&fake, &target, Mode::default())).await;
    phase_rolled.assert_bars(4);

    let half = Grid { units: rolled.units / 2, ..rolled };
    let target = half.target();
    // a removal is two changes: to zero, and away
    let removed = phase("half removed", &fake, 4, half.units * 2, apply(&fake, &target, remove)).await;
    removed.assert_bars(2);

    // for a moment AWS still lists what was deleted
    tokio::time::sleep(Settings::default().lag.end).await;
    let again = phase("again", &fake, 4, 1, apply(&fake, &target, Mode::default())).await;
    assert_eq!(again.changes, 0, "what is as wanted is left alone");
}

#[tokio::test(start_paused = true)]
async fn a_fleet_that_dies_again_and_again_ends_as_one_that_lives() {
    let grid = Grid { heads: 3, shards: 3, ..Grid::units(120) };
    let fake = grid.fake();
    let mut life = 7_u64;
    for image in 1..=2 {
        let target = Grid { image, ..Grid { heads: 3, shards: 3, ..Grid::units(120) } }.target();
        let mut deaths = 0;
        loop {
            // from 3 to 50 seconds, in no order
            life = (life * 7 + 11) % 48 + 3;
            let (outcome, _) = fake.fleet_until(&target, Mode::default(), Duration::from_secs(life)).await;
            match outcome {
                Some(outcome) => break assert_eq!(outcome, Outcome::Done(vec![])),
                None => deaths += 1,
            }
            assert!(deaths < 200, "it does not come to an end");
        }
        assert!(deaths > 3, "it died {deaths} times");
        assert_runs(&fake, &target);
    }
    let changes = fake.world().counters().sum(|_, category, _| category == Category::ServiceModify);
    let needed = 2 * 126;
    assert!(changes.calls as f64 <= f64::from(needed) * BAR, "{changes:?} for {needed}");
    // every family was registered once, although calls died under way
    let registered = fake.world().counters().sum(|_, _, op| op == "RegisterTaskDefinition");
    assert!(registered.calls - registered.throttled <= 2 * (12 + 6) + 3, "{registered:?}");
}

#[tokio::test(start_paused = true)]
async fn lost_and_doubled_events_cost_time_and_nothing_else() {
    let grid = Grid::units(60);
    let fake = grid.fake();
    fake.world().lose_events(0.5);
    fake.world().double_events(0.3);
    apply(&fake, &grid.target(), Mode::default()).await;
    fake.world().lose_events(1.0);
    let target = Grid { image: 2, ..grid }.target();
    apply(&fake, &target, Mode::default()).await;
    let changes = fake.world().counters().sum(|_, category, _| category == Category::ServiceModify);
    assert_eq!(changes.calls, 120);
}

#[tokio::test(start_paused = true)]
async fn a_throttled_account_is_called_more_slowly_and_everything_comes_to_be() {
    let grid = Grid { accounts: 2, clusters: 2, ..Grid::units(120) };
    let fake = grid.fake();
    fake.world().throttle(Some(&place(0).account), 0.3);
    apply(&fake, &grid.target(), Mode::default()).await;
    let of = |account: usize| {
        let account = place(account).account;
        fake.world()
            .counters()
            .sum(|each, category, _| each == account && category == Category::ServiceModify)
    };
    let slow = of(0);
    assert!(slow.throttled > 0);
    assert!(slow.calls as f64 <= 60.0 * 1.5, "refused calls: {slow:?}");
    assert_eq!(of(1).throttled, 0);
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_lost_make_no_second_service() {
    let grid = Grid::units(48);
    let fake = grid.fake();
    fake.world().lose_answers(0.1);
    apply(&fake, &grid.target(), Mode::default()).await;
    let target = Grid { image: 2, ..grid }.target();
    apply(&fake, &target, Mode::default()).await;
}

#[tokio::test(start_paused = true)]
async fn drift_by_hand_is_repaired_by_the_next_run() {
    let grid = Grid::units(24);
    let fake = grid.fake();
    let target = grid.target();
    apply(&fake, &target, Mode::default()).await;
    let (deleted, scaled) = (&target.services[0], &target.services[1]);
    assert!(fake.world().delete_by_hand(&deleted.place.account, REGION, &deleted.cluster, &deleted.name));
    assert!(fake.world().scale_by_hand(&scaled.place.account, REGION, &scaled.cluster, &scaled.name, 0));
    fake.world().reset_counters();
    apply(&fake, &target, Mode::default()).await;
    let changes = fake.world().counters().sum(|_, category, _| category == Category::ServiceModify);
    assert!((2..=4).contains(&changes.calls), "{changes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_fleet_that_stays_repairs_drift_by_itself() {
    let grid = Grid { accounts: 1, clusters: 1, ..Grid::units(12) };
    let fake = grid.fake();
    let target = grid.target();
    apply(&fake, &target, Mode::default()).await;
    let (deleted, scaled) = (&target.services[0], &target.services[1]);
    assert!(fake.world().delete_by_hand(&deleted.place.account, REGION, &deleted.cluster, &deleted.name));
    assert!(fake.world().scale_by_hand(&scaled.place.account, REGION, &scaled.cluster, &scaled.name, 0));
    // within two sweeps, even if no event comes
    fake.world().lose_events(1.0);
    let keep = Mode { keep: true, ..Mode::default() };
    let (outcome, _) = fake.fleet_until(&target, keep, Duration::from_secs(2_400)).await;
    assert_eq!(outcome, None, "it stays");
    assert_runs(&fake, &target);
}

#[tokio::test(start_paused = true)]
async fn a_bad_image_stops_at_the_canary() {
    let grid = Grid { accounts: 2, clusters: 2, ..Grid::units(40) };
    let fake = grid.fake();
    apply(&fake, &grid.target(), Mode::default()).await;
    let target = Grid { image: 2, ..grid }.target();
    for family in target.definitions.keys() {
        fake.world().fail_tasks(family, Failing::NoImage, 1.0);
    }
    fake.world().reset_counters();
    let (outcome, _) = fake.fleet(&target, Mode::default()).await;
    let Outcome::Stopped(stops, problems) = outcome else { panic!("{outcome:?}") };
    assert_eq!(stops.len(), 2, "each cluster has a definition of its own: {stops:?}");
    assert!(stops.iter().all(|stop| stop.stage == "canary"));
    assert_eq!(problems.len(), 40);
    let changes = fake.world().counters().sum(|_, category, _| category == Category::ServiceModify);
    assert_eq!(changes.calls, 2, "a canary each");
    // the others still run as they were
    assert!(running(&fake, &target).len() >= 38);
    // a `fleet` that is started again goes no further
    let (outcome, _) = fake.fleet(&target, Mode::default()).await;
    assert!(matches!(outcome, Outcome::Stopped(..)), "{outcome:?}");
    let changes = fake.world().counters().sum(|_, category, _| category == Category::ServiceModify);
    assert_eq!(changes.calls, 2);
    // repaired, and tried once more
    for family in target.definitions.keys() {
        fake.world().fail_tasks(family, Failing::NoImage, 0.0);
    }
    apply(&fake, &target, Mode { again: true, ..Mode::default() }).await;
}

#[tokio::test(start_paused = true)]
async fn shards_roll_one_after_the_other() {
    let grid = Grid { shards: 4, heads: 1, ..Grid::units(0) };
    let fake = grid.fake();
    apply(&fake, &grid.target(), Mode::default()).await;
    let target = Grid { image: 2, ..grid }.target();
    let watch = async {
        let mut fewest = usize::MAX;
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let running = running(&fake, &target);
            let shards = running.keys().filter(|name| name.contains("-shard-")).count();
            fewest = fewest.min(shards);
            assert!(shards >= 3, "more than one shard is away");
            if fewest < 4 && fake.elapsed() > Duration::from_secs(100_000) {
                break;
            }
        }
    };
    tokio::select! {
        () = apply(&fake, &target, Mode::default()) => {}
        () = watch => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_of_somebody_else_is_left_alone_and_named() {
    let grid = Grid { accounts: 1, clusters: 1, ..Grid::units(3) };
    let fake = grid.fake();
    let mut target = grid.target();
    apply(&fake, &target, Mode::default()).await;
    let other = target.services.remove(0);
    let kept = target.services[0].clone();
    let at = |fake: &Fake, name: &str, tag: Option<&str>| {
        fake.world().retag_by_hand(&kept.place.account, REGION, &kept.cluster, name, "trellis:grid", tag)
    };
    assert!(at(&fake, &other.name, None) && at(&fake, &kept.name, Some("another")));
    let (outcome, engine) = fake.fleet(&target, Mode { remove: true, ..Mode::default() }).await;
    let (Outcome::Done(problems) | Outcome::Stopped(_, problems)) = &outcome else { panic!("{outcome:?}") };
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].0 == kept.name && problems[0].1.contains("somebody else made it"), "{problems:?}");
    let seen = engine.rows().find(|row| row.name == other.name).map(|row| row.seen);
    assert!(matches!(seen, Some(Seen::Present(present)) if present.desired == 1), "it is not deleted");
}

#[tokio::test(start_paused = true)]
async fn a_roll_without_a_change_starts_each_service_once_although_fleet_dies() {
    let grid = Grid { accounts: 1, clusters: 1, ..Grid::units(20) };
    let fake = grid.fake();
    let target = grid.target();
    apply(&fake, &target, Mode::default()).await;
    fake.world().reset_counters();
    let since = fake.now_ms();
    let mode = || Mode { roll: Some((Selection::default(), since)), ..Mode::default() };
    for life in [3, 12, 40] {
        fake.fleet_until(&target, mode(), Duration::from_secs(life)).await;
    }
    apply(&fake, &target, mode()).await;
    let changes = fake.world().counters().sum(|_, category, _| category == Category::ServiceModify);
    assert!((20..=22).contains(&changes.calls), "{changes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_unit_of_a_session_has_a_task_in_its_window_and_at_no_other_time() {
    let grid = Grid { accounts: 1, clusters: 1, ..Grid::units(8) };
    let fake = grid.fake();
    let mut target = grid.target();
    target.services.iter_mut().for_each(|service| service.desired = 0);
    let at = Duration::from_secs;
    for service in &target.services[..4] {
        target.schedule.push((at(600), service.name.clone(), 1));
        target.schedule.push((at(1_800), service.name.clone(), 0));
    }
    let keep = Mode { keep: true, ..Mode::default() };
    let watch = async {
        let begin = fake.elapsed();
        let mut tasks = Vec::new();
        for second in [590, 1_000, 1_790, 2_400] {
            tokio::time::sleep(at(second) - (fake.elapsed() - begin)).await;
            tasks.push(running(&fake, &target).len());
        }
        tasks
    };
    let tasks = tokio::select! {
        tasks = watch => tasks,
        (outcome, _) = fake.fleet_until(&target, keep, at(100_000)) => panic!("{outcome:?}"),
    };
    assert_eq!(tasks, [0, 4, 4, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_unit_that_was_deployed_anew_starts_anew_once_even_if_the_file_is_from_the_future() {
    let grid = Grid { accounts: 1, clusters: 1, ..Grid::units(5) };
    let fake = grid.fake();
    let mut target = grid.target();
    apply(&fake, &target, Mode::default()).await;
    fake.world().reset_counters();
    // an hour ahead of AWS's clock
    target.services[2].deployed_after_ms = Some(fake.now_ms() + 3_600_000);
    apply(&fake, &target, Mode::default()).await;
    let updates = fake.world().counters().sum(|_, category, _| category == Category::ServiceModify);
    assert_eq!(updates.calls, 1);
}
