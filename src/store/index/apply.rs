//! Enters a line of the log: the one place that knows what each line means, for receiving and for
//! rebuilding alike. Private facts stand in RESERVE lines under X-CYRBACKUP (`store::line`).

use super::{Index, MailboxOutcome, Mode, Stated};
use crate::cyrus::dlist::{ParseError, Parser, Start, Value};
use crate::cyrus::guid::Guid;
use crate::cyrus::header::{Envelope, LOOKED_AT};
use crate::cyrus::sync::{MailboxHead, Record};
use crate::error::{Error, Kind, Result};
use crate::store::line::{PRIVATE, key_of};
use crate::util::time::Timestamp;
use sha1::{Digest, Sha1};
use std::collections::BTreeSet;
use std::io::BufRead;

/// What is carried from line to line while a log is entered.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    /// A COMPLETE fact that waits for its MAILBOX line: uniqueid and epoch.
    pub complete: Option<(String, i64)>,
    /// A DIFFERS fact that waits for its MAILBOX line: uniqueid.
    pub differs: Option<String>,
    /// Bodies at or behind this (chunk, offset) wait for a reference.
    pub waiting: Option<(i64, u64)>,
    /// True time less printed time, in seconds, as the last CLOCK fact of the chunk said.
    pub clock: i64,
    /// Bodies that do not match their GUID; they are not entered. Offset in the chunk.
    pub wrong: Vec<(Guid, u64)>,
    /// Bodies are passed over: the index entered into knows them from elsewhere.
    pub without_bodies: bool,
    /// An AT fact: up to the chunk's end all is entered with this time, in seconds.
    pub at: Option<i64>,
    /// A STATED fact that waits for its MAILBOX line: uniqueid and what the line does not tell.
    pub stated: Option<(String, Stated)>,
    /// Identities of the mailboxes that MAILBOX lines were about.
    pub mailboxes: BTreeSet<String>,
    /// A private fact was met: the log is not one of the old tools.
    pub ours: bool,
}

impl Lines {
    /// Whether the last line says something only together with the next one.
    pub fn is_waiting(&self) -> bool {
        self.complete.is_some() || self.stated.is_some() || self.differs.is_some()
    }
}

/// A clock that is behind by less, in seconds, is not worth a note.
const BEHIND: i64 = 60;

fn bad(what: &str) -> Error {
    Error::new(Kind::Damaged, format!("line without a good {what}"))
}

/// Where a line stands: offsets in the plain text of its chunk.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The chunk.
    pub chunk_id: i64,
    /// The line's beginning.
    pub line: u64,
    /// What the parser counts as its byte 0.
    pub origin: u64,
}

