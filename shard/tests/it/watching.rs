//! The watch log, confirming chunks, and publishes that wait for watchers.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};
use trellis_proto::pb::{self, shard_client::ShardClient, watch_event::Event};

use crate::support::*;

struct Watcher {
    requests: mpsc::Sender<pb::WatchRequest>,
    events: Streaming<pb::WatchEvent>,
    hello: pb::WatchHello,
}

impl Watcher {
    async fn start(client: &mut ShardClient<Channel>, incarnation: &str, seq: u64) -> Self {
        let (requests, receiver) = mpsc::channel(16);
        let start = pb::WatchStart { head: "head-0".to_owned(), incarnation: incarnation.to_owned(), seq };
        let request = pb::WatchRequest { request: Some(pb::watch_request::Request::Start(start)) };
        requests.send(request).await.unwrap();
        let mut events = client.watch(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        let Some(Event::Hello(hello)) = events.message().await.unwrap().unwrap().event else {
            panic!("a watch begins with hello")
        };
        Self { requests, events, hello }
    }

    /// The next change; heartbeats are skipped.
    async fn change(&mut self) -> pb::Change {
        loop {
            if let Some(Event::Change(change)) = self.events.message().await.unwrap().unwrap().event {
                return change;
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
