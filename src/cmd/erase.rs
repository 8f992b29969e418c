//! `erase`: removes for good and at once, without grace.
//!
//! Messages, by GUID: the log is compacted without their bodies, whatever retention says, and
//! previous logs kept beside it go. What the log says of them besides (size, flags, times) stays, so
//! that nothing else changes. A message that the server still has is refused: it would come again.
//!
//! A whole backup with everything that was kept of it: the log and its index, deleted backups of the
//! same owner, damaged copies, previous files. That it was done is recorded in
//! `backups.db.erased`. What other hosts, snapshots and tapes hold is not ours to reach.

use super::args::{self, usage};
use super::compact::{policy, whose};
use super::output::{Out, plain};
use super::select::{self, Select};
use super::{Context, Job, Outcome, status};
use crate::cyrus::config::retention::UserRetention;
use crate::cyrus::guid::Guid;
use crate::error::{Error, Kind, Result};
use crate::store::backup::Settings;
use crate::store::compact::need::{self, Times};
use crate::store::compact::{Policy, compact};
use crate::store::lock::Wait;
use crate::store::{erased, former};
use crate::util::time::now;
use getopts::{Matches, Options};
use serde_json::{Value, json};
use std::path::PathBuf;

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    select: Select,
    /// Of one backup; none: all of it.
    messages: Vec<Guid>,
    wait: bool,
    force: bool,
    json: bool,
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    select::options(&mut o);
    args::json(&mut o);
    o.optflag("w", "", "wait for backups that are locked");
    o.optflag("", "whole", "the whole backup");
    o.optflag("", "force", "messages, too, that are in a mailbox still");
    o
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    let args = Args::parse(m)?;
    Ok(Box::new(move |c, out| run(&args, c, out)))
}

impl Args {
    fn parse(m: &Matches) -> Result<Args> {
        let (wait, force) = (m.opt_present("w"), m.opt_present("force"));
        let json = m.opt_present("j");
        let (select, messages) = match m.opt_present("whole") {
            true if force => return Err(usage("--force is for messages")),
            true => (Select::named(m)?, Vec::new()),
            false => {
                let (select, words) = Select::one(m, &m.free)?;
                if words.is_empty() {
                    let why = "what of it? the GUIDs of messages, or --whole for all of it";
                    return Err(usage(why));
                }
                let guid = |word: &String| {
                    let guid = Guid::parse(word.as_bytes());
                    guid.ok_or_else(|| usage(format!("{word} is not a GUID")))
                };
                (select, words.iter().map(guid).collect::<Result<_>>()?)
            }
        };
        Ok(Args {
            select,
            messages,
            wait,
            force,
            json,
        })
    }
}

/// What became of messages.
struct Gone {
    key: String,
    messages: usize,
    /// Previous logs that went.
    removed: Vec<PathBuf>,
    /// What may hold them still.
    left: Vec<PathBuf>,
}

fn messages(args: &Args, c: &Context) -> Result<Gone> {
    let chosen = args.select.find_one(&c.catalog(), &c.namespace)?;
    let view = c.open(&chosen, c.repair())?;
    let (key, index) = (view.key.clone(), view.index());
    for guid in &args.messages {
        if index.body(*guid)?.is_none() {
            let what = format!("no body of message {guid}");
            return Err(Error::new(Kind::NotFound, what).for_user(&key));
        }
        for row in index.records_of(*guid)? {
            let mailbox = index.mailbox_by_id(row.mailbox_id)?;
            let Some(mailbox) = mailbox.filter(|m| m.deleted.is_none()) else {
                continue;
            };
            if row.expunged.is_none() && !args.force {
                let name = c.admin_name(&mailbox.mboxname);
                let what = format!(
                    "message {guid} is still in {name}, UID {}: expunge it on the server and \
                     sync, or --force",
                    row.record.uid
                );
                return Err(Error::new(Kind::Denied, what).for_user(&key));
            }
        }
    }
    let (userid, domain) = whose(&key);
    let (retention, always) = (
        c.config.retention().of(userid, domain, &c.namespace),
        UserRetention::always(None),
    );
    let now = now();
    let mut times = Times {
        retention: &retention,
        namespace: &c.namespace,
        now,
    };
    let loss = need::survey(index, &times)?.loss;
    if loss.brakes(c.config.backup_compact_brake()) {
        // What the brake holds stays held: only what was named goes.
        times.retention = &always;
    }
    drop(view);
    let policy = Policy {
        keep_previous: false,
        erase: args.messages.iter().copied().collect(),
        ..policy(c, 1, true, args.wait)
    };
    let scratch = c.config.backup_staging_path();
    compact(&chosen.path, &key, &policy, &times, &scratch)?;
    let view = c.open(&chosen, c.repair())?;
    for guid in &args.messages {
        if view.index().body(*guid)?.is_some() {
            // It came again, or stands in a chunk that was open.
            let what = format!("message {guid} is still there: try again");
            return Err(Error::new(Kind::Locked, what).for_user(&key));
        }
    }
    drop(view);
    let (removed, left) = former::previous(&chosen.path)?;
    for guid in &args.messages {
        let what = format!("user=<{key}> message={guid} previous={}", removed.len());
        erased::append(&c.config.backup_db_path(), now, &what)?;
    }
    Ok(Gone {
        key,
        messages: args.messages.len(),
        removed,
        left,
    })
}

fn run_messages(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let gone = messages(args, c)?;
    let names = |files: &[PathBuf]| -> Vec<String> {
        files.iter().map(|f| f.display().to_string()).collect()
    };
    if args.json {
        let fields = [
            ("userid", gone.key.as_str().into()),
            ("messages", gone.messages.into()),
            ("removed", names(&gone.removed).into()),
            ("left", names(&gone.left).into()),
        ];
        out.document(&fields, |_| Ok(()))?;
        return Ok(Outcome::Well);
    }
    out.line(format_args!(
        "{}: erased: {} messages, {} previous logs",
        plain(&gone.key),
        gone.messages,
        gone.removed.len()
    ))?;
    for file in names(&gone.left) {
        out.line(format_args!("may hold them still: {}", plain(&file)))?;
    }
    out.line(format_args!(
        "Not reached: deleted backups, second copies, snapshots, and other backup hosts."
    ))?;
    Ok(Outcome::Well)
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
    if !args.messages.is_empty() {
        return run_messages(args, c, out);
    }
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
        assert!(args(&["--whole", "anna"]).unwrap().messages.is_empty());
        let guid = "795629bdee9bdb3eb6b34379a38bf20bd3d78c0d";
        let one = args(&["anna", guid, "--force"]).unwrap();
        assert!(one.force && one.messages.len() == 1);
        for bad in [
            &["anna"][..],
            &["anna", "xyz"],
            &["-A", guid],
            &["--whole"],
            &["--whole", "--force", "anna"],
            &["--whole", "-A"],
            &["--whole", "-f", "/b/a"],
        ] {
            assert_eq!(args(bad).unwrap_err().kind(), Kind::Usage, "{bad:?}");
        }
    }
}
