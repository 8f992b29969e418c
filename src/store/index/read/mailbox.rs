//! Mailboxes, and which of them are marked or in doubt.

use super::{damaged, value};
use crate::cyrus::dlist::Value;
use crate::cyrus::sync::{MailboxHead, Sums};
use crate::error::Result;
use crate::store::index::Index;
use rusqlite::Row;

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

const MAILBOX: &str = "SELECT id, uniqueid, mboxname, head, last_uid, highestmodseq, uidvalidity,
    intermediate, epoch, records, crc, annot_short, annot_long, unreliable, created, changed,
    deleted FROM mailbox ";

impl Index {
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

    /// Marked mailboxes: uniqueid, level, reason.
    pub fn marks(&self) -> Result<Vec<(String, i64, String)>> {
        self.all(
            "SELECT uniqueid, level, why FROM resync ORDER BY uniqueid",
            [],
            |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
        )
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
}

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
