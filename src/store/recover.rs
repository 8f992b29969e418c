//! Opening is recovery: brings a log and its index together, under the lock.
//!
//! In O(1) if they fit. A tail that the index has not seen is entered up to its last line that
//! belongs, the rest cut, an unsealed member sealed; an index that is missing, foreign or ahead is
//! built anew. What a loss leaves in doubt is named, for the caller to mark. A file that is cut
//! otherwise than by tearing is kept as a copy first; one that is no log is `Damaged` and untouched.
//! States: `doc/design.md`.

use super::file::{FileReader, LogFile};
use super::gzip::{MemberReader, last_flush_point, seal_bytes};
use super::index::{self, Index};
use super::reindex::{self, From, Trailing};
use crate::cyrus::dlist::{Limits, Parser, Value};
use crate::error::{Error, Kind, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A log and its index, brought together.
pub(super) struct Opened {
    pub(super) index: Index,
    pub(super) end: u64,
    pub(super) stamp: i64,
    /// Lines that were entered.
    pub(super) lines: u64,
    /// What a rebuild found: file offset and reason.
    pub(super) damage: Vec<(u64, String)>,
    /// Mailboxes (uniqueid, reason) that a loss left in doubt.
    pub(super) doubtful: Vec<(String, String)>,
}

/// The generation named in the first member, `None` in a log that is not (yet) ours.
pub fn generation(file: &dyn LogFile) -> Result<Option<String>> {
    let mut parser = Parser::new(
        MemberReader::new(FileReader::new(file, 0)),
        Limits::default(),
    );
    let mut read = || -> Result<Option<String>> {
        parser.word(|b| b != b'\n')?;
        parser.end_line()?;
        parser.word(|b| b.is_ascii_digit())?;
        parser.space()?;
        parser.word(|b| b.is_ascii_alphabetic())?;
        parser.space()?;
        if parser.word(|b| b.is_ascii_alphabetic())? != b"RESERVE" {
            return Ok(None);
        }
        parser.space()?;
        Ok(parser
            .value()?
            .get(super::line::PRIVATE)
            .and_then(|p| p.get("GENERATION"))
            .and_then(|g| g.get("ID"))
            .and_then(Value::as_str)
            .map(str::to_owned))
    };
    match read() {
        Ok(found) => Ok(found),
        // A torn first line is the business of whoever enters the log.
        Err(e) if e.kind() == Kind::Io || e.kind() == Kind::Protocol => Ok(None),
        Err(e) => Err(e),
    }
}

/// Brings log and index together. The lock is held.
pub(super) fn recover(file: &Arc<dyn LogFile>, path: &Path, len: u64) -> Result<Opened> {
    let index_path = index::path_of(path);
    if len == 0 {
        let index = Index::create(&index_path)?;
        return Ok(Opened {
            index,
            end: 0,
            stamp: 0,
            lines: 0,
            damage: Vec::new(),
            doubtful: Vec::new(),
        });
    }
    let opened = Index::open(&index_path).and_then(|index| {
        let ours = index.meta_text("generation")?;
        if ours != generation(&**file)? || ours.is_none() {
            return Err(Error::new(
                Kind::NeedsReindex,
                "the index belongs to another log",
            ));
        }
        let acknowledged = index.meta_number("acknowledged")?.unwrap_or(0) as u64;
        if acknowledged > len {
            return Err(Error::new(
                Kind::NeedsReindex,
                format!("the log is shorter ({len}) than acknowledged ({acknowledged})"),
            ));
        }
        Ok((index, acknowledged))
    });
    match opened {
        Ok((index, acknowledged)) => catch_up(file, path, index, acknowledged, len),
        Err(e) if e.kind() == Kind::NeedsReindex => {
            log::warn!(
                "index rebuilt filename=<{}> reason=<{e}>",
                index_path.display()
            );
            rebuild(file, path, len)
        }
        Err(e) => Err(e),
    }
}

/// Enters and seals what lies past the acknowledged length.
fn catch_up(
    file: &Arc<dyn LogFile>,
    path: &Path,
    index: Index,
    acknowledged: u64,
    len: u64,
) -> Result<Opened> {
    let stamp = index.meta_number("stamp")?.unwrap_or(0);
    let open = index.last_chunk()?.filter(|c| c.length.is_none());
    if open.is_none() && acknowledged == len {
        return Ok(Opened {
            index,
            end: len,
            stamp,
            lines: 0,
            damage: Vec::new(),
            doubtful: Vec::new(),
        });
    }
    let plain = index.meta_number("acknowledged_plain")?.unwrap_or(0) as u64;
    let from = match &open {
        Some(chunk) => From {
            member: chunk.offset,
            known: Some((chunk.id, plain)),
        },
        None => From {
            member: acknowledged,
            known: None,
        },
    };
    index.begin()?;
    let entered = reindex::enter(&**file, &index, from, len, Trailing::Cut)?;
    // Where nothing new belongs, the acknowledged place is the last good one.
    let good = match (entered.good, &open) {
        (Some(good), _) => Some((good, entered.chunk_id)),
        (None, Some(chunk)) => Some((
            reindex::Good {
                member: chunk.offset,
                plain,
                sealed_end: None,
            },
            Some(chunk.id),
        )),
        (None, None) => None,
    };
    let end = match good {
        Some((good, id)) => match cut_and_seal(&**file, &index, good, id, len)? {
            Ending::At(end) => end,
            Ending::Before(len) => {
                drop(index);
                return rebuild(file, path, len);
            }
        },
        None => {
            file.set_len(acknowledged)
                .map_err(|e| Error::io("cannot cut", e))?;
            acknowledged
        }
    };
    let stamp = stamp.max(entered.stamp);
    done(&**file, &index, end, stamp)?;
    log::info!(
        "recovered filename=<{}> lines={} cut_bytes={}",
        path.display(),
        entered.lines,
        len.saturating_sub(end)
    );
    Ok(Opened {
        index,
        end,
        stamp,
        lines: entered.lines,
        damage: Vec::new(),
        doubtful: Vec::new(),
    })
}

/// Builds the index anew, whatever it was. The lock is held.
pub(super) fn anew(file: &Arc<dyn LogFile>, path: &Path, len: u64) -> Result<Opened> {
    match len {
        0 => recover(file, path, len),
        _ => rebuild(file, path, len),
    }
}

/// Puts an index in the place of the one that is there. Closed first, and the old one removed with
/// all that belongs to it: SQLite must never find the one's log beside the other.
fn switch(new: Index, to: &Path) -> Result<Index> {
    let from = new.path().to_owned();
    drop(new);
    let mut wal = from.as_os_str().to_owned();
    wal.push("-wal");
    if Path::new(&wal).exists() {
        return Err(Error::new(Kind::Db, "cannot close the new index").at(&from));
    }
    index::remove(to)?;
    std::fs::rename(&from, to).map_err(|e| Error::io("cannot rename", e).at(&from))?;
    Index::open(to)
}

/// Builds a new index from the whole log, beside the old one, and puts it in its place.
fn rebuild(file: &Arc<dyn LogFile>, path: &Path, len: u64) -> Result<Opened> {
    let place = index::path_of(path);
    let mut beside = place.as_os_str().to_owned();
    beside.push(".new");
    let index = Index::create(Path::new(&beside))?;
    index.begin()?;
    let from = From {
        member: 0,
        known: None,
    };
    let entered = reindex::enter(&**file, &index, from, len, Trailing::Keep)?;
    for (at, what) in &entered.damage {
        log::warn!(
            "log finding filename=<{}> offset={at} reason=<{what}>",
            path.display()
        );
    }
    let end = match entered.good {
        Some(good) => {
            if good.sealed_end != Some(len) {
                keep_copy(path)?;
            }
            match cut_and_seal(&**file, &index, good, entered.chunk_id, len)? {
                Ending::At(end) => end,
                Ending::Before(len) => {
                    drop(index);
                    return rebuild(file, path, len);
                }
            }
        }
        None if generation(&**file)?.is_none() && !starts_as_member(&**file)? => {
            return Err(Error::new(
                Kind::Damaged,
                "not a backup's log: no member at its beginning",
            ));
        }
        None => {
            file.set_len(0).map_err(|e| Error::io("cannot cut", e))?;
            0
        }
    };
    if index.meta_text("generation")?.is_none() {
        // A log of the old tools: its index is ours by being here.
        index.set_meta("generation", "")?;
    }
    // A log of the old tools promises nothing that could be missed here.
    let ours = generation(&**file)?.is_some();
    let mut damage = entered.damage;
    for (guid, offset) in entered.wrong {
        damage.push((
            offset,
            format!("body of message {guid} is not what it says"),
        ));
    }
    let doubtful = if ours { index.doubtful()? } else { Vec::new() };
    done(&**file, &index, end, entered.stamp)?;
    Ok(Opened {
        index: switch(index, &place)?,
        end,
        stamp: entered.stamp,
        lines: entered.lines,
        damage,
        doubtful,
    })
}

/// Nothing is thrown away because it does not fit: the file as it was stays beside.
fn keep_copy(path: &Path) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".damaged.{}", crate::util::time::now_ms()));
    let copy = PathBuf::from(name);
    std::fs::copy(path, &copy).map_err(|e| Error::io("cannot keep a copy", e).at(&copy))?;
    log::warn!(
        "end of log does not read, copy kept filename=<{}> copy=<{}>",
        path.display(),
        copy.display()
    );
    Ok(())
}

