//! Latency and throughput of a warm hit, as ratios to a tonic unary echo and to loopback TCP in the same rounds.
//!
//! `hit-bench floor` serves both floors and prints the addresses of the echo and of TCP in one line.
//! `hit-bench loop HEAD TICKET N` reads N times and prints microseconds per answer; it is for profiling.
//! `hit-bench run HEAD ECHO TCP TICKET ROUNDS SECONDS SEED` prints one line of JSON: the answer's rows and bytes, the seed, and
//! for 1 and for 16 connections the median over rounds of each target's p50 and requests per second, and the medians of the
//! ratios inside each round. In each round every target is timed once, in random order. The targets:
//!
//! * `echo`: an empty tonic call, the least cost of gRPC;
//! * `tcp`: the number of bytes of the answer, read from a socket into one buffer: the least cost of moving them;
//! * `drain`: the answer, read from HTTP/2 and dropped;
//! * `hit`: the answer, decoded to Arrow by the client of the grid.
//!
//! Pin the process to cores from outside (`taskset`): the placement has the largest effect.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use arrow_flight::Ticket;
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use prost::Message as _;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Mutex,
};
use tonic::{Request, Response, Status, body::Body, codegen::http, transport::Channel};
use tonic_prost::ProstCodec;
use tower::{Service, ServiceExt};
use trellis_fabric::{
    alloc::MiMalloc,
    channel::{ChannelOptions, connect_now},
};
use trellis_proto::SeriesQuery;
use trellis_qcu::client::{Client, ClientOptions};
use trellis_tests::rng::Rng;

/// Bytes of an echoed message: as small as a ticket.
const ECHO_BYTES: usize = 64;
/// Connections of the throughput figures.
const CONNECTIONS: usize = 16;
/// Requests on each connection before a kind of target is timed, unless they take [`WARM_UP_TIME`] together.
const WARM_UP: usize = 200;
const WARM_UP_TIME: Duration = Duration::from_millis(500);
/// Buffer of the TCP floor at either end: as large as the largest HTTP/2 frame.
const TCP_BUFFER: usize = 1 << 20;
/// Bytes by which answers to one read may differ, because a receipt has times.
const RECEIPT_SLACK: usize = 16;

#[derive(Clone, PartialEq, prost::Message)]
struct Echoed {
    #[prost(bytes = "bytes", tag = "1")]
    data: Bytes,
}

#[derive(Clone)]
struct Echo;

impl tonic::server::NamedService for Echo {
    const NAME: &'static str = "trellis.bench.Echo";
}

impl tonic::server::UnaryService<Echoed> for Echo {
    type Response = Echoed;
    type Future = std::future::Ready<Result<Response<Echoed>, Status>>;

    fn call(&mut self, request: Request<Echoed>) -> Self::Future {
        std::future::ready(Ok(Response::new(request.into_inner())))
    }
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let codec = ProstCodec::<Echoed, Echoed>::default();
        Box::pin(async move { Ok(tonic::server::Grpc::new(codec).unary(Echo, request).await) })
    }
}

