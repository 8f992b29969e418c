//! Answers to GET. None creates anything, and none can make a sender change its own server: only
//! what was last accepted is told, mailboxes in doubt are left out, FOLDERMODSEQ and RACLMODSEQ
//! are never told.
//!
//! A stock client asks FULLMAILBOX when it has forgotten deletions that we have not heard of, and
//! then rewrites its own records by comparing them with the answer: whatever differs gets a new
//! modseq, a new UID or our flags. The only answer that changes nothing there is an empty one with
//! LAST_UID and HIGHESTMODSEQ 0. It is followed by GET MAILBOXES, which we answer with
//! HIGHESTMODSEQ 0 but the true LAST_UID: so the client states every record and uploads only what
//! is new, and that MAILBOX is taken as the complete state.

use super::held::Held;
use crate::cyrus::dlist::{Form, Value, print_to_vec};
use crate::cyrus::guid::Guid;
use crate::cyrus::sync::MailboxHead;
use crate::error::{Error, Kind, Result};
use crate::store::index::{Index, MailboxRow};
use std::collections::{HashMap, HashSet};
use std::io::Write;

/// Writes the data lines of one GET; the caller adds the final line.
pub fn get(held: &mut Held, what: &[u8], arg: &Value, out: &mut dyn Write) -> Result<()> {
    match what.to_ascii_uppercase().as_slice() {
        b"USER" => user(held, arg, true, out),
        b"META" => user(held, arg, false, out),
        b"MAILBOXES" => mailboxes(held, arg, out),
        b"FULLMAILBOX" => full_mailbox(held, arg, out),
        b"QUOTA" => quota(held, arg, out),
        b"ANNOTATION" => annotation(held, arg, out),
        b"UNIQUEIDS" => Ok(()),
        b"FETCH_SIEVE" => fetch_sieve(held, arg, out),
        b"FETCH" => Err(Error::new(
            Kind::Denied,
            "a backup never sends messages back to a sender; use cyr_backup restore",
        )),
        _ => Err(Error::new(Kind::Protocol, "unknown GET")),
    }
}

fn line(out: &mut dyn Write, name: &str, value: &Value) -> Result<()> {
    let mut text = format!("* {name} ").into_bytes();
    text.extend_from_slice(&print_to_vec(value, Form::Reply));
    text.extend_from_slice(b"\r\n");
    out.write_all(&text)
        .map_err(|e| Error::io("cannot answer", e))
}

fn name_of<'a>(arg: &'a Value, what: &str) -> Result<&'a str> {
    arg.as_str()
        .filter(|_| matches!(arg, Value::Text(_)))
        .ok_or_else(|| Error::new(Kind::Protocol, format!("GET without a {what}")))
}

fn named(held: &mut Held, keys: Vec<String>) {
    held.named = keys;
    held.promised.clear();
}

fn user(held: &mut Held, arg: &Value, with_mailboxes: bool, out: &mut dyn Write) -> Result<()> {
    let key = held.shared().user_key(name_of(arg, "userid")?)?;
    named(held, vec![key.clone()]);
    let mut told = HashSet::new();
    let text = held.ask(&key, &mut |index, _| {
        let mut text = Vec::new();
        let out = &mut text;
        told.clear();
        if with_mailboxes {
            for row in index.mailboxes(false)? {
                if is_told(index, &row)? {
                    told.insert(row.uniqueid.clone());
                    mailbox_line(&row, held.complete.contains(&row.uniqueid), out)?;
                }
            }
            for (_, quota) in index.quotas()? {
                line(out, "QUOTA", &quota)?;
            }
        }
        for seen in index.seen_states()? {
            line(out, "SEEN", &seen.value)?;
        }
        let subs = index.subscriptions(false)?;
        if !subs.is_empty() {
            let names = subs.iter().map(|s| Value::text(&s.mboxname)).collect();
            line(out, "LSUB", &Value::List(names))?;
        }
        for script in index.scripts(false)? {
            line(
                out,
                "SIEVE",
                &Value::kv([
                    ("FILENAME", Value::text(&script.filename)),
                    ("LAST_UPDATE", Value::num(script.last_update)),
                    ("GUID", Value::text(script.guid.to_string())),
                    ("ISACTIVE", Value::num(0)),
                ]),
            )?;
        }
        // Cyrus marks the active script on its bytecode, of which it knows no content.
        if let Some(active) = index.active_script()? {
            line(
                out,
                "SIEVE",
                &Value::kv([
                    ("FILENAME", Value::text(active)),
                    ("LAST_UPDATE", Value::num(0)),
                    ("GUID", Value::text(Guid::NULL.to_string())),
                    ("ISACTIVE", Value::num(1)),
                ]),
            )?;
        }
        Ok(text)
    })?;
    held.told = told;
    write_out(out, text)
}

/// An answer goes out as a whole: it may have been made twice.
fn write_out(out: &mut dyn Write, text: Option<Vec<u8>>) -> Result<()> {
    out.write_all(&text.unwrap_or_default())
        .map_err(|e| Error::io("cannot answer", e))
}

/// Whether a live mailbox may be told: placeholders need not, those in doubt must not.
fn is_told(index: &Index, row: &MailboxRow) -> Result<bool> {
    Ok(!row.intermediate && index.resync(&row.uniqueid)?.is_none())
}

fn mailbox_line(row: &MailboxRow, complete: bool, out: &mut dyn Write) -> Result<()> {
    let mut head = row.head.clone();
    if complete {
        for key in ["HIGHESTMODSEQ", "SYNC_CRC", "SYNC_CRC_ANNOT"] {
            head.set(key, Value::num(0));
        }
    }
    line(out, "MAILBOX", &head.reply())
}

