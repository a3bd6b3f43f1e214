//! One server, from its first request to the end of its drain.

use std::time::Duration;

use futures::{FutureExt as _, future::BoxFuture};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{
    arriving::{ARRIVING_BYTES_MAX, Arrivals},
    conn, request,
    seats::Seats,
};
use crate::{
    channel::{FRAME_BYTES_MAX, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT},
    gate::Gate,
};

/// Most requests at once on one connection; more wait in the client. A herd brings hundreds of requests over few connections of each
/// client, so the limit only stops a client out of control.
///
/// It is also the number of requests that a client may cancel before the server looks at them. HTTP/2 libraries take more than 20 for
/// an attack and close the connection with all other calls of the client. A strategy that is stopped cancels that many at
/// once.
pub const STREAMS_MAX: u32 = 4096;

/// Bytes that a client may have in flight to the server on one stream: a publish streams batches of up to 1 MiB. It is smaller than the
/// clients' own windows, because a server has thousands of connections and a client a few.
pub const SERVER_STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// Bytes that a client may have in flight to the server on one connection.
pub const SERVER_CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// How long the server waits after the last handler has ended. In this time it sends the last frames, and the peers close their
/// connections after GOAWAY. It may go a little beyond the drain.
const FLUSH_MAX: Duration = Duration::from_millis(500);

/// Longest time that the server waits for cut connections to end. Their tasks notice the cut at once unless they are starved.
const CUT_MAX: Duration = Duration::from_secs(1);

/// The service name under which health says whether the server is ready. It is no service.
pub const READY: &str = "ready";

/// How to serve the given routes.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Encoded `FileDescriptorSet`s for reflection (v1 and v1alpha). Without any there is no reflection.
    pub descriptor_sets: Vec<&'static [u8]>,
    /// Full names of the services in the routes (`trellis.v1.Shard`), which health and reflection list. If it is empty, health knows only
    /// the server as a whole, and reflection lists every service of the descriptor sets.
    pub services: Vec<String>,
    /// Paths (`/trellis.v1.Shard/Watch`) of methods whose answers have no end. The drain does not wait for them, but ends them with
    /// `UNAVAILABLE`.
    pub endless: Vec<String>,
    /// Paths of methods whose requests may have messages of up to [`MESSAGE_BYTES_MAX`](crate::channel::MESSAGE_BYTES_MAX). Others have
    /// [`SMALL_MESSAGE_BYTES_MAX`](super::SMALL_MESSAGE_BYTES_MAX).
    pub large: Vec<String>,
    /// Cancelled by the program when it can do its work. Until then health says NOT_SERVING of the services and of [`READY`], but SERVING
    /// of the server as a whole: it lives, and a restart would not help. `None`: it can from the start.
    pub ready: Option<CancellationToken>,
    /// [`serve`] cancels this token when the drain begins. Handlers and tasks may wait for it.
    pub draining: CancellationToken,
}

/// How a server ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Methods that were still running at the deadline and that the server cut, oldest first.
    pub late: Vec<String>,
}

/// Why a server could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A descriptor set does not decode.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The transport failed.
    #[error("serving failed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Serves `routes` on `listener` until `shutdown` resolves, then drains for at most `drain`.
///
/// Adds health (`grpc.health.v1.Health`) and reflection. Sets TCP_NODELAY on accepted connections. Dropping the future ends the server
/// without a drain: it cuts connections and drops their requests.
///
/// # Errors
/// [`ServeError`]. Late requests are no error, see [`Drained`].
pub fn serve(
    listener: TcpListener,
    routes: Routes,
    options: Options,
    shutdown: impl Future<Output = ()> + Send + 'static,
    drain: Duration,
) -> BoxFuture<'static, Result<Drained, ServeError>> {
    serve_until(listener, routes, options, shutdown.boxed(), drain)
}

