//! Flags only: messages that are still there get back the flags they had.
//!
//! As a replication master would say it: a new state of those records, on top of exactly the state that
//! was read. If the mailbox changed in between, the server says so and it is read again.

use super::super::{Done, Folder};
use super::bring::same_flags;
use super::{Cyrus, refused};
use crate::client::csync::Status;
use crate::cyrus::dlist::Value;
use crate::cyrus::guid::Guid;
use crate::cyrus::sync::Record;
use crate::error::Result;
use crate::util::time::now;
use std::collections::HashMap;

/// How often a mailbox may change under our hands.
const TRIES: u32 = 5;

impl Cyrus {
    pub(super) fn put_flags(
        &mut self,
        folder: &Folder,
        dry_run: bool,
        done: &mut Done,
    ) -> Result<()> {
        for _ in 0..TRIES {
            let mut wanted = Wanted::new(folder);
            let mut changed: Vec<Record> = Vec::new();
            let head = match self.head(&folder.to).is_some() {
                false => None,
                true => self.full(&folder.to, &mut |mut record| {
                    let Some(flags) = wanted.take(&record) else {
                        return Ok(());
                    };
                    if !same_flags(flags, &record.flags) {
                        record.flags = flags.to_vec();
                        changed.push(record);
                    }
                    Ok(())
                })?,
            };
            let Some(mut head) = head else {
                done.notes.push("the mailbox is not there".into());
                return Ok(());
            };
            done.there = folder.items.len() as u64 - wanted.left();
            if wanted.left() > 0 {
                let note = format!("{} of the messages are not there", wanted.left());
                done.notes = vec![note];
            }
            if dry_run || changed.is_empty() {
                done.flagged = changed.len() as u64;
                return Ok(());
            }
            let modseq = head.number("HIGHESTMODSEQ").unwrap_or(0);
            head.set("HIGHESTMODSEQ", Value::num(modseq + 1));
            head.set("SINCE_MODSEQ", Value::num(modseq));
            let n = changed.len() as u64;
            let records = changed.into_iter().map(|mut r| {
                r.modseq = modseq + 1;
                r.last_updated = now().0 as u64;
                r.to_value()
            });
            let status = self.apply_head(head, records.collect())?;
            match status.code() {
                _ if status == Status::Ok => {
                    done.flagged = n;
                    return self.csync()?.restart();
                }
                Some("IMAP_SYNC_CHANGED" | "IMAP_SYNC_CHECKSUM") => {}
                _ => {
                    done.failed.push((0, refused("flags not taken", &status)));
                    return Ok(());
                }
            }
        }
        let why = "flags not taken: the mailbox does not stop changing";
        done.failed.push((0, why.into()));
        Ok(())
    }
}

/// The flags that were, by message; the same message under the same UID first.
struct Wanted<'a> {
    by_uid: HashMap<(u32, Guid), &'a [Value]>,
    by_guid: HashMap<Guid, Vec<(u32, &'a [Value])>>,
    left: u64,
}

impl<'a> Wanted<'a> {
    fn new(folder: &'a Folder) -> Wanted<'a> {
        let mut wanted = Wanted {
            by_uid: HashMap::new(),
            by_guid: HashMap::new(),
            left: folder.items.len() as u64,
        };
        for item in &folder.items {
            let r = &item.record;
            wanted.by_uid.insert((r.uid, r.guid), &r.flags);
            let of = wanted.by_guid.entry(r.guid).or_default();
            of.push((r.uid, &r.flags));
        }
        wanted
    }

    fn left(&self) -> u64 {
        self.left
    }

    /// What a record that is there shall have.
    fn take(&mut self, there: &Record) -> Option<&'a [Value]> {
        if there.expunged {
            return None;
        }
        let list = self.by_guid.get_mut(&there.guid)?;
        let same = self.by_uid.remove(&(there.uid, there.guid));
        let at = match same {
            Some(_) => list.iter().position(|(uid, _)| *uid == there.uid)?,
            // Another copy's turn comes under its own UID.
            None => list.len().checked_sub(1)?,
        };
        let (_, flags) = list.remove(at);
        self.left -= 1;
        Some(flags)
    }
}
