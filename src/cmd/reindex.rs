//! `reindex`: builds indexes anew from their logs, each under its lock.
//!
//! Exit status 65 if a log does not read throughout (its index then has what could be read, and
//! the mailboxes concerned are marked to be sent again), 1 if a backup was locked or failed.

use super::args;
use super::output::{Out, plain};
use super::select::{self, Select};
use super::{Context, Job, Outcome, status};
use crate::error::{Kind, Result};
use crate::store::backup::{Backup, Settings};
use crate::store::lock::Wait;
use getopts::{Matches, Options};

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    select: Select,
    wait: bool,
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    select::options(&mut o);
    o.optflag("w", "", "wait for backups that are locked");
    o
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    let args = Args {
        select: Select::some(m)?,
        wait: m.opt_present("w"),
    };
    Ok(Box::new(move |c, out| run(&args, c, out)))
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let found = args.select.find(&c.catalog(), &c.namespace)?;
    for (name, e) in &found.missing {
        c.complain(name, e);
    }
    let settings = Settings {
        level: c.config.backup_ingest_level(),
        chunk_max: c.config.backup_chunk_max(),
    };
    let wait = if args.wait { Wait::Forever } else { Wait::No };
    let mut damaged = false;
    for chosen in &found.chosen {
        let key = chosen.key.clone().unwrap_or_default();
        let name = plain(&chosen.name());
        match Backup::reindex(&chosen.path, &key, wait, settings) {
            Ok(backup) => {
                for (offset, what) in backup.damage() {
                    damaged = true;
                    out.line(format_args!(
                        "{name}: damaged: {what}, file offset {offset}"
                    ))?;
                }
                let totals = backup.index().totals()?;
                for (uniqueid, _, why) in backup.index().marks()? {
                    out.line(format_args!("{name}: to be sent again: {uniqueid}: {why}"))?;
                }
                out.line(format_args!(
                    "{name}: {} ({} chunks, {} mailboxes, {} messages)",
                    if backup.damage().is_empty() {
                        "ok"
                    } else {
                        "salvaged"
                    },
                    totals.chunks,
                    totals.mailboxes,
                    totals.messages
                ))?;
                backup.finish()?;
            }
            Err(e) => c.complain(&chosen.name(), &e),
        }
    }
    Ok(if damaged {
        Outcome::Status(status(Kind::Damaged))
    } else {
        c.outcome()
    })
}