fn mailboxes(held: &mut Held, arg: &Value, out: &mut dyn Write) -> Result<()> {
    let names = arg
        .as_list()
        .ok_or_else(|| Error::new(Kind::Protocol, "GET MAILBOXES without a list"))?;
    let mut by_owner: Vec<(String, Vec<&str>)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for name in names {
        let name = name_of(name, "mailbox name")?;
        let key = held.shared().owner_of(name)?;
        let at = *places.entry(key.clone()).or_insert(by_owner.len());
        match by_owner.get_mut(at) {
            Some((_, list)) => list.push(name),
            None => by_owner.push((key, vec![name])),
        }
    }
    // One mailbox behind a FULLMAILBOX: the sender is in the midst of what it reserved for.
    if names.len() != 1 || held.complete.is_empty() {
        named(held, by_owner.iter().map(|(k, _)| k.clone()).collect());
    }
    // One that is on its way to another owner is told once.
    let mut told = HashSet::new();
    for (key, names) in by_owner {
        let rows = held.ask(&key, &mut |index, _| {
            let mut rows = Vec::new();
            for name in &names {
                if let Some(row) = index.mailbox_by_name(name)? {
                    let is_told = is_told(index, &row)?;
                    rows.push((row, is_told));
                }
            }
            Ok(rows)
        })?;
        for (row, is_told) in rows.unwrap_or_default() {
            // Behind a GET USER this may be the second word about it.
            if !is_told {
                held.told.remove(&row.uniqueid);
                continue;
            }
            held.told.insert(row.uniqueid.clone());
            if told.insert(row.uniqueid.clone()) {
                mailbox_line(&row, held.complete.contains(&row.uniqueid), out)?;
            }
        }
    }
    Ok(())
}

fn full_mailbox(held: &mut Held, arg: &Value, out: &mut dyn Write) -> Result<()> {
    let name = name_of(arg, "mailbox name")?;
    let key = held.shared().owner_of(name)?;
    let row = held
        .ask(&key, &mut |index, _| match index.mailbox_by_name(name)? {
            Some(row) if is_told(index, &row)? => Ok(Some(row)),
            Some(_) => Err(Error::new(
                Kind::Changed,
                "mailbox is to be sent again as a whole",
            )),
            None => Ok(None),
        })?
        .flatten();
    let Some(row) = row else {
        return Err(Error::new(Kind::NotFound, "no such mailbox"));
    };
    let Value::Kv(keys) = row.head.reply() else {
        return Err(Error::new(Kind::Internal, "a mailbox without keys"));
    };
    let mut head = MailboxHead { keys };
    for key in [
        "LAST_UID",
        "HIGHESTMODSEQ",
        "SYNC_CRC",
        "SYNC_CRC_ANNOT",
        "XCONVMODSEQ",
    ] {
        if head.get(key).is_some() {
            head.set(key, Value::num(0));
        }
    }
    // The client takes over a higher UIDVALIDITY: tell none.
    head.set("UIDVALIDITY", Value::num(0));
    head.set("RECORD", Value::List(Vec::new()));
    held.complete.insert(row.uniqueid);
    let value = Value::Kv(head.keys);
    line(out, "MAILBOX", &value)
}

fn quota(held: &mut Held, arg: &Value, out: &mut dyn Write) -> Result<()> {
    let root = name_of(arg, "quota root")?;
    let key = held.shared().owner_of(root)?;
    let text = held.ask(&key, &mut |index, _| {
        let mut text = Vec::new();
        for (name, quota) in index.quotas()? {
            if name == root {
                line(&mut text, "QUOTA", &quota)?;
            }
        }
        Ok(text)
    })?;
    write_out(out, text)
}

fn annotation(held: &mut Held, arg: &Value, out: &mut dyn Write) -> Result<()> {
    let name = match arg {
        Value::Nil => "",
        other => name_of(other, "mailbox name")?,
    };
    let key = super::apply::annotation_key(held, name)?;
    let text = held.ask(&key, &mut |index, _| {
        let mut text = Vec::new();
        for (entry, userid, value) in index.annotations(name)? {
            line(
                &mut text,
                "ANNOTATION",
                &Value::kv([
                    ("MBOXNAME", Value::text(name)),
                    ("ENTRY", Value::text(entry)),
                    ("USERID", Value::text(userid)),
                    ("VALUE", Value::text(value)),
                ]),
            )?;
        }
        Ok(text)
    })?;
    write_out(out, text)
}

fn fetch_sieve(held: &mut Held, arg: &Value, out: &mut dyn Write) -> Result<()> {
    let text = |key| {
        arg.get(key)
            .and_then(Value::as_str)
            .ok_or_else(|| Error::new(Kind::Protocol, format!("GET FETCH_SIEVE without {key}")))
    };
    let (userid, filename) = (text("USERID")?, text("FILENAME")?);
    let key = held.shared().user_key(userid)?;
    let text = held.ask(&key, &mut |index, _| {
        let mut text = Vec::new();
        for script in index.scripts(false)? {
            if script.filename == filename {
                line(
                    &mut text,
                    "SIEVE",
                    &Value::kv([
                        ("USERID", Value::text(userid)),
                        ("FILENAME", Value::text(filename)),
                        ("LAST_UPDATE", Value::num(script.last_update)),
                        ("CONTENT", Value::text(&script.content)),
                    ]),
                )?;
            }
        }
        Ok(text)
    })?;
    write_out(out, text)
}
