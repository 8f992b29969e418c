//! What is kept beside a log and holds its mail as well, or tells of it: previous logs, damaged copies,
//! and their indexes. Known by name alone. Deleting a log renames it and its index only: what lies
//! beside it keeps the name that the log had before, and is looked for under both.
//!
//! Fails with `Io`.

use super::former::{self, Removed, siblings, with};
use super::index;
use super::lock::{Create, DataLock, Wait};
use super::reader::Reader;
use crate::cyrus::guid::Guid;
use crate::error::{Error, Kind, Result};
use crate::sys::fs::sync_folder;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// What is kept beside a log and may hold its mail, or tell of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// Previous logs, `<log>.<seconds>`.
    pub previous: Vec<PathBuf>,
    /// Indexes of these, and what SQLite keeps beside them.
    pub indexes: Vec<PathBuf>,
    /// Copies that were set aside as damaged with their indexes, old indexes of the log itself, and
    /// what a compaction that was killed has left.
    pub aside: Vec<PathBuf>,
}

/// Finds what is kept beside a log; each by name.
pub fn beside(path: &Path) -> Result<Beside> {
    let mut found = beside_name(path)?;
    if let Some(before) = before(path)? {
        let more = beside_name(&before)?;
        found.previous.extend(more.previous);
        found.indexes.extend(more.indexes);
        found.aside.extend(more.aside);
        // Nothing but an interrupted deletion leaves it.
        let index = index::path_of(&before);
        if index.exists() {
            found.aside.push(index);
        }
    }
    Ok(found)
}

/// The name that a deleted log had before, unless a log has it again: then what is named after it is
/// that one's.
pub fn before(path: &Path) -> Result<Option<PathBuf>> {
    let Some((before, _)) = former::split(path) else {
        return Ok(None);
    };
    let is_there = before.try_exists();
    let is_there = is_there.map_err(|e| Error::io("cannot look at", e).at(&before))?;
    Ok((!is_there).then_some(before))
}

fn beside_name(path: &Path) -> Result<Beside> {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let is_index = |behind: Option<&str>| behind.is_some_and(|b| b.starts_with("index"));
    let start = with(path, ".").to_string_lossy().into_owned();
    let mut found = Beside::default();
    for file in siblings(path, ".")? {
        let name = file.to_string_lossy().into_owned();
        let Some(name) = name.strip_prefix(&start) else {
            continue;
        };
        let (first, behind) = match name.split_once('.') {
            Some((first, behind)) => (first, Some(behind)),
            None => (name, None),
        };
        match first {
            _ if number(first) && behind.is_none() => found.previous.push(file),
            _ if number(first) && is_index(behind) => found.indexes.push(file),
            "damaged" => {
                let (n, behind) = match behind.unwrap_or_default().split_once('.') {
                    Some((n, behind)) => (n, Some(behind)),
                    None => (behind.unwrap_or_default(), None),
                };
                if number(n) && (behind.is_none() || is_index(behind)) {
                    found.aside.push(file);
                }
            }
            "index" if behind.is_some() => found.aside.push(file),
            "new" if behind.is_none() || is_index(behind) => found.aside.push(file),
            _ => {}
        }
    }
    Ok(found)
}

/// Which of some messages have a body in a log that is kept. One that does not read may have them all.
/// Nothing is made beside it; `scratch` is a folder for files that are thrown away.
pub fn holds(path: &Path, guids: &[Guid], scratch: &Path) -> HashSet<Guid> {
    let asked = || -> Result<HashSet<Guid>> {
        let reader = Reader::open_apart(path, scratch)?;
        let mut found = HashSet::new();
        for guid in guids {
            if reader.index().body(*guid)?.is_some() {
                found.insert(*guid);
            }
        }
        Ok(found)
    };
    asked().unwrap_or_else(|e| {
        log::info!("may have what is looked for: {}", e.at(path));
        guids.iter().copied().collect()
    })
}

/// Removes the previous logs that were kept beside one, and their indexes. The logs that went. Under its
/// lock, and if `is_still` its place then: who moves it carries them along, and if a deleted one is
/// brought back they are another's.
pub fn remove_previous(
    path: &Path,
    wait: Wait,
    is_still: impl FnOnce() -> Result<bool>,
) -> Result<Vec<PathBuf>> {
    let gone = || Error::new(Kind::Locked, "it has moved meanwhile: try again").at(path);
    let lock = DataLock::acquire(path, wait, Create::No).map_err(|e| match e.kind() {
        Kind::NotFound => gone(),
        _ => e,
    })?;
    if !is_still()? {
        return Err(gone());
    }
    let found = beside(path)?;
    let mut removed = Removed::default();
    // The logs last: as long as one is there, this can be begun again.
    for file in found.indexes {
        removed.unlink(file)?;
    }
    removed.files.clear();
    for file in found.previous {
        removed.unlink(file)?;
    }
    sync_folder(path)?;
    drop(lock);
    Ok(removed.files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_is_kept() {
        let name = format!("cyr_backup-beside-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir(&dir).unwrap();
        let log = dir.join("anna_x");
        for end in [
            "",
            ".index",
            ".index-wal",
            ".index.former",
            ".17",
            ".17.index",
            ".17.index-shm",
            ".17x",
            ".damaged.18",
            ".damaged.18.index",
            ".damaged.x",
            ".deleted.19",
            ".new",
            "y.17",
        ] {
            std::fs::write(with(&log, end), "").unwrap();
        }
        let all = |ends: &[&str]| ends.iter().map(|end| with(&log, end)).collect::<Vec<_>>();
        let found = beside(&log).unwrap();
        assert_eq!(found.previous, all(&[".17"]));
        assert_eq!(found.indexes, all(&[".17.index", ".17.index-shm"]));
        let aside = [".damaged.18", ".damaged.18.index", ".index.former", ".new"];
        assert_eq!(found.aside, all(&aside));
        // What was deleted: by its own name, and by the one it had, if that is free.
        let deleted = with(&log, ".deleted.19");
        assert_eq!(beside(&deleted).unwrap(), Beside::default());
        std::fs::remove_file(&log).unwrap();
        let found = beside(&deleted).unwrap();
        assert_eq!(found.previous, all(&[".17"]));
        assert_eq!(found.indexes, all(&[".17.index", ".17.index-shm"]));
        assert_eq!(found.aside, [&all(&aside)[..], &all(&[".index"])].concat());
        let removed = remove_previous(&deleted, Wait::No, || Ok(true)).unwrap();
        assert_eq!(removed, all(&[".17"]));
        let rest = beside(&log).unwrap();
        assert_eq!((rest.previous, rest.indexes), (vec![], vec![]));
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 10);
        for (end, is_still) in [(".deleted.20", true), (".deleted.19", false)] {
            let e = remove_previous(&with(&log, end), Wait::No, || Ok(is_still)).unwrap_err();
            assert_eq!(e.kind(), Kind::Locked);
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
