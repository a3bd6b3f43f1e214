//! How many connections a server takes, in all and from one address. Pure.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Most connections from one address. Behind an address there may be a whole site, so it only stops one peer out of control before it
/// has the descriptors of all others.
const ADDRESS_MAX: usize = 16_384;

/// The part of the file descriptors that peers from elsewhere do not get: one of this many. The server needs them for its shards,
/// files and telemetry, and half of them serve connections from this machine, which are those of its probes and operators.
const RESERVE_PART: usize = 8;

/// Why a connection is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// The address has as many connections as one address may have.
    Address,
    /// The server has as many connections as it may have.
    Server,
}

/// The connections that are open.
#[derive(Debug)]
pub(super) struct Seats {
    most: usize,
    most_with_own: usize,
    address_max: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One open connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    address: IpAddr,
}

impl Seats {
    /// The seats of a process that may have `descriptors` files open.
    pub(super) fn new(descriptors: usize) -> Arc<Self> {
        Self::with(descriptors, ADDRESS_MAX)
    }

    fn with(descriptors: usize, address_max: usize) -> Arc<Self> {
        let reserve = descriptors.div_ceil(RESERVE_PART);
        let (most, most_with_own) = (descriptors - reserve, descriptors - reserve.div_ceil(2));
        Arc::new(Self { most, most_with_own, address_max, open: Mutex::default() })
    }

    /// A seat for a connection from `peer`.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn take(self: &Arc<Self>, peer: IpAddr) -> Result<Seat, Full> {
        let own = peer.to_canonical().is_loopback();
        let address = one_of(peer);
        let mut open = self.open();
        if open.all >= if own { self.most_with_own } else { self.most } {
            return Err(Full::Server);
        }
        let count = open.by_address.get(&address).copied().unwrap_or(0);
        if !own && count >= self.address_max {
            return Err(Full::Address);
        }
        open.all += 1;
        open.by_address.insert(address, count + 1);
        Ok(Seat { seats: self.clone(), address })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.seats.open();
        open.all -= 1;
        if let Entry::Occupied(mut count) = open.by_address.entry(self.address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// The address that a peer counts under. A host has a whole /64 of IPv6.
fn one_of(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_its_most_and_gets_them_back() {
        let seats = Seats::with(80, 2);
        let (a, same, other) = (address("2001:db8::1"), address("2001:db8::2"), address("10.0.0.1"));
        let first = seats.take(a).unwrap();
        let _second = seats.take(same).unwrap();
        assert_eq!(seats.take(a).unwrap_err(), Full::Address);
        let mapped = seats.take(address("::ffff:10.0.0.1")).unwrap();
        let plain = seats.take(other).unwrap();
        assert_eq!(seats.take(other).unwrap_err(), Full::Address);
        drop((mapped, plain, first));
        let again = seats.take(a).unwrap();
        drop((again, _second));
        assert!(seats.open().by_address.is_empty(), "addresses without connections take nothing");
    }

    #[test]
    fn peers_from_elsewhere_leave_a_reserve_and_this_machine_a_half_of_it() {
        let seats = Seats::with(80, 1_000);
        let mut open: Vec<Seat> =
            (0..70).map(|i| seats.take(address(&format!("10.0.0.{i}"))).unwrap()).collect();
        assert_eq!(seats.take(address("10.0.1.1")).unwrap_err(), Full::Server);
        open.extend((0..5).map(|_| seats.take(address("127.0.0.1")).unwrap()));
        assert_eq!(seats.take(address("::1")).unwrap_err(), Full::Server);
    }
}
