//! A fake head node: a map of rows that fails on demand. Several heads may share one world.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
};

use arrow_array::{
    ArrayRef, DictionaryArray, Float64Array, RecordBatch, StringArray, TimestampNanosecondArray,
    cast::AsArray,
    types::{Float64Type, Int32Type, TimestampNanosecondType},
};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest,
    HandshakeResponse, PollInfo, PutResult, SchemaResult, Ticket,
    decode::FlightRecordBatchStream,
    encode::{DictionaryHandling, FlightDataEncoderBuilder},
    flight_service_server::{FlightService, FlightServiceServer},
};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use prost::Message;
use tokio::{net::TcpListener, sync::Semaphore, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};
use trellis_proto::{
    Code, Error, SeriesQuery, Symbols, pb,
    pb::head_server::{Head, HeadServer},
    runs,
    spec::{symbol_type, time_type},
    ticket,
    time::DAY_NS,
};

/// Symbol, event time, and value of the one field.
pub(crate) type Row = (String, i64, f64);

/// The spread of datasets: more heads than any test has.
const EVERY_HEAD: u32 = 64;

/// The state that all heads of a grid share.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) datasets: BTreeMap<String, Dataset>,
    pub(crate) published: Vec<(pb::PublishHeader, Vec<Row>, pb::PublishAck)>,
    /// The ledger: one row for each unit and start.
    pub(crate) runs: Vec<pb::RunRecord>,
    /// Heads cannot record publishes in the ledger.
    pub(crate) ledger_away: bool,
    /// Holder and epoch by dataset.
    pub(crate) leases: BTreeMap<String, (Option<String>, u64)>,
}

impl World {
    fn record(&mut self, record: pb::RunRecord) {
        let key = |run: &pb::RunRecord| (run.unit.clone(), run.started_ns);
        match self.runs.iter_mut().find(|run| key(run) == key(&record)) {
            Some(run) => *run = record,
            None => self.runs.push(record),
        }
    }
}

#[derive(Default, Clone)]
pub(crate) struct Dataset {
    pub(crate) field: String,
    pub(crate) rows: Vec<Row>,
    pub(crate) version: u64,
    pub(crate) watermark_ns: Option<i64>,
    /// Number of heads that serve it.
    pub(crate) spread: u32,
}

/// A fault of the next call.
pub(crate) enum Fault {
    /// Answers with an error at once.
    Refuse(Error),
    /// Sends this many messages of an answer, then an error.
    After(usize, Error),
    /// Sends this many messages, then ends the stream without an error.
    Truncate(usize),
    /// Sends this many messages, and the rest once [`FakeHead::release`] is called.
    Hold(usize),
    /// Never answers.
    Hang,
    /// Commits the publish, and loses the acknowledgement.
    LoseAck,
    /// Commits the publish, and answers with this error.
    Misreport(Error),
}

#[derive(Default)]
struct Own {
    /// Faults by method; `""` for any method.
    faults: BTreeMap<&'static str, VecDeque<Fault>>,
    asked: Vec<SeriesQuery>,
    units: Vec<String>,
    /// The knowledge time in answers, instead of the world's version.
    known_through_ns: Option<i64>,
    /// By method.
    calls: BTreeMap<&'static str, usize>,
    /// Connections accepted so far.
    connections: usize,
}

/// Reads that are held.
#[derive(Clone)]
struct Holding {
    entered: Arc<Semaphore>,
    left: Arc<Semaphore>,
}

#[derive(Clone)]
pub(crate) struct FakeHead {
    pub(crate) addr: String,
    world: Arc<Mutex<World>>,
    own: Arc<Mutex<Own>>,
    holding: Holding,
    server: Arc<JoinHandle<()>>,
}

impl Drop for FakeHead {
    fn drop(&mut self) {
        // the service in the server has clones without the handle
        if Arc::strong_count(&self.server) == 1 {
            self.server.abort();
        }
    }
}

#[derive(Clone)]
struct Service {
    addr: String,
    world: Arc<Mutex<World>>,
    own: Arc<Mutex<Own>>,
    holding: Holding,
}

pub(crate) fn world(datasets: &[(&str, &str, Vec<Row>)]) -> Arc<Mutex<World>> {
    let datasets = datasets.iter().map(|(name, field, rows)| {
        let mut rows = rows.clone();
        rows.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        let dataset =
            Dataset { field: (*field).to_owned(), rows, version: 1, watermark_ns: None, spread: EVERY_HEAD };
        ((*name).to_owned(), dataset)
    });
    Arc::new(Mutex::new(World { datasets: datasets.collect(), ..World::default() }))
}

