//! The right to publish: taken, renewed in the background, noticed when it is lost, given back.
//!
//! A lease holds from the moment of the *request* until its time is over, by this process's monotonic clock. The shard starts to
//! count later, so the process always stops first, and nobody compares two clocks. Between two renewals the process needs no
//! answer from the shard: it asks [`HeldLease::epoch`] before each publish. If the whole process pauses just after that, the shard
//! refuses the publish by its epoch.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinHandle, time::sleep};
use trellis_fabric::retry::Pauses;
use trellis_proto::{Code, DatasetName, DatasetSpec, Error, Result, pb};

use crate::client::Client;

/// How long a lease lasts without renewal. A unit that is killed and started again waits at most this long. A pause of the grid
/// that is shorter than this does no harm.
pub(crate) const TTL: Duration = Duration::from_secs(15);
/// Renewals in a lease's time, so that one may fail without harm.
const RENEWALS: u32 = 3;
/// First pause while another process holds the lease; it doubles.
const WAIT_MIN: Duration = Duration::from_millis(200);
/// Longest pause while another process holds the lease.
const WAIT_MAX: Duration = Duration::from_secs(3);
/// How long the process tries to give the lease back. It is a courtesy to the next holder.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// A request for a lease.
#[derive(Debug, Clone)]
pub(crate) struct LeaseRequest {
    /// Name of the unit.
    pub unit: String,
    /// Name of this process.
    pub instance: String,
    /// The dataset; the shard makes it if there is none.
    pub spec: DatasetSpec,
    /// Take the lease even if another instance holds it, or the dataset was another unit's output.
    pub take_over: bool,
    /// How long the lease lasts without renewal.
    pub ttl: Duration,
}

#[derive(Debug, Clone)]
enum State {
    Held {
        epoch: u64,
        until: Instant,
        /// Why the last renewal failed, if it did.
        failed: Option<Error>,
    },
    Lost(Error),
}

impl State {
    /// The epoch to publish with at `now`.
    ///
    /// # Errors
    /// Why the lease was lost. After its time: the error of the last renewal.
    fn epoch(&self, now: Instant, dataset: &DatasetName) -> Result<u64> {
        let failed = match self {
            Self::Held { epoch, until, .. } if now < *until => return Ok(*epoch),
            Self::Held { failed, .. } => failed,
            Self::Lost(error) => return Err(error.clone()),
        };
        let late = format!("the lease on {dataset} could not be renewed in time");
        Err(match failed {
            Some(why) => Error::new(why.code(), format!("{late}: {}", why.message()))
                .side(why.whose())
                .hint(why.hint_text())
                .shard(why.place().2),
            None => Error::new(Code::Unavailable, late),
        }
        .dataset(dataset))
    }
}

/// A lease that a task renews until it is dropped, released or lost.
#[derive(Debug)]
pub(crate) struct HeldLease {
    client: Client,
    request: Arc<LeaseRequest>,
    state: watch::Receiver<State>,
    renewal: JoinHandle<()>,
}

impl HeldLease {
    /// Takes the lease. While another process holds it, waits for at most `patience`. Cancel safe, but a lease that was granted to a
    /// dropped future lasts until its time is over.
    ///
    /// # Errors
    /// At once `Conflict` if the dataset exists with another schema, and `PermissionDenied` if it is another unit's output;
    /// `Conflict` after `patience` if another instance still holds it; otherwise the last retryable error at the client's deadline.
    pub(crate) async fn acquire(client: &Client, request: LeaseRequest, patience: Duration) -> Result<Self> {
        check_schema(client, &request.spec).await?;
        let end = Instant::now() + patience;
        let mut pauses = Pauses::new(WAIT_MIN, WAIT_MAX);
        let (asked, lease) = loop {
            let asked = Instant::now();
            match client.acquire_lease(to_wire(&request)).await {
                Ok(lease) => break (asked, lease),
                Err(error) if error.code() == Code::Conflict && Instant::now() < end => {
                    tracing::info!(dataset = %request.spec.dataset, %error, "waiting for the lease");
                    sleep(pauses.next_pause()).await;
                }
                Err(error) => return Err(error),
            }
        };
        Ok(Self::begin(client, request, asked, &lease))
    }

    /// Asks once for the lost lease, and does not take it over.
    ///
    /// # Errors
    /// `Conflict` while another instance holds it, `PermissionDenied` if it is another unit's output now; otherwise the last
    /// retryable error at the client's deadline.
    pub(crate) async fn again(&self) -> Result<Self> {
        let request = LeaseRequest { take_over: false, ..self.request().clone() };
        let asked = Instant::now();
        let lease = self.client.acquire_lease(to_wire(&request)).await?;
        Ok(Self::begin(&self.client, request, asked, &lease))
    }

    fn begin(client: &Client, request: LeaseRequest, asked: Instant, lease: &pb::Lease) -> Self {
        tracing::info!(dataset = %request.spec.dataset, epoch = lease.epoch, "lease held");
        let (sender, state) = watch::channel(held(asked, lease));
        let request = Arc::new(request);
        let renewal =
            tokio::spawn(renew(client.with_deadline(request.ttl / RENEWALS), request.clone(), sender));
        Self { client: client.clone(), request, state, renewal }
    }

