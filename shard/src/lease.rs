//! Who may publish to a dataset. Pure: time is passed in, as the time since the shard started.
//!
//! Safety rests on the *epoch*, a number that only grows and stands in the table: a publish names the epoch it was
//! granted, and is refused if a larger one has been committed, whatever any clock says. The *expiry* is only about
//! liveness: it decides when another holder may be granted the next epoch without taking over. It is counted on the home
//! shard's monotonic clock alone, from a grant or a renewal. A shard that has just started, or has just learned of an
//! epoch that another shard granted, does not know when the holder last renewed, so it waits a whole time to live.
//!
//! A holder whose lease ran out may go on as long as nobody took the next epoch: refusing it would help nobody.
//!
//! A dataset is the output of the *unit* that was granted its newest epoch, running or not. Another instance of that unit
//! gets the next epoch once the lease is given back or has run out; another unit only by taking over, or a slip of a name
//! in its declaration would make it the publisher of what somebody else computes, at the first restart over there.

use std::time::Duration;

use trellis_proto::{Code, Error, Result, time::format_time};

/// Shortest and longest time to live that is granted; what is asked for beyond is brought within.
pub(crate) const TTL_MIN: Duration = Duration::from_millis(100);
/// An hour: a holder that died keeps others waiting no longer than this.
pub(crate) const TTL_MAX: Duration = Duration::from_secs(3_600);
/// Where none is asked for, and for epochs whose grant does not say.
pub(crate) const TTL_DEFAULT: Duration = Duration::from_secs(30);

/// A process that publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) unit: String,
    pub(crate) instance: String,
}

/// An epoch as it was granted; stands in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) epoch: u64,
    pub(crate) holder: Holder,
    /// Wall clock of the granting shard, nanoseconds; for people.
    pub(crate) since_ns: i64,
    pub(crate) ttl: Duration,
}

/// The lease of one dataset.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Lease {
    /// No epoch was ever granted.
    #[default]
    Never,
    /// The newest epoch, until `expires`.
    Held { grant: Grant, expires: Duration },
    /// The newest epoch was given back: nobody may publish with it.
    Released { grant: Grant },
}

