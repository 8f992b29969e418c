//! Reading a backup without its lock: data file and index of one moment.
//!
//! A reader never waits for a writer and never delays one. It looks at nothing beyond the
//! acknowledged length and works in one read transaction of the index. What belongs together is
//! told by the generation in the log's first member; if the two do not fit (the moment of a
//! switch), it tries again. An index that is behind its log while nobody writes is brought up to
//! date first, for which the lock is taken without waiting.

mod apart;

use super::backup::{Backup, Settings};
use super::file::LogFile;
use super::index::{self, Index, MessageRow};
use super::lock::{Create, DataLock, Wait};
use super::log::read_chunk_plain;
use super::recover::belongs;
use crate::cyrus::guid::Guid;
use crate::error::{Error, Kind, Result};
use crate::sys::lock::{Holder, holder};
use sha1::{Digest, Sha1};
use std::collections::HashSet;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// A backup as it was when it was opened for reading.
pub struct Reader {
    index: Index,
    file: File,
    path: PathBuf,
    /// Keeps writers out where the index cannot be shared with them.
    _lock: Option<DataLock>,
    /// An index that is not beside its log.
    _scratch: Option<apart::Scratch>,
}

/// What to do about an index that does not fit its log.
#[derive(Clone, Copy, Debug)]
pub enum Stale {
    /// Bring it up to date under the lock, if that is free.
    Repair(Settings),
    /// Say so.
    Refuse,
}

const TRIES: u32 = 3;

/// So long somebody who has the lock may be putting another pair in place.
const SWITCHING: Duration = Duration::from_secs(5);

/// A file that was changed less than this ago may be changed again without its time showing it:
/// the kernel's stamps are some milliseconds apart.
const STAMPS: Duration = Duration::from_millis(50);

impl Reader {
    /// Opens the backup whose data file is at `path`. `NotFound` without a data file; `Locked` if
    /// the index must be repaired while somebody else holds the lock.
    pub fn open(path: &Path, stale: Stale) -> Result<Reader> {
        let mut last = None;
        let began = Instant::now();
        let mut tries = 0;
        while tries < TRIES {
            tries += 1;
            match Reader::try_open(path) {
                Ok((reader, true)) => return Ok(reader),
                Ok((reader, false)) => {
                    // A tail: a writer is at work, or one ended without sealing.
                    let Stale::Repair(settings) = stale else {
                        return Ok(reader);
                    };
                    // Asked first: a failed attempt to lock looks for the holder, which costs.
                    if reader.is_held() {
                        return Ok(reader);
                    }
                    match Backup::open(path, "", Wait::No, Create::No, settings) {
                        Ok(backup) => drop(backup),
                        Err(_) => return Ok(reader),
                    }
                }
                Err(e) if e.kind() == Kind::NeedsReindex => {
                    if let Stale::Repair(settings) = stale {
                        match Backup::open(path, "", Wait::No, Create::No, settings) {
                            Ok(backup) => drop(backup),
                            // A switch takes a moment, more on a busy disk.
                            Err(e) if e.kind() == Kind::Locked => {
                                std::thread::sleep(Duration::from_millis(20));
                                if began.elapsed() < SWITCHING {
                                    tries = 0;
                                }
                            }
                            Err(e) => return Err(e),
                        }
                    }
                    last = Some(e);
                }
                // An index was put in the place of this one just then, and took its files along.
                Err(e) if e.kind() == Kind::Db => {
                    std::thread::sleep(Duration::from_millis(20));
                    last = Some(e);
                }
                Err(e) if e.kind() == Kind::NoSpace && matches!(stale, Stale::Repair(_)) => {
                    return Reader::alone(path)?.ok_or(e);
                }
                Err(e) => return Err(e),
            }
        }
        Err(last.unwrap_or_else(|| Error::new(Kind::Locked, "cannot read backup").at(path)))
    }

    /// On a full disk SQLite cannot make the files by which it shares an index. One at rest can be
    /// read without them as long as we hold the lock.
    fn alone(path: &Path) -> Result<Option<Reader>> {
        let Ok(lock) = DataLock::acquire(path, Wait::No, Create::No) else {
            return Ok(None);
        };
        let index_path = index::path_of(path);
        if Rest::of(&index_path).is_none() {
            return Ok(None);
        }
        let file = File::open(path).map_err(|e| Error::io("cannot open", e).at(path))?;
        let (mut reader, _) = Reader::with(path, file, Index::open_still(&index_path)?)?;
        reader._lock = Some(lock);
        Ok(Some(reader))
    }

