//! A fake of AWS for tests of `fleet`: ECS, Cloud Map, SQS and STS, with the formats of the wire, and time in the caller's hand.
//!
//! `World::handle` is the one door. It takes a time and an HTTP request, and returns a response. Nothing in it reads a clock or draws a
//! random number that is not a function of the seed, so a test that fails, fails again. `serve` puts a world behind a socket, with a clock.
//!
//! The account of a caller is in its access key: `ASIA`, the 12 digits of the account, 4 more digits; AssumeRole answers such keys. The
//! Region is in the credential scope. A response with `Lost` in its extensions must reach the client as a broken connection.
//!
//! # What is faked
//!
//! * Rates: a token bucket for each (account, Region, category of calls), with AWS's numbers (`Category::rate`). An empty bucket answers
//!   ThrottlingException (400); DiscoverInstances RequestLimitExceeded (429).
//! * Quotas: services and PROVISIONING tasks of a cluster, vCPUs by kind of capacity, Fargate's launch rate, instances of a namespace and
//!   of a Cloud Map service (`Quotas`).
//! * ECS: clusters, task definitions (sizes of Fargate, stop timeouts, ...), services with rolling deployments, circuit breaker, events and
//!   client tokens; tasks with all their states; RunTask; tags. A service with 0/100 has one task at most, also while it stops.
//! * Eventual consistency: after a write, DescribeServices and ListServices show the state before it for a while (`Settings::lag`).
//!   Checks of writes (names, tokens) are never behind.
//! * Events: each change of a task, deployments and service actions, in the queue `GRID-CLUSTER-events`. Messages come late, out of order,
//!   and again when they are not deleted.
//! * Keys of assumed roles end when they say: ExpiredTokenException. Other keys never end.
//! * Cloud Map: namespaces, services, instances, discovery with health that arrives late, sharing between accounts; `World::dns`.
//! * Faults and drift: the methods of `World` that set, lose, double, fail, throttle, interrupt.
//!
//! # What is not
//!
//! * Signatures and IAM: every caller may do everything in its account, and assume every role.
//! * Load balancers, Service Connect, daemons, task sets, container instances, other deployment controllers and strategies. A request that
//!   asks for what the fake does not do is refused with `NotFaked`, HTTP 501; so is a field that it does not know.
//! * Managed Instances have tasks, but no instances: a task starts as if an instance were there.
//! * The 500 launches a minute of one service; Route 53's rates; limits of tags on task definitions beyond their number.
//! * A long poll of SQS: `World::handle` answers at once. `serve` waits.
//!
//! # What nobody confirmed
//!
//! * How long things take (`Times`), and how far reads are behind: AWS does not publish it.
//! * CreateService with 0/100 and no `availabilityZoneRebalancing` is refused here. AWS says that ENABLED is the default, and that it needs
//!   more than 100 percent; it does not say whether it then refuses.
//! * CreateService for a service that exists, without its client token, is refused here, even if all else is equal.
//! * A task whose instance does not fit into its namespace ends with TaskFailedToStart here.
//! * The texts of some errors, and which error the quota of services is.

mod buckets;
mod cloudmap;
mod counters;
mod drift;
mod ecs;
mod fail;
mod faults;
mod kept;
mod page;
mod serve;
mod settings;
mod sqs;
mod sts;
mod time;
mod wire;
mod world;

pub use buckets::{Bucket, Category};
pub use counters::{Calls, Counters};
pub use faults::Failing;
pub use serve::serve;
pub use settings::{Quotas, Settings, Times};
pub use world::{Lost, World};
