//! APPLY: what each command stores, and what is refused.
//!
//! Nothing optional is refused: a refusal blocks the sender's whole queue. What changes nothing
//! writes nothing. A command is answered OK when its lines are on disk and entered. A MAILBOX that
//! does not fit what we have is marked `resync` in the log and answered IMAP_SYNC_CHANGED; the
//! sender's next attempt then brings the whole mailbox.

use super::held::Held;
use crate::cyrus::config::Rename;
use crate::cyrus::dlist::{Form, ParseError, Parser, Start, Value, Why, print, print_to_vec};
use crate::cyrus::guid::Guid;
use crate::cyrus::mboxname::{MboxName, Owner, inbox_of};
use crate::cyrus::sync::{MailboxHead, Record};
use crate::error::{Error, Kind, Result};
use crate::store::backup::{MailboxResult, resync_line};
use crate::store::index::{Index, MailboxOutcome, MailboxRow, RecordRow};
use crate::store::line::{Line, needs_literal};
use crate::store::reader;
use crate::store::spool::Spool;
use crate::util::time;
use sha1::{Digest, Sha1};
use std::collections::{BTreeSet, HashSet};
use std::io::{BufRead, Write};

/// Records up to which every MAILBOX is checked against what the rows say.
const READ_ANEW: i64 = 128;

/// Records up to which every MAILBOX is checked against the sums in the rows.
const CHECKED: i64 = 512;

