//! When each backup was last looked through by compaction, and how that ended:
//! `backups.db.compacted`, notes as in `store::notes`. By it a backup in which nothing came and nothing
//! expired since costs one look at its size, those come first that were not looked at for longest,
//! and what the brake holds is told without opening anything.

use super::clock::{Doubt, Ran, Uptime, Verdict, judge};
use super::notes::Notes;
use crate::error::Result;
use std::collections::HashMap;
use std::path::Path;

/// Where the last run that removed by the clock is remembered; no owner is called so.
const RAN: &str = "%RAN";
/// Where it is that one was refused.
const DOUBT: &str = "%CLOCK";

/// What compaction found at its last look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// When it was tried last, with or without success, in seconds since 1970.
    pub tried: i64,
    /// When it was last looked through.
    pub time: Option<i64>,
    /// Bytes of the log then.
    pub bytes: u64,
    /// When the next thing will expire; `None`: nothing will.
    pub next: Option<i64>,
    /// Messages the brake held back, and of how many.
    pub held: Option<(u64, u64)>,
    /// By which rules and sizes, as [`means`] has them; `None`: the last try failed, so it is to be
    /// looked at in any case.
    pub means: Option<u32>,
    /// The log's generation then; empty if it was never looked through.
    pub generation: String,
}

/// A number for the rules and sizes by which a backup was looked at; with others it has to be looked at
/// again.
pub fn means(text: &str) -> u32 {
    crc32fast::hash(text.as_bytes())
}

impl Seen {
    /// Whether there is nothing to do for a log of so many bytes.
    pub fn is_still(&self, bytes: u64, now: i64, means: u32) -> bool {
        self.bytes == bytes
            && self.means == Some(means)
            && self.held.is_none()
            && self.time.is_some_and(|time| time <= now)
            && self.next.is_none_or(|next| next > now)
    }

    /// What is remembered after a try that failed.
    pub fn failed(&self, now: i64) -> Seen {
        Seen {
            tried: now,
            means: None,
            ..self.clone()
        }
    }

    /// This, if it is about a log of that generation and not about one that had the same owner before.
    pub fn of(&self, generation: &str) -> Option<&Seen> {
        (self.time.is_some() && self.generation == generation).then_some(self)
    }

    fn print(&self) -> String {
        let number = |n: Option<i64>| n.map_or("-".into(), |n| n.to_string());
        let held = self.held.map_or("-".into(), |(n, of)| format!("{n}/{of}"));
        let means = self.means.map_or("-".into(), |m| format!("{m:08x}"));
        let (time, next) = (number(self.time), number(self.next));
        let Seen {
            tried,
            bytes,
            generation,
            ..
        } = self;
        format!("{tried} {time} {bytes} {next} {held} {means} {generation}")
    }

    fn parse(text: &str) -> Option<Seen> {
        let mut words = text.split(' ');
        let mut word = || words.next();
        Some(Seen {
            tried: word()?.parse().ok()?,
            time: word()?.parse().ok(),
            bytes: word()?.parse().ok()?,
            next: word()?.parse().ok(),
            held: word()?
                .split_once('/')
                .and_then(|(n, of)| Some((n.parse().ok()?, of.parse().ok()?))),
            means: u32::from_str_radix(word()?, 16).ok(),
            generation: word()?.to_owned(),
        })
    }
}

/// The looks of one server; threads may share it.
#[derive(Debug)]
pub struct Compacted(Notes);

impl Compacted {
    /// Those that belong to the catalogue `backups_db`; nothing is opened yet.
    pub fn beside(backups_db: &Path) -> Compacted {
        Compacted(Notes::beside(backups_db, "compacted"))
    }

    /// All of them, by key.
    pub fn all(&self) -> Result<HashMap<String, Seen>> {
        let notes = self.0.all()?.into_iter();
        Ok(notes
            .filter_map(|(key, text)| Some((key, Seen::parse(&text)?)))
            .collect())
    }

    /// The last run that removed by the clock.
    pub fn ran(&self) -> Result<Option<Ran>> {
        Ok(self.0.get(RAN)?.and_then(|text| Ran::parse(&text)))
    }

    /// Judges the clock by the last run.
    pub fn judge(&self, now: i64, up: Option<&Uptime>, limit: i64) -> Result<Verdict> {
        let ran = self.ran()?;
        let doubt = self.0.get(DOUBT)?.and_then(|text| Doubt::parse(&text));
        Ok(judge(ran.as_ref(), doubt, now, up, limit))
    }

    /// Remembers a run whose clock is believed.
    pub fn believe(&self, ran: &Ran) -> Result<()> {
        self.0.set(RAN, &ran.print())
    }

    /// Remembers one that was refused.
    pub fn doubt(&self, doubt: &Doubt) -> Result<()> {
        self.0.set(DOUBT, &doubt.print())
    }

    /// Remembers one.
    pub fn set(&self, key: &str, seen: &Seen) -> Result<()> {
        self.0.set(key, &seen.print())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_reads_back() {
        let seen = Seen {
            tried: 6,
            time: Some(5),
            bytes: 7,
            next: None,
            held: Some((3, 4)),
            means: Some(1),
            generation: "b084f9da".into(),
        };
        assert_eq!(Seen::parse(&seen.print()), Some(seen.clone()));
        let still = Seen {
            next: Some(9),
            held: None,
            ..seen
        };
        assert_eq!(Seen::parse(&still.print()), Some(still.clone()));
        assert!(still.is_still(7, 8, 1) && !still.is_still(7, 9, 1));
        assert!(!still.is_still(8, 8, 1) && !still.is_still(7, 4, 1));
        // By other rules, or after a try that failed.
        assert!(!still.is_still(7, 8, 2));
        let failed = still.failed(10);
        assert_eq!(Seen::parse(&failed.print()), Some(failed.clone()));
        assert!(!failed.is_still(7, 8, 1) && failed.tried == 10 && failed.time == Some(5));
        // About another log of that owner.
        assert!(still.of("b084f9da").is_some() && still.of("").is_none());
        let never = Seen::default().failed(3);
        assert_eq!(Seen::parse(&never.print()), Some(never.clone()));
        assert!(never.of("").is_none() && !never.is_still(0, 8, 0));
        for bad in ["5 7", "5 7 - -", "%"] {
            assert_eq!(Seen::parse(bad), None, "{bad}");
        }
    }
}
