//! `erase`: removes for good and at once, without grace.
//!
//! Messages, by GUID: the log is compacted without their bodies. Nothing else goes with them, whatever
//! retention and the clock say: what is not named is kept for ever here. Previous logs kept beside it
//! go, also when the body is in these alone. What the log says of them besides (size, flags, times)
//! stays. A message that the server still has is refused: it would come again.
//!
//! A whole backup with everything that was kept of it: the log and its index, deleted backups of the
//! same owner, damaged copies, previous files, and logs of his that lie about without an entry. What
//! may be his and cannot be read is named and left.
//!
//! What is done is recorded in `backups.db.erased` before it is begun, and with its sums at the end.
//! Other backups of this host that have it, too, are named. What other hosts, snapshots and tapes
//! hold is not ours to reach.

mod whole;

use super::args::{self, usage};
use super::compact::policy;
use super::output::{Out, plain};
use super::select::{self, Chosen, Select};
use super::{Context, IDENT, Job, Outcome, View, say, status};
use crate::cyrus::config::retention::UserRetention;
use crate::cyrus::guid::Guid;
use crate::error::{Error, Kind, Result};
use crate::store::compact::need::Times;
use crate::store::compact::{Policy, compact};
use crate::store::index::Index;
use crate::store::reader::{Reader, Stale, ask_still};
use crate::store::{beside, erased, former, moving, orphan};
use crate::util::time::now;
use getopts::{Matches, Options};
use serde_json::json;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// How often it is begun anew because the backup has moved.
const ROUNDS: u32 = 16;

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
                let mut guids: Vec<Guid> = words.iter().map(guid).collect::<Result<_>>()?;
                let mut seen = HashSet::new();
                guids.retain(|guid| seen.insert(*guid));
                (select, guids)
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
    others: Others<Guid>,
}

/// Other backups on this host.
struct Others<T> {
    /// Whose has what.
    have: Vec<(String, T)>,
    /// Which could not be asked.
    unasked: Vec<String>,
}

impl<T> Others<T> {
    /// Asks all but that at `path`; only those of one owner, if one is given.
    fn ask(
        c: &Context,
        path: &Path,
        owner: Option<&str>,
        mut question: impl FnMut(&Index) -> Result<Vec<T>>,
    ) -> Result<Others<T>> {
        let mut found = Others {
            have: Vec::new(),
            unasked: Vec::new(),
        };
        for (key, other) in c.catalog().list()? {
            let is_empty = std::fs::metadata(&other).is_ok_and(|m| m.len() == 0);
            let is_asked =
                owner.is_none_or(|owner| former::owner_of(&key).unwrap_or(&key) == owner);
            if other == path || is_empty || !is_asked {
                continue;
            }
            let answer = match ask_still(&other, &mut |index, _| question(index)) {
                Ok(Some(answer)) => Ok(answer),
                _ => Reader::open(&other, Stale::Refuse).and_then(|r| question(r.index())),
            };
            match answer {
                Ok(answer) => {
                    let have = answer.into_iter().map(|what| (key.clone(), what));
                    found.have.extend(have);
                }
                Err(e) => {
                    log::info!("not asked: {}", e.for_user(&key));
                    found.unasked.push(key);
                }
            }
        }
        Ok(found)
    }
}

/// Refuses what is alive, and tells which have a body in the log.
fn in_log(args: &Args, c: &Context, key: &str, index: &Index) -> Result<HashSet<Guid>> {
    let mut found = HashSet::new();
    for guid in &args.messages {
        if index.body(*guid)?.is_some() {
            found.insert(*guid);
        }
        for row in index.records_of(*guid)? {
            let mailbox = index.mailbox_by_id(row.mailbox_id)?;
            let Some(mailbox) = mailbox.filter(|m| m.deleted.is_none()) else {
                continue;
            };
            if row.expunged.is_none() && !args.force {
                let name = c.admin_name(&mailbox.mboxname);
                let uid = row.record.uid;
                let what = match former::is_former(key) {
                    true => format!(
                        "message {guid} was still in {name}, UID {uid}, when this was deleted: --force \
                         erases it"
                    ),
                    false => format!(
                        "message {guid} is still in {name}, UID {uid}: expunge it on the server and \
                         sync, or --force"
                    ),
                };
                return Err(Error::new(Kind::Denied, what).for_user(key));
            }
        }
    }
    Ok(found)
}

