//! The calls of a shard, in the grid's own types.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, atomic::AtomicBool},
    time::Instant,
};

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::Status;
use trellis_fabric::bound::Bound;
use trellis_proto::{
    Code, DatasetName, DatasetSpec, Error, Result,
    name::{Suggest, listed},
    pb,
    runs::OWN_PREFIX,
    spec::{Alteration, FIELDS_MAX},
};

use crate::{
    catalog::Catalog,
    clock::WallClock,
    config::Config,
    files::{Lake, check_spec},
    metrics::Metrics,
    ownership::Ownership,
    scan::{self, RangeRequest},
    table::{Context, Grant, Holder, Snapshot, Unopened},
    watch_log::{Subscription, WatchLog},
    write::{
        Acquisition, Change, ChangeKind, Committers, Effect, ID_BYTES_MAX, LEDGER_RECORDS_MAX, Publish,
        Right, granted_ttl, ledger_rows, ledger_spec, rename_dataset,
    },
};

/// Most ranges of one fetch: 20,000 symbols, with a few gaps between cached chunks each.
const RANGES_MAX: usize = 200_000;
/// Most held ranges of one confirmation.
const HELD_MAX: usize = 1_000_000;
static FETCH_RANGES: Bound = Bound::new("shard.fetch_ranges");
static CONFIRM_RANGES: Bound = Bound::new("shard.confirm_ranges");
/// A shard's regions are fixed while it runs. To change them it is started again, and heads see a new incarnation.
const OWNERSHIP_EPOCH: u64 = 1;

/// A running shard.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) config: Config,
    pub(crate) catalog: Catalog,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) committers: Committers,
    context: Arc<Context>,
    incarnation: String,
}

impl Shard {
    /// Opens the lake.
    pub(crate) async fn open(config: Config) -> Result<Arc<Self>> {
        let lake = Lake::open(&config.lake)?;
        Self::over(config, lake, WallClock::system()).await
    }

    /// Like [`Self::open`], with a lake in any store and any clock.
    pub(crate) async fn over(config: Config, lake: Lake, clock: WallClock) -> Result<Arc<Self>> {
        if !config.shards.contains(&config.id) {
            return Err(Error::new(
                Code::InvalidRequest,
                format!("the shard {} is none of {}", config.id, listed(&config.shards)),
            )
            .hint("set TRELLIS_SHARD_IDS to the names of all shards"));
        }
        let context = Arc::new(Context {
            shard: config.id.clone(),
            shards: config.shards.clone(),
            owns: Ownership::new(&config.id, config.owns.clone())?,
            watch: WatchLog::new(),
            unopened: Unopened::default(),
            chunk_bytes_max: config.limits.chunk_bytes_max,
            clock,
            started: tokio::time::Instant::now(),
            upkeep: Mutex::default(),
            changed: AtomicBool::new(false),
        });
        let metrics = Arc::new(Metrics::new());
        let catalog = Catalog::new(lake.within(config.limits.work_bytes_max), context.clone());
        let started = Instant::now();
        catalog.load().await?;
        tracing::info!(
            shard = config.id,
            lake = %config.lake,
            datasets = catalog.len(),
            ms = started.elapsed().as_millis() as u64,
            "opened the lake"
        );
        Ok(Arc::new(Self {
            committers: Committers::new(config.apply_wait, metrics.clone()),
            incarnation: uuid::Uuid::new_v4().simple().to_string(),
            config,
            catalog,
            metrics,
            context,
        }))
    }

    pub(crate) async fn describe(&self, ownership_only: bool) -> Result<pb::ShardDescription> {
        let (datasets, unopened) = match ownership_only {
            true => (Vec::new(), self.context.unopened.told()),
            false => self.catalog.descriptions().await?,
        };
        Ok(pb::ShardDescription {
            shard: self.context.shard.clone(),
            epoch: OWNERSHIP_EPOCH,
            owns: self.context.owns.wire().to_vec(),
            incarnation: self.incarnation.clone(),
            datasets,
            unopened,
        })
    }

    pub(crate) async fn symbols(&self, dataset: &str) -> Result<pb::SymbolsReply> {
        let (_, snapshot) = self.catalog.find(dataset).await?;
        let symbols = snapshot.symbols.iter().map(ToString::to_string).collect();
        Ok(pb::SymbolsReply { symbols, version: snapshot.version })
    }

