//! States all that is known at a time, as lines: what led to it can go then.
//!
//! The lines are those of the old format where it has some, each with the time at which it was
//! first said (AT), so that entering them gives the very rows they were made from. Mailboxes come
//! with every record that has not expired; STATED and a key in each record tell what a MAILBOX line
//! does not. Deleted mailboxes come first and end with an UNMAILBOX, for the old tools. Format:
//! `doc/format.md` 3.6.

use super::need::{Times, expired, went};
use super::out::Out;
use crate::cyrus::dlist::{Form, Limits, Parser, Value, print_to_vec};
use crate::error::{Error, Kind, Result};
use crate::store::index::{Index, Lasting, Late, MailboxRow, RecordRow, TIMES};
use crate::store::line::{Line, prefix};
use crate::util::time::Timestamp;

/// Records of earlier epochs in one line.
const PAST_RECORDS: usize = 500;

/// What a state is made from and where it goes.
pub struct Stating<'a> {
    /// The index as it was at that time.
    pub then: &'a Index,
    /// The index as it is: what came back to life since has not expired.
    pub live: &'a Index,
    /// When what was deleted expires.
    pub times: &'a Times<'a>,
    /// Whose backup it is.
    pub key: &'a str,
    /// A name of the state: random.
    pub id: &'a str,
    /// The time, in seconds; also printed before each line.
    pub time: i64,
    /// What came after this chunk is left out: to see how large the state of that time is, where
    /// `then` is not at hand, but only what is.
    pub upto: Option<i64>,
    /// Plain bytes after which a member goes on in a further one.
    pub max: u64,
}

/// Writes it, in members of its own.
pub fn write(what: &Stating<'_>, out: &mut Out<'_>) -> Result<()> {
    let mut writer = Writer {
        what,
        out,
        at: None,
        late: what.live.lates()?,
    };
    let mut mailboxes = what.then.mailboxes(true)?;
    mailboxes.sort_by_key(|m| m.deleted.is_none());
    for mailbox in &mailboxes {
        writer.mailbox(mailbox)?;
    }
    writer.others()?;
    // A state of nothing is one, too.
    writer.open()?;
    writer.out.end()
}

struct Writer<'w, 'o> {
    what: &'w Stating<'w>,
    out: &'w mut Out<'o>,
    /// What AT said last in the open member.
    at: Option<i64>,
    /// When the clock was behind.
    late: Late,
}

impl Writer<'_, '_> {
    /// Begins a member if none is open. Each says that a state stands here: one may be lost.
    fn open(&mut self) -> Result<()> {
        if self.out.is_open() {
            return Ok(());
        }
        self.out.begin()?;
        self.at = None;
        let fact = Value::kv([
            ("ID", Value::text(self.what.id)),
            ("TIME", Value::num(self.what.time)),
        ]);
        self.raw(&Line::private("STATE", fact))
    }

    fn raw(&mut self, line: &Line) -> Result<()> {
        let head = prefix(Timestamp(self.what.time), line.name);
        self.out.write(&head)?;
        self.out.write(&line.value)?;
        self.out.write(b"\r\n")
    }

    /// The member may end here.
    fn boundary(&mut self, literal: bool) -> Result<()> {
        if literal || self.out.position() > self.what.max {
            self.out.end()?;
        }
        Ok(())
    }

    /// A line that was first said at `time`.
    fn said(&mut self, time: i64, line: &Line) -> Result<()> {
        self.open()?;
        if self.at != Some(time) {
            self.raw(&Line::private("AT", Value::num(time)))?;
            self.at = Some(time);
        }
        self.raw(line)?;
        self.boundary(line.has_literal)
    }

