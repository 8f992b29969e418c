//! Questions to the index: how they are asked. What can be asked is in a file for each kind of row.

mod chunk;
mod count;
mod mailbox;
mod message;
mod own;
mod record;

pub use chunk::ChunkRow;
pub use count::{Counts, Totals};
pub use mailbox::MailboxRow;
pub use message::MessageRow;
pub use own::{AnnotationRow, SeenRow, SieveRow, SubscriptionRow};
pub use record::RecordRow;
pub(super) use record::{RECORD, record_row};

use super::Index;
use crate::cyrus::dlist::{Limits, Parser, Value};
use crate::error::Result;
use rusqlite::{OptionalExtension, Row};

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
}

/// A dlist as rows keep it.
fn value(text: &[u8]) -> Option<Value> {
    let mut line = text.to_vec();
    line.push(b'\n');
    Parser::new(&line[..], Limits::default()).value().ok()
}

/// What a column holds is no such dlist.
fn damaged(column: usize) -> rusqlite::Error {
    rusqlite::Error::InvalidColumnType(column, "dlist".into(), rusqlite::types::Type::Blob)
}
