//! What a summary asks for: sums over chunks, and every record and body in few columns.

use super::Index;
use crate::cyrus::guid::Guid;
use crate::error::Result;

/// Sums over the chunks.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChunkSums {
    /// How many there are.
    pub chunks: i64,
    /// Compressed bytes of the sealed ones.
    pub stored_bytes: i64,
    /// Their plain bytes.
    pub plain_bytes: i64,
    /// Time of the first line.
    pub first_time: Option<i64>,
    /// Time of the last line.
    pub last_time: Option<i64>,
}

impl Index {
    /// Sums over the chunks; reads all their rows.
    pub fn chunk_sums(&self) -> Result<ChunkSums> {
        let row = self.one(
            "SELECT count(*), coalesce(sum(length), 0), coalesce(sum(plain_length), 0),
                min(first_time), max(last_time) FROM chunk",
            [],
            |r| {
                Ok(ChunkSums {
                    chunks: r.get(0)?,
                    stored_bytes: r.get(1)?,
                    plain_bytes: r.get(2)?,
                    first_time: r.get(3)?,
                    last_time: r.get(4)?,
                })
            },
        )?;
        Ok(row.unwrap_or_default())
    }

    /// How many subscriptions, scripts and quota roots there are now.
    pub fn small_counts(&self) -> Result<(i64, i64, i64)> {
        let row = self.one(
            "SELECT (SELECT count(*) FROM subscription WHERE unsubscribed IS NULL),
                (SELECT count(*) FROM sieve WHERE deleted IS NULL),
                (SELECT count(*) FROM quota WHERE removed IS NULL)",
            [],
            |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
        )?;
        Ok(row.unwrap_or_default())
    }

    /// Hands every record to `each`: number of its mailbox, message, when it was expunged.
    pub fn each_use(&self, each: &mut dyn FnMut(i64, Guid, Option<i64>)) -> Result<()> {
        let mut run = || -> rusqlite::Result<()> {
            let sql = "SELECT mailbox_id, guid, expunged FROM record";
            let mut statement = self.conn.prepare_cached(sql)?;
            let mut rows = statement.query([])?;
            while let Some(r) = rows.next()? {
                each(r.get(0)?, Guid(r.get(1)?), r.get(2)?);
            }
            Ok(())
        };
        run().map_err(|e| self.error(e))
    }

    /// Hands every body to `each`: message, bytes, when it came.
    pub fn each_body(&self, each: &mut dyn FnMut(Guid, i64, i64)) -> Result<()> {
        let mut run = || -> rusqlite::Result<()> {
            let sql = "SELECT guid, size, time FROM message";
            let mut statement = self.conn.prepare_cached(sql)?;
            let mut rows = statement.query([])?;
            while let Some(r) = rows.next()? {
                each(Guid(r.get(0)?), r.get(1)?, r.get(2)?);
            }
            Ok(())
        };
        run().map_err(|e| self.error(e))
    }
}