impl FakeHead {
    pub(crate) async fn start(world: &Arc<Mutex<World>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let own = Arc::new(Mutex::new(Own::default()));
        let semaphore = || Arc::new(Semaphore::new(0));
        let holding = Holding { entered: semaphore(), left: semaphore() };
        let service =
            Service { addr: addr.clone(), world: world.clone(), own: own.clone(), holding: holding.clone() };
        let accepting = own.clone();
        let incoming =
            TcpListenerStream::new(listener).inspect_ok(move |_| accepting.lock().unwrap().connections += 1);
        let server = Server::builder()
            .add_service(FlightServiceServer::new(service.clone()))
            .add_service(HeadServer::new(service))
            .serve_with_incoming(incoming);
        let server = tokio::spawn(async move { server.await.unwrap() });
        Self { addr, world: world.clone(), own, holding, server: Arc::new(server) }
    }

    /// The next calls of any method fail with these faults, one after another.
    pub(crate) fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.fail_on("", faults);
    }

    /// The next calls of `method` fail with these faults, one after another.
    pub(crate) fn fail_on(&self, method: &'static str, faults: impl IntoIterator<Item = Fault>) {
        self.own.lock().unwrap().faults.entry(method).or_default().extend(faults);
    }

    /// Answers about the latest then have this knowledge time.
    pub(crate) fn knows_through(&self, ns: i64) {
        self.own.lock().unwrap().known_through_ns = Some(ns);
    }

    /// Number of calls of `method`.
    pub(crate) fn calls(&self, method: &str) -> usize {
        self.own.lock().unwrap().calls.get(method).copied().unwrap_or(0)
    }

    /// Number of accepted connections.
    pub(crate) fn connections(&self) -> usize {
        self.own.lock().unwrap().connections
    }

    /// Waits until this many more reads are held.
    pub(crate) async fn held(&self, reads: u32) {
        self.holding.entered.acquire_many(reads).await.unwrap().forget();
    }

    /// Lets this many held reads go on.
    pub(crate) fn release(&self, reads: usize) {
        self.holding.left.add_permits(reads);
    }

    /// Reads asked so far.
    pub(crate) fn asked(&self) -> Vec<SeriesQuery> {
        self.own.lock().unwrap().asked.clone()
    }

    /// Units named by calls so far.
    pub(crate) fn units(&self) -> Vec<String> {
        self.own.lock().unwrap().units.clone()
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }
}

impl Service {
    fn next_fault<T>(&self, method: &'static str, request: &Request<T>) -> Option<Fault> {
        let mut own = self.own.lock().unwrap();
        *own.calls.entry(method).or_default() += 1;
        if let Some(unit) = request.metadata().get("trellis-unit") {
            own.units.push(unit.to_str().unwrap().to_owned());
        }
        [method, ""].iter().find_map(|key| own.faults.get_mut(key)?.pop_front())
    }

    /// Faults of calls other than reads and publishes.
    async fn maybe_fail<T>(&self, method: &'static str, request: &Request<T>) -> Result<(), Status> {
        match self.next_fault(method, request) {
            None => Ok(()),
            Some(Fault::Refuse(error)) => Err(error.into()),
            Some(Fault::Hang) => std::future::pending().await,
            Some(_) => panic!("this fault is for reads and publishes"),
        }
    }

    fn dataset(&self, name: &str) -> Result<Dataset, Status> {
        let world = self.world.lock().unwrap();
        let unknown =
            || Error::new(Code::UnknownDataset, format!("there is no dataset {name}")).dataset(name);
        Ok(world.datasets.get(name).cloned().ok_or_else(unknown)?)
    }

    fn describe(&self, name: &str, dataset: &Dataset) -> pb::DatasetDescription {
        let field =
            pb::Field { name: dataset.field.clone(), r#type: pb::FieldType::Float64.into(), nullable: false };
        pb::DatasetDescription {
            spec: Some(pb::DatasetSpec {
                dataset: name.to_owned(),
                fields: vec![field],
                chunk_ns: 64 * DAY_NS,
                ..Default::default()
            }),
            version: dataset.version,
            known_through_ns: i64::try_from(dataset.version).unwrap() * 1_000,
            watermark_ns: dataset.watermark_ns,
            first_ts_ns: dataset.rows.iter().map(|row| row.1).min(),
            last_ts_ns: dataset.rows.iter().map(|row| row.1).max(),
            rows: dataset.rows.len() as u64,
            spread: dataset.spread,
            ..Default::default()
        }
    }
}

pub(crate) fn answer_schema(field: &str) -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("symbol", symbol_type(), false),
        Field::new("ts", time_type(), false),
        Field::new(field, DataType::Float64, false),
    ]))
}

