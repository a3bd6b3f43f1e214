//! The protocol between `qcu` and its Python child. This comment is the contract; the child's side is `trellis/_child.py`.
//!
//! # Channel
//!
//! The child is started as `PYTHON -m trellis._child` with one end of a `SOCK_SEQPACKET` Unix socket as file descriptor
//! **3**. Each packet is one JSON object in UTF-8, at most [`MESSAGE_BYTES_MAX`] bytes; tables travel beside it as file
//! descriptors (`SCM_RIGHTS`). The child's stdout and stderr are pipes whose lines become log records of the run.
//! When the parent closes its end, the child exits with status 0. A child that closes its end without a reply has failed.
//!
//! # Tables
//!
//! A table is an Arrow IPC **file** (uncompressed, buffers aligned to 64 bytes) that fills a memfd, sealed with
//! `F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL`. Map it; do not copy it. The parent refuses a table that is not sealed:
//! the table could change under the reader, or shrink and end the reader by SIGBUS.
//!
//! # Packets
//!
//! `->` is parent to child, `<-` child to parent. The parent speaks first and waits for the answer; one run at a time.
//!
//! ```text
//! -> {"op":"load","bundle":"/path/of/folder","module":"file.py","unit":"mom_12_1","function":"mom"}
//! <- {"ok":"loaded"}
//! <- {"error":{"kind":"raised","type":"ModuleNotFoundError","message":"...","traceback":"..."}}
//!
//! -> {"op":"run","session":"2016-08-10","run_id":"<32 hex>","as_of":"2026-11-21T12:00:00.000000001Z","partition":"",
//!     "inputs":[{"name":"px","receipt":{...},
//!                "window":{"calendar":"XNYS","start_ns":1438300800000000000,"end_ns":1470873600000000000}}]}
//!                                                          + one table per input, in the same order
//! <- {"op":"progress","done":3,"total":10,"note":"..."}    any number of times; all three optional
//! <- {"ok":"result","columns":["symbol","score"]}          + one table
//! <- {"error":{"kind":"raised","type":"KeyError","message":"'close'","traceback":"..."}}
//! ```
//!
//! * An input's table has the columns `symbol` (dictionary of utf8 with int32 keys), `ts` (`timestamp[ns, UTC]`), the
//!   fields, sorted by (symbol, ts); possibly no rows. Its receipt has the fields of `trellis.v1.Receipt` under their
//!   protobuf names, integers as JSON numbers. Its window says which sessions it covers, also those without rows.
//! * `as_of` is the knowledge time that pins the run, ISO 8601; inputs may be read at an earlier one.
//! * The result table has `symbol` (utf8 or a dictionary of it), optionally `ts`, and exactly the output's fields, in
//!   any order; `columns` repeats its column names. The parent checks whether it fits the unit.
//! * A traceback is cut to its last 32 KiB by the child; `type` is the exception's class name.
//! * After an answer the child waits for the next `run`; `load` comes once, first.
//! * The child waits for nothing but the parent. Without a question it writes only progress to descriptor 3.

use serde::{Deserialize, Serialize};
use trellis_proto::{pb, time::format_time};

use crate::unit::Window;

/// Longest packet. It is well under the default socket buffer (208 KiB), because a longer packet cannot be sent at all.
pub(super) const MESSAGE_BYTES_MAX: usize = 128 << 10;
/// The child's end of the socket.
pub(super) const CHANNEL_FD: i32 = 3;
/// Python module that is the child.
pub(crate) const CHILD_MODULE: &str = "trellis._child";

/// Parent to child.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Import the strategy.
    Load {
        /// Folder of the unit.
        bundle: String,
        /// File in it.
        module: String,
        /// Name of the unit.
        unit: String,
        /// Name of the strategy's function.
        function: String,
    },
    /// Run it for a session.
    Run {
        /// ISO date.
        session: String,
        /// Identity of the run.
        run_id: String,
        /// Knowledge time of the run, ISO 8601.
        as_of: String,
        /// Partition, usually empty.
        partition: String,
        /// One for each table that comes with the packet.
        inputs: Vec<InputHeader>,
    },
}

