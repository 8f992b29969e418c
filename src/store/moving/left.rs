//! What moves leave where a backup is not: copies, and old files that could not be removed.
//!
//! `backups.db.moved` says of a move where from and where to, before it is begun, and before the copy gets
//! its name what was copied: the length and the SHA-256 of the log. A file that is that to the last byte is
//! what was moved, whatever the backup has become since. Without such a note it must be the beginning of
//! the log in use. Any other file is somebody's, and stays. The next move of the backup removes what is
//! left, nothing else does; when nothing is, the note goes as well.
//!
//! What lies beside such a file was moved only if a note says that there was a move, and if the same lies
//! beside the log in use. What lies in the folder of the log in use was left by no move.
//!
//! The key is the name of the log's file as it is when the backup is not deleted; the value is
//! `<bytes> <sha256> <n> <to> <from>` with `n` the bytes of `<to>`, `0 - <n> <to> <from>` as long as it is
//! being copied. Older notes end in `<sha256> <to>`.

use super::{in_folder_of, with};
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
use std::collections::HashMap;
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
    from: Option<PathBuf>,
}

impl Note {
    fn parse(text: &str) -> Option<Note> {
        let mut words = text.splitn(3, ' ');
        let (bytes, sha256, paths) = (words.next()?, words.next()?, words.next()?);
        let copied = match sha256 {
            "-" => None,
            _ => Some((bytes.parse().ok()?, hex::decode(sha256.as_bytes())?)),
        };
        let (to, from) = match paths.split_once(' ') {
            Some((n, paths)) if n.bytes().all(|b| b.is_ascii_digit()) => {
                let (to, from) = paths.split_at_checked(n.parse().ok()?)?;
                (to, Some(from.strip_prefix(' ')?.into()))
            }
            _ => (paths, None),
        };
        let to = to.into();
        Some(Note { copied, to, from })
    }

    fn print(&self) -> String {
        let copied = match &self.copied {
            Some((bytes, sha256)) => format!("{bytes} {}", hex::encode(sha256)),
            None => "0 -".into(),
        };
        let to = self.to.to_string_lossy();
        match &self.from {
            Some(from) => format!("{copied} {} {to} {}", to.len(), from.to_string_lossy()),
            None => format!("{copied} {to}"),
        }
    }

    fn ends(&self) -> impl Iterator<Item = &PathBuf> {
        [Some(&self.to), self.from.as_ref()].into_iter().flatten()
    }

    /// The folders of both ends.
    fn folders(&self) -> impl Iterator<Item = &Path> {
        self.ends().filter_map(|path| path.parent())
    }

    /// Ends that cannot be looked at: the folder is not there, as when a partition is not mounted.
    fn unseen(&self) -> Vec<PathBuf> {
        let is_there = |path: &Path| path.parent().is_some_and(Path::is_dir);
        self.ends()
            .filter(|path| !is_there(path))
            .cloned()
            .collect()
    }
}

/// The notes of the moves of one backup.
pub(super) struct Trace {
    notes: Notes,
    key: String,
    path: PathBuf,
}

impl Trace {
    /// That of the backup whose log is at `path`, or was once.
    pub(super) fn of(catalog: &Catalog, path: &Path) -> Trace {
        let usual = base(path);
        let key = usual.file_name().unwrap_or_default();
        Trace {
            notes: Notes::beside(catalog.path(), "moved"),
            key: key.to_string_lossy().into_owned(),
            path: path.to_owned(),
        }
    }

    /// Copying to a path begins. On disk when it returns, as all of these.
    pub(super) fn begun(&self, to: &Path) -> Result<()> {
        self.set(to, None)
    }

    /// All is copied and nothing removed.
    pub(super) fn copied(&self, to: &Path, bytes: u64, sha256: [u8; 32]) -> Result<()> {
        self.set(to, Some((bytes, sha256)))
    }

    fn set(&self, to: &Path, copied: Option<(u64, [u8; 32])>) -> Result<()> {
        let (to, from) = (to.to_owned(), Some(self.path.clone()));
        let note = Note { copied, to, from };
        self.notes.set(&self.key, &note.print())
    }

