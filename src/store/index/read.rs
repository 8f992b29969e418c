//! Questions to the index.

use super::Index;
use crate::cyrus::dlist::{Limits, Parser, Value};
use crate::cyrus::guid::Guid;
use crate::cyrus::sync::{MailboxHead, Record, Sums};
use crate::error::{Error, Kind, Result};
use rusqlite::{OptionalExtension, Row, params};

/// A chunk of the log.
#[derive(Clone, Debug)]
pub struct ChunkRow {
    /// Its number.
    pub id: i64,
    /// Where its member begins in the file.
    pub offset: u64,
    /// Compressed bytes; `None` while the member is open.
    pub length: Option<u64>,
    /// Plain bytes; `None` while the member is open.
    pub plain_length: Option<u64>,
    /// Time of its first line.
    pub first_time: i64,
    /// Time of its last line.
    pub last_time: i64,
    /// SHA-256 of the compressed bytes.
    pub sha256: Option<Vec<u8>>,
}

/// A mailbox.
#[derive(Clone, Debug)]
pub struct MailboxRow {
    /// Number in the index.
    pub id: i64,
    /// Identity.
    pub uniqueid: String,
    /// Internal name.
    pub mboxname: String,
    /// All keys as last stated.
    pub head: MailboxHead,
    /// LAST_UID.
    pub last_uid: u64,
    /// HIGHESTMODSEQ.
    pub highestmodseq: u64,
    /// UIDVALIDITY.
    pub uidvalidity: u64,
    /// A placeholder without content.
    pub intermediate: bool,
    /// The present epoch.
    pub epoch: i64,
    /// Live records.
    pub records: i64,
    /// Sums kept along.
    pub sums: Sums,
    /// Its sums never agreed with the sender's.
    pub unreliable: bool,
    /// When we first heard of it.
    pub created: i64,
    /// When it last changed.
    pub changed: i64,
    /// When it was deleted.
    pub deleted: Option<i64>,
    /// Not stored with mailboxes; 0.
    pub position: i64,
}

/// A record with what the index knows besides.
#[derive(Clone, Debug)]
pub struct RecordRow {
    /// The mailbox's number.
    pub mailbox_id: i64,
    /// The record's epoch.
    pub epoch: i64,
    /// As last stated; `expunged` also for what is gone.
    pub record: Record,
    /// When we heard that it was expunged.
    pub expunged: Option<i64>,
    /// Gone without a flag: a complete state lacked it.
    pub gone: bool,
    /// No body came for it.
    pub missing: bool,
    /// When it came.
    pub arrived: i64,
    /// When it last changed.
    pub changed: i64,
}

/// Where a message's body is.
#[derive(Clone, Debug)]
pub struct MessageRow {
    /// The message.
    pub guid: Guid,
    /// Its chunk.
    pub chunk_id: i64,
    /// Where the chunk's member begins in the file.
    pub chunk_offset: u64,
    /// Where the body begins in the chunk's plain text.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// The sender's partition.
    pub partition: String,
}

/// A subscription.
#[derive(Clone, Debug)]
pub struct SubscriptionRow {
    /// Internal name; need not exist.
    pub mboxname: String,
    /// Since when.
    pub time: i64,
    /// When it ended.
    pub unsubscribed: Option<i64>,
}

/// A seen state.
#[derive(Clone, Debug)]
pub struct SeenRow {
    /// Of which mailbox, perhaps another user's.
    pub uniqueid: String,
    /// All keys but USERID.
    pub value: Value,
}

/// A version of a sieve script.
#[derive(Clone, Debug)]
pub struct SieveRow {
    /// `name.script`
    pub filename: String,
    /// SHA-1 of the content.
    pub guid: Guid,
    /// The server's time of change.
    pub last_update: u64,
    /// The script.
    pub content: Vec<u8>,
    /// When it came.
    pub time: i64,
    /// When it was replaced or deleted.
    pub deleted: Option<i64>,
}

/// An annotation kept outside mailboxes.
#[derive(Clone, Debug)]
pub struct AnnotationRow {
    /// Internal name; empty for the server.
    pub mboxname: String,
    /// Its name.
    pub entry: String,
    /// Whose it is; empty for everybody's.
    pub userid: String,
    /// Any bytes.
    pub value: Vec<u8>,
}

