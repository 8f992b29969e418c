//! Whether two indexes say the same, row for row.

use super::Index;
use crate::error::Result;
use rusqlite::types::Value;

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
const TABLES: [(&str, &str); 12] = [
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
];

/// All columns of `message` but its number, the key first.
const MESSAGE: &str = "guid, chunk_id, offset, size, partition, time, from_, to_, cc, subject,
    message_id, date";

/// Compares two indexes; at most `limit` differences are told. Reads both in step, in constant
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
    let names: Vec<String> = left.column_names().iter().map(|s| s.to_string()).collect();
    let mut left = left.query([]).map_err(|e| here.error(e))?;
    let mut right = right.query([]).map_err(|e| there.error(e))?;
    let next = |rows: &mut rusqlite::Rows<'_>| -> rusqlite::Result<Option<Vec<Value>>> {
        match rows.next()? {
            None => Ok(None),
            Some(row) => (0..names.len())
                .map(|i| row.get(i))
                .collect::<rusqlite::Result<Vec<Value>>>()
                .map(Some),
        }
    };
    let mut a = next(&mut left).map_err(|e| here.error(e))?;
    let mut b = next(&mut right).map_err(|e| there.error(e))?;
    while found.len() < limit {
        let (row, what) = match (&a, &b) {
            (None, None) => break,
            (Some(x), Some(y)) if x == y => {
                a = next(&mut left).map_err(|e| here.error(e))?;
                b = next(&mut right).map_err(|e| there.error(e))?;
                continue;
            }
            (Some(x), Some(y)) if x[..keys] == y[..keys] => {
                let columns: Vec<&str> = (0..names.len())
                    .filter(|&i| x[i] != y[i])
                    .map(|i| names[i].as_str())
                    .collect();
                let difference = (show(&x[..keys]), columns.join(" "));
                a = next(&mut left).map_err(|e| here.error(e))?;
                b = next(&mut right).map_err(|e| there.error(e))?;
                difference
            }
            (Some(x), y) if y.as_ref().is_none_or(|y| less(&x[..keys], &y[..keys])) => {
                let difference = (show(&x[..keys]), "only in the index".to_owned());
                a = next(&mut left).map_err(|e| here.error(e))?;
                difference
            }
            (_, Some(y)) => {
                let difference = (show(&y[..keys]), "only in the log".to_owned());
                b = next(&mut right).map_err(|e| there.error(e))?;
                difference
            }
            (Some(_), None) => break,
        };
        found.push(Difference { table, row, what });
    }
    Ok(())
}

fn less(a: &[Value], b: &[Value]) -> bool {
    for (x, y) in a.iter().zip(b) {
        let order = match (x, y) {
            (Value::Integer(x), Value::Integer(y)) => x.cmp(y),
            (Value::Text(x), Value::Text(y)) => x.cmp(y),
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
            other => format!("{other:?}"),
        })
        .collect();
    words.join("/")
}
