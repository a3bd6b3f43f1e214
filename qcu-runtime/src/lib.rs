//! The runtime of a QCU: the client of a grid, and what runs a deployed strategy.
//!
//! Two programs use this library: the binary `qcu`, which supervises the Python child of one unit, and the Python wheel, in which a
//! notebook runs the same steps in its own process. The library is no server, and it knows Python only by the
//! protocol of [`child`].
//!
//! | room or file | subject |
//! | --- | --- |
//! | [`client`] | reads, publishes and questions, over every head that discovery finds |
//! | [`unit`] | a unit as it is declared: manifest, calendar, schedule, inputs, output; pure |
//! | [`bundle`] | a unit that was submitted to production: packed, fetched from S3, unpacked |
//! | [`child`] | the Python process: start, limits, every way to end, the protocol |
//! | [`metrics`] | every instrument of a run |
//! | [`run`] | one session: read, compute, check, publish, record; the lease; the unit's status |
//! | [`config`], [`service`] | the process `qcu` |
//!
//! A room imports only from rooms above it in this table, and only what their doors (`mod.rs`) export.

pub mod bundle;
pub mod child;
pub mod client;
pub mod config;
pub mod metrics;
pub mod run;
pub mod service;
pub mod unit;
