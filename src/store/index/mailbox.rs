//! What a MAILBOX line does to the index, record by record, in constant memory.
//!
//! The line states either what changed or, in [`Mode::Complete`], all there is. Nothing is judged
//! here: [`MailboxOutcome`] says what was found, and whoever receives decides whether to keep it.

use super::Index;
use crate::cyrus::dlist::{Form, Value, print_to_vec};
use crate::cyrus::guid::Guid;
use crate::cyrus::sync::{MailboxHead, Record, Sums};
use crate::error::{Error, Kind, Result};
use crate::util::time::Timestamp;
use rusqlite::{OptionalExtension, params};
use std::collections::HashSet;

/// How a MAILBOX line is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// What changed since the state we have.
    Changes,
    /// All there is; records it does not list are gone. The number is the epoch it belongs to.
    Complete(i64),
    /// All that compaction found known of it, with the times at which it came to be known.
    Stated(Stated),
}

/// What a MAILBOX line that compaction wrote does not tell itself. Times are true ones, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stated {
    /// The epoch of its records.
    pub epoch: i64,
    /// When we first heard of the mailbox.
    pub created: i64,
    /// When it last changed.
    pub changed: i64,
    /// When it was deleted.
    pub deleted: Option<i64>,
    /// Its sums never agreed with the sender's.
    pub unreliable: bool,
}

/// The key in a stated record under which its times stand: when it came, when it last changed, when
/// it was expunged, and `gone` if not by a flag.
pub const TIMES: &[u8] = b"X-CYRBACKUP";

/// A record as compaction stated it.
struct Times {
    arrived: i64,
    changed: i64,
    expunged: Option<i64>,
    gone: bool,
}

impl Times {
    /// Takes them out of a record, which is then as its sender stated it.
    fn take(record: &mut Record) -> Result<Times> {
        let bad = || Error::new(Kind::Damaged, "stated record without good times");
        // The last one: a sender may have used the same key.
        let at = record.extra.iter().rposition(|(key, _)| key == TIMES);
        let (_, value) = record.extra.remove(at.ok_or_else(bad)?);
        let list = value.as_list().ok_or_else(bad)?;
        let time = |n: usize| list.get(n).and_then(Value::as_u64).map(|t| t as i64);
        let times = Times {
            arrived: time(0).ok_or_else(bad)?,
            changed: time(1).ok_or_else(bad)?,
            expunged: time(2),
            gone: list.len() > 3,
        };
        if times.gone {
            record.expunged = false;
        }
        Ok(times)
    }
}

/// What was found while a line was entered.
#[derive(Clone, Debug, Default)]
pub struct MailboxOutcome {
    /// Records in the line.
    pub listed: u64,
    /// Live records whose body is in no chunk; the first of them as an example.
    pub missing: u64,
    /// The first of them.
    pub first_missing: Option<(u32, Guid)>,
    /// Records whose UID we know with another GUID in this epoch.
    pub conflicts: u64,
    /// The sums of the live records afterwards.
    pub sums: Sums,
    /// Whether the sender's sums agree with ours.
    pub agrees: bool,
    /// Whether a state before was already known not to agree, so that this says nothing.
    pub unreliable: bool,
    /// How many of the bodies behind the given position it refers to.
    pub referred: u64,
    /// Whether UIDs came in ascending order.
    pub ascending: bool,
    /// Whether the mailbox's rows differ from what they were before.
    pub changed: bool,
}

/// A MAILBOX line being entered.
pub struct MailboxApply<'a> {
    index: &'a Index,
    head: MailboxHead,
    id: i64,
    epoch: i64,
    mode: Mode,
    time: Timestamp,
    position: i64,
    /// Bodies at or behind this (chunk, offset) wait for a reference.
    waiting: Option<(i64, u64)>,
    referred: HashSet<i64>,
    last_uid: u32,
    records: i64,
    sums: Sums,
    out: MailboxOutcome,
}

/// What a row of `record` says besides the record itself.
struct Row {
    sums: Sums,
    arrived: i64,
    changed: i64,
    expunged: Option<i64>,
    gone: bool,
    missing: bool,
}

struct Known {
    guid: Guid,
    expunged: Option<i64>,
    sums: Sums,
    arrived: i64,
    missing: bool,
}

