//! Who may publish to a dataset. Pure: time is passed in, as the time since the shard started.
//!
//! The *epoch* makes publishing safe. It is a number that only grows, and the table has it. A publish names the epoch that it was
//! granted. It is refused if a larger epoch has been committed, whatever any clock says.
//!
//! The *expiry* decides when another holder may be granted the next epoch without taking over. The home shard counts it on its own
//! monotonic clock, from a grant or a renewal. A shard that has just started, or has just learned of another shard's grant, does
//! not know when the holder last renewed. So it waits a whole time to live. A holder whose lease ran out may go on until another
//! holder takes the next epoch.
//!
//! The table also has the newest epoch that was given back, so a shard that starts later does not wait for it. If a lease was not
//! given back, there are two cases. The shard knows that the holder lives, because it has granted or renewed the lease since it
//! started: then a person decides who publishes. Or the shard does not know whether the holder lives: then it knows after one
//! time to live.
//!
//! A dataset is the output of the *unit* with the newest epoch, whether or not that unit runs. Another instance of the unit gets
//! the next epoch once the lease is given back or has run out. Another unit gets it only by taking over: otherwise a wrong name in
//! a declaration would make a unit the publisher of another unit's output. An import into an output is refused. A person may end
//! the ownership: the next epoch is then granted to *nobody*, and the unit is fenced.

use std::time::Duration;

use trellis_proto::{Code, Error, Result, time::format_time};

use crate::table::{Grant, Holder, StoredLease, TTL_DEFAULT};

/// Shortest time to live that is granted; a shorter request gets this one.
pub(crate) const TTL_MIN: Duration = Duration::from_millis(100);
/// Longest time to live that is granted: others wait no longer for a holder that has died.
pub(crate) const TTL_MAX: Duration = Duration::from_secs(3_600);

/// The lease of one dataset, as its home shard knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Lease {
    /// No epoch was ever granted.
    #[default]
    Never,
    /// The newest epoch, until `expires`. `heard`: granted or renewed in this shard's life, so its holder lives.
    Held { grant: Grant, expires: Duration, heard: bool },
    /// The newest epoch was given back, or granted to nobody: nobody may publish with it.
    Released { grant: Grant },
}

/// Answer to a request for the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Acquire {
    /// The holder has it already: there is nothing to commit.
    Already(Lease),
    /// Commit this grant, then call [`Lease::granted`].
    Commit(Grant),
}

impl Lease {
    /// The newest epoch; 0 before the first.
    pub(crate) fn epoch(&self) -> u64 {
        match self {
            Self::Never => 0,
            Self::Held { grant, .. } | Self::Released { grant } => grant.epoch,
        }
    }

    /// This lease after a look at the table, whose newest epoch the shard learned of at `learned`. A larger epoch in the table
    /// has always won, and a lease that was given back stays so.
    #[must_use]
    pub(crate) fn caught_up(&self, learned: Duration, stored: &StoredLease) -> Self {
        match stored {
            StoredLease::Held(grant) if grant.epoch > self.epoch() => {
                Self::Held { grant: grant.clone(), expires: learned + grant.ttl, heard: false }
            }
            StoredLease::Released(grant) if grant.epoch >= self.epoch() => {
                Self::Released { grant: grant.clone() }
            }
            StoredLease::Never | StoredLease::Held(_) | StoredLease::Released(_) => self.clone(),
        }
    }

    /// Asks for the lease of `dataset`.
    ///
    /// # Errors
    /// Without `take_over`: [`Code::PermissionDenied`] if the dataset is another unit's output, [`Code::Conflict`] while the lease
    /// of another instance runs, [`Code::Unavailable`] while the shard does not know whether it runs. All name the holder.
    pub(crate) fn acquire(
        &self,
        dataset: &str,
        now: Duration,
        now_ns: i64,
        holder: &Holder,
        ttl: Duration,
        take_over: bool,
    ) -> Result<Acquire> {
        match self {
            Self::Held { grant, .. } if grant.holder == *holder => {
                Ok(Acquire::Already(Self::Held { grant: grant.clone(), expires: now + ttl, heard: true }))
            }
            Self::Released { grant } if grant.holder.is_nobody() && holder.is_nobody() => {
                Ok(Acquire::Already(self.clone()))
            }
            Self::Held { grant, .. } | Self::Released { grant }
                if grant.holder.unit != holder.unit
                    && !grant.holder.is_nobody()
                    && !holder.is_nobody()
                    && !take_over =>
            {
                Err(output_of_other(dataset, grant))
            }
            Self::Held { grant, expires, heard } if now < *expires && !take_over => {
                Err(held_by_other(dataset, grant, *expires - now, *heard, holder.is_nobody()))
            }
            Self::Held { .. } | Self::Released { .. } | Self::Never => Ok(Acquire::Commit(Grant {
                epoch: self.epoch() + 1,
                holder: holder.clone(),
                since_ns: now_ns,
                ttl,
            })),
        }
    }

