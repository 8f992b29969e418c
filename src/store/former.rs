//! Deleted backups: out of use at once, kept for a time of grace, brought back or removed for good.
//!
//! Deleting is two steps under the backup's lock: the files are renamed to
//! `<log>.deleted.<seconds>` (and `.index` behind that), then one transaction of the catalogue takes
//! the owner's entry away and enters `%FORMER/<owner>/<id>`. The id is the uniqueid of the INBOX,
//! else the log's generation. Between the steps the owner's entry names a file that is
//! missing: whoever meets that calls [`settle`], which does the second step. A writer that had looked
//! the path up before finds no file there (`store::lock` compares path and inode) and looks again.
//! So a sync that comes meanwhile begins a new backup, and nothing is ever appended to a deleted one.
//!
//! Bringing back, refused once the owner has a new backup, is three steps: the owner's entry is added, the
//! files get their name again, the entry as a deleted one goes. So an interruption of it can be told
//! from one of a deletion, and is settled as brought back; [`finish`] does the last one, before a backup gets
//! another path or owner. Removing for good is in [`removal`](remove).
//!
//! The time in its name is later than in those of the owner's other deleted backups.
//!
//! Fails with `Locked`, `NotFound`, `Exists`, `Io` and the kinds of the catalogue.

mod removal;

use removal::missing;
pub use removal::{Removed, Why, expire, last_said, remove};

use super::backup::{Backup, Settings};
use super::catalog::Catalog;
use super::erased;
use super::index::{self, Index};
use super::lock::{Create, DataLock, Wait};
use super::reader::{Reader, Stale};
use super::recover::generation;
use crate::cyrus::mboxname::{MboxName, Namespace};
use crate::error::{Error, Kind, Result};
use crate::sys::fs::sync_folder;
use crate::util::time::{Timestamp, now};
use std::cmp::Reverse;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How keys of backups begin that are no longer their owner's.
const FORMER: &str = "%FORMER/";
/// How often a backup is looked up again that others delete or bring back just then.
const ROUNDS: u32 = 16;
/// In seconds.
const YEAR: i64 = 365 * 86_400;
/// Between the path of a log and the time at which it was deleted.
const MARK: &str = ".deleted.";

/// A backup that was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Former {
    /// Its key in the catalogue.
    pub key: String,
    /// Whose it was.
    pub owner: String,
    /// Its log.
    pub path: PathBuf,
    /// When it was deleted; `None` if its name does not say: nothing removes it by itself.
    pub deleted: Option<Timestamp>,
}

/// Whether a key is that of a backup which is no longer its owner's.
pub fn is_former(key: &str) -> bool {
    key.starts_with(FORMER)
}

/// The owner in such a key: what stands before the last slash.
pub fn owner_of(key: &str) -> Option<&str> {
    let (owner, id) = key.strip_prefix(FORMER)?.rsplit_once('/')?;
    (!owner.is_empty() && !id.is_empty()).then_some(owner)
}

/// What the INBOX of a deleted backup may have been called: the end of its key, also without a number
/// that was put behind it.
pub fn inbox_of(key: &str) -> Vec<String> {
    let Some((_, id)) = key.strip_prefix(FORMER).and_then(|k| k.rsplit_once('/')) else {
        return Vec::new();
    };
    let stem = id.rsplit_once('.').map(|(stem, _)| stem);
    stem.into_iter().chain([id]).map(str::to_owned).collect()
}

/// The path a deleted log had before, and when it was deleted.
pub fn split(path: &Path) -> Option<(PathBuf, Timestamp)> {
    let (before, time) = path.to_str()?.rsplit_once(MARK)?;
    let is_time = !time.is_empty() && time.bytes().all(|b| b.is_ascii_digit());
    let time = time.parse().ok().filter(|_| is_time)?;
    Some((before.into(), Timestamp(time)))
}

/// The deleted backups, of one owner or all, by key.
pub fn list(catalog: &Catalog, owner: Option<&str>) -> Result<Vec<Former>> {
    let entries = catalog.list()?.into_iter();
    let formers = entries.filter_map(|(key, path)| former(key, path));
    Ok(formers
        .filter(|f| owner.is_none_or(|o| o == f.owner))
        .collect())
}

/// The one of them that was deleted last. One that was deleted by a clock that was quite wrong counts only if
/// there is no other.
pub fn last(formers: Vec<Former>, now: Timestamp) -> Option<Former> {
    let is_true = |f: &Former| f.deleted.is_none_or(|t| is_time(t, now));
    formers.into_iter().max_by_key(|f| (is_true(f), f.deleted))
}

