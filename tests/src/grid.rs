//! A whole grid in this process: shards and heads on loopback ports over a lake in a temporary folder.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use trellis_proto::{DatasetName, DatasetSpec, FieldName, FieldType, pb, spec::FieldSpec, time::DAY_NS};
use trellis_qcu::client::{Client, ClientOptions};

use crate::{gate::Gate, oracle::Row};

/// How long a stopped server may finish its calls; a test that needs longer hangs.
const DRAIN: Duration = Duration::from_secs(5);

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// Its address.
    pub addr: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<trellis_proto::Result<()>>,
}

impl Server {
    async fn stop(self) -> Result<()> {
        // A server that ended by itself has dropped the receiver; its result has the reason.
        let _ = self.stop.send(());
        Ok(self.task.await??)
    }
}

/// Shards and heads, with a [`Gate`] between the heads and each shard.
#[derive(Debug)]
pub struct Grid {
    lake: tempfile::TempDir,
    shards: Vec<Option<Server>>,
    gates: Vec<Gate>,
    heads: Vec<Server>,
}

impl Grid {
    /// Starts `heads` heads over `shards` shards.
    ///
    /// # Errors
    /// When a server cannot start.
    pub async fn start(heads: usize, shards: usize) -> Result<Self> {
        Self::start_with_map(heads, shards, None).await
    }

    /// Starts heads that find each other by `heads_url`.
    ///
    /// # Errors
    /// When a server cannot start.
    pub async fn start_with_map(heads: usize, shards: usize, heads_url: Option<String>) -> Result<Self> {
        let lake = tempfile::tempdir()?;
        let mut grid = Self { lake, shards: Vec::new(), gates: Vec::new(), heads: Vec::new() };
        for index in 0..shards {
            let server = start_shard(grid.lake(), index, shards).await?;
            grid.gates.push(Gate::to(server.addr).await?);
            grid.shards.push(Some(server));
        }
        for index in 0..heads {
            grid.heads.push(start_head(index, &grid.shards_url(), heads_url.clone()).await?);
        }
        Ok(grid)
    }

    /// The folder of the lake.
    #[must_use]
    pub fn lake(&self) -> &Path {
        self.lake.path()
    }

    /// The gate in front of shard `index`.
    #[must_use]
    pub fn gate(&self, index: usize) -> &Gate {
        &self.gates[index]
    }

    /// Address of head `index`.
    #[must_use]
    pub fn head(&self, index: usize) -> SocketAddr {
        self.heads[index].addr
    }

    /// Address of shard `index` itself, not of its gate, while it runs.
    #[must_use]
    pub fn shard(&self, index: usize) -> Option<SocketAddr> {
        self.shards[index].as_ref().map(|shard| shard.addr)
    }

    /// A client of all heads.
    ///
    /// # Errors
    /// When it cannot connect.
    pub async fn client(&self) -> Result<Client> {
        let heads: Vec<String> = self.heads.iter().map(|head| head.addr.to_string()).collect();
        self.connect(&format!("static://{}", heads.join(","))).await
    }

    /// A client of head `index` alone.
    ///
    /// # Errors
    /// When it cannot connect.
    pub async fn client_of(&self, index: usize) -> Result<Client> {
        self.connect(&format!("static://{}", self.heads[index].addr)).await
    }

    /// A client of the heads at `url`.
    ///
    /// # Errors
    /// When it cannot connect.
    pub async fn connect(&self, url: &str) -> Result<Client> {
        Ok(Client::connect(url, ClientOptions { unit: Some("test".into()), ..Default::default() }).await?)
    }

    /// Stops shard `index` and starts it again over the same lake, behind the same gate.
    ///
    /// # Errors
    /// When it does not stop or start.
    pub async fn restart_shard(&mut self, index: usize) -> Result<()> {
        self.stop_shard(index).await?;
        let server = start_shard(self.lake(), index, self.shards.len()).await?;
        self.gates[index].retarget(server.addr);
        self.gates[index].open();
        self.shards[index] = Some(server);
        Ok(())
    }

    /// Stops shard `index`; its gate then refuses connections.
    ///
    /// # Errors
    /// When it ends with an error.
    pub async fn stop_shard(&mut self, index: usize) -> Result<()> {
        self.gates[index].cut();
        match self.shards[index].take() {
            Some(server) => server.stop().await.with_context(|| format!("shard {index}")),
            None => Ok(()),
        }
    }

    /// Stops everything, heads first.
    ///
    /// # Errors
    /// When a server ends with an error.
    pub async fn stop(self) -> Result<()> {
        for head in self.heads {
            head.stop().await.context("head")?;
        }
        for server in self.shards.into_iter().flatten() {
            server.stop().await.context("shard")?;
        }
        Ok(())
    }

