//! The traces of flights. The call that fetches a flight is a span below the read that claimed first in it. The spans of all other reads
//! that the call serves are linked with it: those that claimed from the call's span, those that joined from their own.
//!
//! While no traces are exported, nothing is kept.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;
use trellis_fabric::telemetry::{self, SpanRef};

use crate::held::FlightId;

/// The span of the call that fetches a flight. Empty until the call is made.
pub(super) type CallLink = Arc<OnceLock<SpanRef>>;

/// The flights of this head that are not over.
#[derive(Debug, Default)]
pub(super) struct Flights(Mutex<HashMap<FlightId, CallLink>>);

impl Flights {
    /// A flight begins. Called while its series is locked, so that every read that joins it finds it here.
    pub(super) fn begin(&self, flight: FlightId) {
        if telemetry::exporting() {
            self.0.lock().insert(flight, CallLink::default());
        }
    }

    /// The call of a flight that a read has joined.
    pub(super) fn call_of(&self, flight: FlightId) -> Option<CallLink> {
        if telemetry::exporting() { self.0.lock().get(&flight).cloned() } else { None }
    }

    /// The trace of a claim of the read whose span encloses the caller.
    pub(super) fn claimed(self: &Arc<Self>, flight: FlightId) -> Option<Arc<ClaimTrace>> {
        let call = self.call_of(flight)?;
        let read = SpanRef::of_current();
        Some(Arc::new(ClaimTrace { flights: Arc::clone(self), flight, call, read }))
    }
}

/// The trace of one claim. The flight is over when the last copy of its claim is dropped.
#[derive(Debug)]
pub(super) struct ClaimTrace {
    flights: Arc<Flights>,
    flight: FlightId,
    pub(super) call: CallLink,
    /// The read that claimed.
    pub(super) read: Option<SpanRef>,
}

impl Drop for ClaimTrace {
    fn drop(&mut self) {
        self.flights.0.lock().remove(&self.flight);
    }
}
