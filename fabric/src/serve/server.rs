//! One server, from its first request to the end of its drain.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{conn, request};
use crate::{
    channel::{FRAME_BYTES_MAX, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT},
    gate::Gate,
};

/// Requests at once on one connection; more wait in the client. A head's herd comes over few connections per
/// client (hundreds each), so this only stops a runaway.
///
/// As many may be cancelled before they were looked at. HTTP/2 libraries take more than 20 of those for an
/// attack and close the connection, and with it everything else that the client has in flight; a strategy
/// that is stopped cancels that many at once.
pub const STREAMS_MAX: u32 = 4096;

/// Bytes that a client may have in flight to us on one stream: a publish streams batches of up to 1 MiB.
/// Smaller than the clients' own windows: a server has thousands of connections, a client a few.
pub const SERVER_STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// As above for a connection.
pub const SERVER_CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Once the last handler has ended its final frames are still to be sent, and connections to be closed by
/// their peers' end of GOAWAY. This is how long that may take, out of what is left of the drain or a little
/// beyond.
const FLUSH_MAX: Duration = Duration::from_millis(500);

/// A cut connection is noticed by its task at once; this only bounds a task that is starved.
const CUT_MAX: Duration = Duration::from_secs(1);

/// What is served besides the given routes, and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Encoded `FileDescriptorSet`s for reflection (v1 and v1alpha); none, no reflection.
    pub descriptor_sets: Vec<&'static [u8]>,
    /// Full names of the services in the routes (`trellis.v1.Shard`): what health and reflection list. Empty:
    /// health knows only the server as a whole, reflection lists all that the descriptor sets have.
    pub services: Vec<String>,
    /// Paths (`/trellis.v1.Shard/Watch`) of methods whose answers have no end of their own: the drain ends
    /// them with `UNAVAILABLE` instead of waiting for them.
    pub endless: Vec<String>,
    /// Cancelled by [`serve`] when the drain begins, for handlers and tasks that want to know.
    pub draining: CancellationToken,
}

/// How a server ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Methods that were still running at the deadline and were cut, oldest first.
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
/// Adds health (`grpc.health.v1.Health`) and reflection. Sets TCP_NODELAY on accepted connections. Dropping
/// the future ends the server without a drain: connections are cut and their requests dropped.
///
/// # Errors
/// [`ServeError`]; late requests are no error, see [`Drained`].
pub async fn serve(
    listener: TcpListener,
    routes: Routes,
    options: Options,
    shutdown: impl Future<Output = ()>,
    drain: Duration,
) -> Result<Drained, ServeError> {
    let Options { descriptor_sets, services, endless, draining } = options;
    let health = HealthReporter::new();
    for service in &services {
        health.set_service_status(service, ServingStatus::Serving).await;
    }
    let health_service = tonic_health::server::HealthService::from_health_reporter(health.clone());
    let mut routes = routes.add_service(tonic_health::pb::health_server::HealthServer::new(health_service));
    if !descriptor_sets.is_empty() {
        routes = routes.add_service(reflection(&descriptor_sets, &services).build_v1()?);
        routes = routes.add_service(reflection(&descriptor_sets, &services).build_v1alpha()?);
    }

    let gate = Gate::new();
    let cut = CancellationToken::new();
    let _cut_when_dropped = cut.clone().drop_guard();
    let stop = CancellationToken::new();
    let layer =
        request::RequestLayer { gate: gate.clone(), draining: draining.clone(), endless: endless.into() };
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
            conn::incoming(listener, cut.clone()),
            stop.clone().cancelled_owned(),
        );
    let mut server = std::pin::pin!(server);

    tokio::select! {
        // without the signal it ends only by failing
        ended = &mut server => return ended.map(|()| Drained::default()).map_err(ServeError::from),
        () = shutdown => {}
    }

    let started = tokio::time::Instant::now();
    tracing::info!(in_flight = gate.len(), drain_ms = drain.as_millis() as u64, "draining");
    for service in services.iter().map(String::as_str).chain([""]) {
        health.set_service_status(service, ServingStatus::NotServing).await;
    }
    gate.close();
    draining.cancel();
    stop.cancel();

    // GOAWAY and the last frames are sent by the server's own tasks; it resolves when the last connection is
    // gone.
    let deadline = started + drain;
    let mut ended = false;
    loop {
        tokio::select! {
            // the tasks of its requests may outlive a connection for a moment: not the end yet
            result = &mut server, if !ended => { ended = true; result?; }
            () = gate.emptied() => break,
            () = tokio::time::sleep_until(deadline) => break,
        }
    }
    let late = gate.names();
    if !ended && late.is_empty() {
        // what is left on the connections may be watches of our health: dropping the status ends them
        for service in services.iter().map(String::as_str).chain([""]) {
            health.clone().clear_service_status(service).await;
        }
        ended = tokio::time::timeout(FLUSH_MAX, &mut server).await.is_ok();
    }
    if !late.is_empty() {
        tracing::warn!(?late, drain_ms = drain.as_millis() as u64, "requests cut at the end of the drain");
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
