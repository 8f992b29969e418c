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
mod rebuild;

pub use belongs::generation;
pub(super) use belongs::{begun_here, belongs};
pub(super) use loss::{HURT, doubts};

use super::file::LogFile;
use super::index::{self, Index};
use super::reindex::{self, From, Known, Trailing};
use super::shorter;
use crate::error::{Error, Kind, Result};
use belongs::first_reads;
use cut::{Ending, cut_and_seal, keep_copy};
use loss::{findings, found, marked};
use rebuild::{Kept, beside, rebuild};
use std::cell::Cell;
use std::path::Path;
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

/// What was brought together is durable: the log is synced first, the index committed second.
fn done(file: &dyn LogFile, index: &Index, end: u64, stamp: i64) -> Result<()> {
    file.sync_data().map_err(|e| Error::io("cannot sync", e))?;
    index.set_meta("acknowledged", end as i64)?;
    index.set_meta("acknowledged_plain", 0)?;
    index.set_meta("clock", 0)?;
    index.set_meta("stamp", stamp)?;
    index.commit()
}