/// Whether a clock that is quite right may have said so, or will: it is less than a year ahead.
fn is_time(time: Timestamp, now: Timestamp) -> bool {
    time.0.saturating_sub(now.0) < YEAR
}

/// What a catalogue entry says about a deleted backup, if it is of one.
pub fn former(key: String, path: PathBuf) -> Option<Former> {
    Some(Former {
        owner: owner_of(&key)?.to_owned(),
        deleted: split(&path).map(|(_, time)| time),
        key,
        path,
    })
}

/// A key for a deleted backup that nothing else has.
fn key_for(catalog: &Catalog, owner: &str, id: &str, path: &Path) -> Result<String> {
    let mut taken = HashSet::new();
    for (key, other) in catalog.list()? {
        if is_former(&key) && other != path {
            taken.insert(key);
        }
    }
    Ok(key(owner, id, |key| taken.contains(key)))
}

/// A key for a deleted backup, with a number behind it if need be.
pub fn key(owner: &str, id: &str, is_taken: impl Fn(&str) -> bool) -> String {
    let first = format!("{FORMER}{owner}/{id}");
    let mut key = first.clone();
    let mut n = 1;
    while is_taken(&key) {
        n += 1;
        key = format!("{first}.{n}");
    }
    key
}

/// What a log is called behind its owner: by its INBOX, else by its generation, else by nothing
/// that could be known.
fn id_of(index: Option<&Index>, path: &Path, ns: &Namespace) -> String {
    let inbox = |index: &Index| -> Result<Option<String>> {
        let boxes = index.mailboxes(true)?;
        let is_inbox = |name: &str| MboxName::parse(name, ns).is_ok_and(|n| n.is_inbox());
        let mut found = boxes.iter().filter(|b| is_inbox(&b.mboxname));
        let live = found.clone().find(|b| b.deleted.is_none());
        Ok(live.or_else(|| found.next()).map(|b| b.uniqueid.clone()))
    };
    let clean = |id: &String| !id.is_empty() && !id.contains('/') && !id.contains(char::is_control);
    let named = index.and_then(|index| inbox(index).ok().flatten());
    named
        .filter(clean)
        .or_else(|| generation(&File::open(path).ok()?).ok().flatten())
        .unwrap_or_else(|| "unknown".into())
}

/// Deletes a backup: it is no longer its owner's. Waits for its lock as told. `now` is the time from which on
/// it is kept, at the least.
pub fn delete(
    catalog: &Catalog,
    key: &str,
    wait: Wait,
    settings: Settings,
    ns: &Namespace,
    now: Timestamp,
) -> Result<Former> {
    for _ in 0..ROUNDS {
        if let Some(former) = delete_once(catalog, key, wait, settings, ns, now)? {
            return Ok(former);
        }
    }
    let what = "it is deleted and brought back all the time";
    Err(Error::new(Kind::Locked, what).for_user(key))
}

/// `None` if somebody else has deleted it or brought it back just now: it is to be looked up again.
fn delete_once(
    catalog: &Catalog,
    key: &str,
    wait: Wait,
    settings: Settings,
    ns: &Namespace,
    now: Timestamp,
) -> Result<Option<Former>> {
    let missing = || Error::new(Kind::NotFound, "no backup").for_user(key);
    if is_former(key) {
        return Err(Error::new(Kind::Usage, "it is deleted already").for_user(key));
    }
    let path = catalog.lookup(key)?.ok_or_else(missing)?;
    let (id, lock) = match Backup::open(&path, key, wait, Create::No, settings) {
        Ok(backup) => {
            let id = id_of(Some(backup.index()), &path, ns);
            (id, backup.into_lock()?)
        }
        // What does not read is deleted as it is.
        Err(e) if matches!(e.kind(), Kind::Damaged | Kind::NeedsReindex | Kind::Db) => (
            id_of(None, &path, ns),
            DataLock::acquire(&path, wait, Create::No)?,
        ),
        Err(e) if e.kind() == Kind::NotFound => {
            return match settle(catalog, key, &path, ns)? {
                Some(Settled::Deleted(former)) => Ok(Some(former)),
                Some(Settled::Back) => Ok(None),
                None if is_there(&path)? => Ok(None),
                None if catalog.lookup(key)?.as_ref() != Some(&path) => Ok(None),
                None => Err(e.for_user(key)),
            };
        }
        Err(e) => return Err(e.for_user(key)),
    };
    still(catalog, key, &path)?;
    finish(catalog, key, &path)?;
    // Later than the others of the same owner: the last is brought back first. One that was deleted by a
    // clock that was quite wrong does not count.
    let others = list(catalog, Some(key))?.into_iter();
    let gone = erased::removed(catalog.path(), key)?;
    let times = others.filter_map(|f| f.deleted).chain(gone);
    let last = times.filter(|t| is_time(*t, now)).max();
    let mut time = now.0.max(last.map_or(i64::MIN, |t| t.0.saturating_add(1)));
    let to = loop {
        let to = with(&path, &format!("{MARK}{time}"));
        let taken = to.try_exists();
        if !taken.map_err(|e| Error::io("cannot look at", e).at(&to))? {
            break to;
        }
        time += 1;
    };
    rename_both(&path, &to)?;
    let former = enter(catalog, key, &id, &path, &to)?;
    drop(lock);
    log::info!("backup deleted user=<{key}> filename=<{}>", to.display());
    Ok(Some(former))
}

