//! The server over real sockets. Handshakes prove that a call is running before the drain begins; no test sleeps.

use std::{collections::HashSet, time::Duration};

use bytes::Bytes;
use futures::StreamExt as _;
use http::Request;
use http_body::Frame;
use http_body_util::StreamBody;
use tonic::{Code, body::Body};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};
use tower::{Service as _, ServiceExt as _};
use trellis_fabric::{
    channel::{CONNECTIONS_MAX, MESSAGE_BYTES_MAX, PeerChannel, Pool, Reason, connect_now},
    serve::{CancellationToken, Drained, Options, READY, ready_line},
    shutdown,
};

use crate::service::{BULK_BYTES, NAME, Server, TICK, streaming, unary, unary_within};

/// Longer than any test should take: a test that waits for the whole drain fails by its duration.
const LONG: Duration = Duration::from_secs(60);

/// Why the call failed, if the peer did not answer with this status itself.
fn reason(status: &tonic::Status) -> Option<Reason> {
    std::error::Error::source(status).map(Reason::of)
}

fn check(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

#[tokio::test]
async fn a_call_carries_its_unit() {
    let server = Server::start(LONG).await;
    assert_eq!(unary(server.channel(), "Echo", "hello").await.unwrap(), "hello");
    assert_eq!(unary(server.channel(), "Metadata", "trellis-unit").await.unwrap(), "probe-unit");
    assert_eq!(unary(server.channel(), "Metadata", "traceparent").await.unwrap(), "", "nothing is exported");
}

#[tokio::test]
async fn a_panic_is_an_internal_error_without_its_text_and_the_server_lives() {
    let server = Server::start(LONG).await;
    let status = unary(server.channel(), "Panic", "").await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert!(!status.message().contains("secret"), "{status}");

    // in the middle of a stream; messages that were not sent yet are lost
    let mut stream = streaming(server.channel(), "PanicLater").await.unwrap();
    let status = loop {
        match stream.message().await {
            Ok(message) => assert_eq!(message.as_deref(), Some("first")),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Internal);
    assert!(!status.message().contains("secret"), "{status}");

    assert_eq!(unary(server.channel(), "Echo", "alive").await.unwrap(), "alive");
}

#[tokio::test]
async fn a_drain_lets_running_calls_finish_and_refuses_new_ones() {
    let server = Server::start(LONG).await;
    let channel = server.channel();
    let held = tokio::spawn(unary(channel.clone(), "Hold", ""));
    server.probe.entered.notified().await;
    let mut health = HealthClient::new(server.channel());
    let mut watch = health.watch(check(NAME)).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);

    server.stop.send(()).unwrap();
    // the health watch tells it while the held call still runs
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    // new connections are refused, or new calls on old ones: either way at once, and worth a retry elsewhere
    let status = unary(channel, "Echo", "late").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(!held.is_finished() && !server.ended.is_finished());

    server.probe.release.add_permits(1);
    assert_eq!(held.await.unwrap().unwrap(), "released");
    assert_eq!(server.ended.await.unwrap().unwrap(), Drained::default());
}

#[tokio::test]
async fn a_late_call_is_cut_and_named() {
    let server = Server::start(Duration::from_millis(50)).await;
    let held = tokio::spawn(unary(server.channel(), "Hold", ""));
    server.probe.entered.notified().await;
    server.stop.send(()).unwrap();
    let drained = server.ended.await.unwrap().unwrap();
    assert_eq!(drained.late, [format!("/{NAME}/Hold")]);
    let status = held.await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(reason(&status).is_some(), "the connection was lost: {status:?}");
}

#[tokio::test]
async fn an_answer_that_is_cut_in_the_middle_is_unavailable() {
    // not declared endless here, so that the drain waits for it, in vain
    let options = Options { endless: Vec::new(), ..Options::default() };
    let server = Server::of(Default::default(), Duration::from_millis(50), options).await;
    let mut ticks = streaming(server.channel(), "Tick").await.unwrap();
    assert_eq!(ticks.message().await.unwrap().as_deref(), Some("first"));
    server.stop.send(()).unwrap();
    assert_eq!(server.ended.await.unwrap().unwrap().late, [TICK]);
    assert_eq!(ticks.message().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_dropped_server_leaves_nothing_behind() {
    let server = Server::start(LONG).await;
    let held = tokio::spawn(unary(server.channel(), "Hold", ""));
    server.probe.entered.notified().await;
    server.ended.abort();
    assert_eq!(held.await.unwrap().unwrap_err().code(), Code::Unavailable);
    // the handler has ended, too: only the test holds the service now
    while std::sync::Arc::strong_count(&server.probe.release) > 1 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_signal_ends_the_wait_for_it() {
    let mut signal = Box::pin(shutdown::signal());
    // the first poll installs the handlers: the signal then does not kill the test
    assert!(futures::poll!(&mut signal).is_pending());
    let pid = std::process::id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    signal.await;
}

#[tokio::test]
async fn a_deadline_is_told_as_one() {
    let server = Server::start(LONG).await;
    let status = unary_within(server.channel(), "Hold", Duration::from_millis(20)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
}

#[tokio::test]
async fn endless_answers_end_with_the_drain() {
    let server = Server::start(LONG).await;
    let mut ticks = streaming(server.channel(), "Tick").await.unwrap();
    assert_eq!(ticks.message().await.unwrap().as_deref(), Some("first"));
    server.stop.send(()).unwrap();
    assert_eq!(ticks.message().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(server.ended.await.unwrap().unwrap().late, Vec::<String>::new());
}

#[tokio::test]
async fn a_closed_server_refuses_at_once() {
    let server = Server::start(LONG).await;
    let addr = server.addr.to_string();
    let channel = server.channel();
    assert_eq!(unary(channel.clone(), "Echo", "x").await.unwrap(), "x");
    server.stop.send(()).unwrap();
    server.ended.await.unwrap().unwrap();

    let status = unary(channel, "Echo", "x").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(reason(&status), Some(Reason::Refused));
    assert_eq!(connect_now(&addr, &Default::default()).await.unwrap_err().reason, Reason::Refused);
}

#[tokio::test]
async fn many_calls_cancelled_at_once_do_not_cost_the_connection() {
    let server = Server::start(LONG).await;
    let channel = server.channel();
    let kept = tokio::spawn(unary(channel.clone(), "Hold", ""));
    server.probe.entered.notified().await;
    for _ in 0..10 {
        // sent and reset together: the server sees many streams and their ends at the same time
        let calls = (0..100).map(|_| unary(channel.clone(), "Hold", ""));
        let mut calls = Box::pin(futures::future::join_all(calls));
        assert!(futures::poll!(&mut calls).is_pending());
        tokio::task::yield_now().await;
        drop(calls);
    }
    assert_eq!(unary(channel, "Echo", "alive").await.unwrap(), "alive");
    server.probe.release.add_permits(1);
    assert_eq!(kept.await.unwrap().unwrap(), "released");
}

#[tokio::test]
async fn a_pool_opens_connections_under_load_only() {
    let server = Server::start(LONG).await;
    let pool = Pool::connect(&server.addr.to_string(), &Default::default()).unwrap();
    let mut peers = HashSet::new();
    for _ in 0..16 {
        peers.insert(unary(pool.get(0), "Peer", "").await.unwrap());
    }
    assert_eq!(peers.len(), 1, "one call after the other");

    // these calls are not declared large; each is half sent when the next begins
    let mut held = Vec::new();
    for _ in 0..2 * CONNECTIONS_MAX {
        let mut answer = streaming(pool.get(0), "Bulk").await.unwrap();
        peers.insert(answer.message().await.unwrap().unwrap());
        assert_eq!(answer.message().await.unwrap().unwrap().len(), BULK_BYTES);
        held.push(answer);
    }
    assert_eq!(peers.len(), CONNECTIONS_MAX);

    let first = unary(pool.first(), "Peer", "").await.unwrap();
    drop(held);
    for _ in 0..16 {
        assert_eq!(unary(pool.get(0), "Peer", "").await.unwrap(), first, "nothing else is in flight");
    }
}

#[tokio::test]
async fn a_server_lives_before_it_is_ready_and_neither_while_it_drains() {
    let ready = CancellationToken::new();
    let options = Options { ready: Some(ready.clone()), ..Options::default() };
    let server = Server::of(Default::default(), LONG, options).await;
    // a call that holds up the drain, so that health can still be asked
    let _held = tokio::spawn(unary(server.channel(), "Hold", ""));
    server.probe.entered.notified().await;
    let mut health = HealthClient::new(server.channel());
    let mut watch = async |service| health.watch(check(service)).await.unwrap().into_inner();
    let [mut whole, mut ready_name, mut service] = [watch("").await, watch(READY).await, watch(NAME).await];
    assert_eq!(status(&mut whole).await, ServingStatus::Serving);
    for watch in [&mut ready_name, &mut service] {
        assert_eq!(status(watch).await, ServingStatus::NotServing);
    }
    ready.cancel();
    for watch in [&mut ready_name, &mut service] {
        assert_eq!(status(watch).await, ServingStatus::Serving);
    }
    server.stop.send(()).unwrap();
    for watch in [&mut whole, &mut ready_name, &mut service] {
        assert_eq!(status(watch).await, ServingStatus::NotServing);
    }
    server.probe.release.add_permits(1);
    server.ended.await.unwrap().unwrap();
}

/// The next status that a health watch tells.
async fn status(watch: &mut tonic::Streaming<HealthCheckResponse>) -> ServingStatus {
    watch.message().await.unwrap().unwrap().status()
}

#[tokio::test]
async fn five_bytes_that_claim_a_long_message_are_refused_where_messages_are_short_and_hold_nothing_elsewhere()
 {
    const CLAIMS: usize = 4_000;
    let long = format!("/{NAME}/Hold");
    let options = Options { large: vec![long.clone()], ..Options::default() };
    let server = Server::of(Default::default(), LONG, options).await;
    // Each sends the five bytes, and then neither more nor the end.
    let channel = server.channel();
    let claims = |path: String| {
        let call = move |_| raw_call(channel.clone(), path.clone(), claim(MESSAGE_BYTES_MAX));
        futures::future::join_all((0..CLAIMS).map(call))
    };
    for status in claims.clone()(format!("/{NAME}/Echo")).await {
        assert_eq!(status, Some(Code::OutOfRange));
    }
    let waiting = tokio::spawn(claims(long));
    assert_eq!(unary(server.channel(), "Echo", "hello").await.unwrap(), "hello");
    assert!(!waiting.is_finished());
    waiting.abort();
}

/// The first bytes of a message of `length` bytes.
fn claim(length: usize) -> Bytes {
    [&[0], u32::try_from(length).unwrap().to_be_bytes().as_slice()].concat().into()
}

/// Calls a method with a body that begins with `bytes` and does not end. Returns the status of the answer.
async fn raw_call(mut channel: PeerChannel, path: String, bytes: Bytes) -> Option<Code> {
    let begin = futures::stream::iter([Ok::<_, tonic::Status>(Frame::data(bytes))]);
    let body = Body::new(StreamBody::new(begin.chain(futures::stream::pending()).boxed()));
    let request = Request::post(path).header("content-type", "application/grpc").body(body).unwrap();
    let answer = channel.ready().await.unwrap().call(request).await.unwrap();
    Some(tonic::Status::from_header_map(answer.headers())?.code())
}

#[tokio::test]
async fn health_and_reflection_are_served() {
    let options =
        Options { descriptor_sets: vec![tonic_health::pb::FILE_DESCRIPTOR_SET], ..Options::default() };
    let server = Server::of(Default::default(), LONG, options).await;
    let mut health = HealthClient::new(server.channel());
    for service in ["", NAME, READY] {
        let answer = health.check(check(service)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service:?}");
    }
    assert_eq!(health.check(check("nobody")).await.unwrap_err().code(), Code::NotFound);

    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(server.channel());
    let mut answers = client.server_reflection_info(futures::stream::iter([ask])).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("not a list");
    };
    assert!(list.service.iter().any(|service| service.name == NAME), "{list:?}");
}

#[test]
fn the_ready_line_is_one_line_of_json() {
    let line = ready_line("shard", "shard-0", "127.0.0.1:43121".parse().unwrap());
    assert_eq!(line, r#"{"ready": true, "role": "shard", "id": "shard-0", "listen": "127.0.0.1:43121"}"#);
}
