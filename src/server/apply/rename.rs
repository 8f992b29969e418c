//! RENAME, also from one owner to another, and UNMAILBOX.

use super::mailbox::{Stated, enter, intermediate};
use super::{change, change_existing, text, whole};
use crate::cyrus::config::Rename;
use crate::cyrus::dlist::{Form, Value, print_to_vec};
use crate::cyrus::mboxname::MboxName;
use crate::cyrus::sync::MailboxHead;
use crate::error::{Error, Kind, Result};
use crate::server::held::Held;
use crate::store::backup::resync_line;
use crate::store::erased;
use crate::store::index::MailboxRow;
use crate::store::line::{Line, mailbox_head, needs_literal};
use crate::store::spool::Spool;
use crate::util::time;
use std::collections::HashSet;

pub(super) fn unmailbox(held: &mut Held, value: &Value) -> Result<()> {
    let name = whole(value, "mailbox name")?;
    let key = held.shared().owner_of(name)?;
    let line = Line::new("UNMAILBOX", &Value::text(name));
    change_existing(held, &key, &[line], &|index| {
        Ok(index.mailbox_by_name(name)?.is_none())
    })
}

pub(super) fn rename(held: &mut Held, value: &Value) -> Result<()> {
    let (old, new) = (text(value, "OLDMBOXNAME")?, text(value, "NEWMBOXNAME")?);
    let old_key = held.shared().owner_of(old)?;
    let new_key = held.shared().owner_of(new)?;
    let row = held
        .ask(&old_key, &mut |index, _| index.mailbox_by_name(old))?
        .flatten();
    let Some(row) = row else {
        // Said twice: the name may be there already.
        let there = held
            .ask(&new_key, &mut |index, _| index.mailbox_by_name(new))?
            .flatten();
        return match there {
            Some(_) => Ok(()),
            None => Err(Error::new(Kind::NotFound, "no such mailbox").place(old)),
        };
    };
    let mut head = row.head.clone();
    head.set("MBOXNAME", Value::text(new));
    for key in ["PARTITION", "UIDVALIDITY"] {
        if let Some(v) = value.get(key) {
            if v.as_u64().is_some() || (key == "PARTITION" && v.as_bytes().is_some()) {
                head.set(key, v.clone());
            }
        }
    }
    if old_key != new_key {
        return move_away(held, &old_key, &new_key, head, &row);
    }
    let mut lines = Vec::new();
    let clash = held
        .ask(&old_key, &mut |index, _| index.mailbox_by_name(new))?
        .flatten();
    if clash.is_some_and(|c| c.uniqueid != row.uniqueid) {
        lines.push(Line::new("UNMAILBOX", &Value::text(new)));
    }
    lines.push(mailbox_head(&head));
    change(held, &old_key, &lines, &|index| {
        Ok(index
            .mailbox(&row.uniqueid)?
            .is_some_and(|r| r.deleted.is_none() && r.head == head))
    })
}

/// A mailbox that leaves its owner: its past stays here; the new owner's backup begins with its
/// present state, for which the live bodies are copied. Nothing is sent again. Where the new owner's
/// backup knows a later state of it, that stays: a user who was renamed on the server may have been
/// sent under the new name before anybody said that the old one is gone.
fn move_away(
    held: &mut Held,
    old_key: &str,
    new_key: &str,
    head: MailboxHead,
    row: &MailboxRow,
) -> Result<()> {
    let (old, new) = (row.mboxname.as_str(), head.mboxname()?.to_owned());
    let is_inbox = |name: &str| {
        MboxName::parse(name, &held.shared().ns).is_ok_and(|n| n.is_inbox() && !n.is_deleted())
    };
    if is_inbox(old) && is_inbox(&new) {
        if held.shared().config.backup_rename() == Rename::Reject {
            log::error!(
                "user rename refused (backup_rename: reject) old=<{old_key}> new=<{new_key}>"
            );
            return Err(Error::new(Kind::Denied, "user renames are refused here"));
        }
        let other = held
            .ask(new_key, &mut |index, _| index.mailbox_by_name(&new))?
            .flatten();
        if other.is_some_and(|o| o.uniqueid != row.uniqueid) {
            log::error!(
                "user rename refused: the new name has a live INBOX old=<{old_key}> \
                 new=<{new_key}>"
            );
            return Err(Error::new(Kind::Moved, "the new name has a live INBOX"));
        }
        log::info!("user renamed old=<{old_key}> new=<{new_key}>");
    }
    inherit(held, old_key, new_key, row)?;
    let there = held
        .ask(new_key, &mut |index, _| index.mailbox(&row.uniqueid))?
        .flatten()
        .filter(|there| there.deleted.is_none());
    match there {
        Some(there) if there.head == head => {}
        // The new owner's was stated without the old one's ever being renamed.
        Some(there) if modseq(&there.head) > modseq(&head) => {
            let mut newer = there.head.clone();
            for key in ["MBOXNAME", "PARTITION", "UIDVALIDITY"] {
                if let Some(value) = head.get(key) {
                    newer.set(key, value.clone());
                }
            }
            if newer != there.head {
                change(held, new_key, &[mailbox_head(&newer)], &|index| {
                    let now = index.mailbox(&row.uniqueid)?;
                    Ok(now.is_some_and(|r| r.deleted.is_none() && r.head == newer))
                })?;
            }
        }
        _ => carry(held, old_key, new_key, head, row)?,
    }
    let line = Line::new("UNMAILBOX", &Value::text(old));
    change(held, old_key, &[line], &|index| {
        Ok(index.mailbox_by_name(old)?.is_none())
    })
}

