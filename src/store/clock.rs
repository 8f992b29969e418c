//! Whether the clock is to be believed, before anything is removed because of its age.
//!
//! It is compared with the last run that removed by it. One that is ahead of that by more than a
//! limit of days, and of the time for which the kernel says the machine was up since, is doubted, and the
//! run refused: it may be wrong, or the machine was off for long. The
//! doubt is noted with its time. If at the next run, half a day later or more, the clock has just gone
//! on, it is right: so nobody is needed to go on. One that has jumped again is doubted again,
//! but not for ever: a third run in a row is believed, for those who run rarely.
//!
//! Pure, but for its texts: `store::compacted` keeps them.

/// No limit is below that, in seconds.
const LEAST: i64 = 3 * 86_400;
/// So much later, in seconds, a clock that has just gone on is believed.
pub const SETTLED: i64 = 12 * 3600;
/// So many doubts in a row, and a clock that has gone on is believed whatever it is ahead by.
const DOUBTS: u32 = 2;

/// How long the machine is up, as its kernel counts: setting the clock does not change that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uptime {
    /// Of this start; no other one has it.
    pub boot: String,
    /// Seconds since then.
    pub secs: i64,
}

/// A run that removed by the clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// When, in seconds since 1970.
    pub time: i64,
    /// The uptime then, if it was known.
    pub up: Option<Uptime>,
}

impl Ran {
    /// Seconds that have passed since, at the least, whatever the clock says.
    fn passed(&self, up: Option<&Uptime>) -> i64 {
        match (&self.up, up) {
            (Some(then), Some(now)) if then.boot == now.boot => {
                now.secs.saturating_sub(then.secs).max(0)
            }
            (Some(_), Some(now)) => now.secs.max(0),
            _ => 0,
        }
    }

    /// As it is noted.
    pub fn print(&self) -> String {
        match &self.up {
            Some(up) => format!("{} {} {}", self.time, up.boot, up.secs),
            None => self.time.to_string(),
        }
    }

    /// What [`print`](Ran::print) made; `None` for what does not begin with a time.
    pub fn parse(text: &str) -> Option<Ran> {
        let mut words = text.split(' ');
        let time = words.next()?.parse().ok()?;
        let up = words.next().zip(words.next());
        let up = up.and_then(|(boot, secs)| {
            let (boot, secs) = (boot.to_owned(), secs.parse().ok()?);
            Some(Uptime { boot, secs })
        });
        Some(Ran { time, up })
    }
}

/// A run that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// When, by the clock that was doubted, in seconds since 1970.
    pub time: i64,
    /// The last run before that was believed; with another one this doubt is settled.
    pub ran: i64,
    /// The how manieth it is in a row.
    pub times: u32,
}

/// What comes of a look at the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Things may be removed.
    Believed,
    /// They may not; what is to be noted.
    Doubted(Doubt),
    /// They may, by a clock that is behind the last run: one of the two was wrong. That is noted like a doubt,
    /// and the last run stays what it was until the clock has gone on from there.
    Behind(Doubt),
}

/// By how many seconds the clock may be ahead of the last run, if what is deleted is `kept` for so many.
pub fn limit(kept: Option<i64>) -> i64 {
    kept.map_or(LEAST, |kept| (kept / 2).max(LEAST))
}

/// Judges the clock: `ran` is the last run, if there was one, `doubt` what was noted last, `up` the
/// uptime now.
pub fn judge(
    ran: Option<&Ran>,
    doubt: Option<Doubt>,
    now: i64,
    up: Option<&Uptime>,
    limit: i64,
) -> Verdict {
    let doubt = doubt.filter(|d| d.time <= now);
    if let Some(ran) = ran.map(|ran| ran.time).filter(|ran| now < *ran) {
        return match doubt.filter(|d| d.ran == ran) {
            Some(before) if now.saturating_sub(before.time) >= SETTLED => Verdict::Believed,
            before => {
                let (time, times) = (now, 0);
                Verdict::Behind(before.unwrap_or(Doubt { time, ran, times }))
            }
        };
    }
    let is_ahead = |ran: &&Ran| now.saturating_sub(ran.time).saturating_sub(ran.passed(up)) > limit;
    let Some(ran) = ran.filter(is_ahead).map(|ran| ran.time) else {
        return Verdict::Believed;
    };
    let doubted = |times| {
        let time = now;
        Verdict::Doubted(Doubt { time, ran, times })
    };
    let Some(before) = doubt.filter(|d| d.ran == ran && d.time >= ran) else {
        return doubted(1);
    };
    match now.saturating_sub(before.time) {
        // Its time stays: many runs a day do not put it off.
        since if since < SETTLED => Verdict::Doubted(before),
        since if since <= limit || before.times >= DOUBTS => Verdict::Believed,
        _ => doubted(before.times + 1),
    }
}

impl Doubt {
    /// As it is noted.
    pub fn print(&self) -> String {
        format!("{} {} {}", self.time, self.ran, self.times)
    }

