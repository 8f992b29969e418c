//! Opening is recovery: brings a log and its index together, under the lock.
//!
//! In O(1) if they fit. A tail that the index has not seen is entered up to its last line that
//! belongs, the rest cut, an unsealed member sealed; an index that is missing, foreign or ahead is
//! built anew. What a loss leaves in doubt is named, for the caller to mark. A file that is cut
//! otherwise than by tearing is kept as a copy first; one that is no log is `Damaged` and untouched.
//! States: `doc/design.md`.

mod belongs;
mod cut;
mod loss;

pub use belongs::generation;
pub(super) use belongs::{begun_here, belongs};
pub(super) use loss::{HURT, doubts};

use super::ahead::Help;
use super::file::LogFile;
use super::index::{self, Index};
use super::reindex::{self, Entered, From, Known, Trailing};
use super::shorter;
use crate::error::{Error, Kind, Result};
use belongs::{HEAD, first_reads, origin, starts_as_member};
use cut::{Ending, cut_and_seal, ends_flushed, keep_copy};
use loss::{findings, found, marked};
use std::cell::Cell;
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

/// Threads that inflate when an index is built in passing.
const THREADS: usize = 2;

/// Brings log and index together. The lock is held.
pub(super) fn recover(file: &Arc<dyn LogFile>, path: &Path, len: u64) -> Result<Opened> {
    let index_path = index::path_of(path);
    // Left by a rebuild that was killed; the next would take its place, but may never come.
    let unfinished = beside(path);
    if unfinished.try_exists().unwrap_or(false) {
        index::remove(&unfinished)?;
    }
    if len == 0 {
        let knew = shorter::keep_former(file, path, len)?;
        if knew || super::verify::had_more(path) {
            log::error!(
                "IOERROR: log is empty that was not, a new one begins filename=<{}>",
                path.display()
            );
        }
        let index = Index::create(&index_path)?;
        // Readers see an empty backup until the first unit is durable.
        index.set_meta("new", 1)?;
        return Ok(Opened {
            index,
            end: 0,
            stamp: 0,
            lines: 0,
            damage: match knew {
                true => vec![(0, "the log is empty, and was not".to_owned())],
                false => Vec::new(),
            },
            doubtful: Vec::new(),
        });
    }
    let opened = fitting(file, path, len)
        .and_then(|(index, acknowledged)| catch_up(file, path, index, acknowledged, len));
    match opened {
        Err(e) if e.kind() == Kind::NeedsReindex => {
            if super::compact::finish_interrupted(&**file, path, len)? {
                return catch_up(file, path, Index::open(&index_path)?, len, len);
            }
            log::warn!(
                "index rebuilt filename=<{}> reason=<{e}>",
                index_path.display()
            );
            let mut kept = Kept::default();
            if shorter::keep_former(file, path, len)? {
                kept.damage.push((len, e.to_string()));
            } else {
                kept.ours = was_ours(&**file, &index_path)?;
                index::retire(&index_path)?;
            }
            let len = file.len().map_err(|e| Error::io("cannot read", e))?;
            rebuild(file, path, len, THREADS, kept)
        }
        opened => opened,
    }
}

/// The index of this log and how much of the log it acknowledges; `NeedsReindex` without one.
fn fitting(file: &Arc<dyn LogFile>, path: &Path, len: u64) -> Result<(Index, u64)> {
    let index = Index::open(&index::path_of(path))?;
    // Made for an empty log, in whose first unit a writer died, or which lost power since.
    let new = index.meta_number("new")?.is_some() && begun_here(&**file)?;
    if !new && !belongs(&index, &**file)? {
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
            known: Some(Known {
                chunk_id: chunk.id,
                plain,
                clock: index.meta_number("clock")?.unwrap_or(0),
            }),
        },
        None => From {
            member: acknowledged,
            known: None,
        },
    };
    index.begin()?;
    let entered = reindex::enter(&**file, &index, from, len, Trailing::Cut)?;
    if let Some((offset, why)) = entered.unread {
        // What is behind it may have been acknowledged: nothing is cut.
        let e = Error::new(Kind::Io, "cannot read log").because(why);
        return Err(e.place(format!("file offset {offset}")));
    }
    // One torn end is what a crash leaves, and nothing was acknowledged in it.
    let hurt = entered.broken || entered.damage.len() > 1 || !entered.wrong.is_empty();
    if acknowledged == 0 && (entered.broken || entered.good.is_none()) {
        // Nothing counts yet: begin anew, and keep what tearing does not explain.
        index.rollback();
        drop(index);
        if entered.broken {
            return rebuild(file, path, len, THREADS, Kept::default());
        }
        file.set_len(0).map_err(|e| Error::io("cannot cut", e))?;
        return recover(file, path, 0);
    }
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
        Some((good, id)) => {
            let kept = Cell::new(false);
            let keep = || {
                kept.set(true);
                keep_copy(&**file, path)
            };
            // What tearing does not explain is not just cut.
            let known = if entered.broken { len } else { acknowledged };
            match cut_and_seal(&**file, &index, good, id, len, known, &keep)? {
                Ending::At(end) => end,
                Ending::Before(len) => {
                    drop(index);
                    let kept = Kept {
                        copy: kept.get(),
                        ..Kept::default()
                    };
                    return rebuild(file, path, len, THREADS, kept);
                }
            }
        }
        None => {
            if entered.broken && acknowledged < len {
                keep_copy(&**file, path)?;
            }
            file.set_len(acknowledged)
                .map_err(|e| Error::io("cannot cut", e))?;
            acknowledged
        }
    };
    let stamp = stamp.max(entered.stamp);
    let (mut damage, mut doubtful) = (Vec::new(), Vec::new());
    if hurt {
        found(path, &entered.damage);
        doubtful = marked(&index, &entered, true)?;
        damage = findings(&entered);
    }
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
        damage,
        doubtful,
    })
}

