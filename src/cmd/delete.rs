//! `delete`: takes a user's whole backup out of use; `--undo` brings it back within
//! `backup_delete_grace`, `--expired` removes for good what is older.
//!
//! A sync that comes after the deletion begins a new backup; from then on the old one is not brought
//! back, but can be looked at under its key.

use super::args::{self, usage};
use super::clock::{self, Look};
use super::erase::{lying_about, names};
use super::output::{Out, plain, when};
use super::select::{self, Select};
use super::{Context, Job, Outcome};
use crate::error::{Error, Kind, Result};
use crate::store::backup::Settings;
use crate::store::former::{self, Former, Removed, Settled};
use crate::store::lock::Wait;
use crate::store::moving;
use crate::util::time::now;
use getopts::{Matches, Options};
use serde_json::{Value, json};
use std::path::PathBuf;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Delete(Select, Look),
    Undo(Select),
    Expired(Look),
}

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    what: What,
    wait: bool,
    json: bool,
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    select::options(&mut o);
    args::json(&mut o);
    o.optflag("w", "", "wait for backups that are locked");
    o.optflag("", "undo", "bring back what was deleted");
    o.optflag("", "expired", "remove what was deleted long enough ago");
    clock::option(&mut o);
    o
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    let args = Args::parse(m)?;
    Ok(Box::new(move |c, out| run(&args, c, out)))
}

impl Args {
    fn parse(m: &Matches) -> Result<Args> {
        if m.opt_present(clock::OPTION) && m.opt_present("undo") {
            return Err(usage("--clock-is-right is not for --undo"));
        }
        let look = match m.opt_present(clock::OPTION) {
            true => Look::Right,
            false => Look::Real,
        };
        let what = match (m.opt_present("undo"), m.opt_present("expired")) {
            (true, true) => return Err(usage("--undo and also --expired")),
            (true, false) => What::Undo(Select::named(m)?),
            (false, false) => What::Delete(Select::named(m)?, look),
            (false, true) => {
                args::no_more(&m.free)?;
                What::Expired(look)
            }
        };
        Ok(Args {
            what,
            wait: m.opt_present("w"),
            json: m.opt_present("j"),
        })
    }
}

/// What became of one backup.
pub(super) enum Done {
    Deleted(Former),
    Back(Former, PathBuf),
    /// And what may be of the owner still.
    Removed(Former, Removed, Vec<PathBuf>),
    Failed(String, Error),
}

fn delete(keys: &[String], c: &Context, wait: Wait, look: Look) -> Result<Done> {
    let catalog = c.catalog();
    let mut key = None;
    for candidate in keys {
        if catalog.lookup(candidate)?.is_some() {
            key = Some(candidate);
            break;
        }
    }
    let key = key.ok_or_else(|| Error::new(Kind::NotFound, "no backup"))?;
    let settings = Settings {
        level: c.config.backup_ingest_level(),
        chunk_max: c.config.backup_chunk_max(),
    };
    let path = catalog.lookup(key)?.unwrap_or_default();
    // One that was begun is ended as it was begun, whatever the clock says now.
    if !path.exists() {
        if let Some(Settled::Deleted(former)) = former::settle(&catalog, key, &path, &c.namespace)?
        {
            return Ok(Done::Deleted(former));
        }
    }
    let from = clock::kept_from(c, &path, look)?;
    former::delete(&catalog, key, wait, settings, &c.namespace, from).map(Done::Deleted)
}

fn undo(keys: &[String], c: &Context, wait: Wait) -> Result<Done> {
    let catalog = c.catalog();
    for key in keys {
        // A deletion that was interrupted is finished first.
        if let Some(path) = catalog.lookup(key)? {
            if !path.exists() {
                let settled = former::settle(&catalog, key, &path, &c.namespace)?;
                if settled == Some(Settled::Back) {
                    // So was one that brought it back.
                    let (key, owner) = (key.clone(), key.clone());
                    let former = Former {
                        key,
                        owner,
                        path: path.clone(),
                        deleted: None,
                    };
                    return Ok(Done::Back(former, path));
                }
            }
        }
    }
    let mut found = former::list(&catalog, None)?;
    found.retain(|f| keys.iter().any(|key| *key == f.key || *key == f.owner));
    let former = former::last(found, now());
    let former = former.ok_or_else(|| Error::new(Kind::NotFound, "no deleted backup"))?;
    let path = former::undo(&catalog, &former, wait)?;
    Ok(Done::Back(former, path))
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let wait = if args.wait { Wait::Forever } else { Wait::No };
    let mut told = Vec::new();
    match &args.what {
        What::Delete(select, _) | What::Undo(select) => {
            for (name, keys) in select.candidates(&c.namespace)? {
                let done = match args.what {
                    What::Delete(_, look) => delete(&keys, c, wait, look),
                    _ => undo(&keys, c, wait),
                };
                told.push(done.unwrap_or_else(|e| Done::Failed(name, e)));
            }
        }
        What::Expired(look) => {
            let now = now();
            if let Some(e) = clock::check(c, now, *look)? {
                if args.json {
                    out.document(&[], |d| {
                        d.list("backups")?;
                        Err(e)
                    })?;
                    return Ok(Outcome::Well);
                }
                return Err(e);
            }
            let grace = c.config.backup_delete_grace();
            former::expire(&c.catalog(), grace, now, &mut |former, done| {
                told.push(expired(c, former, done));
                Ok(())
            })?;
        }
    }
    let mut last = None;
    for done in &told {
        if let Done::Failed(name, e) = done {
            c.complain(name, e);
            last = Some(e.kind());
        }
    }
    if args.json {
        out.document(&[], |d| {
            d.list("backups")?;
            told.iter().try_for_each(|done| d.row(&as_json(done, c)))
        })?;
    } else {
        told.iter().try_for_each(|done| as_text(done, c, out))?;
    }
    Ok(match last {
        // One that was named: its own reason.
        Some(kind) if told.len() == 1 => Outcome::Status(super::status(kind)),
        _ => c.outcome(),
    })
}