    fn mailbox(&mut self, mailbox: &MailboxRow) -> Result<()> {
        let live = self.what.live.mailbox(&mailbox.uniqueid)?;
        let name = live.as_ref().map_or(&mailbox.mboxname, |m| &m.mboxname);
        let edge = self.what.times.edge_of(name);
        let unchanged = live.as_ref().is_none_or(|m| m.deleted == mailbox.deleted);
        let later = self.what.upto.is_some() && mailbox.created > self.what.time;
        if later || unchanged && expired(self.late.at(mailbox.deleted), edge) {
            return Ok(());
        }
        self.open()?;
        let mut keys = vec![
            ("UNIQUEID", Value::text(&mailbox.uniqueid)),
            ("EPOCH", Value::num(mailbox.epoch)),
            ("CREATED", Value::num(mailbox.created)),
            ("CHANGED", Value::num(mailbox.changed)),
        ];
        if let Some(deleted) = mailbox.deleted {
            keys.push(("DELETED", Value::num(deleted)));
        }
        if mailbox.unreliable {
            keys.push(("UNRELIABLE", Value::num(1)));
        }
        self.raw(&Line::private("STATED", Value::kv(keys)))?;
        let late = self.late.clone();
        let upto = self.what.upto.map(|id| (id, self.what.time));
        let fate = Fate {
            live,
            edge,
            late,
            upto,
        };
        if mailbox.intermediate {
            let head = Value::Kv(mailbox.head.keys.clone());
            let line = Line::private("MAILBOX", head);
            self.raw(&line)?;
            self.boundary(line.has_literal)?;
        } else {
            let literal = self.records(mailbox, &fate)?;
            self.boundary(literal)?;
        }
        self.past(mailbox, &fate)?;
        if mailbox.deleted.is_some() {
            self.open()?;
            self.raw(&Line::new("UNMAILBOX", &Value::text(&mailbox.mboxname)))?;
            self.boundary(false)?;
        }
        Ok(())
    }

    /// The MAILBOX line; whether there is a literal in it.
    fn records(&mut self, mailbox: &MailboxRow, fate: &Fate) -> Result<bool> {
        let (then, live) = (self.what.then, self.what.live);
        self.out
            .write(&prefix(Timestamp(self.what.time), "MAILBOX"))?;
        let head = mailbox.head.print();
        let open = head.strip_suffix(b")").unwrap_or(&head);
        self.out.write(open)?;
        let empty = open.ends_with(b"(");
        self.out
            .write(if empty { b"RECORD (" } else { b" RECORD (" })?;
        let mut literal = head.contains(&b'\n');
        let mut first = true;
        let out = &mut *self.out;
        then.records(mailbox.id, Some(mailbox.epoch), true, &mut |row| {
            if fate.drops(live, mailbox, &row)? {
                return Ok(());
            }
            let text = print_to_vec(&stated(row), Form::Log);
            literal |= text.contains(&b'\n');
            if !first {
                out.write(b" ")?;
            }
            first = false;
            out.write(&text)
        })?;
        self.out.write(b"))\r\n")?;
        Ok(literal)
    }

    /// Records of earlier epochs: history that no line of the old format tells.
    fn past(&mut self, mailbox: &MailboxRow, fate: &Fate) -> Result<()> {
        let live = self.what.live;
        let mut batch: Vec<Value> = Vec::new();
        let mut epoch = 0;
        let mut lines = Vec::new();
        let mut close = |epoch: i64, batch: &mut Vec<Value>| {
            if !batch.is_empty() {
                let fact = Value::kv([
                    ("UNIQUEID", Value::text(&mailbox.uniqueid)),
                    ("EPOCH", Value::num(epoch)),
                    ("RECORD", Value::List(std::mem::take(batch))),
                ]);
                lines.push(Line::private("PAST", fact));
            }
        };
        self.what.then.records(mailbox.id, None, true, &mut |row| {
            if row.epoch == mailbox.epoch || fate.drops(live, mailbox, &row)? {
                return Ok(());
            }
            if row.epoch != epoch || batch.len() >= PAST_RECORDS {
                close(epoch, &mut batch);
                epoch = row.epoch;
            }
            batch.push(stated(row));
            Ok(())
        })?;
        close(epoch, &mut batch);
        for line in lines {
            self.open()?;
            self.raw(&line)?;
            self.boundary(line.has_literal)?;
        }
        Ok(())
    }

    fn others(&mut self) -> Result<()> {
        let then = self.what.then;
        let edge = self.what.times.edge();
        let user = Value::text(self.what.key);
        for sub in then.lasting_subscriptions()? {
            if expired(self.late.at(sub.ended), edge) {
                continue;
            }
            let name = Value::text(&sub.name);
            let value = Value::kv([("USERID", user.clone()), ("MBOXNAME", name)]);
            self.said(sub.time, &Line::new("SUB", &value))?;
            if let Some(ended) = sub.ended {
                self.said(ended, &Line::new("UNSUB", &value))?;
            }
        }
        for seen in then.lasting_seen()? {
            let mut keys = vec![(b"USERID".to_vec(), user.clone())];
            keys.extend(kv(&seen.value)?);
            self.said(seen.time, &Line::new("SEEN", &Value::Kv(keys)))?;
        }
        self.scripts(edge)?;
        for quota in then.lasting_quotas()? {
            if expired(self.late.at(quota.ended), edge) {
                continue;
            }
            let value = Value::Kv(kv(&quota.value)?);
            self.said(quota.time, &Line::private("QUOTA", value))?;
            if let Some(ended) = quota.ended {
                let root = Value::text(&quota.name);
                self.said(ended, &Line::private("UNQUOTA", root))?;
            }
        }
        for (entry, userid, annotation) in then.lasting_annotations()? {
            if !expired(self.late.at(annotation.ended), edge) {
                self.annotation(&entry, &userid, annotation)?;
            }
        }
        for (uniqueid, level, why, time) in then.marks_since()? {
            let line = crate::store::backup::resync_line(&uniqueid, level, &why);
            self.said(time, &line)?;
        }
        Ok(())
    }