    /// The epoch to publish with.
    ///
    /// # Errors
    /// `Fenced` if another process took the lease. If it ran out because it could not be renewed: the error of the last renewal.
    pub(crate) fn epoch(&self) -> Result<u64> {
        self.state.borrow().epoch(Instant::now(), &self.request.spec.dataset)
    }

    /// The request that was granted.
    #[must_use]
    pub(crate) fn request(&self) -> &LeaseRequest {
        &self.request
    }

    /// Gives the lease back, so that the next holder need not wait. A failure is logged and does no harm.
    pub(crate) async fn release(self) {
        self.renewal.abort();
        let Ok(epoch) = self.epoch() else { return };
        let request = pb::ReleaseLeaseRequest {
            dataset: self.request.spec.dataset.to_string(),
            unit: self.request.unit.clone(),
            instance: self.request.instance.clone(),
            epoch,
        };
        if let Err(error) = self.client.with_deadline(RELEASE_TIMEOUT).release_lease(request).await {
            tracing::warn!(dataset = %self.request.spec.dataset, %error, "the lease was not given back; it will run out");
        }
    }
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

fn held(asked: Instant, lease: &pb::Lease) -> State {
    let until = asked + Duration::from_millis(lease.expires_in_ms.into());
    State::Held { epoch: lease.epoch, until, failed: None }
}

fn to_wire(request: &LeaseRequest) -> pb::AcquireLeaseRequest {
    pb::AcquireLeaseRequest {
        dataset: request.spec.dataset.to_string(),
        unit: request.unit.clone(),
        instance: request.instance.clone(),
        take_over: request.take_over,
        ttl_ms: ttl_ms(request),
        spec: Some((&request.spec).into()),
    }
}

fn ttl_ms(request: &LeaseRequest) -> u32 {
    u32::try_from(request.ttl.as_millis()).unwrap_or(u32::MAX)
}

async fn renew(client: Client, request: Arc<LeaseRequest>, state: watch::Sender<State>) {
    loop {
        sleep(request.ttl / RENEWALS).await;
        let State::Held { epoch, until, .. } = *state.borrow() else { return };
        let renewal = pb::RenewLeaseRequest {
            dataset: request.spec.dataset.to_string(),
            unit: request.unit.clone(),
            instance: request.instance.clone(),
            epoch,
            ttl_ms: ttl_ms(&request),
        };
        let asked = Instant::now();
        match client.renew_lease(renewal).await {
            Ok(lease) => _ = state.send(held(asked, &lease)),
            // the grid may come back; even after its time the lease is ours if nobody else has asked for it
            Err(error) if error.retryable() => {
                let left_ms = until.saturating_duration_since(Instant::now()).as_millis() as u64;
                tracing::warn!(dataset = %request.spec.dataset, left_ms, %error, "the lease could not be renewed");
                _ = state.send(State::Held { epoch, until, failed: Some(error) });
            }
            Err(error) => {
                tracing::error!(dataset = %request.spec.dataset, epoch, %error, "the lease is lost");
                _ = state.send(State::Lost(error));
                return;
            }
        }
    }
}

/// Checks the schema before the lease: waiting for a lease does not help if the schemas differ.
async fn check_schema(client: &Client, spec: &DatasetSpec) -> Result<()> {
    let there = match client.describe(Some(&spec.dataset)).await {
        Ok(mut found) => found.pop().and_then(|description| description.spec),
        Err(error) if error.code() == Code::UnknownDataset => None,
        Err(error) => return Err(error),
    };
    let Some(there) = there.map(DatasetSpec::try_from).transpose()? else { return Ok(()) };
    // the grant of the lease widens the dataset to a wider declaration
    if there.widened(spec).is_ok_and(|wide| wide.agrees_with(spec)) {
        return Ok(());
    }
    let list = |spec: &DatasetSpec| {
        let fields = spec.fields.iter().map(|field| {
            format!("{}: {}{}", field.name, field.data_type.name(), if field.nullable { "?" } else { "" })
        });
        fields.collect::<Vec<_>>().join(", ")
    };
    Err(Error::new(
        Code::Conflict,
        format!("{} has the fields {}; the unit declares {}", spec.dataset, list(&there), list(spec)),
    )
    .hint(
        "a declaration may add fields that may be missing and widen types, and leave nothing out: declare what is there, publish \
         to another dataset, or change this one with `trellis dataset alter`",
    )
    .dataset(&spec.dataset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_ran_out_says_why_its_last_renewal_failed() {
        let (dataset, until) = (DatasetName::new("signals.mom").unwrap(), Instant::now());
        let held = |failed| State::Held { epoch: 7, until, failed };
        let full = Error::new(Code::StorageFull, "the disk is full").shard("shard-1").hint("free some space");
        assert_eq!(held(Some(full.clone())).epoch(until - Duration::from_millis(1), &dataset), Ok(7));
        let error = held(Some(full)).epoch(until, &dataset).unwrap_err();
        assert_eq!((error.code(), error.place()), (Code::StorageFull, ("signals.mom", "", "shard-1")));
        assert_eq!(
            error.message(),
            "the lease on signals.mom could not be renewed in time: the disk is full"
        );
        assert_eq!(held(None).epoch(until, &dataset).unwrap_err().code(), Code::Unavailable);
    }
}
