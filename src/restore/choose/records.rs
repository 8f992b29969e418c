//! From mailboxes to their messages: which records are wanted.
//!
//! A message that was expunged in several mailboxes, as one that was moved to the trash which was then
//! emptied, is wanted once: where it was last.

use super::super::Item;
use super::chooser::{Chooser, Source};
use super::{Part, Which};
use crate::cyrus::guid::Guid;
use crate::cyrus::sync::Record;
use crate::error::Result;
use crate::store::index::RecordRow;
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

/// Which message of what was deleted stands for all of its kind: when it went, when it came, mailbox,
/// epoch and UID.
type Death = (i64, i64, i64, i64, u32);

/// What has to be known of all mailboxes before one is looked at: for what was deleted.
#[derive(Default)]
pub(super) struct Known {
    /// Messages that live somewhere.
    alive: HashSet<Guid>,
    /// Where each of the others went last.
    last: HashMap<Guid, Death>,
}

impl Chooser<'_> {
    /// Looks through the mailboxes that are wanted.
    pub(super) fn known(&self, taken: &[Source]) -> Result<Known> {
        let mut known = Known::default();
        let w = self.wanted;
        if w.which != Which::Deleted && !(w.names_messages() && w.which_named == Which::Deleted) {
            return Ok(known);
        }
        let sources = self.sources(false)?;
        // What lives only as a copy that was brought back is not where it was.
        for s in sources.iter().filter(|s| s.deleted.is_none() && !s.is_copy) {
            let epoch = Some(s.row.epoch);
            self.index.records(s.row.id, epoch, false, &mut |r| {
                known.alive.insert(r.record.guid);
                Ok(())
            })?;
        }
        let mut last: HashMap<Guid, Death> = HashMap::new();
        for s in taken {
            self.index.records(s.row.id, None, true, &mut |row| {
                if self.which(s, &row.record.guid) == Some(Which::Deleted) {
                    if let Some(time) = self.death(s, &row, &known) {
                        let death = key(time, &row);
                        let best = last.entry(row.record.guid).or_insert(death);
                        *best = death.max(*best);
                    }
                }
                Ok(())
            })?;
        }
        known.last = last;
        Ok(known)
    }

    /// Reads a folder's messages.
    pub(super) fn fill(&self, part: &mut Part, known: &Known) -> Result<()> {
        let folder = &mut part.folder;
        folder.bodiless = 0;
        let is_several = part.sources.len() > 1;
        let mut seen = HashSet::new();
        // Of several mailboxes of one name the one that lives stands for all, or the latest.
        let mut sources: Vec<&Source> = part.sources.iter().collect();
        sources.sort_by_key(|s| Reverse((s.deleted.is_none(), s.deleted, s.row.id)));
        for source in sources {
            let mut chosen = Chosen::default();
            self.records(source, known, &mut chosen)?;
            if is_several {
                chosen.items.retain(|i| !seen.contains(&i.record.guid));
                seen.extend(chosen.items.iter().map(|i| i.record.guid));
            }
            folder.items.append(&mut chosen.items);
            folder.tombstones.append(&mut chosen.tombstones);
            folder.bodiless += chosen.bodiless;
        }
        folder.items.sort_by_key(|i| i.record.uid);
        Ok(())
    }

    /// What of a message is wanted in a mailbox, if anything.
    fn which(&self, s: &Source, guid: &Guid) -> Option<Which> {
        let w = self.wanted;
        match self.is_named(s, guid) {
            true => Some(w.which_named),
            false => s.whole.then_some(w.which),
        }
    }

    fn is_named(&self, s: &Source, guid: &Guid) -> bool {
        let w = self.wanted;
        let of_row = w.rows.get(&s.row.uniqueid);
        of_row.is_some_and(|set| set.contains(guid))
            || (w.guids.as_ref().is_some_and(|set| set.contains(guid)) && !self.leaves_out(s))
    }

    fn within(&self, t: i64) -> bool {
        let w = self.wanted;
        w.since.is_none_or(|x| t >= x) && w.until.is_none_or(|x| t <= x)
    }

    /// When a message was deleted, if it was and that is wanted.
    fn death(&self, s: &Source, row: &RecordRow, known: &Known) -> Option<i64> {
        let guid = &row.record.guid;
        let time = row.expunged.or(s.deleted)?;
        // Who names messages means them.
        let alone = s.deleted.is_none() || row.expunged.is_some();
        let moved = alone && known.alive.contains(guid) && !self.is_named(s, guid);
        (self.within(time) && !moved).then_some(time)
    }

    fn records(&self, s: &Source, known: &Known, to: &mut Chosen) -> Result<()> {
        let w = self.wanted;
        let whole = s.whole.then_some(w.which);
        let named = w.names_messages().then_some(w.which_named);
        let (epoch, with_expunged) = match whole.into_iter().chain(named).all(|w| w == Which::Alive)
        {
            true => (Some(s.row.epoch), w.keep_uids),
            false => (None, true),
        };
        // Ever: what lives here, and where each message that does not was last.
        let mut here = HashSet::new();
        let mut dead: HashMap<Guid, usize> = HashMap::new();
        self.index
            .records(s.row.id, epoch, with_expunged, &mut |row| {
                let guid = row.record.guid;
                let Some(which) = self.which(s, &guid) else {
                    return Ok(());
                };
                let lives = row.expunged.is_none();
                let date = row.record.internaldate as i64;
                match which {
                    Which::Alive if row.epoch != s.row.epoch || !s.current => return Ok(()),
                    Which::Alive if !lives => {
                        if w.keep_uids && !row.gone {
                            let mut record = row.record;
                            record.expunged = true;
                            to.tombstones.push(record);
                        }
                        return Ok(());
                    }
                    Which::Alive | Which::Ever if !self.within(date) => return Ok(()),
                    Which::Alive => {}
                    Which::Ever if lives => _ = here.insert(guid),
                    Which::Ever => {
                        // A later one takes its place.
                        if let Some(at) = dead.insert(guid, to.items.len()) {
                            to.doubled.push(at);
                        }
                    }
                    Which::Deleted => {
                        let Some(time) = self.death(s, &row, known) else {
                            return Ok(());
                        };
                        // What lived in a mailbox that was deleted belongs to it.
                        if !lives && known.last.get(&guid) != Some(&key(time, &row)) {
                            return Ok(());
                        }
                    }
                }
                if row.missing && !lives {
                    to.bodiless += 1;
                    dead.remove(&guid);
                    return Ok(());
                }
                to.items.push(item(row));
                Ok(())
            })?;
        for (guid, at) in dead {
            if here.contains(&guid) {
                to.doubled.push(at);
            }
        }
        to.settle();
        Ok(())
    }
}

fn key(time: i64, row: &RecordRow) -> Death {
    let r = &row.record;
    (time, row.arrived, row.mailbox_id, row.epoch, r.uid)
}

/// What was chosen of one mailbox.
#[derive(Default)]
struct Chosen {
    items: Vec<Item>,
    tombstones: Vec<Record>,
    bodiless: u64,
    /// Items that another one stands for.
    doubled: Vec<usize>,
}

impl Chosen {
    fn settle(&mut self) {
        let doubled: HashSet<usize> = self.doubled.drain(..).collect();
        let mut at = 0;
        self.items.retain(|_| {
            at += 1;
            !doubled.contains(&(at - 1))
        });
    }
}

fn item(row: RecordRow) -> Item {
    let mut record = row.record;
    if record.expunged {
        record.expunged = false;
        record.flags.retain(|f| {
            f.as_bytes()
                .is_none_or(|b| !b.eq_ignore_ascii_case(b"\\Deleted"))
        });
    }
    Item { record }
}