/// Like [`serve`], but its types are fixed and its future is boxed. So this crate compiles the server, and not each crate that polls it.
fn serve_until(
    listener: TcpListener,
    routes: Routes,
    options: Options,
    shutdown: BoxFuture<'static, ()>,
    drain: Duration,
) -> BoxFuture<'static, Result<Drained, ServeError>> {
    async move {
        let Options { descriptor_sets, services, endless, large, ready, draining } = options;
        let health = HealthReporter::new();
        let named: Vec<&str> = services.iter().map(String::as_str).chain([READY]).collect();
        let at_first = if ready.is_some() { ServingStatus::NotServing } else { ServingStatus::Serving };
        set_all(&health, &named, at_first).await;
        let become_ready = async {
            if let Some(ready) = ready {
                ready.cancelled().await;
                set_all(&health, &named, ServingStatus::Serving).await;
            }
            std::future::pending::<()>().await;
        };
        let health_service = tonic_health::server::HealthService::from_health_reporter(health.clone());
        let mut routes =
            routes.add_service(tonic_health::pb::health_server::HealthServer::new(health_service));
        if !descriptor_sets.is_empty() {
            routes = routes.add_service(reflection(&descriptor_sets, &services).build_v1()?);
            routes = routes.add_service(reflection(&descriptor_sets, &services).build_v1alpha()?);
        }

        let gate = Gate::new();
        let cut = CancellationToken::new();
        let _cut_when_dropped = cut.clone().drop_guard();
        let stop = CancellationToken::new();
        let layer = request::RequestLayer {
            gate: gate.clone(),
            arrivals: Arrivals::new(ARRIVING_BYTES_MAX),
            draining: draining.clone(),
            endless: endless.into(),
            large: large.into(),
        };
        let server = Server::builder()
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(SERVER_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(SERVER_CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX)
            .http2_max_pending_accept_reset_streams(Some(STREAMS_MAX as usize))
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .layer(layer)
            .serve_with_incoming_shutdown(
                routes.prepare(),
                conn::incoming(listener, cut.clone(), Seats::new(conn::descriptors())),
                stop.clone().cancelled_owned(),
            );
        let mut server = std::pin::pin!(server);

        tokio::select! {
            // before the signal, the server ends only if it fails
            ended = &mut server => return ended.map(|()| Drained::default()).map_err(ServeError::from),
            () = shutdown => {}
            () = become_ready => unreachable!("it never ends"),
        }

        let started = tokio::time::Instant::now();
        tracing::info!(in_flight = gate.len(), drain_ms = drain.as_millis() as u64, "draining");
        set_all(&health, &named, ServingStatus::NotServing).await;
        set_all(&health, &[""], ServingStatus::NotServing).await;
        gate.close();
        draining.cancel();
        stop.cancel();

        // the server's own tasks send GOAWAY and the last frames; `server` resolves when the last connection is gone
        let deadline = started + drain;
        let mut ended = false;
        loop {
            tokio::select! {
                // not the end yet: the task of a request may live a moment longer than its connection
                result = &mut server, if !ended => { ended = true; result?; }
                () = gate.emptied() => break,
                () = tokio::time::sleep_until(deadline) => break,
            }
        }
        let late = gate.names();
        if !ended && late.is_empty() {
            // the last connections may only watch the server's health; clearing the status ends those watches
            for service in named.iter().copied().chain([""]) {
                health.clone().clear_service_status(service).await;
            }
            ended = tokio::time::timeout(FLUSH_MAX, &mut server).await.is_ok();
        }
        if !late.is_empty() {
            tracing::warn!(
                ?late,
                drain_ms = drain.as_millis() as u64,
                "requests cut at the end of the drain"
            );
        }
        if !ended {
            cut.cancel();
            if tokio::time::timeout(CUT_MAX, &mut server).await.is_err() {
                tracing::warn!("connections outlived the drain");
            }
        }
        tracing::info!(ms = started.elapsed().as_millis() as u64, late = late.len(), "drained");
        Ok(Drained { late })
    }
    .boxed()
}

async fn set_all(health: &HealthReporter, services: &[&str], status: ServingStatus) {
    for service in services {
        health.set_service_status(service, status).await;
    }
}

fn reflection<'a>(
    descriptor_sets: &[&'a [u8]],
    services: &[String],
) -> tonic_reflection::server::Builder<'a> {
    let mut builder = tonic_reflection::server::Builder::configure();
    for set in descriptor_sets {
        builder = builder.register_encoded_file_descriptor_set(set);
    }
    for service in services {
        builder = builder.with_service_name(service);
    }
    builder
}
