//! The runtime of a QCU: the client of a grid, and what runs a deployed strategy.
//!
//! It is a library for two users: the binary `qcu` (this process supervises one unit's Python child, one service each)
//! and the Python wheel (a notebook runs the same steps in its own process). It is not a server, and nothing in it knows
//! Python beyond the words of [`protocol`].
//!
//! | file | subject |
//! | --- | --- |
//! | [`client`] | reads, publishes and questions, over every head that discovery finds |
//! | [`manifest`] | what a deployed unit is: its JSON file, checked |
//! | [`calendar`] | sessions of exchanges; pure |
//! | [`inputs`] | from a session and declared inputs to requests and rows; the identity of a run |
//! | [`output`] | what a strategy returned, checked against what was declared; pure |
//! | [`lossless`] | a column in another type, every value unchanged; pure |
//! | [`schedule`] | which session is due; pure |
//! | [`run`] | one run: read, compute, check, publish, record; also in a caller's own process |
//! | `ledger` | records attempts |
//! | [`lease`] | the right to publish: taken, renewed, lost, given back |
//! | [`service`], [`config`] | the process `qcu` |
//! | [`status`] | what a unit says of itself while it works |
//! | [`supervisor`] | the Python child: start, run, limits, every way to end |
//! | [`ipc`] | packets with descriptors, tables in sealed memfds |
//! | [`protocol`] | what `qcu` and its Python child say to each other: the contract of both sides |

pub mod calendar;
pub mod client;
pub mod config;
mod digest;
pub mod inputs;
pub mod ipc;
pub mod lease;
mod ledger;
pub mod lossless;
pub mod manifest;
pub mod output;
pub mod protocol;
pub mod run;
pub mod schedule;
pub mod service;
pub mod status;
pub mod supervisor;
