//! Puts a new pair in the place of the old one, under the locks of both logs.
//!
//! In this order, so that a crash leaves a log with an index that fits, or one that can be found:
//! both files synced; the data renamed and its folder synced; the old index removed with all that
//! belongs to it; the new one renamed and the folder synced. After a crash in between, whoever opens
//! the log finds the new index beside it by its generation.

use super::new_path;
use crate::error::{Error, Kind, Result};
use crate::store::file::LogFile;
use crate::store::index::{self, Index};
use crate::store::recover::belongs;
use crate::sys::fs::sync_folder;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Closes a new index so that nothing of it is outside its file, and syncs it.
pub(super) fn close(index: Index) -> Result<PathBuf> {
    let path = index.path().to_owned();
    drop(index);
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    if Path::new(&wal).exists() {
        return Err(Error::new(Kind::Db, "cannot close the new index").at(&path));
    }
    // Nobody has it open: no lock of SQLite's is dropped by this.
    File::open(&path)
        .and_then(|f| f.sync_all())
        .map_err(|e| Error::io("cannot sync", e).at(&path))?;
    Ok(path)
}

/// Switches. `new` is a closed, synced index; the new log is synced. Both locks are held. With
/// `previous` the old log gets that name, too.
pub(super) fn switch(data: &Path, new: &Path, previous: Option<&Path>) -> Result<()> {
    let log = new_path(data);
    if let Some(previous) = previous {
        fs::hard_link(data, previous)
            .map_err(|e| Error::io("cannot keep the old log", e).at(previous))?;
    }
    rename(&log, data)?;
    sync_folder(data)?;
    // From here on the new log counts: whoever opens it completes what fails now.
    place_index(data, new)
}

fn place_index(data: &Path, new: &Path) -> Result<()> {
    let place = index::path_of(data);
    index::retire(&place)?;
    rename(new, &place)?;
    sync_folder(data)
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| Error::io("cannot rename", e).at(from))
}

/// Completes a switch that was interrupted between data and index: if an index lies beside that was
/// made for this log and knows all of it, it is put in place. True if so. The lock is held.
pub(in crate::store) fn finish_interrupted(
    file: &dyn LogFile,
    data: &Path,
    len: u64,
) -> Result<bool> {
    let beside = index::path_of(&new_path(data));
    if !beside.exists() {
        return Ok(false);
    }
    let fits = || -> Result<bool> {
        let index = Index::open(&beside)?;
        let known = index.meta_number("acknowledged")?;
        Ok(known == Some(len as i64) && belongs(&index, file)?)
    };
    if !fits().unwrap_or(false) {
        return Ok(false);
    }
    place_index(data, &beside)?;
    log::info!(
        "interrupted compaction completed filename=<{}>",
        data.display()
    );
    Ok(true)
}
