//! Going through header fields and records quickly: rows are looked at where SQLite has them, and
//! only what is wanted is made into values.

use super::Index;
use super::read::{RECORD, RecordRow, record_row};
use crate::cyrus::header::Envelope;
use crate::error::{Error, Kind, Result};
use rusqlite::types::ValueRef;
use rusqlite::{OptionalExtension, Row, params};
use std::ops::RangeInclusive;

/// How many of them there are.
const FIELDS: usize = 5;

/// One of the fields the index keeps of a message's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// From
    From,
    /// To
    To,
    /// Cc
    Cc,
    /// Subject
    Subject,
    /// Message-ID
    MessageId,
}

impl Field {
    fn column(self) -> &'static str {
        match self {
            Field::From => "from_",
            Field::To => "to_",
            Field::Cc => "cc",
            Field::Subject => "subject",
            Field::MessageId => "message_id",
        }
    }
}

/// Which records are wanted; times are inclusive, in seconds.
#[derive(Clone, Debug, Default)]
pub struct RecordFilter {
    /// Internal date not before.
    pub since: Option<i64>,
    /// Internal date not after.
    pub until: Option<i64>,
    /// Only those that are expunged (true), or are not (false).
    pub expunged: Option<bool>,
    /// Lower-case text that stands in the flags, without a backslash.
    pub flags: Vec<String>,
}

/// Told of a message: its GUID, and the wanted fields.
pub type EachFields<'a> = dyn FnMut(&[u8], &[&[u8]]) -> Result<()> + 'a;

/// Whether the message with this GUID is looked for.
pub type IsWanted<'a> = dyn Fn(&[u8]) -> bool + 'a;

/// Whether a text of flags has a part like this one; whoever asks looks at the flags themselves, too.
fn has_flag(flags: &[u8], flag: &str) -> bool {
    let mut places = flags.windows(flag.len().max(1));
    flag.is_empty() || places.any(|w| w.eq_ignore_ascii_case(flag.as_bytes()))
}

impl Index {
    /// The number of the message that came last; 0 without any. Numbers grow with arrival.
    pub fn last_message(&self) -> Result<i64> {
        let sql = "SELECT coalesce(max(id), 0) FROM message";
        self.conn
            .query_row(sql, [], |r| r.get(0))
            .map_err(|e| self.error(e))
    }

    /// Hands the wanted fields of each message with a number in `range`, each asked for once, to
    /// `each`, in the order of arrival. A field that is absent is empty.
    pub fn fields(
        &self,
        fields: &[Field],
        range: RangeInclusive<i64>,
        each: &mut EachFields<'_>,
    ) -> Result<()> {
        let columns: Vec<&str> = fields.iter().map(|f| f.column()).collect();
        let sql = format!(
            "SELECT guid, {} FROM message WHERE id BETWEEN ?1 AND ?2 ORDER BY id",
            columns.join(", ")
        );
        let mut statement = self.conn.prepare_cached(&sql).map_err(|e| self.error(e))?;
        let mut rows = statement
            .query(params![range.start(), range.end()])
            .map_err(|e| self.error(e))?;
        while let Some(row) = rows.next().map_err(|e| self.error(e))? {
            let column = |n| row.get_ref(n).map(bytes).map_err(|e| self.error(e));
            let mut values: [&[u8]; FIELDS] = [b""; FIELDS];
            let values = values.get_mut(..fields.len());
            let values = values.ok_or_else(|| Error::new(Kind::Internal, "too many fields"))?;
            for (at, value) in values.iter_mut().enumerate() {
                *value = column(at + 1)?;
            }
            each(column(0)?, values)?;
        }
        Ok(())
    }

    /// Hands the records of a mailbox to `each` that pass the filter and whose GUID is wanted, by
    /// epoch and UID. With `wanted` these should be few: only of them more than the key is read.
    pub fn records_where(
        &self,
        mailbox_id: i64,
        filter: &RecordFilter,
        wanted: Option<&IsWanted<'_>>,
        each: &mut dyn FnMut(RecordRow) -> Result<()>,
    ) -> Result<()> {
        let Some(wanted) = wanted else {
            return self.rows_where(RECORD, mailbox_id, filter, &mut |row| {
                // The column of flags in RECORD.
                let flags = row.get_ref(8).map(bytes).map_err(|e| self.error(e))?;
                match filter.flags.iter().all(|flag| has_flag(flags, flag)) {
                    true => each(record_row(row).map_err(|e| self.error(e))?),
                    false => Ok(()),
                }
            });
        };
        let mut keys: Vec<(i64, u32)> = Vec::new();
        let narrow = "SELECT epoch, uid, guid FROM record";
        self.rows_where(narrow, mailbox_id, filter, &mut |row| {
            let guid = row.get_ref(2).map(bytes).map_err(|e| self.error(e))?;
            if wanted(guid) {
                let key = row.get(0).and_then(|epoch| Ok((epoch, row.get(1)?)));
                keys.push(key.map_err(|e| self.error(e))?);
            }
            Ok(())
        })?;
        for (epoch, uid) in keys {
            if let Some(row) = self.record(mailbox_id, epoch, uid)? {
                each(row)?;
            }
        }
        Ok(())
    }

    fn rows_where(
        &self,
        select: &str,
        mailbox_id: i64,
        filter: &RecordFilter,
        each: &mut dyn FnMut(&Row<'_>) -> Result<()>,
    ) -> Result<()> {
        let sql = format!(
            "{select} WHERE mailbox_id = ?1
             AND (?2 IS NULL OR internaldate >= ?2) AND (?3 IS NULL OR internaldate <= ?3)
             AND (?4 IS NULL OR (expunged IS NOT NULL) = ?4) ORDER BY epoch, uid"
        );
        let mut statement = self.conn.prepare_cached(&sql).map_err(|e| self.error(e))?;
        let mut rows = statement
            .query(params![
                mailbox_id,
                filter.since,
                filter.until,
                filter.expunged
            ])
            .map_err(|e| self.error(e))?;
        while let Some(row) = rows.next().map_err(|e| self.error(e))? {
            each(row)?;
        }
        Ok(())
    }

    /// The header fields of a message, as they stand; `None` if no body of it came.
    pub fn envelope(&self, guid: &[u8]) -> Result<Option<Envelope>> {
        self.conn
            .prepare_cached(
                "SELECT from_, to_, cc, subject, message_id, date FROM message WHERE guid = ?1",
            )
            .and_then(|mut s| {
                s.query_row([guid], |r| {
                    Ok(Envelope {
                        from: r.get(0)?,
                        to: r.get(1)?,
                        cc: r.get(2)?,
                        subject: r.get(3)?,
                        message_id: r.get(4)?,
                        date: r.get(5)?,
                    })
                })
                .optional()
            })
            .map_err(|e| self.error(e))
    }
}

fn bytes(value: ValueRef<'_>) -> &[u8] {
    match value {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes,
        _ => b"",
    }
}
