//! Calls of AWS, their answers and their faults, as values. What decides makes calls; the room `aws` sends them.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde_json::Value;

use crate::{
    model::{Place, Service},
    pace::Category,
};

/// Most services that one DescribeServices may name (AWS).
pub const DESCRIBE_MAX: usize = 10;

/// One call.
#[derive(Clone, Debug)]
pub struct Call {
    /// Where.
    pub place: Place,
    /// What.
    pub what: What,
}

/// What a call asks for.
#[derive(Clone, Debug)]
pub enum What {
    /// A page of the names of a cluster's services.
    ListServices {
        /// The cluster.
        cluster: String,
        /// The token of the page; none for the first.
        page: Option<String>,
    },
    /// What at most [`DESCRIBE_MAX`] services are.
    DescribeServices {
        /// The cluster.
        cluster: String,
        /// Their names.
        names: Vec<String>,
    },
    /// A service, made.
    CreateService(Box<Create>),
    /// A service, changed.
    UpdateService {
        /// The cluster.
        cluster: String,
        /// Its name.
        name: String,
        /// What changes.
        change: Change,
    },
    /// A service, deleted. Its count must be zero.
    DeleteService {
        /// The cluster.
        cluster: String,
        /// Its name.
        name: String,
    },
    /// The newest revision of a family.
    FindDefinition {
        /// The family.
        family: String,
    },
    /// A task definition, registered.
    Register {
        /// Its family.
        family: String,
        /// The body of RegisterTaskDefinition.
        body: Arc<Value>,
    },
    /// The id of a Cloud Map namespace.
    FindNamespace {
        /// Its name.
        name: String,
    },
    /// The services of a namespace.
    FindRegistries {
        /// Its id.
        namespace: String,
    },
    /// The URL of a queue.
    FindQueue {
        /// Its name.
        name: String,
    },
    /// Events from a queue.
    Receive {
        /// Its URL.
        url: String,
    },
    /// Events that were read, deleted from their queue.
    Forget {
        /// The queue's URL.
        url: String,
        /// The receipts of the messages.
        receipts: Vec<String>,
    },
}

/// What CreateService needs.
#[derive(Clone, Debug)]
pub struct Create {
    /// The service.
    pub service: Arc<Service>,
    /// The ARN of its task definition.
    pub definition: String,
    /// The ARN of its Cloud Map service.
    pub registry: Option<String>,
    /// Where its tasks get addresses.
    pub subnets: Vec<String>,
    /// Their security groups.
    pub security_groups: Vec<String>,
    /// The same for each try of the same creation: AWS then answers with the service that it made.
    pub token: String,
}

/// What UpdateService changes. What is none stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The ARN of the task definition.
    pub definition: Option<String>,
    /// The count.
    pub desired: Option<u32>,
    /// The capacity provider.
    pub provider: Option<String>,
    /// The ARN of the Cloud Map service; inner none: no longer registered.
    pub registry: Option<Option<String>>,
    /// Start the tasks anew even if nothing else changes.
    pub force: bool,
}

impl What {
    /// Its bucket.
    #[must_use]
    pub fn category(&self) -> Category {
        match self {
            Self::ListServices { .. } | Self::DescribeServices { .. } => Category::ServiceRead,
            Self::CreateService(_) | Self::UpdateService { .. } | Self::DeleteService { .. } => {
                Category::ServiceModify
            }
            Self::FindDefinition { .. } => Category::DefinitionRead,
            Self::Register { .. } => Category::DefinitionModify,
            Self::FindNamespace { .. } | Self::FindRegistries { .. } => Category::CloudMap,
            Self::FindQueue { .. } | Self::Receive { .. } | Self::Forget { .. } => Category::Queue,
        }
    }

    /// Its name in AWS's words.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::ListServices { .. } => "ListServices",
            Self::DescribeServices { .. } => "DescribeServices",
            Self::CreateService(_) => "CreateService",
            Self::UpdateService { .. } => "UpdateService",
            Self::DeleteService { .. } => "DeleteService",
            Self::FindDefinition { .. } => "DescribeTaskDefinition",
            Self::Register { .. } => "RegisterTaskDefinition",
            Self::FindNamespace { .. } => "ListNamespaces",
            Self::FindRegistries { .. } => "ListServices (Cloud Map)",
            Self::FindQueue { .. } => "GetQueueUrl",
            Self::Receive { .. } => "ReceiveMessage",
            Self::Forget { .. } => "DeleteMessageBatch",
        }
    }
}

/// What AWS answers.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Names, and the token of the next page.
    Names(Vec<String>, Option<String>),
    /// Services that exist, by name. A name that was asked for and is not here does not exist.
    Services(BTreeMap<String, Present>),
    /// The service after a change.
    Service(Present),
    /// The ARN of a revision; none if the family has no active one.
    Definition(Option<String>),
    /// An id or a URL; none if there is nothing of the name.
    Found(Option<String>),
    /// ARNs by name.
    Registries(BTreeMap<String, String>),
    /// Bodies of messages with their receipts.
    Messages(Vec<(String, String)>),
    /// Nothing to tell.
    Done,
}

/// A service as ECS describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Present {
    /// Whether it lives.
    pub status: Status,
    /// The ARN of the task definition that it should run.
    pub definition: String,
    /// The count that it should have.
    pub desired: u32,
    /// Tasks that run.
    pub running: u32,
    /// Tasks that start.
    pub pending: u32,
    /// Its capacity provider, if ECS tells one.
    pub provider: Option<String>,
    /// The ARN of its Cloud Map service.
    pub registry: Option<String>,
    /// Id of the newest deployment.
    pub deployment: String,
    /// How far that is.
    pub rollout: Rollout,
    /// Tasks of it that failed.
    pub failed_tasks: u32,
    /// Why it is where it is, in ECS's words.
    pub reason: String,
    /// When it began, in milliseconds since 1970.
    pub deployed_ms: i64,
    /// When the service was created, in milliseconds since 1970.
    pub created_ms: i64,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// The newest of the messages that ECS keeps of it, newest first.
    pub messages: Vec<String>,
}

/// Life of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It lives.
    Active,
    /// It was deleted, and its tasks end.
    Draining,
    /// It was deleted.
    Inactive,
}

/// Life of a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rollout {
    /// Under way.
    InProgress,
    /// Done.
    Completed,
    /// Broken off: three tasks failed.
    Failed,
}

/// The family of a task definition's ARN, or of `FAMILY:REVISION`.
#[must_use]
pub fn family(arn: &str) -> &str {
    let name = arn.rsplit('/').next().unwrap_or(arn);
    name.rsplit_once(':').map_or(name, |(family, _)| family)
}

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What kind of failure.
    pub kind: Kind,
    /// AWS's words, or the transport's.
    pub message: String,
}

/// Kinds of failures. They differ in what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Too many calls: slower, then again.
    Throttled,
    /// A service of this name exists, and another call made it.
    Exists,
    /// The service does not exist, or was deleted.
    Missing,
    /// The service was deleted, and its tasks have not ended.
    Draining,
    /// A quota is used up.
    Quota,
    /// The role has no right.
    Denied,
    /// AWS does not accept the call. It never will.
    Refused,
    /// No answer, or a failure inside of AWS. Whether the call was done is not known.
    Unavailable,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
