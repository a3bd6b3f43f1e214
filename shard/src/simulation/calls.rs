//! The calls of a shard and their answers, without the transport.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use tokio::sync::mpsc;
use trellis_proto::{
    Code, DatasetName, Error, Result,
    fetch::{Answer, Awaited},
    pb,
};

use super::model::{Known, Look, Sent};
use crate::{
    shard::Shard,
    table::{Holder, Table},
    testing::{DATASET, rows_of, spec},
    upkeep,
    write::{Publish, Right, Rows, rows_schema},
};

/// Life of a lease.
pub(super) const TTL: Duration = Duration::from_secs(10);
/// The symbols of a simulation.
const SYMBOLS: [&str; 2] = ["A", "B"];

#[derive(Debug, Clone)]
pub(super) enum Ask {
    Acquire {
        unit: String,
        instance: String,
        take_over: bool,
    },
    Renew {
        unit: String,
        instance: String,
        epoch: u64,
    },
    Release {
        unit: String,
        instance: String,
        epoch: u64,
    },
    Publish {
        unit: String,
        epoch: u64,
        run: String,
        sent: Sent,
    },
    /// A publish with a lease of its own.
    Once {
        unit: String,
        instance: String,
        take_over: bool,
        run: String,
        sent: Sent,
    },
    /// Ends the ownership: the dataset is no unit's output any more.
    EndOwnership {
        take_over: bool,
    },
    Import {
        run: String,
        sent: Sent,
    },
    Look,
    /// Symbols, and the versions they were read at.
    Confirm {
        held: Vec<(String, usize)>,
    },
    Refresh,
    /// The shard closes the table, unless a call has it.
    Close,
    Compact,
    Checkpoint,
    Sweep,
}

impl Ask {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Acquire { .. } => "acquired",
            Self::Renew { .. } => "renewed",
            Self::Release { .. } => "released",
            Self::Publish { .. } => "published",
            Self::Once { .. } => "published once",
            Self::EndOwnership { .. } => "ended",
            Self::Import { .. } => "imported",
            Self::Look => "looked",
            Self::Confirm { .. } => "confirmed",
            Self::Refresh => "refreshed",
            Self::Close => "closed",
            Self::Compact => "compacted",
            Self::Checkpoint => "checkpointed",
            Self::Sweep => "swept",
        }
    }
}

#[derive(Debug)]
pub(super) enum Reply {
    Granted(pb::Lease),
    Published(pb::PublishAck),
    /// The symbols that have no rows are missing; without any symbol there is no look.
    Looked {
        look: Option<Look>,
        missing: Vec<String>,
    },
    Confirmed(Vec<bool>),
    /// Whether there was anything to do.
    Done(bool),
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Granted(lease) => write!(f, "epoch {} for {} ms", lease.epoch, lease.expires_in_ms),
            Self::Published(ack) => write!(f, "version {}, known at {}", ack.version, ack.known_at_ns),
            Self::Looked { look, .. } => write!(f, "{look:?}"),
            Self::Confirmed(unchanged) => write!(f, "{unchanged:?}"),
            Self::Done(done) => write!(f, "{done}"),
        }
    }
}

