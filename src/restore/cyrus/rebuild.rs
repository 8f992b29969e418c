//! Mailboxes exactly as they were, into an empty server: APPLY MAILBOX, as replication itself.
//!
//! A mailbox comes whole, or in ascending parts if it is very large; a run that was interrupted goes
//! on behind what is there. Then everything is read back and compared: what is said to be equal was
//! seen to be.

use super::super::{Bodies, Done, Folder, Item};
use super::bring::same_flags;
use super::{Cyrus, pass, refused};
use crate::client::csync::Status;
use crate::client::stream::broken;
use crate::cyrus::dlist::{Form, Value, print};
use crate::cyrus::sync::{MailboxHead, Record, Sums};
use crate::error::Result;
use std::collections::{HashMap, HashSet};
use std::io::Write;

/// Records of a part.
const PART: usize = 20_000;
/// Bytes of a part, after the last message.
const PART_BYTES: u64 = 1 << 30;
/// Differences of one mailbox that are told one by one.
const TOLD: usize = 20;

/// Keys that tell of a state of the sender's, or that the server makes itself.
const LEFT_OUT: [&str; 8] = [
    "SINCE_MODSEQ",
    "SINCE_CRC",
    "SINCE_CRC_ANNOT",
    "SYNC_CRC",
    "SYNC_CRC_ANNOT",
    "QUOTAROOT",
    "DELETEDMODSEQ",
    "RECORD",
];

/// Keys that must be equal afterwards.
const COMPARED: [&str; 13] = [
    "UNIQUEID",
    "UIDVALIDITY",
    "LAST_UID",
    "HIGHESTMODSEQ",
    "RECENTUID",
    "RECENTTIME",
    "POP3_LAST_LOGIN",
    "POP3_SHOW_AFTER",
    "ACL",
    "OPTIONS",
    "MBOXTYPE",
    "CREATEDMODSEQ",
    "ANNOTATIONS",
];

/// What the server has of a mailbox.
#[derive(Default)]
struct Held {
    last_uid: u64,
    modseqs: HashMap<u32, u64>,
}

impl Cyrus {
    pub(super) fn rebuild(
        &mut self,
        folder: &Folder,
        bodies: &mut dyn Bodies,
        dry_run: bool,
        done: &mut Done,
    ) -> Result<()> {
        let mut held = Held::default();
        if let Some(there) = self.head(&folder.to).cloned() {
            if there.is_intermediate() {
                // Nothing is in it, and what comes takes its place.
            } else if let Some(why) = self.stranger(folder, &there) {
                done.failed.push((0, why));
                return Ok(());
            } else {
                let same = there.text("UNIQUEID") == folder.head.text("UNIQUEID");
                let head = self.full(&folder.to, &mut |r| {
                    if same {
                        held.modseqs.insert(r.uid, r.modseq);
                    }
                    Ok(())
                })?;
                held.last_uid = head
                    .and_then(|h| h.number("LAST_UID"))
                    .filter(|_| same)
                    .unwrap_or(0);
            }
        }
        let is_there = self.head(&folder.to).is_some();
        let is_new = |r: &Record| match held.modseqs.get(&r.uid) {
            Some(modseq) => *modseq < r.modseq,
            None => u64::from(r.uid) > held.last_uid,
        };
        let items: Vec<&Item> = folder.items.iter().filter(|i| is_new(&i.record)).collect();
        let dead: Vec<&Record> = folder.tombstones.iter().filter(|r| is_new(r)).collect();
        done.there = (folder.items.len() - items.len()) as u64;
        if dry_run {
            done.made = !is_there;
            done.brought = items.len() as u64;
            done.bytes = items.iter().map(|i| i.record.size).sum();
            return Ok(());
        }
        if folder.head.is_intermediate() {
            return self.placeholder(folder, done);
        }
        if self.send(folder, &items, &dead, bodies, done)? {
            self.ask(std::slice::from_ref(&folder.to))?;
            self.compare(folder, done)?;
        }
        self.csync()?.restart()
    }

    /// Why a mailbox that is there must be left alone.
    fn stranger(&self, folder: &Folder, there: &MailboxHead) -> Option<String> {
        let number = |head: &MailboxHead, key| head.number(key).unwrap_or(0);
        if there.text("UNIQUEID") == folder.head.text("UNIQUEID") {
            let newer = |key| number(there, key) > number(&folder.head, key);
            let keys = ["LAST_UID", "HIGHESTMODSEQ", "UIDVALIDITY"];
            let newer = keys.iter().find(|k| newer(**k))?;
            return Some(format!(
                "left alone: the mailbox has changed on the server since ({newer} {} is higher than {})",
                number(there, newer),
                number(&folder.head, newer)
            ));
        }
        // A new account's empty INBOX gives way.
        (number(there, "LAST_UID") > 0)
            .then(|| "left alone: another mailbox of that name is there, with mail".to_owned())
    }

