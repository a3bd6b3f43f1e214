//! A small gRPC service without a .proto: each method does one thing that a server must handle.
#![allow(dead_code, unreachable_pub)] // each test binary uses some of it

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{StreamExt as _, future::BoxFuture, stream::BoxStream};
use http::{Request, Response, uri::PathAndQuery};
use tokio::{
    net::TcpListener,
    sync::{Notify, Semaphore, oneshot},
    task::JoinHandle,
};
use tonic::{Status, body::Body, client::Grpc as Client, server::NamedService, service::Routes};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};
use trellis_fabric::{
    channel::{ChannelOptions, PeerChannel, connect_traced},
    serve::{Drained, Options, ServeError, serve},
};

pub const NAME: &str = "trellis.test.Probe";
pub const TICK: &str = "/trellis.test.Probe/Tick";
/// More calls than a pool puts on one connection.
pub const BULK_BYTES: usize = 2 << 20;

/// The service, and its side of the handshakes.
#[derive(Clone)]
pub struct Probe {
    /// Woken when a held call has begun.
    pub entered: Arc<Notify>,
    /// Each permit lets one held call end.
    pub release: Arc<Semaphore>,
    /// The server that `Relay` passes calls on to.
    pub next: Option<PeerChannel>,
}

impl Default for Probe {
    fn default() -> Self {
        Self { entered: Arc::default(), release: Arc::new(Semaphore::new(0)), next: None }
    }
}

impl NamedService for Probe {
    const NAME: &'static str = NAME;
}

impl Service<Request<Body>> for Probe {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let probe = self.clone();
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<String, String>::default());
            let method = path.rsplit('/').next().unwrap_or_default().to_owned();
            Ok(match method.as_str() {
                "Tick" | "PanicLater" | "Bulk" => grpc.server_streaming(Streams { method }, request).await,
                _ => {
                    let unary = service_fn(move |request: tonic::Request<String>| {
                        let (probe, method) = (probe.clone(), method.clone());
                        async move { probe.answer(&method, request).await.map(tonic::Response::new) }
                    });
                    grpc.unary(unary, request).await
                }
            })
        })
    }
}

impl Probe {
    async fn answer(&self, method: &str, request: tonic::Request<String>) -> Result<String, Status> {
        match method {
            "Echo" => Ok(request.into_inner()),
            "Peer" => Ok(request.remote_addr().map(|addr| addr.to_string()).unwrap_or_default()),
            "Metadata" => {
                let key = request.get_ref().clone();
                let value = request.metadata().get(&key).and_then(|value| value.to_str().ok());
                Ok(value.unwrap_or_default().to_owned())
            }
            "Hold" => {
                self.entered.notify_one();
                match self.release.acquire().await {
                    Ok(_permit) => Ok("released".to_owned()),
                    Err(_) => Err(Status::aborted("closed")),
                }
            }
            "Relay" => match &self.next {
                Some(next) => unary(next.clone(), "Echo", request.get_ref()).await,
                None => Err(Status::failed_precondition("nowhere to relay to")),
            },
            "Panic" => panic!("a secret that clients must not see"),
            _ => Err(Status::unimplemented("no such method")),
        }
    }
}

type Messages = BoxStream<'static, Result<String, Status>>;

/// One message, then nothing for ever, or a panic; or the caller's address, much, and then nothing.
struct Streams {
    method: String,
}

impl tonic::server::ServerStreamingService<String> for Streams {
    type Response = String;
    type ResponseStream = Messages;
    type Future = std::future::Ready<Result<tonic::Response<Messages>, Status>>;

    fn call(&mut self, request: tonic::Request<String>) -> Self::Future {
        let begin = match (self.method.as_str(), request.remote_addr()) {
            ("Bulk", Some(addr)) => vec![Ok(addr.to_string()), Ok("x".repeat(BULK_BYTES))],
            _ => vec![Ok("first".to_owned())],
        };
        let begin = futures::stream::iter(begin);
        let answer = if self.method == "PanicLater" {
            begin.chain(futures::stream::poll_fn(|_| panic!("a secret that clients must not see"))).boxed()
        } else {
            begin.chain(futures::stream::pending()).boxed()
        };
        std::future::ready(Ok(tonic::Response::new(answer)))
    }
}

fn path(method: &str) -> PathAndQuery {
    format!("/{NAME}/{method}").parse().unwrap()
}

/// Calls a unary method.
pub async fn unary(channel: PeerChannel, method: &str, message: &str) -> Result<String, Status> {
    let mut client = Client::new(channel);
    client.ready().await?;
    let request = tonic::Request::new(message.to_owned());
    let codec = ProstCodec::<String, String>::default();
    client.unary(request, path(method), codec).await.map(tonic::Response::into_inner)
}

/// Calls a unary method with a deadline.
pub async fn unary_within(channel: PeerChannel, method: &str, within: Duration) -> Result<String, Status> {
    let mut client = Client::new(channel);
    client.ready().await?;
    let mut request = tonic::Request::new(String::new());
    request.set_timeout(within);
    let codec = ProstCodec::<String, String>::default();
    client.unary(request, path(method), codec).await.map(tonic::Response::into_inner)
}

/// Calls a streaming method.
pub async fn streaming(channel: PeerChannel, method: &str) -> Result<tonic::Streaming<String>, Status> {
    let mut client = Client::new(channel);
    client.ready().await?;
    let codec = ProstCodec::<String, String>::default();
    client
        .server_streaming(tonic::Request::new(String::new()), path(method), codec)
        .await
        .map(tonic::Response::into_inner)
}

/// A server of [`Probe`] on a free port.
pub struct Server {
    pub probe: Probe,
    pub addr: SocketAddr,
    pub stop: oneshot::Sender<()>,
    pub ended: JoinHandle<Result<Drained, ServeError>>,
}

impl Server {
    pub async fn start(drain: Duration) -> Self {
        let options = Options { endless: vec![TICK.to_owned()], ..Options::default() };
        Self::of(Probe::default(), drain, options).await
    }

    pub async fn of(probe: Probe, drain: Duration, options: Options) -> Self {
        let options = Options { services: vec![NAME.to_owned()], ..options };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let routes = Routes::new(probe.clone());
        let ended = tokio::spawn(serve(listener, routes, options, async { drop(stopped.await) }, drain));
        Self { probe, addr, stop, ended }
    }

    pub fn channel(&self) -> PeerChannel {
        connect_traced(&self.addr.to_string(), &ChannelOptions::of_unit("probe-unit")).unwrap()
    }
}