/// What was erased of a mailbox stays so for its new owner. On record before he has anything of it.
fn inherit(held: &mut Held, old_key: &str, new_key: &str, row: &MailboxRow) -> Result<()> {
    let db = held.shared().catalog.path().to_owned();
    erased::inherit(&db, time::now(), (old_key, new_key), &mut |guid| {
        let records = held.ask(old_key, &mut |index, _| index.records_of(guid))?;
        let mut records = records.into_iter().flatten();
        Ok(records.any(|r| r.mailbox_id == row.id))
    })
}

fn modseq(head: &MailboxHead) -> u64 {
    head.number("HIGHESTMODSEQ").unwrap_or(0)
}

/// States a mailbox's present state to another backup.
fn carry(
    held: &mut Held,
    old_key: &str,
    new_key: &str,
    mut head: MailboxHead,
    row: &MailboxRow,
) -> Result<()> {
    if head.is_intermediate() {
        return intermediate(held, new_key, head);
    }
    readdress_head(held, &mut head, old_key, new_key, row)?;
    let mut stated = Stated {
        spool: Spool::new(&held.shared().staging, u64::MAX),
        has_literal: head.keys.iter().any(|(_, v)| needs_literal(v)),
        has_record: true,
        listed: 0,
        wanted: HashSet::new(),
        head,
    };
    let mut text = stated.head.print();
    text.pop();
    text.extend_from_slice(b" RECORD (");
    stated.spool.append(&text)?;
    let mut doubted = false;
    held.ask_once(old_key, &mut |index, _| {
        doubted = index.resync(&row.uniqueid)?.is_some();
        index.records(row.id, Some(row.epoch), false, &mut |r| {
            let mut record = r.record.clone();
            readdress(&mut record.annotations, old_key, new_key);
            let value = record.to_value();
            let mut text = if stated.listed > 0 {
                vec![b' ']
            } else {
                Vec::new()
            };
            text.extend_from_slice(&print_to_vec(&value, Form::Log));
            stated.has_literal |= needs_literal(&value);
            stated.listed += 1;
            stated.wanted.insert(r.record.guid);
            stated.spool.append(&text)
        })
    })?;
    stated.spool.append(b"))")?;
    for guid in &stated.wanted {
        held.promised.insert(*guid, old_key.to_owned());
    }
    let uniqueid = row.uniqueid.clone();
    let mboxname = stated.head.mboxname()?.to_owned();
    let epoch = held
        .ask(new_key, &mut |index, _| index.mailbox(&uniqueid))?
        .flatten()
        .map_or(1, |r| r.epoch);
    enter(held, new_key, stated, Some(epoch), true)?;
    if doubted {
        let line = resync_line(&uniqueid, 1, "was in doubt before it moved");
        log::warn!("mailbox to be sent again user=<{new_key}> mailbox=<{mboxname}>");
        held.get(new_key)?.append(&[line], time::now())?;
    }
    Ok(())
}

/// What the old owner has remarked for himself is the new one's: a server that renames changes these
/// annotations without a new modseq, and never states them. Whether there were any.
fn readdress(annotations: &mut [Value], old_key: &str, new_key: &str) -> bool {
    let mut any = false;
    for annotation in annotations {
        let Value::Kv(keys) = annotation else {
            continue;
        };
        for (key, value) in keys {
            if key == b"USERID" && value.as_str() == Some(old_key) {
                *value = Value::text(new_key);
                any = true;
            }
        }
    }
    any
}

/// The same for the head of a mailbox, and for the sum over the annotations of its messages.
fn readdress_head(
    held: &mut Held,
    head: &mut MailboxHead,
    old_key: &str,
    new_key: &str,
    row: &MailboxRow,
) -> Result<()> {
    if let Some(Value::List(mut list)) = head.get("ANNOTATIONS").cloned() {
        if readdress(&mut list, old_key, new_key) {
            head.set("ANNOTATIONS", Value::List(list));
        }
    }
    let Some(mut sum) = head.sum("SYNC_CRC_ANNOT").filter(|&n| n != 0) else {
        return Ok(());
    };
    held.ask_once(old_key, &mut |index, _| {
        index.records(row.id, Some(row.epoch), false, &mut |r| {
            let mut record = r.record.clone();
            if readdress(&mut record.annotations, old_key, new_key) {
                // Thread ids are nobody's own: both spellings change alike.
                sum ^= r.record.sums().annot_short ^ record.sums().annot_short;
            }
            Ok(())
        })
    })?;
    let before = head.sum("SYNC_CRC_ANNOT").unwrap_or(sum);
    if before != sum {
        held.readdressed.insert(row.uniqueid.clone(), before ^ sum);
    }
    head.set("SYNC_CRC_ANNOT", Value::num(sum));
    Ok(())
}