    fn placeholder(&mut self, folder: &Folder, done: &mut Done) -> Result<()> {
        // Nothing is in it that could differ.
        if self.head(&folder.to).is_some() {
            done.compared = true;
            return Ok(());
        }
        let mut head = folder.head.clone();
        LEFT_OUT.iter().for_each(|key| head.remove(key));
        let status = self
            .csync()?
            .apply("APPLY MAILBOX", &Value::Kv(head.keys))?;
        if status != Status::Ok {
            done.notes.push(refused("placeholder not taken", &status));
            return Ok(());
        }
        done.made = true;
        done.compared = true;
        Ok(())
    }

    /// Sends all parts; false if one was refused.
    fn send(
        &mut self,
        folder: &Folder,
        items: &[&Item],
        dead: &[&Record],
        bodies: &mut dyn Bodies,
        done: &mut Done,
    ) -> Result<bool> {
        let partition = match &folder.partition {
            Some(partition) => partition.clone(),
            None => folder
                .head
                .text("PARTITION")
                .unwrap_or("default")
                .to_owned(),
        };
        let mut names: Vec<String> = self.user.mailboxes.keys().cloned().collect();
        names.sort();
        let mut missing = match names.is_empty() {
            true => items.iter().map(|i| i.record.guid).collect(),
            false => {
                let guids = items.iter().map(|i| i.record.guid);
                self.reserve(&partition, &names, guids)?
            }
        };
        let mut head = folder.head.clone();
        LEFT_OUT.iter().for_each(|key| head.remove(key));
        head.set("PARTITION", Value::text(&partition));
        if let Some(acl) = &folder.acl {
            head.set("ACL", Value::text(acl));
        }
        let last_uid = folder.head.number("LAST_UID").unwrap_or(0);
        let mut sums = Sums::default();
        let whole = done.there == 0;
        let (mut left, mut dead) = (items, dead);
        loop {
            let (now, later) = left.split_at(part(left));
            // The last part has what the mailbox has; others end with their own last message.
            let end = match (now.last(), later.is_empty()) {
                (Some(last), false) => u64::from(last.record.uid),
                _ => u64::MAX,
            };
            let unread = self.upload(&partition, now.iter().copied(), &mut missing, bodies)?;
            let mut records: Vec<Record> = Vec::with_capacity(now.len());
            for item in now {
                match unread.get(&item.record.guid) {
                    Some(why) => done.failed.push((item.record.uid, why.clone())),
                    None => {
                        sums.toggle(item.record.sums());
                        records.push(item.record.clone());
                    }
                }
            }
            let live = records.len() as u64;
            let bytes: u64 = records.iter().map(|r| r.size).sum();
            let n = dead.iter().take_while(|r| u64::from(r.uid) <= end).count();
            let (with, rest) = dead.split_at(n);
            records.extend(with.iter().map(|r| (*r).clone()));
            records.sort_by_key(|r| r.uid);
            dead = rest;
            head.set("LAST_UID", Value::num(end.min(last_uid)));
            let crc = if later.is_empty() && whole {
                sums.record
            } else {
                0
            };
            head.set("SYNC_CRC", Value::num(crc));
            head.set("SYNC_CRC_ANNOT", Value::num(0));
            let status = self.apply_records(&head, &records)?;
            if status != Status::Ok {
                done.failed.push((0, refused("mailbox not taken", &status)));
                return Ok(false);
            }
            done.made = self.head(&folder.to).is_none();
            done.brought += live;
            done.bytes += bytes;
            left = later;
            if left.is_empty() {
                return Ok(true);
            }
        }
    }

