//! `stat`: numbers about each of some backups. Counts in their indexes where they have changed since
//! the last time, and brings an index up to date first where that can be done without waiting. No
//! log is read, unless for such a repair.

use super::args;
use super::list::{Known, each, held_json, is_stale, stale, stale_of};
use super::output::{Out, number, plain, when};
use super::select::{self, Chosen, Select};
use super::{Context, Job, Outcome};
use crate::error::Result;
use crate::store::proven::time_of;
use crate::store::summary::Looked;
use crate::util::time::{Timestamp, now};
use getopts::{Matches, Options};
use serde_json::{Value, json};

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    select: Select,
    json: bool,
    /// `--stale`, in seconds.
    stale_secs: Option<i64>,
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    select::options(&mut o);
    args::json(&mut o);
    stale(&mut o);
    o
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    let args = Args {
        select: Select::some(m)?,
        json: m.opt_present("j"),
        stale_secs: stale_of(m)?,
    };
    Ok(Box::new(move |c, out| run(&args, c, out)))
}

fn row(chosen: &Chosen, mut looked: Looked, known: &Known, now: Timestamp) -> Result<Value> {
    let s = looked.summary?;
    let key = chosen.key.clone().or(looked.key.take()).unwrap_or_default();
    let seen = known.seen_of(&key, &s);
    Ok(json!({
        "userid": key,
        "path": chosen.path.display().to_string(),
        "bytes": looked.bytes,
        "index_bytes": looked.index_bytes,
        "last_sync": s.last_time,
        "last_change": s.last_change,
        "proven": time_of(&known.proofs, &key, &s.generation),
        "compacted": seen.and_then(|s| s.time),
        "held": held_json(seen),
        "chunks": s.chunks,
        "mailboxes": s.mailboxes,
        "messages": s.messages,
        "resync": s.resync,
        "bodies": s.bodies,
        "body_bytes": s.body_bytes,
        "live_bytes": s.live_bytes,
        "waste_bytes": s.waste_bytes(),
        "due_bytes": s.due_bytes(now.0),
        "unreferenced": s.unreferenced,
        "unreferenced_bytes": s.unreferenced_bytes,
        "plain_bytes": s.plain_bytes,
        "ratio": s.ratio(),
        "first_time": s.first_time,
        "last_time": s.last_time,
        "subscriptions": s.subscriptions,
        "scripts": s.scripts,
        "quota_roots": s.quota_roots,
    }))
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let found = args.select.find(&c.catalog(), &c.namespace)?;
    for (name, e) in &found.missing {
        c.complain(name, e);
    }
    let known = Known::read(c)?;
    let now = now();
    let row = |chosen: &Chosen, looked: Looked| {
        is_stale(&looked.summary, args.stale_secs, now).then(|| {
            row(chosen, looked, &known, now).unwrap_or_else(|e| {
                c.complain(&chosen.name(), &e);
                json!({
                    "userid": chosen.key,
                    "path": chosen.path.display().to_string(),
                    "error": e.to_string(),
                })
            })
        })
    };
    let is_all = args.select.is_all();
    if args.json {
        out.document(&[], |d| {
            d.list("backups")?;
            each(
                &found.chosen,
                c,
                c.repair(),
                is_all,
                &mut |chosen, looked| row(chosen, looked).map_or(Ok(()), |row| d.row(&row)),
            )
        })?;
    } else {
        each(
            &found.chosen,
            c,
            c.repair(),
            is_all,
            &mut |chosen, looked| row(chosen, looked).map_or(Ok(()), |row| text(&row, out)),
        )?;
    }
    Ok(c.outcome())
}

const TIMES: [&str; 6] = [
    "last_sync",
    "last_change",
    "proven",
    "compacted",
    "first_time",
    "last_time",
];

/// One backup for people: a line for each number.
fn text(row: &Value, out: &mut Out) -> Result<()> {
    let name = row["userid"].as_str().or(row["path"].as_str());
    out.line(format_args!("{}", plain(name.unwrap_or("-"))))?;
    let fields = row.as_object().into_iter().flatten();
    for (key, value) in fields.filter(|(key, _)| *key != "userid") {
        let value = match value {
            Value::String(text) => plain(text),
            Value::Null => number(None::<u8>),
            value if key == "held" && value.is_object() => {
                format!("{} of {} messages", value["messages"], value["of"])
            }
            value if TIMES.contains(&key.as_str()) => when(value.as_i64()),
            value => value.to_string(),
        };
        out.line(format_args!("  {:<18} {value}", key.replace('_', " ")))?;
    }
    Ok(())
}
