//! How fast calls may go: a token bucket for each account, Region and category of the API.
//!
//! Time is a [`Duration`] since the start of the program; nothing here reads a clock.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::model::Place;

/// Share of AWS's rate that a bucket starts with. The rest is for people and other programs in the account.
pub const SHARE_START: f64 = 0.8;
/// The most that a bucket comes to while AWS refuses nothing: others still get a twentieth without being refused.
pub const SHARE_MAX: f64 = 0.95;
/// The least after many refusals: a bucket must still learn that the rate is back.
pub const SHARE_MIN: f64 = 0.05;
/// What a bucket recovers in each [`STEP`] without a refusal: from a halved rate back to the start in less than four minutes.
pub const SHARE_STEP: f64 = 0.02;
/// See [`SHARE_STEP`].
pub const STEP: Duration = Duration::from_secs(10);
/// Share of AWS's burst that a bucket saves up. A bucket starts empty, because another `fleet` may have died a second ago; and a
/// burst gains nothing for a roll-out that takes an hour.
pub const BURST_SHARE: f64 = 0.2;
/// Share of the saved burst that only repairs may use, so that a roll-out never makes a repair wait.
pub const REPAIR_SHARE: f64 = 0.5;

/// The categories in which AWS counts calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// CreateService, UpdateService, DeleteService.
    ServiceModify,
    /// ListServices, DescribeServices.
    ServiceRead,
    /// RegisterTaskDefinition, DeregisterTaskDefinition.
    DefinitionModify,
    /// ListTaskDefinitions, DescribeTaskDefinition.
    DefinitionRead,
    /// ListClusters, DescribeClusters.
    ClusterRead,
    /// RunTask, StopTask.
    TaskModify,
    /// ListTasks, DescribeTasks.
    TaskRead,
    /// TagResource, ListTagsForResource.
    Tags,
    /// All calls of Cloud Map. AWS does not publish its limits.
    CloudMap,
    /// All calls of SQS.
    Queue,
}

impl Category {
    /// Every category.
    pub const ALL: [Self; 10] = [
        Self::ServiceModify,
        Self::ServiceRead,
        Self::DefinitionModify,
        Self::DefinitionRead,
        Self::ClusterRead,
        Self::TaskModify,
        Self::TaskRead,
        Self::Tags,
        Self::CloudMap,
        Self::Queue,
    ];

    /// What AWS allows an account in a Region by default.
    #[must_use]
    pub fn published(self) -> Rate {
        let (per_second, burst) = match self {
            Self::ServiceModify => (5.0, 50.0),
            Self::ServiceRead => (20.0, 100.0),
            Self::DefinitionModify => (1.0, 20.0),
            Self::DefinitionRead | Self::ClusterRead => (20.0, 50.0),
            Self::TaskModify => (40.0, 100.0),
            Self::TaskRead => (20.0, 100.0),
            Self::Tags => (10.0, 20.0),
            // not published: as careful as the lowest rate of Route 53 behind it
            Self::CloudMap => (5.0, 10.0),
            // a standard queue has no limit; this one keeps the machine from spinning
            Self::Queue => (300.0, 300.0),
        };
        Rate { per_second, burst }
    }
}

/// A rate that AWS allows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// Calls per second, for ever.
    pub per_second: f64,
    /// Calls at once, after a pause.
    pub burst: f64,
}

/// Who asks for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A roll-out. It leaves [`REPAIR_SHARE`] of the saved burst alone.
    Roll,
    /// Something that was right and is not any more.
    Repair,
}

/// The tokens of one category in one place.
#[derive(Clone, Debug)]
pub struct Bucket {
    rate: Rate,
    share: f64,
    tokens: f64,
    at: Duration,
    /// When the share changed last.
    stepped: Duration,
    /// Answers to calls that were sent before this say nothing new about the rate.
    slowed: Option<Duration>,
}

impl Bucket {
    /// An empty bucket.
    #[must_use]
    pub fn new(rate: Rate, now: Duration) -> Self {
        Self { rate, share: SHARE_START, tokens: 0.0, at: now, stepped: now, slowed: None }
    }

