//! A gRPC server from a bound listener until a signal. Every server of the grid has health, reflection, limits, a span for each
//! request, contained panics, and a drain that ends.
//!
//! Health answers for two questions. The server as a whole (the name "") serves as soon as it listens: it lives. Its services, and the
//! name [`READY`], serve once the program can do its work: requests may come.
//!
//! The steps of a drain: health says NOT_SERVING; the listener closes; every connection gets GOAWAY; endless answers end with
//! `UNAVAILABLE`; other requests may finish until the deadline; the server cuts those that are late and logs their names.
//!
//! | file | subject |
//! | --- | --- |
//! | `server` | [`serve()`]: health, reflection, limits, the drain |
//! | `request` | wraps each request: gate, span, panics |
//! | `arriving` | the bytes of requests that have not arrived whole |
//! | `conn` | accepted connections that can be cut |
//! | `seats` | how many connections there may be |
//! | `ready` | the line by which a server says that it serves |

mod arriving;
mod conn;
mod ready;
mod request;
mod seats;
mod server;

pub use arriving::SMALL_MESSAGE_BYTES_MAX;
pub use ready::{print_ready, ready_line};
pub use server::{
    Drained, Options, READY, SERVER_CONNECTION_WINDOW_BYTES, SERVER_STREAM_WINDOW_BYTES, STREAMS_MAX,
    ServeError, serve,
};
pub use tokio_util::sync::CancellationToken;
