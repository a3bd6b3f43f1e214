//! Whole grids inside one test process, and the slow, plainly right answer to compare them with.
//!
//! * [`grid`]: shards and heads on loopback ports over a lake in a temporary folder.
//! * [`oracle`]: a dataset as a sorted list of rows.
//! * [`market`]: seeded rows.
//!
//! A crate of its own because only here may head, shard and unit meet; imported by nobody.
