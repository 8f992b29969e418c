//! Adding messages to mailboxes with RESTORE: the server decides on UIDs and modseqs.
//!
//! In blocks, each of which is there as a whole or not at all; so an interrupted run has kept what
//! it has told, and the next one skips that. A block that is refused is halved until the message
//! is found that the server does not want.

use super::super::{Bodies, Done, Folder, Item, NOT_MADE};
use super::{Cyrus, refused};
use crate::client::csync::Status;
use crate::cyrus::dlist::Value;
use crate::cyrus::guid::Guid;
use crate::cyrus::mboxname::MboxName;
use crate::cyrus::sync::MailboxHead;
use crate::error::Result;
use crate::util::time::now;
use std::collections::{HashMap, HashSet};

/// Messages of a block.
const BLOCK: usize = 1024;
/// Bytes of a block, after the last message.
const BLOCK_BYTES: u64 = 64 << 20;

/// What belongs to the old place only: with it, the message would seem to have been here before.
const OLD: [&[u8]; 2] = [
    b"/vendor/cmu/cyrus-imapd/savedate",
    b"/vendor/cmu/cyrus-imapd/createdmodseq",
];

impl Cyrus {
    pub(super) fn bring(
        &mut self,
        folder: &Folder,
        bodies: &mut dyn Bodies,
        dry_run: bool,
        done: &mut Done,
    ) -> Result<()> {
        let is_there = self.head(&folder.to).is_some();
        let mut there: HashMap<Guid, u32> = HashMap::new();
        if is_there {
            self.full(&folder.to, &mut |record| {
                if !record.expunged {
                    *there.entry(record.guid).or_default() += 1;
                }
                Ok(())
            })?;
        }
        let mut need: Vec<&Item> = Vec::new();
        for item in &folder.items {
            match there.get_mut(&item.record.guid) {
                Some(n) if *n > 0 => {
                    *n -= 1;
                    done.there += 1;
                }
                _ => need.push(item),
            }
        }
        if folder.only_there && !is_there {
            done.failed.push((0, NOT_MADE.into()));
            return Ok(());
        }
        if dry_run {
            done.made = !is_there;
            if !is_there {
                let mut names = self.parents(&folder.to);
                names.push(folder.to.clone());
                names.retain(|n| self.head(n).is_none() && self.planned.insert(n.clone()));
                names.iter().for_each(|n| self.tell_made(n, folder, done));
            }
            done.brought = need.len() as u64;
            done.bytes = need.iter().map(|i| i.record.size).sum();
            return Ok(());
        }
        if !is_there {
            if let Err(why) = self.make(folder, done)? {
                done.failed.push((0, why));
                return Ok(());
            }
            done.made = true;
        }
        let Some(partition) = self.partition(folder).filter(|_| !need.is_empty()) else {
            return Ok(());
        };
        let mut names = vec![folder.to.clone(), folder.from.clone()];
        names.dedup();
        names.retain(|n| self.head(n).is_some());
        let wanted = need.iter().map(|i| i.record.guid);
        let mut missing = self.reserve(&partition, &names, wanted)?;
        let mut left = &need[..];
        while !left.is_empty() {
            let (block, later) = left.split_at(block(left));
            let unread = self.upload(&partition, block.iter().copied(), &mut missing, bodies)?;
            let mut good = Vec::with_capacity(block.len());
            for item in block {
                match unread.get(&item.record.guid) {
                    Some(why) => done.failed.push((item.record.uid, why.clone())),
                    None => good.push(*item),
                }
            }
            self.restore(folder, &good, done)?;
            // A body that did not read is asked for again by whoever refers to it next.
            missing.extend(unread.into_keys());
            left = later;
        }
        self.note_limits(folder, done);
        self.csync()?.restart()
    }

    /// One block; what is refused is told.
    fn restore(&mut self, folder: &Folder, items: &[&Item], done: &mut Done) -> Result<()> {
        if items.is_empty() {
            return Ok(());
        }
        let records = items.iter().enumerate().map(|(at, i)| record(i, at));
        let request = Value::kv([
            ("MBOXNAME", Value::text(&folder.to)),
            ("RECORD", Value::List(records.collect())),
        ]);
        match (self.csync()?.apply("RESTORE MAILBOX", &request)?, items) {
            (Status::Ok, _) => {
                done.brought += items.len() as u64;
                done.bytes += items.iter().map(|i| i.record.size).sum::<u64>();
                Ok(())
            }
            (status, [one]) => {
                done.failed
                    .push((one.record.uid, refused("not taken", &status)));
                Ok(())
            }
            _ => {
                let (a, b) = items.split_at(items.len() / 2);
                self.restore(folder, a, done)?;
                self.restore(folder, b, done)
            }
        }
    }

