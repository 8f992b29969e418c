//! What moves leave where a backup is not: copies, and old files that could not be removed.
//!
//! `backups.db.moved` says of a move where to, before it is begun, and before the copy gets its name
//! what was copied: the length and the SHA-256 of the log. A file that is that to the last byte is what was
//! moved, whatever the backup has become since. Without such a note it must be the beginning of the
//! log in use. Any other file is somebody's, and stays. The next move of the backup removes what is
//! left, nothing else does.
//!
//! The key is the name of the log's file as it is when the backup is not deleted; the value is
//! `<bytes> <sha256> <to>`, `0 - <to>` as long as it is being copied.

use super::with;
use crate::error::{Error, Kind, Result};
use crate::store::beside::before;
use crate::store::catalog::Catalog;
use crate::store::former::{self, siblings};
use crate::store::index;
use crate::store::lock::{Create, DataLock, Wait};
use crate::store::notes::Notes;
use crate::store::reindex;
use crate::sys::fs::sync_folder;
use crate::util::hex;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Between a log's name and the time of its deletion.
const DELETED: &str = ".deleted.";

/// What is noted of a move.
#[derive(Debug, PartialEq, Eq)]
struct Note {
    /// Length and SHA-256, once all is copied.
    copied: Option<(u64, [u8; 32])>,
    to: PathBuf,
}

impl Note {
    fn parse(text: &str) -> Option<Note> {
        let mut words = text.splitn(3, ' ');
        let (bytes, sha256, to) = (words.next()?, words.next()?, words.next()?);
        let copied = match sha256 {
            "-" => None,
            _ => Some((bytes.parse().ok()?, hex::decode(sha256.as_bytes())?)),
        };
        let to = to.into();
        Some(Note { copied, to })
    }
}

/// The notes of the moves of one backup.
pub(super) struct Trace {
    notes: Notes,
    key: String,
}

impl Trace {
    /// That of the backup whose log is at `path`, or was once.
    pub(super) fn of(catalog: &Catalog, path: &Path) -> Trace {
        let usual = base(path);
        let key = usual.file_name().unwrap_or_default();
        Trace {
            notes: Notes::beside(catalog.path(), "moved"),
            key: key.to_string_lossy().into_owned(),
        }
    }

    /// Copying to a path begins. On disk when it returns, as all of these.
    pub(super) fn begun(&self, to: &Path) -> Result<()> {
        self.notes.set(&self.key, &format!("0 - {}", to.display()))
    }

    /// All is copied and nothing removed.
    pub(super) fn copied(&self, to: &Path, bytes: u64, sha256: &[u8]) -> Result<()> {
        let text = format!("{bytes} {} {}", hex::encode(sha256), to.display());
        self.notes.set(&self.key, &text)
    }

    /// Nothing is left anywhere.
    pub(super) fn done(&self) -> Result<()> {
        self.notes.remove(&self.key)
    }

    fn note(&self) -> Result<Option<Note>> {
        let text = self.notes.get(&self.key)?;
        Ok(text.and_then(|text| Note::parse(&text)))
    }
}

/// Removes what earlier moves of the backup at `live` have left in folders. A file that lies in its way
/// and is not that is an error; `Changed` if the backup is elsewhere by now.
pub(super) fn remove_others<'a>(
    catalog: &Catalog,
    live: &Path,
    folders: impl Iterator<Item = &'a Path>,
) -> Result<()> {
    let trace = Trace::of(catalog, live);
    let note = trace.note()?;
    let name = |path: &Path| path.file_name().unwrap_or_default().to_owned();
    let (own, usual) = (name(live), name(&base(live)));
    for folder in folders {
        let usual = folder.join(&usual);
        let mut found = vec![usual.clone(), folder.join(&own)];
        if note.is_some() {
            // It may have been deleted when it was moved, or brought back since.
            found.extend(siblings(&usual, DELETED)?);
            found.retain(|path| *path == usual || former::split(path).is_some());
        }
        found.sort();
        found.dedup();
        for left in found {
            if !left.exists() || is_same(live, &left) {
                continue;
            }
            let is_removed = remove_left(catalog, live, &left, note.as_ref())?;
            if !is_removed && name(&left) == own {
                return Err(Error::new(Kind::Exists, "another file lies there").at(&left));
            }
        }
    }
    match note {
        Some(note) if !is_same(&note.to, live) => remove_begun(&note.to),
        _ => Ok(()),
    }
}

/// The path a log has when it is not deleted.
fn base(path: &Path) -> PathBuf {
    former::split(path).map_or(path.to_owned(), |(before, _)| before)
}

/// Whether two paths are one place: partitions may be reached in several ways. What lies there may be
/// replaced at any time, so files are not compared.
pub(super) fn is_same(one: &Path, other: &Path) -> bool {
    let folder = |path: &Path| {
        fs::metadata(path.parent()?)
            .ok()
            .map(|m| (m.dev(), m.ino()))
    };
    one == other || one.file_name() == other.file_name() && folder(one) == folder(other)
}

