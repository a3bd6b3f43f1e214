//! Discovery with a real DNS server. No test sleeps: tests wait on the watch itself, and on the log lines about failures,
//! which are part of the interface.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::watch;
use tracing_subscriber::{Layer, layer::SubscriberExt as _, registry::LookupSpan};
use trellis_fabric::discovery::{Options, Peers, Watch, watch};

use crate::knot::Knot;

/// A test that waits longer has failed.
const WAIT_MAX: Duration = Duration::from_secs(30);

const TWO_SERVICES: &str = "head 1 SRV 1 1 7401 h0\nhead 1 SRV 1 1 7402 h1\nh0 1 A 10.0.0.1\nh1 1 A 10.0.0.2";

/// Fast retries: a test should not wait for the back-off of a fleet.
fn options() -> Options {
    Options {
        doubt_min: Duration::from_millis(20),
        retry_min: Duration::from_millis(20),
        retry_max: Duration::from_millis(100),
        query_timeout: Duration::from_millis(200),
        ..Options::default()
    }
}

async fn until(peers: &mut watch::Receiver<Peers>, expected: &[&str]) {
    let is = |set: &Peers| set.iter().map(|peer| peer.addr.as_str()).eq(expected.iter().copied());
    if tokio::time::timeout(WAIT_MAX, peers.wait_for(is)).await.is_err() {
        panic!("expected {expected:?}, have {:?}", peers.borrow());
    }
}

/// Messages that discovery logs on this thread.
#[derive(Clone)]
struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    grown: Arc<watch::Sender<usize>>,
}

impl Log {
    fn listen() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self { lines: Arc::default(), grown: Arc::new(watch::Sender::new(0)) };
        let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(log.clone()));
        (log, guard)
    }

    fn count(&self, part: &str) -> usize {
        self.lines.lock().unwrap().iter().filter(|line| line.contains(part)).count()
    }

    async fn until(&self, part: &str, count: usize) {
        let mut grown = self.grown.subscribe();
        let wait = grown.wait_for(|_| self.count(part) >= count);
        if tokio::time::timeout(WAIT_MAX, wait).await.is_err() {
            panic!("expected {count} x {part:?}, have {:#?}", self.lines.lock().unwrap());
        }
    }
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Log {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0.push_str(&format!("{}={value:?} ", field.name()));
            }
        }
        if event.metadata().target().starts_with("trellis_fabric::discovery") {
            let mut text = Text(String::new());
            event.record(&mut text);
            self.lines.lock().unwrap().push(text.0);
            self.grown.send_modify(|n| *n += 1);
        }
    }
}

#[tokio::test]
async fn services_give_their_own_ports() {
    let Some(knot) = Knot::start(TWO_SERVICES) else { return };
    let mut peers = watch(&knot.url("head"), &options()).unwrap().peers;
    until(&mut peers, &["10.0.0.1:7401", "10.0.0.2:7402"]).await;
}

#[tokio::test]
async fn a_service_without_addresses_is_no_peer_and_a_root_target_is_none() {
    let records = format!("{TWO_SERVICES}\nhead 1 SRV 1 1 7403 gone\nhead 1 SRV 1 1 7404 .");
    let Some(knot) = Knot::start(&records) else { return };
    let mut peers = watch(&knot.url("head"), &options()).unwrap().peers;
    until(&mut peers, &["10.0.0.1:7401", "10.0.0.2:7402"]).await;
}

#[tokio::test]
async fn without_services_addresses_of_both_families_get_the_port_of_the_url() {
    let Some(knot) = Knot::start("head 1 A 10.0.0.1\nhead 1 AAAA fd00::1\nalias 1 CNAME head") else {
        return;
    };
    let mut peers = watch(&knot.url("head"), &options()).unwrap().peers;
    until(&mut peers, &["10.0.0.1:7400", "[fd00::1]:7400"]).await;
    let mut peers = watch(&knot.url("alias").replace("?", ":99?"), &options()).unwrap().peers;
    until(&mut peers, &["10.0.0.1:99", "[fd00::1]:99"]).await;
}

#[tokio::test]
async fn a_truncated_answer_is_asked_again_over_tcp() {
    // 200 addresses are more than 3 KB; the server sends at most 1,232 bytes over UDP
    let records: Vec<String> = (1..=200).map(|i| format!("many 1 A 10.0.1.{i}")).collect();
    let Some(knot) = Knot::start(&records.join("\n")) else { return };
    let mut peers = watch(&knot.url("many"), &options()).unwrap().peers;
    let all =
        tokio::time::timeout(WAIT_MAX, peers.wait_for(|set| !set.is_empty())).await.unwrap().unwrap().clone();
    assert_eq!(all.len(), 200);
}

#[tokio::test]
async fn a_change_of_the_zone_is_seen_after_the_ttl() {
    let Some(mut knot) = Knot::start(TWO_SERVICES) else { return };
    let mut peers = watch(&knot.url("head"), &options()).unwrap().peers;
    until(&mut peers, &["10.0.0.1:7401", "10.0.0.2:7402"]).await;
    knot.replace("head 1 SRV 1 1 7402 h1\nh1 1 A 10.0.0.2");
    until(&mut peers, &["10.0.0.2:7402"]).await;
    knot.replace("head 1 A 10.0.0.9");
    until(&mut peers, &["10.0.0.9:7400"]).await;
}