    fn scripts(&mut self, edge: Option<i64>) -> Result<()> {
        let then = self.what.then;
        let user = Value::text(self.what.key);
        let updates = then.script_updates()?;
        for (script, update) in then.lasting_scripts()?.into_iter().zip(updates) {
            if expired(self.late.at(script.ended), edge) {
                continue;
            }
            let name = Value::text(&script.name);
            let value = Value::kv([
                ("USERID", user.clone()),
                ("FILENAME", name.clone()),
                ("LAST_UPDATE", Value::num(update)),
                ("CONTENT", Value::text(&script.value)),
            ]);
            self.said(script.time, &Line::new("SIEVE", &value))?;
            if let Some(ended) = script.ended {
                let value = Value::kv([("USERID", user.clone()), ("FILENAME", name)]);
                self.said(ended, &Line::new("UNSIEVE", &value))?;
            }
        }
        if let Some((script, since)) = then.active_since()? {
            let (key, name) = match script {
                Some(name) => ("ACTIVATE_SIEVE", name),
                None => ("UNACTIVATE_SIEVE", String::new()),
            };
            let fact = Value::kv([("USERID", user), ("FILENAME", Value::text(name))]);
            self.said(since, &Line::private(key, fact))?;
        }
        Ok(())
    }

    fn annotation(&mut self, entry: &str, userid: &str, annotation: Lasting) -> Result<()> {
        let mut keys = vec![
            ("MBOXNAME", Value::text(&annotation.name)),
            ("ENTRY", Value::text(entry)),
            ("USERID", Value::text(userid)),
        ];
        let whose = Value::kv(keys.clone());
        keys.push(("VALUE", Value::text(&annotation.value)));
        self.said(
            annotation.time,
            &Line::private("ANNOTATION", Value::kv(keys)),
        )?;
        if let Some(ended) = annotation.ended {
            self.said(ended, &Line::private("UNANNOTATION", whose))?;
        }
        Ok(())
    }
}

/// What decides whether a mailbox's records are over.
struct Fate {
    live: Option<MailboxRow>,
    edge: Option<i64>,
    late: Late,
    /// The chunk after which nothing counts, and its time.
    upto: Option<(i64, i64)>,
}

impl Fate {
    /// Whether a record has expired and nothing has changed about that since; or came too late.
    fn drops(&self, live: &Index, mailbox: &MailboxRow, row: &RecordRow) -> Result<bool> {
        if let Some((upto, time)) = self.upto {
            // By the clock alone, one that was put back would deceive.
            let body = live.body(row.record.guid)?;
            if row.arrived > time || body.is_some_and(|body| body.chunk_id > upto) {
                return Ok(true);
            }
        }
        let ended = |at| expired(self.late.at(at), self.edge);
        if !ended(went(row.expunged, mailbox.deleted)) {
            return Ok(false);
        }
        let Some(now) = &self.live else {
            return Ok(true);
        };
        let later = live.record(now.id, row.epoch, row.record.uid)?;
        Ok(match later {
            None => true,
            Some(later) => {
                ended(went(later.expunged, now.deleted)) && later.expunged == row.expunged
            }
        })
    }
}

/// A record with the times that its line does not tell.
fn stated(row: RecordRow) -> Value {
    let mut record = row.record;
    let mut times = vec![Value::num(row.arrived), Value::num(row.changed)];
    if let Some(expunged) = row.expunged {
        times.push(Value::num(expunged));
        if row.gone {
            times.push(Value::text("gone"));
        }
    }
    record.extra.push((TIMES.to_vec(), Value::List(times)));
    record.to_value()
}

/// A stored kvlist.
fn kv(text: &[u8]) -> Result<Vec<(Vec<u8>, Value)>> {
    let mut line = text.to_vec();
    line.push(b'\n');
    match Parser::new(&line[..], Limits::default()).value()? {
        Value::Kv(items) => Ok(items),
        _ => Err(Error::new(Kind::Damaged, "stored value is no kvlist")),
    }
}