/// What became of a deleted backup whose time was over.
pub(super) fn expired(c: &Context, former: &Former, done: Result<Removed>) -> Done {
    match done {
        Ok(removed) => {
            let left = left_of(c, former).unwrap_or_else(|e| {
                log::warn!("what is left is not known: {}", e.for_user(&former.key));
                Vec::new()
            });
            Done::Removed(former.clone(), removed, left)
        }
        Err(e) => Done::Failed(former.key.clone(), e),
    }
}

/// What may be of a deleted backup still, without an entry.
fn left_of(c: &Context, former: &Former) -> Result<Vec<PathBuf>> {
    let known = std::slice::from_ref(&former.path);
    let found = lying_about(c, &former.owner, known)?.into_iter();
    let mut left: Vec<_> = found.flat_map(|log| log.files).collect();
    left.extend(moving::unseen(&c.catalog(), &former.path)?);
    Ok(left)
}

/// Until when a deleted backup is kept.
pub(super) fn until(former: &Former, c: &Context) -> Option<i64> {
    let grace = i64::try_from(c.config.backup_delete_grace().as_secs()).unwrap_or(i64::MAX);
    former.deleted.map(|t| t.0.saturating_add(grace))
}

pub(super) fn as_json(done: &Done, c: &Context) -> Value {
    match done {
        Done::Deleted(former) => json!({
            "userid": former.owner,
            "status": "deleted",
            "key": former.key,
            "path": former.path.to_string_lossy(),
            "deleted": former.deleted.map(|t| t.0),
            "until": until(former, c),
        }),
        Done::Back(former, path) => json!({
            "userid": former.owner,
            "status": "undone",
            "key": former.owner,
            "path": path.to_string_lossy(),
        }),
        Done::Removed(former, removed, left) => json!({
            "userid": former.owner,
            "status": "removed",
            "key": former.key,
            "files": removed.files.len(),
            "bytes": removed.bytes,
            "left": names(left),
        }),
        Done::Failed(name, e) => {
            json!({ "userid": name, "status": "failed", "error": e.to_string() })
        }
    }
}

pub(super) fn as_text(done: &Done, c: &Context, out: &mut Out) -> Result<()> {
    match done {
        Done::Deleted(former) => out.line(format_args!(
            "{}: deleted: kept until {} as {}",
            plain(&former.owner),
            when(until(former, c)),
            plain(&former.key)
        )),
        Done::Back(former, path) => out.line(format_args!(
            "{}: brought back: {}",
            plain(&former.owner),
            plain(&path.display().to_string())
        )),
        Done::Removed(former, removed, left) => {
            out.line(format_args!(
                "{}: removed: {} files, {} bytes",
                plain(&former.key),
                removed.files.len(),
                removed.bytes
            ))?;
            left.iter().try_for_each(|file| {
                let file = file.display().to_string();
                out.line(format_args!("without an entry: {}", plain(&file)))
            })
        }
        Done::Failed(..) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> Result<Args> {
        Args::parse(&options().parse(words).unwrap())
    }

    #[test]
    fn only_what_is_named_is_deleted() {
        assert!(matches!(
            args(&["anna"]).unwrap().what,
            What::Delete(_, Look::Real)
        ));
        assert!(matches!(
            args(&["--undo", "anna"]).unwrap().what,
            What::Undo(_)
        ));
        let expired = |words: &[&str]| args(words).unwrap().what;
        assert_eq!(expired(&["--expired"]), What::Expired(Look::Real));
        assert_eq!(
            expired(&["--expired", "--clock-is-right"]),
            What::Expired(Look::Right)
        );
        for bad in [
            &[][..],
            &["-A"],
            &["-P", "a"],
            &["-D", "d"],
            &["-f", "/b/a"],
            &["--undo"],
            &["--expired", "anna"],
            &["--undo", "--expired"],
            &["--clock-is-right", "--undo", "anna"],
        ] {
            assert_eq!(args(bad).unwrap_err().kind(), Kind::Usage, "{bad:?}");
        }
    }
}
