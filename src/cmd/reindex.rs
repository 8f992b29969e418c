//! `reindex`: builds indexes anew from their logs, each under its lock.
//!
//! Each new index is made beside the old one, which an interruption leaves as it was.
//! Exit status 65 if a log does not read throughout (its index then has what could be read, and
//! the mailboxes concerned are marked to be sent again), 1 if a backup was locked or failed.

use super::args;
use super::list::size;
use super::output::{Out, plain};
use super::select::{self, Chosen, Select};
use super::{Context, Job, Outcome, status};
use crate::error::{Kind, Result};
use crate::store::backup::{Backup, Settings};
use crate::store::former;
use crate::store::index::Totals;
use crate::store::lock::Wait;
use crate::util::progress::Progress;
use getopts::{Matches, Options};
use serde_json::{Value, json};

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    select: Select,
    wait: bool,
    json: bool,
    jobs: usize,
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    select::options(&mut o);
    args::json(&mut o);
    o.optflag("w", "", "wait for backups that are locked");
    args::jobs(&mut o);
    o
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    let args = Args {
        select: Select::some(m)?,
        wait: m.opt_present("w"),
        json: m.opt_present("j"),
        jobs: args::jobs_of(m)?,
    };
    Ok(Box::new(move |c, out| run(&args, c, out)))
}

/// What became of one backup.
struct Done {
    lines: u64,
    damage: Vec<(u64, String)>,
    /// Mailbox and reason.
    marks: Vec<(String, String)>,
    totals: Totals,
}

fn work(args: &Args, c: &Context, chosen: &Chosen) -> Result<Done> {
    let settings = Settings {
        level: c.config.backup_ingest_level(),
        chunk_max: c.config.backup_chunk_max(),
    };
    let wait = if args.wait { Wait::Forever } else { Wait::No };
    let key = chosen.key.clone().unwrap_or_default();
    let total = size(&chosen.path).unwrap_or(0);
    let progress = Progress::new(&plain(&chosen.name()), total);
    let watch = Box::new(move |at| progress.at(at));
    let backup = Backup::reindex(&chosen.path, &key, wait, settings, args.jobs, watch)
        .map_err(|e| former::explain(e, &chosen.path))?;
    let index = backup.index();
    let mut marks = Vec::new();
    for (uniqueid, _, why) in index.marks()? {
        let row = index.mailbox(&uniqueid)?;
        marks.push((row.map_or(uniqueid, |row| row.mboxname), why));
    }
    let done = Done {
        lines: backup.entered(),
        damage: backup.damage().to_vec(),
        marks,
        totals: index.totals()?,
    };
    backup.finish()?;
    Ok(done)
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let found = args.select.find(&c.catalog(), &c.namespace)?;
    for (name, e) in &found.missing {
        c.complain(name, e);
    }
    let mut damaged = false;
    let mut one = |chosen: &Chosen| match work(args, c, chosen) {
        Ok(done) => {
            damaged |= !done.damage.is_empty();
            Ok(done)
        }
        Err(e) => {
            c.complain(&chosen.name(), &e);
            Err(e)
        }
    };
    if args.json {
        out.document(&[], |d| {
            d.list("backups")?;
            let mut rows = found.chosen.iter();
            rows.try_for_each(|chosen| d.row(&as_json(chosen, &one(chosen))))
        })?;
    } else {
        for chosen in &found.chosen {
            if let Ok(done) = one(chosen) {
                as_text(c, chosen, &done, out)?;
            }
        }
    }
    Ok(if damaged {
        Outcome::Status(status(Kind::Damaged))
    } else {
        c.outcome()
    })
}

fn as_text(c: &Context, chosen: &Chosen, done: &Done, out: &mut Out) -> Result<()> {
    let name = plain(&chosen.name());
    for (offset, what) in &done.damage {
        out.line(format_args!(
            "{name}: damaged: {}, file offset {offset}",
            plain(what)
        ))?;
    }
    for (mailbox, why) in &done.marks {
        out.line(format_args!(
            "{name}: to be sent again: {}: {}",
            plain(&c.admin_name(mailbox)),
            plain(why)
        ))?;
    }
    out.line(format_args!(
        "{name}: {} ({} chunks, {} lines, {} mailboxes, {} messages)",
        word(done),
        done.totals.chunks,
        done.lines,
        done.totals.mailboxes,
        done.totals.messages
    ))
}

fn word(done: &Done) -> &'static str {
    match done.damage.is_empty() {
        true => "ok",
        false => "salvaged",
    }
}

fn as_json(chosen: &Chosen, done: &Result<Done>) -> Value {
    let path = chosen.path.to_string_lossy();
    let done = match done {
        Ok(done) => done,
        Err(e) => {
            return json!({"userid": chosen.key, "path": path, "status": "failed",
                          "error": e.to_string()});
        }
    };
    let damage = done.damage.iter();
    let damage = damage.map(|(offset, what)| json!({"what": what, "offset": offset}));
    let marks = done.marks.iter();
    let marks = marks.map(|(mboxname, why)| json!({"mboxname": mboxname, "why": why}));
    json!({
        "userid": chosen.key,
        "path": path,
        "status": word(done),
        "chunks": done.totals.chunks,
        "lines": done.lines,
        "mailboxes": done.totals.mailboxes,
        "messages": done.totals.messages,
        "damage": damage.collect::<Value>(),
        "resync": marks.collect::<Value>(),
    })
}