    /// The reader, and whether nothing lies past the acknowledged length.
    fn try_open(path: &Path) -> Result<(Reader, bool)> {
        let file = File::open(path).map_err(|e| Error::io("cannot open", e).at(path))?;
        let index = Index::open_read_only(&index::path_of(path))?;
        index.begin_read()?;
        Reader::with(path, file, index)
    }

    fn with(path: &Path, file: File, index: Index) -> Result<(Reader, bool)> {
        let fail = |e| Error::io("cannot open", e).at(path);
        let known = index.meta_text("generation")?;
        let len = file.metadata().map_err(fail)?.len();
        let acknowledged = index.meta_number("acknowledged")?;
        let fits = match (&known, acknowledged) {
            // A new one, into which perhaps the first bodies come; one being rebuilt is not.
            (None, None | Some(0)) => len == 0 || index.meta_number("new")?.is_some(),
            (Some(_), Some(end)) => end as u64 <= len && belongs(&index, &file)?,
            _ => false,
        };
        if !fits {
            return Err(Error::new(Kind::NeedsReindex, "index and log do not fit").at(path));
        }
        let sealed = index.last_chunk()?.is_none_or(|c| c.length.is_some());
        let quiet = acknowledged.unwrap_or(0) as u64 == len && sealed;
        let path = path.to_owned();
        let reader = Reader {
            index,
            file,
            path,
            _lock: None,
            _scratch: None,
        };
        Ok((reader, quiet))
    }

    /// The index, for questions.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The data file.
    pub fn file(&self) -> &dyn LogFile {
        &self.file
    }

    /// A further handle of the data file, of the very file that the index belongs to.
    pub fn data_file(&self) -> Result<File> {
        let file = self.file.try_clone();
        file.map_err(|e| Error::io("cannot open", e).at(&self.path))
    }

    /// Whether somebody else has the backup's lock, or it cannot be told.
    pub fn is_held(&self) -> bool {
        !matches!(holder(&self.file), Ok(Holder::Nobody))
    }

    /// The data file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hands a message's bytes to `sink` in pieces and checks them against its GUID. `NotFound` if
    /// no body is known; `Damaged` if it does not read or is not what it should be, after its
    /// bytes have gone to `sink`.
    pub fn body(&self, guid: Guid, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        body(&self.index, &self.file, guid, sink)
    }
}

/// Asks a backup at rest, leaving no trace: nothing is locked, and no file is made beside the index
/// as SQLite does for each reader in WAL mode. `None` if the backup is in use, was so while it was
/// asked (the answer is then forgotten), or is not as it should be: open a [`Reader`] and ask again.
pub fn ask_still<T>(
    path: &Path,
    question: &mut dyn FnMut(&Index, &dyn LogFile) -> Result<T>,
) -> Result<Option<T>> {
    let index_path = index::path_of(path);
    let Some(before) = Rest::of(&index_path) else {
        return Ok(None);
    };
    let answer = match File::open(path)
        .map_err(|e| Error::io("cannot open", e).at(path))
        .and_then(|file| Reader::with(path, file, Index::open_still(&index_path)?))
    {
        Ok((reader, true)) => question(reader.index(), reader.file()),
        _ => return Ok(None),
    };
    if Rest::of(&index_path) != Some(before) {
        return Ok(None);
    }
    answer.map(Some)
}

/// What shows that an index was not written to: its pages change only when a checkpoint moves the
/// write-ahead log into it, and that alters its time.
#[derive(PartialEq, Eq)]
struct Rest {
    dev: u64,
    ino: u64,
    len: u64,
    time: (i64, i64),
}

impl Rest {
    /// `None` while it may be in use: there is a write-ahead log, or the last change is too fresh
    /// for the next one to show.
    fn of(index: &Path) -> Option<Rest> {
        let meta = std::fs::metadata(index).ok()?;
        let age = SystemTime::now().duration_since(meta.modified().ok()?);
        if age.ok()? < STAMPS {
            return None;
        }
        let mut wal = index.as_os_str().to_owned();
        wal.push("-wal");
        match std::fs::metadata(PathBuf::from(wal)) {
            Ok(wal) if wal.len() > 0 => return None,
            Err(e) if e.kind() != ErrorKind::NotFound => return None,
            _ => {}
        }
        Some(Rest {
            dev: meta.dev(),
            ino: meta.ino(),
            len: meta.len(),
            time: (meta.mtime(), meta.mtime_nsec()),
        })
    }
}

/// The same from any index and data file.
pub fn body(
    index: &Index,
    file: &dyn LogFile,
    guid: Guid,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let row = index
        .body(guid)?
        .ok_or_else(|| Error::new(Kind::NotFound, format!("no body of message {guid}")))?;
    let mut sha1 = Sha1::new();
    read_chunk_plain(file, row.chunk_offset, row.offset, row.size, &mut |part| {
        sha1.update(part);
        sink(part)
    })
    .map_err(|e| e.in_chunk(row.chunk_id, row.offset))?;
    if sha1.finalize()[..] != guid.0 {
        return Err(Error::new(Kind::Damaged, format!("body of message {guid}"))
            .in_chunk(row.chunk_id, row.offset));
    }
    Ok(())
}

