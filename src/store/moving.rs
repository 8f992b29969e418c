//! A backup moves to another backup partition, while syncs go on.
//!
//! The log is copied without its lock, up to what is acknowledged, until less than a MiB is left.
//! Under the lock the rest follows; every chunk of the copy is compared with the SHA-256 in the index;
//! copy and folder are synced and the copy gets its name; then one transaction of the catalogue
//! makes it the backup; then the old files are unlinked; then the lock ends. A writer that had looked
//! up the old path finds no file there, or one that the catalogue no longer names, and looks again.
//!
//! At each moment the catalogue names exactly one of the two. What an interruption leaves is a file
//! beside the other's way that the catalogue does not name: a `.new`, a whole copy, or what was moved.
//! The next move of that backup knows it by what was noted of this one ([`left`]) and removes it.
//!
//! Fails with `Locked`, `Exists` (somebody else's file lies there), `Io`, `NoSpace`; then nothing has
//! moved. Old files that cannot be removed are no failure of the move: they are in [`Moved::left`].

mod left;

use super::backup::{Backup, Settings};
use super::catalog::Catalog;
use super::former;
use super::index::{self, ChunkRow};
use super::lock::{Create, DataLock, Wait};
use super::reader::{Reader, Stale};
use super::reindex;
use crate::error::{Error, Kind, Result};
use crate::sys::fs::sync_folder;
pub use left::{Noted, end, unended, unseen};
use left::{Trace, all_of, are_equal, asides, is_same, remove_all, remove_moved, remove_others};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What is left when the lock is taken, as long as it does not grow faster than it is copied.
const LEFT: u64 = 1 << 20;
/// How often we go on without the lock, and how often we begin anew because the log was replaced.
const ROUNDS: u32 = 16;
const BUFFER: usize = 1 << 20;

/// How a move ended.
#[derive(Debug)]
pub struct Moved {
    /// Where the log was.
    pub from: PathBuf,
    /// Where it is; the same if it was there already.
    pub to: PathBuf,
    /// Bytes of the log.
    pub bytes: u64,
    /// Of these copied while nobody could write.
    pub under_lock: u64,
    /// Old files that stay because they could not be removed, and why.
    pub left: Option<(Vec<PathBuf>, Error)>,
}

/// Where to, and how.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    /// The folder in the partition; made if it is missing.
    pub folder: &'a Path,
    /// How long the lock is waited for.
    pub wait: Wait,
    /// How the backup is written.
    pub settings: Settings,
    /// Folders in which interrupted moves may have left something.
    pub others: &'a [PathBuf],
}