    pub(crate) async fn sessions(&self, request: &pb::SessionsRequest) -> Result<pb::SessionsReply> {
        let range = trellis_proto::TimeRange::new(request.start_ns, request.end_ns)?;
        let (_, snapshot) = self.catalog.find(&request.dataset).await?;
        let days = scan::sessions(&snapshot).await?;
        Ok(pb::SessionsReply { sessions_ns: days.into_iter().filter(|day| range.contains(*day)).collect() })
    }

    /// Refuses a fetch as a whole, before any range is answered.
    pub(crate) fn check_fetch(&self, request: &pb::FetchRequest) -> Result<()> {
        if request.epoch != OWNERSHIP_EPOCH {
            return Err(Error::new(
                Code::StaleEpoch,
                format!("planned with ownership epoch {}, the shard is at {OWNERSHIP_EPOCH}", request.epoch),
            )
            .shard(&self.context.shard)
            .hint("ask the shard to describe itself again"));
        }
        if request.ranges.len() > RANGES_MAX {
            FETCH_RANGES.hit();
            return Err(Error::new(
                Code::TooLarge,
                format!("{} ranges; a fetch has at most {RANGES_MAX}", request.ranges.len()),
            ));
        }
        pb::FetchOrder::try_from(request.order)
            .map(|_| ())
            .map_err(|_| Error::new(Code::InvalidRequest, format!("{} is not an order", request.order)))
    }

    /// Answers every range, with rows or with an error.
    ///
    /// # Errors
    /// The client does not take the answers.
    pub(crate) async fn fetch(
        &self,
        request: pb::FetchRequest,
        out: &mpsc::Sender<Result<pb::FetchReply, Status>>,
    ) -> Result<(), scan::Untaken> {
        let started = Instant::now();
        self.metrics.fetches.add(1, &[]);
        self.metrics.ranges.add(request.ranges.len() as u64, &[]);
        let order = request.order();
        let mut rows = 0;
        let mut suggest = Suggest::default();
        for (dataset, ranges) in by_dataset(request.ranges) {
            // Taken before the snapshot, which then is at least as new.
            let seq = self.context.watch.seq();
            let mut failures = Vec::new();
            let mut requests = Vec::new();
            match self.catalog.find_with(&dataset, &mut suggest).await {
                Err(error) => {
                    let error = error.dataset(&dataset).shard(&self.context.shard);
                    failures.extend(ranges.iter().map(|(i, range)| scan::refused(*i, range, error.clone())));
                }
                Ok((_, snapshot)) => {
                    for (i, range) in ranges {
                        match self.range_request(&snapshot, i, &range, &mut suggest) {
                            Ok(request) => requests.push(request),
                            Err(error) => {
                                let error = error.dataset(&dataset).shard(&self.context.shard);
                                failures.push(scan::refused(i, &range, error));
                            }
                        }
                    }
                    if !requests.is_empty() {
                        rows += scan::read_chunks(snapshot, requests, order, seq, out).await?;
                    }
                }
            }
            for reply in scan::failed(failures) {
                if out.send(Ok(reply)).await.is_err() {
                    return Ok(());
                }
            }
        }
        self.metrics.rows_sent.add(rows, &[]);
        self.metrics.fetch.record(started.elapsed().as_secs_f64(), &[]);
        Ok(())
    }

    /// Checks one range against its dataset.
    fn range_request(
        &self,
        snapshot: &Snapshot,
        position: u32,
        range: &pb::ChunkRange,
        suggest: &mut Suggest,
    ) -> Result<RangeRequest> {
        let spec = &snapshot.spec;
        if range.fields.len() > FIELDS_MAX {
            let why = format!("{} fields in one range; at most {FIELDS_MAX} are allowed", range.fields.len());
            return Err(Error::new(Code::TooLarge, why));
        }
        if range.schema != 0 && range.schema != snapshot.schema {
            let changed = format!("the fields of {} have changed since the fetch was planned", range.dataset);
            return Err(Error::new(Code::StaleSchema, changed).hint("ask again"));
        }
        let chunks = range.end.checked_sub(range.first).unwrap_or(i64::MAX);
        if chunks <= 0 || chunks > scan::CHUNKS_MAX {
            return Err(Error::new(
                Code::InvalidRequest,
                format!("chunks [{}, {}) are not 1 to {} chunks", range.first, range.end, scan::CHUNKS_MAX),
            ));
        }
        let (from, to) = (spec.chunk.start(range.first), spec.chunk.end(range.end - 1));
        if !self.context.owns.owns_all(&range.dataset, &range.symbol, from, to) {
            return Err(Error::new(
                Code::StaleEpoch,
                format!("{} does not own {} of {}", self.context.shard, range.symbol, range.dataset),
            )
            .symbol(&range.symbol)
            .hint("symbols are owned by the regions that each shard describes; ask the shards again"));
        }
        if !snapshot.symbols.contains(range.symbol.as_str()) {
            let error = Error::new(
                Code::UnknownSymbol,
                format!("{} has no symbol {:?}", range.dataset, range.symbol),
            )
            .symbol(&range.symbol);
            let known = snapshot.symbols.iter().map(trellis_proto::Symbol::as_str);
            return Err(match suggest.nearest(&range.symbol, known) {
                Some(near) => error.hint(format!("did you mean {near}?")),
                None => error,
            });
        }
        let mut fields = Vec::with_capacity(range.fields.len());
        let mut asked = vec![false; spec.fields.len()];
        for name in &range.fields {
            let Some((i, _)) = spec.field(name) else {
                let hint = suggest.among(name, "fields", spec.fields.iter().map(|f| f.name.as_str()));
                let why = format!("{} has no field {name:?}", range.dataset);
                return Err(Error::new(Code::UnknownField, why).hint(hint));
            };
            if std::mem::replace(&mut asked[i], true) {
                let why = format!("the field {name} is asked for twice");
                return Err(Error::new(Code::InvalidRequest, why));
            }
            fields.push(i);
        }
        Ok(RangeRequest {
            position,
            symbol: range.symbol.clone(),
            fields,
            first: range.first,
            end: range.end,
        })
    }

