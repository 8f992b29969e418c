//! Logs without an entry that must not become anybody's backup: older states of one that was deleted,
//! moved or erased. To enter them would put the newer one out of sight, or bring back what was erased.
//!
//! What a move that was interrupted has left is known by what is on record of it (`moving::Noted`).
//! It is outdated if the catalogue names that backup elsewhere as a deleted one, or if it was erased. If it
//! was a deleted one when it was moved, it is so, too, when that was brought back. A log is also outdated if
//! it is older than a deleted backup of its owner and of the same generation. Anything else somebody has put
//! there: it is entered, of an erased user as well. If the catalogue was lost, nothing is outdated but what was
//! erased.
//!
//! Only reads. A log of which that cannot be found out is told in [`Walked::failed`], and not entered
//! either.

use super::{Entry, FileId, Log, Target, Walked, fits};
use crate::error::{Error, Result};
use crate::store::catalog::Catalog;
use crate::store::erased;
use crate::store::former;
use crate::store::identify::last_stamp;
use crate::store::moving::Noted;
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Logs that are outdated, and what to say of each.
pub type Outdated = HashMap<FileId, String>;

/// Finds them among logs without an entry. Fails with `Io` if what is on record of moves cannot be read.
pub fn outdated(catalog: &Catalog, walked: &mut Walked, entries: &[Entry]) -> Result<Outdated> {
    let noted = Noted::read(catalog)?;
    let entered: HashSet<FileId> = entries
        .iter()
        .filter_map(|entry| match entry.target {
            Target::Log(id) => Some(id),
            _ => None,
        })
        .collect();
    let mut named: HashMap<OsString, Vec<&Entry>> = HashMap::new();
    for entry in entries {
        named.entry(name(&entry.path)).or_default().push(entry);
    }
    let mut deleted: HashMap<&str, Vec<&Log>> = HashMap::new();
    let logs: HashMap<FileId, &Log> = walked.logs.iter().map(|log| (log.id, log)).collect();
    for entry in entries {
        if let (Some(owner), Target::Log(id)) = (former::owner_of(&entry.key), entry.target) {
            let log = logs.get(&id);
            deleted.entry(owner).or_default().extend(log.copied());
        }
    }
    let mut out = Outdated::new();
    for log in walked.logs.iter().filter(|log| !entered.contains(&log.id)) {
        let Some(owner) = log.identity.key.as_deref() else {
            continue;
        };
        let others = named.get(&name(&log.path)).map_or(&[][..], Vec::as_slice);
        let left = noted.is_moved(&log.path).and_then(|is_moved| {
            match elsewhere(log, owner, others).filter(|_| is_moved) {
                Some(entry) => Ok(Some(left(entry))),
                None if is_moved => erased(catalog, log, owner),
                None => Ok(None),
            }
        });
        let why = match left {
            Ok(None) => {
                let mut newer = deleted.get(owner).into_iter().flatten();
                newer.find(|newer| is_older(log, newer)).map(|newer| {
                    let path = newer.path.display();
                    format!("older than the deleted backup {path}: delete --undo brings that back")
                })
            }
            Ok(why) => why,
            Err(e) => {
                walked.failed.push(e);
                Some("an interrupted move may have left it, which could not be found out".into())
            }
        };
        out.extend(why.map(|why| (log.id, why)));
    }
    Ok(out)
}

/// What a log's file is called when it is not deleted.
fn name(path: &Path) -> OsString {
    let before = former::split(path).map(|(before, _)| before);
    let usual = before.as_deref().unwrap_or(path);
    usual.file_name().unwrap_or_default().to_owned()
}

/// The entry of the backup that a log was part of when it was moved: in another folder, and of a deleted
/// one unless the log has the name of a deleted one itself.
fn elsewhere<'a>(log: &Log, owner: &str, others: &[&'a Entry]) -> Option<&'a Entry> {
    let folder = |path: &Path| {
        fs::metadata(path.parent()?)
            .ok()
            .map(|meta| (meta.dev(), meta.ino()))
    };
    let is_deleted = former::split(&log.path).is_some();
    others.iter().copied().find(|entry| {
        fits(&entry.key, owner)
            && (is_deleted || former::is_former(&entry.key))
            && folder(&entry.path) != folder(&log.path)
    })
}

fn left(entry: &Entry) -> String {
    let key = &entry.key;
    match former::is_former(key) {
        true => format!(
            "left by an interrupted move of {key}: delete --undo brings that back, and the next move of \
             it removes this"
        ),
        false => format!("left by an interrupted move of {key}: the next move of it removes this"),
    }
}

/// What to say if a log that was moved has nothing later than what was erased of its owner.
fn erased(catalog: &Catalog, log: &Log, owner: &str) -> Result<Option<String>> {
    let erased = erased::wholes(catalog.path(), owner)?;
    if erased.is_empty() {
        return Ok(None);
    }
    let file = File::open(&log.path).map_err(|e| Error::io("cannot open", e).at(&log.path))?;
    let last = last_stamp(&file).map_err(|e| e.at(&log.path))?;
    let what = "left by an interrupted move, and erased since: erase --whole removes it";
    let began = log.identity.began();
    let is_it = erased.iter().any(|whole| whole.covers(began, last));
    Ok(is_it.then(|| what.into()))
}

/// Whether a log is an earlier state of a deleted one.
fn is_older(log: &Log, deleted: &Log) -> bool {
    let generation = &log.identity.generation;
    former::split(&log.path).is_none()
        && generation.is_some()
        && *generation == deleted.identity.generation
        && log.last < deleted.last
}
