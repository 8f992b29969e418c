//! What each kind of line but MAILBOX does to the index. Every function works inside the
//! transaction that [`Index::begin`] opened.

use super::Index;
use crate::cyrus::dlist::{Form, Value, print_to_vec};
use crate::cyrus::guid::Guid;
use crate::cyrus::header::Envelope;
use crate::error::Result;
use crate::util::time::Timestamp;
use rusqlite::{OptionalExtension, params};
use sha1::{Digest, Sha1};

/// A body in the log that no MAILBOX line has referred to yet.
#[derive(Clone, Debug)]
pub struct Pending {
    /// The message.
    pub guid: Guid,
    /// Where its bytes begin in the chunk's plain text.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// The chunk.
    pub chunk_id: i64,
    /// The sender's partition.
    pub partition: String,
}

impl Index {
    fn exec(&self, sql: &str, params: impl rusqlite::Params) -> Result<usize> {
        self.conn
            .prepare_cached(sql)
            .and_then(|mut s| s.execute(params))
            .map_err(|e| self.error(e))
    }

    /// A member was begun at `offset` of the file. Returns its number.
    pub fn begin_chunk(&self, offset: u64, time: Timestamp) -> Result<i64> {
        self.exec(
            "INSERT INTO chunk (offset, first_time, last_time) VALUES (?1, ?2, ?2)",
            params![offset as i64, time.0],
        )?;
        Ok(self.conn.last_insert_rowid())
    }

    /// A line was added to a chunk.
    pub fn touch_chunk(&self, id: i64, time: Timestamp) -> Result<()> {
        self.exec(
            "UPDATE chunk SET last_time = ?2 WHERE id = ?1 AND last_time <> ?2",
            params![id, time.0],
        )?;
        Ok(())
    }

    /// A member was sealed.
    pub fn end_chunk(&self, id: i64, length: u64, plain: u64, sha256: &[u8; 32]) -> Result<()> {
        self.exec(
            "UPDATE chunk SET length = ?2, plain_length = ?3, sha256 = ?4 WHERE id = ?1",
            params![id, length as i64, plain as i64, &sha256[..]],
        )?;
        Ok(())
    }

