//! Whole grids inside one test process, and the slow, plainly right answer to compare them with.
//!
//! * [`grid`]: shards and heads on loopback ports over a lake in a temporary folder.
//! * [`gate`]: what stands between heads and shards, to hold an answer or cut a line.
//! * [`processes`]: real processes of the binaries: killed, paused, started again.
//! * [`moments`]: moments in the life of a commit, seen from outside of the process.
//! * [`clock`]: wall clocks that a test sets.
//! * [`disk`]: a disk that fills up and becomes read-only.
//! * [`traffic`]: publishers, importers and readers that write down what they were told.
//! * [`units`]: deployed units, killed and started again.
//! * [`tables`]: a lake as its files are, read without our code.
//! * [`oracle`]: a dataset as a sorted list of rows.
//! * [`rng`]: seeded choices.
//!
//! A crate of its own because only here may head, shard and unit meet; imported by nobody.

pub mod clock;
pub mod disk;
pub mod gate;
pub mod grid;
pub mod moments;
pub mod oracle;
pub mod processes;
pub mod rng;
pub mod tables;
pub mod traffic;
pub mod units;
