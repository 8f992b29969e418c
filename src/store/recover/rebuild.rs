//! An index is built anew from the whole log, beside the one in use, and then takes its place.
//!
//! The end of the log is cut and sealed on the way, after a copy if something does not read. A log of the
//! old tools is taken over by this; one that is no log is `Damaged` and untouched.

use super::belongs::{HEAD, generation, origin, starts_as_member};
use super::cut::{Ending, cut_and_seal, ends_flushed, keep_copy};
use super::loss::{HURT, found, marked};
use super::{Opened, done};
use crate::error::{Error, Kind, Result};
use crate::store::ahead::Help;
use crate::store::file::LogFile;
use crate::store::index::{self, Index};
use crate::store::reindex::{self, Entered, From, Trailing};
use crate::store::shorter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What an attempt before has left.
#[derive(Default)]
pub(super) struct Kept {
    /// A copy of the file as it was stays already.
    pub(super) copy: bool,
    /// What was found before the file was cut.
    pub(super) damage: Vec<(u64, String)>,
    /// It is known otherwise that the log is not one of the old tools.
    pub(super) ours: bool,
    /// The index that lies there belongs to the log, and may know more than that still has.
    pub(super) former: bool,
}

/// Builds a new index from the whole log, beside the old one, and puts it in its place. One that
/// fails is not left on a disk that may be full.
pub(super) fn rebuild(
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

/// Where an index is built while the old one is in use.
pub(super) fn beside(path: &Path) -> PathBuf {
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