    /// The grant has been committed: any → Held, or Released if it was granted to nobody.
    pub(crate) fn granted(now: Duration, grant: Grant) -> Self {
        if grant.holder.is_nobody() {
            return Self::Released { grant };
        }
        let expires = now + grant.ttl;
        Self::Held { grant, expires, heard: true }
    }

    /// Held → Held for another `ttl`.
    ///
    /// # Errors
    /// [`Code::Fenced`] if `holder` does not hold the newest epoch.
    pub(crate) fn renew(&self, now: Duration, holder: &Holder, epoch: u64, ttl: Duration) -> Result<Self> {
        let grant = self.held(epoch, &holder.unit)?;
        if grant.holder != *holder {
            return Err(fenced(grant, epoch));
        }
        Ok(Self::Held { grant: grant.clone(), expires: now + ttl, heard: true })
    }

    /// Held → Released, to be committed. `None`: `holder` does not hold the lease.
    pub(crate) fn release(&self, holder: &Holder, epoch: u64) -> Option<Self> {
        match self {
            Self::Held { grant, .. } if grant.epoch == epoch && grant.holder == *holder => {
                Some(Self::Released { grant: grant.clone() })
            }
            Self::Held { .. } | Self::Released { .. } | Self::Never => None,
        }
    }

    /// Whether `unit` may publish with `epoch`.
    ///
    /// # Errors
    /// [`Code::Fenced`] naming the newest epoch and its holder.
    pub(crate) fn check_publish(&self, unit: &str, epoch: u64) -> Result<()> {
        self.held(epoch, unit).map(|_| ())
    }

    fn held(&self, epoch: u64, unit: &str) -> Result<&Grant> {
        match self {
            Self::Never => Err(Error::new(
                Code::Fenced,
                format!("epoch {epoch} was never granted: unit {unit} does not hold the lease"),
            )
            .hint("acquire the lease first")),
            Self::Released { grant } if grant.epoch == epoch => {
                Err(Error::new(Code::Fenced, format!("epoch {epoch} has been released by its holder"))
                    .hint("acquire the lease again"))
            }
            Self::Held { grant, .. } if grant.epoch == epoch && grant.holder.unit == unit => Ok(grant),
            Self::Held { grant, .. } | Self::Released { grant } => Err(fenced(grant, epoch)),
        }
    }
}

fn fenced(grant: &Grant, epoch: u64) -> Error {
    if grant.holder.is_nobody() {
        let text = format!(
            "fenced by epoch {}: {} ended the unit's ownership at {}",
            grant.epoch,
            grant.holder.instance,
            format_time(grant.since_ns)
        );
        // Not `Fenced`: a fence passes when the other publisher ends, and this does not pass.
        return Error::new(Code::PermissionDenied, text)
            .hint("the dataset is no unit's output now; start the unit again if it is to be this one's");
    }
    let text = format!(
        "fenced by epoch {}: unit {} ({}) took over at {}",
        grant.epoch,
        grant.holder.unit,
        grant.holder.instance,
        format_time(grant.since_ns)
    );
    let error = Error::new(Code::Fenced, text);
    if epoch > grant.epoch {
        error.hint("the epoch given is larger than any that was granted: it is of another dataset or lake")
    } else {
        error.hint("another publisher has taken this output over; stop, or acquire the lease again")
    }
}

fn held_by_other(dataset: &str, grant: &Grant, left: Duration, heard: bool, by_nobody: bool) -> Error {
    let (unit, instance, left) = (&grant.holder.unit, &grant.holder.instance, left.as_millis());
    if heard {
        return Error::new(
            Code::Conflict,
            format!("{dataset} is published by a running process of unit {unit} ({instance}, {})", grant.since()),
        )
        .hint(if by_nobody {
            format!(
                "take the unit out of service first: `trellis undeploy {unit}`; or `--take-over`, and its process ends"
            )
        } else {
            format!(
                "publish over it: `take_over=True`, `--take-over`; it goes on with the sessions after that. Or end it: `trellis \
                 undeploy {unit}`, if it was deployed"
            )
        });
    }
    Error::new(
        Code::Unavailable,
        format!(
            "{dataset} may be published by a process of unit {unit} ({instance}, {}): the shard has started after it and not \
             heard of it",
            grant.since()
        ),
    )
    .hint(format!("that it lives or does not is known in {left} ms; to publish now, take over"))
}

