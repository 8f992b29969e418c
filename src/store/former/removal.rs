//! Deleted backups go for good.
//!
//! What is beside the log is unlinked first, the log after that, the entry last: so it can be begun again. It is
//! on record before anything goes (`store::erased`).

use super::{Former, in_place, is_there, list, siblings, split, still, undo};
use crate::cyrus::mboxname::Namespace;
use crate::error::{Error, Kind, Result};
use crate::store::catalog::Catalog;
use crate::store::erased;
use crate::store::identify::{Content, identify};
use crate::store::index;
use crate::store::lock::{Create, DataLock, Wait};
use crate::store::reader::ask_still;
use crate::sys::fs::sync_folder;
use crate::util::time::Timestamp;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What was removed of a backup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Files, in the order in which they went.
    pub files: Vec<PathBuf>,
    /// Their bytes.
    pub bytes: u64,
}

impl Removed {
    pub(in crate::store) fn unlink(&mut self, file: PathBuf) -> Result<()> {
        let bytes = fs::metadata(&file).map_or(0, |m| m.len());
        match fs::remove_file(&file) {
            Ok(()) => {
                self.bytes += bytes;
                self.files.push(file);
                Ok(())
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io("cannot remove", e).at(&file)),
        }
    }
}

/// Removes the deleted backups whose time of grace is over; hands each to `tell`. One that
/// fails does not keep the others. A bringing back that was interrupted is ended first. An entry of
/// which there is no log goes only if it is on record that it was removed.
pub fn expire(
    catalog: &Catalog,
    grace: Duration,
    now: Timestamp,
    tell: &mut dyn FnMut(&Former, Result<Removed>) -> Result<()>,
) -> Result<()> {
    let grace = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
    for former in list(catalog, None)? {
        let is_over = |deleted: Timestamp| deleted.0.saturating_add(grace) <= now.0;
        match end(catalog, &former, &is_over, now) {
            Ok(None) => {}
            Ok(Some(removed)) => tell(&former, Ok(removed))?,
            Err(e) => tell(&former, Err(e))?,
        }
    }
    Ok(())
}

/// The same of one; `None` if nothing of it was to be removed.
fn end(
    catalog: &Catalog,
    former: &Former,
    is_over: &dyn Fn(Timestamp) -> bool,
    now: Timestamp,
) -> Result<Option<Removed>> {
    if let Some(path) = in_place(catalog, former)? {
        return match undo(catalog, former, Wait::No) {
            // Somebody is at it, or a sync is at work in it: another time.
            Err(e) if e.kind() == Kind::Locked => Ok(None),
            done => done.map(|_| None).map_err(|e| e.at(&path)),
        };
    }
    if !former.deleted.is_some_and(is_over) {
        return Ok(None);
    }
    match remove(catalog, former, Wait::No, now, Why::Expired) {
        Err(e) if e.kind() == Kind::Changed => Ok(None),
        removed => Ok(Some(removed?).filter(|removed| !removed.files.is_empty())),
    }
}

/// Why the log of a deleted backup is not there, and what to do. Whether it `was_removed` is on record.
pub(super) fn missing(former: &Former, was_removed: bool) -> Error {
    let what = match former.path.parent().is_some_and(Path::is_dir) {
        true if was_removed => {
            "it is removed already, but for its entry: delete --expired ends that"
        }
        true => "its log is missing: rescan --fix removes the entry",
        false => {
            "its log is missing, and so is its folder: is the partition mounted? If it is gone for good, make \
             the folder: then rescan --fix removes the entry"
        }
    };
    Error::new(Kind::NotFound, what).at(&former.path)
}

/// Up to when a deleted backup has anything: when it was deleted, was written to last, or printed last, whichever
/// is later.
pub fn last_said(former: &Former) -> Timestamp {
    span(former).1
}

/// Since when, if index or log tell, and up to when.
fn span(former: &Former) -> (Option<i64>, Timestamp) {
    let path = former.path.as_path();
    let asked = ask_still(path, &mut |index, _| {
        let first = index.chunks()?.first().map(|chunk| chunk.first_time);
        let since = index.meta_number("created")?.into_iter().chain(first).min();
        Ok((since, index.last_chunk()?.map(|chunk| chunk.last_time)))
    });
    let (since, printed) = asked.ok().flatten().unwrap_or_default();
    let since = since.or_else(|| {
        // Whose it is does not matter, so nor does how names are read.
        let file = fs::File::open(path).ok()?;
        match identify(&file, &Namespace::default()) {
            Ok(Content::Log(identity)) => Some(identity.began()),
            _ => None,
        }
    });
    let written = fs::metadata(path).map(|m| m.mtime()).ok();
    let deleted = former.deleted.map(|t| t.0);
    let until = deleted.max(written).max(printed);
    (since, Timestamp(until.unwrap_or(0)))
}

