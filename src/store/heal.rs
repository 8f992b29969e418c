//! Gets back what does not read: from the index, from a second copy, or from the sender.
//!
//! What lacks is found by a full verification. Records that a damaged log has lost and the index
//! still knows are written to the log again. Bodies come from other logs, if any are given: each is
//! compared with its GUID, and only those that records of this backup refer to are taken. Mailboxes
//! that are in doubt all the same are marked, so that the sender's next run brings them whole.
//!
//! Nothing of the log is changed but its end; an error leaves it as it was at the last durable
//! point, and the work may be done again. A backup of which everything reads is not written to.
//! Fails with the kinds of `store::backup`; a copy that does not read is passed over.

use super::backup::{Backup, Bodies, resync_line};
use super::doubt::{Loss, Use};
use super::file::LogFile;
use super::index::{self, Index, MailboxRow};
use super::line::{Line, needs_literal};
use super::reader::{Part, Reader, Stale, bodies, readable};
use super::reindex::{self, From, Trailing};
use super::rescan::walk_copies;
use super::spool::Spool;
use super::verify::{examine, scratch_name};
use crate::cyrus::dlist::{Form, Value, print_to_vec};
use crate::cyrus::guid::Guid;
use crate::cyrus::mboxname::Namespace;
use crate::cyrus::sync::MailboxHead;
use crate::error::{Error, Kind, Result};
use crate::util::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A body and the records that refer to it.
pub type Lost = (Guid, Vec<Use>);

/// What was done.
#[derive(Debug, Default)]
pub struct Healed {
    /// Findings of the verification.
    pub findings: usize,
    /// Records that were written to the log again.
    pub restated: u64,
    /// Bodies that only the index could still find, written to the log again.
    pub saved: Vec<Lost>,
    /// Bodies that came back from a copy.
    pub returned: Vec<Lost>,
    /// Bodies that the sender still has: its next run brings them.
    pub awaited: Vec<Lost>,
    /// Bodies that were erased here: they are not looked for.
    pub erased: Vec<Lost>,
    /// Bodies that are nowhere any more, as far as anybody here knows.
    pub nowhere: Vec<Lost>,
    /// Mailboxes that were marked, by internal name, and why.
    pub marked: Vec<(String, String)>,
}

/// The logs that may have what `backup` lacks: the file `from`, or all logs of the same owner below
/// the folder `from`, copies of this very log first. What could not be looked at comes second.
pub fn copies(from: &Path, backup: &Backup, ns: &Namespace) -> Result<(Vec<PathBuf>, Vec<Error>)> {
    let id = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino()));
    let meta = fs::metadata(from).map_err(|e| Error::io("cannot open", e).at(from))?;
    if !meta.is_dir() {
        return Ok((vec![from.to_owned()], Vec::new()));
    }
    let own = id(backup.path()).ok();
    let generation = backup.index().meta_text("generation")?;
    let key = backup.index().meta_text("key")?;
    let key = key.unwrap_or_else(|| backup.key().to_owned());
    let mut walked = walk_copies(from, ns);
    let logs = &mut walked.logs;
    logs.retain(|log| log.identity.key.as_ref() == Some(&key) && Some(log.id) != own);
    logs.sort_by_key(|log| log.identity.generation != generation);
    let paths = walked.logs.into_iter().map(|log| log.path);
    Ok((paths.collect(), walked.failed))
}

/// Heals a backup. What was `erased` is taken from no copy. `scratch` is for files that are thrown
/// away; `budget` bounds one MAILBOX line.
pub fn heal(
    backup: &mut Backup,
    copies: &[PathBuf],
    erased: &HashSet<Guid>,
    scratch: &Path,
    budget: u64,
    now: Timestamp,
) -> Result<Healed> {
    let mut healer = Healer {
        backup,
        scratch,
        budget,
        now,
    };
    let done = healer.run(copies, erased);
    if done.is_err() {
        healer.backup.abort();
    }
    done
}

struct Healer<'a> {
    backup: &'a mut Backup,
    scratch: &'a Path,
    budget: u64,
    now: Timestamp,
}

/// A MAILBOX line's value.
fn stated(head: &MailboxHead, records: Vec<Value>) -> Value {
    let mut keys = head.keys.clone();
    keys.push((b"RECORD".to_vec(), Value::List(records)));
    Value::Kv(keys)
}

/// What an index has of a mailbox, with some of its records; `None` if it is nothing with content.
pub(super) fn statement(
    index: &Index,
    uniqueid: &str,
    uids: &[u32],
) -> Result<Option<(MailboxRow, Value)>> {
    let Some(row) = index.mailbox(uniqueid)?.filter(|row| !row.intermediate) else {
        return Ok(None);
    };
    let mut records = Vec::new();
    for uid in uids {
        if let Some(row) = index.record(row.id, row.epoch, *uid)? {
            records.push(row.record.to_value());
        }
    }
    let value = stated(&row.head, records);
    Ok(Some((row, value)))
}