/// Whether the index that lies there is of ours, and the log's first member does not say whose it is.
fn was_ours(file: &dyn LogFile, index: &Path) -> Result<bool> {
    let known = shorter::believed(|| Index::open_read_only(index)?.meta_text("generation"))?;
    Ok(known.flatten().is_some_and(|id| !id.is_empty()) && !first_reads(file)?)
}

/// Builds the index anew, whatever it was; `threads` inflate a large log. The lock is held.
pub(super) fn anew(
    file: &Arc<dyn LogFile>,
    path: &Path,
    len: u64,
    threads: usize,
) -> Result<Opened> {
    let mut len = len;
    let mut kept = Kept::default();
    if len > 0 {
        // What a crash left at the end is no damage: an index that fits says what of it counts.
        let settled = fitting(file, path, len)
            .and_then(|(index, acknowledged)| catch_up(file, path, index, acknowledged, len));
        match settled {
            Err(e) if matches!(e.kind(), Kind::Io | Kind::NoSpace) => return Err(e),
            // The index is being made anew for a reason.
            settled => {
                match settled {
                    Ok(opened) => {
                        // It knows what the log may have lost.
                        kept.former = true;
                        kept.damage = opened.damage;
                    }
                    Err(e) => {
                        log::warn!(
                            "the index is made from the log alone filename=<{}> reason=<{e}>",
                            path.display()
                        );
                        if shorter::keep_former(file, path, len)? {
                            kept.damage.push((len, e.to_string()));
                        } else {
                            kept.ours = was_ours(&**file, &index::path_of(path))?;
                        }
                    }
                }
                len = file.len().map_err(|e| Error::io("cannot read", e))?
            }
        }
    }
    match len {
        0 => recover(file, path, len),
        _ => rebuild(file, path, len, threads, kept),
    }
}

/// Puts an index in the place of the one that is there. Closed first, and the old one removed with
/// all that belongs to it: SQLite must never find the one's log beside the other.
fn switch(new: Index, to: &Path) -> Result<Index> {
    let from = new.path().to_owned();
    new.give()?;
    let mut wal = from.as_os_str().to_owned();
    wal.push("-wal");
    if Path::new(&wal).exists() {
        return Err(Error::new(Kind::Db, "cannot close the new index").at(&from));
    }
    index::retire(to)?;
    std::fs::rename(&from, to).map_err(|e| Error::io("cannot rename", e).at(&from))?;
    Index::open(to)
}

/// What an attempt before has left.
#[derive(Default)]
struct Kept {
    /// A copy of the file as it was stays already.
    copy: bool,
    /// What was found before the file was cut.
    damage: Vec<(u64, String)>,
    /// It is known otherwise that the log is not one of the old tools.
    ours: bool,
    /// The index that lies there belongs to the log, and may know more than that still has.
    former: bool,
}

/// Builds a new index from the whole log, beside the old one, and puts it in its place. One that
/// fails is not left on a disk that may be full.
fn rebuild(
    file: &Arc<dyn LogFile>,
    path: &Path,
    len: u64,
    threads: usize,
    kept: Kept,
) -> Result<Opened> {
    let built = build(file, path, len, threads, kept);
    if built.is_err() {
        let _ = index::remove(&beside(path));
    }
    built
}