/// The second step of a deletion.
fn enter(catalog: &Catalog, owner: &str, id: &str, from: &Path, to: &Path) -> Result<Former> {
    let key = key_for(catalog, owner, id, to)?;
    catalog.exchange(
        &[(owner, Some(from))],
        &[(owner.to_owned(), None), (key.clone(), Some(to.to_owned()))],
    )?;
    former(key, to.to_owned()).ok_or_else(|| Error::new(Kind::Internal, "a key without an owner"))
}

/// Whether the catalogue names the file that we have locked.
fn still(catalog: &Catalog, key: &str, path: &Path) -> Result<()> {
    if catalog.lookup(key)?.as_deref() == Some(path) {
        return Ok(());
    }
    let e = Error::new(Kind::Locked, "the backup has moved meanwhile: try again");
    Err(e.for_user(key))
}

/// What became of a deletion, or of the bringing back of a backup, that was interrupted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It is deleted.
    Deleted(Former),
    /// It is in its place again.
    Back,
}

/// Ends a deletion that was interrupted, or the bringing back, when the file that the entry of `key`
/// names is missing. What became of it; `None` if that is not the reason.
pub fn settle(
    catalog: &Catalog,
    key: &str,
    path: &Path,
    ns: &Namespace,
) -> Result<Option<Settled>> {
    if is_former(key) {
        return Ok(None);
    }
    // One without an entry is being deleted; another one may lie there that was deleted before.
    let entered: HashSet<PathBuf> = list(catalog, None)?.into_iter().map(|f| f.path).collect();
    let order = |(to, time): &(PathBuf, Timestamp)| (entered.contains(to), Reverse(*time));
    let Some((to, _)) = deleted_of(path)?.into_iter().min_by_key(order) else {
        return Ok(None);
    };
    // Who deletes it, or brings it back, just now, holds it.
    let lock = match DataLock::acquire(&to, Wait::For(Duration::from_secs(5)), Create::No) {
        Err(e) if e.kind() == Kind::NotFound => return Ok(None),
        lock => lock?,
    };
    if is_there(path)? || catalog.lookup(key)?.as_deref() != Some(path) {
        return Ok(None);
    }
    let bringing = list(catalog, Some(key))?.into_iter().find(|f| f.path == to);
    if let Some(former) = bringing {
        bring_back(catalog, &former, path)?;
        drop(lock);
        return Ok(Some(Settled::Back));
    }
    rename_index(path, &to)?;
    sync_folder(&to)?;
    let reader = Reader::open(&to, Stale::Refuse).ok();
    let id = id_of(reader.as_ref().map(Reader::index), &to, ns);
    drop(reader);
    let former = enter(catalog, key, &id, path, &to)?;
    drop(lock);
    log::warn!(
        "interrupted deletion finished user=<{key}> filename=<{}>",
        to.display()
    );
    Ok(Some(Settled::Deleted(former)))
}

/// The logs that were deleted from a path, and when.
fn deleted_of(path: &Path) -> Result<Vec<(PathBuf, Timestamp)>> {
    let found = siblings(path, MARK)?.into_iter().filter_map(|to| {
        let (before, time) = split(&to)?;
        (before == path).then_some((to, time))
    });
    Ok(found.collect())
}

/// What lies where a log was a moment ago: that itself, or what was deleted from there. It alone if nothing does.
pub fn lying_at(path: &Path) -> Vec<PathBuf> {
    let found = deleted_of(path).unwrap_or_default().into_iter();
    let mut found: Vec<_> = found.map(|(to, _)| to).collect();
    if found.is_empty() || path.exists() {
        found.insert(0, path.to_owned());
    }
    found
}

