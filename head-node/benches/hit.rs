//! A warm hit of 2,520 rows, decoded by a Rust client, beside a unary call of the same server (its health check, 64 bytes
//! or less both ways): what reading costs above what any gRPC call costs.
//!
//! Expected: the echo's two wake-ups and 30 us of HTTP/2 stay; framing adds 6 us, the socket's copies of 50 KB 10 us,
//! decoding 10 us. Bars: 1.15 times the echo with client and server on a core each, 1.8 on one core, 0.70 of the echo's
//! requests per second over 16 connections. Only ratios inside a round mean anything on a shared machine.
//!
//! `cargo bench -p trellis-head --bench hit`

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arrow_flight::{Ticket, decode::FlightRecordBatchStream, flight_service_client::FlightServiceClient};
use futures::{StreamExt, TryStreamExt, future::join_all};
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use trellis_fabric::channel::{self, ChannelOptions, MESSAGE_BYTES_MAX};
use trellis_proto::time::DAY_NS;

// test support: it may panic
#[allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]
#[path = "../tests/support/mod.rs"]
mod support;

const ROUNDS: usize = 9;
const SLICE: Duration = Duration::from_millis(250);
const ROWS: usize = 2_520;

#[derive(Clone, Copy, PartialEq)]
enum Call {
    Echo,
    Hit,
}

async fn once(channel: &Channel, ticket: &Ticket, call: Call) {
    match call {
        Call::Echo => {
            let request = HealthCheckRequest { service: "trellis.v1.Head".into() };
            HealthClient::new(channel.clone()).check(request).await.expect("an echo");
        }
        Call::Hit => {
            let mut flight =
                FlightServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
            let stream = flight.do_get(ticket.clone()).await.expect("an answer").into_inner();
            let mut batches = FlightRecordBatchStream::new_from_flight_data(stream.map_err(Into::into));
            let mut rows = 0;
            while let Some(batch) = batches.next().await {
                rows += batch.expect("a batch").num_rows();
            }
            assert_eq!(rows, ROWS);
        }
    }
}

/// Median time of a call over one connection, in microseconds.
async fn latency(channel: &Channel, ticket: &Ticket, call: Call) -> f64 {
    let (begun, mut times) = (Instant::now(), Vec::new());
    while begun.elapsed() < SLICE {
        let at = Instant::now();
        once(channel, ticket, call).await;
        times.push(at.elapsed().as_secs_f64() * 1e6);
    }
    median(&mut times)
}

/// Calls per second over all connections, one after the other on each.
async fn throughput(channels: &[Channel], ticket: &Ticket, call: Call) -> f64 {
    let begun = Instant::now();
    let tasks = channels.iter().map(|channel| {
        let (channel, ticket) = (channel.clone(), ticket.clone());
        tokio::spawn(async move {
            let mut calls = 0u32;
            while begun.elapsed() < SLICE {
                once(&channel, &ticket, call).await;
                calls += 1;
            }
            calls
        })
    });
    let calls: u32 =
        join_all(tasks.collect::<Vec<_>>()).await.into_iter().map(|calls| calls.expect("no panic")).sum();
    f64::from(calls) / begun.elapsed().as_secs_f64()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Ties this thread to a core, or to none.
fn pin(cores: &[usize]) {
    // SAFETY: the set is plain data of the size that is passed, and pid 0 is the calling thread.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        for core in cores {
            libc::CPU_SET(*core, &mut set);
        }
        libc::sched_setaffinity(0, size_of_val(&set), &set);
    }
}

fn server(cores: &'static [usize]) -> std::net::SocketAddr {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        pin(cores);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(cores.len())
            .on_thread_start(move || pin(cores))
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let rows = (0..ROWS as i64).map(|day| (day * DAY_NS, 10, Some(day))).collect();
            let grid = support::Grid::start([("AMZN".to_owned(), rows)].into()).await;
            sender.send(grid.address).expect("the client waits");
            std::future::pending::<()>().await;
        });
    });
    receiver.recv().expect("an address")
}

fn compare(
    name: &str,
    server_cores: &'static [usize],
    client_cores: &'static [usize],
    connections: usize,
    bar: f64,
) {
    let address = server(server_cores).to_string();
    pin(client_cores);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(client_cores.len())
        .on_thread_start(move || pin(client_cores))
        .enable_all()
        .build()
        .expect("a runtime");
    let json = format!(r#"{{"dataset": "{}", "fields": ["close"], "symbols": ["AMZN"]}}"#, support::DATASET);
    let (ticket, task_address) = (Ticket::new(json), address.clone());
    // on a worker: `block_on`'s own thread would be one wake-up further away
    let work = async move {
        let connect = |_| channel::connect(&task_address, &ChannelOptions::default()).expect("an address");
        let channels: Arc<[Channel]> = (0..connections).map(connect).collect();
        for channel in channels.iter() {
            once(channel, &ticket, Call::Hit).await;
        }
        let (mut ratios, mut echoes, mut hits) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let order = if round % 2 == 0 { [Call::Echo, Call::Hit] } else { [Call::Hit, Call::Echo] };
            let (mut echo, mut hit) = (0.0, 0.0);
            for call in order {
                let figure = match connections {
                    1 => latency(&channels[0], &ticket, call).await,
                    _ => throughput(&channels, &ticket, call).await,
                };
                if call == Call::Echo { echo = figure } else { hit = figure }
            }
            ratios.push(hit / echo);
            echoes.push(echo);
            hits.push(hit);
        }
        (median(&mut ratios), median(&mut echoes), median(&mut hits))
    };
    let (ratio, echo, hit) = runtime.block_on(async { tokio::spawn(work).await.expect("no panic") });
    let unit = if connections == 1 { "us" } else { "calls/s" };
    println!("{name:44} hit {hit:9.1} {unit}  echo {echo:9.1} {unit}  hit/echo {ratio:5.2}  (bar {bar})");
}

fn main() {
    compare("1 connection, a core each", &[1], &[0], 1, 1.15);
    compare("1 connection, one core", &[0], &[0], 1, 1.8);
    compare("16 connections, both cores shared", &[0, 1], &[0, 1], 16, 0.70);
}
