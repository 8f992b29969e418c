//! MAILBOX and EXPUNGE: the state of a mailbox is read into canonical text, compared with what we
//! have, entered, and judged.

use super::{Read, change, text};
use crate::cyrus::dlist::{Form, Limits, ParseError, Parser, Start, Value, Why, print};
use crate::cyrus::guid::Guid;
use crate::cyrus::sync::{MailboxHead, Record};
use crate::error::{Error, Kind, Result};
use crate::server::held::Held;
use crate::store::backup::{MailboxResult, resync_line};
use crate::store::index::{Index, MailboxOutcome, MailboxRow, RecordRow};
use crate::store::line::{Line, needs_literal};
use crate::store::spool::Spool;
use crate::util::time;
use std::collections::{BTreeSet, HashSet};
use std::io::BufRead;

/// Records up to which every MAILBOX is checked against what the rows say.
const READ_ANEW: i64 = 128;

/// Records up to which every MAILBOX is checked against the sums in the rows.
const CHECKED: i64 = 512;

/// A mailbox with more records is checked so rarely that this many rows are read for each MAILBOX
/// on average: the cost does not grow with the mailbox.
const CHECK_SHARE: i64 = 256;

/// A MAILBOX command, read.
pub(super) struct Stated {
    pub(super) head: MailboxHead,
    pub(super) spool: Spool,
    pub(super) has_literal: bool,
    pub(super) has_record: bool,
    pub(super) listed: u64,
    /// Messages it refers to that must be brought from elsewhere.
    pub(super) wanted: HashSet<Guid>,
}

impl Stated {
    /// Reads the records once more, until `each` returns false.
    fn each_record(&self, each: &mut dyn FnMut(Record) -> Result<bool>) -> Result<()> {
        let text = self.spool.reader(0, self.spool.len());
        let mut parser = Parser::new(text, Limits::default());
        parser.start()?;
        while let Some(key) = parser.kv_next()? {
            if key != b"RECORD" {
                parser.value()?;
                continue;
            }
            parser.start()?;
            while parser.list_next()? {
                if !each(Record::from_value(parser.value()?)?)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

pub(super) fn mailbox<R: BufRead>(held: &mut Held, parser: &mut Parser<R>) -> Read<()> {
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
    let told = held.told.contains(&uniqueid);
    let change = held.readdressed.get(&uniqueid).copied().unwrap_or(0);
    let backup = held.get(&key)?;
    let index = backup.index();
    let row = index.mailbox(&uniqueid)?;
    let mark = index.resync(&uniqueid)?;
    let plan = plan(&stated, row.as_ref(), mark.as_ref(), asked, told, change);
    let doubted = mark.is_some();
    let done = match plan {
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
    };
    if done.as_ref().is_err_and(|e| e.kind() == Kind::Changed) {
        // From here on the sender knows.
        held.told.remove(&uniqueid);
    }
    done?;
    held.complete.remove(&uniqueid);
    held.stats.mailboxes += 1;
    Ok(())
}

/// Whether head and records are all as we have them, bodies included: the same MAILBOX again.
fn said_before(index: &Index, stated: &Stated, row: Option<&MailboxRow>) -> Result<bool> {
    let Some(row) = row.filter(|r| r.head == stated.head) else {
        return Ok(false);
    };
    let mut same = true;
    stated.each_record(&mut |record| {
        let known = index.record(row.id, row.epoch, record.uid)?;
        same = known.is_some_and(|k| k.record == record && !k.gone && !k.missing);
        Ok(same)
    })?;
    Ok(same)
}

fn plan(
    stated: &Stated,
    row: Option<&MailboxRow>,
    mark: Option<&(i64, String)>,
    asked: bool,
    told: bool,
    change: u32,
) -> Plan {
    let head = &stated.head;
    let given = |key| head.number(key).filter(|&n| n != 0);
    let since = given("SINCE_MODSEQ");
    if let Some((level, _)) = mark {
        // A sender that was told the mailbox before it was marked sends changes, and old ones do not
        // say since when.
        if since.is_some() || told {
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
    // A sender may mean the sum of before the user got another name.
    for (theirs, ours, change) in [
        ("SINCE_CRC", "SYNC_CRC", 0),
        ("SINCE_CRC_ANNOT", "SYNC_CRC_ANNOT", change),
    ] {
        if let (Some(a), Some(b)) = (given(theirs), sum(ours)) {
            if a as u32 != b && a as u32 != b ^ change {
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
pub(super) fn enter(
    held: &mut Held,
    key: &str,
    stated: Stated,
    complete: Option<i64>,
    doubted: bool,
) -> Result<()> {
    let uniqueid = stated.head.uniqueid()?.to_owned();
    let mboxname = stated.head.mboxname()?.to_owned();
    let mut epoch = complete;
    let mut differs = false;
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
        if differs {
            let fact = Value::kv([("UNIQUEID", Value::text(&uniqueid))]);
            before.push(Line::private("DIFFERS", fact));
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
            Verdict::Differs => {
                held.evict(key)?;
                wanted = referred(held, &stated)?;
                differs = true;
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
    stated.each_record(&mut |record| {
        if held.staging.has(record.guid) || held.promised.contains_key(&record.guid) {
            out.insert(record.guid);
        }
        Ok(true)
    })?;
    Ok(out)
}

enum Verdict {
    Good,
    NewEpoch,
    /// Good, if the log says that the sums differ.
    Differs,
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
            return Ok(match agrees_as_before(held, stated, outcome)? {
                true => Verdict::Differs,
                false => Verdict::Doubt(1, "checksum differs".into()),
            });
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

/// Whether a sum that differs is that of before the user got another name: Cyrus states it until the
/// mailbox changes otherwise.
fn agrees_as_before(held: &Held, stated: &Stated, outcome: &MailboxOutcome) -> Result<bool> {
    let Some(change) = held.readdressed.get(stated.head.uniqueid()?) else {
        return Ok(false);
    };
    let mut sums = outcome.sums;
    sums.annot_short ^= change;
    sums.annot_long ^= change;
    let sum = |key| stated.head.sum(key);
    Ok(sums.agrees(sum("SYNC_CRC"), sum("SYNC_CRC_ANNOT")))
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

pub(super) fn intermediate(held: &mut Held, key: &str, head: MailboxHead) -> Result<()> {
    let uniqueid = head.uniqueid()?.to_owned();
    let line = Line::private("MAILBOX", Value::Kv(head.keys.clone()));
    change(held, key, &[line], &|index| {
        Ok(index
            .mailbox(&uniqueid)?
            .is_some_and(|row| row.deleted.is_none() && row.head == head))
    })
}

/// EXPUNGE: the sender has forgotten these messages. Kept as a MAILBOX line that lists them as
/// expunged, which every reader of the log understands.
pub(super) fn expunge(held: &mut Held, value: &Value) -> Result<()> {
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
