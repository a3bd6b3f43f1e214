//! Tools for tests across crates: whole grids, ways to disturb them, and a slow oracle to compare them with.
//!
//! * [`grid`]: shards and heads on loopback ports over a lake in a temporary folder.
//! * [`gate`]: a proxy between heads and shards that holds an answer or cuts a connection.
//! * [`processes`]: processes of the binaries, which tests kill, pause and start again.
//! * [`moments`]: waits for a moment in the life of a commit, from outside of the process.
//! * [`clock`]: wall clocks that a test sets.
//! * [`disk`]: a disk that fills up and becomes read-only.
//! * [`traffic`]: publishers, importers and readers that record every answer.
//! * [`units`]: deployed units, which tests kill and start again.
//! * [`tables`]: the files of a lake, read without the code under test.
//! * [`oracle`]: a dataset as a sorted list of rows.
//! * [`publisher`]: a publisher of benches.
//! * [`skip`]: a test that this machine cannot run.
//! * [`rng`]: seeded random choices.
//!
//! This is the only crate that may import head, shard and unit. No crate imports it.

pub mod clock;
pub mod disk;
pub mod gate;
pub mod grid;
pub mod moments;
pub mod oracle;
pub mod processes;
pub mod publisher;
pub mod rng;
pub mod skip;
pub mod tables;
pub mod traffic;
pub mod units;
