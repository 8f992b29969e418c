//! `erase`: removes for good and at once, without grace.
//!
//! A whole backup with everything that was kept of it: the log and its index, deleted backups of the
//! same owner, damaged copies, previous files. That it was done is recorded in
//! `backups.db.erased`. What other hosts, snapshots and tapes hold is not ours to reach.

use super::args::{self, usage};
use super::output::{Out, plain};
use super::select::{self, Select};
use super::{Context, Job, Outcome, status};
use crate::error::{Error, Kind, Result};
use crate::store::backup::Settings;
use crate::store::lock::Wait;
use crate::store::{erased, former};
use crate::util::time::now;
use getopts::{Matches, Options};
use serde_json::{Value, json};

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    select: Select,
    wait: bool,
    json: bool,
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    select::options(&mut o);
    args::json(&mut o);
    o.optflag("w", "", "wait for backups that are locked");
    o.optflag("", "whole", "the whole backup");
    o
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    let args = Args::parse(m)?;
    Ok(Box::new(move |c, out| run(&args, c, out)))
}

impl Args {
    fn parse(m: &Matches) -> Result<Args> {
        if !m.opt_present("whole") {
            return Err(usage("what of it? --whole erases the whole backup"));
        }
        Ok(Args {
            select: Select::named(m)?,
            wait: m.opt_present("w"),
            json: m.opt_present("j"),
        })
    }
}

/// What was erased of one owner.
#[derive(Default)]
struct Erased {
    backups: usize,
    files: usize,
    bytes: u64,
}

fn whole(name: &str, keys: &[String], c: &Context, wait: Wait) -> Result<(String, Erased)> {
    let catalog = c.catalog();
    let settings = Settings {
        level: c.config.backup_ingest_level(),
        chunk_max: c.config.backup_chunk_max(),
    };
    let mut owner = None;
    for key in keys.iter().filter(|key| !former::is_former(key)) {
        if catalog.lookup(key)?.is_some() {
            // Out of use first: what is interrupted from here on is at least deleted.
            former::delete(&catalog, key, wait, settings, &c.namespace, now())?;
            owner = Some(key.clone());
            break;
        }
    }
    let mut formers = former::list(&catalog, None)?;
    match &owner {
        Some(owner) => formers.retain(|f| f.owner == *owner),
        None => formers.retain(|f| keys.iter().any(|key| *key == f.key || *key == f.owner)),
    }
    let owner = owner.or_else(|| formers.first().map(|f| f.owner.clone()));
    let owner = owner.ok_or_else(|| Error::new(Kind::NotFound, format!("{name}: no backup")))?;
    let mut done = Erased::default();
    for former in &formers {
        let removed = former::remove(&catalog, former, wait)?;
        done.backups += 1;
        done.files += removed.files.len();
        done.bytes += removed.bytes;
    }
    let what = format!(
        "user=<{owner}> backups={} files={} bytes={}",
        done.backups, done.files, done.bytes
    );
    erased::append(&c.config.backup_db_path(), now(), &what)?;
    Ok((owner, done))
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let wait = if args.wait { Wait::Forever } else { Wait::No };
    let mut told = Vec::new();
    let mut last = None;
    for (name, keys) in args.select.candidates(&c.namespace)? {
        let done = whole(&name, &keys, c, wait);
        if let Err(e) = &done {
            c.complain(&name, e);
            last = Some(e.kind());
        }
        told.push((name, done));
    }
    if args.json {
        out.document(&[], |d| {
            d.list("backups")?;
            told.iter().try_for_each(|one| d.row(&as_json(one)))
        })?;
    } else {
        for (_, done) in &told {
            if let Ok((owner, done)) = done {
                out.line(format_args!(
                    "{}: erased: {} backups, {} files, {} bytes",
                    plain(owner),
                    done.backups,
                    done.files,
                    done.bytes
                ))?;
            }
        }
        if told.iter().any(|(_, done)| done.is_ok()) {
            out.line(format_args!(
                "Not reached: second copies, snapshots, and other backup hosts. A server that still \
                 has the mail sends it again."
            ))?;
        }
    }
    Ok(match last {
        Some(kind) if told.len() == 1 => Outcome::Status(status(kind)),
        _ => c.outcome(),
    })
}

fn as_json((name, done): &(String, Result<(String, Erased)>)) -> Value {
    match done {
        Ok((owner, done)) => json!({
            "userid": owner,
            "status": "erased",
            "backups": done.backups,
            "files": done.files,
            "bytes": done.bytes,
        }),
        Err(e) => json!({ "userid": name, "status": "failed", "error": e.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_must_be_said_what() {
        let args = |words: &[&str]| Args::parse(&options().parse(words).unwrap());
        assert!(args(&["--whole", "anna"]).is_ok());
        for bad in [
            &["anna"][..],
            &["--whole"],
            &["--whole", "-A"],
            &["--whole", "-f", "/b/a"],
        ] {
            assert_eq!(args(bad).unwrap_err().kind(), Kind::Usage, "{bad:?}");
        }
    }
}