fn build(
    file: &Arc<dyn LogFile>,
    path: &Path,
    len: u64,
    threads: usize,
    kept: Kept,
) -> Result<Opened> {
    let place = index::path_of(path);
    let (mut index, mut entered) = whole(file, path, len, threads, Trailing::Keep)?;
    if let Some(from) = entered.unsettled {
        // Bodies at the end that nobody refers to: a unit that never was acknowledged.
        if generation(&**file)?.is_some() && !index.any_referred(from)? {
            drop(index);
            (index, entered) = whole(file, path, len, threads, Trailing::Cut)?;
        }
    }
    entered.end_is_read()?;
    found(path, &entered.damage);
    let end = match entered.good {
        Some(good) => {
            if !entered.broken && ends_flushed(&**file, good, len)? {
                // Unsealed, as a writer leaves it between two units: nothing is lost or cut.
                entered.damage.retain(|(at, _)| *at != good.member);
            } else if good.sealed_end != Some(len) && !kept.copy {
                keep_copy(&**file, path)?;
            }
            match cut_and_seal(&**file, &index, good, entered.chunk_id, len, 0, &|| Ok(()))? {
                Ending::At(end) => end,
                Ending::Before(len) => {
                    drop(index);
                    let kept = Kept {
                        copy: true,
                        damage: entered.damage,
                        ..kept
                    };
                    return rebuild(file, path, len, threads, kept);
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
            // The first unit of a new backup, torn; or one in which nothing reads any more.
            if entered.broken && !kept.copy {
                keep_copy(&**file, path)?;
            }
            file.set_len(0).map_err(|e| Error::io("cannot cut", e))?;
            0
        }
    };
    // A log of the old tools names itself when we first write to it. Until then it promises nothing
    // that could be missed here.
    let named = index.meta_text("generation")?.is_some();
    let ours = named || entered.ours || kept.ours;
    if end == 0 {
        // Nothing is left: the next unit begins it.
        index.set_meta("new", 1)?;
    } else if !named {
        index.set_meta("generation", "")?;
    }
    if generation(&**file)? != index.meta_text("generation")? {
        // The first member stays as it is, whatever follows.
        let first = index.chunk(1)?.and_then(|c| Some(c.offset + c.length?));
        let len = first.unwrap_or(end).min(HEAD);
        index.set_meta("origin", origin(&**file, len)?)?;
    }
    if !ours && end > 0 {
        adopted(&index, path, &entered)?;
        let hurt: Vec<&str> = entered.hurt.iter().map(String::as_str).collect();
        if !hurt.is_empty() {
            index.set_meta(HURT, hurt.join(" "))?;
        }
    }
    let mut damage = kept.damage;
    let told = damage.len();
    for found in &entered.damage {
        if !damage[..told].contains(found) {
            damage.push(found.clone());
        }
    }
    if end < len {
        let what = format!("{} bytes at the end do not belong and were cut", len - end);
        damage.push((end, what));
    }
    for (guid, offset) in &entered.wrong {
        damage.push((
            *offset,
            format!("body of message {guid} is not what it says"),
        ));
    }
    let doubtful = match ours {
        true => marked(&index, &entered, !damage.is_empty())?,
        false => Vec::new(),
    };
    if kept.former && !damage.is_empty() {
        shorter::keep(&place)?;
    }
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

/// Tells what was found in a log of the old tools, also whose mail may be in it.
fn adopted(index: &Index, path: &Path, entered: &Entered) -> Result<()> {
    let (totals, foreign) = (index.totals()?, index.unreferenced()?);
    log::warn!(
        "backup of old tools adopted filename=<{}> chunks={} mailboxes={} messages={} \
         unreferenced={} unreferenced_bytes={} findings={}",
        path.display(),
        totals.chunks,
        totals.mailboxes,
        totals.records,
        foreign.0,
        foreign.1,
        entered.damage.len() + entered.wrong.len()
    );
    Ok(())
}

/// Where an index is built while the old one is in use.
fn beside(path: &Path) -> PathBuf {
    let mut beside = index::path_of(path).into_os_string();
    beside.push(".new");
    PathBuf::from(beside)
}

/// Enters a whole log into a new index, whose transaction is open then. That the disk does not give
/// something may be an accident once; what fails again is lost to us.
fn whole(
    file: &Arc<dyn LogFile>,
    path: &Path,
    len: u64,
    threads: usize,
    trailing: Trailing,
) -> Result<(Index, Entered)> {
    let (index, entered) = whole_once(file, path, len, threads, trailing)?;
    let Some((offset, why)) = &entered.unread else {
        return Ok((index, entered));
    };
    log::error!(
        "IOERROR: cannot read log filename=<{}> offset={offset} error=<{why}>",
        path.display()
    );
    drop(index);
    whole_once(file, path, len, threads, trailing)
}

fn whole_once(
    file: &Arc<dyn LogFile>,
    path: &Path,
    len: u64,
    threads: usize,
    trailing: Trailing,
) -> Result<(Index, Entered)> {
    let index = Index::create_apart(&beside(path))?;
    index.begin()?;
    let from = From {
        member: 0,
        known: None,
    };
    let help = Help::threads(threads);
    let entered = reindex::enter_with(help, &**file, &index, from, len, trailing)?;
    Ok((index, entered))
}

fn done(file: &dyn LogFile, index: &Index, end: u64, stamp: i64) -> Result<()> {
    file.sync_data().map_err(|e| Error::io("cannot sync", e))?;
    index.set_meta("acknowledged", end as i64)?;
    index.set_meta("acknowledged_plain", 0)?;
    index.set_meta("clock", 0)?;
    index.set_meta("stamp", stamp)?;
    index.commit()
}
