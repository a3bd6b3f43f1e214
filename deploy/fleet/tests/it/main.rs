//! `fleet` against a fake of AWS.

mod bootstrap;
mod http;
mod refused;
mod simulation;
mod support;