/// Enters the line whose value stands before the parser; `stamp` is its printed time. MAILBOX lines return what was found.
pub fn apply_line<R: BufRead>(
    index: &Index,
    lines: &mut Lines,
    name: &[u8],
    parser: &mut Parser<R>,
    stamp: Timestamp,
    place: Place,
) -> Result<Option<MailboxOutcome>> {
    let time = Timestamp(lines.at.unwrap_or(stamp.0 + lines.clock));
    // Nothing ends with what comes before a MAILBOX.
    let may_end = !matches!(name, b"RESERVE" | b"MESSAGE");
    if lines.at.is_none() && lines.clock < -BEHIND && may_end {
        index.late(stamp.0, time.0, time.0)?;
    }
    let position = (place.chunk_id << 40) | (place.line & ((1 << 40) - 1)) as i64;
    match name {
        b"MAILBOX" => {
            return mailbox(index, lines, parser, time, position).map(Some);
        }
        b"MESSAGE" => messages(index, lines, parser, time, place)?,
        b"UNMAILBOX" => {
            let v = parser.value()?;
            index.unmailbox(v.as_str().ok_or_else(|| bad("name"))?, time)?;
        }
        b"RENAME" => rename(index, &parser.value()?, time)?,
        b"SUB" => index.subscribe(&text(&parser.value()?, "MBOXNAME")?, time)?,
        b"UNSUB" => index.unsubscribe(&text(&parser.value()?, "MBOXNAME")?, time)?,
        b"SEEN" => {
            let v = parser.value()?;
            let id = text(&v, "UNIQUEID")?;
            index.seen(&id, &without(&v, "USERID"), time)?;
        }
        b"SIEVE" => {
            let v = parser.value()?;
            let content = v
                .get("CONTENT")
                .and_then(Value::as_bytes)
                .ok_or_else(|| bad("CONTENT"))?;
            let updated = v.get("LAST_UPDATE").and_then(Value::as_u64).unwrap_or(0);
            index.sieve(&text(&v, "FILENAME")?, updated, content, time)?;
        }
        b"UNSIEVE" => index.unsieve(&text(&parser.value()?, "FILENAME")?, time)?,
        b"RESERVE" => {
            let v = parser.value()?;
            if let Some(facts) = v.get(PRIVATE).and_then(Value::as_kv) {
                lines.ours = true;
                for (key, fact) in facts {
                    match key.as_slice() {
                        b"CLOCK" => {
                            let true_ms = fact.get("TIME").and_then(Value::as_u64);
                            let true_ms = true_ms.ok_or_else(|| bad("CLOCK"))? as i64;
                            lines.clock = true_ms / 1000 - stamp.0;
                            index.set_meta("stepped", place.chunk_id)?;
                        }
                        b"MANIFEST" => index.set_meta("manifest", place.chunk_id - 1)?,
                        b"AT" => {
                            let at = fact.as_u64().ok_or_else(|| bad("AT"))?;
                            lines.at = Some(at as i64);
                        }
                        _ => private(index, lines, key, fact, time, position)?,
                    }
                }
            }
        }
        // Other tools' lines say nothing to us; reading on is what they need.
        _ => {
            parser.value()?;
        }
    }
    Ok(None)
}

fn text(v: &Value, key: &str) -> Result<String> {
    v.get(key)
        .and_then(Value::as_str)
        .map(str::to_owned)
        .ok_or_else(|| bad(key))
}

fn number(v: &Value, key: &str) -> Result<i64> {
    let number = v.get(key).and_then(Value::as_u64).map(|n| n as i64);
    number.ok_or_else(|| bad(key))
}

fn without(v: &Value, key: &str) -> Value {
    match v {
        Value::Kv(items) => Value::Kv(
            items
                .iter()
                .filter(|(k, _)| k != key.as_bytes())
                .cloned()
                .collect(),
        ),
        other => other.clone(),
    }
}

fn mailbox<R: BufRead>(
    index: &Index,
    lines: &mut Lines,
    parser: &mut Parser<R>,
    time: Timestamp,
    position: i64,
) -> Result<MailboxOutcome> {
    if !matches!(parser.start()?, Start::Kv) {
        return Err(bad("MAILBOX"));
    }
    let mut head = MailboxHead { keys: Vec::new() };
    let mut entered: Option<super::MailboxApply<'_>> = None;
    while let Some(key) = parser.kv_next()? {
        if key != b"RECORD" {
            let value = parser.value()?;
            match &mut entered {
                Some(apply) => apply.add_key(key, value),
                None => head.keys.push((key, value)),
            }
            continue;
        }
        if !matches!(parser.start()?, Start::List) || entered.is_some() {
            return Err(bad("RECORD"));
        }
        let mut apply = start(index, lines, &head, time, position)?;
        while parser.list_next()? {
            apply.record(&Record::from_value(parser.value()?)?)?;
        }
        entered = Some(apply);
    }
    match entered {
        Some(apply) => apply,
        None => start(index, lines, &head, time, position)?,
    }
    .finish()
}