    /// Nothing is left anywhere.
    pub(super) fn done(&self) -> Result<()> {
        self.notes.remove(&self.key)
    }

    fn note(&self) -> Result<Option<Note>> {
        let text = self.notes.get(&self.key)?;
        Ok(text.and_then(|text| Note::parse(&text)))
    }

    /// Nothing is left of that move where it was looked for; another may have begun meanwhile.
    fn ended(&self, note: &Note) -> Result<()> {
        if !note.unseen().is_empty() {
            return Ok(());
        }
        match self.note()? {
            Some(now) if now == *note => self.done(),
            _ => Ok(()),
        }
    }
}

/// All that is on record of moves.
pub struct Noted(HashMap<String, Note>);

impl Noted {
    /// Reads it; nothing if there is no such file or it does not read.
    pub fn read(catalog: &Catalog) -> Result<Noted> {
        let all = Notes::beside(catalog.path(), "moved").all()?.into_iter();
        Ok(Noted(
            all.filter_map(|(key, text)| Some((key, Note::parse(&text)?)))
                .collect(),
        ))
    }

    /// Whether the log at `path` is, to the last byte, what a move on record has copied: one of the two
    /// that there were then. Reads the log if its length fits. Fails with `Io`.
    pub fn is_moved(&self, path: &Path) -> Result<bool> {
        let usual = base(path);
        let key = usual.file_name().unwrap_or_default().to_string_lossy();
        let note = self.0.get(key.as_ref());
        let Some((bytes, sha256)) = note.and_then(|note| note.copied) else {
            return Ok(false);
        };
        let log = File::open(path).map_err(|e| Error::io("cannot open", e).at(path))?;
        if len(&log) != bytes {
            return Ok(false);
        }
        let is = reindex::hash(&log, 0, bytes).map_err(|e| e.at(path))?;
        Ok(is[..] == sha256[..])
    }
}

/// Removes what earlier moves of the backup at `live` have left in folders, and where they began and
/// went. A file that lies in its way and is not that is an error; `Changed` if the backup is elsewhere by
/// now.
pub(super) fn remove_others(catalog: &Catalog, live: &Path, folders: &[&Path]) -> Result<()> {
    let trace = Trace::of(catalog, live);
    let note = trace.note()?;
    let ends = note.iter().flat_map(Note::folders);
    let folders: Vec<&Path> = folders.iter().copied().chain(ends).collect();
    let mut in_the_way = None;
    for folder in folders {
        for left in found_in(folder, live, note.is_some())? {
            let is_removed = remove_left(catalog, live, &left, note.as_ref())?;
            if !is_removed && left.file_name() == live.file_name() {
                in_the_way.get_or_insert(left);
            }
        }
    }
    if let Some(note) = &note {
        if !is_same(&note.to, live) {
            remove_begun(&note.to, live)?;
        }
        trace.ended(note)?;
    }
    match in_the_way {
        Some(path) => Err(Error::new(Kind::Exists, "another file lies there").at(&path)),
        None => Ok(()),
    }
}

/// Ends what an interrupted move of the backup at `live` has left, if one is on record and nobody is at it.
/// What is not known for sure to be of that move stays. Paths at which something may be left and that could not be
/// looked at.
pub fn end(catalog: &Catalog, live: &Path) -> Result<Vec<PathBuf>> {
    let Some(note) = Trace::of(catalog, live).note()? else {
        return Ok(Vec::new());
    };
    match remove_others(catalog, live, &[]) {
        Err(e) if matches!(e.kind(), Kind::Locked | Kind::Exists | Kind::Changed) => {}
        Err(e) if e.kind() == Kind::Io => {
            log::warn!("cannot end an interrupted move: {e}");
            let ends = note.ends().filter(|path| !is_same(path, live));
            return Ok(ends.cloned().collect());
        }
        done => done?,
    }
    Ok(note.unseen())
}

