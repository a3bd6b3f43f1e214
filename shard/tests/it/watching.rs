//! The watch log, confirming chunks, and publishes that wait for watchers.

use std::{sync::Arc, time::Duration};

use arrow_array::{ArrayRef, Float64Array, RecordBatch};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};
use trellis_proto::{
    Code, Error,
    pb::{self, shard_client::ShardClient, watch_event::Event},
};
use trellis_shard::Config;

use crate::support::*;

struct Watcher {
    requests: mpsc::Sender<pb::WatchRequest>,
    events: Streaming<pb::WatchEvent>,
    hello: pb::WatchHello,
}

impl Watcher {
    /// A watcher of the dataset `d.a`, which need not exist.
    async fn start(client: &mut ShardClient<Channel>, incarnation: &str, seq: u64) -> Self {
        Self::of(client, &["d.a"], incarnation, seq).await
    }

    async fn of(client: &mut ShardClient<Channel>, datasets: &[&str], incarnation: &str, seq: u64) -> Self {
        let (requests, receiver) = mpsc::channel(16);
        let start = pb::WatchStart {
            head: "head-0".to_owned(),
            incarnation: incarnation.to_owned(),
            seq,
            datasets: datasets.iter().map(|name| (*name).to_owned()).collect(),
        };
        let request = pb::WatchRequest { request: Some(pb::watch_request::Request::Start(start)) };
        requests.send(request).await.unwrap();
        let mut events = client.watch(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        let Some(Event::Hello(hello)) = events.message().await.unwrap().unwrap().event else {
            panic!("a watch begins with hello")
        };
        Self { requests, events, hello }
    }

    /// The next change; heartbeats and answers are skipped.
    async fn change(&mut self) -> pb::Change {
        loop {
            if let Some(Event::Change(change)) = self.events.message().await.unwrap().unwrap().event {
                return change;
            }
        }
    }

    /// The next answer for a dataset that was named: its version, or why there is none. Heartbeats are skipped.
    async fn answer(&mut self) -> (String, Result<u64, Code>) {
        loop {
            match self.events.message().await.unwrap().unwrap().event {
                Some(Event::Heartbeat(_)) => {}
                Some(Event::Subscribed(answer)) => {
                    let said = match answer.answer.unwrap() {
                        pb::subscribed::Answer::Description(said) => Ok(said.version),
                        pb::subscribed::Answer::Error(error) => Err(Error::from(error).code()),
                    };
                    return (answer.dataset, said);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    async fn name(&self, subscribe: &[&str], unsubscribe: &[&str]) {
        let names = |names: &[&str]| pb::DatasetNames {
            datasets: names.iter().map(|name| (*name).to_owned()).collect(),
        };
        for request in [
            pb::watch_request::Request::Unsubscribe(names(unsubscribe)),
            pb::watch_request::Request::Subscribe(names(subscribe)),
        ] {
            self.requests.send(pb::WatchRequest { request: Some(request) }).await.unwrap();
        }
    }

    /// Acknowledges the hello, and waits for the answer: publishes wait for this watcher from then on. Returns the changes before it.
    async fn follow(&mut self) -> (Vec<u64>, pb::Heartbeat) {
        self.applied(self.hello.seq).await;
        let mut changes = Vec::new();
        loop {
            match self.events.message().await.unwrap().unwrap().event {
                Some(Event::Change(change)) => changes.push(change.seq),
                Some(Event::Heartbeat(heartbeat)) if heartbeat.answers => return (changes, heartbeat),
                Some(Event::Heartbeat(_) | Event::Subscribed(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn applied(&self, seq: u64) {
        let request = pb::WatchRequest { request: Some(pb::watch_request::Request::Applied(seq)) };
        self.requests.send(request).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_is_acknowledged_when_its_watchers_have_applied_it() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let mut watcher = Watcher::start(&mut served.client, "", 0).await;
    watcher.follow().await;
    let mut publisher = served.client.clone();
    let publish =
        tokio::spawn(
            async move { import(&mut publisher, "d.a", &[("A", 5, 1.0), ("A", 9, 1.0)]).await.unwrap() },
        );
    let made = watcher.change().await;
    assert!(made.everything, "a new dataset");
    assert_eq!(made.description.as_ref().unwrap().rows, 2);
    assert!(!publish.is_finished());
    watcher.applied(made.seq).await;
    let first = publish.await.unwrap();

    let mut publisher = served.client.clone();
    let publish = tokio::spawn(async move { import(&mut publisher, "d.a", &[("A", 7, 2.0)]).await.unwrap() });
    let change = watcher.change().await;
    assert_eq!(change.seq, made.seq + 1);
    assert_eq!(change.spans, [pb::SymbolSpan { symbol: "A".to_owned(), start_ns: 7, end_ns: 8 }]);
    assert!(change.known_at_min_ns > first.known_at_ns);
    assert!(!change.data_body.is_empty(), "few rows travel with the change");
    watcher.applied(change.seq).await;
    let second = publish.await.unwrap();
    assert_eq!(second.version, change.version);

    let held = |first: i64, version: u64| pb::HeldChunks {
        dataset: "d.a".to_owned(),
        symbol: "A".to_owned(),
        first,
        end: first + 1,
        version,
    };
    let confirmed = served
        .client
        .confirm(pb::ConfirmRequest { held: vec![held(0, 0), held(0, 1), held(1, 0), held(-1, 0)] })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(confirmed.unchanged, [false, true, true, true]);
    assert_eq!(confirmed.known_through_ns, second.known_at_ns);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_did_not_change_is_confirmed_by_the_next_life_of_the_shard_too() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    for (symbol, chunk) in [("A", 0), ("A", 1), ("C", 1), ("C", 5)] {
        import(&mut served.client, "d.a", &[(symbol, day(64 * chunk), 1.0)]).await.unwrap();
    }
    served.stop().await;
    let mut served = Served::local(lake.path()).await;
    let held = |symbol: &str, first: i64, version: u64| pb::HeldChunks {
        dataset: "d.a".to_owned(),
        symbol: symbol.to_owned(),
        first,
        end: first + 1,
        version,
    };
    let asked = vec![
        held("A", 0, 0),
        held("A", 1, 0),
        held("A", 1, 1),
        held("C", 1, 1),
        held("C", 5, 2),
        held("C", 5, 3),
        held("B", 5, 0),
    ];
    let confirmed = served.client.confirm(pb::ConfirmRequest { held: asked }).await.unwrap().into_inner();
    assert_eq!(confirmed.unchanged, [true, false, true, false, false, true, true]);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_goes_on_where_it_was_within_one_life_of_the_shard() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let watcher = Watcher::start(&mut served.client, "", 0).await;
    let incarnation = watcher.hello.incarnation.clone();
    drop(watcher);
    for i in 0..3 {
        import(&mut served.client, "d.a", &[("A", i, 1.0)]).await.unwrap();
    }
    let mut back = Watcher::start(&mut served.client, &incarnation, 1).await;
    assert_eq!(back.hello.seq, 1);
    assert_eq!((back.change().await.seq, back.change().await.seq), (2, 3));
    let stranger = Watcher::start(&mut served.client, "another life", 1).await;
    assert_eq!(stranger.hello.seq, 3);
    drop((back, stranger));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_of_another_shard_reach_the_watchers() {
    let lake = tempfile::tempdir().unwrap();
    let mut writer = Served::local(lake.path()).await;
    let mut reader = Served::local(lake.path()).await;
    let mut watcher = Watcher::start(&mut reader.client, "", 0).await;
    watcher.follow().await;
    let made = import(&mut writer.client, "d.a", &[("A", 0, 1.0)]).await.unwrap();
    let sync = pb::SyncRequest { dataset: "d.a".to_owned(), version: made.version };
    let mut client = reader.client.clone();
    let synced = tokio::spawn(async move { client.sync(sync).await.unwrap().into_inner().version });
    let change = watcher.change().await;
    assert_eq!((change.version, change.everything), (0, true));
    watcher.applied(change.seq).await;
    assert_eq!(synced.await.unwrap(), 0);
    // Found by polling alone.
    import(&mut writer.client, "d.a", &[("B", 3, 1.0)]).await.unwrap();
    let change = watcher.change().await;
    assert_eq!(change.spans.iter().map(|s| s.symbol.as_str()).collect::<Vec<_>>(), ["B"]);
    drop(watcher);
    writer.stop().await;
    reader.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_gets_what_it_has_named_and_every_event_says_where_the_one_before_was() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    for name in ["d.a", "d.b", "d.c"] {
        import(&mut served.client, name, &[("A", 0, 1.0)]).await.unwrap();
    }
    let mut watcher = Watcher::of(&mut served.client, &["d.b", "d.never"], "", 0).await;
    assert_eq!(watcher.answer().await, ("d.b".to_owned(), Ok(0)));
    assert_eq!(watcher.answer().await, ("d.never".to_owned(), Err(Code::UnknownDataset)));
    for name in ["d.a", "d.b", "d.c", "d.never"] {
        import(&mut served.client, name, &[("A", 1, 1.0)]).await.unwrap();
    }
    let mut at = watcher.hello.seq;
    assert_eq!(at, 3);
    for (name, seq) in [("d.b", 5), ("d.never", 7)] {
        let event = watcher.events.message().await.unwrap().unwrap();
        let Some(Event::Change(change)) = event.event else { panic!("{event:?}") };
        assert_eq!((change.dataset.as_str(), change.seq, event.after), (name, seq, at));
        at = change.seq;
    }
    watcher.name(&["d.c"], &["d.b"]).await;
    assert_eq!(watcher.answer().await, ("d.c".to_owned(), Ok(1)));
    import(&mut served.client, "d.b", &[("A", 2, 1.0)]).await.unwrap();
    import(&mut served.client, "d.c", &[("A", 2, 1.0)]).await.unwrap();
    assert_eq!(watcher.change().await.dataset, "d.c");
    import(&mut served.client, "d.b", &[("A", 3, 1.0)]).await.unwrap();
    // a change of which it is not told does not take it out of the ring
    let heartbeat = loop {
        let event = watcher.events.message().await.unwrap().unwrap();
        let Some(Event::Heartbeat(heartbeat)) = event.event else { panic!("{event:?}") };
        if heartbeat.seq == 10 {
            break heartbeat;
        }
    };
    assert_eq!(heartbeat.ownership_epoch, watcher.hello.ownership_epoch);
    drop(watcher);
    served.stop().await;
}

/// Longest wait for something that must come. It comes within a second or two.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_names_datasets_all_the_time_hears_that_the_shard_lives() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let mut watcher = Watcher::start(&mut served.client, "", 0).await;
    watcher.follow().await;
    let names = tokio::spawn({
        let requests = watcher.requests.clone();
        async move {
            let nothing = pb::watch_request::Request::Unsubscribe(pb::DatasetNames::default());
            while requests.send(pb::WatchRequest { request: Some(nothing.clone()) }).await.is_ok() {}
        }
    });
    let mut heartbeats = 0;
    while heartbeats < 2 {
        let event = tokio::time::timeout(PATIENCE, watcher.events.message()).await;
        let event = event.expect("a heartbeat is due each second").unwrap().unwrap();
        assert!(matches!(event.event, Some(Event::Heartbeat(_))), "{event:?}");
        heartbeats += 1;
    }
    names.abort();
    drop(watcher);
    served.stop().await;
}

/// Bytes that a watcher of three datasets is sent by a shard that has `count`, while ten of them change. Publishes to the others do not
/// wait for it.
async fn told_of_three(count: usize) -> usize {
    let lake = tempfile::tempdir().unwrap();
    let name = |i: usize| format!("d.n{i:05}");
    let mut served = Served::local(lake.path()).await;
    import(&mut served.client, &name(0), &[("A", 0, 1.0)]).await.unwrap();
    served.stop().await;
    for i in 1..count {
        for entry in walk(&lake.path().join(name(0))) {
            let to = lake.path().join(name(i)).join(entry.strip_prefix(lake.path().join(name(0))).unwrap());
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::hard_link(entry, to).unwrap();
        }
    }
    let mut served = patient(lake.path()).await;
    let three = [name(0), name(1), name(2)];
    let mut watcher = Watcher::of(&mut served.client, &three.each_ref().map(String::as_str), "", 0).await;
    let mut bytes = 0;
    for name in &three {
        let event = watcher.events.message().await.unwrap().unwrap();
        bytes += event.encoded_len();
        assert!(
            matches!(&event.event, Some(Event::Subscribed(answer)) if answer.dataset == *name),
            "{event:?}"
        );
    }
    watcher.follow().await;
    for i in (3..10).chain(0..3) {
        let (mut publisher, dataset) = (served.client.clone(), name(i));
        let publish =
            tokio::spawn(async move { import(&mut publisher, &dataset, &[("A", 1, 1.0)]).await.unwrap() });
        if i < 3 {
            let change = watcher.change().await;
            bytes += change.encoded_len();
            assert_eq!(change.dataset, name(i));
            assert!(!publish.is_finished());
            watcher.applied(change.seq).await;
        }
        // it ends although the watcher has acknowledged nothing, if the dataset is none of its own
        publish.await.unwrap();
    }
    drop(watcher);
    served.stop().await;
    bytes
}

/// The files of a folder and of those in it.
fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_watcher_of_three_datasets_is_sent_does_not_grow_with_the_thousand_that_there_are() {
    let (of_ten, of_all) = (told_of_three(10).await, told_of_three(1_000).await);
    // a number may take a byte more
    assert!(of_all <= of_ten + 64, "{of_all} bytes, and {of_ten} if there are only ten");
}

/// A shard that waits for its watchers for ever, as far as a test is concerned.
async fn patient(lake: &std::path::Path) -> Served {
    Served::start(Config { apply_wait: Duration::from_secs(3_600), ..config(lake) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_never_acknowledges_delays_no_publish_and_gets_every_change() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = patient(lake.path()).await;
    let mut watcher = Watcher::start(&mut served.client, "", 0).await;
    for i in 0..3 {
        import(&mut served.client, "d.a", &[("A", i, 1.0)]).await.unwrap();
    }
    for seq in 1..=3 {
        assert_eq!(watcher.change().await.seq, seq);
    }
    drop(watcher);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_acknowledgement_is_answered_after_the_changes_that_did_not_wait_for_it() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = patient(lake.path()).await;
    let mut watcher = Watcher::start(&mut served.client, "", 0).await;
    for i in 0..3 {
        import(&mut served.client, "d.a", &[("A", i, 1.0)]).await.unwrap();
    }
    let (changes, answer) = watcher.follow().await;
    assert_eq!(changes, [1, 2, 3]);
    assert_eq!(answer.seq, 3);
    let mut publisher = served.client.clone();
    let publish = tokio::spawn(async move { import(&mut publisher, "d.a", &[("A", 9, 1.0)]).await });
    let change = watcher.change().await;
    assert!(!publish.is_finished(), "it waits for the watcher now");
    watcher.applied(change.seq).await;
    publish.await.unwrap().unwrap();
    drop(watcher);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_thousands_of_columns_is_short_and_leaves_the_connection_as_it_is() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    import(&mut served.client, "d.a", &[("A", 0, 1.0)]).await.unwrap();
    // a call of somebody else on the same connection
    let mut watcher = Watcher::start(&mut served.client, "", 0).await;
    for columns in [140, 10_000] {
        let rows = batch(&[("A", 1, 1.0)]);
        let value = Arc::new(Float64Array::from(vec![1.0])) as ArrayRef;
        let known = rows
            .schema()
            .fields()
            .iter()
            .map(|f| f.name().clone())
            .zip(rows.columns().to_vec())
            .collect::<Vec<_>>();
        let unknown = (0..columns).map(|i| (format!("unknown_column_{i}"), value.clone()));
        let rows = RecordBatch::try_from_iter(known.into_iter().chain(unknown)).unwrap();
        let error = send(&mut served.client, import_header(&spec("d.a")), &[rows]).await.unwrap_err();
        assert_eq!((error.code(), error.place().0), (Code::BadRows, "d.a"));
        let message = error.message();
        assert!(
            message.starts_with("the column unknown_column_0 is not a field of the dataset; "),
            "{message}"
        );
        assert!(message.ends_with(&format!("; and {} more", columns - 5)), "{message}");
        assert_eq!(error.hint_text(), "the columns are symbol, ts and: value float64");
    }
    let text = "x".repeat(1 << 20);
    let error =
        send(&mut served.client, session_header("d.a", "u", 1, "r", &text), &[batch(&[("A", 1, 1.0)])])
            .await
            .unwrap_err();
    assert_eq!(error.code(), Code::InvalidRequest);
    assert!(error.message().len() <= 1_024 && error.message().starts_with("the session \"xxx"), "{error}");
    import(&mut served.client, "d.a", &[("A", 1, 1.0)]).await.unwrap();
    assert_eq!(watcher.change().await.seq, watcher.hello.seq + 1, "its stream goes on");
    drop(watcher);
    served.stop().await;
}