/// Answer to a request for the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Acquire {
    /// The asker holds it already: nothing to commit.
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

    fn live(&self, now: Duration) -> Option<&Grant> {
        match self {
            Self::Held { grant, expires } if now < *expires => Some(grant),
            Self::Held { .. } | Self::Released { .. } | Self::Never => None,
        }
    }

    /// Asks for the lease of `dataset`.
    ///
    /// # Errors
    /// Where `take_over` is not set: [`Code::PermissionDenied`] if it is another unit's output, [`Code::Conflict`] while the
    /// lease of another instance runs. Both name the holder.
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
                Ok(Acquire::Already(Self::Held { grant: grant.clone(), expires: now + ttl }))
            }
            Self::Held { grant, .. } | Self::Released { grant }
                if grant.holder.unit != holder.unit && !take_over =>
            {
                Err(output_of_other(dataset, grant))
            }
            Self::Held { grant, expires } if now < *expires && !take_over => {
                Err(held_by_other(dataset, grant, *expires - now))
            }
            Self::Held { .. } | Self::Released { .. } | Self::Never => Ok(Acquire::Commit(Grant {
                epoch: self.epoch() + 1,
                holder: holder.clone(),
                since_ns: now_ns,
                ttl,
            })),
        }
    }

    /// Any → Held: the grant has been committed, or was found in the table.
    pub(crate) fn granted(now: Duration, grant: Grant) -> Self {
        let expires = now + grant.ttl;
        Self::Held { grant, expires }
    }

    /// Held → Held for another `ttl`.
    ///
    /// # Errors
    /// [`Code::Fenced`] if the asker does not hold the newest epoch.
    pub(crate) fn renew(&self, now: Duration, holder: &Holder, epoch: u64, ttl: Duration) -> Result<Self> {
        let grant = self.held(epoch, &holder.unit)?;
        if grant.holder != *holder {
            return Err(fenced(grant, epoch));
        }
        Ok(Self::Held { grant: grant.clone(), expires: now + ttl })
    }

    /// Held → Released. Of a lease that the asker does not hold any more, or never did: nothing happens.
    pub(crate) fn release(&self, holder: &Holder, epoch: u64) -> Self {
        match self {
            Self::Held { grant, .. } if grant.epoch == epoch && grant.holder == *holder => {
                Self::Released { grant: grant.clone() }
            }
            Self::Held { .. } | Self::Released { .. } | Self::Never => self.clone(),
        }
    }

    /// Whether `unit` may publish with `epoch`.
    ///
    /// # Errors
    /// [`Code::Fenced`] saying which epoch holds and who has it.
    pub(crate) fn check_publish(&self, unit: &str, epoch: u64) -> Result<()> {
        self.held(epoch, unit).map(|_| ())
    }

    /// Whether rows may be imported.
    ///
    /// # Errors
    /// [`Code::Conflict`] while a unit's lease runs.
    pub(crate) fn check_import(&self, now: Duration) -> Result<()> {
        match self.live(now) {
            None => Ok(()),
            Some(grant) => Err(Error::new(
                Code::Conflict,
                format!("unit {} publishes to it (epoch {})", grant.holder.unit, grant.epoch),
            )
            .hint("stop the unit, or wait until its lease has run out")),
        }
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
    let text = format!(
        "fenced by epoch {}, held by unit {} (instance {}) since {}",
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

fn held_by_other(dataset: &str, grant: &Grant, left: Duration) -> Error {
    Error::new(
        Code::Conflict,
        format!(
            "epoch {} of {dataset} is held by unit {} (instance {}) since {}",
            grant.epoch,
            grant.holder.unit,
            grant.holder.instance,
            format_time(grant.since_ns)
        ),
    )
    .hint(format!("it runs out in {} ms unless renewed; to take it now, take over", left.as_millis()))
}

fn output_of_other(dataset: &str, grant: &Grant) -> Error {
    Error::new(
        Code::PermissionDenied,
        format!(
            "{dataset} is the output of unit {} (epoch {}, since {})",
            grant.holder.unit,
            grant.epoch,
            format_time(grant.since_ns)
        ),
    )
    .hint(
        "publish to a dataset of the unit's own; if it is to be this unit's from now on (a unit that was renamed), take it \
         over: `--take-over`, `take_over=True`, or TRELLIS_TAKE_OVER=true for a service",
    )
}

/// What a request asks for, brought within what is granted.
pub(crate) fn ttl(asked_ms: u32) -> Duration {
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
            (1..60u64).prop_map(|ms| Step::Wait { ms }),
            Just(Step::Restart),
        ]
    }

    proptest! {
        /// Whatever is asked in whatever order: epochs only grow, an accepted publish carries the newest epoch, and without
        /// taking over nobody gets a lease that runs, nor a unit the output of another.
        #[test]
        fn epochs_are_accepted_in_order(steps in proptest::collection::vec(step(), 1..60)) {
            let mut lease = Lease::Never;
            let mut now = Duration::ZERO;
            let mut stored: Option<Grant> = None;
            let mut known = [0_u64; 4];
            let mut accepted = 0;
            for step in steps {
                match step {
                    Step::Acquire { who, ttl_ms, take_over } => {
                        let live = lease.live(now).cloned();
                        let foreign = stored.as_ref().is_some_and(|g| g.holder.unit != holder(who).unit);
                        let ttl = Duration::from_millis(ttl_ms);
                        match lease.acquire("d.a", now, 0, &holder(who), ttl, take_over) {
                            Ok(Acquire::Already(next)) => {
                                prop_assert_eq!(next.epoch(), lease.epoch());
                                lease = next;
                                known[who as usize] = lease.epoch();
                            }
                            Ok(Acquire::Commit(grant)) => {
                                prop_assert!(grant.epoch > stored.as_ref().map_or(0, |g| g.epoch));
                                prop_assert!((live.is_none() && !foreign) || take_over);
                                known[who as usize] = grant.epoch;
                                stored = Some(grant.clone());
                                lease = Lease::granted(now, grant);
                            }
                            Err(error) => {
                                prop_assert!(!take_over);
                                prop_assert!(foreign || live.is_some_and(|g| g.holder != holder(who)));
                                let code = if foreign { Code::PermissionDenied } else { Code::Conflict };
                                prop_assert_eq!(error.code(), code);
                            }
                        }
                    }
                    Step::Renew { who, ttl_ms } => {
                        let epoch = known[who as usize];
                        if let Ok(next) = lease.renew(now, &holder(who), epoch, Duration::from_millis(ttl_ms)) {
                            prop_assert_eq!(epoch, stored.as_ref().unwrap().epoch);
                            lease = next;
                        }
                    }
                    Step::Release { who } => lease = lease.release(&holder(who), known[who as usize]),
                    Step::Publish { who } => {
                        let epoch = known[who as usize];
                        if lease.check_publish(&holder(who).unit, epoch).is_ok() {
                            prop_assert_eq!(epoch, stored.as_ref().unwrap().epoch);
                            prop_assert!(epoch >= accepted);
                            accepted = epoch;
                        }
                    }
                    Step::Wait { ms } => now += Duration::from_millis(ms),
                    Step::Restart => {
                        now = Duration::ZERO;
                        lease = stored.clone().map_or(Lease::Never, |grant| Lease::granted(now, grant));
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
        let released = held.release(&grant.holder, 1);
        assert!(matches!(released, Lease::Released { .. }));
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
        assert!(lease.check_import(late).is_ok());
        let taken =
            Lease::granted(late, Grant { epoch: 4, holder: holder(2), since_ns: 0, ttl: TTL_DEFAULT });
        let refused = taken.check_publish("unit-0", 3).unwrap_err();
        assert_eq!(refused.code(), Code::Fenced);
        assert!(
            refused.message().starts_with("fenced by epoch 4, held by unit unit-1"),
            "{}",
            refused.message()
        );
    }
}
