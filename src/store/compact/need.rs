//! What of a backup is still needed, and what has outlived its retention.
//!
//! A message is needed while a record refers to it that is alive, or that went less than the
//! mailbox's retention ago; a record in a deleted mailbox went with it, if not before. The time
//! that counts is that of our own receipt, and if the clock was behind then, the later one that was
//! printed. Reads all records of the index.

use crate::cyrus::config::retention::UserRetention;
use crate::cyrus::guid::Guid;
use crate::cyrus::mboxname::{MboxName, Namespace};
use crate::error::Result;
use crate::store::index::{Index, Late, MailboxRow};
use crate::util::time::Timestamp;
use std::collections::{HashMap, HashSet};

/// Below so many messages there is nothing to brake for.
const BRAKE_LEAST: u64 = 5;

/// How long what is deleted is kept, and the present.
#[derive(Clone, Copy)]
pub struct Times<'a> {
    /// The rules for this backup.
    pub retention: &'a UserRetention,
    /// How mailbox names are read.
    pub namespace: &'a Namespace,
    /// The present.
    pub now: Timestamp,
}

impl Times<'_> {
    /// What went at or before this is expired, for a mailbox; `None`: nothing ever is.
    pub fn edge_of(&self, mailbox: &str) -> Option<i64> {
        let kept = match MboxName::parse(mailbox, self.namespace) {
            Ok(name) => self.retention.mailbox(&name),
            Err(_) => self.retention.general(),
        };
        kept.map(|secs| self.now.0.saturating_sub(secs))
    }

    /// The same for what belongs to no mailbox.
    pub fn edge(&self) -> Option<i64> {
        let kept = self.retention.general();
        kept.map(|secs| self.now.0.saturating_sub(secs))
    }

    /// Before this nobody asks how anything was.
    pub fn history_edge(&self) -> Option<i64> {
        let kept = self.retention.longest();
        kept.map(|secs| self.now.0.saturating_sub(secs))
    }
}

/// When a record went, if it did.
pub fn went(expunged: Option<i64>, deleted: Option<i64>) -> Option<i64> {
    match (expunged, deleted) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Whether what went then is expired at an edge.
pub fn expired(went: Option<i64>, edge: Option<i64>) -> bool {
    matches!((went, edge), (Some(went), Some(edge)) if went <= edge)
}

/// What is needed and what is not.
#[derive(Debug, Default)]
pub struct Need {
    /// Messages whose bodies are needed.
    pub messages: HashSet<Guid>,
    /// Records that have expired: of which message, and when they went.
    pub expired_records: Vec<(Guid, i64)>,
    /// When the latest of them went.
    pub last_expired: Option<i64>,
    /// When the first of them went.
    pub first_expired: Option<i64>,
    /// When mailboxes went that have expired.
    pub expired_mailboxes: Vec<i64>,
    /// When scripts, subscriptions, limits and annotations went that have.
    pub expired_others: Vec<i64>,
    /// When the next thing will expire that is not yet.
    pub next: Option<i64>,
    /// What the brake looks at.
    pub loss: Loss,
}

/// Messages that were kept for long and went inside one retention period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Messages that are nowhere alive any more.
    pub lost: u64,
    /// These, and those alive.
    pub of: u64,
    /// Of the lost, those that would be dropped now.
    pub now: u64,
}

/// What goes within so many seconds went at once.
const AT_ONCE: i64 = 86_400;

impl Loss {
    /// Of all that lives or went, or of what was there before a day or two on which more of it went: new
    /// mail in the place of old does not make up for it. What was there before is asked twice: of
    /// the backup, and of the mail itself, which may be older than its first sync.
    fn of(lives: &[Life]) -> Loss {
        let count = |since: fn(&Life) -> i64, from: i64, to: i64| {
            let mut loss = Loss::default();
            for life in lives.iter().filter(|l| since(l) < from || from == i64::MIN) {
                match life.went {
                    Some(went) if went < from => {}
                    went => {
                        loss.of += 1;
                        if went.is_some_and(|t| t < to) {
                            loss.lost += 1;
                            loss.now += u64::from(life.dropped);
                        }
                    }
                }
            }
            loss
        };
        let worse = |a: &Loss, b: &Loss| {
            a.now > 0 && a.of >= BRAKE_LEAST && (b.now == 0 || a.lost * b.of > b.lost * a.of)
        };
        let since: [fn(&Life) -> i64; 2] = [|life| life.came, |life| life.born];
        let mut worst = count(since[0], i64::MIN, i64::MAX);
        // Nothing is braked for days of which nothing would be dropped now.
        let dropped = lives.iter().filter(|l| l.dropped);
        let mut days: Vec<i64> = dropped
            .filter_map(|l| Some(l.went?.div_euclid(AT_ONCE)))
            .collect();
        days.sort_unstable();
        days.dedup();
        for day in days {
            let from = day * AT_ONCE;
            for from in [from - AT_ONCE, from] {
                for since in since {
                    let one = count(since, from, from + 2 * AT_ONCE);
                    if worse(&one, &worst) {
                        worst = one;
                    }
                }
            }
        }
        worst
    }

    /// Whether more than `percent` of the messages went; 0 never brakes, and so does 100.
    pub fn brakes(&self, percent: u32) -> bool {
        percent > 0
            && self.now > 0
            && self.of >= BRAKE_LEAST
            && self.lost * 100 > self.of * u64::from(percent)
    }
}

/// The fate of one message, over all its records.
struct Fate {
    alive: bool,
    /// When it first came.
    arrived: i64,
    /// How old it was then: by its own date, if that is earlier.
    born: i64,
    /// The last of its records to go: when, whether it was settled, whether it is expired.
    went: i64,
    settled: bool,
    kept: bool,
}