pub(super) async fn perform(shard: Arc<Shard>, ask: Ask) -> Result<Reply> {
    match ask {
        Ask::Acquire { unit, instance, take_over } => {
            let request = pb::AcquireLeaseRequest {
                dataset: DATASET.to_owned(),
                unit,
                instance,
                take_over,
                ttl_ms: TTL.as_millis() as u32,
                spec: Some(pb::DatasetSpec::from(&spec())),
            };
            shard.acquire_lease(request).await.map(Reply::Granted)
        }
        Ask::Renew { unit, instance, epoch } => {
            let (dataset, ttl_ms) = (DATASET.to_owned(), TTL.as_millis() as u32);
            let request = pb::RenewLeaseRequest { dataset, unit, instance, epoch, ttl_ms };
            shard.renew_lease(request).await.map(Reply::Granted)
        }
        Ask::Release { unit, instance, epoch } => {
            let request = pb::ReleaseLeaseRequest { dataset: DATASET.to_owned(), unit, instance, epoch };
            shard.release_lease(request).await.map(|()| Reply::Done(true))
        }
        Ask::Publish { unit, epoch, run, sent } => {
            publish(&shard, Right::Session { unit, epoch }, run, &sent).await.map(Reply::Published)
        }
        Ask::Once { unit, instance, take_over, run, sent } => {
            let right = Right::Once { holder: Holder { unit, instance }, take_over };
            publish(&shard, right, run, &sent).await.map(Reply::Published)
        }
        Ask::EndOwnership { take_over } => {
            let request = pb::AcquireLeaseRequest {
                dataset: DATASET.to_owned(),
                instance: "somebody".to_owned(),
                take_over,
                ..Default::default()
            };
            shard.acquire_lease(request).await.map(Reply::Granted)
        }
        Ask::Import { run, sent } => {
            publish(&shard, Right::Import { known_at: None }, run, &sent).await.map(Reply::Published)
        }
        Ask::Look => look(&shard).await,
        Ask::Confirm { held } => {
            let held = held.into_iter().map(|(symbol, version)| pb::HeldChunks {
                dataset: DATASET.to_owned(),
                symbol,
                first: 0,
                end: 1,
                version: version as u64,
            });
            let request = pb::ConfirmRequest { held: held.collect() };
            shard.confirm(&request).await.map(|reply| Reply::Confirmed(reply.unchanged))
        }
        Ask::Refresh => {
            shard.catalog.discover().await?;
            shard.catalog.look(&DatasetName::new(DATASET)?).await.map(|()| Reply::Done(true))
        }
        Ask::Close => {
            shard.catalog.close_all();
            Ok(Reply::Done(true))
        }
        Ask::Compact => {
            let Some(table) = known(&shard) else { return Ok(Reply::Done(false)) };
            let Some(snapshot) = table.snapshot() else { return Ok(Reply::Done(false)) };
            upkeep::compact(&shard, &table, &snapshot).await.map(Reply::Done)
        }
        Ask::Checkpoint => {
            let Some(table) = known(&shard) else { return Ok(Reply::Done(false)) };
            let Some(snapshot) = table.snapshot() else { return Ok(Reply::Done(false)) };
            table.log.checkpoint(snapshot.version).await.map(|()| Reply::Done(true))
        }
        Ask::Sweep => {
            let Some(table) = known(&shard) else { return Ok(Reply::Done(false)) };
            upkeep::remove_unneeded(&shard, &table).await.map(|removed| Reply::Done(removed > 0))
        }
    }
}

/// The dataset, if its table is open.
fn known(shard: &Shard) -> Option<Arc<Table>> {
    shard.catalog.open_tables().into_iter().next()
}

async fn publish(shard: &Shard, right: Right, run_id: String, sent: &Sent) -> Result<pb::PublishAck> {
    let (spec, rows) = (Arc::new(spec()), &sent.rows);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.0.as_str()))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.1))),
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|r| r.2))),
    ];
    let rows = Rows::trusted(&RecordBatch::try_new(rows_schema(&spec), columns).unwrap())?;
    let epoch = match &right {
        Right::Session { epoch, .. } => Some(*epoch),
        Right::Once { .. } | Right::Import { .. } | Right::Ledger => None,
    };
    let note = serde_json::json!({"run_id": run_id, "epoch": epoch});
    // No two runs are taken for the same: their rows differ, unless there are none.
    let digest = rows.digest(&run_id)?;
    let (session, effect) = (sent.session(), sent.effect.clone());
    let publish =
        Publish { right, spec, rows, run_id, digest, session, watermark: None, effect, note, _held: None };
    let table = shard.catalog.entry(&DatasetName::new(DATASET)?);
    shard.committers.of(&table).publish(publish).await
}

async fn look(shard: &Arc<Shard>) -> Result<Reply> {
    let ranges = SYMBOLS.map(|symbol| pb::ChunkRange {
        dataset: DATASET.to_owned(),
        symbol: symbol.to_owned(),
        fields: vec!["value".to_owned()],
        first: 0,
        end: 1,
        schema: 0,
    });
    let request = pb::FetchRequest { ranges: ranges.into(), order: 0, epoch: 1 };
    let mut awaited = Awaited::of(&request);
    let (out, mut replies) = mpsc::channel(1);
    let fetch = async move { shard.fetch(request, &out).await };
    let collect = async move {
        let mut all = Vec::new();
        while let Some(reply) = replies.recv().await {
            all.push(reply);
        }
        all
    };
    let (_, replies) = futures::future::join(fetch, collect).await;
    let mut stamp = None;
    let mut rows: BTreeMap<String, Vec<Known>> = BTreeMap::new();
    let mut missing = Vec::new();
    for reply in replies {
        match awaited.accept(reply.map_err(|status| Error::from_status(&status))?)? {
            Answer::Batch(batch) => {
                let now = (batch.version as usize, batch.known_through);
                assert_eq!(*stamp.get_or_insert(now), now, "one read, one version");
                for (range, ts, known_at, value) in rows_of(&batch) {
                    rows.entry(SYMBOLS[range].to_owned()).or_default().push((ts, known_at, value));
                }
            }
            Answer::Failures(failures) => {
                for failure in failures {
                    if failure.error.code() != Code::UnknownSymbol {
                        return Err(failure.error);
                    }
                    missing.push(SYMBOLS[failure.range].to_owned());
                }
            }
        }
    }
    assert!(awaited.is_empty());
    let look = stamp.map(|(version, known_through)| Look { version, known_through, rows });
    Ok(Reply::Looked { look, missing })
}