#[tokio::test]
async fn a_doubt_shows_a_change_before_the_ttl_is_over() {
    // an hour: without a doubt the test would wait for the longest trust, five minutes
    let Some(mut knot) = Knot::start("head 3600 A 10.0.0.1") else { return };
    let Watch { mut peers, doubt } = watch(&knot.url("head"), &options()).unwrap();
    until(&mut peers, &["10.0.0.1:7400"]).await;
    knot.replace("head 3600 A 10.0.0.2");
    doubt.raise();
    until(&mut peers, &["10.0.0.2:7400"]).await;
}

#[tokio::test]
async fn a_dead_server_costs_nothing_but_news() {
    let (log, _guard) = Log::listen();
    let Some(mut knot) = Knot::start(TWO_SERVICES) else { return };
    let mut peers = watch(&knot.url("head"), &options()).unwrap().peers;
    until(&mut peers, &["10.0.0.1:7401", "10.0.0.2:7402"]).await;

    knot.kill();
    log.until("look-up failed", 1).await;
    assert_eq!(peers.borrow().len(), 2, "the last good set is kept");

    knot.write("head 1 A 10.0.0.9");
    knot.restart();
    until(&mut peers, &["10.0.0.9:7400"]).await;
    log.until("succeed again", 1).await;
    assert_eq!(log.count("look-up failed"), 1, "a failure is told when it begins");
}

#[tokio::test]
async fn a_name_that_vanishes_is_kept_and_told() {
    let (log, _guard) = Log::listen();
    let Some(mut knot) = Knot::start(TWO_SERVICES) else { return };
    let mut peers = watch(&knot.url("head"), &options()).unwrap().peers;
    until(&mut peers, &["10.0.0.1:7401", "10.0.0.2:7402"]).await;

    knot.replace("other 1 A 10.0.0.3");
    log.until("no addresses", 1).await;
    assert_eq!(peers.borrow().len(), 2, "the last good set is kept");
    knot.replace("head 1 A 10.0.0.3");
    until(&mut peers, &["10.0.0.3:7400"]).await;
}

#[tokio::test]
async fn a_name_that_never_was_has_no_peers_and_is_told_once() {
    let (log, _guard) = Log::listen();
    let Some(mut knot) = Knot::start("ns2 1 A 10.0.0.1") else { return };
    let mut peers = watch(&knot.url("head"), &options()).unwrap().peers;
    log.until("no addresses", 1).await;
    assert!(peers.borrow().is_empty());
    // the name may still be added
    knot.replace("head 1 A 10.0.0.3");
    until(&mut peers, &["10.0.0.3:7400"]).await;
    assert_eq!(log.count("look-up failed"), 1);
}

#[tokio::test]
async fn a_server_that_refuses_is_a_failure_and_not_an_absence() {
    let (log, _guard) = Log::listen();
    let Some(knot) = Knot::start(TWO_SERVICES) else { return };
    // a zone that the server does not have
    let elsewhere = knot.url("head").replace("trellis.test", "elsewhere.test");
    let peers = watch(&elsewhere, &options()).unwrap().peers;
    log.until("no answer", 1).await;
    assert_eq!(log.count("no addresses"), 0);
    assert!(peers.borrow().is_empty());
}

/// A name server that passes all questions on to `upstream`, but for those about SRV: nobody answers them. So does Docker's, where the
/// host's own name server is away.
async fn without_srv(upstream: &str) -> String {
    const SRV: [u8; 4] = [0, 33, 0, 1];
    let front = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let back = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    back.connect(upstream).await.unwrap();
    let addr = front.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut question, mut answer) = ([0; 4096], [0; 4096]);
        loop {
            let (length, client) = front.recv_from(&mut question).await.unwrap();
            let question = &question[..length];
            if question.windows(SRV.len()).any(|bytes| bytes == SRV) {
                continue;
            }
            back.send(question).await.unwrap();
            let length = back.recv(&mut answer).await.unwrap();
            front.send_to(&answer[..length], client).await.unwrap();
        }
    });
    addr
}

#[tokio::test]
async fn a_named_port_finds_addresses_also_if_nobody_answers_about_services() {
    let (log, _guard) = Log::listen();
    let Some(knot) = Knot::start("head 1 A 10.0.0.1") else { return };
    let url = knot.url("head");
    let (name, upstream) = url.split_once("?server=").unwrap();
    let front = without_srv(upstream).await;
    let mut peers = watch(&format!("{name}:7400?server={front}"), &options()).unwrap().peers;
    until(&mut peers, &["10.0.0.1:7400"]).await;
    // without a port the services may have other ports: no peer is better than a wrong one
    let peers = watch(&format!("{name}?server={front}"), &options()).unwrap().peers;
    log.until("no answer", 1).await;
    assert!(peers.borrow().is_empty());
}