    /// A message's body stands in a chunk. A later copy takes the place of an earlier one.
    #[allow(clippy::too_many_arguments)]
    pub fn message(
        &self,
        guid: Guid,
        chunk_id: i64,
        offset: u64,
        size: u64,
        partition: &str,
        envelope: &Envelope,
        time: Timestamp,
    ) -> Result<()> {
        self.exec(
            "INSERT INTO message (guid, chunk_id, offset, size, partition, time,
                from_, to_, cc, subject, message_id, date)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)
             ON CONFLICT (guid) DO UPDATE SET chunk_id = ?2, offset = ?3, size = ?4,
                partition = ?5, time = ?6",
            params![
                &guid.0[..],
                chunk_id,
                offset as i64,
                size as i64,
                partition,
                time.0,
                envelope.from,
                envelope.to,
                envelope.cc,
                envelope.subject,
                envelope.message_id,
                envelope.date
            ],
        )?;
        // Records may stand before it: in a log that was compacted, or where it came at last.
        self.exec(
            "UPDATE record SET missing = 0 WHERE missing AND guid = ?1",
            [&guid.0[..]],
        )?;
        Ok(())
    }

    /// The bodies entered at or behind a position of a chunk, or in a later one.
    pub fn pending(&self, chunk_id: i64, offset: u64) -> Result<Vec<Pending>> {
        self.conn
            .prepare_cached(
                "SELECT guid, chunk_id, offset, size, partition FROM message
                 WHERE chunk_id > ?1 OR (chunk_id = ?1 AND offset >= ?2)
                 ORDER BY chunk_id, offset",
            )
            .and_then(|mut s| {
                s.query_map(params![chunk_id, offset as i64], |r| {
                    Ok(Pending {
                        guid: Guid(r.get(0)?),
                        chunk_id: r.get(1)?,
                        offset: r.get::<_, i64>(2)? as u64,
                        size: r.get::<_, i64>(3)? as u64,
                        partition: r.get(4)?,
                    })
                })?
                .collect()
            })
            .map_err(|e| self.error(e))
    }

    /// Whether any record refers to a body at or behind a (chunk, offset).
    pub fn any_referred(&self, from: (i64, u64)) -> Result<bool> {
        self.conn
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM record WHERE guid IN (
                    SELECT guid FROM message
                    WHERE chunk_id > ?1 OR (chunk_id = ?1 AND offset >= ?2)))",
            )
            .and_then(|mut s| s.query_row(params![from.0, from.1 as i64], |r| r.get(0)))
            .map_err(|e| self.error(e))
    }

    /// UNMAILBOX: every live mailbox of that name is deleted now. Returns how many there were.
    pub fn unmailbox(&self, mboxname: &str, time: Timestamp) -> Result<usize> {
        self.exec(
            "UPDATE mailbox SET deleted = ?2, changed = ?2
             WHERE mboxname = ?1 AND deleted IS NULL",
            params![mboxname, time.0],
        )
    }

    /// SUB.
    pub fn subscribe(&self, mboxname: &str, time: Timestamp) -> Result<()> {
        self.exec(
            "INSERT INTO subscription (mboxname, time) VALUES (?1, ?2)
             ON CONFLICT (mboxname) DO UPDATE SET time = ?2, unsubscribed = NULL
             WHERE unsubscribed IS NOT NULL",
            params![mboxname, time.0],
        )?;
        Ok(())
    }

    /// UNSUB.
    pub fn unsubscribe(&self, mboxname: &str, time: Timestamp) -> Result<()> {
        self.exec(
            "UPDATE subscription SET unsubscribed = ?2
             WHERE mboxname = ?1 AND unsubscribed IS NULL",
            params![mboxname, time.0],
        )?;
        Ok(())
    }

    /// SEEN: `value` has all keys but USERID.
    pub fn seen(&self, uniqueid: &str, value: &Value, time: Timestamp) -> Result<()> {
        self.exec(
            "INSERT OR REPLACE INTO seen (uniqueid, value, time) VALUES (?1, ?2, ?3)",
            params![uniqueid, print_to_vec(value, Form::Log), time.0],
        )?;
        Ok(())
    }

    /// SIEVE: a new version of a script.
    pub fn sieve(
        &self,
        filename: &str,
        last_update: u64,
        content: &[u8],
        time: Timestamp,
    ) -> Result<()> {
        self.unsieve(filename, time)?;
        let guid = Sha1::digest(content);
        self.exec(
            "INSERT INTO sieve (filename, guid, last_update, content, time)
             VALUES (?1, ?2, ?3, ?4, ?5)",
            params![filename, &guid[..], last_update as i64, content, time.0],
        )?;
        Ok(())
    }

    /// UNSIEVE.
    pub fn unsieve(&self, filename: &str, time: Timestamp) -> Result<()> {
        self.exec(
            "UPDATE sieve SET deleted = ?2 WHERE filename = ?1 AND deleted IS NULL",
            params![filename, time.0],
        )?;
        Ok(())
    }

    /// ACTIVATE_SIEVE and, with `None`, UNACTIVATE_SIEVE.
    pub fn activate_sieve(&self, filename: Option<&str>, time: Timestamp) -> Result<()> {
        self.exec(
            "INSERT OR REPLACE INTO sieve_active (id, filename, time) VALUES (1, ?1, ?2)",
            params![filename, time.0],
        )?;
        Ok(())
    }

    /// QUOTA.
    pub fn quota(&self, root: &str, value: &Value, time: Timestamp) -> Result<()> {
        self.exec(
            "INSERT OR REPLACE INTO quota (root, value, time) VALUES (?1, ?2, ?3)",
            params![root, print_to_vec(value, Form::Log), time.0],
        )?;
        Ok(())
    }

    /// UNQUOTA.
    pub fn unquota(&self, root: &str, time: Timestamp) -> Result<()> {
        self.exec(
            "UPDATE quota SET removed = ?2 WHERE root = ?1 AND removed IS NULL",
            params![root, time.0],
        )?;
        Ok(())
    }

    /// ANNOTATION.
    pub fn annotation(
        &self,
        mboxname: &str,
        entry: &str,
        userid: &str,
        value: &[u8],
        time: Timestamp,
    ) -> Result<()> {
        self.exec(
            "INSERT OR REPLACE INTO annotation (mboxname, entry, userid, value, time)
             VALUES (?1, ?2, ?3, ?4, ?5)",
            params![mboxname, entry, userid, value, time.0],
        )?;
        Ok(())
    }

    /// UNANNOTATION.
    pub fn unannotation(
        &self,
        mboxname: &str,
        entry: &str,
        userid: &str,
        time: Timestamp,
    ) -> Result<()> {
        self.exec(
            "UPDATE annotation SET removed = ?4
             WHERE mboxname = ?1 AND entry = ?2 AND userid = ?3 AND removed IS NULL",
            params![mboxname, entry, userid, time.0],
        )?;
        Ok(())
    }

    /// UNUSER: what the user still has under the current name is deleted now. Mailboxes under the
    /// deleted prefix stay. `inbox` is the INBOX's internal name.
    pub fn unuser(&self, inbox: &str, time: Timestamp) -> Result<()> {
        self.exec(
            "UPDATE mailbox SET deleted = ?2, changed = ?2
             WHERE deleted IS NULL AND (mboxname = ?1 OR substr(mboxname, 1, ?4) = ?3)",
            params![
                inbox,
                time.0,
                format!("{inbox}."),
                inbox.chars().count() + 1
            ],
        )?;
        for table in [
            "sieve SET deleted",
            "subscription SET unsubscribed",
            "quota SET removed",
        ] {
            let column = table.rsplit(' ').next().unwrap_or_default();
            self.exec(
                &format!("UPDATE {table} = ?1 WHERE {column} IS NULL"),
                params![time.0],
            )?;
        }
        self.exec("DELETE FROM seen", [])?;
        self.activate_sieve(None, time)
    }

    /// Marks a mailbox whose state cannot be trusted; a higher level wins.
    pub fn mark_resync(
        &self,
        uniqueid: &str,
        level: i64,
        why: &str,
        time: Timestamp,
    ) -> Result<()> {
        self.exec(
            "INSERT INTO resync (uniqueid, level, why, time) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (uniqueid) DO UPDATE SET level = max(level, ?2), why = ?3, time = ?4",
            params![uniqueid, level, why, time.0],
        )?;
        Ok(())
    }

    /// Takes the mark away.
    pub(super) fn unmark_resync(&self, uniqueid: &str) -> Result<()> {
        self.exec("DELETE FROM resync WHERE uniqueid = ?1", [uniqueid])?;
        Ok(())
    }

    /// The level and reason of a mailbox's mark.
    pub fn resync(&self, uniqueid: &str) -> Result<Option<(i64, String)>> {
        self.conn
            .prepare_cached("SELECT level, why FROM resync WHERE uniqueid = ?1")
            .and_then(|mut s| {
                s.query_row([uniqueid], |r| Ok((r.get(0)?, r.get(1)?)))
                    .optional()
            })
            .map_err(|e| self.error(e))
    }

    /// Whether any mailbox is marked.
    pub fn any_resync(&self) -> Result<bool> {
        self.conn
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM resync)")
            .and_then(|mut s| s.query_row([], |r| r.get(0)))
            .map_err(|e| self.error(e))
    }
}