    /// Follows the watch log from the position that the head gives. `unknown` says why a dataset has not become
    /// [known](Catalog::know).
    ///
    /// # Errors
    /// [`Code::TooLarge`] if the head names too many datasets.
    pub(crate) fn subscribe(
        &self,
        start: &pb::WatchStart,
        unknown: &HashMap<String, Error>,
    ) -> Result<Subscription> {
        let from = (start.incarnation == self.incarnation).then_some(start.seq);
        let answer = |dataset: &str| self.catalog.told(dataset, unknown.get(dataset));
        self.context.watch.subscribe(&start.head, from, &start.datasets, answer)
    }

    /// Follows one more dataset. `unknown` says why it has not become known.
    pub(crate) fn follow(&self, watcher: &Subscription, dataset: &str, unknown: Option<&Error>) {
        watcher.follow(dataset, || self.catalog.told(dataset, unknown));
    }

    pub(crate) fn hello(&self, seq: u64) -> pb::WatchHello {
        pb::WatchHello {
            shard: self.context.shard.clone(),
            incarnation: self.incarnation.clone(),
            seq,
            ownership_epoch: OWNERSHIP_EPOCH,
        }
    }

    /// The heartbeat of a watcher that has been sent everything that concerns it up to `seq`. The knowledge times of the datasets are in
    /// their descriptions and changes.
    pub(crate) fn heartbeat(&self, seq: u64) -> pb::Heartbeat {
        pb::Heartbeat { seq, ownership_epoch: OWNERSHIP_EPOCH, answers: false }
    }

    /// The datasets that may need upkeep since the last call.
    pub(crate) fn take_upkeep(&self) -> BTreeSet<DatasetName> {
        std::mem::take(&mut self.context.upkeep.lock())
    }

    #[cfg(test)]
    pub(crate) fn context_upkeep(&self) -> BTreeSet<DatasetName> {
        self.context.upkeep.lock().clone()
    }

    /// The next round of the upkeep shall look at a dataset again.
    pub(crate) fn needs_upkeep(&self, dataset: &DatasetName) {
        self.context.needs_upkeep(dataset);
    }

    pub(crate) async fn confirm(&self, request: &pb::ConfirmRequest) -> Result<pb::ConfirmReply> {
        if request.held.len() > HELD_MAX {
            CONFIRM_RANGES.hit();
            return Err(Error::new(
                Code::TooLarge,
                format!("{} held ranges; a confirmation has at most {HELD_MAX}", request.held.len()),
            ));
        }
        let seq = self.context.watch.seq();
        let mut suggest = Suggest::default();
        let mut found = HashMap::new();
        let mut known_through_ns = i64::MAX;
        let mut oldest: BTreeMap<&str, u64> = BTreeMap::new();
        for held in &request.held {
            let version = oldest.entry(held.dataset.as_str()).or_insert(held.version);
            *version = held.version.min(*version);
        }
        for (name, version) in oldest {
            // A dataset that cannot be read is not confirmed. The fetch that follows says why.
            if let Ok((table, snapshot)) = self.catalog.find_with(name, &mut suggest).await {
                table.recall(version).await;
                known_through_ns = known_through_ns.min(snapshot.known_through);
                found.insert(name, (table, snapshot));
            }
        }
        let unchanged = request.held.iter().map(|held| {
            let Some((table, snapshot)) = found.get(held.dataset.as_str()) else { return false };
            if held.end <= held.first {
                return false;
            }
            let chunk = snapshot.spec.chunk;
            let (from, to) = (chunk.start(held.first), chunk.end(held.end - 1));
            table.unchanged_since(held.version, &held.symbol, from, to)
        });
        Ok(pb::ConfirmReply { unchanged: unchanged.collect(), seq, known_through_ns })
    }

