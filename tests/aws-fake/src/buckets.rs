//! Token buckets: how often a category of calls is allowed to an account in a Region.

use std::time::Duration;

/// What AWS counts together. The rates are in `Category::rate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Category {
    ServiceModify,
    ServiceRead,
    DefinitionModify,
    DefinitionRead,
    ClusterModify,
    ClusterRead,
    ProviderModify,
    ProviderRead,
    TagModify,
    TagRead,
    TaskModify,
    TaskRead,
    DeploymentRead,
    NamespaceServices,
    SettingModify,
    Discover,
    DiscoverRevision,
    MapModify,
    MapRead,
    Queue,
    Token,
}

impl Category {
    /// `(burst, tokens a second)`. Those of ECS, and of DiscoverInstances, are AWS's documentation, but three that nothing names:
    /// reads of providers, of tags, and changes of settings are like their neighbours. AWS says that it does not publish the rates of the
    /// other calls of Cloud Map; those of SQS and STS are so high that no test of a fleet should meet them.
    pub fn rate(self) -> (u32, f64) {
        match self {
            Category::ServiceModify => (50, 5.0),
            Category::ServiceRead => (100, 20.0),
            Category::DefinitionModify => (20, 1.0),
            Category::DefinitionRead => (50, 20.0),
            Category::ClusterModify => (20, 1.0),
            Category::ClusterRead => (50, 20.0),
            Category::ProviderModify => (10, 1.0),
            Category::ProviderRead => (50, 20.0),
            Category::TagModify => (20, 10.0),
            Category::TagRead => (50, 20.0),
            Category::TaskModify => (100, 40.0),
            Category::TaskRead => (100, 20.0),
            Category::DeploymentRead => (50, 20.0),
            Category::NamespaceServices => (10, 1.0),
            Category::SettingModify => (20, 1.0),
            Category::Discover => (2000, 1000.0),
            Category::DiscoverRevision => (3000, 3000.0),
            Category::MapModify => (50, 5.0),
            Category::MapRead => (100, 20.0),
            Category::Queue => (3000, 3000.0),
            Category::Token => (600, 600.0),
        }
    }

    /// The category of a call of ECS; none for a call that the fake does not know.
    pub(crate) fn of_ecs(op: &str) -> Option<Self> {
        Some(match op {
            "CreateService" | "UpdateService" | "DeleteService" => Category::ServiceModify,
            "DescribeServices" | "ListServices" => Category::ServiceRead,
            "RegisterTaskDefinition" | "DeregisterTaskDefinition" => Category::DefinitionModify,
            "DescribeTaskDefinition" | "ListTaskDefinitions" => Category::DefinitionRead,
            "CreateCluster" => Category::ClusterModify,
            "DescribeClusters" | "ListClusters" => Category::ClusterRead,
            "DescribeCapacityProviders" => Category::ProviderRead,
            "TagResource" | "UntagResource" => Category::TagModify,
            "ListTagsForResource" => Category::TagRead,
            "RunTask" | "StopTask" => Category::TaskModify,
            "ListTasks" | "DescribeTasks" => Category::TaskRead,
            "ListServiceDeployments" | "DescribeServiceDeployments" => Category::DeploymentRead,
            "ListServicesByNamespace" => Category::NamespaceServices,
            "PutAccountSettingDefault" => Category::SettingModify,
            _ => return None,
        })
    }
}

/// A token bucket, kept as the time at which it will be full again. It never looks at the past, so nothing is to be refilled.
#[derive(Clone, Debug)]
pub struct Bucket {
    full_at: Duration,
    burst: u32,
    every: Duration,
}

impl Bucket {
    /// A full bucket of `burst` tokens that gets `rate` tokens a second.
    pub fn new(burst: u32, rate: f64) -> Self {
        Self { full_at: Duration::ZERO, burst, every: Duration::from_secs_f64(1.0 / rate) }
    }

    /// Takes a token. False, and nothing taken, if there is none. `factor` below 1 makes the bucket smaller and slower.
    pub fn take(&mut self, now: Duration, factor: f64) -> bool {
        let every = self.every.div_f64(factor);
        let burst = (f64::from(self.burst) * factor).max(1.0) as u32;
        let full_at = self.full_at.max(now) + every;
        let allowed = full_at <= now + every * burst;
        if allowed {
            self.full_at = full_at;
        }
        allowed
    }

    /// Reserves the next token. Returns when it is there: now, or later.
    pub fn reserve(&mut self, now: Duration) -> Duration {
        self.full_at = self.full_at.max(now) + self.every;
        now.max(self.full_at.saturating_sub(self.every * self.burst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// In every window of time, a bucket gives at most its burst and what flows in meanwhile.
        #[test]
        fn no_window_holds_more_than_burst_and_inflow(
            burst in 1u32..60, rate in 0.5f64..50.0, gaps in prop::collection::vec(0u64..2000, 1..200)
        ) {
            let mut bucket = Bucket::new(burst, rate);
            let mut now = Duration::ZERO;
            let mut given = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                if bucket.take(now, 1.0) {
                    given.push(now);
                }
            }
            for (i, from) in given.iter().enumerate() {
                for (j, to) in given.iter().enumerate().skip(i) {
                    let most = f64::from(burst) + rate * (*to - *from).as_secs_f64();
                    prop_assert!((j - i + 1) as f64 <= most + 1e-3, "{} given, {most} allowed", j - i + 1);
                }
            }
        }

        /// A caller that asks every 10 ms gets no less than the bucket promises. (With one token, it would lose those 10 ms.)
        #[test]
        fn a_hungry_caller_gets_burst_and_inflow(burst in 2u32..60, rate in 0.5f64..50.0, seconds in 1u64..60) {
            let mut bucket = Bucket::new(burst, rate);
            let given = (0..seconds * 100).filter(|i| bucket.take(Duration::from_millis(i * 10), 1.0)).count();
            let least = f64::from(burst) + rate * (seconds as f64 - 0.02);
            prop_assert!(given as f64 >= least.floor() - 1.0, "{given} given, {least} promised");
        }

        /// What is reserved comes in order, at the rate.
        #[test]
        fn reservations_follow_the_rate(burst in 1u32..60, rate in 0.5f64..50.0, count in 1usize..300) {
            let mut bucket = Bucket::new(burst, rate);
            let times: Vec<_> = (0..count).map(|_| bucket.reserve(Duration::ZERO)).collect();
            prop_assert!(times.is_sorted());
            let floor = (count as f64 - f64::from(burst)).max(0.0) / rate;
            prop_assert!((times[count - 1].as_secs_f64() - floor).abs() < 1e-3);
        }
    }

    #[test]
    fn a_refused_call_costs_no_token() {
        let mut bucket = Bucket::new(1, 1.0);
        assert!(bucket.take(Duration::ZERO, 1.0));
        for _ in 0..10 {
            assert!(!bucket.take(Duration::from_millis(500), 1.0));
        }
        assert!(bucket.take(Duration::from_secs(1), 1.0));
    }
}