fn output_of_other(dataset: &str, grant: &Grant) -> Error {
    Error::new(
        Code::PermissionDenied,
        format!("{dataset} is the output of unit {} (epoch {}, {})", grant.holder.unit, grant.epoch, grant.since()),
    )
    .hint(
        "publish to a dataset of the unit's own; if it is to be this unit's from now on (a unit that was renamed), take it \
         over: `--take-over`, `take_over=True`, or TRELLIS_TAKE_OVER=true for a service",
    )
}

/// The time to live that is granted for a request; 0 asks for the default.
pub(crate) fn granted_ttl(asked_ms: u32) -> Duration {
    match asked_ms {
        0 => TTL_DEFAULT,
        ms => Duration::from_millis(u64::from(ms)).clamp(TTL_MIN, TTL_MAX),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn holder(i: u8) -> Holder {
        Holder { unit: format!("unit-{}", i / 2), instance: format!("i{i}") }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Acquire {
            who: u8,
            ttl_ms: u64,
            take_over: bool,
        },
        Renew {
            who: u8,
            ttl_ms: u64,
        },
        Release {
            who: u8,
        },
        Publish {
            who: u8,
        },
        /// Takes the lease, publishes and gives it back, in one commit.
        Once {
            who: u8,
            take_over: bool,
        },
        /// The dataset shall be no unit's output.
        EndOwnership {
            take_over: bool,
        },
        Wait {
            ms: u64,
        },
        /// The shard starts again and knows only what stands in the table.
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..4u8, 1..50u64, any::<bool>()).prop_map(|(who, ttl_ms, take_over)| Step::Acquire {
                who,
                ttl_ms,
                take_over
            }),
            (0..4u8, 1..50u64).prop_map(|(who, ttl_ms)| Step::Renew { who, ttl_ms }),
            (0..4u8).prop_map(|who| Step::Release { who }),
            (0..4u8).prop_map(|who| Step::Publish { who }),
            (0..4u8, any::<bool>()).prop_map(|(who, take_over)| Step::Once { who, take_over }),
            any::<bool>().prop_map(|take_over| Step::EndOwnership { take_over }),
            (1..60u64).prop_map(|ms| Step::Wait { ms }),
            Just(Step::Restart),
        ]
    }

    /// What must hold, kept without the state machine: what was committed, and until when its holder was promised.
    #[derive(Default)]
    struct Told {
        stored: StoredLease,
        promised: Duration,
        known: [u64; 4],
        accepted: u64,
    }

    impl Told {
        /// Whether `unit` must be refused without taking over: by whom the dataset is owned, and by a promise.
        fn barred(&self, who: Option<u8>, now: Duration) -> Option<&'static [Code]> {
            let unit = who.map(|who| holder(who).unit);
            let foreign =
                unit.is_some() && self.stored.owner().is_some() && self.stored.owner() != unit.as_deref();
            let StoredLease::Held(grant) = &self.stored else {
                return foreign.then_some(&[Code::PermissionDenied]);
            };
            let own = who.is_some_and(|who| grant.holder == holder(who));
            match (foreign, now < self.promised && !own) {
                (true, _) => Some(&[Code::PermissionDenied]),
                (false, true) => Some(&[Code::Conflict, Code::Unavailable]),
                (false, false) => None,
            }
        }

        fn commit(&mut self, stored: StoredLease) -> Result<(), TestCaseError> {
            prop_assert!(stored.epoch() > self.stored.epoch());
            self.stored = stored;
            Ok(())
        }
    }

    fn asked(
        lease: &Lease,
        told: &Told,
        who: Option<u8>,
        now: Duration,
        ttl: Duration,
        take_over: bool,
    ) -> Result<Option<Acquire>, TestCaseError> {
        let nobody = Holder { unit: String::new(), instance: "ada".to_owned() };
        let barred = told.barred(who, now);
        match lease.acquire("d.a", now, 0, &who.map_or(nobody, holder), ttl, take_over) {
            Ok(acquired) => {
                prop_assert!(barred.is_none() || take_over);
                Ok(Some(acquired))
            }
            Err(error) => {
                prop_assert!(!take_over);
                prop_assert!(barred.is_some_and(|codes| codes.contains(&error.code())), "{}", error);
                Ok(None)
            }
        }
    }

    proptest! {
        /// For any order of requests: epochs only grow, and an accepted publish has the newest epoch. Without taking over nobody gets
        /// a lease that runs, and no unit gets the output of another. A lease that was given back is free, after a restart too.
        /// Any other lease runs out one time to live after a restart.
        #[test]
        fn epochs_are_accepted_in_order(steps in proptest::collection::vec(step(), 1..60)) {
            let mut lease = Lease::Never;
            let mut now = Duration::ZERO;
            let mut told = Told::default();
            for step in steps {
                match step {
                    Step::Acquire { who, ttl_ms, take_over } => {
                        let ttl = Duration::from_millis(ttl_ms);
                        match asked(&lease, &told, Some(who), now, ttl, take_over)? {
                            Some(Acquire::Already(next)) => {
                                prop_assert_eq!(next.epoch(), lease.epoch());
                                lease = next;
                            }
                            Some(Acquire::Commit(grant)) => {
                                told.commit(StoredLease::Held(grant.clone()))?;
                                lease = Lease::granted(now, grant);
                            }
                            None => continue,
                        }
                        told.promised = now + ttl;
                        told.known[who as usize] = lease.epoch();
                    }
                    Step::Once { who, take_over } => match asked(&lease, &told, Some(who), now, Duration::ZERO, take_over)? {
                        Some(Acquire::Commit(grant)) => {
                            prop_assert!(grant.epoch > told.accepted);
                            told.accepted = grant.epoch;
                            told.commit(StoredLease::Released(grant))?;
                            lease = lease.caught_up(now, &told.stored);
                        }
                        Some(Acquire::Already(_)) | None => {}
                    },
                    Step::EndOwnership { take_over } => match asked(&lease, &told, None, now, Duration::ZERO, take_over)? {
                        Some(Acquire::Commit(grant)) => {
                            told.commit(StoredLease::Released(grant.clone()))?;
                            prop_assert_eq!(told.stored.owner(), None);
                            lease = Lease::granted(now, grant);
                        }
                        Some(Acquire::Already(_)) => prop_assert_eq!(told.stored.owner(), None),
                        None => {}
                    },
                    Step::Renew { who, ttl_ms } => {
                        let (epoch, ttl) = (told.known[who as usize], Duration::from_millis(ttl_ms));
                        if let Ok(next) = lease.renew(now, &holder(who), epoch, ttl) {
                            prop_assert_eq!(epoch, told.stored.epoch());
                            told.promised = now + ttl;
                            lease = next;
                        }
                    }
                    Step::Release { who } => {
                        if let Some(released) = lease.release(&holder(who), told.known[who as usize]) {
                            let Lease::Released { grant } = &released else { panic!("{released:?}") };
                            told.stored = StoredLease::Released(grant.clone());
                            lease = released;
                        }
                    }
                    Step::Publish { who } => {
                        let epoch = told.known[who as usize];
                        if lease.check_publish(&holder(who).unit, epoch).is_ok() {
                            prop_assert_eq!(epoch, told.stored.epoch());
                            prop_assert!(matches!(told.stored, StoredLease::Held(_)));
                            prop_assert!(epoch >= told.accepted);
                            told.accepted = epoch;
                        }
                    }
                    Step::Wait { ms } => now += Duration::from_millis(ms),
                    Step::Restart => {
                        now = Duration::ZERO;
                        lease = Lease::Never.caught_up(now, &told.stored);
                        if let StoredLease::Held(grant) = &told.stored {
                            told.promised = now + grant.ttl;
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_lease_is_taken_only_after_it_ran_out_or_by_taking_over() {
        let ttl = Duration::from_secs(10);
        let Acquire::Commit(grant) =
            Lease::Never.acquire("d.a", Duration::ZERO, 5, &holder(0), ttl, false).unwrap()
        else {
            panic!("the first to ask gets it")
        };
        assert_eq!(grant.epoch, 1);
        let lease = Lease::granted(Duration::ZERO, grant);
        let refused = lease.acquire("d.a", Duration::from_secs(9), 6, &holder(1), ttl, false).unwrap_err();
        assert_eq!(refused.code(), Code::Conflict);
        for (now, take_over) in [(10, false), (1, true)] {
            let next = lease.acquire("d.a", Duration::from_secs(now), 6, &holder(1), ttl, take_over).unwrap();
            assert!(matches!(next, Acquire::Commit(Grant { epoch: 2, .. })));
        }
    }

    #[test]
    fn an_output_stays_its_units_until_another_takes_it_over() {
        let ttl = Duration::from_secs(10);
        let late = Duration::from_secs(100);
        let grant = Grant { epoch: 1, holder: holder(0), since_ns: 0, ttl };
        let held = Lease::granted(Duration::ZERO, grant.clone());
        let released = held.release(&grant.holder, 1).unwrap();
        assert!(released.release(&grant.holder, 1).is_none());
        for (lease, now) in [(&held, Duration::ZERO), (&held, late), (&released, Duration::ZERO)] {
            let refused = lease.acquire("d.a", now, 0, &holder(2), ttl, false).unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied);
            assert!(
                refused.message().starts_with("d.a is the output of unit unit-0"),
                "{}",
                refused.message()
            );
            let taken = lease.acquire("d.a", now, 0, &holder(2), ttl, true).unwrap();
            assert!(matches!(taken, Acquire::Commit(Grant { epoch: 2, .. })));
        }
    }

    #[test]
    fn a_holder_whose_lease_ran_out_may_go_on_until_somebody_takes_it() {
        let grant = Grant { epoch: 3, holder: holder(0), since_ns: 0, ttl: Duration::from_secs(1) };
        let late = Duration::from_secs(100);
        let lease = Lease::granted(Duration::ZERO, grant);
        assert!(lease.check_publish("unit-0", 3).is_ok());
        assert!(lease.renew(late, &holder(0), 3, Duration::from_secs(1)).is_ok());
        let taken =
            Lease::granted(late, Grant { epoch: 4, holder: holder(2), since_ns: 0, ttl: TTL_DEFAULT });
        let refused = taken.check_publish("unit-0", 3).unwrap_err();
        assert_eq!(refused.code(), Code::Fenced);
        assert!(
            refused.message().starts_with("fenced by epoch 4: unit unit-1 (i2) took over at "),
            "{}",
            refused.message()
        );
    }

    #[test]
    fn a_shard_that_was_started_again_says_whether_it_has_heard_of_the_holder() {
        let ttl = Duration::from_secs(10);
        let grant = Grant { epoch: 1, holder: holder(0), since_ns: 0, ttl };
        let found = Lease::Never.caught_up(Duration::from_secs(5), &StoredLease::Held(grant.clone()));
        let ask =
            |lease: &Lease, now| lease.acquire("d.a", Duration::from_secs(now), 0, &holder(1), ttl, false);
        assert_eq!(ask(&found, 6).unwrap_err().code(), Code::Unavailable, "it may live: to be asked again");
        assert!(matches!(ask(&found, 15), Ok(Acquire::Commit(Grant { epoch: 2, .. }))), "it does not");
        let heard = found.renew(Duration::from_secs(6), &holder(0), 1, ttl).unwrap();
        assert_eq!(ask(&heard, 7).unwrap_err().code(), Code::Conflict, "it lives");
    }

    #[test]
    fn an_output_that_was_given_up_is_open_to_all_and_fences_its_unit_for_good() {
        let stored = StoredLease::Held(Grant { epoch: 1, holder: holder(0), since_ns: 0, ttl: TTL_DEFAULT });
        assert_eq!(stored.check_unowned("d.a").unwrap_err().code(), Code::PermissionDenied);
        let nobody = Holder { unit: String::new(), instance: "ada".to_owned() };
        let ended =
            StoredLease::Released(Grant { epoch: 2, holder: nobody, since_ns: 0, ttl: Duration::ZERO });
        assert!(ended.owner().is_none() && ended.check_unowned("d.a").is_ok());
        let lease = Lease::Never.caught_up(Duration::ZERO, &stored).caught_up(Duration::ZERO, &ended);
        let refused = lease.renew(Duration::ZERO, &holder(0), 1, TTL_DEFAULT).unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        for who in [0, 2] {
            let taken = lease.acquire("d.a", Duration::ZERO, 0, &holder(who), TTL_DEFAULT, false).unwrap();
            assert!(matches!(taken, Acquire::Commit(Grant { epoch: 3, .. })));
        }
    }
}