/// Numbers about a backup.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Chunks.
    pub chunks: i64,
    /// Live mailboxes.
    pub mailboxes: i64,
    /// Live records.
    pub records: i64,
    /// Bodies.
    pub messages: i64,
    /// Plain bytes of all bodies.
    pub message_bytes: i64,
    /// Time of the last line.
    pub last_time: i64,
    /// Marked mailboxes.
    pub resync: i64,
}

/// The few numbers that cost next to nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Chunks.
    pub chunks: i64,
    /// Live mailboxes.
    pub mailboxes: i64,
    /// Live records.
    pub records: i64,
    /// Time of the last line; `None` without a chunk.
    pub last_time: Option<i64>,
    /// Marked mailboxes.
    pub resync: i64,
}

fn value(text: &[u8]) -> Option<Value> {
    let mut line = text.to_vec();
    line.push(b'\n');
    Parser::new(&line[..], Limits::default()).value().ok()
}

fn damaged(column: usize) -> rusqlite::Error {
    rusqlite::Error::InvalidColumnType(column, "dlist".into(), rusqlite::types::Type::Blob)
}

const MAILBOX: &str = "SELECT id, uniqueid, mboxname, head, last_uid, highestmodseq, uidvalidity,
    intermediate, epoch, records, crc, annot_short, annot_long, unreliable, created, changed,
    deleted FROM mailbox ";

fn mailbox_row(r: &Row<'_>) -> rusqlite::Result<MailboxRow> {
    let head: Vec<u8> = r.get(3)?;
    let keys = match value(&head) {
        Some(Value::Kv(keys)) => keys,
        _ if head.is_empty() => Vec::new(),
        _ => return Err(damaged(3)),
    };
    Ok(MailboxRow {
        id: r.get(0)?,
        uniqueid: r.get(1)?,
        mboxname: r.get(2)?,
        head: MailboxHead { keys },
        last_uid: r.get::<_, i64>(4)? as u64,
        highestmodseq: r.get::<_, i64>(5)? as u64,
        uidvalidity: r.get::<_, i64>(6)? as u64,
        intermediate: r.get(7)?,
        epoch: r.get(8)?,
        records: r.get(9)?,
        sums: Sums {
            record: r.get(10)?,
            annot_short: r.get(11)?,
            annot_long: r.get(12)?,
        },
        unreliable: r.get(13)?,
        created: r.get(14)?,
        changed: r.get(15)?,
        deleted: r.get(16)?,
        position: 0,
    })
}

pub(super) fn record_row(r: &Row<'_>) -> rusqlite::Result<RecordRow> {
    let list = |column: usize| -> rusqlite::Result<Vec<Value>> {
        let text: Option<Vec<u8>> = r.get(column)?;
        match text.as_deref().map(value) {
            None => Ok(Vec::new()),
            Some(Some(Value::List(items))) => Ok(items),
            Some(_) => Err(damaged(column)),
        }
    };
    let extra: Option<Vec<u8>> = r.get(9)?;
    let extra = match extra.as_deref().map(value) {
        None => Vec::new(),
        Some(Some(Value::Kv(items))) => items,
        Some(_) => return Err(damaged(9)),
    };
    let expunged: Option<i64> = r.get(10)?;
    Ok(RecordRow {
        mailbox_id: r.get(0)?,
        epoch: r.get(1)?,
        record: Record {
            uid: r.get(2)?,
            modseq: r.get::<_, i64>(3)? as u64,
            last_updated: r.get::<_, i64>(4)? as u64,
            internaldate: r.get::<_, i64>(5)? as u64,
            size: r.get::<_, i64>(6)? as u64,
            guid: Guid(r.get(7)?),
            flags: list(8)?,
            annotations: list(14)?,
            extra,
            expunged: expunged.is_some(),
        },
        expunged,
        gone: r.get(11)?,
        missing: r.get(12)?,
        arrived: r.get(13)?,
        changed: r.get(15)?,
    })
}

