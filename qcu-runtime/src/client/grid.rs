//! The client: how it finds the heads, and one question that goes from head to head until one answers.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tonic::Request;
use trellis_fabric::{
    channel::{ChannelOptions, PeerChannel},
    discovery::{self, DEFAULT_PORT, Source},
    limited,
};
use trellis_proto::{Code, DatasetName, Error, Result, pb, pb::head_client::HeadClient, placement};

use super::{
    failure::of_status,
    heads::{Heads, random_name},
    options::ClientOptions,
    spreads::{Spread, Spreads},
};

/// A connection to a grid. Clones share everything. Make and use it inside a Tokio runtime.
#[derive(Clone)]
pub struct Client {
    pub(super) heads: Heads,
    pub(super) spreads: Spreads,
    /// Names this client to the placement: one that is asked again reads from the same copy of a dataset's heads.
    pub(super) reader: Arc<str>,
    deadline: Duration,
    pub(super) attempt: Duration,
}

impl Client {
    /// Finds the heads and waits until one answers.
    ///
    /// `url` is `grpc://host:port` (one head), `static://a:1,b:2`, `dns://name[:port]` or `cloudmap://namespace/service`. The client
    /// follows the changes of the last two, and asks the heads that it finds for all heads, if they know them.
    ///
    /// # Errors
    /// `InvalidRequest` for a URL of no known form, `Unavailable` if no head answers within `connect_timeout`.
    pub async fn connect(url: &str, options: ClientOptions) -> Result<Self> {
        let client = Self::lazy(url, &options)?;
        let deadline = Instant::now() + options.connect_timeout;
        let nobody = |why: &str| {
            Error::new(Code::Unavailable, format!("no head node answers at {url}: {why}"))
                .hint("is the grid running (`trellis up`), and is TRELLIS_URL its address?")
        };
        if !client.heads.found(options.connect_timeout).await {
            return Err(nobody(&client.heads.nobody()));
        }
        let hello = |mut head: HeadClient<PeerChannel>, request| async move { head.stats(request).await };
        match client.ask("", deadline, pb::StatsRequest {}, hello).await {
            Ok(_) => {
                client.heads.first_map(deadline).await;
                Ok(client)
            }
            Err(error) if matches!(error.code(), Code::Unavailable | Code::DeadlineExceeded) => {
                Err(nobody(error.message()))
            }
            // a head has answered
            Err(error) => Err(error),
        }
    }

    /// Like [`Client::connect`], but without waiting: the first call finds out whether a head answers.
    ///
    /// # Errors
    /// `InvalidRequest` for a URL of no known form.
    pub fn lazy(url: &str, options: &ClientOptions) -> Result<Self> {
        let watch = discovery::watch(url, &discovery::Options::default())
            .map_err(|e| {
                let hint = if url.contains("://") || !url.contains(':') {
                    "use grpc://HOST:PORT, static://HOST:PORT,HOST:PORT, dns://NAME or cloudmap://NAMESPACE/SERVICE, in Python also embedded:///FOLDER"
                        .to_owned()
                } else {
                    format!("grpc://{url}")
                };
                Error::new(Code::InvalidRequest, format!("`{url}` does not name a grid: {e}")).hint(hint)
            })?;
        let channel = options.unit.as_deref().map_or_else(ChannelOptions::default, ChannelOptions::of_unit);
        let ClientOptions { deadline, attempt, .. } = *options;
        let heads = Heads::new(watch, finds_few(url), channel, options.ended.clone());
        // a unit has the same copy after a restart
        let reader = options.unit.clone().unwrap_or_else(random_name).into();
        Ok(Self { heads, spreads: Spreads::default(), reader, deadline, attempt })
    }

    /// This client with another deadline for each call.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// Addresses of the heads that the client knows now, sorted.
    #[must_use]
    pub fn heads(&self) -> Vec<String> {
        self.heads.all().to_vec()
    }

    pub(super) fn end(&self) -> Instant {
        Instant::now() + self.deadline
    }

    /// Asks the heads one unary question, in the order of `key`, until one answers.
    pub(super) async fn ask<Q, A, F, Fut>(
        &self,
        key: &str,
        deadline: Instant,
        question: Q,
        call: F,
    ) -> Result<A>
    where
        Q: Clone,
        F: Fn(HeadClient<PeerChannel>, Request<Q>) -> Fut,
        Fut: Future<Output = Result<tonic::Response<A>, tonic::Status>>,
    {
        self.ask_within(key, deadline, self.attempt, question, call).await
    }

    /// Like [`Self::ask`], without a limit for one attempt: the shard may write every file of a dataset anew.
    pub(super) async fn ask_at_length<Q, A, F, Fut>(&self, key: &str, question: Q, call: F) -> Result<A>
    where
        Q: Clone,
        F: Fn(HeadClient<PeerChannel>, Request<Q>) -> Fut,
        Fut: Future<Output = Result<tonic::Response<A>, tonic::Status>>,
    {
        self.ask_within(key, self.end(), Duration::MAX, question, call).await
    }

    async fn ask_within<Q, A, F, Fut>(
        &self,
        key: &str,
        deadline: Instant,
        limit: Duration,
        question: Q,
        call: F,
    ) -> Result<A>
    where
        Q: Clone,
        F: Fn(HeadClient<PeerChannel>, Request<Q>) -> Fut,
        Fut: Future<Output = Result<tonic::Response<A>, tonic::Status>>,
    {
        let (heads, first) = (&self.heads, self.first_head(key));
        let attempt = |head: String, left: Duration| {
            let mut request = Request::new(question.clone());
            request.set_timeout(left);
            let client = heads.channel(&head, 0).map(|channel| limited!(HeadClient::new(channel)));
            let reply = client.map(|client| call(client, request));
            async move { Ok(reply?.await.map_err(|status| of_status(&status))?.into_inner()) }
        };
        heads.call(key, first.as_deref(), deadline, limit, attempt).await
    }

    /// The head to ask about a dataset, if the client knows how many there are: the first of its copy, which has the answer for the
    /// readers of that copy.
    fn first_head(&self, key: &str) -> Option<String> {
        let Spread { heads, copies } = self.spreads.of(&DatasetName::new(key).ok()?)?;
        let live = self.heads.live();
        Some((*placement::heads_for(&live, key, heads, copies, &self.reader).first()?).to_owned())
    }
}

/// Whether discovery by `url` may find only some of the heads. The addresses of the others are then in a head's map.
fn finds_few(url: &str) -> bool {
    matches!(Source::parse(url, DEFAULT_PORT), Ok(Source::Dns(_) | Source::CloudMap(_)))
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("heads", &self.heads()).field("deadline", &self.deadline).finish()
    }
}