/// Removes a log that was moved, or copied to be; false, and nothing is done, if it is another.
fn remove_left(catalog: &Catalog, live: &Path, left: &Path, note: Option<&Note>) -> Result<bool> {
    // A move that is at work has it locked until the catalogue names it.
    let lock = DataLock::acquire(left, Wait::No, Create::No)?;
    let entered = catalog.list()?;
    if entered.iter().any(|(_, path)| is_same(path, left)) {
        return Ok(false);
    }
    if entered.iter().all(|(_, path)| path != live) {
        let what = "the backup has moved meanwhile: try again";
        return Err(Error::new(Kind::Changed, what).at(live));
    }
    let live = File::open(live).map_err(|e| Error::io("cannot open", e).at(live))?;
    let len = |file: &File| file.metadata().map_or(0, |m| m.len());
    let end = len(lock.file());
    let noted = note.and_then(|note| note.copied.as_ref());
    let noted = noted.filter(|(bytes, _)| *bytes == end);
    let is_beginning = end <= len(&live);
    if noted.is_none() && !is_beginning {
        return Ok(false);
    }
    let sha256 = reindex::hash(lock.file(), 0, end)?;
    let is_noted = noted.is_some_and(|(_, noted)| sha256[..] == noted[..]);
    let is_moved = is_noted || is_beginning && sha256 == reindex::hash(&live, 0, end)?;
    if !is_moved {
        return Ok(false);
    }
    remove_all(left)?;
    drop(lock);
    log::warn!(
        "left by an interrupted move, removed filename=<{}>",
        left.display()
    );
    Ok(true)
}

/// Removes a copy that has no name yet, and what was copied with it, if nobody is at work on it.
fn remove_begun(to: &Path) -> Result<()> {
    let new = with(to, ".new");
    if to.exists() || !new.exists() {
        return Ok(());
    }
    let lock = match DataLock::acquire(&new, Wait::No, Create::No) {
        Err(e) if e.kind() == Kind::NotFound => return Ok(()),
        lock => lock?,
    };
    if to.exists() {
        // It got its name meanwhile, and this is a compaction's.
        return Ok(());
    }
    remove_beside(to)?;
    fs::remove_file(&new).map_err(|e| Error::io("cannot remove", e).at(&new))?;
    sync_folder(to)?;
    drop(lock);
    log::warn!(
        "begun by an interrupted move, removed filename=<{}>",
        new.display()
    );
    Ok(())
}

/// Removes what belongs to a log, then the log: as long as that is there it can be begun again.
pub(super) fn remove_all(path: &Path) -> Result<()> {
    remove_beside(path)?;
    // What a compaction that was killed has left.
    let new = with(path, ".new");
    if index::path_of(&new).exists() {
        index::remove(&index::path_of(&new))?;
    }
    for file in [&new, path] {
        match fs::remove_file(file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("cannot remove", e).at(file));
            }
            _ => {}
        }
    }
    sync_folder(path)
}

fn remove_beside(path: &Path) -> Result<()> {
    for file in asides(path)? {
        fs::remove_file(&file).map_err(|e| Error::io("cannot remove", e).at(&file))?;
    }
    index::remove(&index::path_of(path))
}

/// Whether two files are the same to the last byte.
pub(super) fn are_equal(one: &Path, other: &Path) -> Result<bool> {
    let open = |path: &Path| File::open(path).map_err(|e| Error::io("cannot open", e).at(path));
    let (one, other) = (open(one)?, open(other)?);
    let len = |file: &File| file.metadata().map_or(0, |m| m.len());
    let end = len(&one);
    Ok(end == len(&other) && reindex::hash(&one, 0, end)? == reindex::hash(&other, 0, end)?)
}

/// What there is of a log and of all that is beside it.
pub(super) fn all_of(path: &Path) -> Vec<PathBuf> {
    let index = index::path_of(path);
    let mut files = vec![path.to_owned(), index, with(path, ".new")];
    files.extend(asides(path).unwrap_or_default());
    files.retain(|file| file.exists());
    files
}

/// What is kept beside a log, without its index and what is being made. What was set aside before a
/// backup was deleted has the name from before.
pub(super) fn asides(path: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in [Some(path.to_owned()), before(path)?].iter().flatten() {
        let index = index::path_of(path);
        let deleted = with(path, DELETED);
        let deleted = deleted.to_string_lossy();
        let mut found = siblings(path, ".")?;
        found.retain(|f| {
            let name = f.to_string_lossy();
            let is_index = ["", "-wal", "-shm", "-journal"].map(|end| with(&index, end));
            let is_new = name.ends_with(".new") || name.contains(".new.index");
            !is_index.contains(f) && !is_new && !name.starts_with(&*deleted)
        });
        files.extend(found);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read_as_they_were_written() {
        let name = format!("cyr_backup-moved-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).unwrap();
        let catalog = Catalog::open(&dir.join("backups.db"), true);
        let trace = Trace::of(&catalog, Path::new("/b/a/anna_x.deleted.17"));
        let same = Trace::of(&catalog, Path::new("/c/a/anna_x"));
        let to = Path::new("/b c/a/anna_x");
        assert_eq!(trace.note().unwrap(), None);
        trace.done().unwrap();
        trace.begun(to).unwrap();
        let note = same.note().unwrap().unwrap();
        assert_eq!((note.copied, note.to.as_path()), (None, to));
        trace.copied(to, 7, &[0xab; 32]).unwrap();
        let note = same.note().unwrap().unwrap();
        let copied = Some((7, [0xab; 32]));
        assert_eq!((note.copied, note.to.as_path()), (copied, to));
        same.done().unwrap();
        assert_eq!(trace.note().unwrap(), None);
        for bad in ["", "7", "7 zz /b", "x ab /b"] {
            assert_eq!(Note::parse(bad), None, "{bad}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
