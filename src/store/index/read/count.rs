//! Numbers about a backup.

use crate::error::{Error, Kind, Result};
use crate::store::index::Index;

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

impl Index {
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