    /// The URL of the shards themselves, not of their gates.
    #[must_use]
    pub fn shards_direct(&self) -> String {
        let shards: Vec<String> = self.shards.iter().flatten().map(|shard| shard.addr.to_string()).collect();
        format!("static://{}", shards.join(","))
    }

    fn shards_url(&self) -> String {
        let gates: Vec<String> = self.gates.iter().map(|gate| gate.addr().to_string()).collect();
        format!("static://{}", gates.join(","))
    }
}

async fn start_shard(lake: &Path, index: usize, count: usize) -> Result<Server> {
    let lake = trellis_shard::config::lake_url(&lake.to_string_lossy())?;
    let mut config = trellis_shard::Config::one_of(lake, index.try_into()?, count.try_into()?)?;
    config.drain = DRAIN;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(trellis_shard::run(config, listener, async {
        // Stop when the sender is dropped or sends.
        let _ = stopped.await;
    }));
    Ok(Server { addr, stop, task })
}

async fn start_head(index: usize, shards: &str, heads_url: Option<String>) -> Result<Server> {
    let mut config = trellis_head::Config::new(format!("head-{index}"), shards);
    config.drain = DRAIN;
    config.heads_url = heads_url;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(trellis_head::run(config, listener, async {
        // Stop when the sender is dropped or sends.
        let _ = stopped.await;
    }));
    Ok(Server { addr, stop, task })
}

/// A dataset of nullable float64 fields with chunks of 64 days.
///
/// # Panics
/// When a name is not valid.
#[must_use]
pub fn spec(dataset: &str, fields: &[&str]) -> DatasetSpec {
    let make = || {
        let fields = fields.iter().map(|name| {
            Ok(FieldSpec { name: FieldName::new(name)?, data_type: FieldType::Float64, nullable: true })
        });
        let chunk = trellis_proto::ChunkSpan::new(64 * DAY_NS)?;
        DatasetSpec::new(DatasetName::new(dataset)?, fields.collect::<trellis_proto::Result<_>>()?, chunk)
    };
    match make() {
        Ok(spec) => spec,
        Err(error) => panic!("{error}"),
    }
}

/// `rows` as a batch of `spec`'s rows schema, without `known_at`, which the shard sets.
///
/// # Errors
/// When the values do not fit the schema.
pub fn batch(spec: &DatasetSpec, rows: &[Row]) -> Result<RecordBatch> {
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.symbol.as_str()))),
        Arc::new(
            TimestampNanosecondArray::from_iter_values(rows.iter().map(|row| row.ts)).with_timezone("UTC"),
        ),
    ];
    for field in 0..spec.fields.len() {
        columns.push(Arc::new(rows.iter().map(|row| row.values[field]).collect::<Float64Array>()));
    }
    Ok(RecordBatch::try_new(spec.rows_schema(), columns)?)
}

/// Imports `rows` with the knowledge time `known_at`. Makes the dataset if it is missing.
///
/// # Errors
/// Any error of the grid.
pub async fn import(
    client: &Client,
    spec: &DatasetSpec,
    rows: &[Row],
    known_at: Option<i64>,
    run_id: &str,
) -> Result<pb::PublishAck> {
    let header = pb::PublishHeader {
        dataset: spec.dataset.to_string(),
        kind: pb::PublishKind::Import.into(),
        run_id: run_id.to_owned(),
        spec: Some(spec.into()),
        known_at_ns: known_at,
        ..Default::default()
    };
    Ok(client.publish(header, vec![batch(spec, rows)?]).await?)
}

/// Retracts the rows at `keys` (symbol and event time) with the knowledge time `known_at`.
///
/// # Errors
/// Any error of the grid.
pub async fn retract(
    client: &Client,
    spec: &DatasetSpec,
    keys: &[(String, i64)],
    known_at: Option<i64>,
    run_id: &str,
) -> Result<pb::PublishAck> {
    let header = pb::PublishHeader {
        dataset: spec.dataset.to_string(),
        kind: pb::PublishKind::Import.into(),
        run_id: run_id.to_owned(),
        known_at_ns: known_at,
        retract: true,
        ..Default::default()
    };
    let rows: Vec<Row> = keys
        .iter()
        .map(|(symbol, ts)| Row {
            symbol: symbol.clone(),
            ts: *ts,
            known_at: 0,
            values: vec![None; spec.fields.len()],
        })
        .collect();
    Ok(client.publish(header, vec![batch(spec, &rows)?.project(&[0, 1])?]).await?)
}
