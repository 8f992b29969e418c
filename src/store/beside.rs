//! What is kept beside a log and holds its mail as well, or tells of it: previous logs, damaged copies,
//! and their indexes. Known by name alone.
//!
//! Fails with `Io`.

use super::former::{Removed, siblings, with};
use crate::error::Result;
use crate::sys::fs::sync_folder;
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

/// Removes the previous logs that were kept beside one, and their indexes. The logs that went.
pub fn remove_previous(path: &Path) -> Result<Vec<PathBuf>> {
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
        assert_eq!(remove_previous(&log).unwrap(), all(&[".17"]));
        let rest = beside(&log).unwrap();
        assert_eq!((rest.previous, rest.indexes), (vec![], vec![]));
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 11);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