async fn serve_floor() -> Result<()> {
    let (echo, tcp) = (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
    println!("{} {}", echo.local_addr()?, tcp.local_addr()?);
    tokio::spawn(async move {
        while let Ok((stream, _)) = tcp.accept().await {
            // ends when the client leaves
            tokio::spawn(answer_bytes(stream));
        }
    });
    let incoming = tonic::transport::server::TcpIncoming::from(echo).with_nodelay(Some(true));
    Ok(tonic::transport::Server::builder().add_service(Echo).serve_with_incoming(incoming).await?)
}

/// Answers each eight bytes, which are a length, with that many bytes.
async fn answer_bytes(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let data = vec![7; TCP_BUFFER];
    loop {
        let mut left = usize::try_from(stream.read_u64().await?)?;
        while left > 0 {
            left -= stream.write(&data[..left.min(TCP_BUFFER)]).await?;
        }
    }
}

/// The target of a timing: one connection, used by one request at a time.
#[derive(Clone)]
enum Target {
    Echo(Channel),
    Tcp { connection: Arc<Mutex<(TcpStream, Vec<u8>)>>, bytes: usize },
    Drain { channel: Channel, request: Bytes, bytes: usize },
    Hit { client: Client, query: SeriesQuery, rows: usize },
}

impl Target {
    async fn once(&mut self) -> Result<()> {
        match self {
            Self::Echo(channel) => {
                let mut grpc = tonic::client::Grpc::new(channel.clone());
                grpc.ready().await?;
                let request = Request::new(Echoed { data: Bytes::from_static(&[b'x'; ECHO_BYTES]) });
                let path = http::uri::PathAndQuery::from_static("/trellis.bench.Echo/Echo");
                let reply: Response<Echoed> =
                    grpc.unary(request, path, ProstCodec::<Echoed, Echoed>::default()).await?;
                ensure!(reply.get_ref().data.len() == ECHO_BYTES, "the echo answered something else");
            }
            Self::Tcp { connection, bytes } => {
                let (stream, buffer) = &mut *connection.lock().await;
                stream.write_u64(*bytes as u64).await?;
                let mut left = *bytes;
                while left > 0 {
                    let n = left.min(TCP_BUFFER);
                    let read = stream.read(&mut buffer[..n]).await?;
                    ensure!(read > 0, "the connection broke");
                    left -= read;
                }
            }
            Self::Drain { channel, request, bytes } => {
                let drained = drain(channel, request.clone()).await?;
                ensure!(drained.abs_diff(*bytes) <= RECEIPT_SLACK, "{drained} bytes instead of {bytes}");
            }
            Self::Hit { client, query, rows } => {
                let answer = client.read(query).await?;
                ensure!(answer.rows() == *rows, "{} rows instead of {rows}", answer.rows());
            }
        }
        Ok(())
    }
}

/// Bytes of the answer's body.
async fn drain(channel: &mut Channel, message: Bytes) -> Result<usize> {
    let request = http::Request::post("/arrow.flight.protocol.FlightService/DoGet")
        .header(http::header::TE, "trailers")
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .body(Body::new(Full::new(message)))?;
    let mut body = channel.ready().await?.call(request).await?.into_body();
    let (mut bytes, mut status) = (0, None);
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) => bytes += data.len(),
            Err(frame) => status = frame.trailers_ref().and_then(Status::from_header_map),
        }
    }
    ensure!(status.is_some_and(|status| status.code() == tonic::Code::Ok), "the answer failed");
    Ok(bytes)
}

/// The ticket as a gRPC message.
fn message(query: &SeriesQuery) -> Result<Bytes> {
    let ticket = Ticket { ticket: trellis_proto::ticket::encode(query) };
    let mut message = BytesMut::new();
    message.put_u8(0);
    message.put_u32(ticket.encoded_len().try_into()?);
    ticket.encode(&mut message)?;
    Ok(message.freeze())
}

