//! When each backup was last looked through by compaction, and how that ended:
//! `backups.db.compacted`, notes as in `store::notes`. By it a backup in which nothing came and nothing
//! expired since costs one look at its size, those come first that were not looked at for longest,
//! and what the brake holds is told without opening anything.

use super::clock::{Doubt, Verdict, judge};
use super::notes::Notes;
use crate::error::Result;
use std::collections::HashMap;
use std::path::Path;

/// Where the last run that removed by the clock is remembered; no owner is called so.
const RAN: &str = "%RAN";
/// Where it is that one was refused.
const DOUBT: &str = "%CLOCK";

/// What compaction found at its last look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When, in seconds since 1970.
    pub time: i64,
    /// Bytes of the log then.
    pub bytes: u64,
    /// When the next thing will expire; `None`: nothing will.
    pub next: Option<i64>,
    /// Messages the brake held back, and of how many.
    pub held: Option<(u64, u64)>,
}

impl Seen {
    /// Whether there is nothing to do for a log of so many bytes.
    pub fn is_still(&self, bytes: u64, now: i64) -> bool {
        self.bytes == bytes
            && self.held.is_none()
            && self.time <= now
            && self.next.is_none_or(|next| next > now)
    }

    fn print(&self) -> String {
        let next = self.next.map_or("-".into(), |n| n.to_string());
        let held = self.held.map_or("-".into(), |(n, of)| format!("{n}/{of}"));
        format!("{} {} {next} {held}", self.time, self.bytes)
    }

    fn parse(text: &str) -> Option<Seen> {
        let mut words = text.split(' ');
        let mut word = || words.next();
        Some(Seen {
            time: word()?.parse().ok()?,
            bytes: word()?.parse().ok()?,
            next: word()?.parse().ok(),
            held: word()?
                .split_once('/')
                .and_then(|(n, of)| Some((n.parse().ok()?, of.parse().ok()?))),
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

    /// The last run that removed by the clock, in seconds since 1970.
    pub fn ran(&self) -> Result<Option<i64>> {
        let text = self.0.get(RAN)?;
        Ok(text.and_then(|t| t.split(' ').next()?.parse().ok()))
    }

    /// Judges the clock by the last run.
    pub fn judge(&self, now: i64, limit: i64) -> Result<Verdict> {
        let doubt = self.0.get(DOUBT)?.and_then(|text| Doubt::parse(&text));
        Ok(judge(self.ran()?, doubt, now, limit))
    }

    /// Remembers a run whose clock is believed.
    pub fn believe(&self, now: i64) -> Result<()> {
        self.0.set(RAN, &now.to_string())
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
            time: 5,
            bytes: 7,
            next: None,
            held: Some((3, 4)),
        };
        assert_eq!(Seen::parse(&seen.print()), Some(seen.clone()));
        let still = Seen {
            next: Some(9),
            held: None,
            ..seen
        };
        assert_eq!(Seen::parse(&still.print()), Some(still.clone()));
        assert!(still.is_still(7, 8) && !still.is_still(7, 9));
        assert!(!still.is_still(8, 8) && !still.is_still(7, 4));
        assert_eq!(Seen::parse("5 7"), None);
    }
}
