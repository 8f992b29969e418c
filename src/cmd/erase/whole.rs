//! Whole backups with everything that was kept of them.

use super::{Args, Others, ROUNDS, lying_about, names, tell_left, tell_unasked};
use crate::cmd::args::usage;
use crate::cmd::output::{Out, plain};
use crate::cmd::select::Select;
use crate::cmd::{Context, Outcome, say, status};
use crate::cyrus::guid::Guid;
use crate::error::{Error, Kind, Result};
use crate::store::former::{self, Why};
use crate::store::lock::Wait;
use crate::store::{erased, moving, orphan};
use crate::util::time::{Timestamp, now};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Before it is begun anew because something has moved, or is being brought back.
const PAUSE: Duration = Duration::from_millis(100);

/// What was erased of one owner.
#[derive(Default)]
struct Erased {
    backups: usize,
    files: usize,
    bytes: u64,
    /// What may be of it still.
    left: Vec<PathBuf>,
    /// Where an interrupted move may have left something.
    unseen: Vec<PathBuf>,
    /// Backups that have a part of its past, under another name.
    others: Vec<String>,
    unasked: Vec<String>,
    /// Why some of it stays.
    failed: Vec<Error>,
}

impl Erased {
    fn add(&mut self, removed: &former::Removed) {
        self.backups += 1;
        self.files += removed.files.len();
        self.bytes += removed.bytes;
    }

    /// A backup is out of reach: the others go all the same. Any other error ends it.
    fn unreached(&mut self, path: &Path, e: Error) -> Result<()> {
        match e.kind() {
            Kind::NotFound | Kind::Io => {
                self.left.extend(former::lying_at(path));
                self.failed.push(e);
                Ok(())
            }
            _ => Err(e),
        }
    }
}

fn no_backup() -> Error {
    Error::new(Kind::NotFound, "no backup")
}

