//! `stat`: numbers about each of some backups. Reads all message rows of their indexes, and brings
//! an index up to date first where that can be done without waiting.

use super::args;
use super::list::{proven, size};
use super::output::{Out, number, plain, when};
use super::select::{self, Chosen, Select};
use super::{Context, Job, Outcome};
use crate::error::Result;
use crate::store::index::{self, ChunkRow};
use crate::store::proven::Proved;
use getopts::{Matches, Options};
use serde_json::{Value, json};
use std::collections::HashMap;

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    select: Select,
    json: bool,
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    select::options(&mut o);
    args::json(&mut o);
    o
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    let args = Args {
        select: Select::some(m)?,
        json: m.opt_present("j"),
    };
    Ok(Box::new(move |c, out| run(&args, c, out)))
}

fn row(chosen: &Chosen, c: &Context, proofs: &HashMap<String, Proved>) -> Result<Value> {
    let view = c.open(chosen, c.repair())?;
    let index = view.reader.index();
    let totals = index.totals()?;
    let (unreferenced, unreferenced_bytes) = index.unreferenced()?;
    let chunks = index.chunks()?;
    // Of sealed chunks only: of an open one the index knows no lengths.
    let sum = |of: fn(&ChunkRow) -> Option<u64>| {
        let lengths = chunks.iter().filter_map(of);
        lengths.fold(0, u64::saturating_add)
    };
    let stored = sum(|k| k.length);
    let plain = sum(|k| k.plain_length);
    let ratio = (stored > 0).then(|| (plain as f64 / stored as f64 * 100.0).round() / 100.0);
    Ok(json!({
        "userid": view.key,
        "path": chosen.path.display().to_string(),
        "bytes": size(&chosen.path),
        "index_bytes": size(&index::path_of(&chosen.path)),
        "last_sync": chunks.last().map(|k| k.last_time),
        "proven": proven(&view, proofs)?,
        "chunks": totals.chunks,
        "mailboxes": totals.mailboxes,
        "messages": totals.records,
        "resync": totals.resync,
        "bodies": totals.messages,
        "body_bytes": totals.message_bytes,
        "unreferenced": unreferenced,
        "unreferenced_bytes": unreferenced_bytes,
        "plain_bytes": plain,
        "ratio": ratio,
        "first_time": chunks.first().map(|k| k.first_time),
        "last_time": chunks.last().map(|k| k.last_time),
        "subscriptions": index.subscriptions(false)?.len(),
        "scripts": index.scripts(false)?.len(),
        "quota_roots": index.quotas()?.len(),
    }))
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let found = args.select.find(&c.catalog(), &c.namespace)?;
    for (name, e) in &found.missing {
        c.complain(name, e);
    }
    let proofs = c.proven().all()?;
    let mut rows = found.chosen.iter().map(|chosen| {
        row(chosen, c, &proofs).unwrap_or_else(|e| {
            c.complain(&chosen.name(), &e);
            json!({
                "userid": chosen.key,
                "path": chosen.path.display().to_string(),
                "error": e.to_string(),
            })
        })
    });
    if args.json {
        out.document(&[], |d| {
            d.list("backups")?;
            rows.try_for_each(|row| d.row(&row))
        })?;
    } else {
        rows.try_for_each(|row| text(&row, out))?;
    }
    Ok(c.outcome())
}

const TIMES: [&str; 4] = ["last_sync", "proven", "first_time", "last_time"];

/// One backup for people: a line for each number.
fn text(row: &Value, out: &mut Out) -> Result<()> {
    let name = row["userid"].as_str().or(row["path"].as_str());
    out.line(format_args!("{}", plain(name.unwrap_or("-"))))?;
    let fields = row.as_object().into_iter().flatten();
    for (key, value) in fields.filter(|(key, _)| *key != "userid") {
        let value = match value {
            Value::String(text) => plain(text),
            Value::Null => number(None::<u8>),
            value if TIMES.contains(&key.as_str()) => when(value.as_i64()),
            value => value.to_string(),
        };
        out.line(format_args!("  {:<14} {value}", key.replace('_', " ")))?;
    }
    Ok(())
}
