//! Latency and throughput of a warm hit, in ratios to a tonic unary echo taken in the same rounds.
//!
//! `hit-bench echo` serves the echo and prints its address. `hit-bench run HEAD ECHO TICKET ROUNDS SECONDS` prints one line
//! of JSON: for each target the median over rounds of its p50 and of its requests per second, and the ratios inside each
//! round, then their median. Expected on a quiet two-core machine: echo 33 us on one core, 110 us across cores; a hit of
//! 2,520 rows 1.1 to 1.2 times that across cores. Pin it from outside (`taskset`): placement is the largest effect.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use serde_json::json;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, codegen::http, transport::Channel};
use tonic_prost::ProstCodec;
use trellis_qcu::client::{Client, ClientOptions};

/// Bytes of an echoed message: a small request, as a ticket is.
const ECHO_BYTES: usize = 64;
/// Connections of the throughput figures.
const CONNECTIONS: usize = 16;
/// Requests before a target is timed.
const WARM_UP: usize = 200;

#[derive(Clone, PartialEq, prost::Message)]
struct Message {
    #[prost(bytes = "bytes", tag = "1")]
    data: Bytes,
}

#[derive(Clone)]
struct Echo;

impl tonic::server::NamedService for Echo {
    const NAME: &'static str = "trellis.bench.Echo";
}

impl tonic::server::UnaryService<Message> for Echo {
    type Response = Message;
    type Future = std::future::Ready<Result<Response<Message>, Status>>;

    fn call(&mut self, request: Request<Message>) -> Self::Future {
        std::future::ready(Ok(Response::new(request.into_inner())))
    }
}

impl tower::Service<http::Request<tonic::body::Body>> for Echo {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let codec = ProstCodec::<Message, Message>::default();
        Box::pin(async move { Ok(tonic::server::Grpc::new(codec).unary(Echo, request).await) })
    }
}

async fn serve_echo() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    Ok(tonic::transport::Server::builder().add_service(Echo).serve_with_incoming(incoming).await?)
}

/// What is timed.
#[derive(Clone)]
enum Target {
    Echo(Channel),
    Hit { client: Client, query: trellis_proto::SeriesQuery, rows: usize },
}

impl Target {
    async fn once(&self) -> Result<()> {
        match self {
            Self::Echo(channel) => {
                let mut grpc = tonic::client::Grpc::new(channel.clone());
                grpc.ready().await?;
                let request = Request::new(Message { data: Bytes::from_static(&[b'x'; ECHO_BYTES]) });
                let path = http::uri::PathAndQuery::from_static("/trellis.bench.Echo/Echo");
                let reply: Response<Message> =
                    grpc.unary(request, path, ProstCodec::<Message, Message>::default()).await?;
                if reply.get_ref().data.len() != ECHO_BYTES {
                    bail!("the echo answered something else");
                }
            }
            Self::Hit { client, query, rows } => {
                let answer = client.read(query).await?;
                if answer.rows() != *rows {
                    bail!("{} rows instead of {rows}", answer.rows());
                }
            }
        }
        Ok(())
    }
}

/// Times `targets` at once for `span`: p50 in microseconds and requests per second.
async fn time(targets: &[Target], span: Duration) -> Result<(f64, f64)> {
    let started = Instant::now();
    let tasks: Vec<_> = targets
        .iter()
        .cloned()
        .map(|target| {
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

async fn run(head: &str, echo: &str, ticket: &str, rounds: usize, span: Duration) -> Result<()> {
    let query = trellis_proto::ticket::decode(ticket.as_bytes())?;
    let (mut echoes, mut hits) = (Vec::new(), Vec::new());
    for _ in 0..CONNECTIONS {
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{echo}"))?
            .tcp_nodelay(true)
            .connect()
            .await?;
        echoes.push(Target::Echo(channel));
        let client = Client::connect(&format!("grpc://{head}"), ClientOptions::default()).await?;
        let rows = client.read(&query).await?.rows();
        hits.push(Target::Hit { client, query: query.clone(), rows });
    }
    for target in echoes.iter().chain(&hits) {
        for _ in 0..WARM_UP {
            target.once().await?;
        }
    }
    // name, echo's targets, hit's targets
    let cases = [("1", 1), ("16", CONNECTIONS)];
    let mut figures = serde_json::Map::new();
    for (name, n) in cases {
        let (mut p50, mut rate, mut of_p50, mut of_rate) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut echo_p50s = Vec::new();
        for round in 0..rounds {
            // The order alternates, so that drift of the machine does not favour one.
            let ((echo_p50, echo_rate), (hit_p50, hit_rate)) = if round % 2 == 0 {
                let echo = time(&echoes[..n], span).await?;
                (echo, time(&hits[..n], span).await?)
            } else {
                let hit = time(&hits[..n], span).await?;
                (time(&echoes[..n], span).await?, hit)
            };
            p50.push(hit_p50);
            rate.push(hit_rate);
            echo_p50s.push(echo_p50);
            of_p50.push(hit_p50 / echo_p50);
            of_rate.push(hit_rate / echo_rate);
        }
        figures.insert(
            name.to_owned(),
            json!({
                "echo_p50_us": median(&mut echo_p50s), "hit_p50_us": median(&mut p50), "hit_rps": median(&mut rate),
                "p50_ratio": median(&mut of_p50), "rps_ratio": median(&mut of_rate),
            }),
        );
    }
    let rows = match &hits[0] {
        Target::Hit { rows, .. } => *rows,
        Target::Echo(_) => 0,
    };
    figures.insert("rows".to_owned(), json!(rows));
    println!("{}", serde_json::Value::from(figures));
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["echo"] => serve_echo().await,
        ["run", head, echo, ticket, rounds, seconds] => {
            let span = Duration::from_secs_f64(seconds.parse().context("SECONDS")?);
            run(head, echo, ticket, rounds.parse().context("ROUNDS")?, span).await
        }
        _ => bail!("usage: hit-bench echo | hit-bench run HEAD ECHO TICKET ROUNDS SECONDS"),
    }
}