/// Describes one table that comes with the packet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InputHeader {
    /// Name of the input.
    pub name: String,
    /// The receipt of the read.
    pub receipt: serde_json::Value,
    /// The sessions that it covers.
    pub window: Window,
}

/// Child to parent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Reply {
    /// The run goes on.
    Progress(Progress),
    /// The strategy raised.
    Error {
        /// The exception.
        error: Raised,
    },
    /// The request succeeded.
    Ok(Done),
}

/// How far a run has come; for people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Always `progress`.
    pub op: ProgressOp,
    /// Steps done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<f64>,
    /// Steps in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<f64>,
    /// In words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// The tag of [`Progress`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProgressOp {
    /// `progress`
    Progress,
}

/// An exception.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raised {
    /// `raised`.
    pub kind: String,
    /// Class of the exception.
    #[serde(rename = "type")]
    pub class: String,
    /// Its text.
    pub message: String,
    /// Its traceback.
    #[serde(default)]
    pub traceback: String,
}

/// A success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ok", rename_all = "snake_case")]
pub enum Done {
    /// The strategy is imported.
    Loaded,
    /// A table comes with the packet.
    Result {
        /// Names of its columns.
        columns: Vec<String>,
    },
}

/// A receipt as JSON, under protobuf names.
#[must_use]
pub(crate) fn receipt_json(receipt: &pb::Receipt) -> serde_json::Value {
    serde_json::json!({
        "dataset": receipt.dataset,
        "calendar": receipt.calendar,
        "as_of_ns": receipt.as_of_ns,
        "as_of": receipt.as_of_ns.map(format_time),
        "known_through_ns": receipt.known_through_ns,
        "version_min": receipt.version_min,
        "version_max": receipt.version_max,
        "watermark_ns": receipt.watermark_ns,
        "rows": receipt.rows,
        "bytes": receipt.bytes,
        "chunks_hit": receipt.chunks_hit,
        "chunks_joined": receipt.chunks_joined,
        "chunks_fetched": receipt.chunks_fetched,
        "rows_fetched": receipt.rows_fetched,
        "shards": receipt.shards,
        "stale": receipt.stale,
        "elapsed_us": receipt.elapsed_us,
        "queued_us": receipt.queued_us,
        "head": receipt.head,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_have_the_documented_form() {
        let load = Request::Load {
            bundle: "/b".into(),
            module: "m.py".into(),
            unit: "u".into(),
            function: "f".into(),
        };
        let text = r#"{"op":"load","bundle":"/b","module":"m.py","unit":"u","function":"f"}"#;
        assert_eq!(serde_json::to_string(&load).unwrap(), text);
        let replies = [
            (r#"{"ok":"loaded"}"#, Reply::Ok(Done::Loaded)),
            (
                r#"{"ok":"result","columns":["symbol"]}"#,
                Reply::Ok(Done::Result { columns: vec!["symbol".into()] }),
            ),
            (
                r#"{"error":{"kind":"raised","type":"KeyError","message":"'x'","traceback":"t"}}"#,
                Reply::Error {
                    error: Raised {
                        kind: "raised".into(),
                        class: "KeyError".into(),
                        message: "'x'".into(),
                        traceback: "t".into(),
                    },
                },
            ),
            (
                r#"{"op":"progress","note":"half"}"#,
                Reply::Progress(Progress {
                    op: ProgressOp::Progress,
                    done: None,
                    total: None,
                    note: Some("half".into()),
                }),
            ),
        ];
        for (text, reply) in replies {
            assert_eq!(serde_json::from_str::<Reply>(text).unwrap(), reply, "{text}");
        }
        for text in ["{}", r#"{"ok":"maybe"}"#, "[]", r#"{"op":"run"}"#] {
            assert!(serde_json::from_str::<Reply>(text).is_err(), "{text}");
        }
    }
}