fn starts_as_member(file: &dyn LogFile) -> Result<bool> {
    let mut magic = [0; 3];
    let n = file
        .read_at(&mut magic, 0)
        .map_err(|e| Error::io("cannot read", e))?;
    // A shorter file may be the very beginning of one.
    Ok([0x1f, 0x8b, 8].starts_with(&magic[..n]))
}

fn done(file: &dyn LogFile, index: &Index, end: u64, stamp: i64) -> Result<()> {
    file.sync_data().map_err(|e| Error::io("cannot sync", e))?;
    index.set_meta("acknowledged", end as i64)?;
    index.set_meta("acknowledged_plain", 0)?;
    index.set_meta("stamp", stamp)?;
    index.commit()
}

/// Where the file can end behind the last line that belongs.
enum Ending {
    /// Sealed; the new length.
    At(u64),
    /// No flush point stood exactly there: the file was cut to this length, before it, and the
    /// index must be built anew.
    Before(u64),
}

/// Makes the file end, sealed, behind the last line that belongs.
fn cut_and_seal(
    file: &dyn LogFile,
    index: &Index,
    good: reindex::Good,
    chunk: Option<i64>,
    len: u64,
) -> Result<Ending> {
    let fail = |e| Error::io("cannot seal", e);
    if let Some(end) = good.sealed_end {
        if end < len {
            file.set_len(end).map_err(fail)?;
        }
        return Ok(Ending::At(end));
    }
    let member = FileReader::until(file, good.member, len);
    let Some(point) = last_flush_point(member, good.plain).map_err(fail)? else {
        file.set_len(good.member).map_err(fail)?;
        return Ok(Ending::Before(good.member));
    };
    let cut = good.member + point.compressed;
    let seal = seal_bytes(point.crc, point.plain);
    file.set_len(cut).map_err(fail)?;
    file.write_at(&seal, cut).map_err(fail)?;
    let end = cut + seal.len() as u64;
    if point.plain != good.plain {
        return Ok(Ending::Before(end));
    }
    if let Some(id) = chunk {
        let hash = reindex::hash(file, good.member, end - good.member)?;
        index.end_chunk(id, end - good.member, point.plain, &hash)?;
    }
    Ok(Ending::At(end))
}
