//! APPLY: what each command stores, and what is refused.
//!
//! Nothing optional is refused: a refusal blocks the sender's whole queue. What changes nothing
//! writes nothing. A command is answered OK when its lines are on disk and entered. A MAILBOX that
//! does not fit what we have is marked `resync` in the log and answered IMAP_SYNC_CHANGED; the
//! sender's next attempt then brings the whole mailbox.

mod mailbox;
mod messages;
mod rename;
mod user;

use super::held::Held;
use crate::cyrus::dlist::{Form, ParseError, Parser, Value, print_to_vec};
use crate::cyrus::guid::Guid;
use crate::cyrus::mboxname::Owner;
use crate::error::{Error, Kind, Result};
use crate::store::index::Index;
use crate::store::line::Line;
use crate::store::reader;
use crate::util::time;
use std::collections::HashSet;
use std::io::{BufRead, Write};

/// What an APPLY did to the stream.
pub enum Applied {
    /// The command was read to its end; the result is for the sender.
    Done(Result<()>),
    /// The stream is out of step.
    Lost(ParseError),
}

/// Reads and carries out `APPLY what value`; data lines go to `out`.
pub fn apply<R: BufRead>(
    held: &mut Held,
    what: &[u8],
    parser: &mut Parser<R>,
    out: &mut dyn Write,
) -> Applied {
    let what = what.to_ascii_uppercase();
    let what = what.strip_prefix(b"LOCAL_").unwrap_or(&what);
    let read = match what {
        b"MESSAGE" => messages::messages(held, parser),
        b"MAILBOX" => mailbox::mailbox(held, parser),
        _ => simple(held, what, parser, out),
    };
    match read {
        Ok(done) => Applied::Done(done),
        Err(e) => Applied::Lost(e),
    }
}

/// The outer error is the stream's, the inner one the command's.
type Read<T> = std::result::Result<Result<T>, ParseError>;

fn simple<R: BufRead>(
    held: &mut Held,
    what: &[u8],
    parser: &mut Parser<R>,
    out: &mut dyn Write,
) -> Read<()> {
    let value = parser.value()?;
    parser.end_line()?;
    Ok(match what {
        b"RESERVE" => reserve(held, &value, out),
        b"CAPABILITIES" => out
            .write_all(b"* ENABLED ()\r\n")
            .map_err(|e| Error::io("cannot answer", e)),
        // Nothing here is ever "newer than the master": there is nothing to force.
        b"FORCE" => Ok(()),
        b"UNMAILBOX" => rename::unmailbox(held, &value),
        b"RENAME" => rename::rename(held, &value),
        b"SUB" => user::subscribe(held, &value, true),
        b"UNSUB" => user::subscribe(held, &value, false),
        b"SEEN" => user::seen(held, &value),
        b"SIEVE" => user::sieve(held, &value),
        b"UNSIEVE" => user::unsieve(held, &value),
        b"ACTIVATE_SIEVE" => user::activate(held, &value, true),
        b"UNACTIVATE_SIEVE" => user::activate(held, &value, false),
        b"QUOTA" => user::quota(held, &value),
        b"UNQUOTA" => user::unquota(held, &value),
        b"ANNOTATION" => user::annotation(held, &value, true),
        b"UNANNOTATION" => user::annotation(held, &value, false),
        b"UNUSER" => user::unuser(held, &value),
        b"EXPUNGE" => mailbox::expunge(held, &value),
        _ => Err(Error::new(Kind::Protocol, "unknown APPLY")),
    })
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value
        .get(key)
        .and_then(Value::as_str)
        .ok_or_else(|| Error::new(Kind::Protocol, format!("APPLY without a good {key}")))
}

fn whole<'a>(value: &'a Value, what: &str) -> Result<&'a str> {
    match value {
        Value::Text(_) => value.as_str(),
        _ => None,
    }
    .ok_or_else(|| Error::new(Kind::Protocol, format!("APPLY without a {what}")))
}

/// Whose backup keeps an annotation: the mailbox's, or the server's own.
pub fn annotation_key(held: &Held, mboxname: &str) -> Result<String> {
    if mboxname.is_empty() {
        Ok(Owner::Server.key())
    } else {
        held.shared().owner_of(mboxname)
    }
}

/// Makes lines durable in a backup unless `unchanged` says that they change nothing there. Looks
/// without the lock first, so that idle sessions neither wait nor write.
fn change(
    held: &mut Held,
    key: &str,
    lines: &[Line],
    unchanged: &dyn Fn(&Index) -> Result<bool>,
) -> Result<()> {
    if held.ask(key, &mut |index, _| unchanged(index))? == Some(true) {
        return Ok(());
    }
    held.get(key)?;
    held.evict(key)?;
    let backup = held.get(key)?;
    if unchanged(backup.index())? {
        return Ok(());
    }
    backup.append(lines, time::now())
}

/// The same where a backup that does not exist needs no change.
fn change_existing(
    held: &mut Held,
    key: &str,
    lines: &[Line],
    unchanged: &dyn Fn(&Index) -> Result<bool>,
) -> Result<()> {
    if held.held(key).is_none() && held.shared().catalog.lookup(key)?.is_none() {
        return Ok(());
    }
    change(held, key, lines, unchanged)
}

fn reserve(held: &mut Held, value: &Value, out: &mut dyn Write) -> Result<()> {
    let list = |key: &str| {
        value
            .get(key)
            .and_then(Value::as_list)
            .ok_or_else(|| Error::new(Kind::Protocol, format!("RESERVE without {key}")))
    };
    let mut keys: Vec<String> = held.named.clone();
    let mut known: HashSet<String> = keys.iter().cloned().collect();
    for name in list("MBOXNAME")? {
        let name = name
            .as_str()
            .ok_or_else(|| Error::new(Kind::Protocol, "RESERVE with a bad MBOXNAME"))?;
        let key = held.shared().owner_of(name)?;
        if known.insert(key.clone()) {
            keys.push(key);
        }
    }
    let mut wanted = Vec::new();
    for guid in list("GUID")? {
        wanted.push(
            guid.as_bytes()
                .and_then(Guid::parse)
                .ok_or_else(|| Error::new(Kind::Protocol, "RESERVE with a bad GUID"))?,
        );
    }
    let mut missing: Vec<Guid> = Vec::new();
    let mut open: Vec<Guid> = Vec::new();
    for guid in wanted {
        if !held.staging.has(guid) {
            open.push(guid);
        }
    }
    for key in &keys {
        if open.is_empty() {
            break;
        }
        let found: HashSet<Guid> = held
            .ask(key, &mut |index, file| {
                if index.any_resync()? {
                    // In doubt: only what really reads is there.
                    return reader::readable(index, file, open.iter().copied());
                }
                let mut found = HashSet::new();
                for guid in &open {
                    if index.body(*guid)?.is_some() {
                        found.insert(*guid);
                    }
                }
                Ok(found)
            })?
            .unwrap_or_default();
        // Also of one owner alone: before a RENAME the sender names the mailboxes as we have them, and
        // behind it the new owner's backup must have what the old one promised.
        for guid in &found {
            held.promised.insert(*guid, key.clone());
        }
        open.retain(|g| !found.contains(g));
    }
    missing.append(&mut open);
    if !missing.is_empty() {
        let guids = missing.iter().map(|g| Value::text(g.to_string())).collect();
        let mut line = b"* MISSING ".to_vec();
        line.extend_from_slice(&print_to_vec(&Value::List(guids), Form::Reply));
        line.extend_from_slice(b"\r\n");
        out.write_all(&line)
            .map_err(|e| Error::io("cannot answer", e))?;
    }
    Ok(())
}