/// Ends bringing back the backup of `owner` whose log belongs at `path`, should that have been interrupted
/// before the log was there.
pub fn settle_back(catalog: &Catalog, owner: &str, path: &Path, ns: &Namespace) -> Result<()> {
    if is_there(path)? {
        return Ok(());
    }
    let is_it = |f: &Former| split(&f.path).is_some_and(|(before, _)| before == path);
    if list(catalog, Some(owner))?.iter().any(is_it) {
        settle(catalog, owner, path, ns)?;
    }
    Ok(())
}

/// Refuses with `Locked` what is to be done to a deleted backup while it is being brought back, or that
/// was interrupted. Any other key is fine.
pub fn at_rest(catalog: &Catalog, key: &str, path: &Path) -> Result<()> {
    let Some(former) = former(key.to_owned(), path.to_owned()) else {
        return Ok(());
    };
    match in_place(catalog, &former)? {
        None => Ok(()),
        Some(_) => {
            let what = "it is being brought back, or that was interrupted: delete --undo ends it";
            Err(Error::new(Kind::Locked, what).for_user(key))
        }
    }
}

/// What to say where the log at `path` was not found: that its deletion was not finished, if that is why.
pub fn explain(e: Error, path: &Path) -> Error {
    match interrupted(path) {
        Some(what) if e.kind() == Kind::NotFound => Error::new(Kind::NotFound, what).at(path),
        _ => e,
    }
}

/// That the log at `path` is missing because it is being deleted, or that was interrupted; `None` if not.
pub fn interrupted(path: &Path) -> Option<&'static str> {
    let found = deleted_of(path).ok()?;
    (!found.is_empty()).then_some(
        "it is being deleted, or that was interrupted: delete ends it, and delete --undo brings it back",
    )
}

/// Brings a deleted backup back to its owner, who must have no other. Its log's path then.
pub fn undo(catalog: &Catalog, former: &Former, wait: Wait) -> Result<PathBuf> {
    let (path, _) = split(&former.path)
        .ok_or_else(|| Error::new(Kind::NotFound, "it was not deleted here").at(&former.path))?;
    let owner = former.owner.as_str();
    let lock = match DataLock::acquire(&former.path, wait, Create::No) {
        // Interrupted before its last step.
        Err(e) if e.kind() == Kind::NotFound && path.is_file() => {
            let lock = DataLock::acquire(&path, wait, Create::No)?;
            if catalog.lookup(owner)?.as_deref() != Some(&path) {
                return Err(e);
            }
            lock
        }
        Err(e) if e.kind() == Kind::NotFound => {
            let was_removed = erased::was_removed(catalog.path(), former)?;
            return Err(missing(former, was_removed));
        }
        lock => {
            let lock = lock?;
            still(catalog, &former.key, &former.path)?;
            let taken = path.try_exists();
            if taken.map_err(|e| Error::io("cannot look at", e).at(&path))? {
                return Err(Error::new(Kind::Exists, "its former place is taken").at(&path));
            }
            if catalog.lookup(owner)?.as_deref() != Some(&path) {
                let add = [(owner.to_owned(), Some(path.clone()))];
                let added = catalog.exchange(&[(owner, None)], &add);
                added.map_err(|e| match e.kind() {
                    Kind::Changed => {
                        let now = catalog.lookup(owner).ok().flatten();
                        let at = now.map_or(String::new(), |p| format!(": {}", p.display()));
                        let what = "there is a backup in its place since it was deleted";
                        Error::new(Kind::Exists, format!("{what}{at}")).for_user(owner)
                    }
                    _ => e,
                })?;
            }
            lock
        }
    };
    bring_back(catalog, former, &path)?;
    drop(lock);
    Ok(path)
}

/// Where a backup belongs, if it is one that is being brought back. If a log lies at both places it is not:
/// one is a copy that somebody put there.
fn in_place(catalog: &Catalog, former: &Former) -> Result<Option<PathBuf>> {
    let Some((path, _)) = split(&former.path) else {
        return Ok(None);
    };
    if is_there(&path)? && is_there(&former.path)? {
        return Ok(None);
    }
    if catalog.lookup(&former.owner)?.as_ref() != Some(&path) {
        return Ok(None);
    }
    // Nor if another one is just being deleted from there.
    let entered: HashSet<PathBuf> = list(catalog, None)?.into_iter().map(|f| f.path).collect();
    let is_at_rest = is_there(&path)?
        || deleted_of(&path)?
            .iter()
            .all(|(to, _)| entered.contains(to));
    Ok(is_at_rest.then_some(path))
}

