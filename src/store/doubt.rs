//! What damage means: which bodies are lost, who uses them, which mailboxes are in doubt.
//!
//! Compares an index with a second one that was made from the log just now. Nothing is changed.
//! Reads all records of the index, so it is for backups of which something is known to be wrong.
//! Fails with the kinds of the index.

use super::index::{Index, MailboxRow};
use crate::cyrus::guid::Guid;
use crate::error::Result;
use std::collections::{BTreeMap, HashSet};

/// A record that refers to a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// The mailbox's identity.
    pub uniqueid: String,
    /// Its internal name.
    pub mboxname: String,
    /// The record's epoch.
    pub epoch: i64,
    /// Its UID.
    pub uid: u32,
    /// Whether it is alive, in a mailbox that is.
    pub live: bool,
}

/// A mailbox of which log and index do not have the same, or not all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// Its identity.
    pub uniqueid: String,
    /// Its internal name.
    pub mboxname: String,
    /// Whether it is alive.
    pub live: bool,
    /// The reason, for people.
    pub why: &'static str,
    /// UIDs of the present epoch whose records are not in the log as the index has them.
    pub unlogged: Vec<u32>,
    /// Whether the log has the mailbox in the same epoch, so that records can be stated again.
    pub same_epoch: bool,
    /// Nothing but bodies lacks.
    pub bodies_only: bool,
}

/// All that is in doubt.
#[derive(Clone, Debug, Default)]
pub struct Loss {
    /// Bodies that the log does not give, and the records that refer to them. Those that nothing
    /// refers to are nobody's loss.
    pub bodies: BTreeMap<Guid, Vec<Use>>,
    /// Mailboxes, deleted ones too.
    pub mailboxes: Vec<Doubt>,
}

/// Compares `index` with `second`. Bodies that a new index would not have are lost even if they
/// still read where this one has them: the line around them does not.
pub fn assess(index: &Index, second: &Index) -> Result<Loss> {
    let mut gone = HashSet::new();
    for row in index.bodies(None)? {
        if second.body(row.guid)?.is_none() {
            gone.insert(row.guid);
        }
    }
    let mut loss = Loss::default();
    for row in index.mailboxes(true)? {
        mailbox(index, second, &row, &gone, &mut loss)?;
    }
    Ok(loss)
}

fn mailbox(
    index: &Index,
    second: &Index,
    row: &MailboxRow,
    gone: &HashSet<Guid>,
    loss: &mut Loss,
) -> Result<()> {
    let other = second.mailbox(&row.uniqueid)?;
    let mut differs = match &other {
        Some(o) => {
            (&o.head, o.epoch, o.deleted.is_some()) != (&row.head, row.epoch, row.deleted.is_some())
                || second.true_sums(o.id, o.epoch)? != index.true_sums(row.id, row.epoch)?
        }
        None => true,
    };
    let mut unlogged = Vec::new();
    let mut lacks = false;
    index.records(row.id, None, true, &mut |r| {
        let guid = r.record.guid;
        // What the sender had expunged before we heard of it never was here.
        let was_here = r.expunged != Some(r.arrived);
        if gone.contains(&guid) || (r.missing && was_here && index.body(guid)?.is_none()) {
            let live = row.deleted.is_none() && r.expunged.is_none() && r.epoch == row.epoch;
            // What is known to exist nowhere is no news.
            lacks |= live && gone.contains(&guid);
            loss.bodies.entry(guid).or_default().push(Use {
                uniqueid: row.uniqueid.clone(),
                mboxname: row.mboxname.clone(),
                epoch: r.epoch,
                uid: r.record.uid,
                live,
            });
        }
        let logged = match &other {
            Some(o) => second.record(o.id, r.epoch, r.record.uid)?,
            None => None,
        };
        let same = |o: super::index::RecordRow| o.record == r.record && o.expunged == r.expunged;
        if !logged.is_some_and(same) {
            differs = true;
            if r.epoch == row.epoch {
                unlogged.push(r.record.uid);
            }
        }
        Ok(())
    })?;
    if differs || lacks {
        loss.mailboxes.push(Doubt {
            uniqueid: row.uniqueid.clone(),
            mboxname: row.mboxname.clone(),
            live: row.deleted.is_none(),
            why: match differs {
                true => "log and index differ",
                false => "bodies do not read",
            },
            unlogged,
            same_epoch: other.map_or(1, |o| o.epoch) == row.epoch,
            bodies_only: !differs,
        });
    }
    Ok(())
}