    /// APPLY MAILBOX without a copy of all its text in memory.
    fn apply_records(&mut self, head: &MailboxHead, records: &[Record]) -> Result<Status> {
        self.csync()?.exchange(
            "APPLY MAILBOX",
            &mut |w: &mut dyn Write| {
                w.write_all(b"%(").map_err(broken)?;
                for (key, value) in &head.keys {
                    w.write_all(key).map_err(broken)?;
                    w.write_all(b" ").map_err(broken)?;
                    print(value, Form::Log, w).map_err(broken)?;
                    w.write_all(b" ").map_err(broken)?;
                }
                w.write_all(b"RECORD (").map_err(broken)?;
                for (at, record) in records.iter().enumerate() {
                    if at > 0 {
                        w.write_all(b" ").map_err(broken)?;
                    }
                    print(&record.to_value(), Form::Log, w).map_err(broken)?;
                }
                w.write_all(b"))").map_err(broken)
            },
            &mut pass,
        )
    }

    /// Reads the mailbox back; what is not as it should be is told.
    fn compare(&mut self, folder: &Folder, done: &mut Done) -> Result<()> {
        let mut wanted: HashMap<u32, &Record> = HashMap::new();
        wanted.extend(folder.items.iter().map(|i| (i.record.uid, &i.record)));
        // Those have been told.
        for (uid, _) in &done.failed {
            wanted.remove(uid);
        }
        let mut out = Vec::new();
        let head = self.full(&folder.to, &mut |there| {
            if there.expunged {
                return Ok(());
            }
            match wanted.remove(&there.uid) {
                None => out.push(format!("uid {}: is there and was not", there.uid)),
                Some(was) => {
                    let what = difference(was, &there);
                    if !what.is_empty() {
                        out.push(format!("uid {}: {}", there.uid, what.join(", ")));
                    }
                }
            }
            Ok(())
        })?;
        let mut lost: Vec<&u32> = wanted.keys().collect();
        lost.sort();
        out.extend(lost.iter().map(|uid| format!("uid {uid}: is not there")));
        match head {
            None => out.push("the mailbox is not there".into()),
            Some(there) => {
                for key in COMPARED {
                    let was = match (key, &folder.acl) {
                        ("ACL", Some(acl)) => Some(Value::text(acl)),
                        _ => folder.head.get(key).cloned(),
                    };
                    if plain(was.as_ref()) != plain(there.get(key)) {
                        out.push(format!("{key} is not what it was"));
                    }
                }
            }
        }
        let more = out.len().saturating_sub(TOLD);
        out.truncate(TOLD);
        if more > 0 {
            out.push(format!("and {more} more"));
        }
        done.differs = out;
        done.compared = true;
        Ok(())
    }
}

fn part(items: &[&Item]) -> usize {
    let mut bytes = 0;
    let fits = |item: &&&Item| {
        let fits = bytes < PART_BYTES;
        bytes += item.record.size;
        fits
    };
    items.iter().take(PART).take_while(fits).count()
}

fn difference(was: &Record, there: &Record) -> Vec<&'static str> {
    let mut out = Vec::new();
    let mut check = |equal: bool, what| {
        if !equal {
            out.push(what);
        }
    };
    check(was.guid == there.guid, "another message");
    check(was.size == there.size, "size");
    check(was.modseq == there.modseq, "modseq");
    check(was.internaldate == there.internaldate, "internal date");
    check(same_flags(&was.flags, &there.flags), "flags");
    check(
        annotations(&was.annotations) == annotations(&there.annotations),
        "annotations",
    );
    out
}

/// Annotations as a set; of those that the server works out itself, nothing is expected.
fn annotations(list: &[Value]) -> HashSet<(Vec<u8>, Vec<u8>, Vec<u8>)> {
    let own = [
        &b"/vendor/cmu/cyrus-imapd/thrid"[..],
        b"/vendor/cmu/cyrus-imapd/basethrid",
    ];
    let text = |a: &Value, key| {
        a.get(key)
            .and_then(Value::as_bytes)
            .unwrap_or_default()
            .to_vec()
    };
    list.iter()
        .map(|a| (text(a, "ENTRY"), text(a, "USERID"), text(a, "VALUE")))
        .filter(|(entry, ..)| !own.contains(&entry.as_slice()))
        .collect()
}

/// A key's value for comparing: absent, NIL, empty and, of numbers, 0 are the same.
fn plain(value: Option<&Value>) -> Vec<u8> {
    match value {
        None | Some(Value::Nil) => Vec::new(),
        Some(Value::List(list)) => {
            let mut all: Vec<_> = annotations(list).into_iter().collect();
            all.sort();
            all.into_iter()
                .flat_map(|(a, b, c)| [a, b, c].join(&0))
                .collect()
        }
        Some(value) => match value.as_bytes().unwrap_or_default() {
            b"0" => Vec::new(),
            bytes => bytes.to_vec(),
        },
    }
}
