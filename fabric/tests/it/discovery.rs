//! Discovery with a real DNS server. No test sleeps: tests wait on the watch itself, and on the log lines about failures,
//! which are part of the interface.

use std::{fmt::Write as _, time::Duration};

use trellis_fabric::discovery::{Options, Watch, watch};

use crate::{
    knot::{Knot, ZONE},
    relay::{Mode, Relay},
    witness::{Log, WAIT_MAX, until},
};

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
    let Some(mut knot) = Knot::start("head 3600 A 10.0.0.1\nother 0 A 10.0.0.1") else { return };
    let Watch { mut peers, doubt, .. } = watch(&knot.url("head"), &options()).unwrap();
    until(&mut peers, &["10.0.0.1:7400"]).await;
    knot.replace("head 3600 A 10.0.0.2\nother 0 A 10.0.0.2");
    // another name shows that the server has read the zone
    let fast = Options { ttl_min: Duration::from_millis(20), ..options() };
    let mut others = watch(&knot.url("other"), &fast).unwrap().peers;
    until(&mut others, &["10.0.0.2:7400"]).await;
    doubt.raise("10.0.0.1:7400");
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

#[tokio::test]
async fn a_named_port_finds_addresses_also_if_nobody_answers_about_services() {
    let (log, _guard) = Log::listen();
    let Some(knot) = Knot::start("head 1 A 10.0.0.1") else { return };
    // so is Docker's server, where the host's own name server is away
    let relay = Relay::of(&knot, Mode::SilentAboutServices).await;
    let mut peers = watch(&relay.url(&format!("head.{ZONE}:7400")), &options()).unwrap().peers;
    until(&mut peers, &["10.0.0.1:7400"]).await;
    // without a port the services may have other ports: no peer is better than a wrong one
    let peers = watch(&relay.url(&format!("head.{ZONE}")), &options()).unwrap().peers;
    log.until("no answer", 1).await;
    assert!(peers.borrow().is_empty());
}

/// `head-0` and so on, each with one address, and this TTL.
fn members(numbers: std::ops::Range<u32>, ttl: u32) -> String {
    let mut records = String::new();
    for n in numbers {
        writeln!(records, "head-{n} {ttl} A 10.0.1.{n}").unwrap();
    }
    records
}

fn addresses(numbers: impl IntoIterator<Item = u32>) -> Vec<String> {
    let mut all: Vec<String> = numbers.into_iter().map(|n| format!("10.0.1.{n}:7400")).collect();
    all.sort_unstable();
    all
}

