//! Records of mailboxes.

use super::{damaged, value};
use crate::cyrus::dlist::Value;
use crate::cyrus::guid::Guid;
use crate::cyrus::sync::{Record, Sums};
use crate::error::Result;
use crate::store::index::Index;
use rusqlite::{Row, params};

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

pub(in crate::store::index) const RECORD: &str =
    "SELECT mailbox_id, epoch, uid, modseq, last_updated, internaldate, size,
    guid, flags, extra, expunged, gone, missing, arrived, annotations,
    changed FROM record ";

impl Index {
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
}

pub(in crate::store::index) fn record_row(r: &Row<'_>) -> rusqlite::Result<RecordRow> {
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