    /// Makes a mailbox and what lacks above it; why not, if it is refused.
    fn make(
        &mut self,
        folder: &Folder,
        done: &mut Done,
    ) -> Result<std::result::Result<(), String>> {
        let mut names = self.parents(&folder.to);
        names.push(folder.to.clone());
        for name in names {
            if self.head(&name).is_some() {
                continue;
            }
            let is_folder = name == folder.to;
            // What is above has its own ACL: the folder's would open it to whoever may read that.
            let (partition, acl) = match is_folder {
                true => (self.partition(folder), folder.acl.clone()),
                false => {
                    let typed = folder.partition.clone();
                    let partition = typed.or_else(|| self.partition_above(&name));
                    (partition, self.acls.get(&name).cloned())
                }
            };
            let mut keys = vec![("MBOXNAME", Value::text(&name))];
            let mut add = |key, value: Option<&str>| {
                keys.extend(value.map(|v| (key, Value::text(v))));
            };
            add("PARTITION", partition.as_deref());
            add("ACL", acl.as_deref());
            let own = is_folder.then_some(&folder.head);
            add("OPTIONS", own.and_then(|h| h.text("OPTIONS")));
            add("MBOXTYPE", own.and_then(|h| h.text("MBOXTYPE")));
            keys.push(("RECORD", Value::List(Vec::new())));
            let status = self.csync()?.apply("RESTORE MAILBOX", &Value::kv(keys))?;
            if status != Status::Ok {
                let what = format!("cannot make the mailbox {}", self.shown(&name));
                let mut why = refused(&what, &status);
                // What servers say to a partition that they have not.
                if why.contains("partition") || why.ends_with("Unknown error") {
                    let on = partition.as_deref().unwrap_or("of the server's choice");
                    why.push_str(&format!(" (partition {on}; --partition names another)"));
                }
                return Ok(Err(why));
            }
            self.tell_made(&name, folder, done);
            self.ask(std::slice::from_ref(&name))?;
        }
        self.annotate(folder, done)?;
        Ok(Ok(()))
    }

    /// Tells that a mailbox was made for a folder, or would be.
    fn tell_made(&self, name: &str, folder: &Folder, done: &mut Done) {
        if name != folder.to {
            done.above.push(name.to_owned());
        }
        let parsed = MboxName::parse(name, &self.ns).ok();
        if let Some(user) = parsed
            .filter(MboxName::is_inbox)
            .as_ref()
            .and_then(MboxName::userid)
        {
            let note = format!("there was no user {user}: an account is made");
            done.notes.push(note);
        }
    }

    fn shown(&self, name: &str) -> String {
        MboxName::parse(name, &self.ns).map_or(name.to_owned(), |n| n.to_admin(&self.ns))
    }

    /// Replication minds no limit; where there is one, people should know, once.
    fn note_limits(&mut self, folder: &Folder, done: &mut Done) {
        let covers = |root: &String| {
            let below = folder.to.strip_prefix(root.as_str());
            below.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let root = self.user.quotas.keys().find(|r| covers(r)).cloned();
        if let Some(root) = root.filter(|_| done.brought > 0 && !self.is_limit_told) {
            self.is_limit_told = true;
            let root = self.shown(&root);
            let note = format!("the limits of {root} are not minded over replication");
            done.notes.push(note);
        }
    }

    /// Gives a mailbox that was just made the annotations of the old one. Not in RESTORE: servers from
    /// 3.6 to 3.10 die of it.
    fn annotate(&mut self, folder: &Folder, done: &mut Done) -> Result<()> {
        let Some(Value::List(old)) = folder.head.get("ANNOTATIONS") else {
            return Ok(());
        };
        let Some(mut head) = self.head(&folder.to).cloned().filter(|_| !old.is_empty()) else {
            return Ok(());
        };
        let modseq = head.number("HIGHESTMODSEQ").unwrap_or(0) + 1;
        head.set("HIGHESTMODSEQ", Value::num(modseq));
        let list = old.iter().cloned().map(|a| with(a, "MODSEQ", modseq));
        head.set("ANNOTATIONS", Value::List(list.collect()));
        let status = self.apply_head(head, Vec::new())?;
        if status != Status::Ok {
            done.notes
                .push(refused("annotations of the mailbox", &status));
        }
        Ok(())
    }

    /// APPLY MAILBOX with what the server itself said of a mailbox, changed.
    pub(super) fn apply_head(
        &mut self,
        mut head: MailboxHead,
        records: Vec<Value>,
    ) -> Result<Status> {
        for key in ["SYNC_CRC", "SYNC_CRC_ANNOT", "RECORD"] {
            head.remove(key);
        }
        if head.get("LAST_APPENDDATE").is_none() {
            head.set("LAST_APPENDDATE", Value::num(0));
        }
        head.set("RECORD", Value::List(records));
        self.csync()?.apply("APPLY MAILBOX", &Value::Kv(head.keys))
    }
}

fn block(items: &[&Item]) -> usize {
    let mut bytes = 0;
    let fits = |item: &&&Item| {
        let fits = bytes < BLOCK_BYTES;
        bytes += item.record.size;
        fits
    };
    items.iter().take(BLOCK).take_while(fits).count()
}

/// The record of a message that comes anew. UIDs only have to ascend.
fn record(item: &Item, at: usize) -> Value {
    let mut record = item.record.clone();
    record.uid = at as u32 + 1;
    record.last_updated = now().0 as u64;
    record.annotations.retain(|a| {
        let entry = a.get("ENTRY").and_then(Value::as_bytes);
        entry.is_none_or(|e| !OLD.contains(&e))
    });
    record.extra.clear();
    record.to_value()
}

fn with(value: Value, key: &str, n: u64) -> Value {
    match value {
        Value::Kv(mut items) => {
            for (k, v) in &mut items {
                if k == key.as_bytes() {
                    *v = Value::num(n);
                }
            }
            Value::Kv(items)
        }
        other => other,
    }
}

/// Whether two lists of flags say the same.
pub(super) fn same_flags(a: &[Value], b: &[Value]) -> bool {
    let set = |flags: &[Value]| -> HashSet<Vec<u8>> {
        let words = flags.iter().filter_map(Value::as_bytes);
        words.map(<[u8]>::to_ascii_lowercase).collect()
    };
    set(a) == set(b)
}
