//! What a compaction that was killed has left beside a log: `<log>.new` and its index.
//!
//! The next one that has something to do writes over it. Where there is nothing to do it is removed, but
//! never while somebody compacts: he holds the lock of `<log>.new` or, in the middle of the switch,
//! when the index alone is left, that of the log.

use super::new_path;
use crate::error::{Error, Kind, Result};
use crate::store::index;
use crate::store::lock::{Create, DataLock, Wait};
use crate::sys::fs::sync_folder;
use std::fs;
use std::path::Path;

/// Whether something lies beside a log that a compaction is making, or has left.
pub fn is_left(data: &Path) -> bool {
    let new = new_path(data);
    index::path_of(&new).exists() || new.exists()
}

/// Removes it, if nobody is at work. The log itself has been opened, with an index that belongs to it.
pub(super) fn tidy(data: &Path) -> Result<()> {
    if !is_left(data) {
        return Ok(());
    }
    let new = new_path(data);
    let lock = match DataLock::acquire(&new, Wait::No, Create::No) {
        Err(e) if e.kind() == Kind::NotFound => DataLock::acquire(data, Wait::No, Create::No),
        lock => lock,
    };
    let lock = match lock {
        Ok(lock) => lock,
        Err(e) if matches!(e.kind(), Kind::Locked | Kind::NotFound) => return Ok(()),
        Err(e) => return Err(e),
    };
    let is_new = lock.path() == new;
    if !is_new && new.exists() {
        // Just begun by somebody.
        return Ok(());
    }
    index::remove(&index::path_of(&new))?;
    if is_new {
        fs::remove_file(&new).map_err(|e| Error::io("cannot remove", e).at(&new))?;
    }
    sync_folder(data)?;
    drop(lock);
    log::info!(
        "removed what a killed compaction left filename=<{}>",
        new.display()
    );
    Ok(())
}