/// Which of the messages have a body in a log.
fn having(index: &Index, messages: &[Guid]) -> Result<Vec<Guid>> {
    let mut have = Vec::new();
    for guid in messages {
        if index.body(*guid)?.is_some() {
            have.push(*guid);
        }
    }
    Ok(have)
}

/// Whose the record says that a message was: the owner of the backup, also of a deleted one, and whom its
/// log names, should that be another.
fn owners(view: &View) -> Result<Vec<String>> {
    let owner = former::owner_of(&view.key).unwrap_or(&view.key).to_owned();
    let own = view.index().meta_text("key")?.filter(|own| *own != owner);
    Ok([owner].into_iter().chain(own).collect())
}

fn messages(args: &Args, c: &Context) -> Result<Gone> {
    for _ in 0..ROUNDS {
        let chosen = args.select.find_one(&c.catalog(), &c.namespace)?;
        match messages_of(&chosen, args, c) {
            Err(_) if has_moved(&chosen, c)? => {}
            done => return done,
        }
    }
    Err(Error::new(Kind::Locked, "it moves all the time").for_user(args.select.first()))
}

/// Whether a backup has gone to another place since it was chosen.
fn has_moved(chosen: &Chosen, c: &Context) -> Result<bool> {
    let Some(key) = &chosen.key else {
        return Ok(false);
    };
    let now = c.catalog().lookup(key)?;
    Ok(now.is_some_and(|now| now != chosen.path))
}

fn messages_of(chosen: &Chosen, args: &Args, c: &Context) -> Result<Gone> {
    let path = &chosen.path;
    let view = c.open(chosen, c.repair())?;
    let key = view.key.clone();
    let mut owners_then = owners(&view)?;
    let here = in_log(args, c, &key, view.index())?;
    drop(view);
    let scratch = c.config.backup_staging_path();
    // What a move has left would come back with the next one.
    let end = || match &chosen.key {
        Some(_) => moving::end(&c.catalog(), path),
        None => Ok(Vec::new()),
    };
    let unseen = end()?;
    let db = c.config.backup_db_path();
    let mut lacking = Vec::new();
    for guid in args.messages.iter().filter(|guid| !here.contains(guid)) {
        let mut is_begun = false;
        for owner in &owners_then {
            is_begun |= erased::is_begun(&db, owner, *guid)?;
        }
        // One that was begun, and interrupted when the body was gone, is ended.
        if !is_begun {
            lacking.push(*guid);
        }
    }
    for log in beside::beside(path)?.previous {
        if lacking.is_empty() {
            break;
        }
        let found = beside::holds(&log, &lacking, &scratch);
        lacking.retain(|guid| !found.contains(guid));
    }
    if let Some(guid) = lacking.first() {
        let mut what = format!("no body of message {guid}");
        let owner = former::owner_of(&key).unwrap_or(&key);
        let (others, mut left) = elsewhere(c, path, owner, Some(owner), &[*guid])?;
        left.extend(unseen);
        for (other, _) in others.have {
            what.push_str(&format!("; {other} has it"));
        }
        for other in others.unasked {
            what.push_str(&format!("; {other} could not be asked"));
        }
        for file in names(&left) {
            what.push_str(&format!("; may hold it: {file}"));
        }
        return Err(Error::new(Kind::NotFound, what).for_user(&key));
    }
    let now = now();
    let of = match former::is_former(&key) {
        true => format!(" key=<{key}>"),
        false => String::new(),
    };
    for owner in &owners_then {
        for guid in &args.messages {
            // Once, however often it is tried.
            if !erased::is_begun(&db, owner, *guid)? {
                let what = format!("user=<{owner}> message={guid} begun{of}");
                erased::append(&db, now, &what)?;
            }
        }
    }
    let policy = policy(c, 1, true, args.wait);
    let wait = policy.wait;
    if !here.is_empty() {
        let policy = Policy {
            keep_previous: false,
            erase: here,
            ..policy
        };
        let times = Times {
            retention: &UserRetention::always(None),
            namespace: &c.namespace,
            now,
        };
        let owner = former::owner_of(&key).unwrap_or(&key);
        compact(path, owner, &policy, &times, &scratch)?;
    }
    let view = c.open(chosen, c.repair())?;
    for guid in &args.messages {
        if view.index().body(*guid)?.is_some() {
            // It came again.
            let what = format!("message {guid} is still there: try again");
            return Err(Error::new(Kind::Locked, what).for_user(&key));
        }
    }
    // It may have been renamed meanwhile.
    owners_then.extend(owners(&view)?);
    owners_then.sort();
    owners_then.dedup();
    drop(view);
    let removed = beside::remove_previous(path, wait, || match &chosen.key {
        Some(key) => Ok(c.catalog().lookup(key)?.as_ref() == Some(path)),
        None => Ok(true),
    })?;
    let unseen = end()?;
    for owner in &owners_then {
        for guid in &args.messages {
            let n = removed.len();
            let what = format!("user=<{owner}> message={guid} previous={n}{of}");
            erased::append(&db, now, &what)?;
        }
    }
    let owner = former::owner_of(&key).unwrap_or(&key);
    let (others, mut left) = elsewhere(c, path, owner, None, &args.messages)?;
    left.extend(unseen);
    Ok(Gone {
        key,
        messages: args.messages.len(),
        removed,
        left,
        others,
    })
}

