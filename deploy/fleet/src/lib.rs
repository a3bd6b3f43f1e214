//! The fleet: what should run on AWS, and how it comes to run.
//!
//! | file or room | subject |
//! | --- | --- |
//! | [`desired`] | the reviewed files, read with every mistake named |
//! | [`class`], [`definition`] | sizes of tasks, and the body of RegisterTaskDefinition |
//! | [`place`] | the account and the cluster of each service |
//! | [`ledger`] | where each service was put |
//! | [`mod@plan`] | what changes, and what it costs; why a service is where it is; sessions that run again |
//! | [`pace`] | how fast calls go |
//! | [`call`], [`mod@reconcile`], [`observe`] | what was seen, and the next calls, in waves |
//! | [`aws`], [`run`] | the SDK, and the loop that brings answers to the reconciler |
//! | [`cli`], [`bootstrap`] | the program |
//! | [`scheduled`] | tasks that exist only for a session |
//! | [`unit_files`] | the files of units in S3, by which tasks find their bundles |

pub mod aws;
pub mod bootstrap;
pub mod call;
pub mod class;
pub mod cli;
pub mod definition;
pub mod desired;
pub mod ledger;
pub mod model;
pub mod observe;
pub mod pace;
pub mod place;
pub mod plan;
pub mod reconcile;
pub mod run;
pub mod scheduled;
mod text;
pub mod unit_files;