fn is_there(path: &Path) -> Result<bool> {
    let is_there = path.try_exists();
    is_there.map_err(|e| Error::io("cannot look at", e).at(path))
}

/// The steps of bringing back after the first; its lock is held.
fn bring_back(catalog: &Catalog, former: &Former, path: &Path) -> Result<()> {
    erased::take_back(catalog.path(), now(), former)?;
    if is_there(&former.path)? {
        rename_both(&former.path, path)?;
    } else if is_there(&index::path_of(path))? {
        index::remove(&index::path_of(&former.path))?;
    } else {
        rename_index(&former.path, path)?;
    }
    let is = [(former.key.as_str(), Some(former.path.as_path()))];
    match catalog.exchange(&is, &[(former.key.clone(), None)]) {
        // Somebody else was as far.
        Err(e) if e.kind() == Kind::Changed => {}
        done => done?,
    }
    let owner = &former.owner;
    log::info!(
        "backup brought back user=<{owner}> filename=<{}>",
        path.display()
    );
    Ok(())
}

/// Does the last step of bringing back the backup of `owner` at `path`, which is locked, should that have
/// been interrupted before it.
pub fn finish(catalog: &Catalog, owner: &str, path: &Path) -> Result<()> {
    for former in list(catalog, Some(owner))? {
        let is_it = split(&former.path).is_some_and(|(before, _)| before == path);
        if is_it && !is_there(&former.path)? {
            bring_back(catalog, &former, path)?;
        }
    }
    Ok(())
}

/// The path with something behind it.
pub(super) fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Files in a log's folder whose names are the log's with `suffix` and anything behind; by name.
pub(super) fn siblings(path: &Path, suffix: &str) -> Result<Vec<PathBuf>> {
    let start = with(path, suffix);
    let (Some(folder), Some(start)) = (path.parent(), start.file_name()) else {
        return Ok(Vec::new());
    };
    let fail = |e| Error::io("cannot read folder", e).at(folder);
    let mut out = Vec::new();
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(out),
        entries => entries.map_err(fail)?,
    };
    for entry in entries {
        let name = entry.map_err(fail)?.file_name();
        let is = name
            .as_encoded_bytes()
            .starts_with(start.as_encoded_bytes());
        if is && name != start {
            out.push(folder.join(name));
        }
    }
    out.sort();
    Ok(out)
}

/// Renames a log and its index, at rest under the lock. An index that is not at rest is removed: it
/// can be made again.
fn rename_both(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| Error::io("cannot rename", e).at(from))?;
    rename_index(from, to)?;
    sync_folder(to)
}

fn rename_index(from: &Path, to: &Path) -> Result<()> {
    let (index, new) = (index::path_of(from), index::path_of(to));
    let wal = fs::metadata(with(&index, "-wal")).map_or(0, |m| m.len());
    if wal == 0 && index.exists() {
        fs::rename(&index, &new).map_err(|e| Error::io("cannot rename", e).at(&index))?;
    }
    index::remove(&index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_names_tell() {
        assert_eq!(owner_of("%FORMER/anna/u1"), Some("anna"));
        assert_eq!(owner_of("%FORMER/a/b/u1"), Some("a/b"));
        assert_eq!(owner_of("%FORMER/%SHARED//team/g"), Some("%SHARED//team"));
        for bad in ["anna", "%FORMER/anna", "%FORMER//u", "%FORMER/anna/"] {
            assert_eq!(owner_of(bad), None, "{bad}");
        }
        assert_eq!(inbox_of("%FORMER/a/b/u1"), ["u1"]);
        assert_eq!(inbox_of("%FORMER/anna/u1.2"), ["u1", "u1.2"]);
        let split = |p: &str| split(Path::new(p)).map(|(p, t)| (p.display().to_string(), t.0));
        assert_eq!(
            split("/b/a/anna_x.deleted.17"),
            Some(("/b/a/anna_x".into(), 17))
        );
        for bad in [
            "/b/a/anna_x",
            "/b/a/anna_x.deleted.",
            "/b/a/anna_x.deleted.1x",
            "/b/a/anna_x.deleted.17.index",
            "/b/a/anna_x.damaged.17",
        ] {
            assert_eq!(split(bad), None, "{bad}");
        }
    }
}
