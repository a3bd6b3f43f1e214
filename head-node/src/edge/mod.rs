//! Requests as they come over gRPC, and their answers. Each file reads a request, has the head do it, and encodes the answer.
//!
//! | file | subject |
//! | --- | --- |
//! | `flight` | Arrow Flight: questions about datasets; passes `DoGet` and `DoPut` on |
//! | `doget` | reads: from a ticket to a streamed answer |
//! | `doget/request` | reads the request |
//! | `doget/pump` | makes the answer |
//! | `doget/account` | counts the answer |
//! | `put` | publishes, passed on to the dataset's home shard |
//! | `service` | `trellis.v1.Head`: questions about datasets, and changes of them |

mod doget;
mod flight;
mod put;
mod service;

pub(crate) use flight::ArrowFlight;
pub(crate) use put::PATH as PUT;
pub(crate) use service::Service;