    pub(crate) async fn sync(&self, request: &pb::SyncRequest) -> Result<pb::SyncReply> {
        let (_, snapshot) = self.catalog.find_any(&request.dataset).await?;
        if snapshot.version < request.version {
            return Err(Error::new(
                Code::Unavailable,
                format!(
                    "{} is at version {} here, not yet at {}",
                    request.dataset, snapshot.version, request.version
                ),
            )
            .dataset(&request.dataset)
            .shard(&self.context.shard));
        }
        self.context.watch.applied(&request.dataset, self.config.apply_wait).await;
        Ok(pb::SyncReply { version: snapshot.version })
    }

    /// Refuses a write that another shard must commit.
    pub(crate) fn check_home(&self, dataset: &DatasetName) -> Result<()> {
        let home = self.context.home(dataset.as_str());
        if home == self.context.shard {
            return Ok(());
        }
        Err(Error::new(
            Code::StaleEpoch,
            format!("{dataset} is committed by {home}, not by {}", self.context.shard),
        )
        .dataset(dataset)
        .shard(home)
        .hint("the home of a dataset is the best of the shards' names by rendezvous hash of its name"))
    }

    pub(crate) async fn acquire_lease(&self, request: pb::AcquireLeaseRequest) -> Result<pb::Lease> {
        let name = self.leasable(&request.dataset)?;
        let spec = match request.spec {
            None => None,
            Some(wire) => {
                let spec = DatasetSpec::try_from(wire)?;
                if spec.dataset != name {
                    return Err(Error::new(Code::InvalidRequest, "the spec is that of another dataset")
                        .dataset(&name));
                }
                check_spec(&spec)?;
                Some(Arc::new(spec))
            }
        };
        let holder = match request.unit.as_str() {
            // Without a unit the request ends the ownership of a dataset, which is there and needs no spec.
            "" if spec.is_some() => {
                return Err(Error::new(Code::InvalidRequest, "the lease is asked for in no unit's name"));
            }
            "" => Holder { unit: String::new(), ..holder("nobody".to_owned(), request.instance)? },
            _ => holder(request.unit, request.instance)?,
        };
        let ttl = granted_ttl(request.ttl_ms);
        let asked = Acquisition { holder, ttl, take_over: request.take_over, spec };
        let grant = if asked.spec.is_some() {
            self.committers.of(&self.catalog.entry(&name)).acquire(asked).await?
        } else {
            let (table, _) = self.catalog.find(name.as_str()).await?;
            self.committers.of(&table).acquire(asked).await?
        };
        Ok(wire_lease(&name, grant))
    }

    pub(crate) async fn renew_lease(&self, request: pb::RenewLeaseRequest) -> Result<pb::Lease> {
        let name = self.leasable(&request.dataset)?;
        let (table, _) = self.catalog.find(name.as_str()).await?;
        let holder = holder(request.unit, request.instance)?;
        let ttl = granted_ttl(request.ttl_ms);
        let grant = self.committers.of(&table).renew(holder, request.epoch, ttl).await?;
        Ok(wire_lease(&name, grant))
    }

    pub(crate) async fn release_lease(&self, request: pb::ReleaseLeaseRequest) -> Result<()> {
        let name = self.leasable(&request.dataset)?;
        let (table, _) = self.catalog.find(name.as_str()).await?;
        let holder = holder(request.unit, request.instance)?;
        self.committers.of(&table).release(holder, request.epoch).await
    }

    fn leasable(&self, dataset: &str) -> Result<DatasetName> {
        let name = DatasetName::new(dataset)?;
        if dataset.starts_with(OWN_PREFIX) {
            return Err(Error::new(
                Code::PermissionDenied,
                format!("datasets named {OWN_PREFIX}* are written by the grid itself"),
            )
            .dataset(&name));
        }
        self.check_home(&name)?;
        Ok(name)
    }