/// A mailbox with more records is checked so rarely that this many rows are read for each MAILBOX
/// on average: the cost does not grow with the mailbox.
const CHECK_SHARE: i64 = 256;

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
        b"MESSAGE" => messages(held, parser),
        b"MAILBOX" => mailbox(held, parser),
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
        b"UNMAILBOX" => unmailbox(held, &value),
        b"RENAME" => rename(held, &value),
        b"SUB" => subscribe(held, &value, true),
        b"UNSUB" => subscribe(held, &value, false),
        b"SEEN" => seen(held, &value),
        b"SIEVE" => sieve(held, &value),
        b"UNSIEVE" => unsieve(held, &value),
        b"ACTIVATE_SIEVE" => activate(held, &value, true),
        b"UNACTIVATE_SIEVE" => activate(held, &value, false),
        b"QUOTA" => quota(held, &value),
        b"UNQUOTA" => unquota(held, &value),
        b"ANNOTATION" => annotation(held, &value, true),
        b"UNANNOTATION" => annotation(held, &value, false),
        b"UNUSER" => unuser(held, &value),
        b"EXPUNGE" => expunge(held, &value),
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
    let several = keys.len() > 1;
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
        if several {
            for guid in &found {
                held.promised.insert(*guid, key.clone());
            }
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

/// Where a body is going.
enum Sink {
    Backup(String),
    Staging,
    Nowhere,
}

fn messages<R: BufRead>(held: &mut Held, parser: &mut Parser<R>) -> Read<()> {
    match parser.start()? {
        Start::List => {}
        Start::Leaf(_) => {
            parser.end_line()?;
            return Ok(Err(Error::new(Kind::Protocol, "MESSAGE without a list")));
        }
        _ => {
            return Err(ParseError {
                at: parser.position(),
                why: Why::Syntax("MESSAGE without a list"),
            });
        }
    }
    let expected = held.expected().map(str::to_owned);
    let mut done: Result<()> = Ok(());
    let mut unread = 0u64;
    while parser.list_next()? {
        let head = match parser.start()? {
            Start::File(head) => head,
            // A message the sender could not read. Its record comes all the same.
            Start::Leaf(Value::Nil) => {
                unread += 1;
                continue;
            }
            _ => {
                return Err(ParseError {
                    at: parser.position(),
                    why: Why::Syntax("MESSAGE holds something else than messages"),
                });
            }
        };
        let mut sink = Sink::Nowhere;
        if done.is_ok() {
            match begin(
                held,
                expected.as_deref(),
                &head.partition,
                head.guid,
                head.size,
            ) {
                Ok(s) => sink = s,
                Err(e) => done = Err(e),
            }
        }
        let mut sha1 = Sha1::new();
        let mut failed: Option<Error> = None;
        parser.body(head.size, &mut |part| {
            sha1.update(part);
            if failed.is_none() {
                let stored = match &sink {
                    Sink::Backup(key) => held.get(key).and_then(|b| b.body_data(part)),
                    Sink::Staging => held.staging.data(part),
                    Sink::Nowhere => Ok(()),
                };
                failed = stored.err();
            }
            Ok::<(), ParseError>(())
        })?;
        if failed.is_none() && sha1.finalize()[..] != head.guid.0 {
            failed = Some(Error::new(
                Kind::Protocol,
                format!("message {} does not match its GUID", head.guid),
            ));
        }
        let ended = match (&sink, &failed) {
            (Sink::Backup(key), None) => held.get(key).and_then(|b| b.body_end()),
            (Sink::Backup(key), Some(_)) => {
                // Takes the bodies before it along; the sender brings them all again.
                if let Ok(b) = held.get(key) {
                    b.abort();
                }
                Ok(())
            }
            (Sink::Staging, None) => {
                held.staging
                    .end(head.guid, &String::from_utf8_lossy(&head.partition));
                Ok(())
            }
            (Sink::Staging, Some(_)) => {
                held.staging.forget();
                Ok(())
            }
            (Sink::Nowhere, _) => Ok(()),
        };
        held.stats.messages += 1;
        held.stats.bytes += head.size;
        if done.is_ok() {
            done = failed.map_or(ended, Err);
        }
    }
    parser.end_line()?;
    if unread > 0 {
        log::warn!("the sender could not read messages it announced count={unread}");
    }
    if let Some(key) = expected {
        if held.held(&key).is_some() {
            let ended = held.get(&key).and_then(|b| b.messages_end());
            if done.is_ok() {
                done = ended;
            }
        }
    }
    Ok(done)
}

fn begin(
    held: &mut Held,
    expected: Option<&str>,
    partition: &[u8],
    guid: Guid,
    size: u64,
) -> Result<Sink> {
    if held.staging.has(guid) {
        return Ok(Sink::Nowhere);
    }
    match expected {
        Some(key) => {
            let now = time::now();
            let backup = held.get(key)?;
            if backup.is_pending(guid)? {
                return Ok(Sink::Nowhere);
            }
            backup.body_begin(partition, guid, size, now)?;
            Ok(Sink::Backup(key.to_owned()))
        }
        None => {
            held.staging.begin();
            Ok(Sink::Staging)
        }
    }
}

/// A MAILBOX command, read.
struct Stated {
    head: MailboxHead,
    spool: Spool,
    has_literal: bool,
    has_record: bool,
    listed: u64,
    /// Messages it refers to that must be brought from elsewhere.
    wanted: HashSet<Guid>,
}

fn mailbox<R: BufRead>(held: &mut Held, parser: &mut Parser<R>) -> Read<()> {
    let stated = match read_mailbox(held, parser)? {
        Ok(stated) => stated,
        Err(e) => return Ok(Err(e)),
    };
    Ok(state(held, stated))
}

/// Reads a MAILBOX into canonical text, in constant memory.
fn read_mailbox<R: BufRead>(held: &mut Held, parser: &mut Parser<R>) -> Read<Stated> {
    let mut stated = Stated {
        head: MailboxHead { keys: Vec::new() },
        spool: Spool::new(&held.shared().staging, u64::MAX),
        has_literal: false,
        has_record: false,
        listed: 0,
        wanted: HashSet::new(),
    };
    let syntax = |parser: &Parser<R>, what| ParseError {
        at: parser.position(),
        why: Why::Syntax(what),
    };
    if !matches!(parser.start()?, Start::Kv) {
        return Err(syntax(parser, "MAILBOX without %()"));
    }
    let look = !held.staging.is_empty() || !held.promised.is_empty() || held.others_pending("");
    let mut fault: Result<()> = stated.spool.append(b"%(");
    let mut first = true;
    let mut kept = 0;
    let mut last_uid = 0;
    while let Some(key) = parser.kv_next()? {
        let mut text = Vec::new();
        if !std::mem::take(&mut first) {
            text.push(b' ');
        }
        text.extend_from_slice(&key);
        text.push(b' ');
        if key != b"RECORD" {
            let value = parser.kept_value(&mut kept)?;
            stated.has_literal |= needs_literal(&value);
            let _ = print(&value, Form::Log, &mut text);
            keep(&mut fault, stated.spool.append(&text));
            stated.head.keys.push((key, value));
            continue;
        }
        if !matches!(parser.start()?, Start::List) || stated.has_record {
            return Err(syntax(parser, "RECORD is not one list"));
        }
        stated.has_record = true;
        text.push(b'(');
        while parser.list_next()? {
            let value = parser.value()?;
            if stated.listed > 0 {
                text.push(b' ');
            }
            stated.listed += 1;
            stated.has_literal |= value.get("ANNOTATIONS").is_some_and(needs_literal);
            let _ = print(&value, Form::Log, &mut text);
            keep(&mut fault, stated.spool.append(&text));
            text.clear();
            match Record::from_value(value) {
                // A real server refuses these too.
                Ok(record) if record.uid <= last_uid => keep(
                    &mut fault,
                    Err(Error::new(
                        Kind::Protocol,
                        "RECORD with UIDs that do not ascend",
                    )),
                ),
                Ok(record) if look && !record.expunged => {
                    last_uid = record.uid;
                    let guid = record.guid;
                    if held.staging.has(guid)
                        || held.promised.contains_key(&guid)
                        || held.others_pending("")
                    {
                        stated.wanted.insert(guid);
                    }
                }
                Ok(record) => last_uid = record.uid,
                Err(e) => keep(&mut fault, Err(e)),
            }
        }
        text.push(b')');
        keep(&mut fault, stated.spool.append(&text));
    }
    parser.end_line()?;
    keep(&mut fault, stated.spool.append(b")"));
    keep(&mut fault, stated.head.check());
    if !stated.has_record && !stated.head.is_intermediate() {
        keep(
            &mut fault,
            Err(Error::new(Kind::Protocol, "MAILBOX without RECORD")),
        );
    }
    Ok(fault.map(|()| stated))
}

/// Keeps the first error.
fn keep(fault: &mut Result<()>, next: Result<()>) {
    if fault.is_ok() {
        *fault = next;
    }
}

/// What to do with a MAILBOX, decided from what we have.
enum Plan {
    Nothing,
    Changes,
    /// The complete state, of this epoch.
    Complete(i64),
    /// Ask again: what we have is fine.
    Changed(&'static str),
    /// What we have is not fine: mark it with this level.
    Mark(i64, &'static str),
}

fn state(held: &mut Held, stated: Stated) -> Result<()> {
    let mboxname = stated.head.mboxname()?.to_owned();
    let uniqueid = stated.head.uniqueid()?.to_owned();
    let key = held.shared().owner_of(&mboxname)?;
    if stated.head.is_intermediate() {
        return intermediate(held, &key, stated.head);
    }
    held.get(&key)?;
    let asked = held.complete.contains(&uniqueid);
    let backup = held.get(&key)?;
    let index = backup.index();
    let row = index.mailbox(&uniqueid)?;
    let mark = index.resync(&uniqueid)?;
    let plan = plan(&stated, row.as_ref(), mark.as_ref(), asked);
    let doubted = mark.is_some();
    match plan {
        Plan::Nothing => Ok(()),
        Plan::Changed(why) => Err(Error::new(Kind::Changed, why).place(mboxname)),
        Plan::Mark(level, why) => Err(resync(held, &key, &uniqueid, &mboxname, level, why)),
        Plan::Changes => {
            if said_before(index, &stated, row.as_ref())? {
                Ok(())
            } else {
                enter(held, &key, stated, None, false)
            }
        }
        Plan::Complete(epoch) => enter(held, &key, stated, Some(epoch), doubted),
    }?;
    held.complete.remove(&uniqueid);
    held.stats.mailboxes += 1;
    Ok(())
}

/// Whether head and records are all as we have them, bodies included: the same MAILBOX again.
fn said_before(index: &Index, stated: &Stated, row: Option<&MailboxRow>) -> Result<bool> {
    let Some(row) = row.filter(|r| r.head == stated.head) else {
        return Ok(false);
    };
    let mut parser = Parser::new(
        stated.spool.reader(0, stated.spool.len()),
        crate::cyrus::dlist::Limits::default(),
    );
    parser.start()?;
    while let Some(key) = parser.kv_next()? {
        if key != b"RECORD" {
            parser.value()?;
            continue;
        }
        parser.start()?;
        while parser.list_next()? {
            let record = Record::from_value(parser.value()?)?;
            let known = index.record(row.id, row.epoch, record.uid)?;
            if !known.is_some_and(|k| k.record == record && !k.gone && !k.missing) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn plan(
    stated: &Stated,
    row: Option<&MailboxRow>,
    mark: Option<&(i64, String)>,
    asked: bool,
) -> Plan {
    let head = &stated.head;
    let given = |key| head.number(key).filter(|&n| n != 0);
    let since = given("SINCE_MODSEQ");
    if let Some((level, _)) = mark {
        if since.is_some() {
            return Plan::Changed("the whole mailbox is wanted");
        }
        let epoch = row.map_or(1, |r| r.epoch);
        return Plan::Complete(if *level > 1 { epoch + 1 } else { epoch });
    }
    let Some(row) = row.filter(|r| r.deleted.is_none() && !r.intermediate) else {
        if since.is_some() {
            return Plan::Changed("no such state here");
        }
        return Plan::Complete(row.map_or(1, |r| r.epoch));
    };
    let mut same = head.clone();
    for key in ["SINCE_MODSEQ", "SINCE_CRC", "SINCE_CRC_ANNOT"] {
        same.remove(key);
    }
    if stated.listed == 0 && same == row.head {
        return Plan::Nothing;
    }
    let lower = |key, ours| head.number(key).is_some_and(|n| n < ours);
    let went_back = lower("HIGHESTMODSEQ", row.highestmodseq)
        || lower("LAST_UID", row.last_uid)
        || lower("UIDVALIDITY", row.uidvalidity);
    if asked && since.is_none() {
        return Plan::Complete(if went_back { row.epoch + 1 } else { row.epoch });
    }
    if since.is_some_and(|n| n != row.highestmodseq) {
        return Plan::Changed("another state was assumed here");
    }
    let sum = |key| row.head.sum(key).filter(|&n| n != 0);
    for (theirs, ours) in [
        ("SINCE_CRC", "SYNC_CRC"),
        ("SINCE_CRC_ANNOT", "SYNC_CRC_ANNOT"),
    ] {
        if let (Some(a), Some(b)) = (given(theirs), sum(ours)) {
            if a as u32 != b {
                return Plan::Changed("another checksum was assumed here");
            }
        }
    }
    if went_back {
        return Plan::Mark(2, "the server went back to an older state");
    }
    Plan::Changes
}

/// Enters a MAILBOX and judges what was found.
fn enter(
    held: &mut Held,
    key: &str,
    stated: Stated,
    complete: Option<i64>,
    doubted: bool,
) -> Result<()> {
    let uniqueid = stated.head.uniqueid()?.to_owned();
    let mboxname = stated.head.mboxname()?.to_owned();
    let mut epoch = complete;
    let mut wanted = stated.wanted.clone();
    held.gather(key, &wanted)?;
    for _ in 0..4 {
        held.supply(key, &wanted)?;
        let backup = held.get(key)?;
        let mut before = Vec::new();
        if let Some(other) = backup.index().mailbox_by_name(&mboxname)? {
            if other.uniqueid != uniqueid {
                // The older one of that name is gone on the server.
                before.push(Line::new("UNMAILBOX", &Value::text(&mboxname)));
            }
        }
        if let Some(epoch) = epoch {
            before.push(Line::private(
                "COMPLETE",
                Value::kv([
                    ("UNIQUEID", Value::text(&uniqueid)),
                    ("EPOCH", Value::num(epoch)),
                ]),
            ));
        }
        let entered = backup.mailbox(&before, &stated.spool, stated.has_literal, time::now())?;
        let outcome = match entered {
            MailboxResult::Entered(outcome) => outcome,
            MailboxResult::Unreferred => {
                held.evict(key)?;
                // Bring back what this one refers to.
                wanted = referred(held, &stated)?;
                continue;
            }
        };
        match judge(held, key, &stated, &outcome, epoch.is_some(), doubted)? {
            Verdict::Good => {
                held.get(key)?.commit()?;
                held.staging.stored(&wanted, key);
                return Ok(());
            }
            Verdict::NewEpoch => {
                held.evict(key)?;
                wanted = referred(held, &stated)?;
                epoch = epoch.map(|e| e + 1);
            }
            Verdict::Doubt(level, why) => {
                return Err(resync(held, key, &uniqueid, &mboxname, level, &why));
            }
        }
    }
    Err(Error::new(Kind::Internal, "a MAILBOX does not settle").place(mboxname))
}

/// The staged messages among those the command lists.
fn referred(held: &Held, stated: &Stated) -> Result<HashSet<Guid>> {
    let mut out = HashSet::new();
    let mut parser = Parser::new(
        stated.spool.reader(0, stated.spool.len()),
        crate::cyrus::dlist::Limits::default(),
    );
    if !matches!(parser.start()?, Start::Kv) {
        return Ok(out);
    }
    while let Some(key) = parser.kv_next()? {
        if key != b"RECORD" {
            parser.value()?;
            continue;
        }
        parser.start()?;
        while parser.list_next()? {
            let record = Record::from_value(parser.value()?)?;
            if held.staging.has(record.guid) || held.promised.contains_key(&record.guid) {
                out.insert(record.guid);
            }
        }
    }
    Ok(out)
}

enum Verdict {
    Good,
    NewEpoch,
    Doubt(i64, String),
}

fn judge(
    held: &mut Held,
    key: &str,
    stated: &Stated,
    outcome: &MailboxOutcome,
    complete: bool,
    doubted: bool,
) -> Result<Verdict> {
    let mboxname = stated.head.mboxname()?;
    if outcome.conflicts > 0 {
        return Ok(if complete {
            Verdict::NewEpoch
        } else {
            Verdict::Doubt(2, "a UID came back with another message".into())
        });
    }
    if let Some((uid, guid)) = outcome.first_missing {
        if !doubted {
            return Ok(Verdict::Doubt(
                1,
                format!("{} bodies lack, first uid {uid}", outcome.missing),
            ));
        }
        // They were asked for and did not come: the server has none either.
        log::error!(
            "message bodies do not exist on the sender user=<{key}> mailbox=<{mboxname}> \
             count={} first_uid={uid} first_guid=<{guid}>",
            outcome.missing
        );
    }
    if !outcome.agrees {
        if complete {
            log::warn!("checksum of a complete state differs user=<{key}> mailbox=<{mboxname}>");
        } else if !outcome.unreliable {
            return Ok(Verdict::Doubt(1, "checksum differs".into()));
        }
    } else if !complete {
        let index = held.get(key)?.index();
        if let Some(row) = index.mailbox(stated.head.uniqueid()?)? {
            let counted = if row.records <= READ_ANEW {
                index.sums_of_rows(row.id, row.epoch)?
            } else if row.records <= CHECKED
                || row.highestmodseq % (row.records / CHECK_SHARE).unsigned_abs() == 0
            {
                index.true_sums(row.id, row.epoch)?
            } else {
                (row.sums, row.records)
            };
            if counted != (row.sums, row.records) {
                return Ok(Verdict::Doubt(1, "records lack in the index".into()));
            }
        }
    }
    Ok(Verdict::Good)
}

/// Marks a mailbox in the log and makes the refusal.
fn resync(
    held: &mut Held,
    key: &str,
    uniqueid: &str,
    mboxname: &str,
    level: i64,
    why: &str,
) -> Error {
    log::warn!("mailbox to be sent again user=<{key}> mailbox=<{mboxname}> reason=<{why}>");
    let line = resync_line(uniqueid, level, why);
    // If the bodies cannot be kept they are asked for again, with all the rest.
    if let Err(e) = held.evict(key) {
        log::warn!("bodies dropped user=<{key}> error=<{e}>");
    }
    let marked = held.get(key).and_then(|b| b.append(&[line], time::now()));
    match marked {
        Ok(()) => Error::new(Kind::Changed, why).place(mboxname),
        Err(e) => e,
    }
}

fn intermediate(held: &mut Held, key: &str, head: MailboxHead) -> Result<()> {
    let uniqueid = head.uniqueid()?.to_owned();
    let line = Line::private("MAILBOX", Value::Kv(head.keys.clone()));
    change(held, key, &[line], &|index| {
        Ok(index
            .mailbox(&uniqueid)?
            .is_some_and(|row| row.deleted.is_none() && row.head == head))
    })
}

fn unmailbox(held: &mut Held, value: &Value) -> Result<()> {
    let name = whole(value, "mailbox name")?;
    let key = held.shared().owner_of(name)?;
    let line = Line::new("UNMAILBOX", &Value::text(name));
    change_existing(held, &key, &[line], &|index| {
        Ok(index.mailbox_by_name(name)?.is_none())
    })
}

/// A mailbox's head as a MAILBOX line without records: old tools follow renames by it.
fn head_line(head: &MailboxHead) -> Line {
    if head.is_intermediate() {
        return Line::private("MAILBOX", Value::Kv(head.keys.clone()));
    }
    let mut keys = head.keys.clone();
    keys.push((b"RECORD".to_vec(), Value::List(Vec::new())));
    Line::new("MAILBOX", &Value::Kv(keys))
}

fn rename(held: &mut Held, value: &Value) -> Result<()> {
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
    lines.push(head_line(&head));
    change(held, &old_key, &lines, &|index| {
        Ok(index
            .mailbox(&row.uniqueid)?
            .is_some_and(|r| r.deleted.is_none() && r.head == head))
    })
}

/// A mailbox that leaves its owner: its past stays here; the new owner's backup begins with its
/// present state, for which the live bodies are copied. Nothing is sent again.
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
    let known = held
        .ask(new_key, &mut |index, _| index.mailbox(&row.uniqueid))?
        .flatten()
        .is_some_and(|r| r.deleted.is_none() && r.head == head);
    if !known {
        carry(held, old_key, new_key, head, row)?;
    }
    let line = Line::new("UNMAILBOX", &Value::text(old));
    change(held, old_key, &[line], &|index| {
        Ok(index.mailbox_by_name(old)?.is_none())
    })
}

/// States a mailbox's present state to another backup.
fn carry(
    held: &mut Held,
    old_key: &str,
    new_key: &str,
    head: MailboxHead,
    row: &MailboxRow,
) -> Result<()> {
    if head.is_intermediate() {
        return intermediate(held, new_key, head);
    }
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
    held.ask(old_key, &mut |index, _| {
        doubted = index.resync(&row.uniqueid)?.is_some();
        index.records(row.id, Some(row.epoch), false, &mut |r| {
            let value = r.record.to_value();
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

fn subscribe(held: &mut Held, value: &Value, on: bool) -> Result<()> {
    let key = held.shared().user_key(text(value, "USERID")?)?;
    let name = text(value, "MBOXNAME")?;
    let line = Line::new(if on { "SUB" } else { "UNSUB" }, value);
    let unchanged = |index: &Index| Ok(index.is_subscribed(name)? == on);
    if on {
        change(held, &key, &[line], &unchanged)
    } else {
        change_existing(held, &key, &[line], &unchanged)
    }
}

fn seen(held: &mut Held, value: &Value) -> Result<()> {
    let key = held.shared().user_key(text(value, "USERID")?)?;
    let uniqueid = text(value, "UNIQUEID")?;
    for needed in ["LASTREAD", "LASTUID", "LASTCHANGE", "SEENUIDS"] {
        text(value, needed)?;
    }
    let line = Line::new("SEEN", value);
    change(held, &key, &[line], &|index| {
        Ok(index.seen_state(uniqueid)?.is_some_and(|old| {
            ["LASTREAD", "LASTUID", "LASTCHANGE", "SEENUIDS"]
                .iter()
                .all(|k| old.get(k) == value.get(k))
        }))
    })
}

fn sieve(held: &mut Held, value: &Value) -> Result<()> {
    let key = held.shared().user_key(text(value, "USERID")?)?;
    let filename = text(value, "FILENAME")?;
    let updated = value
        .get("LAST_UPDATE")
        .and_then(Value::as_u64)
        .ok_or_else(|| Error::new(Kind::Protocol, "SIEVE without a good LAST_UPDATE"))?;
    let content = value
        .get("CONTENT")
        .and_then(Value::as_bytes)
        .ok_or_else(|| Error::new(Kind::Protocol, "SIEVE without CONTENT"))?;
    let line = Line::new("SIEVE", value);
    change(held, &key, &[line], &|index| {
        Ok(index
            .scripts(false)?
            .iter()
            .any(|s| s.filename == filename && s.content == content && s.last_update == updated))
    })
}

fn unsieve(held: &mut Held, value: &Value) -> Result<()> {
    let key = held.shared().user_key(text(value, "USERID")?)?;
    let filename = text(value, "FILENAME")?;
    // A deactivation comes as the removal of the active script's bytecode.
    let active = held
        .ask(&key, &mut |index, _| index.active_script())?
        .flatten();
    if active.as_deref() == Some(filename) {
        return activate(held, value, false);
    }
    let line = Line::new("UNSIEVE", value);
    change_existing(held, &key, &[line], &|index| {
        Ok(!index.scripts(false)?.iter().any(|s| s.filename == filename))
    })
}

fn activate(held: &mut Held, value: &Value, on: bool) -> Result<()> {
    let key = held.shared().user_key(text(value, "USERID")?)?;
    let wanted = if on {
        Some(text(value, "FILENAME")?.to_owned())
    } else {
        None
    };
    let name = if on {
        "ACTIVATE_SIEVE"
    } else {
        "UNACTIVATE_SIEVE"
    };
    let line = Line::private(name, value.clone());
    let unchanged = |index: &Index| Ok(index.active_script()? == wanted);
    if on {
        change(held, &key, &[line], &unchanged)
    } else {
        change_existing(held, &key, &[line], &unchanged)
    }
}

fn quota(held: &mut Held, value: &Value) -> Result<()> {
    let root = text(value, "ROOT")?;
    let key = held.shared().owner_of(root)?;
    let line = Line::private("QUOTA", value.clone());
    change(held, &key, &[line], &|index| {
        Ok(index.quotas()?.iter().any(|(r, v)| r == root && v == value))
    })
}

fn unquota(held: &mut Held, value: &Value) -> Result<()> {
    let root = whole(value, "quota root")?;
    let key = held.shared().owner_of(root)?;
    let line = Line::private("UNQUOTA", value.clone());
    change_existing(held, &key, &[line], &|index| {
        Ok(!index.quotas()?.iter().any(|(r, _)| r == root))
    })
}

fn annotation(held: &mut Held, value: &Value, on: bool) -> Result<()> {
    let mboxname = text(value, "MBOXNAME")?;
    let entry = text(value, "ENTRY")?;
    let userid = value.get("USERID").and_then(Value::as_str).unwrap_or("");
    let wanted = value.get("VALUE").and_then(Value::as_bytes).unwrap_or(b"");
    let key = annotation_key(held, mboxname)?;
    let name = if on { "ANNOTATION" } else { "UNANNOTATION" };
    let line = Line::private(name, value.clone());
    let unchanged = |index: &Index| {
        let known = index.annotations(mboxname)?;
        let ours = known
            .iter()
            .find(|(e, u, _)| e == entry && u == userid)
            .map(|(_, _, v)| v.as_slice());
        Ok(if on {
            ours == Some(wanted)
        } else {
            ours.is_none()
        })
    };
    if on {
        change(held, &key, &[line], &unchanged)
    } else {
        change_existing(held, &key, &[line], &unchanged)
    }
}

fn unuser(held: &mut Held, value: &Value) -> Result<()> {
    let userid = whole(value, "userid")?;
    let key = held.shared().user_key(userid)?;
    let inbox = inbox_of(&key, &held.shared().ns);
    let below = format!("{inbox}.");
    let is_its = |name: &str| name == inbox || name.starts_with(&below);
    let names: Vec<String> = held
        .ask(&key, &mut |index, _| index.mailboxes(false))?
        .unwrap_or_default()
        .into_iter()
        .map(|m| m.mboxname)
        .filter(|n| is_its(n))
        .collect();
    // Old tools know UNMAILBOX only.
    let mut lines: Vec<Line> = names
        .iter()
        .map(|n| Line::new("UNMAILBOX", &Value::text(n)))
        .collect();
    lines.push(Line::private("UNUSER", Value::text(&inbox)));
    change_existing(held, &key, &lines, &|index| {
        Ok(!index.mailboxes(false)?.iter().any(|m| is_its(&m.mboxname))
            && index.subscriptions(false)?.is_empty()
            && index.scripts(false)?.is_empty()
            && index.seen_states()?.is_empty()
            && index.quotas()?.is_empty()
            && index.active_script()?.is_none())
    })
}

/// EXPUNGE: the sender has forgotten these messages. Kept as a MAILBOX line that lists them as
/// expunged, which every reader of the log understands.
fn expunge(held: &mut Held, value: &Value) -> Result<()> {
    let mboxname = text(value, "MBOXNAME")?;
    let uniqueid = text(value, "UNIQUEID")?;
    let uids: BTreeSet<u32> = value
        .get("UID")
        .and_then(Value::as_list)
        .ok_or_else(|| Error::new(Kind::Protocol, "EXPUNGE without UID"))?
        .iter()
        .filter_map(|v| v.as_u64().and_then(|n| u32::try_from(n).ok()))
        .collect();
    let key = held.shared().owner_of(mboxname)?;
    if held.held(&key).is_none() && held.shared().catalog.lookup(&key)?.is_none() {
        return Ok(());
    }
    held.get(&key)?;
    held.evict(&key)?;
    let backup = held.get(&key)?;
    let index = backup.index();
    let Some(row) = index.mailbox(uniqueid)?.filter(|r| r.deleted.is_none()) else {
        return Err(Error::new(Kind::Moved, "no such mailbox").place(mboxname));
    };
    let mut head = row.head.clone();
    let mut sums = row.sums;
    let mut records = Vec::new();
    for uid in uids {
        let Some(RecordRow { mut record, .. }) = index
            .record(row.id, row.epoch, uid)?
            .filter(|r| r.expunged.is_none())
        else {
            continue;
        };
        sums.toggle(record.sums());
        record.expunged = true;
        records.push(record);
    }
    if records.is_empty() {
        return Ok(());
    }
    head.set("SYNC_CRC", Value::num(sums.record));
    head.set("SYNC_CRC_ANNOT", Value::num(0));
    head.keys.push((
        b"RECORD".to_vec(),
        Value::List(records.iter().map(Record::to_value).collect()),
    ));
    let line = Line::new("MAILBOX", &Value::Kv(head.keys));
    backup.append(&[line], time::now())
}