impl Index {
    /// Starts to enter a MAILBOX line. `position` is where the line stands in the log; bodies at
    /// or behind `waiting` are counted when a record refers to them.
    pub fn begin_mailbox(
        &self,
        head: MailboxHead,
        mode: Mode,
        time: Timestamp,
        position: i64,
        waiting: Option<(i64, u64)>,
    ) -> Result<MailboxApply<'_>> {
        let uniqueid = head.uniqueid()?.to_owned();
        let mboxname = head.mboxname()?.to_owned();
        let error = |e| self.error(e);
        // Two live mailboxes never share a name: the older one must be gone on the server.
        self.conn
            .prepare_cached(
                "UPDATE mailbox SET deleted = ?3, changed = ?3
                 WHERE mboxname = ?1 AND uniqueid <> ?2 AND deleted IS NULL",
            )
            .and_then(|mut s| s.execute(params![mboxname, uniqueid, time.0]))
            .map_err(error)?;
        let row = self
            .conn
            .prepare_cached(
                "SELECT id, epoch, records, crc, annot_short, annot_long, unreliable
                 FROM mailbox WHERE uniqueid = ?1",
            )
            .and_then(|mut s| {
                s.query_row([&uniqueid], |r| {
                    Ok((
                        r.get::<_, i64>(0)?,
                        r.get::<_, i64>(1)?,
                        r.get::<_, i64>(2)?,
                        Sums {
                            record: r.get(3)?,
                            annot_short: r.get(4)?,
                            annot_long: r.get(5)?,
                        },
                        r.get::<_, bool>(6)?,
                    ))
                })
                .optional()
            })
            .map_err(error)?;
        let (id, mut epoch, mut records, mut sums, unreliable) = match row {
            Some(row) => row,
            None => {
                self.conn
                    .prepare_cached(
                        "INSERT INTO mailbox (uniqueid, mboxname, last_uid, highestmodseq,
                            uidvalidity, head, intermediate, epoch, records, crc, annot_short,
                            annot_long, unreliable, created, changed)
                         VALUES (?1, ?2, 0, 0, 0, x'', 0, 1, 0, 0, 0, 0, 0, ?3, ?3)",
                    )
                    .and_then(|mut s| s.execute(params![uniqueid, mboxname, time.0]))
                    .map_err(error)?;
                (self.conn.last_insert_rowid(), 1, 0, Sums::default(), false)
            }
        };
        if let Mode::Stated(stated) = mode {
            epoch = stated.epoch;
            records = 0;
            sums = Sums::default();
        }
        if let Mode::Complete(new) = mode {
            if new != epoch {
                // What the older epoch still had alive went when the server went back.
                self.conn
                    .prepare_cached(
                        "UPDATE record SET expunged = ?2, gone = 1, changed = ?2
                         WHERE mailbox_id = ?1 AND expunged IS NULL",
                    )
                    .and_then(|mut s| s.execute(params![id, time.0]))
                    .map_err(error)?;
                epoch = new;
                records = 0;
                sums = Sums::default();
            }
        }
        Ok(MailboxApply {
            index: self,
            head,
            id,
            epoch,
            mode,
            time,
            position,
            waiting,
            referred: HashSet::new(),
            last_uid: 0,
            records,
            sums,
            out: MailboxOutcome {
                ascending: true,
                unreliable,
                ..MailboxOutcome::default()
            },
        })
    }
}

impl Index {
    /// Starts to enter records of an earlier epoch of a mailbox that is stated already.
    pub fn begin_past(&self, uniqueid: &str, epoch: i64, position: i64) -> Result<PastRecords<'_>> {
        let row = self.mailbox(uniqueid)?.ok_or_else(|| {
            Error::new(
                Kind::Damaged,
                "records of a mailbox that was not stated before",
            )
        })?;
        Ok(PastRecords(MailboxApply {
            index: self,
            head: MailboxHead { keys: Vec::new() },
            id: row.id,
            epoch,
            mode: Mode::Changes,
            time: Timestamp(0),
            position,
            waiting: None,
            referred: HashSet::new(),
            last_uid: 0,
            records: 0,
            sums: Sums::default(),
            out: MailboxOutcome::default(),
        }))
    }
}