    /// Calls per second at present.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.rate.per_second * self.share
    }

    /// The most tokens that the bucket saves. They are always enough for one repair beside a roll-out.
    #[must_use]
    pub fn capacity(&self) -> f64 {
        (self.rate.burst * BURST_SHARE).max(2.0)
    }

    fn reserve(&self, purpose: Purpose) -> f64 {
        match purpose {
            Purpose::Repair => 0.0,
            Purpose::Roll => (self.capacity() * REPAIR_SHARE).min(self.capacity() - 1.0),
        }
    }

    fn refill(&mut self, now: Duration) {
        // the share rises in steps, so each stretch between two steps has its own rate
        while self.at < now {
            let step = self.stepped + STEP;
            let until = now.min(step);
            let tokens = self.tokens + self.per_second() * (until.saturating_sub(self.at)).as_secs_f64();
            self.tokens = tokens.min(self.capacity());
            self.at = self.at.max(until);
            if until == step {
                self.stepped = step;
                self.share = (self.share + SHARE_STEP).min(SHARE_MAX);
                if self.share >= SHARE_MAX {
                    // nothing changes any more: the rest is one stretch
                    let rest = self.per_second() * now.saturating_sub(self.at).as_secs_f64();
                    self.tokens = (self.tokens + rest).min(self.capacity());
                    (self.at, self.stepped) = (now, now);
                }
            }
        }
    }

    /// Takes a token, or says when there will be one.
    ///
    /// # Errors
    /// The time at which to ask again.
    pub fn take(&mut self, now: Duration, purpose: Purpose) -> Result<(), Duration> {
        self.refill(now);
        let lacks = 1.0 + self.reserve(purpose) - self.tokens;
        // a token that is a rounding error short is a token
        if lacks <= 1e-6 {
            self.tokens = (self.tokens - 1.0).max(0.0);
            return Ok(());
        }
        // a millisecond more, so that the caller does not come just too early for ever
        Err(now + Duration::from_secs_f64(lacks / self.per_second()) + Duration::from_millis(1))
    }

    /// AWS refused a call that was sent at `sent`: half the rate, once for all calls that were under way, and no tokens.
    pub fn throttled(&mut self, sent: Duration, now: Duration) {
        self.refill(now);
        if self.slowed.is_some_and(|slowed| sent <= slowed) {
            return;
        }
        self.share = (self.share / 2.0).max(SHARE_MIN);
        self.tokens = 0.0;
        (self.slowed, self.stepped) = (Some(now), now);
    }
}

/// Rates that differ from the published ones, by account.
pub type Overrides = BTreeMap<String, BTreeMap<Category, Rate>>;

/// All buckets.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    overrides: Overrides,
    buckets: BTreeMap<(Place, Category), Bucket>,
}

impl Pace {
    /// Without a call yet.
    #[must_use]
    pub fn new(overrides: Overrides) -> Self {
        Self { overrides, buckets: BTreeMap::new() }
    }

    /// What AWS allows in a place.
    #[must_use]
    pub fn rate(&self, place: &Place, category: Category) -> Rate {
        let own = self.overrides.get(&place.account).and_then(|rates| rates.get(&category));
        own.copied().unwrap_or_else(|| category.published())
    }

    /// The bucket of a category in a place.
    pub fn bucket(&mut self, place: &Place, category: Category, now: Duration) -> &mut Bucket {
        let rate = self.rate(place, category);
        self.buckets.entry((place.clone(), category)).or_insert_with(|| Bucket::new(rate, now))
    }

