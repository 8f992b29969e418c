//! A second index over a live one: it has the state of another time, and finds bodies and chunks
//! where the live one has them.
//!
//! The live index is attached, for reading only. Names without a database are looked for in the
//! scratch file first: it has every table but `chunk` and `message`.

use super::{Index, SHARED, schema, uri};
use crate::error::{Error, Kind, Result};
use rusqlite::{Connection, OpenFlags, params};
use std::cell::Cell;
use std::path::Path;

/// More than a reader's: the state of a time is made and asked once.
const SETTINGS: &str = "
    PRAGMA cache_size = -8192;
    PRAGMA temp_store = MEMORY;
    DROP TABLE chunk;
    DROP TABLE message;
";

impl Index {
    /// Makes an index at `path`, where nothing may lie, over another, which is opened once more as
    /// that one is. `NeedsReindex` if it is no longer of the log with this generation.
    pub fn create_over(path: &Path, live: &Index, generation: &str) -> Result<Index> {
        let mode = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_URI
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(path, mode).map_err(|e| Error::from(e).at(path))?;
        let index = Index {
            conn,
            path: path.to_owned(),
            fresh: Cell::new(true),
            damaged: Cell::new(false),
            reading: SHARED,
        };
        index.settings(schema::FRESH)?;
        index.run(schema::WAL)?;
        index.run(schema::CREATE)?;
        index.run(SETTINGS)?;
        index
            .conn
            .execute("ATTACH ?1 AS live", [uri(live.path(), live.reading)])
            .map_err(|e| Error::from(e).at(live.path()))?;
        index.begin()?;
        let found: Option<String> = index.one(
            "SELECT value FROM live.meta WHERE key = 'generation'",
            [],
            |r| r.get(0),
        )?;
        if found.as_deref() != Some(generation) {
            return Err(Error::new(Kind::NeedsReindex, "the log was replaced").at(live.path()));
        }
        Ok(index)
    }

    /// Chunks in which nothing but bodies stands, so that nothing is missed by passing them over.
    ///
    /// All plain bytes of such a chunk are spoken for: its first line, one MESSAGE line, and in it
    /// the bodies that the index finds there. Reads all message rows.
    pub fn chunks_of_bodies(&self) -> Result<Vec<i64>> {
        // `%{PARTITION GUID SIZE}` CR LF before each body, a blank between two;
        // `TIME APPLY MESSAGE (` and `)` CR LF around them.
        let around =
            crate::store::line::CHUNK_START.len() + " APPLY MESSAGE (".len() + ")\r\n".len();
        let each = "%{ 0123456789012345678901234567890123456789 }\r\n".len() + 1;
        self.all(
            "SELECT c.id FROM chunk c JOIN (
                SELECT chunk_id, count(*) AS n,
                    sum(size + length(partition) + length(CAST(size AS TEXT))) AS bytes
                FROM message GROUP BY chunk_id
                HAVING max(partition GLOB '*[^a-zA-Z0-9]*') = 0
             ) m ON m.chunk_id = c.id
             WHERE c.plain_length = ?1 + length(CAST(c.first_time AS TEXT)) + m.bytes
                + m.n * ?2 - 1",
            params![around as i64, each as i64],
            |r| r.get(0),
        )
    }
}
