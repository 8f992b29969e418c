//! What differs between two states of a backup: of two times, or of one and now.
//!
//! Mailboxes are the same if their identity is, whatever they are called; messages, if mailbox, UID
//! and GUID are, also where the server went back to an older state of itself in between. Only what is
//! alive counts: what is deleted in the later state went.

use super::history::{KeyChange, flag_names, key_changes, minus};
use super::index::{Index, MailboxRow, RecordRow};
use crate::cyrus::dlist::Value;
use crate::error::Result;
use std::collections::{BTreeMap, BTreeSet};

/// A mailbox in one state or both.
#[derive(Clone, Debug)]
pub struct MailboxPair {
    /// As it was.
    pub old: Option<MailboxRow>,
    /// As it is.
    pub new: Option<MailboxRow>,
    /// Attributes that differ.
    pub keys: Vec<KeyChange>,
}

impl MailboxPair {
    /// The later row, or that of what went.
    pub fn row(&self) -> Option<&MailboxRow> {
        self.new.as_ref().or(self.old.as_ref())
    }

    /// Whether it is called otherwise.
    pub fn is_renamed(&self) -> bool {
        matches!((&self.old, &self.new), (Some(a), Some(b)) if a.mboxname != b.mboxname)
    }

    /// Whether anything but its messages differs.
    pub fn differs(&self) -> bool {
        self.old.is_none() || self.new.is_none() || self.is_renamed() || !self.keys.is_empty()
    }
}

/// The live mailboxes of both states, by their later name.
pub fn mailboxes(old: &Index, new: &Index) -> Result<Vec<MailboxPair>> {
    let mut pairs: BTreeMap<String, MailboxPair> = BTreeMap::new();
    for row in old.mailboxes(false)? {
        pairs.insert(
            row.uniqueid.clone(),
            MailboxPair {
                old: Some(row),
                new: None,
                keys: Vec::new(),
            },
        );
    }
    for row in new.mailboxes(false)? {
        let pair = pairs.entry(row.uniqueid.clone());
        let pair = pair.or_insert_with(|| MailboxPair {
            old: None,
            new: None,
            keys: Vec::new(),
        });
        if let Some(old) = &pair.old {
            pair.keys = key_changes(&old.head.keys, &row.head.keys);
        }
        pair.new = Some(row);
    }
    let mut pairs: Vec<MailboxPair> = pairs.into_values().collect();
    pairs.sort_by(|a, b| {
        let name = |p: &MailboxPair| p.row().map(|r| (r.mboxname.clone(), r.uniqueid.clone()));
        name(a).cmp(&name(b))
    });
    Ok(pairs)
}

/// What became of a message.
#[derive(Clone, Debug)]
pub enum MessageChange {
    /// It was not there.
    Came,
    /// It is not there.
    Went,
    /// Flags were set, or taken away.
    Flags(Vec<Vec<u8>>, Vec<Vec<u8>>),
    /// Its annotations differ.
    Annotations,
}

/// What is kept of a message of the earlier state.
struct Old {
    guid: [u8; 20],
    flags: Vec<Value>,
    annotations: Vec<Value>,
}

/// Tells which messages of a mailbox differ: first what changed or came, then what went, by UID. Keeps the flags of the earlier state's messages in memory.
pub fn messages(
    old: &Index,
    new: &Index,
    pair: &MailboxPair,
    each: &mut dyn FnMut(&MailboxRow, &RecordRow, MessageChange) -> Result<()>,
) -> Result<()> {
    let mut known: BTreeMap<u32, Old> = BTreeMap::new();
    if let (Some(row), Some(_)) = (&pair.old, &pair.new) {
        old.records(row.id, Some(row.epoch), false, &mut |r| {
            let kept = Old {
                guid: r.record.guid.0,
                flags: r.record.flags,
                annotations: r.record.annotations,
            };
            known.insert(r.record.uid, kept);
            Ok(())
        })?;
    }
    // Of all that was known, what the later state has as well.
    let mut stayed: BTreeSet<u32> = BTreeSet::new();
    if let Some(row) = &pair.new {
        new.records(row.id, Some(row.epoch), false, &mut |r| {
            let id = r.record.uid;
            let Some(was) = known.get(&id).filter(|k| k.guid == r.record.guid.0) else {
                return each(row, &r, MessageChange::Came);
            };
            stayed.insert(id);
            let (before, after) = (flag_names(&was.flags), flag_names(&r.record.flags));
            let (added, removed) = (minus(&after, &before), minus(&before, &after));
            if !added.is_empty() || !removed.is_empty() {
                each(row, &r, MessageChange::Flags(added, removed))?;
            }
            match was.annotations == r.record.annotations {
                true => Ok(()),
                false => each(row, &r, MessageChange::Annotations),
            }
        })?;
    }
    let Some(row) = &pair.old else {
        return Ok(());
    };
    drop(known);
    old.records(
        row.id,
        Some(row.epoch),
        false,
        &mut |r| match stayed.contains(&r.record.uid) {
            true => Ok(()),
            false => each(row, &r, MessageChange::Went),
        },
    )
}

/// What is in no mailbox: a kind, a name, and what there is of it in each state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// `subscription`, `script`, `active`, `seen` or `quota`.
    pub kind: &'static str,
    /// Mailbox, script, or root.
    pub name: String,
    /// As it was.
    pub old: Option<Value>,
    /// As it is.
    pub new: Option<Value>,
}

/// Subscriptions, scripts, the active script, seen states and limits that differ.
pub fn others(old: &Index, new: &Index) -> Result<Vec<Other>> {
    let (old, new) = (of_user(old)?, of_user(new)?);
    let names: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let mut out = Vec::new();
    for id in names {
        let (was, is) = (old.get(id), new.get(id));
        if was != is {
            out.push(Other {
                kind: id.0,
                name: id.1.clone(),
                old: was.cloned(),
                new: is.cloned(),
            });
        }
    }
    Ok(out)
}

fn of_user(index: &Index) -> Result<BTreeMap<(&'static str, String), Value>> {
    let mut out = BTreeMap::new();
    for row in index.subscriptions(false)? {
        out.insert(("subscription", row.mboxname), Value::Nil);
    }
    for row in index.scripts(false)? {
        out.insert(("script", row.filename), Value::text(row.guid.to_string()));
    }
    if let Some(name) = index.active_script()? {
        out.insert(("active", String::new()), Value::text(name));
    }
    for row in index.seen_states()? {
        out.insert(("seen", row.uniqueid), row.value);
    }
    for (root, value) in index.quotas()? {
        out.insert(("quota", root), value);
    }
    Ok(out)
}