/// Writes such a statement to a log and makes it durable. A crash behind it leaves a deleted mailbox
/// alive, which the sender's next run takes away.
pub(super) fn state_again(
    backup: &mut Backup,
    scratch: &Path,
    budget: u64,
    now: Timestamp,
    row: &MailboxRow,
    value: &Value,
) -> Result<()> {
    let heir = match row.deleted {
        Some(_) => backup.index().mailbox_by_name(&row.mboxname)?,
        None => None,
    };
    let mut spool = Spool::new(scratch, budget);
    spool.append(&print_to_vec(value, Form::Log))?;
    let literal = needs_literal(value);
    // Records of older epochs are not stated again, but their bodies are this mailbox's, too.
    backup.mailbox_and(Bodies::All, &[], &spool, literal, now)?;
    backup.commit()?;
    let after = match (row.deleted, heir) {
        (None, _) => return Ok(()),
        // The name is another's by now, who takes it back.
        (Some(_), Some(heir)) => Line::new("MAILBOX", &stated(&heir.head, Vec::new())),
        (Some(_), None) => Line::new("UNMAILBOX", &Value::text(&row.mboxname)),
    };
    backup.append(&[after], now)
}

impl Healer<'_> {
    fn run(&mut self, copies: &[PathBuf], erased: &HashSet<Guid>) -> Result<Healed> {
        // What the old tools missed is asked for when the log is ours.
        let adopted = self.backup.adopt(self.now)?;
        self.backup.seal()?;
        let proof = examine(self.backup.path(), self.scratch)?;
        let loss = match proof.loss {
            Some(loss) => loss,
            // Nothing was ever written to it.
            None if proof.findings.is_empty() => return Ok(Healed::default()),
            None => {
                let e = Error::new(Kind::NeedsReindex, "what lacks cannot be told");
                return Err(e.at(self.backup.path()));
            }
        };
        let mut out = Healed {
            findings: proof.findings.len(),
            ..Healed::default()
        };
        if proof.damaged {
            out.restated = self.restate_unlogged(&loss)?;
        }
        let mut wanted = BTreeSet::new();
        for guid in loss.bodies.keys() {
            // What came again since it was erased has a body in the index.
            if !erased.contains(guid) || self.backup.index().body(*guid)?.is_some() {
                wanted.insert(*guid);
            }
        }
        let looked_for = wanted.clone();
        let saved = self.save(&loss, &mut wanted)?;
        for copy in copies {
            if wanted.is_empty() {
                break;
            }
            match self.take(copy, &loss, &mut wanted) {
                Err(e) if matches!(e.kind(), Kind::Damaged | Kind::NotFound) => {
                    log::warn!("{e}");
                }
                done => done?,
            }
        }
        self.mark(&loss, &wanted, &mut out)?;
        if adopted {
            let index = self.backup.index();
            for (uniqueid, _, why) in index.marks()? {
                let row = index.mailbox(&uniqueid)?;
                out.marked
                    .push((row.map_or(uniqueid, |row| row.mboxname), why));
            }
        } else if proof.damaged {
            self.mark_more(&mut out)?;
        }
        self.backup.seal()?;
        for (guid, uses) in loss.bodies {
            let comes = |u: &Use| Ok(u.live && self.backup.index().resync(&u.uniqueid)?.is_some());
            let comes: Result<Vec<bool>> = uses.iter().map(comes).collect();
            let is_wanted = wanted.contains(&guid) || !looked_for.contains(&guid);
            let to = match is_wanted {
                false if saved.contains(&guid) => &mut out.saved,
                false => &mut out.returned,
                true if comes?.contains(&true) => &mut out.awaited,
                true if !looked_for.contains(&guid) => &mut out.erased,
                true => &mut out.nowhere,
            };
            to.push((guid, uses));
        }
        Ok(out)
    }

    /// Writes to the log what only the index still knows of.
    fn restate_unlogged(&mut self, loss: &Loss) -> Result<u64> {
        let mut n = 0;
        for doubt in &loss.mailboxes {
            if !doubt.bodies_only && doubt.same_epoch {
                self.restate(&doubt.uniqueid, &doubt.unlogged)?;
                n += doubt.unlogged.len() as u64;
            }
        }
        Ok(n)
    }

    /// Writes again the bodies that still read where the index has them, in lines that do not.
    fn save(&mut self, loss: &Loss, wanted: &mut BTreeSet<Guid>) -> Result<HashSet<Guid>> {
        if wanted.is_empty() {
            return Ok(HashSet::new());
        }
        let reader = Reader::open(self.backup.path(), Stale::Refuse)?;
        let (index, file) = (reader.index(), reader.file());
        let good = readable(index, file, wanted.iter().copied())?;
        if !good.is_empty() {
            self.deliver(index, file, &good, loss)?;
        }
        wanted.retain(|guid| !good.contains(guid));
        Ok(good)
    }

    /// Takes from a copy what it has of the wanted bodies.
    fn take(&mut self, copy: &Path, loss: &Loss, wanted: &mut BTreeSet<Guid>) -> Result<()> {
        let file = File::open(copy).map_err(|e| Error::io("cannot open", e).at(copy))?;
        let len = file
            .metadata()
            .map_err(|e| Error::io("cannot open", e).at(copy))?;
        let name = self.scratch.join(scratch_name("heal"));
        let taken = Index::create_apart(&name).and_then(|index| {
            index.begin()?;
            let from = From {
                member: 0,
                known: None,
            };
            reindex::enter(&file, &index, from, len.len(), Trailing::Keep)?;
            let good = readable(&index, &file, wanted.iter().copied())?;
            if !good.is_empty() {
                self.deliver(&index, &file, &good, loss)?;
            }
            index.rollback();
            Ok(good)
        });
        index::remove(&name)?;
        for guid in taken.map_err(|e| e.at(copy))? {
            wanted.remove(&guid);
        }
        Ok(())
    }

    /// Brings bodies in, mailbox by mailbox: those it refers to, then the mailbox itself.
    fn deliver(
        &mut self,
        index: &Index,
        file: &dyn LogFile,
        good: &HashSet<Guid>,
        loss: &Loss,
    ) -> Result<()> {
        let mut users: BTreeMap<&str, (Vec<u32>, HashSet<Guid>)> = BTreeMap::new();
        for guid in good {
            for used in loss.bodies.get(guid).into_iter().flatten() {
                let (uids, guids) = users.entry(&used.uniqueid).or_default();
                let row = self.backup.index().mailbox(&used.uniqueid)?;
                // UIDs of older epochs mean something else now; their records know the GUID.
                if row.is_some_and(|row| row.epoch == used.epoch) {
                    uids.push(used.uid);
                }
                guids.insert(*guid);
            }
        }
        let mut delivered = HashSet::new();
        for (uniqueid, (mut uids, guids)) in users {
            uids.sort_unstable();
            let (backup, now) = (&mut *self.backup, self.now);
            bodies(
                index,
                file,
                guids.difference(&delivered).copied().collect::<Vec<_>>(),
                &mut |row, part| match part {
                    Part::Begin => {
                        backup.body_begin(row.partition.as_bytes(), row.guid, row.size, now)
                    }
                    Part::Data(bytes) => backup.body_data(bytes),
                    Part::End(true) => backup.body_end(),
                    Part::End(false) => Err(Error::new(Kind::Io, "the copy is being changed")),
                },
            )?;
            backup.messages_end()?;
            self.restate(uniqueid, &uids)?;
            delivered.extend(guids);
        }
        Ok(())
    }

    /// States a mailbox as it is, with some of its records, and makes it durable.
    fn restate(&mut self, uniqueid: &str, uids: &[u32]) -> Result<()> {
        let Some((row, value)) = statement(self.backup.index(), uniqueid, uids)? else {
            self.backup.abort();
            return Ok(());
        };
        let (scratch, budget, now) = (self.scratch, self.budget, self.now);
        state_again(self.backup, scratch, budget, now, &row, &value)
    }

    /// Marks those whose records cannot be what was stated, though index and log agree: the damage was
    /// there when the index was made.
    fn mark_more(&mut self, out: &mut Healed) -> Result<()> {
        let index = self.backup.index();
        let mut lines = Vec::new();
        for (uniqueid, why) in index.unsummed(true)? {
            if index.resync(&uniqueid)?.is_none() {
                lines.push(resync_line(&uniqueid, 1, &why));
                let row = index.mailbox(&uniqueid)?;
                out.marked
                    .push((row.map_or(uniqueid, |row| row.mboxname), why));
            }
        }
        match lines.is_empty() {
            true => Ok(()),
            false => self.backup.append(&lines, self.now),
        }
    }

    /// Marks the mailboxes that are in doubt, but those that lacked nothing but what came back.
    fn mark(&mut self, loss: &Loss, wanted: &BTreeSet<Guid>, out: &mut Healed) -> Result<()> {
        let lacking = loss.bodies.iter().filter(|(guid, _)| wanted.contains(guid));
        let lacking: HashSet<&str> = lacking
            .flat_map(|(_, uses)| uses.iter().filter(|u| u.live))
            .map(|u| u.uniqueid.as_str())
            .collect();
        let mut lines = Vec::new();
        for doubt in loss.mailboxes.iter().filter(|d| d.live) {
            let whole = doubt.bodies_only && !lacking.contains(doubt.uniqueid.as_str());
            if whole || self.backup.index().resync(&doubt.uniqueid)?.is_some() {
                continue;
            }
            lines.push(resync_line(&doubt.uniqueid, 1, doubt.why));
            out.marked
                .push((doubt.mboxname.clone(), doubt.why.to_owned()));
        }
        match lines.is_empty() {
            true => Ok(()),
            false => self.backup.append(&lines, self.now),
        }
    }
}