fn start<'a>(
    index: &'a Index,
    lines: &mut Lines,
    head: &MailboxHead,
    time: Timestamp,
    position: i64,
) -> Result<super::MailboxApply<'a>> {
    let uniqueid = head.uniqueid()?;
    for key in ["LAST_UID", "HIGHESTMODSEQ", "UIDVALIDITY"] {
        // One that is no number can only be damage, and no sender would understand it.
        if head.get(key).is_some() && head.number(key).is_none() {
            return Err(bad(key));
        }
    }
    if !lines.mailboxes.contains(uniqueid) {
        lines.mailboxes.insert(uniqueid.to_owned());
    }
    let mode = match (lines.complete.take(), lines.stated.take()) {
        (_, Some((id, stated))) if id == uniqueid => Mode::Stated(stated),
        (Some((id, epoch)), _) if id == uniqueid => Mode::Complete(epoch),
        _ => Mode::Changes,
    };
    let differs = lines.differs.take().is_some_and(|id| id == uniqueid);
    let mut apply = index.begin_mailbox(head.clone(), mode, time, position, lines.waiting)?;
    if differs {
        apply.differs();
    }
    Ok(apply)
}

fn messages<R: BufRead>(
    index: &Index,
    lines: &mut Lines,
    parser: &mut Parser<R>,
    time: Timestamp,
    place: Place,
) -> Result<()> {
    if !matches!(parser.start()?, Start::List) {
        return Err(bad("MESSAGE"));
    }
    while parser.list_next()? {
        match parser.start()? {
            Start::File(head) => {
                if lines.without_bodies {
                    parser.body(head.size, &mut |_| Ok::<(), ParseError>(()))?;
                    continue;
                }
                let offset = place.origin + parser.position();
                let mut start = Vec::new();
                let mut sha1 = Sha1::new();
                parser.body(head.size, &mut |part| {
                    sha1.update(part);
                    let room = LOOKED_AT - start.len();
                    start.extend_from_slice(&part[..part.len().min(room)]);
                    Ok::<(), ParseError>(())
                })?;
                if sha1.finalize()[..] != head.guid.0 {
                    lines.wrong.push((head.guid, offset));
                    continue;
                }
                index.message(
                    head.guid,
                    place.chunk_id,
                    offset,
                    head.size,
                    &String::from_utf8_lossy(&head.partition),
                    &Envelope::read(&start),
                    time,
                )?;
            }
            // The old server wrote NIL for what it could not read.
            Start::Leaf(_) => {}
            _ => return Err(bad("MESSAGE")),
        }
    }
    Ok(())
}

/// The old format's RENAME, by name; we write MAILBOX lines instead.
fn rename(index: &Index, v: &Value, time: Timestamp) -> Result<()> {
    let (old, new) = (text(v, "OLDMBOXNAME")?, text(v, "NEWMBOXNAME")?);
    let Some(row) = index.mailbox_by_name(&old)? else {
        return Ok(());
    };
    let mut head = row.head;
    head.set("MBOXNAME", Value::text(&new));
    for key in ["PARTITION", "UIDVALIDITY"] {
        if let Some(value) = v.get(key) {
            head.set(key, value.clone());
        }
    }
    index
        .begin_mailbox(head, Mode::Changes, time, row.position, None)?
        .finish()?;
    if user_part(&old) != user_part(&new) {
        // The old server wrote it here whoever got the mailbox. What comes later is in other logs.
        index.unmailbox(&new, time)?;
    }
    Ok(())
}

/// What tells a mailbox's owner in its internal name: domain and user, nothing for shared ones.
fn user_part(mboxname: &str) -> Option<(&str, &str)> {
    let (domain, local) = mboxname.rsplit_once('!').unwrap_or(("", mboxname));
    let mut parts = local.split('.');
    match (parts.next(), parts.next()) {
        (Some("user"), Some(user)) => Some((domain, user)),
        // Below the prefix of deleted mailboxes.
        (Some(_), Some("user")) => parts.next().map(|user| (domain, user)),
        _ => None,
    }
}

