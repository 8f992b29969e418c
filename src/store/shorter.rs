//! What an index knew of a log that has lost it since: its end is cut off, or members do not read.
//!
//! The index must be built anew then, for it points at what is not there; but what it knew is kept in
//! a copy beside it until it is in the log again: which messages there were, and in which mailboxes.
//! So the loss has names, `heal` can bring the bodies from a copy, and the sender is asked for what
//! it still has. The copy is made before the old index goes; a crash leaves it to the next opening.

use super::backup::{Backup, resync_line};
use super::doubt::{Doubt, assess};
use super::file::LogFile;
use super::heal::{state_again, statement};
use super::index::{self, Index};
use super::recover::{begun_here, generation};
use crate::error::{Kind, Result};
use crate::util::time;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// So many lost messages are named; the rest is counted.
const NAMED: usize = 500;

/// Where the copy lies.
fn place(index: &Path) -> PathBuf {
    let mut name = index.as_os_str().to_owned();
    name.push(".former");
    PathBuf::from(name)
}

/// Keeps what the index at a place knows; of one that is damaged nothing is believed.
pub(super) fn keep(index: &Path) -> Result<()> {
    believed(|| Index::open(index)?.copy_to(&place(index))).map(|_| ())
}

/// The answer of an old index; `None` if it turns out to be damaged.
pub(super) fn believed<T>(ask: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    match ask() {
        Ok(answer) => Ok(Some(answer)),
        Err(e) if matches!(e.kind(), Kind::NeedsReindex | Kind::Db) => {
            log::warn!("old index not believed reason=<{e}>");
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// Keeps what the index at its place knows if that is of this log and acknowledges more than is there.
/// Whether it does.
pub(super) fn keep_former(file: &Arc<dyn LogFile>, path: &Path, len: u64) -> Result<bool> {
    Ok(believed(|| keep_longer(file, path, len))?.unwrap_or(false))
}

fn keep_longer(file: &Arc<dyn LogFile>, path: &Path, len: u64) -> Result<bool> {
    let index_path = index::path_of(path);
    if !index_path.try_exists().unwrap_or(false) {
        return Ok(false);
    }
    let Ok(index) = Index::open(&index_path) else {
        return Ok(false);
    };
    let known = index.meta_text("generation")?.filter(|id| !id.is_empty());
    let acknowledged = index.meta_number("acknowledged")?.unwrap_or(0) as u64;
    if known.is_none() || acknowledged <= len {
        return Ok(false);
    }
    let named = generation(&**file)?;
    // Nothing is left that could name another.
    let same = named == known || len == 0 || (named.is_none() && begun_here(&**file)?);
    if !same {
        return Ok(false);
    }
    log::error!(
        "IOERROR: log is shorter than acknowledged filename=<{}> bytes={len} acknowledged={acknowledged}",
        path.display()
    );
    index.copy_to(&place(&index_path))?;
    Ok(true)
}

/// Writes to the log again what was kept, marks the mailboxes concerned, and names the messages that
/// are lost. Nothing is done where nothing was kept.
pub(super) fn restate(backup: &mut Backup) -> Result<Vec<String>> {
    let place = place(backup.index().path());
    if !place.try_exists().unwrap_or(false) {
        return Ok(Vec::new());
    }
    // A crash may have left a part of it.
    let lost = believed(|| restate_from(backup, &Index::open_still(&place)?));
    if lost.as_ref().is_ok_and(Option::is_none) {
        backup.abort();
    }
    let lost = lost?.unwrap_or_default();
    index::remove(&place)?;
    Ok(lost)
}

fn restate_from(backup: &mut Backup, former: &Index) -> Result<Vec<String>> {
    let loss = assess(former, backup.index())?;
    for doubt in &loss.mailboxes {
        if !doubt.bodies_only && doubt.same_epoch {
            again(backup, former, doubt)?;
        }
    }
    let mut marks = Vec::new();
    for doubt in loss.mailboxes.iter().filter(|d| d.live) {
        if backup.index().resync(&doubt.uniqueid)?.is_none() {
            log::warn!(
                "mailbox to be sent again filename=<{}> uniqueid=<{}> reason=<the log has lost lines about it>",
                backup.path().display(),
                doubt.uniqueid
            );
            marks.push(resync_line(
                &doubt.uniqueid,
                1,
                "the log has lost lines about it",
            ));
        }
    }
    if !marks.is_empty() {
        backup.append(&marks, time::now())?;
    }
    backup.seal()?;
    let mut out = Vec::new();
    for (guid, uses) in loss.bodies.iter().take(NAMED) {
        let used = match uses.first() {
            Some(u) => format!(", uid {} of {}", u.uid, u.mboxname),
            None => String::new(),
        };
        out.push(format!("message {guid} is lost{used}"));
    }
    if loss.bodies.len() > NAMED {
        let more = loss.bodies.len() - NAMED;
        out.push(format!("{more} more messages are lost"));
    }
    if !loss.bodies.is_empty() || !loss.mailboxes.is_empty() {
        log::error!(
            "IOERROR: log has lost what was acknowledged filename=<{}> messages={} mailboxes={}",
            backup.path().display(),
            loss.bodies.len(),
            loss.mailboxes.len()
        );
    }
    Ok(out)
}

fn again(backup: &mut Backup, former: &Index, doubt: &Doubt) -> Result<()> {
    let Some((row, value)) = statement(former, &doubt.uniqueid, &doubt.unlogged)? else {
        return Ok(());
    };
    // Nothing is spilled: the line is held in memory.
    let folder = backup.path().parent().unwrap_or(Path::new("/")).to_owned();
    state_again(backup, &folder, u64::MAX, time::now(), &row, &value)
}
