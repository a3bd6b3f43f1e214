//! What an account in a Region keeps: clusters, task definitions, services, tasks; namespaces; queues.

mod cluster;
mod definition;
mod map;
mod queue;
mod region;
mod service;
mod task;

pub(crate) use cluster::Cluster;
pub(crate) use definition::{Capacity, Definition, Revision, Tags};
pub(crate) use map::{CloudMap, Instance, Namespace, Registry};
pub(crate) use queue::{Note, Queue, RETENTION};
pub(crate) use region::Region;
pub(crate) use service::{Breaker, Deployment, Policy, Rollout, Service, State, Threshold};
pub(crate) use task::{End, Owner, Status, Task, hex, number};