fn private(
    index: &Index,
    lines: &mut Lines,
    key: &[u8],
    fact: &Value,
    time: Timestamp,
    position: i64,
) -> Result<()> {
    let level = |key| fact.get(key).and_then(Value::as_u64).unwrap_or(1) as i64;
    match key {
        b"GENERATION" => {
            index.set_meta("key", key_of(fact).ok_or_else(|| bad("KEY"))?)?;
            // Later ones, of a backup that got another name, tell nothing new of the log.
            if index
                .meta_text("generation")?
                .is_none_or(|id| id.is_empty())
            {
                index.set_meta("generation", text(fact, "ID")?)?;
                let created = fact.get("CREATED").and_then(Value::as_u64);
                index.set_meta("created", created.map_or(time.0, |t| t as i64))?;
                index.unset_meta("new")?;
            }
        }
        // What compaction writes: all that is known at a time; before it stand bodies only.
        b"STATE" => {
            let (id, at) = (text(fact, "ID")?, number(fact, "TIME")?);
            index.set_meta("state_last", position >> 40)?;
            if index.meta_text("state")?.as_deref() != Some(&id) {
                index.forget()?;
                index.set_meta("state", id)?;
                index.set_meta("state_time", at)?;
                index.set_meta("state_chunk", position >> 40)?;
            }
        }
        b"STATED" => {
            let stated = Stated {
                epoch: number(fact, "EPOCH")?,
                created: number(fact, "CREATED")?,
                changed: number(fact, "CHANGED")?,
                deleted: fact
                    .get("DELETED")
                    .and_then(Value::as_u64)
                    .map(|t| t as i64),
                unreliable: fact.get("UNRELIABLE").is_some(),
            };
            lines.stated = Some((text(fact, "UNIQUEID")?, stated));
        }
        b"PAST" => {
            let records = fact.get("RECORD").and_then(Value::as_list);
            let epoch = number(fact, "EPOCH")?;
            let mut past = index.begin_past(&text(fact, "UNIQUEID")?, epoch, position)?;
            for record in records.ok_or_else(|| bad("PAST"))? {
                past.record(&Record::from_value(record.clone())?)?;
            }
        }
        b"LATE" => {
            let (first, last) = (number(fact, "FIRST")?, number(fact, "LAST")?);
            index.late(number(fact, "PRINTED")?, first, last)?;
        }
        b"COMPACTED" => index.set_meta("compacted", position >> 40)?,
        b"COMPLETE" => lines.complete = Some((text(fact, "UNIQUEID")?, level("EPOCH"))),
        b"DIFFERS" => lines.differs = Some(text(fact, "UNIQUEID")?),
        b"RESYNC" => {
            let why = text(fact, "WHY")?;
            index.mark_resync(&text(fact, "UNIQUEID")?, level("LEVEL"), &why, time)?;
        }
        // An intermediate mailbox: six keys, no records.
        b"MAILBOX" => {
            let Value::Kv(keys) = fact else {
                return Err(bad("MAILBOX"));
            };
            let head = MailboxHead { keys: keys.clone() };
            start(index, lines, &head, time, position)?.finish()?;
        }
        b"QUOTA" => index.quota(&text(fact, "ROOT")?, fact, time)?,
        b"UNQUOTA" => index.unquota(fact.as_str().ok_or_else(|| bad("UNQUOTA"))?, time)?,
        b"ACTIVATE_SIEVE" => {
            index.activate_sieve(Some(&text(fact, "FILENAME")?), time)?;
        }
        b"UNACTIVATE_SIEVE" => index.activate_sieve(None, time)?,
        b"UNUSER" => index.unuser(fact.as_str().ok_or_else(|| bad("UNUSER"))?, time)?,
        b"ANNOTATION" => {
            let value = fact.get("VALUE").and_then(Value::as_bytes).unwrap_or(b"");
            index.annotation(
                &text(fact, "MBOXNAME")?,
                &text(fact, "ENTRY")?,
                fact.get("USERID").and_then(Value::as_str).unwrap_or(""),
                value,
                time,
            )?;
        }
        b"UNANNOTATION" => index.unannotation(
            &text(fact, "MBOXNAME")?,
            &text(fact, "ENTRY")?,
            fact.get("USERID").and_then(Value::as_str).unwrap_or(""),
            time,
        )?,
        // Facts of later versions.
        _ => {}
    }
    Ok(())
}
