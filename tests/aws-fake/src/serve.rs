//! The world behind a socket, with the clock of the runtime.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tower::service_fn;

use crate::sqs;
use crate::world::{Lost, World};

/// Bytes of a request, at most. AWS's largest is a task definition of 64 KB.
const LARGEST: usize = 1024 * 1024;
/// How often a long poll looks for messages.
const LOOK: Duration = Duration::from_millis(100);

/// Serves the world over HTTP/1 and HTTP/2 until the task is dropped. The others who hold the world can look at it and break it meanwhile.
/// A second of the clock is `Settings::speed` seconds of the world.
pub async fn serve(world: Arc<Mutex<World>>, listener: TcpListener) -> io::Result<()> {
    let (began, from, speed) = {
        let world = lock(&world);
        (Instant::now(), world.now(), world.ctx.set.speed)
    };
    let clock = move || from + began.elapsed().mul_f64(speed);
    loop {
        let (stream, _) = listener.accept().await?;
        let world = world.clone();
        let service =
            TowerToHyperService::new(service_fn(move |request| answer(world.clone(), clock, request)));
        tokio::spawn(async move {
            // a broken connection is the client's to notice
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer<B>(
    world: Arc<Mutex<World>>,
    clock: impl Fn() -> Duration,
    request: Request<B>,
) -> io::Result<Response<Full<Bytes>>>
where
    B: http_body_util::BodyExt + Send,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    let body = Limited::new(body, LARGEST).collect().await.map_err(io::Error::other)?.to_bytes();
    let request = Request::from_parts(head, body);
    let until = clock() + sqs::long_poll(&request);
    while clock() < until && !lock(&world).has_message(clock(), &request) {
        sleep(LOOK).await;
    }
    let response = lock(&world).handle(clock(), &request);
    match response.extensions().get::<Lost>() {
        Some(Lost) => {
            Err(io::Error::new(io::ErrorKind::ConnectionReset, "the answer is lost, as the test asked"))
        }
        None => Ok(response.map(Full::new)),
    }
}
