//! When each name is looked up. Pure: the caller tells the time, as the time since its start, and how long to wait.

use std::time::Duration;

/// Most names that are looked up at the same time. A look-up of a name is three packets at least, and a VPC's resolver drops packets of a
/// network interface beyond 1,024 a second.
pub(super) const ASKING_MAX: usize = 32;

/// When each name is looked up: at its own time, and few at once.
#[derive(Debug)]
pub(super) struct Schedule {
    turns: Vec<Turn>,
    asking: usize,
}

#[derive(Clone, Copy, Debug)]
struct Turn {
    /// When the last look-up began.
    asked: Duration,
    /// When the next one begins. While one is under way: what the doubts wish, if there are any.
    next: Option<Duration>,
    asking: bool,
    doubted: bool,
}

impl Schedule {
    /// Each of `names` is due at once.
    pub(super) fn new(names: usize) -> Self {
        let turn = Turn { asked: Duration::ZERO, next: Some(Duration::ZERO), asking: false, doubted: false };
        Self { turns: vec![turn; names], asking: 0 }
    }

    /// The name that has been due for the longest time, and whether somebody doubts it. It counts as asked from now on.
    pub(super) fn begin(&mut self, now: Duration) -> Option<(usize, bool)> {
        let (due, name) = self.first()?;
        if due > now {
            return None;
        }
        let turn = &mut self.turns[name];
        let doubted = std::mem::take(&mut turn.doubted);
        (turn.asked, turn.next, turn.asking) = (now, None, true);
        self.asking += 1;
        Some((name, doubted))
    }

    /// When [`Self::begin`] has a name. `None`: not before a look-up ends.
    pub(super) fn wake(&self) -> Option<Duration> {
        self.first().map(|(due, _)| due)
    }

    /// The look-up of `name` has ended; the next one is due at `next`, or before it if a doubt said so meanwhile.
    pub(super) fn end(&mut self, name: usize, next: Duration) {
        let turn = &mut self.turns[name];
        turn.next = Some(turn.next.map_or(next, |wished| wished.min(next)));
        turn.asking = false;
        self.asking -= 1;
    }

    /// `name` is due `after` its last look-up began, if not before. Whether this is the first doubt since then.
    pub(super) fn doubt(&mut self, name: usize, after: Duration) -> bool {
        let turn = &mut self.turns[name];
        let wished = turn.asked + after;
        turn.next = Some(turn.next.map_or(wished, |next| wished.min(next)));
        !std::mem::replace(&mut turn.doubted, true)
    }

    fn first(&self) -> Option<(Duration, usize)> {
        if self.asking >= ASKING_MAX {
            return None;
        }
        let idle = self.turns.iter().enumerate().filter(|(_, turn)| !turn.asking);
        idle.filter_map(|(name, turn)| turn.next.map(|next| (next, name))).min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_doubt_hastens_one_look_up_and_a_later_doubt_does_not_delay_it() {
        let mut schedule = Schedule::new(2);
        assert_eq!(schedule.begin(SECOND), Some((0, false)));
        assert_eq!(schedule.begin(SECOND), Some((1, false)));
        schedule.end(0, 100 * SECOND);
        schedule.end(1, 200 * SECOND);
        assert!(schedule.doubt(1, 5 * SECOND), "the first");
        assert!(!schedule.doubt(1, 50 * SECOND), "another one");
        assert_eq!(schedule.wake(), Some(6 * SECOND));
        assert_eq!(schedule.begin(7 * SECOND), Some((1, true)));
        schedule.end(1, 300 * SECOND);
        assert_eq!(schedule.wake(), Some(100 * SECOND), "the doubt is over");
    }

    #[test]
    fn a_doubt_during_a_look_up_brings_another_one() {
        let mut schedule = Schedule::new(1);
        schedule.begin(SECOND);
        schedule.doubt(0, 5 * SECOND);
        assert_eq!(schedule.wake(), None, "the look-up is under way");
        schedule.end(0, 100 * SECOND);
        assert_eq!(schedule.begin(6 * SECOND), Some((0, true)));
    }

    proptest! {
        #[test]
        fn no_name_is_forgotten_asked_twice_at_once_or_asked_before_its_time(
            names in 1_usize..80,
            steps in prop::collection::vec((0_u8..3, any::<prop::sample::Index>(), 0_u64..50), 1..300),
        ) {
            let mut schedule = Schedule::new(names);
            let mut now = Duration::ZERO;
            // the oracle: who is asked, when each is due, and what doubts wish while it is asked
            let mut asking: Vec<usize> = Vec::new();
            let mut due = vec![Duration::ZERO; names];
            let mut asked = vec![Duration::ZERO; names];
            let mut wished = vec![Duration::MAX; names];
            for (what, index, seconds) in steps {
                let wait = Duration::from_secs(seconds);
                match what {
                    0 => {
                        now += Duration::from_secs(seconds / 10);
                        if let Some((name, _)) = schedule.begin(now) {
                            prop_assert!(!asking.contains(&name), "asked twice");
                            prop_assert!(due[name] <= now, "asked before its time");
                            asking.push(name);
                            (asked[name], wished[name]) = (now, Duration::MAX);
                        } else {
                            let all_early = (0..names).all(|n| asking.contains(&n) || due[n] > now);
                            prop_assert!(asking.len() == ASKING_MAX || all_early, "a name was forgotten");
                        }
                    }
                    1 if !asking.is_empty() => {
                        let name = asking.swap_remove(index.index(asking.len()));
                        schedule.end(name, now + wait);
                        due[name] = (now + wait).min(wished[name]);
                    }
                    2 => {
                        let name = index.index(names);
                        schedule.doubt(name, wait);
                        let wish = if asking.contains(&name) { &mut wished[name] } else { &mut due[name] };
                        *wish = (asked[name] + wait).min(*wish);
                    }
                    _ => {}
                }
                prop_assert!(asking.len() <= ASKING_MAX);
            }
        }
    }
}