    /// What [`print`](Doubt::print) made; `None` for anything else.
    pub fn parse(text: &str) -> Option<Doubt> {
        let mut words = text.split(' ');
        Some(Doubt {
            time: words.next()?.parse().ok()?,
            ran: words.next()?.parse().ok()?,
            times: words.next()?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;
    const LIMIT: i64 = LEAST;

    /// The times at which runs are believed, of runs at these times.
    fn believed(times: &[i64]) -> Vec<i64> {
        let (mut ran, mut doubt) = (None, None);
        let mut out = Vec::new();
        for &now in times {
            match judge(ran.as_ref(), doubt, now, None, LIMIT) {
                Verdict::Believed => {
                    out.push(now);
                    ran = Some(Ran {
                        time: now,
                        up: None,
                    });
                }
                Verdict::Doubted(new) => {
                    assert_eq!(Doubt::parse(&new.print()), Some(new));
                    doubt = Some(new);
                }
                Verdict::Behind(new) => {
                    out.push(now);
                    doubt = Some(new);
                }
            }
        }
        out
    }

    #[test]
    fn a_night_that_is_late_or_left_out_is_no_reason() {
        let nights = [0, DAY + 3600, 2 * DAY, 5 * DAY, 5 * DAY + 60];
        assert_eq!(believed(&nights), nights);
        // Put back, too; and one bad night says nothing of the next.
        assert_eq!(
            believed(&[50 * DAY, DAY, 51 * DAY]),
            [50 * DAY, DAY, 51 * DAY]
        );
        let again = [50 * DAY, DAY, DAY + 60, 51 * DAY, 99 * DAY];
        assert_eq!(believed(&again), again[..4]);
        // After two it is the clock.
        assert_eq!(
            believed(&[50 * DAY, DAY, 2 * DAY, 51 * DAY]),
            [50 * DAY, DAY, 2 * DAY]
        );
        assert_eq!(believed(&[9 * DAY, DAY, 2 * DAY]), [9 * DAY, DAY, 2 * DAY]);
    }

    #[test]
    fn what_is_doubted_once_is_believed_the_next_night() {
        let t = 100 * DAY;
        assert_eq!(believed(&[0, t, t + DAY]), [0, t + DAY]);
        // Not sooner, and many runs in between do not put it off.
        let hours: Vec<i64> = (0..=12).map(|h| t + h * 3600).collect();
        assert_eq!(believed(&[&[0], &hours[..]].concat()), [0, t + 12 * 3600]);
        assert_eq!(
            believed(&[0, t, t + SETTLED - 1, t + SETTLED]),
            [0, t + SETTLED]
        );
    }

    #[test]
    fn a_clock_that_is_put_right_is_right() {
        let (wrong, next) = (1000 * DAY, 1000 * DAY + DAY);
        assert_eq!(believed(&[0, wrong, DAY, 2 * DAY]), [0, DAY, 2 * DAY]);
        // What was doubted before that says nothing for a later jump to the same time.
        assert_eq!(believed(&[0, wrong, DAY, next]), [0, DAY]);
        // It jumped back, but not to where it should be.
        let back = 500 * DAY;
        assert_eq!(believed(&[0, wrong, back, back + DAY]), [0, back + DAY]);
    }

    #[test]
    fn a_second_jump_is_doubted_and_a_third_is_no_jump() {
        assert_eq!(
            believed(&[0, 100 * DAY, 200 * DAY, 201 * DAY]),
            [0, 201 * DAY]
        );
        let weeks: Vec<i64> = (0..8).map(|n| n * 7 * DAY).collect();
        assert_eq!(believed(&weeks), [0, 21 * DAY, 42 * DAY]);
    }

    #[test]
    fn time_for_which_the_machine_was_up_has_passed() {
        let up = |boot: &str, days: i64| Uptime {
            boot: boot.into(),
            secs: days * DAY,
        };
        let ran = Ran {
            time: 100 * DAY,
            up: Some(up("a", 50)),
        };
        assert_eq!(Ran::parse(&ran.print()), Some(ran.clone()));
        let old = Ran { up: None, ..ran };
        assert_eq!(Ran::parse("8640000"), Some(old.clone()));
        assert_eq!(Ran::parse("8640000 0 - -"), Some(old.clone()));
        assert_eq!((Ran::parse(""), Ran::parse("x a 1")), (None, None));
        let is_believed = |ran: &Ran, days: i64, now: Option<Uptime>| {
            let verdict = judge(Some(ran), None, days * DAY, now.as_ref(), LIMIT);
            verdict == Verdict::Believed
        };
        // A week has passed, by the kernel as by the clock.
        assert!(is_believed(&ran, 107, Some(up("a", 57))));
        // It was up for long, but not since that run.
        assert!(!is_believed(&ran, 107, Some(up("a", 50))));
        assert!(!is_believed(&ran, 157, Some(up("a", 57))));
        // Started anew: what it was up since then has passed, what it was before is not known.
        assert!(is_believed(&ran, 107, Some(up("b", 4))));
        assert!(!is_believed(&ran, 107, Some(up("b", 3))));
        // Nothing is known of one of the two.
        assert!(!is_believed(&ran, 107, None));
        assert!(!is_believed(&old, 107, Some(up("a", 57))));
        // A count that went back says nothing.
        assert!(!is_believed(&ran, 107, Some(up("a", 10))));
        assert!(is_believed(&ran, 103, Some(up("a", 10))));
    }

    #[test]
    fn the_limit_is_half_of_what_is_kept() {
        assert_eq!(limit(None), 3 * DAY);
        assert_eq!(limit(Some(1)), 3 * DAY);
        assert_eq!(limit(Some(30 * DAY)), 15 * DAY);
        let ends = [i64::MIN, i64::MAX];
        for (ran, now) in ends.iter().flat_map(|a| ends.map(|b| (*a, b))) {
            let doubt = Doubt {
                time: now.saturating_sub(1),
                ran,
                times: u32::MAX,
            };
            for secs in ends {
                let up = |secs| {
                    let boot = "a".to_owned();
                    Some(Uptime { boot, secs })
                };
                let (time, then) = (ran, up(-secs.max(-i64::MAX)));
                let ran = Ran { time, up: then };
                judge(Some(&ran), Some(doubt), now, up(secs).as_ref(), LIMIT);
            }
        }
        for bad in ["", "1", "1 2", "1 2 x"] {
            assert_eq!(Doubt::parse(bad), None, "{bad}");
        }
    }
}