    pub(crate) async fn alter_dataset(&self, request: pb::AlterDatasetRequest) -> Result<pb::DatasetChange> {
        let (name, id, by) = (request.dataset.clone(), request.id.clone(), request.by.clone());
        let change = Alteration::try_from(request)?;
        if let Some(Some(zone)) = &change.date_zone
            && zone.parse::<chrono_tz::Tz>().is_err()
        {
            return Err(Error::new(Code::InvalidRequest, format!("{zone:?} is no time zone"))
                .dataset(&name)
                .hint("zones are named as America/New_York or UTC"));
        }
        self.change(&name, id, by, ChangeKind::Alter(change)).await
    }

    pub(crate) async fn drop_dataset(&self, request: pb::DropDatasetRequest) -> Result<pb::DatasetChange> {
        self.change(&request.dataset, request.id, request.by, ChangeKind::Drop).await
    }

    pub(crate) async fn rename_dataset(
        &self,
        request: pb::RenameDatasetRequest,
    ) -> Result<pb::DatasetChange> {
        let name = self.leasable(&request.dataset)?;
        let to = DatasetName::new(&request.to)?;
        check_ids(&request.id, &request.by)?;
        if to == name {
            return Err(Error::new(Code::InvalidRequest, format!("{name} has that name already")));
        }
        if to.as_str().starts_with(OWN_PREFIX) {
            let own = format!("datasets named {OWN_PREFIX}* are the grid's own");
            return Err(Error::new(Code::PermissionDenied, own).dataset(&to));
        }
        rename_dataset(&self.catalog, &self.committers, &name, &to, request.id, request.by).await
    }

    async fn change(
        &self,
        dataset: &str,
        id: String,
        by: String,
        kind: ChangeKind,
    ) -> Result<pb::DatasetChange> {
        check_ids(&id, &by)?;
        let name = self.leasable(dataset)?;
        // A client that lost the answer may ask again to drop a dropped dataset.
        let (table, _) = self.catalog.find_any(name.as_str()).await?;
        self.committers.of(&table).change(Change { id, by, kind }).await
    }

    pub(crate) async fn record_runs(&self, records: &[pb::RunRecord]) -> Result<pb::RecordRunsReply> {
        if records.is_empty() || records.len() > LEDGER_RECORDS_MAX {
            return Err(Error::new(
                Code::InvalidRequest,
                format!("{} records; a call has 1 to {}", records.len(), LEDGER_RECORDS_MAX),
            ));
        }
        let spec = Arc::new(ledger_spec()?);
        self.check_home(&spec.dataset)?;
        let publish = Publish {
            right: Right::Ledger,
            rows: ledger_rows(&spec, records)?,
            run_id: String::new(),
            digest: String::new(),
            session: None,
            watermark: None,
            effect: Effect::Adds,
            note: serde_json::json!({"runs": records.len()}),
            _held: None,
            spec: spec.clone(),
        };
        let ack = self.committers.of(&self.catalog.entry(&spec.dataset)).publish(publish).await?;
        Ok(pb::RecordRunsReply { version: ack.version })
    }
}

/// Ranges by dataset, with their positions in the request.
fn by_dataset(ranges: Vec<pb::ChunkRange>) -> BTreeMap<String, Vec<(u32, pb::ChunkRange)>> {
    let mut groups: BTreeMap<String, Vec<(u32, pb::ChunkRange)>> = BTreeMap::new();
    for (i, range) in ranges.into_iter().enumerate() {
        groups.entry(range.dataset.clone()).or_default().push((i as u32, range));
    }
    groups
}

fn check_ids(id: &str, by: &str) -> Result<()> {
    let most = ID_BYTES_MAX;
    for (what, text) in [("id", id), ("name of who asks", by)] {
        if text.len() > most || text.chars().any(char::is_control) {
            let text = format!("the {what} is longer than {most} bytes or has control characters");
            return Err(Error::new(Code::InvalidRequest, text));
        }
    }
    Ok(())
}

fn holder(unit: String, instance: String) -> Result<Holder> {
    for (what, name) in [("unit", &unit), ("instance", &instance)] {
        if name.is_empty() || name.len() > 256 || name.chars().any(char::is_control) {
            return Err(Error::new(
                Code::InvalidRequest,
                format!("the {what} {name:?} is empty, longer than 256 bytes or has control characters"),
            ));
        }
    }
    Ok(Holder { unit, instance })
}

fn wire_lease(dataset: &DatasetName, grant: Grant) -> pb::Lease {
    pb::Lease {
        dataset: dataset.to_string(),
        unit: grant.holder.unit,
        instance: grant.holder.instance,
        epoch: grant.epoch,
        expires_in_ms: grant.ttl.as_millis().min(u128::from(u32::MAX)) as u32,
        since_ns: grant.since_ns,
    }
}