/// Times `targets` at once for `span`: p50 in microseconds and requests per second.
async fn time(targets: &[Target], span: Duration) -> Result<(f64, f64)> {
    let started = Instant::now();
    let tasks: Vec<_> = targets
        .iter()
        .cloned()
        .map(|mut target| {
            tokio::spawn(async move {
                let mut taken = Vec::new();
                while started.elapsed() < span {
                    let at = Instant::now();
                    target.once().await?;
                    taken.push(at.elapsed().as_secs_f64() * 1e6);
                }
                anyhow::Ok(taken)
            })
        })
        .collect();
    let mut taken = Vec::new();
    for task in tasks {
        taken.extend(task.await??);
    }
    let rate = taken.len() as f64 / started.elapsed().as_secs_f64();
    Ok((median(&mut taken), rate))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The figures of one target, for each round.
#[derive(Default)]
struct Rounds {
    p50_us: Vec<f64>,
    rps: Vec<f64>,
}

impl Rounds {
    /// Median of the ratios inside each round.
    fn ratio(these: &[f64], those: &[f64]) -> f64 {
        median(&mut these.iter().zip(those).map(|(a, b)| a / b).collect::<Vec<_>>())
    }
}

/// The number of rounds, their duration, and the order of targets.
struct Timing {
    rounds: usize,
    span: Duration,
    seed: u64,
}

async fn run(head: &str, echo: &str, tcp: &str, ticket: &str, timing: &Timing) -> Result<()> {
    let query = trellis_proto::ticket::decode(ticket.as_bytes())?;
    let request = message(&query)?;
    let (mut rows, mut bytes) = (0, 0);
    let mut targets: [(&str, Vec<Target>); 4] =
        [("echo", vec![]), ("tcp", vec![]), ("drain", vec![]), ("hit", vec![])];
    let [(_, echoes), (_, tcps), (_, drains), (_, hits)] = &mut targets;
    for _ in 0..CONNECTIONS {
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{echo}"))?;
        echoes.push(Target::Echo(channel.tcp_nodelay(true).connect().await?));

        let client = Client::connect(&format!("grpc://{head}"), ClientOptions::default()).await?;
        rows = client.read(&query).await?.rows();
        hits.push(Target::Hit { client, query: query.clone(), rows });

        let mut channel = connect_now(head, &ChannelOptions::default()).await?;
        bytes = drain(&mut channel, request.clone()).await?;
        drains.push(Target::Drain { channel, request: request.clone(), bytes });

        let stream = TcpStream::connect(tcp).await?;
        stream.set_nodelay(true)?;
        let connection = Arc::new(Mutex::new((stream, vec![0; TCP_BUFFER])));
        tcps.push(Target::Tcp { connection, bytes });
    }
    for (_, targets) in &mut targets {
        let started = Instant::now();
        for _ in 0..WARM_UP {
            for target in targets.iter_mut() {
                target.once().await?;
            }
            if started.elapsed() > WARM_UP_TIME {
                break;
            }
        }
    }
    let mut rng = Rng::new(timing.seed);
    let mut figures = serde_json::Map::from_iter([
        ("rows".to_owned(), json!(rows)),
        ("bytes".to_owned(), json!(bytes)),
        ("seed".to_owned(), json!(timing.seed)),
    ]);
    for connections in [1, CONNECTIONS] {
        let mut all: [Rounds; 4] = Default::default();
        for _ in 0..timing.rounds {
            // Random order, so that neither drift of the machine nor the target before favours one.
            let mut left: Vec<usize> = (0..targets.len()).collect();
            while !left.is_empty() {
                let which = left.swap_remove(rng.below(left.len()));
                let (p50, rps) = time(&targets[which].1[..connections], timing.span).await?;
                all[which].p50_us.push(p50);
                all[which].rps.push(rps);
            }
        }
        let [echo, tcp, drain, hit] = &all;
        let mut of = serde_json::Map::from_iter([
            ("hit_of_echo_p50".to_owned(), json!(Rounds::ratio(&hit.p50_us, &echo.p50_us))),
            ("hit_of_echo_rps".to_owned(), json!(Rounds::ratio(&hit.rps, &echo.rps))),
            ("drain_of_echo_p50".to_owned(), json!(Rounds::ratio(&drain.p50_us, &echo.p50_us))),
            ("drain_of_echo_rps".to_owned(), json!(Rounds::ratio(&drain.rps, &echo.rps))),
            ("hit_of_tcp_rps".to_owned(), json!(Rounds::ratio(&hit.rps, &tcp.rps))),
            ("drain_of_tcp_rps".to_owned(), json!(Rounds::ratio(&drain.rps, &tcp.rps))),
        ]);
        for ((name, _), rounds) in targets.iter().zip(&mut all) {
            of.insert(format!("{name}_p50_us"), json!(median(&mut rounds.p50_us)));
            of.insert(format!("{name}_rps"), json!(median(&mut rounds.rps)));
        }
        figures.insert(connections.to_string(), of.into());
    }
    println!("{}", serde_json::Value::from(figures));
    Ok(())
}

async fn ask(head: &str, ticket: &str, n: usize) -> Result<()> {
    let query = trellis_proto::ticket::decode(ticket.as_bytes())?;
    let client = Client::connect(&format!("grpc://{head}"), ClientOptions::default()).await?;
    let began = Instant::now();
    let mut rows = 0;
    for _ in 0..n {
        rows = client.read(&query).await?.rows();
    }
    println!("{rows} rows in {:.1} us", began.elapsed().as_secs_f64() * 1e6 / n as f64);
    Ok(())
}

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["floor"] => serve_floor().await,
        ["run", head, echo, tcp, ticket, rounds, seconds, seed] => {
            let timing = Timing {
                rounds: rounds.parse().context("ROUNDS")?,
                span: Duration::from_secs_f64(seconds.parse().context("SECONDS")?),
                seed: seed.parse().context("SEED")?,
            };
            run(head, echo, tcp, ticket, &timing).await
        }
        ["loop", head, ticket, n] => ask(head, ticket, n.parse().context("N")?).await,
        _ => bail!(
            "usage: hit-bench floor | loop HEAD TICKET N | run HEAD ECHO TCP TICKET ROUNDS SECONDS SEED"
        ),
    }
}
