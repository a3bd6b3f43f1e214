//! What telemetry costs: hits and publishes with telemetry off, on, and with a collector that is dead or does not answer.
//!
//! `telemetry-bench ROUNDS SECONDS LAKES [COLLECTOR]` starts a head and a shard for each case, each over a folder below `LAKES`.
//! `COLLECTOR` is the endpoint of a collector; without one this process takes all exports by gRPC, and drops them. The servers run on
//! one core, this process on another. In each round every case is timed once, in random order. A figure is the median over rounds of
//! the ratio to the case `off` in the same round: of the p50, and of the processor time that the servers used for a request.
//! Each figure is one line of JSON.

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    task::{Context as Polled, Poll},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use serde_json::json;
use tokio::net::TcpListener;
use tonic::{Request, Response, body::Body, codegen::http, transport::server::TcpIncoming};
use tonic_prost::ProstCodec;
use tower::Service;
use trellis_fabric::alloc::MiMalloc;
use trellis_proto::{ChunkSpan, SeriesQuery, Symbols, time::DAY_NS};
use trellis_qcu::client::Client;
use trellis_tests::{
    grid,
    oracle::Row,
    processes::{Node, client, processor_time},
    publisher::{FIRST_SESSION, Publisher, symbols},
    rng::Rng,
};

/// Rows of the read: ten years of sessions of one symbol.
const ROWS: usize = 2_520;
/// Connections of readers and of publishers in the second figure of each.
const CONNECTIONS: usize = 16;
/// Hits on each connection before the clock runs.
const WARM_UP: usize = 200;
/// A publish takes about a hundred times as long as a hit, so publishes are timed for longer.
const PUBLISH_SPANS: u32 = 8;
/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The services of an OTLP collector.
const SERVICES: [&str; 3] = [
    "opentelemetry.proto.collector.trace.v1.TraceService",
    "opentelemetry.proto.collector.metrics.v1.MetricsService",
    "opentelemetry.proto.collector.logs.v1.LogsService",
];

/// One service of a collector that drops what it gets. The message without fields reads every request.
#[derive(Clone)]
struct Sink<const SERVICE: usize>;

impl<const SERVICE: usize> tonic::server::NamedService for Sink<SERVICE> {
    const NAME: &'static str = SERVICES[SERVICE];
}

impl<const SERVICE: usize> tonic::server::UnaryService<()> for Sink<SERVICE> {
    type Response = ();
    type Future = std::future::Ready<Result<Response<()>, tonic::Status>>;

    fn call(&mut self, _: Request<()>) -> Self::Future {
        std::future::ready(Ok(Response::new(())))
    }
}

impl<const SERVICE: usize> Service<http::Request<Body>> for Sink<SERVICE> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Polled<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            Ok(tonic::server::Grpc::new(ProstCodec::<(), ()>::default()).unary(Self, request).await)
        })
    }
}

/// A head and a shard, whose telemetry goes to `endpoint`.
struct Case {
    name: &'static str,
    shard: Node,
    head: Node,
    readers: Vec<(Client, SeriesQuery)>,
    publishers: Vec<Publisher>,
}

/// The figures of one case: one of each for every round.
#[derive(Default)]
struct Rounds {
    p50_us: Vec<f64>,
    cpu_us: Vec<f64>,
}