/// Why a deleted backup goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its time of grace is over.
    Expired,
    /// Somebody wants it.
    Erased,
}

/// Removes a deleted backup for good, with all that was kept beside its log; that it goes now is on record before.
/// `Changed` if it went elsewhere meanwhile, `NotFound` if its log is missing and it is not on record why: nothing is
/// removed then.
pub fn remove(
    catalog: &Catalog,
    former: &Former,
    wait: Wait,
    now: Timestamp,
    why: Why,
) -> Result<Removed> {
    let path = &former.path;
    let changed = || {
        let what = "it has moved meanwhile, or was brought back: try again";
        Error::new(Kind::Changed, what).for_user(&former.key)
    };
    super::at_rest(catalog, &former.key, path)?;
    let mut removed = Removed::default();
    match DataLock::acquire(path, wait, Create::No) {
        Ok(lock) => {
            still(catalog, &former.key, path)?;
            let why = match why {
                Why::Expired => "expired",
                Why::Erased => "erased",
            };
            erased::removal(catalog.path(), now, former, span(former), why)?;
            if let Err(e) = unlink(catalog, former, &mut removed) {
                if let Err(e) = erased::kept(catalog.path(), now, former) {
                    log::error!("cannot record that it stays: {}", e.for_user(&former.key));
                }
                return Err(e);
            }
            drop(lock);
        }
        Err(e) if e.kind() == Kind::NotFound => {
            let is_same = catalog.lookup(&former.key)?.as_ref() == Some(path);
            if is_same && (is_there(path)? || in_place(catalog, former)?.is_some()) {
                return Err(changed());
            }
            let was_removed = erased::was_removed(catalog.path(), former)?;
            if is_same && !(was_removed && path.parent().is_some_and(Path::is_dir)) {
                return Err(missing(former, was_removed));
            }
            if was_removed {
                // Its index has no use here.
                index::remove(&index::path_of(path))?;
            }
        }
        Err(e) => return Err(e.for_user(&former.key)),
    }
    let is = [(former.key.as_str(), Some(path.as_path()))];
    match catalog.exchange(&is, &[(former.key.clone(), None)]) {
        // Another one has removed it just now.
        Err(e) if e.kind() == Kind::Changed && is_gone(catalog, former)? => {}
        Err(e) if e.kind() == Kind::Changed => return Err(changed()),
        done => done?,
    }
    log::info!(
        "deleted backup removed user=<{}> filename=<{}> files={} bytes={}",
        former.owner,
        path.display(),
        removed.files.len(),
        removed.bytes
    );
    Ok(removed)
}

fn unlink(catalog: &Catalog, former: &Former, removed: &mut Removed) -> Result<()> {
    for file in belonging(catalog, former)? {
        removed.unlink(file)?;
    }
    // The log last: as long as it is there, this can be begun again.
    removed.unlink(former.path.clone())?;
    sync_folder(&former.path)
}

/// Whether it has no entry any more, and that is on record: it was not brought back.
fn is_gone(catalog: &Catalog, former: &Former) -> Result<bool> {
    Ok(catalog.lookup(&former.key)?.is_none() && erased::was_removed(catalog.path(), former)?)
}

/// What is kept beside the log of a deleted backup, and is no other's.
fn belonging(catalog: &Catalog, former: &Former) -> Result<Vec<PathBuf>> {
    let path = &former.path;
    let mut files = siblings(path, ".")?;
    if let Some((before, _)) = split(path) {
        // Damaged copies and the like were named after the log before it was deleted. If that name is in use
        // again, or another that was deleted had it, too, they are not ours.
        let is_ours = |(key, other): &(String, PathBuf)| {
            *key == former.key
                || *other != before && split(other).is_none_or(|(its, _)| its != before)
        };
        if !is_there(&before)? && catalog.list()?.iter().all(is_ours) {
            let deleted = super::with(&before, super::MARK);
            let deleted = deleted.as_os_str().as_encoded_bytes();
            let found = siblings(&before, ".")?.into_iter();
            files.extend(found.filter(|f| !f.as_os_str().as_encoded_bytes().starts_with(deleted)));
        }
    }
    Ok(files)
}