/// Where an interrupted move of the backup at `live` may have left something and the folder is not there.
pub fn unseen(catalog: &Catalog, live: &Path) -> Result<Option<PathBuf>> {
    let note = Trace::of(catalog, live).note()?;
    Ok(note.and_then(|note| note.unseen().pop()))
}

/// What may be left of a move of the log at `live`, which is locked, where it began or went: the next
/// move will tell. If nothing is, nothing is on record any more.
pub fn unended(catalog: &Catalog, live: &Path) -> Result<Option<PathBuf>> {
    let trace = Trace::of(catalog, live);
    let Some(note) = trace.note()? else {
        return Ok(None);
    };
    let entered = catalog.list()?;
    for folder in note.folders() {
        let found = found_in(folder, live, true)?.into_iter();
        let mut left = found.filter(|file| entered.iter().all(|(_, path)| !is_same(path, file)));
        if let Some(left) = left.next() {
            return Ok(Some(left));
        }
    }
    let new = with(&note.to, ".new");
    if !is_same(&note.to, live) && new.exists() {
        return Ok(Some(new));
    }
    if let Some(unseen) = note.unseen().pop() {
        return Ok(Some(unseen));
    }
    trace.done()?;
    Ok(None)
}

/// Files in a folder whose names a log that was moved may have: none in that of the log in use.
fn found_in(folder: &Path, live: &Path, is_noted: bool) -> Result<Vec<PathBuf>> {
    let own = in_folder(folder, live);
    if is_same(live, &own) {
        return Ok(Vec::new());
    }
    let usual = in_folder(folder, &base(live));
    let mut found = vec![usual.clone(), own];
    if is_noted {
        // It may have been deleted when it was moved, or brought back since.
        found.extend(siblings(&usual, DELETED)?);
        found.retain(|path| *path == usual || former::split(path).is_some());
    }
    found.sort();
    found.dedup();
    found.retain(|path| path.is_file());
    Ok(found)
}

fn in_folder(folder: &Path, path: &Path) -> PathBuf {
    folder.join(path.file_name().unwrap_or_default())
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
    let log = File::open(live).map_err(|e| Error::io("cannot open", e).at(live))?;
    let end = len(lock.file());
    let noted = note.and_then(|note| note.copied.as_ref());
    let noted = noted.filter(|(bytes, _)| *bytes == end);
    let is_beginning = end <= len(&log);
    if noted.is_none() && !is_beginning {
        return Ok(false);
    }
    let sha256 = reindex::hash(lock.file(), 0, end)?;
    let is_noted = noted.is_some_and(|(_, noted)| sha256[..] == noted[..]);
    let is_moved = is_noted || is_beginning && sha256 == reindex::hash(&log, 0, end)?;
    if !is_moved {
        return Ok(false);
    }
    remove_moved(left, live, note.is_some())?;
    drop(lock);
    log::warn!(
        "left by an interrupted move, removed filename=<{}>",
        left.display()
    );
    Ok(true)
}

/// Removes a log that `live` is in the place of, and its index. Of what is beside it, if it was moved, what
/// is the same beside `live`; anything else there stays, and is named.
pub(super) fn remove_moved(path: &Path, live: &Path, is_noted: bool) -> Result<()> {
    remove_beside(path, |file| {
        Ok(is_noted && are_equal(file, &in_folder_of(live, file))?)
    })?;
    if is_noted {
        return remove_last(path);
    }
    fs::remove_file(path).map_err(|e| Error::io("cannot remove", e).at(path))?;
    sync_folder(path)
}

/// Removes a copy that has no name yet, and what was copied with it, if nobody is at work on it.
fn remove_begun(to: &Path, live: &Path) -> Result<()> {
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
    // The last of it may be there in part.
    remove_beside(to, |file| is_beginning(file, &in_folder_of(live, file)))?;
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
    remove_beside(path, |_| Ok(true))?;
    remove_last(path)
}