pub(super) const RECORD: &str =
    "SELECT mailbox_id, epoch, uid, modseq, last_updated, internaldate, size,
    guid, flags, extra, expunged, gone, missing, arrived, annotations,
    changed FROM record ";

impl Index {
    pub(super) fn all<T>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        row: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        self.conn
            .prepare_cached(sql)
            .and_then(|mut s| s.query_map(params, row)?.collect())
            .map_err(|e| self.error(e))
    }

    pub(super) fn one<T>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        row: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        self.conn
            .prepare_cached(sql)
            .and_then(|mut s| s.query_row(params, row).optional())
            .map_err(|e| self.error(e))
    }

    /// A mailbox by identity, deleted or not.
    pub fn mailbox(&self, uniqueid: &str) -> Result<Option<MailboxRow>> {
        self.one(
            &format!("{MAILBOX} WHERE uniqueid = ?1"),
            [uniqueid],
            mailbox_row,
        )
    }

    /// A mailbox by its number in the index.
    pub fn mailbox_by_id(&self, id: i64) -> Result<Option<MailboxRow>> {
        self.one(&format!("{MAILBOX} WHERE id = ?1"), [id], mailbox_row)
    }

    /// The Message-ID of a message whose body is here, if it has one.
    pub fn message_id(&self, guid: Guid) -> Result<Option<String>> {
        let sql = "SELECT message_id FROM message WHERE guid = ?1";
        let found = self.one(sql, [&guid.0[..]], |r| r.get::<_, Option<String>>(0))?;
        Ok(found.flatten().filter(|id| !id.is_empty()))
    }

    /// The live mailbox of a name.
    pub fn mailbox_by_name(&self, mboxname: &str) -> Result<Option<MailboxRow>> {
        self.one(
            &format!("{MAILBOX} WHERE mboxname = ?1 AND deleted IS NULL"),
            [mboxname],
            mailbox_row,
        )
    }

    /// All mailboxes by name; deleted ones only if asked for.
    pub fn mailboxes(&self, with_deleted: bool) -> Result<Vec<MailboxRow>> {
        let which = if with_deleted {
            ""
        } else {
            "WHERE deleted IS NULL"
        };
        self.all(
            &format!("{MAILBOX} {which} ORDER BY mboxname, id"),
            [],
            mailbox_row,
        )
    }

    /// Hands a mailbox's records to `each`, by epoch and UID, one at a time. `epoch` limits them
    /// to one epoch; expunged ones come only if asked for.
    pub fn records(
        &self,
        mailbox_id: i64,
        epoch: Option<i64>,
        with_expunged: bool,
        each: &mut dyn FnMut(RecordRow) -> Result<()>,
    ) -> Result<()> {
        let sql = format!(
            "{RECORD} WHERE mailbox_id = ?1 AND (?2 IS NULL OR epoch = ?2)
             AND (?3 OR expunged IS NULL) ORDER BY epoch, uid"
        );
        let mut statement = self.conn.prepare_cached(&sql).map_err(|e| self.error(e))?;
        let mut rows = statement
            .query(params![mailbox_id, epoch, with_expunged])
            .map_err(|e| self.error(e))?;
        while let Some(row) = rows.next().map_err(|e| self.error(e))? {
            each(record_row(row).map_err(|e| self.error(e))?)?;
        }
        Ok(())
    }

    /// One record of the present epoch.
    pub fn record(&self, mailbox_id: i64, epoch: i64, uid: u32) -> Result<Option<RecordRow>> {
        self.one(
            &format!("{RECORD} WHERE mailbox_id = ?1 AND epoch = ?2 AND uid = ?3"),
            params![mailbox_id, epoch, uid],
            record_row,
        )
    }

    /// The mailboxes, with records, that refer to a message.
    pub fn records_of(&self, guid: Guid) -> Result<Vec<RecordRow>> {
        self.all(
            &format!("{RECORD} WHERE guid = ?1 ORDER BY mailbox_id, epoch, uid"),
            [&guid.0[..]],
            record_row,
        )
    }

    /// Where a message's body is.
    pub fn body(&self, guid: Guid) -> Result<Option<MessageRow>> {
        self.one(
            "SELECT m.guid, m.chunk_id, c.offset, m.offset, m.size, m.partition
             FROM message m JOIN chunk c ON c.id = m.chunk_id WHERE m.guid = ?1",
            [&guid.0[..]],
            message_row,
        )
    }

    /// The bodies in one chunk, or all, by position.
    pub fn bodies(&self, chunk_id: Option<i64>) -> Result<Vec<MessageRow>> {
        self.all(
            "SELECT m.guid, m.chunk_id, c.offset, m.offset, m.size, m.partition
             FROM message m JOIN chunk c ON c.id = m.chunk_id
             WHERE ?1 IS NULL OR m.chunk_id = ?1 ORDER BY m.chunk_id, m.offset",
            [chunk_id],
            message_row,
        )
    }

    /// The chunks in order.
    pub fn chunks(&self) -> Result<Vec<ChunkRow>> {
        self.all(&format!("{CHUNK} ORDER BY id"), [], chunk_row)
    }

    /// The chunks behind a number.
    pub fn chunks_after(&self, id: i64) -> Result<Vec<ChunkRow>> {
        self.all(
            &format!("{CHUNK} WHERE id > ?1 ORDER BY id"),
            [id],
            chunk_row,
        )
    }

    /// One chunk.
    pub fn chunk(&self, id: i64) -> Result<Option<ChunkRow>> {
        self.one(&format!("{CHUNK} WHERE id = ?1"), [id], chunk_row)
    }

    /// The last chunk.
    pub fn last_chunk(&self) -> Result<Option<ChunkRow>> {
        self.one(&format!("{CHUNK} ORDER BY id DESC LIMIT 1"), [], chunk_row)
    }

    /// Subscriptions by name; ended ones only if asked for.
    pub fn subscriptions(&self, with_ended: bool) -> Result<Vec<SubscriptionRow>> {
        self.all(
            "SELECT mboxname, time, unsubscribed FROM subscription
             WHERE ?1 OR unsubscribed IS NULL ORDER BY mboxname",
            [with_ended],
            |r| {
                Ok(SubscriptionRow {
                    mboxname: r.get(0)?,
                    time: r.get(1)?,
                    unsubscribed: r.get(2)?,
                })
            },
        )
    }

    /// Whether a name is subscribed to.
    pub fn is_subscribed(&self, mboxname: &str) -> Result<bool> {
        Ok(self
            .one(
                "SELECT 1 FROM subscription WHERE mboxname = ?1 AND unsubscribed IS NULL",
                [mboxname],
                |_| Ok(()),
            )?
            .is_some())
    }

    /// Seen states.
    pub fn seen_states(&self) -> Result<Vec<SeenRow>> {
        self.all(
            "SELECT uniqueid, value FROM seen ORDER BY uniqueid",
            [],
            |r| {
                let text: Vec<u8> = r.get(1)?;
                Ok(SeenRow {
                    uniqueid: r.get(0)?,
                    value: value(&text).ok_or_else(|| damaged(1))?,
                })
            },
        )
    }

    /// One seen state.
    pub fn seen_state(&self, uniqueid: &str) -> Result<Option<Value>> {
        let text = self.one(
            "SELECT value FROM seen WHERE uniqueid = ?1",
            [uniqueid],
            |r| r.get::<_, Vec<u8>>(0),
        )?;
        Ok(text.and_then(|t| value(&t)))
    }

    /// Sieve scripts by name and age; replaced and deleted ones only if asked for.
    pub fn scripts(&self, with_deleted: bool) -> Result<Vec<SieveRow>> {
        self.all(
            "SELECT filename, guid, last_update, content, time, deleted FROM sieve
             WHERE ?1 OR deleted IS NULL ORDER BY filename, id",
            [with_deleted],
            |r| {
                Ok(SieveRow {
                    filename: r.get(0)?,
                    guid: Guid(r.get(1)?),
                    last_update: r.get::<_, i64>(2)? as u64,
                    content: r.get(3)?,
                    time: r.get(4)?,
                    deleted: r.get(5)?,
                })
            },
        )
    }

    /// The name ACTIVATE_SIEVE gave, usually `<script>.bc`.
    pub fn active_script(&self) -> Result<Option<String>> {
        Ok(self
            .one("SELECT filename FROM sieve_active", [], |r| {
                r.get::<_, Option<String>>(0)
            })?
            .flatten())
    }

    /// Quota roots with their limits, as QUOTA gave them.
    pub fn quotas(&self) -> Result<Vec<(String, Value)>> {
        self.all(
            "SELECT root, value FROM quota WHERE removed IS NULL ORDER BY root",
            [],
            |r| {
                let text: Vec<u8> = r.get(1)?;
                Ok((r.get(0)?, value(&text).ok_or_else(|| damaged(1))?))
            },
        )
    }

    /// How many scripts, limits and subscriptions there are, and whether a script is active.
    pub fn own_things(&self) -> Result<i64> {
        let n = self.one(
            "SELECT (SELECT count(*) FROM sieve WHERE deleted IS NULL)
                + (SELECT count(*) FROM quota WHERE removed IS NULL)
                + (SELECT count(*) FROM subscription WHERE unsubscribed IS NULL)
                + (SELECT count(*) FROM sieve_active WHERE filename IS NOT NULL)",
            [],
            |r| r.get(0),
        )?;
        Ok(n.unwrap_or(0))
    }

    /// Quota roots that were removed last of all, with the limits they had.
    pub fn last_quotas(&self) -> Result<Vec<(String, Value)>> {
        self.all(
            "SELECT root, value FROM quota
             WHERE removed = (SELECT max(removed) FROM quota) ORDER BY root",
            [],
            |r| {
                let text: Vec<u8> = r.get(1)?;
                Ok((r.get(0)?, value(&text).ok_or_else(|| damaged(1))?))
            },
        )
    }

    /// Annotations kept outside mailboxes: mailbox name, entry, userid, value.
    pub fn annotations(&self, mboxname: &str) -> Result<Vec<(String, String, Vec<u8>)>> {
        self.all(
            "SELECT entry, userid, value FROM annotation
             WHERE mboxname = ?1 AND removed IS NULL ORDER BY entry, userid",
            [mboxname],
            |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
        )
    }

    /// All of them, by mailbox.
    pub fn all_annotations(&self) -> Result<Vec<AnnotationRow>> {
        self.all(
            "SELECT mboxname, entry, userid, value FROM annotation
             WHERE removed IS NULL ORDER BY mboxname, entry, userid",
            [],
            |r| {
                Ok(AnnotationRow {
                    mboxname: r.get(0)?,
                    entry: r.get(1)?,
                    userid: r.get(2)?,
                    value: r.get(3)?,
                })
            },
        )
    }

    /// Marked mailboxes: uniqueid, level, reason.
    pub fn marks(&self) -> Result<Vec<(String, i64, String)>> {
        self.all(
            "SELECT uniqueid, level, why FROM resync ORDER BY uniqueid",
            [],
            |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
        )
    }

    /// Sums of a mailbox's live records, made afresh from what the rows say.
    pub fn sums_of_rows(&self, mailbox_id: i64, epoch: i64) -> Result<(Sums, i64)> {
        let (mut sums, mut n) = (Sums::default(), 0);
        self.records(mailbox_id, Some(epoch), false, &mut |row| {
            sums.toggle(row.record.sums());
            n += 1;
            Ok(())
        })?;
        Ok((sums, n))
    }

    /// Live mailboxes whose rows cannot be what their sender stated: bodies lack, or the sums
    /// differ. For use after a loss; `damaged` says that the log itself did not read throughout,
    /// so that sums which differed before prove nothing.
    pub fn doubtful(&self, damaged: bool) -> Result<Vec<(String, String)>> {
        let lacking: Vec<i64> = self.all(
            "SELECT DISTINCT mailbox_id FROM record WHERE missing AND expunged IS NULL",
            [],
            |r| r.get(0),
        )?;
        let mut out = Vec::new();
        for row in self.mailboxes(false)? {
            let why = if lacking.contains(&row.id) {
                "bodies lack after damage"
            } else if self.differs_from_stated(&row, damaged)? {
                "records lack after damage"
            } else {
                continue;
            };
            out.push((row.uniqueid, why.to_owned()));
        }
        Ok(out)
    }

    /// Those of them whose sums differ.
    pub fn unsummed(&self, damaged: bool) -> Result<Vec<(String, String)>> {
        let mut out = Vec::new();
        for row in self.mailboxes(false)? {
            if self.differs_from_stated(&row, damaged)? {
                out.push((row.uniqueid, "records lack after damage".to_owned()));
            }
        }
        Ok(out)
    }

    fn differs_from_stated(&self, row: &MailboxRow, damaged: bool) -> Result<bool> {
        let sums = self.true_sums(row.id, row.epoch)?.0;
        let agrees = sums.agrees(row.head.sum("SYNC_CRC"), row.head.sum("SYNC_CRC_ANNOT"));
        Ok(!agrees && (damaged || !row.unreliable))
    }

    /// Numbers for which neither records nor messages are looked at.
    pub fn counts(&self) -> Result<Counts> {
        self.one(
            "SELECT (SELECT count(*) FROM chunk), count(*), coalesce(sum(records), 0),
                (SELECT last_time FROM chunk ORDER BY id DESC LIMIT 1),
                (SELECT count(*) FROM resync)
             FROM mailbox WHERE deleted IS NULL",
            [],
            |r| {
                Ok(Counts {
                    chunks: r.get(0)?,
                    mailboxes: r.get(1)?,
                    records: r.get(2)?,
                    last_time: r.get(3)?,
                    resync: r.get(4)?,
                })
            },
        )?
        .ok_or_else(|| Error::new(Kind::Internal, "no counts"))
    }

    /// Bodies that no record, live or not, refers to, and their bytes: in logs of the old tools
    /// these can be other users' mail. Reads all message and record rows.
    pub fn unreferenced(&self) -> Result<(i64, i64)> {
        self.one(
            "SELECT count(*), coalesce(sum(size), 0) FROM message
             WHERE guid NOT IN (SELECT guid FROM record)",
            [],
            |r| Ok((r.get(0)?, r.get(1)?)),
        )
        .map(Option::unwrap_or_default)
    }

    /// Numbers about the backup; reads all of its message rows.
    pub fn totals(&self) -> Result<Totals> {
        self.one(
            "SELECT (SELECT count(*) FROM chunk),
                (SELECT count(*) FROM mailbox WHERE deleted IS NULL),
                (SELECT coalesce(sum(records), 0) FROM mailbox WHERE deleted IS NULL),
                (SELECT count(*) FROM message),
                (SELECT coalesce(sum(size), 0) FROM message),
                (SELECT coalesce(max(last_time), 0) FROM chunk),
                (SELECT count(*) FROM resync)",
            [],
            |r| {
                Ok(Totals {
                    chunks: r.get(0)?,
                    mailboxes: r.get(1)?,
                    records: r.get(2)?,
                    messages: r.get(3)?,
                    message_bytes: r.get(4)?,
                    last_time: r.get(5)?,
                    resync: r.get(6)?,
                })
            },
        )?
        .ok_or_else(|| Error::new(Kind::Internal, "no totals"))
    }
}

const CHUNK: &str =
    "SELECT id, offset, length, plain_length, first_time, last_time, sha256 FROM chunk";

fn chunk_row(r: &Row<'_>) -> rusqlite::Result<ChunkRow> {
    Ok(ChunkRow {
        id: r.get(0)?,
        offset: r.get::<_, i64>(1)? as u64,
        length: r.get::<_, Option<i64>>(2)?.map(|n| n as u64),
        plain_length: r.get::<_, Option<i64>>(3)?.map(|n| n as u64),
        first_time: r.get(4)?,
        last_time: r.get(5)?,
        sha256: r.get(6)?,
    })
}

fn message_row(r: &Row<'_>) -> rusqlite::Result<MessageRow> {
    Ok(MessageRow {
        guid: Guid(r.get(0)?),
        chunk_id: r.get(1)?,
        chunk_offset: r.get::<_, i64>(2)? as u64,
        offset: r.get::<_, i64>(3)? as u64,
        size: r.get::<_, i64>(4)? as u64,
        partition: r.get(5)?,
    })
}