impl Fate {
    fn new() -> Fate {
        Fate {
            alive: false,
            arrived: i64::MAX,
            born: i64::MAX,
            went: i64::MIN,
            settled: false,
            kept: false,
        }
    }
}

/// A message that counts for the brake: when it came here, since when there is such a message at all,
/// when it went, whether it would be dropped now.
struct Life {
    came: i64,
    born: i64,
    went: Option<i64>,
    dropped: bool,
}

impl Life {
    fn new(fate: &Fate, went: Option<i64>) -> Life {
        Life {
            came: fate.arrived,
            born: fate.born,
            went,
            dropped: went.is_some() && !fate.kept,
        }
    }
}

/// Looks through an index.
pub fn survey(index: &Index, times: &Times<'_>) -> Result<Need> {
    let mut need = Need::default();
    let mut fates: HashMap<Guid, Fate> = HashMap::new();
    let late = index.lates()?;
    for mailbox in index.mailboxes(true)? {
        let edge = times.edge_of(&mailbox.mboxname);
        let mut look = Look {
            edge,
            now: times.now,
            late: &late,
            need: &mut need,
            fates: &mut fates,
        };
        look.mailbox(index, &mailbox)?;
    }
    let mut lives = Vec::new();
    for (guid, fate) in fates {
        if fate.alive {
            lives.push(Life::new(&fate, None));
        } else if fate.settled && index.body(guid)?.is_some() {
            // What an earlier run has dropped is not lost now, though its record be kept.
            lives.push(Life::new(&fate, Some(fate.went)));
        }
        if fate.alive || fate.kept {
            need.messages.insert(guid);
        }
    }
    need.loss = Loss::of(&lives);
    others(index, times, &late, &mut need)?;
    Ok(need)
}

/// One mailbox being looked at.
struct Look<'a> {
    edge: Option<i64>,
    now: Timestamp,
    late: &'a Late,
    need: &'a mut Need,
    fates: &'a mut HashMap<Guid, Fate>,
}

impl Look<'_> {
    fn mailbox(&mut self, index: &Index, mailbox: &MailboxRow) -> Result<()> {
        let (edge, now) = (self.edge, self.now);
        let deleted = self.late.at(mailbox.deleted);
        match deleted {
            Some(when) if expired(deleted, edge) => {
                self.need.expired_mailboxes.push(when);
                self.need.note(deleted);
            }
            _ => self.need.later(deleted, edge, now),
        }
        // Mail that went sooner than that after it came is nobody's archive: fetched and deleted, or
        // thrown away in time. The brake does not count it.
        let settled = edge.map_or(i64::MAX, |edge| now.0 - edge);
        index.keep_rows(mailbox.id, &mut |row| {
            let fate = self.fates.entry(row.guid).or_insert_with(Fate::new);
            let born = row.arrived.min(row.internaldate);
            fate.arrived = fate.arrived.min(row.arrived);
            fate.born = fate.born.min(born);
            let Some(when) = self.late.at(went(row.expunged, mailbox.deleted)) else {
                fate.alive = true;
                return;
            };
            if when >= fate.went {
                fate.went = when;
                fate.settled = when - born >= settled;
            }
            if expired(Some(when), edge) {
                self.need.expired_records.push((row.guid, when));
                self.need.note(Some(when));
            } else {
                fate.kept = true;
                self.need.later(Some(when), edge, now);
            }
        })
    }
}

fn others(index: &Index, times: &Times<'_>, late: &Late, need: &mut Need) -> Result<()> {
    let edge = times.edge();
    let ended = index
        .lasting_subscriptions()?
        .into_iter()
        .chain(index.lasting_quotas()?)
        .chain(index.lasting_scripts()?)
        .chain(index.lasting_annotations()?.into_iter().map(|(_, _, l)| l));
    for ended in ended.filter_map(|l| late.at(l.ended)) {
        if expired(Some(ended), edge) {
            need.expired_others.push(ended);
            need.note(Some(ended));
        } else {
            need.later(Some(ended), edge, times.now);
        }
    }
    Ok(())
}

impl Need {
    /// Something that went then has expired.
    fn note(&mut self, when: Option<i64>) {
        self.last_expired = self.last_expired.max(when);
        self.first_expired = match (self.first_expired, when) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    /// Something that went then will expire.
    fn later(&mut self, when: Option<i64>, edge: Option<i64>, now: Timestamp) {
        if let (Some(when), Some(edge)) = (when, edge) {
            let due = when.saturating_add(now.0.saturating_sub(edge));
            self.next = Some(self.next.map_or(due, |next| next.min(due)));
        }
    }

    /// How many records, mailboxes and others a run drops. Those that are stated anew no more are
    /// what went up to `stated`; and of a record whose message is dropped nothing is left but that
    /// there was one, so it counts then, and not once more.
    pub fn dropped(&self, stated: Option<i64>, body: &dyn Fn(&Guid) -> Body) -> [u64; 3] {
        let goes = |when: &i64| stated.is_some_and(|stated| *when <= stated);
        let records = self.expired_records.iter();
        let records = records.filter(|(guid, when)| match body(guid) {
            Body::Goes => true,
            Body::Stays => goes(when),
            Body::Gone => false,
        });
        let count = |whens: &[i64]| whens.iter().filter(|when| goes(when)).count() as u64;
        [
            records.count() as u64,
            count(&self.expired_mailboxes),
            count(&self.expired_others),
        ]
    }
}

/// What becomes of the body of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// It is dropped by this run.
    Goes,
    /// It is copied.
    Stays,
    /// An earlier run has dropped it, or it never came.
    Gone,
}