/// Who else has messages, and files that may: what is set aside beside the backup at `path` or lies about, and
/// what is beside the owner's other backups, live or deleted. Asked are all backups, or only those of one owner.
fn elsewhere(
    c: &Context,
    path: &Path,
    owner: &str,
    asked: Option<&str>,
    messages: &[Guid],
) -> Result<(Others<Guid>, Vec<PathBuf>)> {
    let mut left = beside::beside(path)?.aside;
    for other in lying_about(c, owner, &[path.to_owned()])? {
        left.extend(other.files);
    }
    let mut others = Others::ask(c, path, asked, |index| having(index, messages))?;
    let scratch = c.config.backup_staging_path();
    for (other, its) in c.catalog().list()? {
        if its == *path || former::owner_of(&other).unwrap_or(&other) != owner {
            continue;
        }
        let kept = beside::beside(&its)?;
        for log in &kept.previous {
            for guid in beside::holds(log, messages, &scratch) {
                let one = (other.clone(), guid);
                if !others.have.contains(&one) {
                    others.have.push(one);
                }
            }
        }
        left.extend(kept.aside);
    }
    Ok((others, left))
}

/// What lies in the partitions without an entry and may be of an owner.
pub(super) fn lying_about(
    c: &Context,
    owner: &str,
    known: &[PathBuf],
) -> Result<Vec<orphan::Unnamed>> {
    let partitions = c.config.backup_partitions().into_iter();
    let partitions: Vec<PathBuf> = partitions.map(|(_, dir)| dir).collect();
    orphan::unnamed(&partitions, owner, known, &c.namespace, &c.catalog())
}

/// Files by name, to be told.
pub(super) fn names(files: &[PathBuf]) -> Vec<String> {
    files.iter().map(|f| f.display().to_string()).collect()
}

fn tell_left(out: &mut Out, left: &[PathBuf]) -> Result<()> {
    for file in names(left) {
        out.line(format_args!("may hold them still: {}", plain(&file)))?;
    }
    Ok(())
}

fn tell_unasked(out: &mut Out, unasked: &[String]) -> Result<()> {
    for key in unasked {
        out.line(format_args!("could not be asked: {}", plain(key)))?;
    }
    Ok(())
}

fn run_messages(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let gone = match messages(args, c) {
        Err(e) if args.json && e.kind() != Kind::Usage => {
            let fields = [
                ("userid", args.select.first().into()),
                ("status", "failed".into()),
                ("error", e.to_string().into()),
            ];
            out.document(&fields, |_| Ok(()))?;
            say(format_args!("{IDENT}: {}", plain(&e.to_string())));
            return Ok(Outcome::Status(status(e.kind())));
        }
        gone => gone?,
    };
    let other = |(key, guid): &(String, Guid)| json!({"userid": key, "guid": guid.to_string()});
    if args.json {
        let fields = [
            ("userid", gone.key.as_str().into()),
            ("status", "erased".into()),
            ("messages", gone.messages.into()),
            ("removed", names(&gone.removed).into()),
            ("left", names(&gone.left).into()),
            ("others", gone.others.have.iter().map(other).collect()),
            ("unasked", gone.others.unasked.as_slice().into()),
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
    tell_left(out, &gone.left)?;
    for (key, guid) in &gone.others.have {
        out.line(format_args!("{} has it, too: {guid}", plain(key)))?;
    }
    tell_unasked(out, &gone.others.unasked)?;
    out.line(format_args!(
        "Not reached: other backups, second copies, snapshots, and other backup hosts."
    ))?;
    Ok(Outcome::Well)
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    match args.messages.is_empty() {
        true => whole::run(args, c, out),
        false => run_messages(args, c, out),
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
        let twice = args(&["anna", guid, guid]).unwrap();
        assert_eq!(twice.messages.len(), 1);
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
