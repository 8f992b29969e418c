//! `move`: a backup to another backup partition, while syncs go on.

use super::args::{self, usage};
use super::erase::names;
use super::output::{Out, plain};
use super::select::{self, Chosen, Select};
use super::{Context, Job, Outcome, status};
use crate::cyrus::partition::dir_hash;
use crate::error::{Error, Kind, Result};
use crate::store::backup::Settings;
use crate::store::former;
use crate::store::lock::Wait;
use crate::store::moving::{Moved, Way, to_folder};
use crate::util::progress::Progress;
use getopts::{Matches, Options};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    select: Select,
    to: String,
    wait: bool,
    json: bool,
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    select::options(&mut o);
    args::json(&mut o);
    o.optflag("w", "", "wait for backups that are locked");
    o.optopt("", "to", "to this backup partition", "NAME");
    o
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    let args = Args::parse(m)?;
    Ok(Box::new(move |c, out| run(&args, c, out)))
}

impl Args {
    fn parse(m: &Matches) -> Result<Args> {
        let to = m.opt_str("to");
        let to = to.ok_or_else(|| usage("where to? --to NAME, as in backuppartition-NAME"))?;
        if m.opt_present("f") {
            return Err(usage("a file is nobody's: not with -f"));
        }
        Ok(Args {
            select: Select::some(m)?,
            to,
            wait: m.opt_present("w"),
            json: m.opt_present("j"),
        })
    }
}

fn one(
    args: &Args,
    c: &Context,
    chosen: &Chosen,
    partitions: &[(String, PathBuf)],
) -> Result<Moved> {
    let key = chosen.key.clone().unwrap_or_default();
    let full = c.config.fulldirhash();
    let owner = former::owner_of(&key).unwrap_or(&key);
    let folder = |dir: &PathBuf| dir.join(dir_hash(owner, full).to_string());
    let target = partitions.iter().find(|(name, _)| *name == args.to);
    let (_, target) = target.ok_or_else(|| {
        let what = format!("no backuppartition-{} is set", args.to);
        Error::new(Kind::Config, what)
    })?;
    if !target.is_dir() {
        let what = "the partition's folder is missing: is it mounted?";
        return Err(Error::new(Kind::Io, what).at(target));
    }
    let others: Vec<PathBuf> = partitions.iter().map(|(_, dir)| folder(dir)).collect();
    let way = Way {
        folder: &folder(target),
        wait: match args.wait {
            true => Wait::Forever,
            false => Wait::For(c.config.backup_lock_wait()),
        },
        settings: Settings {
            level: c.config.backup_ingest_level(),
            chunk_max: c.config.backup_chunk_max(),
        },
        others: &others,
    };
    former::settle_back(&c.catalog(), &key, &chosen.path, &c.namespace)?;
    let total = std::fs::metadata(&chosen.path).map_or(0, |m| m.len());
    let progress = Progress::new(&plain(&chosen.name()), total);
    to_folder(&c.catalog(), &key, way, &mut |at| progress.at(at))
        .map_err(|e| former::explain(e, &chosen.path))
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let found = args.select.find(&c.catalog(), &c.namespace)?;
    for (name, e) in &found.missing {
        c.complain(name, e);
    }
    let partitions = c.config.backup_partitions();
    let mut last = None;
    let mut work = |chosen: &Chosen| {
        let done = one(args, c, chosen, &partitions);
        match &done {
            Err(e) => {
                c.complain(&chosen.name(), e);
                last = Some(e.kind());
            }
            Ok(Moved {
                left: Some((files, e)),
                ..
            }) => {
                let what = format!("it has moved, but not all is removed where it was: {e}");
                c.complain(&chosen.name(), &Error::new(e.kind(), what));
                for file in names(files) {
                    let e = Error::new(e.kind(), format!("stays until the next move: {file}"));
                    c.complain(&chosen.name(), &e);
                }
                last = Some(e.kind());
            }
            Ok(_) => {}
        }
        done
    };
    // Deleted backups are nobody's: all means those in use.
    let stay = match args.select.is_all() {
        true => deleted(args, c, &partitions)?,
        false => 0,
    };
    if args.json {
        let fields = [("deleted", stay.into())];
        let fields: &[_] = if args.select.is_all() { &fields } else { &[] };
        out.document(fields, |d| {
            d.list("backups")?;
            for (name, e) in &found.missing {
                d.row(&failed(name, e))?;
            }
            let mut rows = found.chosen.iter();
            rows.try_for_each(|chosen| d.row(&as_json(chosen, &work(chosen))))
        })?;
    } else {
        for chosen in &found.chosen {
            if let Ok(moved) = work(chosen) {
                let name = plain(&chosen.name());
                let to = plain(&moved.to.display().to_string());
                match moved.from == moved.to {
                    true => out.line(format_args!("{name}: is there already: {to}"))?,
                    false => out.line(format_args!(
                        "{name}: moved to {to}: {} bytes, {} under the lock",
                        moved.bytes, moved.under_lock
                    ))?,
                }
            }
        }
        if stay > 0 {
            out.line(format_args!(
                "{stay} deleted backups stay where they are: move --to {} -P %FORMER/ moves them",
                plain(&args.to)
            ))?;
        }
    }
    Ok(match last {
        // One that was named: its own reason.
        Some(kind) if found.chosen.len() == 1 && !args.select.is_set() => {
            Outcome::Status(status(kind))
        }
        _ => c.outcome(),
    })
}

/// How many deleted backups are elsewhere.
fn deleted(args: &Args, c: &Context, partitions: &[(String, PathBuf)]) -> Result<usize> {
    let target = partitions.iter().find(|(name, _)| *name == args.to);
    let is_there = |path: &Path| target.is_some_and(|(_, dir)| path.starts_with(dir));
    let formers = former::list(&c.catalog(), None)?;
    Ok(formers.iter().filter(|f| !is_there(&f.path)).count())
}

fn failed(name: &str, e: &Error) -> Value {
    json!({ "userid": name, "status": "failed", "error": e.to_string() })
}

fn as_json(chosen: &Chosen, done: &Result<Moved>) -> Value {
    let mut row = json!({ "userid": chosen.key });
    match done {
        Ok(moved) => {
            row["status"] = if moved.from == moved.to {
                "there"
            } else {
                "moved"
            }
            .into();
            row["path"] = moved.to.to_string_lossy().into();
            row["from"] = moved.from.to_string_lossy().into();
            row["bytes"] = moved.bytes.into();
            row["under_lock_bytes"] = moved.under_lock.into();
            if let Some((files, e)) = &moved.left {
                row["left"] = names(files).into();
                row["error"] = e.to_string().into();
            }
        }
        Err(e) => return failed(&chosen.name(), e),
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_to_must_be_said() {
        let args = |words: &[&str]| Args::parse(&options().parse(words).unwrap());
        assert_eq!(args(&["--to", "two", "anna"]).unwrap().to, "two");
        assert!(args(&["--to", "two", "-A"]).is_ok());
        for bad in [
            &["anna"][..],
            &["--to", "two"],
            &["--to", "two", "-f", "/b/a"],
        ] {
            assert_eq!(args(bad).unwrap_err().kind(), Kind::Usage, "{bad:?}");
        }
    }
}