/// Moves the backup of a key. `progress` hears how many bytes are copied.
pub fn to_folder(
    catalog: &Catalog,
    key: &str,
    way: Way<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<Moved> {
    for _ in 0..ROUNDS {
        let missing = || Error::new(Kind::NotFound, "no backup").for_user(key);
        let from = catalog.lookup(key)?.ok_or_else(missing)?;
        let name = from.file_name().ok_or_else(missing)?;
        former::at_rest(catalog, key, &from)?;
        let folders = way.others.iter().map(PathBuf::as_path);
        let folders: Vec<&Path> = folders.chain([way.folder]).collect();
        match remove_others(catalog, &from, &folders) {
            Err(e) if e.kind() == Kind::Changed => continue,
            done => done?,
        }
        if let Some(folder) = unseen(catalog, &from)?.as_deref().and_then(Path::parent) {
            // Also if it is the one to move to: made below a mount point it would hide what was left.
            let what = "a move of it was interrupted, and what that left may lie where the folder is missing \
                        now: mount its partition, or make that folder if it is gone for good";
            return Err(Error::new(Kind::Io, what).at(folder));
        }
        let to = way.folder.join(name);
        if is_same(&to, &from) {
            let there = fs::metadata(&from).map_err(|e| Error::io("cannot open", e).at(&from))?;
            let bytes = there.len();
            return Ok(Moved {
                to: from.clone(),
                from,
                bytes,
                under_lock: 0,
                left: None,
            });
        }
        make_folder(way.folder)?;
        if let Some(moved) = once(catalog, key, &from, &to, way, progress)? {
            log::info!(
                "backup moved user=<{key}> from=<{}> to=<{}>",
                from.display(),
                to.display()
            );
            return Ok(moved);
        }
    }
    Err(Error::new(Kind::Locked, "the log is replaced all the time").for_user(key))
}

/// One attempt; `None` if the log was replaced meanwhile.
fn once(
    catalog: &Catalog,
    key: &str,
    from: &Path,
    to: &Path,
    way: Way<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<Option<Moved>> {
    let source = File::open(from).map_err(|e| Error::io("cannot open", e).at(from))?;
    let beside = with(to, ".new");
    // Also keeps a second move away.
    let target = DataLock::acquire(&beside, Wait::No, Create::IfMissing)?;
    let trace = Trace::of(catalog, from);
    let mut copy = Copy {
        source: &source,
        target: target.file(),
        at: 0,
        proven: 0,
        sha256: Sha256::new(),
        asides: Vec::new(),
    };
    let done = trace
        .begun(to)
        .and_then(|()| copy.without_lock(from, way.settings, progress))
        .and_then(|()| copy.asides(from, to))
        .and_then(|()| copy.finish(catalog, key, from, to, way, progress));
    if !matches!(done, Ok(Some(_))) && !to.exists() {
        // Nobody shall wonder about it.
        for file in &copy.asides {
            let _ = fs::remove_file(file);
        }
        let _ = index::remove(&index::path_of(to));
        let _ = fs::remove_file(&beside);
        if copy.asides.iter().chain([&beside]).all(|f| !f.exists()) {
            let _ = trace.done();
        }
    }
    done
}

struct Copy<'a> {
    source: &'a File,
    target: &'a File,
    /// Copied up to here.
    at: u64,
    /// Compared up to here.
    proven: u64,
    /// Of what is copied.
    sha256: Sha256,
    /// Copies of what is kept beside it.
    asides: Vec<PathBuf>,
}

impl Copy<'_> {
    fn without_lock(
        &mut self,
        from: &Path,
        settings: Settings,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        self.target
            .set_len(0)
            .map_err(|e| Error::io("cannot cut", e))?;
        for _ in 0..ROUNDS {
            // What is acknowledged is never taken back.
            let reader = Reader::open(from, Stale::Repair(settings))?;
            let end = reader.index().meta_number("acknowledged")?.unwrap_or(0) as u64;
            let chunks = reader.index().chunks()?;
            drop(reader);
            let len = self.source.metadata().map_or(0, |m| m.len());
            let before = self.at;
            self.up_to(end.min(len), progress)?;
            self.prove(&chunks)?;
            if self.at - before < LEFT {
                break;
            }
        }
        self.sync()
    }

    /// Copies of what is kept beside the log: damaged ones, previous ones, old indexes.
    fn asides(&mut self, from: &Path, to: &Path) -> Result<()> {
        let kept = asides(from)?;
        // What lies there would be of this backup from then on, and may be what was erased of it.
        let is_kept = |there: &PathBuf| kept.iter().any(|f| in_folder_of(to, f) == *there);
        if let Some(strange) = asides(to)?.iter().find(|there| !is_kept(there)) {
            let what = "a file that is not beside the log lies there: remove it, or move it away";
            return Err(Error::new(Kind::Exists, what).at(strange));
        }
        for file in kept {
            let copy = in_folder_of(to, &file);
            if copy.exists() && !are_equal(&file, &copy)? {
                return Err(Error::new(Kind::Exists, "another file lies there").at(&copy));
            }
            self.asides.push(copy.clone());
            let done = fs::copy(&file, &copy).and_then(|_| File::open(&copy)?.sync_all());
            done.map_err(|e| Error::io("cannot copy", e).at(&file))?;
        }
        Ok(())
    }

    fn finish(
        &mut self,
        catalog: &Catalog,
        key: &str,
        from: &Path,
        to: &Path,
        way: Way<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Option<Moved>> {
        let backup = Backup::open(from, key, way.wait, Create::No, way.settings)?;
        former::finish(catalog, key, from)?;
        let chunks = backup.index().chunks()?;
        let lock = backup.into_lock()?;
        let fail = |e| Error::io("cannot look at", e).at(from);
        let (now, then) = (
            lock.file().metadata().map_err(fail)?,
            self.source.metadata().map_err(fail)?,
        );
        let is_same = (now.dev(), now.ino()) == (then.dev(), then.ino()) && now.len() >= self.at;
        if !is_same || catalog.lookup(key)?.as_deref() != Some(from) {
            return Ok(None);
        }
        let kept = asides(from)?;
        if kept
            .iter()
            .map(|f| in_folder_of(to, f))
            .ne(self.asides.iter().cloned())
        {
            // Something was kept meanwhile, or what was kept is erased.
            return Ok(None);
        }
        let before = self.at;
        self.up_to(now.len(), progress)?;
        self.prove(&chunks)?;
        self.sync()?;
        copy_index(from, to)?;
        let trace = Trace::of(catalog, from);
        trace.copied(to, self.at, self.sha256.clone().finalize().into())?;
        fs::rename(with(to, ".new"), to).map_err(|e| Error::io("cannot rename", e).at(to))?;
        sync_folder(to)?;
        let change = [(key.to_owned(), Some(to.to_owned()))];
        if let Err(e) = catalog.exchange(&[(key, Some(from))], &change) {
            // A commit whose very last sync failed may stand.
            if matches!(catalog.lookup(key), Ok(Some(path)) if path == from) {
                let _ = remove_moved(to, from, true);
            }
            return Err(e);
        }
        // The copy is the backup from here on: what fails now is told and left for the next move.
        let left = match remove_all(from) {
            Ok(()) => {
                if let Err(e) = trace.done() {
                    log::warn!("a move stays on record: {e}");
                }
                None
            }
            Err(e) => Some((all_of(from), e)),
        };
        if let Some((_, e)) = &left {
            log::error!(
                "IOERROR: old files not removed filename=<{}> error=<{e}>",
                from.display()
            );
        }
        drop(lock);
        Ok(Some(Moved {
            from: from.to_owned(),
            to: to.to_owned(),
            bytes: self.at,
            under_lock: self.at - before,
            left,
        }))
    }

    fn up_to(&mut self, end: u64, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let mut buf = vec![0; BUFFER];
        while self.at < end {
            let want = usize::try_from(end - self.at).map_or(BUFFER, |n| n.min(BUFFER));
            let n = self
                .source
                .read_at(&mut buf[..want], self.at)
                .map_err(|e| Error::io("cannot read log", e))?;
            if n == 0 {
                return Err(Error::new(Kind::Io, "the log has become shorter"));
            }
            self.target
                .write_all_at(&buf[..n], self.at)
                .map_err(|e| Error::io("cannot copy", e))?;
            self.sha256.update(&buf[..n]);
            self.at += n as u64;
            progress(self.at);
        }
        Ok(())
    }

    /// Compares what was copied with what the index says of it. What is damaged is damaged in both.
    fn prove(&mut self, chunks: &[ChunkRow]) -> Result<()> {
        for chunk in chunks {
            let (Some(length), Some(sha256)) = (chunk.length, &chunk.sha256) else {
                continue;
            };
            let end = chunk.offset + length;
            if chunk.offset < self.proven || end > self.at {
                continue;
            }
            let copied = reindex::hash(self.target, chunk.offset, length)?;
            if copied[..] != sha256[..] {
                if copied != reindex::hash(self.source, chunk.offset, length)? {
                    let what = format!("the copy of chunk {} differs", chunk.id);
                    return Err(Error::new(Kind::Io, what));
                }
                log::warn!("chunk {} is damaged and moves as it is", chunk.id);
            }
            self.proven = end;
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.target
            .sync_all()
            .map_err(|e| Error::io("cannot sync the copy", e))
    }
}

/// Copies an index that is at rest; one that a reader keeps from being so is made again at its next
/// use.
fn copy_index(from: &Path, to: &Path) -> Result<()> {
    let (old, new) = (index::path_of(from), index::path_of(to));
    index::remove(&new)?;
    let wal = fs::metadata(with(&old, "-wal")).map_or(0, |m| m.len());
    if wal > 0 || !old.exists() {
        return Ok(());
    }
    let done = fs::copy(&old, &new).and_then(|_| File::open(&new)?.sync_all());
    done.map_err(|e| Error::io("cannot copy", e).at(&old))
}

/// The same name, where the log goes.
fn in_folder_of(to: &Path, file: &Path) -> PathBuf {
    to.with_file_name(file.file_name().unwrap_or_default())
}

/// Makes a folder and those above it, durably.
fn make_folder(folder: &Path) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(folder).map_err(|e| Error::io("cannot make folder", e).at(folder))?;
    sync_folder(folder)?;
    sync_folder(folder.parent().unwrap_or(folder))
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