impl Case {
    fn start(name: &'static str, endpoint: Option<String>, lakes: &Path) -> Result<Self> {
        let (lake, logs) = (lakes.join(name), lakes.join("logs"));
        std::fs::create_dir_all(&lake)?;
        std::fs::create_dir_all(&logs)?;
        let mut shard = Node::shard(&lake, 0, 1, &logs)?;
        let mut head = Node::head(0, &[shard.addr()], &logs)?;
        for node in [&mut shard, &mut head] {
            if let Some(endpoint) = &endpoint {
                node.set("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
            }
            node.start()?;
        }
        Ok(Self { name, shard, head, readers: Vec::new(), publishers: Vec::new() })
    }

    async fn set_up(&mut self) -> Result<()> {
        let heads: [SocketAddr; 1] = [self.head.addr()];
        let mut spec = grid::spec("equities.daily", &["close"]);
        spec.chunk = ChunkSpan::new(4_096 * DAY_NS)?;
        let rows: Vec<Row> = (0..ROWS)
            .map(|i| Row {
                symbol: "AMZN".to_owned(),
                ts: FIRST_SESSION + i as i64 * DAY_NS,
                known_at: 0,
                values: vec![Some(i as f64)],
            })
            .collect();
        let query = SeriesQuery::new(spec.dataset.clone(), Symbols::new(["AMZN"])?);
        for i in 0..CONNECTIONS {
            let client = client(&heads, "bench", PATIENCE).await?;
            if i == 0 {
                grid::import(&client, &spec, &rows, None, "prices").await?;
            }
            for _ in 0..WARM_UP {
                let read = client.read(&query).await?.rows();
                ensure!(read == ROWS, "{read} rows instead of {ROWS}");
            }
            self.readers.push((client, query.clone()));
            self.publishers.push(Publisher::set_up(&heads, i, symbols()).await?);
        }
        Ok(())
    }

    fn processor_time(&self) -> Result<f64> {
        let nodes = [&self.shard, &self.head];
        nodes.iter().map(|node| processor_time(node.pid().unwrap_or_default())).sum()
    }

    async fn hits(&self, connections: usize, span: Duration) -> Result<Vec<f64>> {
        let end = Instant::now() + span;
        let timed = self.readers[..connections].iter().map(async |(client, query)| {
            let mut taken = Vec::new();
            while Instant::now() < end {
                let at = Instant::now();
                let rows = client.read(query).await?.rows();
                taken.push(at.elapsed().as_secs_f64());
                ensure!(rows == ROWS, "{rows} rows instead of {ROWS}");
            }
            Ok(taken)
        });
        Ok(try_join_all(timed).await?.concat())
    }

    async fn publishes(&mut self, connections: usize, span: Duration) -> Result<Vec<f64>> {
        let end = Instant::now() + span;
        let timed = self.publishers[..connections].iter_mut().map(|publisher| publisher.publish_until(end));
        Ok(try_join_all(timed).await?.concat())
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Median of the ratios inside each round.
fn ratio(these: &[f64], those: &[f64]) -> f64 {
    median(&mut these.iter().zip(those).map(|(a, b)| a / b).collect::<Vec<_>>())
}

async fn run(cases: &mut [Case], rounds: usize, span: Duration) -> Result<()> {
    for case in cases.iter_mut() {
        case.set_up().await.with_context(|| case.name.to_owned())?;
    }
    let mut rng = Rng::new(1);
    for (what, publishes, connections) in
        [("hit", false, 1), ("hit", false, CONNECTIONS), ("publish", true, 1), ("publish", true, CONNECTIONS)]
    {
        let mut all: Vec<Rounds> = cases.iter().map(|_| Rounds::default()).collect();
        for _ in 0..rounds {
            // Random order, so that neither drift of the machine nor the case before favours one.
            let mut left: Vec<usize> = (0..cases.len()).collect();
            while !left.is_empty() {
                let which = left.swap_remove(rng.below(left.len()));
                let case = &mut cases[which];
                let before = case.processor_time()?;
                let mut taken = if publishes {
                    case.publishes(connections, span * PUBLISH_SPANS).await?
                } else {
                    case.hits(connections, span).await?
                };
                let used = case.processor_time()? - before;
                all[which].cpu_us.push(used * 1e6 / taken.len() as f64);
                all[which].p50_us.push(median(&mut taken) * 1e6);
            }
        }
        for which in 1..cases.len() {
            for (figure, of) in [("p50", Rounds::p50 as fn(&Rounds) -> &Vec<f64>), ("CPU", Rounds::cpu)] {
                let (these, off) = (of(&all[which]), of(&all[0]));
                let bar = (what == "hit" && cases[which].name == "on").then_some(1.03);
                let figure = json!({
                    "name": format!("{what}, {connections} conn: {} / off, {figure}", cases[which].name),
                    "value": ratio(these, off), "unit": "x", "bar": bar, "better": "lower", "peer": "",
                    "detail": {
                        format!("{}_us", cases[which].name): median(&mut these.clone()),
                        "off_us": median(&mut off.clone()),
                    },
                });
                println!("{figure}");
            }
        }
    }
    Ok(())
}

impl Rounds {
    fn p50(&self) -> &Vec<f64> {
        &self.p50_us
    }

    fn cpu(&self) -> &Vec<f64> {
        &self.cpu_us
    }
}

/// Keeps this thread, and the threads and processes that it makes from now on, on one core.
fn pin(core: usize) -> Result<()> {
    // SAFETY: `set` is plain data, and outlives the call.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        let done = libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
        ensure!(done == 0, "this machine has no core {core}: the figures need two");
    }
    Ok(())
}

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (rounds, seconds, lakes, collector) = match arguments.as_slice() {
        [rounds, seconds, lakes] => (rounds, seconds, lakes, None),
        [rounds, seconds, lakes, collector] => (rounds, seconds, lakes, Some(collector.clone())),
        _ => bail!("usage: telemetry-bench ROUNDS SECONDS LAKES [COLLECTOR]"),
    };
    let span = Duration::from_secs_f64(seconds.parse().context("SECONDS")?);
    // Connections to the first wait in its queue for ever; nobody listens at the second any more.
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let dead = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let sink = std::net::TcpListener::bind("127.0.0.1:0")?;
    sink.set_nonblocking(true)?;
    let endpoint = collector.unwrap_or(format!("http://{}", sink.local_addr()?));
    pin(1)?;
    let lakes = Path::new(lakes);
    let mut cases = [
        Case::start("off", None, lakes)?,
        // exports before the sink listens wait in its queue
        Case::start("on", Some(endpoint), lakes)?,
        Case::start("dead", Some(format!("http://{dead}")), lakes)?,
        Case::start("silent", Some(format!("http://{}", silent.local_addr()?)), lakes)?,
    ];
    pin(0)?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let incoming = TcpIncoming::from(TcpListener::from_std(sink)?).with_nodelay(Some(true));
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(Sink::<0>)
                .add_service(Sink::<1>)
                .add_service(Sink::<2>)
                .serve_with_incoming(incoming),
        );
        run(&mut cases, rounds.parse().context("ROUNDS")?, span).await
    })
}