impl MailboxApply<'_> {
    /// That the sender's sums will differ from ours is known, and says nothing.
    pub fn differs(&mut self) {
        self.out.unreliable = true;
    }

    /// Adds a key of the head that stands behind the records.
    pub fn add_key(&mut self, key: Vec<u8>, value: Value) {
        self.head.keys.push((key, value));
    }

    /// Enters one record.
    pub fn record(&mut self, record: &Record) -> Result<()> {
        if let Mode::Stated(_) = self.mode {
            return self.stated(record);
        }
        let conn = &self.index.conn;
        let error = |e| self.index.error(e);
        self.out.listed += 1;
        if record.uid <= self.last_uid {
            self.out.ascending = false;
        }
        self.last_uid = record.uid;

        let body: Option<(i64, i64, i64)> = conn
            .prepare_cached("SELECT id, chunk_id, offset FROM message WHERE guid = ?1")
            .and_then(|mut s| {
                s.query_row([&record.guid.0[..]], |r| {
                    Ok((r.get(0)?, r.get(1)?, r.get(2)?))
                })
                .optional()
            })
            .map_err(error)?;
        if let (Some((id, chunk, offset)), Some(waiting)) = (body, self.waiting) {
            if (chunk, offset as u64) >= waiting && self.referred.insert(id) {
                self.out.referred += 1;
            }
        }
        let known = conn
            .prepare_cached(
                "SELECT guid, expunged, crc, annot_short, annot_long, arrived, missing FROM record
                 WHERE mailbox_id = ?1 AND epoch = ?2 AND uid = ?3",
            )
            .and_then(|mut s| {
                s.query_row(params![self.id, self.epoch, record.uid], |r| {
                    Ok(Known {
                        guid: Guid(r.get(0)?),
                        expunged: r.get(1)?,
                        sums: Sums {
                            record: r.get(2)?,
                            annot_short: r.get(3)?,
                            annot_long: r.get(4)?,
                        },
                        arrived: r.get(5)?,
                        missing: r.get(6)?,
                    })
                })
                .optional()
            })
            .map_err(error)?;
        if known.as_ref().is_some_and(|k| k.guid != record.guid) {
            self.out.conflicts += 1;
        }
        let missing = body.is_none();
        // That the sender has none either was found out before.
        let accepted = known
            .as_ref()
            .is_some_and(|k| k.missing && k.expunged.is_none() && k.guid == record.guid);
        if missing && !record.expunged && !accepted {
            self.out.missing += 1;
            self.out
                .first_missing
                .get_or_insert((record.uid, record.guid));
        }
        if let Some(k) = &known {
            if k.expunged.is_none() {
                self.sums.toggle(k.sums);
                self.records -= 1;
            }
        }
        let sums = record.sums();
        self.sums.toggle(sums);
        if !record.expunged {
            self.records += 1;
        }
        // Seen expunged before: the time we first heard of it counts.
        let expunged = record.expunged.then(|| {
            known
                .as_ref()
                .and_then(|k| k.expunged)
                .unwrap_or(self.time.0)
        });
        let row = Row {
            sums,
            arrived: known.as_ref().map_or(self.time.0, |k| k.arrived),
            changed: self.time.0,
            expunged,
            gone: false,
            missing,
        };
        self.put(record, &row)
    }

    fn put(&self, record: &Record, row: &Row) -> Result<()> {
        let list = |items: &[Value]| {
            (!items.is_empty()).then(|| print_to_vec(&Value::List(items.to_vec()), Form::Log))
        };
        let extra = (!record.extra.is_empty())
            .then(|| print_to_vec(&Value::Kv(record.extra.clone()), Form::Log));
        self.index
            .conn
            .prepare_cached(
                "INSERT OR REPLACE INTO record (mailbox_id, epoch, uid, modseq, last_updated,
                internaldate, size, guid, flags, annotations, extra, crc, annot_short,
                annot_long, arrived, changed, expunged, gone, missing, position)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16,
                ?17, ?18, ?19, ?20)",
            )
            .and_then(|mut s| {
                s.execute(params![
                    self.id,
                    self.epoch,
                    record.uid,
                    record.modseq as i64,
                    record.last_updated as i64,
                    record.internaldate as i64,
                    record.size as i64,
                    &record.guid.0[..],
                    print_to_vec(&Value::List(record.flags.clone()), Form::Log),
                    list(&record.annotations),
                    extra,
                    row.sums.record,
                    row.sums.annot_short,
                    row.sums.annot_long,
                    row.arrived,
                    row.changed,
                    row.expunged,
                    row.gone,
                    row.missing,
                    self.position,
                ])
            })
            .map_err(|e| self.index.error(e))?;
        Ok(())
    }

    /// Enters a record as compaction stated it.
    fn stated(&mut self, record: &Record) -> Result<()> {
        let mut record = record.clone();
        let times = Times::take(&mut record)?;
        self.out.listed += 1;
        let sums = record.sums();
        if times.expunged.is_none() {
            self.sums.toggle(sums);
            self.records += 1;
        }
        let row = Row {
            sums,
            arrived: times.arrived,
            changed: times.changed,
            expunged: times.expunged,
            gone: times.gone,
            missing: self.index.body(record.guid)?.is_none(),
        };
        self.put(&record, &row)
    }

    /// Ends the line: what a complete state did not list is gone, and the head is entered last.
    pub fn finish(mut self) -> Result<MailboxOutcome> {
        let conn = &self.index.conn;
        let error = |e| self.index.error(e);
        if let Mode::Complete(_) = self.mode {
            let unlisted: Vec<(i64, Sums)> = conn
                .prepare_cached(
                    "SELECT uid, crc, annot_short, annot_long FROM record
                     WHERE mailbox_id = ?1 AND epoch = ?2 AND expunged IS NULL AND position <> ?3",
                )
                .and_then(|mut s| {
                    s.query_map(params![self.id, self.epoch, self.position], |r| {
                        Ok((
                            r.get(0)?,
                            Sums {
                                record: r.get(1)?,
                                annot_short: r.get(2)?,
                                annot_long: r.get(3)?,
                            },
                        ))
                    })?
                    .collect()
                })
                .map_err(error)?;
            for (uid, sums) in unlisted {
                self.sums.toggle(sums);
                self.records -= 1;
                conn.prepare_cached(
                    "UPDATE record SET expunged = ?4, gone = 1, changed = ?4
                     WHERE mailbox_id = ?1 AND epoch = ?2 AND uid = ?3",
                )
                .and_then(|mut s| s.execute(params![self.id, self.epoch, uid, self.time.0]))
                .map_err(error)?;
            }
            // Sums are counted afresh, so that a wrong stored one cannot live on.
            (self.sums, self.records) = self.index.true_sums(self.id, self.epoch)?;
        }
        let (crc, crc_annot) = (self.head.sum("SYNC_CRC"), self.head.sum("SYNC_CRC_ANNOT"));
        self.out.agrees = self.sums.agrees(crc, crc_annot);
        let unreliable = match self.mode {
            Mode::Complete(_) => !self.out.agrees,
            Mode::Changes => self.out.unreliable && !self.out.agrees,
            Mode::Stated(stated) => stated.unreliable,
        };
        self.out.sums = self.sums;
        self.out.changed = true;
        // SINCE_* speak of the state before; they are no part of the state.
        let mut head = self.head.clone();
        for key in ["SINCE_MODSEQ", "SINCE_CRC", "SINCE_CRC_ANNOT"] {
            head.remove(key);
        }
        let uniqueid = head.uniqueid()?;
        conn.prepare_cached(
            "UPDATE mailbox SET mboxname = ?2, last_uid = ?3, highestmodseq = ?4,
                uidvalidity = ?5, sync_crc = ?6, sync_crc_annot = ?7, head = ?8,
                intermediate = ?9, epoch = ?10, records = ?11, crc = ?12, annot_short = ?13,
                annot_long = ?14, unreliable = ?15, changed = ?16, deleted = NULL
             WHERE id = ?1",
        )
        .and_then(|mut s| {
            s.execute(params![
                self.id,
                head.mboxname().unwrap_or_default(),
                head.number("LAST_UID").unwrap_or(0) as i64,
                head.number("HIGHESTMODSEQ").unwrap_or(0) as i64,
                head.number("UIDVALIDITY").unwrap_or(0) as i64,
                crc,
                crc_annot,
                head.print(),
                head.is_intermediate(),
                self.epoch,
                self.records,
                self.sums.record,
                self.sums.annot_short,
                self.sums.annot_long,
                unreliable,
                self.time.0,
            ])
        })
        .map_err(error)?;
        if let Mode::Complete(_) = self.mode {
            self.index.unmark_resync(uniqueid)?;
        }
        if let Mode::Stated(stated) = self.mode {
            self.index
                .stated(self.id, stated.created, stated.changed, stated.deleted)?;
        }
        Ok(self.out)
    }
}

/// Records of an earlier epoch being entered, as compaction stated them.
pub struct PastRecords<'a>(MailboxApply<'a>);

impl PastRecords<'_> {
    /// Enters one.
    pub fn record(&mut self, record: &Record) -> Result<()> {
        self.0.stated(record)
    }
}

impl Index {
    /// Sums and number of a mailbox's live records, counted from the rows.
    pub fn true_sums(&self, mailbox_id: i64, epoch: i64) -> Result<(Sums, i64)> {
        let count = || -> rusqlite::Result<(Sums, i64)> {
            let mut statement = self.conn.prepare_cached(
                "SELECT crc, annot_short, annot_long FROM record
                 WHERE mailbox_id = ?1 AND epoch = ?2 AND expunged IS NULL",
            )?;
            let mut rows = statement.query(params![mailbox_id, epoch])?;
            let (mut sums, mut n) = (Sums::default(), 0);
            while let Some(r) = rows.next()? {
                sums.toggle(Sums {
                    record: r.get(0)?,
                    annot_short: r.get(1)?,
                    annot_long: r.get(2)?,
                });
                n += 1;
            }
            Ok((sums, n))
        };
        count().map_err(|e| self.error(e))
    }
}
