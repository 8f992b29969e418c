//! Messages: where their bodies are.

use crate::cyrus::guid::Guid;
use crate::error::Result;
use crate::store::index::Index;
use rusqlite::Row;

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

impl Index {
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

    /// The Message-ID of a message whose body is here, if it has one.
    pub fn message_id(&self, guid: Guid) -> Result<Option<String>> {
        let sql = "SELECT message_id FROM message WHERE guid = ?1";
        let found = self.one(sql, [&guid.0[..]], |r| r.get::<_, Option<String>>(0))?;
        Ok(found.flatten().filter(|id| !id.is_empty()))
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