/// Whether there is, or was, anything that a name may mean. What was erased is known, so that the same
/// call again ends what was interrupted.
fn is_known(keys: &[String], c: &Context) -> Result<bool> {
    let catalog = c.catalog();
    let db = c.config.backup_db_path();
    for key in keys {
        if catalog.lookup(key)?.is_some() || erased::was_whole(&db, key)? {
            return Ok(true);
        }
    }
    let formers = former::list(&catalog, None)?;
    if formers.iter().any(|f| keys.contains(&f.owner)) {
        return Ok(true);
    }
    for key in keys.iter().filter(|key| !former::is_former(key)) {
        if lying_about(c, key, &[])?.iter().any(|log| log.is_his) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Erases what is named, if all of that is known; else nothing of it.
fn wholes(select: &Select, c: &Context, wait: Wait) -> Result<Vec<(String, Whole)>> {
    let named = select.candidates(&c.namespace)?;
    let mut unknown = HashSet::new();
    for (name, keys) in &named {
        if !is_known(keys, c)? {
            if Guid::parse(name.as_bytes()).is_some() {
                let what = "no backup is called so, and GUIDs of messages go without --whole";
                return Err(usage(format!("{name}: {what}; nothing is erased")));
            }
            unknown.insert(name.clone());
        }
    }
    let one = |(name, keys): (String, Vec<String>)| {
        let done = match (unknown.is_empty(), unknown.contains(&name)) {
            (true, _) => again(&name, &keys, c, wait).map(Some),
            (false, true) => Err(no_backup()),
            (false, false) => Ok(None),
        };
        (name, done)
    };
    Ok(named.into_iter().map(one).collect())
}

/// What became of a name: whose backups went; `None`: untouched, because of another name.
type Whole = Result<Option<(String, Erased)>>;

/// Until nothing of it moves away, or is brought back, meanwhile.
fn again(name: &str, keys: &[String], c: &Context, wait: Wait) -> Result<(String, Erased)> {
    let (mut sums, mut owner) = (Erased::default(), None);
    for _ in 0..ROUNDS {
        (sums.left, sums.failed) = Default::default();
        match whole(name, keys, c, wait, &mut owner, &mut sums) {
            Err(e) if e.kind() == Kind::Changed => std::thread::sleep(PAUSE),
            done => {
                let owner = done?;
                sums.left.append(&mut sums.unseen);
                sums.left.sort();
                sums.left.dedup();
                return Ok((owner, sums));
            }
        }
    }
    Err(Error::new(Kind::Locked, "it moves all the time"))
}

fn whole(
    name: &str,
    keys: &[String],
    c: &Context,
    wait: Wait,
    known: &mut Option<String>,
    done: &mut Erased,
) -> Result<String> {
    let (catalog, db) = (c.catalog(), c.config.backup_db_path());
    let live = out_of_use(keys, c, wait, done)?;
    let mut formers = former::list(&catalog, None)?;
    match &live {
        Some(owner) => formers.retain(|f| f.owner == *owner),
        None => formers.retain(|f| keys.iter().any(|key| *key == f.key || *key == f.owner)),
    }
    let owner = match live.or_else(|| formers.first().map(|f| f.owner.clone())) {
        // Another one may have erased it just now.
        None => without_entry(keys, c)?.or(known.take().filter(|owner| keys.contains(owner))),
        owner => owner,
    };
    let owner = owner.ok_or_else(no_backup)?;
    *known = Some(owner.clone());
    // All of the owner's, or one deleted backup that was named by its key.
    let is_all = keys.contains(&owner);
    let now = now();
    if is_all {
        // No copy of what goes is later, whatever the clock says.
        let last = formers.iter().map(former::last_said);
        erased::begun(&db, now, &owner, last.fold(now, Timestamp::max))?;
    } else {
        let what = format!("user=<{owner}> key=<{name}> begun");
        erased::append(&db, now, &what)?;
    }
    let places: Vec<PathBuf> = formers.iter().map(|f| f.path.clone()).collect();
    let ids: Vec<String> = formers
        .iter()
        .flat_map(|f| former::inbox_of(&f.key))
        .collect();
    for former in &formers {
        // What a move has left would be a copy without an entry.
        let unseen = moving::end(&catalog, &former.path).or_else(|e| {
            log::warn!("cannot end an interrupted move: {e}");
            moving::unseen(&catalog, &former.path).map(Vec::from_iter)
        });
        done.unseen.extend(unseen?);
        match former::remove(&catalog, former, wait, now, Why::Erased) {
            // Another one may have removed it just now.
            Ok(removed) if removed.files.is_empty() => {}
            Ok(removed) => done.add(&removed),
            Err(e) => done.unreached(&former.path, e)?,
        }
    }
    for log in lying_about(c, &owner, &places)? {
        match log.is_his && is_all {
            true => done.add(&orphan::remove(&log, &catalog, wait)?),
            false => done.left.extend(log.files),
        }
    }
    let unreached = match done.failed.len() {
        0 => String::new(),
        n => format!(" unreached={n}"),
    };
    let what = format!(
        "user=<{owner}> backups={} files={} bytes={}{unreached}",
        done.backups, done.files, done.bytes
    );
    erased::append(&db, now, &what)?;
    if !ids.is_empty() {
        let others = Others::ask(c, Path::new(""), None, |index| {
            for id in &ids {
                if index.mailbox(id)?.is_some() {
                    return Ok(vec![()]);
                }
            }
            Ok(Vec::new())
        })?;
        done.others = others.have.into_iter().map(|(key, ())| key).collect();
        done.unasked = others.unasked;
    }
    Ok(owner)
}

/// Takes the live backup out of use: what is interrupted from here on is at least deleted. Whose it is, or was.
fn out_of_use(
    keys: &[String],
    c: &Context,
    wait: Wait,
    done: &mut Erased,
) -> Result<Option<String>> {
    let catalog = c.catalog();
    for key in keys.iter().filter(|key| !former::is_former(key)) {
        let Some(path) = catalog.lookup(key)? else {
            continue;
        };
        let deleted = former::delete(&catalog, key, wait, c.settings(), &c.namespace, now());
        if let Err(e) = deleted {
            if catalog.lookup(key)?.as_ref() != Some(&path) {
                return Err(Error::new(Kind::Changed, "it has moved meanwhile").because(e));
            }
            done.unreached(&path, e)?;
        }
        return Ok(Some(key.clone()));
    }
    Ok(None)
}

/// Who is meant, where no entry is left: something of his lies about, or his erasure was begun and has not ended.
fn without_entry(keys: &[String], c: &Context) -> Result<Option<String>> {
    for key in keys.iter().filter(|key| !former::is_former(key)) {
        if lying_about(c, key, &[])?.iter().any(|log| log.is_his) {
            return Ok(Some(key.clone()));
        }
    }
    for key in keys {
        if erased::is_open(&c.config.backup_db_path(), key)? {
            return Ok(Some(former::owner_of(key).unwrap_or(key).to_owned()));
        }
    }
    Ok(None)
}

/// Erases what is named, and tells.
pub(super) fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let wait = if args.wait { Wait::Forever } else { Wait::No };
    let told = wholes(&args.select, c, wait)?;
    let mut last = None;
    for (name, done) in &told {
        match done {
            Err(e) => {
                c.complain(name, e);
                last = Some(e.kind());
            }
            Ok(None) => say(format_args!(
                "{}: nothing is erased, for another name is unknown",
                plain(name)
            )),
            Ok(Some((_, done))) => {
                for e in &done.failed {
                    c.complain(name, e);
                    last = Some(e.kind());
                }
            }
        }
    }
    if args.json {
        out.document(&[], |d| {
            d.list("backups")?;
            told.iter().try_for_each(|one| d.row(&as_json(one)))
        })?;
    } else {
        for (_, done) in &told {
            if let Ok(Some((owner, done))) = done {
                out.line(format_args!(
                    "{}: erased: {} backups, {} files, {} bytes",
                    plain(owner),
                    done.backups,
                    done.files,
                    done.bytes
                ))?;
                tell_left(out, &done.left)?;
                for key in &done.others {
                    let key = plain(key);
                    out.line(format_args!(
                        "{key} has a part of its past, under that name"
                    ))?;
                }
                tell_unasked(out, &done.unasked)?;
            }
        }
        if told.iter().any(|(_, done)| matches!(done, Ok(Some(_)))) {
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

fn as_json((name, done): &(String, Whole)) -> Value {
    match done {
        Ok(None) => json!({ "userid": name, "status": "untouched" }),
        Ok(Some((owner, done))) => {
            let mut row = json!({
                "userid": owner,
                "status": "erased",
                "backups": done.backups,
                "files": done.files,
                "bytes": done.bytes,
                "left": names(&done.left),
                "others": done.others,
                "unasked": done.unasked,
            });
            if let Some(e) = done.failed.first() {
                row["status"] = "failed".into();
                row["error"] = e.to_string().into();
            }
            row
        }
        Err(e) => json!({ "userid": name, "status": "failed", "error": e.to_string() }),
    }
}
