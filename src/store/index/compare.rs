//! Whether two indexes say the same, row for row.

use super::Index;
use crate::error::Result;
use crate::util::hex;
use rusqlite::Row;
use rusqlite::types::{Value, ValueRef};
use std::ops::Range;

/// A row that one index has and the other has not, or has otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The table.
    pub table: &'static str,
    /// The row's first column, which tells it apart.
    pub row: String,
    /// What differs: "only here", "only there", or the columns.
    pub what: String,
}

/// Tables and what orders them. Of `meta` only what the log states is compared.
const TABLES: [(&str, &str); 13] = [
    ("meta", "key"),
    ("chunk", "id"),
    // Their numbers say nothing.
    ("message", "guid"),
    ("mailbox", "id"),
    ("record", "mailbox_id, epoch, uid"),
    ("resync", "uniqueid"),
    ("subscription", "mboxname"),
    ("seen", "uniqueid"),
    ("sieve", "id"),
    ("sieve_active", "id"),
    ("quota", "root"),
    ("annotation", "mboxname, entry, userid"),
    ("late", "printed"),
];

/// All columns of `message` but its number, the key first.
const MESSAGE: &str = "guid, chunk_id, offset, size, partition, time, from_, to_, cc, subject,
    message_id, date";

/// Compares an index with `there`, one of which nothing is wrong; at most `limit` differences are told. Reads both in step, in constant
/// memory.
pub fn differences(here: &Index, there: &Index, limit: usize) -> Result<Vec<Difference>> {
    let mut found = Vec::new();
    for (table, order) in TABLES {
        let filter = if table == "meta" {
            "WHERE key IN ('schema', 'generation', 'key', 'created', 'manifest', 'stepped', 'state', 'state_time', 'state_chunk',
                 'state_last', 'compacted')"
        } else {
            ""
        };
        let columns = match table {
            "message" => MESSAGE,
            _ => "*",
        };
        let sql = format!("SELECT {columns} FROM {table} {filter} ORDER BY {order}");
        let keys = order.split(',').count();
        compare(here, there, table, &sql, keys, limit, &mut found)?;
    }
    Ok(found)
}

fn compare(
    here: &Index,
    there: &Index,
    table: &'static str,
    sql: &str,
    keys: usize,
    limit: usize,
    found: &mut Vec<Difference>,
) -> Result<()> {
    let mut left = here.conn.prepare(sql).map_err(|e| here.error(e))?;
    let mut right = there.conn.prepare(sql).map_err(|e| there.error(e))?;
    // Of the one made just now: in a damaged one even the names may be none.
    let names: Vec<String> = right.column_names().iter().map(|s| s.to_string()).collect();
    let columns = names.len();
    if left.column_count() != columns {
        let what = "other columns".to_owned();
        let row = String::new();
        found.push(Difference { table, row, what });
        return Ok(());
    }
    let mut left = left.query([]).map_err(|e| here.error(e))?;
    let mut right = right.query([]).map_err(|e| there.error(e))?;
    let mut a = left.next().map_err(|e| here.error(e))?;
    let mut b = right.next().map_err(|e| there.error(e))?;
    while found.len() < limit {
        // Nearly all rows are equal: they are compared where they lie.
        if let (Some(x), Some(y)) = (a, b) {
            if same(x, y, 0..columns)? {
                a = left.next().map_err(|e| here.error(e))?;
                b = right.next().map_err(|e| there.error(e))?;
                continue;
            }
        }
        let (x, y) = (key(a, keys)?, key(b, keys)?);
        let (row, what) = match (&x, &y) {
            (None, None) => break,
            (Some(x), Some(y)) if x == y => {
                let mut differ = Vec::new();
                for (i, name) in names.iter().enumerate() {
                    if let (Some(x), Some(y)) = (a, b) {
                        if !same(x, y, i..i + 1)? {
                            differ.push(name.as_str());
                        }
                    }
                }
                (show(x), differ.join(" "))
            }
            (Some(x), y) if y.as_ref().is_none_or(|y| less(x, y)) => {
                (show(x), "only in the index".to_owned())
            }
            (_, Some(y)) => (show(y), "only in the log".to_owned()),
            (Some(_), None) => break,
        };
        if what != "only in the log" {
            a = left.next().map_err(|e| here.error(e))?;
        }
        if what != "only in the index" {
            b = right.next().map_err(|e| there.error(e))?;
        }
        found.push(Difference { table, row, what });
    }
    Ok(())
}

/// Whether two rows have the same values in some columns.
fn same(x: &Row<'_>, y: &Row<'_>, mut columns: Range<usize>) -> rusqlite::Result<bool> {
    loop {
        match columns.next() {
            None => return Ok(true),
            Some(i) if x.get_ref(i)? == y.get_ref(i)? => {}
            Some(_) => return Ok(false),
        }
    }
}

/// What tells a row apart: its first columns.
fn key(row: Option<&Row<'_>>, columns: usize) -> rusqlite::Result<Option<Vec<Value>>> {
    let value = |row: &Row<'_>, i| {
        Ok(match row.get_ref(i)? {
            // A damaged text may be none.
            ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
            other => Value::from(other),
        })
    };
    row.map(|row| (0..columns).map(|i| value(row, i)).collect())
        .transpose()
}

fn less(a: &[Value], b: &[Value]) -> bool {
    for (x, y) in a.iter().zip(b) {
        let order = match (x, y) {
            (Value::Integer(x), Value::Integer(y)) => x.cmp(y),
            (Value::Text(x), Value::Text(y)) => x.cmp(y),
            (Value::Blob(x), Value::Blob(y)) => x.cmp(y),
            _ => continue,
        };
        if order.is_ne() {
            return order.is_lt();
        }
    }
    false
}

fn show(values: &[Value]) -> String {
    let words: Vec<String> = values
        .iter()
        .map(|v| match v {
            Value::Integer(n) => n.to_string(),
            Value::Text(t) => t.clone(),
            Value::Blob(b) => hex::encode(b),
            other => format!("{other:?}"),
        })
        .collect();
    words.join("/")
}