async fn until_members(
    peers: &mut tokio::sync::watch::Receiver<trellis_fabric::discovery::Peers>,
    all: &[String],
) {
    until(peers, &all.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn numbered_members_are_found_by_one_url_and_shown_together() {
    let (log, _guard) = Log::listen();
    let Some(knot) = Knot::start(&members(0..60, 1)) else { return };
    // as in production, the first set waits for a query: a busy machine may take longer than the other tests' queries
    let patient = Options { query_timeout: WAIT_MAX, ..options() };
    let mut peers = watch(&knot.url("head-{0..63}"), &patient).unwrap().peers;
    let first = tokio::time::timeout(WAIT_MAX, peers.changed()).await;
    first.unwrap().unwrap();
    let first: Vec<String> = peers.borrow().iter().map(ToString::to_string).collect();
    assert_eq!(first, addresses(0..60), "the first set that is shown is whole");
    assert_eq!(log.count("look-up failed"), 0, "a pattern may name more than there are");
    log.until("and 52 more", 1).await;
}

#[tokio::test]
async fn a_member_that_is_gone_leaves_the_set_and_a_new_one_joins_it() {
    let (log, _guard) = Log::listen();
    let Some(mut knot) = Knot::start(&members(0..3, 1)) else { return };
    let soon = Options { gone_after: Duration::from_millis(50), ..options() };
    let mut peers = watch(&knot.url("head-{0..7}"), &soon).unwrap().peers;
    until_members(&mut peers, &addresses(0..3)).await;
    knot.replace(&members(1..3, 1));
    until_members(&mut peers, &addresses(1..3)).await;
    log.until("gone=\"10.0.1.0:7400\"", 1).await;
    knot.replace(&members(1..6, 1));
    until_members(&mut peers, &addresses(1..6)).await;
}

#[tokio::test]
async fn members_stay_while_their_zone_is_gone_and_while_their_server_is_dead() {
    let (log, _guard) = Log::listen();
    let Some(mut knot) = Knot::start(&members(0..4, 1)) else { return };
    let soon = Options { gone_after: Duration::from_millis(50), ..options() };
    let relay = Relay::of(&knot, Mode::Open).await;
    let mut peers = watch(&relay.url(&format!("head-{{0..3}}.{ZONE}")), &soon).unwrap().peers;
    until_members(&mut peers, &addresses(0..4)).await;

    // three of four do not exist: more is wrong than a member. Each is asked for again and again
    knot.replace(&members(0..1, 1));
    log.until("no addresses", 3).await;
    for n in 1..4 {
        relay.until_asked(&format!("head-{n}.{ZONE}"), relay.asked(&format!("head-{n}.{ZONE}")) + 4).await;
    }
    assert_eq!(peers.borrow().len(), 4, "the members of a zone that is being replaced are kept");
    knot.kill();
    log.until("no answer", 4).await;
    assert_eq!(peers.borrow().len(), 4);

    knot.write(&members(2..4, 1));
    knot.restart();
    until_members(&mut peers, &addresses(2..4)).await;
}

#[tokio::test]
async fn a_member_that_the_server_fails_on_is_kept_and_the_others_are_followed() {
    let (log, _guard) = Log::listen();
    let Some(mut knot) = Knot::start(&members(0..3, 1)) else { return };
    let relay = Relay::of(&knot, Mode::Open).await;
    let mut peers = watch(&relay.url(&format!("head-{{0..2}}.{ZONE}")), &options()).unwrap().peers;
    until_members(&mut peers, &addresses(0..3)).await;
    relay.set(Mode::FailsOn("head-1"));
    log.until("look-up failed", 1).await;
    knot.replace("head-0 1 A 10.0.1.0\nhead-1 1 A 10.0.1.101\nhead-2 1 A 10.0.1.102");
    until_members(&mut peers, &addresses([0, 1, 102])).await;
    assert_eq!(log.count("name=\"head-1.trellis.test\" failure=no answer"), 1);
    relay.set(Mode::Open);
    until_members(&mut peers, &addresses([0, 101, 102])).await;
    log.until("succeed again", 1).await;
}

#[tokio::test]
async fn each_member_is_asked_for_at_its_own_ttl_and_a_doubt_asks_for_its_own_member() {
    let Some(mut knot) = Knot::start("head-0 3600 A 10.0.1.0\nhead-1 0 A 10.0.1.1\nhead-2 3600 A 10.0.1.2")
    else {
        return;
    };
    let relay = Relay::of(&knot, Mode::Open).await;
    let fast = Options { ttl_min: Duration::from_millis(20), ..options() };
    let Watch { mut peers, doubt, .. } = watch(&relay.url(&format!("head-{{0..2}}.{ZONE}")), &fast).unwrap();
    until_members(&mut peers, &addresses(0..3)).await;
    let name = |n: u32| format!("head-{n}.{ZONE}");
    relay.until_asked(&name(1), 10).await;
    assert_eq!((relay.asked(&name(0)), relay.asked(&name(2))), (1, 1), "their TTL is not over");

    knot.replace("head-0 3600 A 10.0.1.100\nhead-1 0 A 10.0.1.101\nhead-2 3600 A 10.0.1.102");
    until_members(&mut peers, &addresses([0, 101, 2])).await;
    doubt.raise("10.0.1.0:7400");
    until_members(&mut peers, &addresses([100, 101, 2])).await;
    assert_eq!(relay.asked(&name(2)), 1, "nobody doubts it");
}

#[tokio::test]
async fn sixty_addresses_fit_one_packet_because_the_question_says_how_much_is_taken() {
    let records: Vec<String> = (1..=60).map(|i| format!("many 1 A 10.0.1.{i}")).collect();
    let Some(knot) = Knot::start(&records.join("\n")) else { return };
    // it passes on UDP alone: an answer that is cut could not be asked for again
    let relay = Relay::of(&knot, Mode::Open).await;
    let mut peers = watch(&relay.url(&format!("many.{ZONE}")), &options()).unwrap().peers;
    until_members(&mut peers, &addresses(1..61)).await;
    assert!(relay.longest_answer() > 512, "without EDNS0 an answer has at most 512 bytes");
    assert_eq!(relay.edns_sizes(), [Some(1232)]);
}

#[tokio::test]
async fn sixty_services_are_asked_for_again_over_tcp() {
    let mut records = members(0..60, 1);
    for n in 0..60 {
        writeln!(records, "_grpc._tcp.head 1 SRV 1 1 7400 head-{n}").unwrap();
    }
    let Some(knot) = Knot::start(&records) else { return };
    let mut peers = watch(&knot.url("_grpc._tcp.head"), &options()).unwrap().peers;
    until_members(&mut peers, &addresses(0..60)).await;
    // the same over UDP alone is cut
    let (log, _guard) = Log::listen();
    let relay = Relay::of(&knot, Mode::Open).await;
    let cut = watch(&relay.url(&format!("_grpc._tcp.head.{ZONE}")), &options()).unwrap().peers;
    log.until("no answer", 1).await;
    assert!(relay.was_cut() && cut.borrow().is_empty());
}
