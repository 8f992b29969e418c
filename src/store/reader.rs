//! Reading a backup without its lock: data file and index of one moment.
//!
//! A reader never waits for a writer and never delays one. It looks at nothing beyond the
//! acknowledged length and works in one read transaction of the index. What belongs together is
//! told by the generation in the log's first member; if the two do not fit (the moment of a
//! switch), it tries again. An index that is behind its log while nobody writes is brought up to
//! date first, for which the lock is taken without waiting.

use super::backup::{Backup, Settings};
use super::file::LogFile;
use super::index::{self, Index};
use super::lock::{Create, Wait};
use super::log::read_chunk_plain;
use super::recover::generation;
use crate::cyrus::guid::Guid;
use crate::error::{Error, Kind, Result};
use sha1::{Digest, Sha1};
use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};

/// A backup as it was when it was opened for reading.
pub struct Reader {
    index: Index,
    file: File,
    path: PathBuf,
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

impl Reader {
    /// Opens the backup whose data file is at `path`. `NotFound` without a data file; `Locked` if
    /// the index must be repaired while somebody else holds the lock.
    pub fn open(path: &Path, stale: Stale) -> Result<Reader> {
        let mut last = None;
        for _ in 0..TRIES {
            match Reader::try_open(path) {
                Ok((reader, true)) => return Ok(reader),
                Ok((reader, false)) => {
                    // A tail: a writer is at work, or one ended without sealing.
                    let Stale::Repair(settings) = stale else {
                        return Ok(reader);
                    };
                    match Backup::open(path, "", Wait::No, Create::No, settings) {
                        Ok(backup) => drop(backup),
                        Err(_) => return Ok(reader),
                    }
                }
                Err(e) if e.kind() == Kind::NeedsReindex => {
                    if let Stale::Repair(settings) = stale {
                        match Backup::open(path, "", Wait::No, Create::No, settings) {
                            Ok(backup) => drop(backup),
                            Err(e) if e.kind() == Kind::Locked => {
                                std::thread::sleep(std::time::Duration::from_millis(20));
                            }
                            Err(e) => return Err(e),
                        }
                    }
                    last = Some(e);
                }
                Err(e) => return Err(e),
            }
        }
        Err(last.unwrap_or_else(|| Error::new(Kind::Locked, "cannot read backup").at(path)))
    }

    /// The reader, and whether nothing lies past the acknowledged length.
    fn try_open(path: &Path) -> Result<(Reader, bool)> {
        let fail = |e| Error::io("cannot open", e).at(path);
        let file = File::open(path).map_err(fail)?;
        let index = Index::open_read_only(&index::path_of(path))?;
        index.begin_read()?;
        let known = index.meta_text("generation")?;
        let len = file.metadata().map_err(fail)?.len();
        let acknowledged = index.meta_number("acknowledged")?;
        let fits = match (&known, acknowledged) {
            (None, None) => len == 0,
            (Some(known), Some(end)) => {
                end as u64 <= len && *known == generation(&file)?.unwrap_or_default()
            }
            _ => false,
        };
        if !fits {
            return Err(Error::new(Kind::NeedsReindex, "index and log do not fit").at(path));
        }
        let sealed = index.last_chunk()?.is_none_or(|c| c.length.is_some());
        let quiet = acknowledged.unwrap_or(0) as u64 == len && sealed;
        let path = path.to_owned();
        Ok((Reader { index, file, path }, quiet))
    }

    /// The index, for questions.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The data file.
    pub fn file(&self) -> &dyn LogFile {
        &self.file
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

/// Which of the messages have a body that reads and is right. Each chunk is inflated once.
pub fn readable(
    index: &Index,
    file: &dyn LogFile,
    guids: impl IntoIterator<Item = Guid>,
) -> Result<HashSet<Guid>> {
    let mut rows = Vec::new();
    for guid in guids {
        rows.extend(index.body(guid)?);
    }
    rows.sort_by_key(|r| (r.chunk_offset, r.offset));
    let mut good = HashSet::new();
    for chunk in rows.chunk_by(|a, b| a.chunk_offset == b.chunk_offset) {
        let (Some(first), Some(last)) = (chunk.first(), chunk.last()) else {
            continue;
        };
        let mut at = first.offset;
        let mut next = 0;
        let mut sha1 = Sha1::new();
        let end = chunk
            .iter()
            .map(|r| r.offset + r.size)
            .max()
            .unwrap_or(last.offset);
        // Damage ends the chunk: what was not reached is not readable.
        let _ = read_chunk_plain(file, first.chunk_offset, at, end - at, &mut |mut part| {
            loop {
                // A body ends here, perhaps an empty one.
                while let Some(row) = chunk.get(next) {
                    if at < row.offset + row.size {
                        break;
                    }
                    if sha1.finalize_reset()[..] == row.guid.0 {
                        good.insert(row.guid);
                    }
                    next += 1;
                }
                let Some(row) = chunk.get(next) else {
                    return Ok(());
                };
                if part.is_empty() {
                    return Ok(());
                }
                let n = if at < row.offset {
                    row.offset - at
                } else {
                    row.offset + row.size - at
                };
                let n = usize::try_from(n).unwrap_or(usize::MAX).min(part.len());
                if at >= row.offset {
                    sha1.update(&part[..n]);
                }
                part = &part[n..];
                at += n as u64;
            }
        });
        while let Some(row) = chunk.get(next) {
            if at < row.offset + row.size {
                break;
            }
            if sha1.finalize_reset()[..] == row.guid.0 {
                good.insert(row.guid);
            }
            next += 1;
        }
    }
    Ok(good)
}
