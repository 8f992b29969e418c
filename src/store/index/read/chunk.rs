//! Chunks of the log.

use crate::error::Result;
use crate::store::index::Index;
use rusqlite::Row;

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

const CHUNK: &str =
    "SELECT id, offset, length, plain_length, first_time, last_time, sha256 FROM chunk";

impl Index {
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
}

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