fn remove_last(path: &Path) -> Result<()> {
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

/// Removes the index of a log, and what is kept beside it and goes with it.
fn remove_beside(path: &Path, goes: impl Fn(&Path) -> Result<bool>) -> Result<()> {
    for file in asides(path)? {
        if goes(&file)? {
            fs::remove_file(&file).map_err(|e| Error::io("cannot remove", e).at(&file))?;
        } else {
            let name = file.display();
            log::warn!("beside what an interrupted move left, stays filename=<{name}>");
        }
    }
    index::remove(&index::path_of(path))
}

/// Whether two files are the same to the last byte.
pub(super) fn are_equal(one: &Path, other: &Path) -> Result<bool> {
    let len = |path: &Path| fs::metadata(path).ok().map(|m| m.len());
    Ok(len(one) == len(other) && is_beginning(one, other)?)
}

/// Whether one file is the beginning of another; false if there is no other.
fn is_beginning(one: &Path, other: &Path) -> Result<bool> {
    if !one.is_file() || !other.is_file() {
        return Ok(false);
    }
    let open = |path: &Path| File::open(path).map_err(|e| Error::io("cannot open", e).at(path));
    let (one, other) = (open(one)?, open(other)?);
    let end = len(&one);
    Ok(end <= len(&other) && reindex::hash(&one, 0, end)? == reindex::hash(&other, 0, end)?)
}

fn len(file: &File) -> u64 {
    file.metadata().map_or(0, |m| m.len())
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
    use sha2::{Digest, Sha256};

    #[test]
    fn notes_are_read_as_they_were_written() {
        let name = format!("cyr_backup-moved-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).unwrap();
        let catalog = Catalog::open(&dir.join("backups.db"), true);
        let (old, new) = (dir.join("b"), dir.join("b c"));
        fs::create_dir(&old).unwrap();
        let from = Some(old.join("anna_x.deleted.17"));
        let to = new.join("anna_x");
        let to = to.as_path();
        let trace = Trace::of(&catalog, &old.join("anna_x.deleted.17"));
        let same = Trace::of(&catalog, Path::new("/c/a/anna_x"));
        assert_eq!(trace.note().unwrap(), None);
        trace.done().unwrap();
        trace.begun(to).unwrap();
        let note = same.note().unwrap().unwrap();
        assert_eq!((note.copied, note.to.as_path()), (None, to));
        assert_eq!(note.from, from);
        trace.copied(to, 7, [0xab; 32]).unwrap();
        let begun = note;
        let note = same.note().unwrap().unwrap();
        let copied = Some((7, [0xab; 32]));
        assert_eq!((note.copied, note.to.as_path()), (copied, to));
        assert_eq!(note.from, from);
        trace.ended(&begun).unwrap();
        assert!(same.note().unwrap().is_some());
        // What was copied is known by its content, wherever it lies and whether it was deleted since.
        let is_moved = |name: &str, content: &[u8]| {
            let path = old.join(name);
            fs::write(&path, content).unwrap();
            Noted::read(&catalog).unwrap().is_moved(&path).unwrap()
        };
        let sha256 = Sha256::digest(b"the log").into();
        trace.copied(to, 7, sha256).unwrap();
        assert!(is_moved("anna_x", b"the log") && is_moved("anna_x.deleted.3", b"the log"));
        assert!(!is_moved("anna_x", b"the lag") && !is_moved("anna_x", b"the log goes on"));
        assert!(!is_moved("anna_y", b"the log"));
        trace.copied(to, 7, [0xab; 32]).unwrap();
        // Nothing is known to be at an end whose folder is not there.
        same.ended(&note).unwrap();
        assert_eq!(note.unseen(), [to]);
        assert!(same.note().unwrap().is_some());
        fs::create_dir(&new).unwrap();
        same.ended(&note).unwrap();
        assert_eq!(trace.note().unwrap(), None);
        let old = Note::parse("0 - /b c/a/anna_x").unwrap();
        let to = Path::new("/b c/a/anna_x");
        assert_eq!((old.to.as_path(), old.from), (to, None));
        for bad in ["", "7", "7 zz /b", "x ab /b", "0 - 9 /b /c", "0 - 1 /b /c"] {
            assert_eq!(Note::parse(bad), None, "{bad}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