/// What [`bodies`] hands over of a body.
#[derive(Debug)]
pub enum Part<'a> {
    /// Its bytes follow.
    Begin,
    /// Some of its bytes.
    Data(&'a [u8]),
    /// Its end, and whether it is what its GUID says.
    End(bool),
}

/// Reads the bodies of many messages in the order of the log: each chunk is inflated once. What
/// does not read is not handed over to its end; messages without a body are passed over.
pub fn bodies(
    index: &Index,
    file: &dyn LogFile,
    guids: impl IntoIterator<Item = Guid>,
    each: &mut dyn FnMut(&MessageRow, Part<'_>) -> Result<()>,
) -> Result<()> {
    let mut rows = Vec::new();
    for guid in guids {
        rows.extend(index.body(guid)?);
    }
    rows.sort_by_key(|r| (r.chunk_offset, r.offset));
    rows.dedup_by_key(|r| r.guid);
    for chunk in rows.chunk_by(|a, b| a.chunk_offset == b.chunk_offset) {
        let Some(first) = chunk.first() else {
            continue;
        };
        let end = chunk.iter().map(|r| r.offset + r.size).max().unwrap_or(0);
        let mut walk = Walk {
            rows: chunk,
            next: 0,
            at: first.offset,
            begun: false,
            sha1: Sha1::new(),
            failed: None,
        };
        let read = read_chunk_plain(
            file,
            first.chunk_offset,
            first.offset,
            end - first.offset,
            &mut |part| walk.take(part, each),
        );
        if let Some(e) = walk.failed.take() {
            return Err(e);
        }
        match read {
            Ok(()) => walk.settle(each)?,
            // What was not reached is not readable; the other chunks may be.
            Err(e) if e.kind() == Kind::Damaged => {
                log::warn!(
                    "chunk does not read offset={} error=<{e}>",
                    first.chunk_offset
                );
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Cuts the plain text of a chunk into the bodies in it.
struct Walk<'a> {
    rows: &'a [MessageRow],
    next: usize,
    at: u64,
    begun: bool,
    sha1: Sha1,
    failed: Option<Error>,
}

type Each<'a> = dyn FnMut(&MessageRow, Part<'_>) -> Result<()> + 'a;

impl Walk<'_> {
    /// Ends the bodies that end here, also empty ones.
    fn settle(&mut self, each: &mut Each<'_>) -> Result<()> {
        while let Some(row) = self.rows.get(self.next) {
            if self.at < row.offset || self.at < row.offset + row.size {
                break;
            }
            if !self.begun {
                each(row, Part::Begin)?;
            }
            let good = self.sha1.finalize_reset()[..] == row.guid.0;
            each(row, Part::End(good))?;
            self.begun = false;
            self.next += 1;
        }
        Ok(())
    }

    fn take(&mut self, part: &[u8], each: &mut Each<'_>) -> Result<()> {
        let done = self.step(part, each);
        if let Err(e) = done {
            // Told apart from damage by the one who reads.
            self.failed = Some(e);
            return Err(Error::new(Kind::Internal, "stopped"));
        }
        Ok(())
    }

    fn step(&mut self, mut part: &[u8], each: &mut Each<'_>) -> Result<()> {
        loop {
            self.settle(each)?;
            let Some(row) = self.rows.get(self.next) else {
                return Ok(());
            };
            if part.is_empty() {
                return Ok(());
            }
            let inside = self.at >= row.offset;
            let upto = if inside {
                row.offset + row.size
            } else {
                row.offset
            };
            let n = usize::try_from(upto - self.at)
                .unwrap_or(usize::MAX)
                .min(part.len());
            let (now, later) = part.split_at(n);
            if inside {
                if !self.begun {
                    each(row, Part::Begin)?;
                    self.begun = true;
                }
                self.sha1.update(now);
                each(row, Part::Data(now))?;
            }
            part = later;
            self.at += n as u64;
        }
    }
}

/// Which of the messages have a body that reads and is right.
pub fn readable(
    index: &Index,
    file: &dyn LogFile,
    guids: impl IntoIterator<Item = Guid>,
) -> Result<HashSet<Guid>> {
    let mut good = HashSet::new();
    bodies(index, file, guids, &mut |row, part| {
        if let Part::End(true) = part {
            good.insert(row.guid);
        }
        Ok(())
    })?;
    Ok(good)
}
