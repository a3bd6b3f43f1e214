//! What a world is made with: seed, times, quotas, rates.

use std::ops::Range;
use std::time::Duration;

use crate::buckets::Category;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Everything that a world is a function of, besides the calls it gets.
#[derive(Clone, Debug)]
pub struct Settings {
    /// All that looks like chance is a function of it.
    pub seed: u64,
    /// Unix seconds at `now` zero.
    pub epoch: u64,
    /// Name of the grid: the queue of the cluster `peony` is `GRID-peony-events`.
    pub grid: String,
    /// The account of a caller whose access key names none.
    pub account: String,
    /// A read of services shows a write after a time in this range. Both zero: at once.
    pub lag: Range<Duration>,
    /// Seconds of the world in a second of the clock of `serve`. `World::handle` does not use it.
    pub speed: f64,
    /// How long things take.
    pub times: Times,
    /// Quotas of every account and Region.
    pub quotas: Quotas,
    /// Rates that differ from AWS's defaults: `(category, burst, tokens a second)`.
    pub rates: Vec<(Category, u32, f64)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            seed: 1,
            epoch: 1_796_000_000, // 2026-11-30
            grid: "trellis".into(),
            account: "123456789012".into(),
            lag: s(0)..s(3),
            speed: 1.0,
            times: Times::default(),
            quotas: Quotas::default(),
            rates: Vec::new(),
        }
    }
}

/// How long each step in the life of a task takes, and what follows from it. None of these is published by AWS, but `settled`, `stopped` and
/// the 120 seconds of a Spot notice.
#[derive(Clone, Debug)]
pub struct Times {
    /// In PROVISIONING: a network interface is attached.
    pub provisioning: Range<Duration>,
    /// In PENDING: the image is pulled.
    pub pending: Range<Duration>,
    /// In ACTIVATING: the task is registered in Cloud Map. Only tasks with a registry have this step.
    pub activating: Range<Duration>,
    /// In RUNNING until the health check of the container says healthy.
    pub healthy: Range<Duration>,
    /// Without a health check, the scheduler counts a task as healthy after this time in RUNNING (AWS: 40 s).
    pub settled: Duration,
    /// In DEACTIVATING: the task is taken out of Cloud Map.
    pub deactivating: Range<Duration>,
    /// In STOPPING, if the process ends before its stop timeout.
    pub stopping: Range<Duration>,
    /// In DEPROVISIONING: the network interface is detached.
    pub deprovisioning: Range<Duration>,
    /// A stopped task can be described for this time (AWS: an hour).
    pub stopped: Duration,
    /// A deleted service can be described for this time.
    pub inactive: Duration,
    /// From a change to its message in the queue.
    pub event: Range<Duration>,
    /// From a change in Cloud Map to answers that show it (AWS: about 30 s for health).
    pub discovery: Range<Duration>,
    /// The scheduler looks at a service this long after a change of it.
    pub scheduler: Range<Duration>,
    /// The scheduler tries again this long after a task could not be placed; doubled up to `retry_most`.
    pub retry: Duration,
    /// See `retry`.
    pub retry_most: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            provisioning: s(5)..s(20),
            pending: s(8)..s(35),
            activating: s(1)..s(5),
            healthy: s(10)..s(40),
            settled: s(40),
            deactivating: s(1)..s(6),
            stopping: s(1)..s(12),
            deprovisioning: s(4)..s(15),
            stopped: s(3600),
            inactive: s(3600),
            event: Duration::from_millis(200)..s(3),
            discovery: s(5)..s(30),
            scheduler: Duration::from_millis(500)..s(4),
            retry: s(30),
            retry_most: s(900),
        }
    }
}

/// Quotas of an account in a Region. The defaults are those of AWS, but the vCPUs: AWS gives 6, and a fleet has asked for more.
#[derive(Clone, Debug)]
pub struct Quotas {
    /// Services of a cluster.
    pub services: usize,
    /// Tasks of a cluster that are in PROVISIONING. More of them wait.
    pub provisioning: usize,
    /// vCPUs of tasks on FARGATE.
    pub fargate_vcpu: f64,
    /// vCPUs of tasks on FARGATE_SPOT.
    pub spot_vcpu: f64,
    /// vCPUs of tasks on managed instances (the EC2 quota).
    pub managed_vcpu: f64,
    /// Fargate launches: the burst.
    pub launch_burst: u32,
    /// Fargate launches a second.
    pub launch_rate: f64,
    /// Most instances that Cloud Map takes in a namespace.
    pub namespace_instances: usize,
    /// Most instances that Cloud Map takes in a service.
    pub service_instances: usize,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            services: 5000,
            provisioning: 500,
            fargate_vcpu: 20_000.0,
            spot_vcpu: 20_000.0,
            managed_vcpu: 20_000.0,
            launch_burst: 100,
            launch_rate: 20.0,
            namespace_instances: 2000,
            service_instances: 1000,
        }
    }
}