    /// Calls per second at present, for showing.
    #[must_use]
    pub fn per_second(&self, place: &Place, category: Category) -> f64 {
        let started = self.buckets.get(&(place.clone(), category)).map(Bucket::per_second);
        started.unwrap_or_else(|| self.rate(place, category).per_second * SHARE_START)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate { per_second: 5.0, burst: 50.0 };

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// Takes as many as it can until `end`, and says when each was taken.
    fn drain(bucket: &mut Bucket, start: Duration, end: Duration, purpose: Purpose) -> Vec<Duration> {
        let (mut now, mut taken) = (start, Vec::new());
        while now <= end {
            match bucket.take(now, purpose) {
                Ok(()) => taken.push(now),
                Err(later) => {
                    assert!(later > now, "the time to ask again is later");
                    now = later;
                }
            }
        }
        taken
    }

    #[test]
    fn a_roll_begins_below_the_rate_of_aws_and_comes_near_to_it() {
        let mut bucket = Bucket::new(RATE, Duration::ZERO);
        assert!((bucket.per_second() - 4.0).abs() < 1e-9);
        let taken = drain(&mut bucket, Duration::ZERO, seconds(1_000.0), Purpose::Roll);
        assert!((bucket.per_second() - 4.75).abs() < 1e-9, "after {:?}", bucket);
        assert!((4_600..4_750).contains(&taken.len()), "{}", taken.len());
    }

    #[test]
    fn a_refusal_halves_the_rate_once_for_all_calls_that_were_under_way() {
        let mut bucket = Bucket::new(RATE, Duration::ZERO);
        bucket.throttled(seconds(0.5), seconds(1.0));
        bucket.throttled(seconds(0.6), seconds(1.1));
        bucket.throttled(seconds(0.9), seconds(1.2));
        assert!((bucket.per_second() - 2.0).abs() < 1e-9);
        bucket.throttled(seconds(1.3), seconds(1.4));
        assert!((bucket.per_second() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_halved_rate_recovers_by_steps() {
        let mut bucket = Bucket::new(RATE, Duration::ZERO);
        bucket.throttled(seconds(1.0), seconds(1.0));
        let mut at = |second: f64| {
            bucket.refill(seconds(second));
            bucket.per_second()
        };
        assert!((at(10.9) - 2.0).abs() < 1e-9);
        assert!((at(11.1) - 2.1).abs() < 1e-9);
        assert!((at(201.1) - 4.0).abs() < 1e-9);
    }

    #[test]
    fn a_roll_leaves_tokens_for_repairs() {
        let mut bucket = Bucket::new(RATE, Duration::ZERO);
        let rolled = drain(&mut bucket, seconds(100.0), seconds(100.0), Purpose::Roll).len();
        let repaired = drain(&mut bucket, seconds(100.0), seconds(100.0), Purpose::Repair).len();
        assert_eq!((rolled, repaired), (5, 5));
    }

    #[test]
    fn an_account_may_have_rates_of_its_own() {
        let place = |account: &str| Place { account: account.into(), region: "eu-central-1".into() };
        let own = Rate { per_second: 20.0, burst: 100.0 };
        let pace = Pace::new([("1".to_owned(), [(Category::ServiceModify, own)].into())].into());
        assert_eq!(pace.rate(&place("1"), Category::ServiceModify), own);
        assert_eq!(pace.rate(&place("1"), Category::ServiceRead), Category::ServiceRead.published());
        assert_eq!(pace.rate(&place("2"), Category::ServiceModify), Category::ServiceModify.published());
    }

    /// The same bucket in steps of a millisecond.
    struct Oracle {
        rate: Rate,
        share: f64,
        tokens: f64,
        millis: u64,
        stepped: u64,
        slowed: Option<u64>,
    }

    impl Oracle {
        fn advance(&mut self, millis: u64) {
            let capacity = (self.rate.burst * BURST_SHARE).max(2.0);
            while self.millis < millis {
                self.millis += 1;
                self.tokens = (self.tokens + self.rate.per_second * self.share / 1_000.0).min(capacity);
                if self.millis - self.stepped == 10_000 {
                    self.stepped = self.millis;
                    self.share = (self.share + SHARE_STEP).min(SHARE_MAX);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_bucket_is_what_a_slow_one_is(
            per_second in 0.5..50.0_f64,
            burst in 1.0..200.0_f64,
            steps in prop::collection::vec((0_u64..40_000, 0_u8..4, 0_u64..3_000), 1..40),
        ) {
            let rate = Rate { per_second, burst };
            let mut bucket = Bucket::new(rate, Duration::ZERO);
            let mut oracle = Oracle { rate, share: SHARE_START, tokens: 0.0, millis: 0, stepped: 0, slowed: None };
            for (wait, what, ago) in steps {
                let millis = oracle.millis + wait;
                oracle.advance(millis);
                let now = Duration::from_millis(millis);
                let sent = millis.saturating_sub(ago);
                if what == 3 {
                    bucket.throttled(Duration::from_millis(sent), now);
                    if oracle.slowed.is_none_or(|slowed| sent > slowed) {
                        oracle.share = (oracle.share / 2.0).max(SHARE_MIN);
                        (oracle.tokens, oracle.slowed, oracle.stepped) = (0.0, Some(millis), millis);
                    }
                } else {
                    bucket.refill(now);
                    // a step of the share may fall on either side of a token: tell them apart only beyond a rounding error
                    prop_assert!((bucket.tokens - oracle.tokens).abs() < 1e-3, "{bucket:?} {}", oracle.tokens);
                    let took = bucket.take(now, if what == 0 { Purpose::Repair } else { Purpose::Roll }).is_ok();
                    if took {
                        oracle.tokens = (oracle.tokens - 1.0).max(0.0);
                    }
                    prop_assert!((bucket.tokens - oracle.tokens).abs() < 1e-3);
                }
                prop_assert!((bucket.share - oracle.share).abs() < 1e-9, "{bucket:?} {}", oracle.share);
            }
        }

        #[test]
        fn the_bucket_of_aws_never_refuses(
            per_second in 0.5..20.0_f64,
            burst in 10.0..100.0_f64,
            from in 0.0..500.0_f64,
        ) {
            let rate = Rate { per_second, burst };
            let mut bucket = Bucket::new(rate, Duration::ZERO);
            let (mut tokens, mut before) = (burst, seconds(from));
            for at in drain(&mut bucket, seconds(from), seconds(from + 300.0), Purpose::Repair) {
                tokens = (tokens + per_second * (at - before).as_secs_f64()).min(burst) - 1.0;
                prop_assert!(tokens >= 0.0, "AWS refuses the call at {at:?}");
                before = at;
            }
        }
    }
}