fn batches(schema: &SchemaRef, rows: &[Row]) -> Vec<RecordBatch> {
    let mut names: Vec<&str> = rows.iter().map(|row| row.0.as_str()).collect();
    names.dedup();
    let dictionary: ArrayRef = Arc::new(StringArray::from(names.clone()));
    let batch = |rows: &[Row]| {
        let keys: Vec<i32> = rows.iter().map(|r| names.binary_search(&&*r.0).unwrap() as i32).collect();
        let symbol = DictionaryArray::<Int32Type>::try_new(keys.into(), dictionary.clone()).unwrap();
        let ts: Vec<i64> = rows.iter().map(|r| r.1).collect();
        let value: Vec<f64> = rows.iter().map(|r| r.2).collect();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(symbol),
            Arc::new(TimestampNanosecondArray::from(ts).with_timezone("UTC")),
            Arc::new(Float64Array::from(value)),
        ];
        RecordBatch::try_new(schema.clone(), columns).unwrap()
    };
    // several messages for a few rows, and not too many for many rows
    let rows_of_a_batch = (rows.len() / 16).max(3);
    if rows.is_empty() { vec![batch(&[])] } else { rows.chunks(rows_of_a_batch).map(batch).collect() }
}

/// The rows of an answer.
pub(crate) fn rows_of(batches: &[RecordBatch]) -> Vec<Row> {
    let mut out = vec![];
    for batch in batches {
        let symbols = arrow_cast::cast(batch.column(0), &DataType::Utf8).unwrap();
        let ts = batch.column(1).as_primitive::<TimestampNanosecondType>();
        let value = batch.column(2).as_primitive::<Float64Type>();
        for (i, symbol) in symbols.as_string::<i32>().iter().enumerate() {
            out.push((symbol.unwrap().to_owned(), ts.value(i), value.value(i)));
        }
    }
    out
}

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl FlightService for Service {
    type HandshakeStream = Boxed<HandshakeResponse>;
    type ListFlightsStream = Boxed<FlightInfo>;
    type DoGetStream = Boxed<FlightData>;
    type DoPutStream = Boxed<PutResult>;
    type DoActionStream = Boxed<arrow_flight::Result>;
    type ListActionsStream = Boxed<ActionType>;
    type DoExchangeStream = Boxed<FlightData>;

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let fault = self.next_fault("DoGet", &request);
        match &fault {
            Some(Fault::Refuse(error)) => return Err(error.clone().into()),
            Some(Fault::Hang) => std::future::pending().await,
            _ => {}
        }
        let query = ticket::decode(&request.into_inner().ticket)?;
        let known_through_ns = {
            let mut own = self.own.lock().unwrap();
            own.asked.push(query.clone());
            own.known_through_ns
        };
        let dataset = self.dataset(query.dataset.as_str())?;
        let wanted = |row: &&Row| {
            query.range.contains(row.1)
                && match &query.symbols {
                    Symbols::All => true,
                    Symbols::List(list) => list.iter().any(|symbol| symbol.as_str() == row.0),
                }
        };
        let rows: Vec<Row> = dataset.rows.iter().filter(wanted).cloned().collect();
        let schema = answer_schema(&dataset.field);
        let encoder = FlightDataEncoderBuilder::new()
            .with_schema(schema.clone())
            .with_dictionary_handling(DictionaryHandling::Resend);
        let encoded = encoder.build(stream::iter(batches(&schema, &rows).into_iter().map(Ok)));
        let mut messages: Vec<FlightData> = encoded.try_collect().await.unwrap();
        let receipt = pb::Receipt {
            dataset: query.dataset.to_string(),
            as_of_ns: query.as_of,
            known_through_ns: query
                .as_of
                .or(known_through_ns)
                .unwrap_or(i64::try_from(dataset.version).unwrap() * 1_000),
            version_min: dataset.version,
            version_max: dataset.version,
            rows: rows.len() as u64,
            bytes: messages.iter().map(|message| message.data_body.len() as u64).sum(),
            head: self.addr.clone(),
            spread: dataset.spread,
            ..Default::default()
        };
        messages.last_mut().unwrap().app_metadata = receipt.encode_to_vec().into();
        if let Some(Fault::Hold(n)) = fault {
            let Holding { entered, left } = self.holding.clone();
            let rest = stream::iter(messages.split_off(n)).map(Ok);
            let released = stream::once(async move {
                entered.add_permits(1);
                left.acquire().await.unwrap().forget();
                rest
            });
            return Ok(Response::new(stream::iter(messages).map(Ok).chain(released.flatten()).boxed()));
        }
        let messages: Vec<Result<FlightData, Status>> = match fault {
            Some(Fault::After(n, error)) => {
                messages.into_iter().take(n).map(Ok).chain([Err(error.into())]).collect()
            }
            Some(Fault::Truncate(n)) => messages.into_iter().take(n).map(Ok).collect(),
            _ => messages.into_iter().map(Ok).collect(),
        };
        Ok(Response::new(stream::iter(messages).boxed()))
    }

    async fn do_put(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoPutStream>, Status> {
        let fault = self.next_fault("DoPut", &request);
        match fault {
            Some(Fault::Refuse(error)) => return Err(error.into()),
            Some(Fault::Hang) => std::future::pending().await,
            _ => {}
        }
        let mut messages: Vec<FlightData> = request.into_inner().try_collect().await?;
        let cmd = messages[0].flight_descriptor.take().unwrap().cmd;
        let header = pb::PublishHeader::decode(cmd).unwrap();
        let decoded =
            FlightRecordBatchStream::new_from_flight_data(stream::iter(messages.into_iter().map(Ok)));
        let rows = rows_of(&decoded.try_collect::<Vec<_>>().await.unwrap());

        let mut world = self.world.lock().unwrap();
        let (_, epoch) = world.leases.get(&header.dataset).cloned().unwrap_or_default();
        if header.epoch != epoch {
            let why = format!("fenced by epoch {epoch}");
            return Err(Error::new(Code::Fenced, why).dataset(&header.dataset).into());
        }
        let earlier = world.published.iter().find(|(h, _, _)| h.run_id == header.run_id);
        let ack = match earlier {
            Some((_, same, ack)) if *same == rows => pb::PublishAck { duplicate: true, ..ack.clone() },
            Some(_) => return Err(Error::new(Code::Conflict, "the run id has other rows").into()),
            None => {
                let dataset = world.datasets.entry(header.dataset.clone()).or_default();
                dataset.version += 1;
                dataset.rows.extend(rows.iter().cloned());
                dataset.rows.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
                let ack = pb::PublishAck {
                    dataset: header.dataset.clone(),
                    version: dataset.version,
                    known_at_ns: i64::try_from(dataset.version).unwrap() * 1_000,
                    rows: rows.len() as u64,
                    ..Default::default()
                };
                world.published.push((header.clone(), rows, ack.clone()));
                ack
            }
        };
        let recorded = !world.ledger_away;
        if recorded {
            let seen = runs::Seen { answered_ns: i64::MAX, ..Default::default() };
            world.record(runs::published(&header, &ack, &seen));
        }
        let ack = pb::PublishAck { recorded, ..ack };
        if let Some(Fault::LoseAck) = fault {
            return Err(Error::new(Code::Unavailable, "the head is going away").into());
        }
        if let Some(Fault::Misreport(error)) = fault {
            return Err(error.into());
        }
        let reply = PutResult { app_metadata: ack.encode_to_vec().into() };
        Ok(Response::new(stream::iter([Ok(reply)]).boxed()))
    }

    async fn handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn get_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn do_exchange(
        &self,
        _: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn do_action(&self, _: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl Head for Service {
    async fn describe(
        &self,
        request: Request<pb::DescribeRequest>,
    ) -> Result<Response<pb::DescribeReply>, Status> {
        self.maybe_fail("Describe", &request).await?;
        let name = request.into_inner().dataset;
        let datasets = if name.is_empty() {
            let world = self.world.lock().unwrap();
            world.datasets.iter().map(|(name, dataset)| self.describe(name, dataset)).collect()
        } else {
            vec![self.describe(&name, &self.dataset(&name)?)]
        };
        Ok(Response::new(pb::DescribeReply { datasets, heads_version: 0 }))
    }

    async fn symbols(
        &self,
        request: Request<pb::SymbolsRequest>,
    ) -> Result<Response<pb::SymbolsReply>, Status> {
        self.maybe_fail("Symbols", &request).await?;
        let dataset = self.dataset(&request.into_inner().dataset)?;
        let mut symbols: Vec<String> = dataset.rows.into_iter().map(|row| row.0).collect();
        symbols.dedup();
        Ok(Response::new(pb::SymbolsReply { symbols, version: dataset.version }))
    }

    async fn sessions(
        &self,
        request: Request<pb::SessionsRequest>,
    ) -> Result<Response<pb::SessionsReply>, Status> {
        self.maybe_fail("Sessions", &request).await?;
        let request = request.into_inner();
        let dataset = self.dataset(&request.dataset)?;
        let mut sessions_ns: Vec<i64> =
            dataset.rows.iter().map(|row| row.1.div_euclid(DAY_NS) * DAY_NS).collect();
        sessions_ns.sort_unstable();
        sessions_ns.dedup();
        Ok(Response::new(pb::SessionsReply { sessions_ns }))
    }

    async fn stats(&self, request: Request<pb::StatsRequest>) -> Result<Response<pb::HeadStats>, Status> {
        self.maybe_fail("Stats", &request).await?;
        Ok(Response::new(pb::HeadStats { head: self.addr.clone(), ..Default::default() }))
    }

    async fn heads(&self, request: Request<pb::HeadsRequest>) -> Result<Response<pb::HeadsReply>, Status> {
        self.maybe_fail("Heads", &request).await?;
        Ok(Response::new(pb::HeadsReply::default()))
    }

    async fn acquire_lease(
        &self,
        request: Request<pb::AcquireLeaseRequest>,
    ) -> Result<Response<pb::Lease>, Status> {
        self.maybe_fail("AcquireLease", &request).await?;
        let request = request.into_inner();
        let mut world = self.world.lock().unwrap();
        let spec = request.spec.unwrap_or_default();
        let field = spec.fields.first().map(|field| field.name.clone()).unwrap_or_default();
        let new = Dataset { field, ..Dataset::default() };
        world.datasets.entry(request.dataset.clone()).or_insert(new);
        let (holder, epoch) = world.leases.entry(request.dataset.clone()).or_default();
        if holder.as_ref().is_some_and(|held| *held != request.instance) && !request.take_over {
            return Err(Error::new(Code::Conflict, "somebody else holds the lease").into());
        }
        *holder = Some(request.instance.clone());
        *epoch += 1;
        Ok(Response::new(pb::Lease {
            dataset: request.dataset,
            unit: request.unit,
            instance: request.instance,
            epoch: *epoch,
            expires_in_ms: granted_ms(request.ttl_ms),
            since_ns: 0,
        }))
    }

    async fn renew_lease(
        &self,
        request: Request<pb::RenewLeaseRequest>,
    ) -> Result<Response<pb::Lease>, Status> {
        self.maybe_fail("RenewLease", &request).await?;
        let request = request.into_inner();
        let world = self.world.lock().unwrap();
        let (holder, epoch) = world.leases.get(&request.dataset).cloned().unwrap_or_default();
        if holder.as_deref() != Some(&request.instance) || epoch != request.epoch {
            return Err(Error::new(Code::Fenced, format!("fenced by epoch {epoch}")).into());
        }
        Ok(Response::new(pb::Lease {
            epoch,
            expires_in_ms: granted_ms(request.ttl_ms),
            ..Default::default()
        }))
    }

    async fn release_lease(
        &self,
        request: Request<pb::ReleaseLeaseRequest>,
    ) -> Result<Response<pb::ReleaseLeaseReply>, Status> {
        self.maybe_fail("ReleaseLease", &request).await?;
        let request = request.into_inner();
        if let Some((holder, epoch)) = self.world.lock().unwrap().leases.get_mut(&request.dataset)
            && *epoch == request.epoch
        {
            *holder = None;
        }
        Ok(Response::new(pb::ReleaseLeaseReply {}))
    }

    async fn alter_dataset(
        &self,
        _: Request<pb::AlterDatasetRequest>,
    ) -> Result<Response<pb::DatasetChange>, Status> {
        Err(Status::unimplemented("not of this fake"))
    }
    async fn drop_dataset(
        &self,
        _: Request<pb::DropDatasetRequest>,
    ) -> Result<Response<pb::DatasetChange>, Status> {
        Err(Status::unimplemented("not of this fake"))
    }
    async fn rename_dataset(
        &self,
        _: Request<pb::RenameDatasetRequest>,
    ) -> Result<Response<pb::DatasetChange>, Status> {
        Err(Status::unimplemented("not of this fake"))
    }
    async fn record_runs(
        &self,
        request: Request<pb::RecordRunsRequest>,
    ) -> Result<Response<pb::RecordRunsReply>, Status> {
        self.maybe_fail("RecordRuns", &request).await?;
        let mut world = self.world.lock().unwrap();
        request.into_inner().runs.into_iter().for_each(|run| world.record(run));
        Ok(Response::new(pb::RecordRunsReply { version: 1 }))
    }
}

/// An address on which nothing listens.
pub(crate) async fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}

/// A unit renews its lease often if it asks for a short one. It gets a long one, so that a busy machine loses none.
fn granted_ms(asked: u32) -> u32 {
    asked * 60
}
