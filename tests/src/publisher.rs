//! A publisher of benches: an output of its own, and one result after the other.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use trellis_proto::{
    DatasetSpec, pb,
    time::{DAY_NS, format_time},
};
use trellis_qcu::client::Client;

use crate::{grid::spec, processes::client};

/// Rows of one result.
pub const ROWS: usize = 500;
/// Midnight of the first session, 2016-01-01.
pub const FIRST_SESSION: i64 = 16_801 * DAY_NS;
/// Life of a lease: longer than any run, so that no lease is renewed.
const TTL_MS: u32 = 3_600_000;
/// How long a publish may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Publishes of each publisher before the clock runs.
const WARM_UP: usize = 2;

/// The symbols of every result.
#[must_use]
pub fn symbols() -> ArrayRef {
    Arc::new(StringArray::from_iter_values((0..ROWS).map(|i| format!("S{i:03}"))))
}

/// The name of the output of publisher `i`.
#[must_use]
pub fn output(i: usize) -> String {
    format!("signals.out_{i}")
}

/// One publisher, with a connection of its own. It holds the lease of its output.
#[derive(Debug)]
pub struct Publisher {
    client: Client,
    spec: DatasetSpec,
    unit: String,
    lease: pb::Lease,
    symbols: ArrayRef,
    next: usize,
}

impl Publisher {
    /// Makes publisher `i`: connects, takes the lease, and publishes the first results.
    ///
    /// # Errors
    /// When the grid refuses, or does not answer in time.
    pub async fn set_up(heads: &[SocketAddr], i: usize, symbols: ArrayRef) -> Result<Self> {
        let unit = format!("unit-{i}");
        let client = client(heads, &unit, PATIENCE).await?;
        let spec = spec(&output(i), &["score"]);
        let request = pb::AcquireLeaseRequest {
            dataset: spec.dataset.to_string(),
            unit: unit.clone(),
            instance: "bench".to_owned(),
            take_over: false,
            ttl_ms: TTL_MS,
            spec: Some((&spec).into()),
        };
        let lease = client.acquire_lease(request).await?;
        let mut publisher = Self { client, spec, unit, lease, symbols, next: 0 };
        for _ in 0..WARM_UP {
            publisher.publish().await?;
        }
        Ok(publisher)
    }

    /// Publishes the next session.
    ///
    /// # Errors
    /// When it is not acknowledged.
    pub async fn publish(&mut self) -> Result<()> {
        let n = self.next;
        self.next += 1;
        let midnight = FIRST_SESSION + n as i64 * DAY_NS;
        let header = pb::PublishHeader {
            dataset: self.spec.dataset.to_string(),
            kind: pb::PublishKind::Session.into(),
            session: format_time(midnight),
            run_id: format!("{}-{n}", self.unit),
            unit: self.unit.clone(),
            instance: self.lease.instance.clone(),
            epoch: self.lease.epoch,
            ..Default::default()
        };
        let ts = TimestampNanosecondArray::from_value(midnight, ROWS).with_timezone("UTC");
        let scores = Float64Array::from_iter_values((0..ROWS).map(|i| ((n * ROWS + i) as f64).sin()));
        let columns: Vec<ArrayRef> = vec![self.symbols.clone(), Arc::new(ts), Arc::new(scores)];
        let rows = RecordBatch::try_new(self.spec.rows_schema(), columns)?;
        let ack = self.client.publish(header, vec![rows]).await?;
        ensure!(ack.rows == ROWS as u64 && !ack.duplicate, "acknowledged as {ack:?}");
        Ok(())
    }

    /// Publishes until `end`. Returns the time of each publish in seconds.
    ///
    /// # Errors
    /// When one is not acknowledged.
    pub async fn publish_until(&mut self, end: Instant) -> Result<Vec<f64>> {
        let mut taken = Vec::new();
        while Instant::now() < end {
            let at = Instant::now();
            self.publish().await?;
            taken.push(at.elapsed().as_secs_f64());
        }
        Ok(taken)
    }
}
