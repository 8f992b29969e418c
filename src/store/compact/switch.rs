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
use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
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

/// Gives a new pair the modes and the groups of the old one: a group may be allowed to copy it. One
/// that we may not give has no use of its bits, and another one must not have them.
pub(super) fn like(data: &Path, log: &Path, index: &Path) -> Result<()> {
    for (old, new) in [(data, log), (&index::path_of(data), index)] {
        let fail = |e| Error::io("cannot set the mode", e).at(new);
        let Ok(was) = fs::metadata(old) else {
            continue;
        };
        let is = fs::metadata(new).map_err(fail)?;
        let mut mode = was.mode() & 0o777;
        if was.gid() != is.gid() && chown(new, None, Some(was.gid())).is_err() {
            mode &= 0o707;
        }
        if mode != is.mode() & 0o777 {
            fs::set_permissions(new, Permissions::from_mode(mode)).map_err(fail)?;
        }
    }
    Ok(())
}

/// Gives the old log a further name, its own with `mark` and a number behind: this one, or the next
/// that is free. One that an interrupted run has given it already is fine.
pub(super) fn keep(data: &Path, mark: &str, number: i64) -> Result<PathBuf> {
    let mut number = number;
    loop {
        let mut name = data.as_os_str().to_owned();
        name.push(format!("{mark}{number}"));
        let name = PathBuf::from(name);
        let fail = |e| Error::io("cannot keep the old log", e).at(&name);
        match fs::hard_link(data, &name) {
            Ok(()) => return Ok(name),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                let ours = fs::metadata(data).map_err(fail)?;
                let theirs = fs::symlink_metadata(&name).map_err(fail)?;
                if (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()) {
                    return Ok(name);
                }
            }
            Err(e) => return Err(fail(e)),
        }
        number = number.saturating_add(1);
    }
}

/// Whether the new log is still the file that was `made`; else that is `Locked`.
pub(super) fn check(data: &Path, made: &File) -> Result<()> {
    let log = new_path(data);
    let fail = |e| Error::io("cannot look at", e).at(&log);
    let (is, was) = (fs::symlink_metadata(&log), made.metadata());
    let (is, was) = (is.map_err(fail)?, was.map_err(fail)?);
    if (is.dev(), is.ino()) != (was.dev(), was.ino()) {
        return Err(Error::new(Kind::Locked, "is not what was made").at(&log));
    }
    Ok(())
}

/// Switches. `new` is a closed, synced index; the new log is synced, and [`check`]ed. Both locks are held.
pub(super) fn switch(data: &Path, new: &Path) -> Result<()> {
    rename(&new_path(data), data)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_log_gets_a_name_that_is_its_own() {
        let dir = std::env::temp_dir().join(format!("cyr_backup-switch-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let data = dir.join("log");
        fs::write(&data, "one").unwrap();
        assert_eq!(keep(&data, ".", 7).unwrap(), dir.join("log.7"));
        // The same after a kill between this and the switch.
        assert_eq!(keep(&data, ".", 7).unwrap(), dir.join("log.7"));
        fs::remove_file(&data).unwrap();
        fs::write(&data, "two").unwrap();
        // Once more in that second.
        assert_eq!(keep(&data, ".", 7).unwrap(), dir.join("log.8"));
        assert_eq!(fs::read(dir.join("log.7")).unwrap(), b"one");
        fs::remove_file(&data).unwrap();
        assert_eq!(keep(&data, ".", 9).unwrap_err().kind(), Kind::NotFound);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn only_what_was_made_takes_the_place() {
        let dir = std::env::temp_dir().join(format!("cyr_backup-made-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let data = dir.join("log");
        let (log, index) = (new_path(&data), index::path_of(&new_path(&data)));
        for (path, text) in [(&data, "old"), (&log, "made"), (&index, "index")] {
            fs::write(path, text).unwrap();
        }
        let made = File::open(&log).unwrap();
        fs::rename(&log, dir.join("away")).unwrap();
        let gone = check(&data, &made).unwrap_err();
        assert_eq!(gone.kind(), Kind::NotFound);
        fs::write(&log, "another").unwrap();
        let other = check(&data, &made).unwrap_err();
        assert_eq!(other.kind(), Kind::Locked);
        assert_eq!(fs::read(&data).unwrap(), b"old");
        fs::rename(dir.join("away"), &log).unwrap();
        check(&data, &made).unwrap();
        switch(&data, &index).unwrap();
        assert_eq!(fs::read(&data).unwrap(), b"made");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn modes_are_kept() {
        let dir = std::env::temp_dir().join(format!("cyr_backup-like-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let data = dir.join("log");
        let (log, index) = (new_path(&data), index::path_of(&new_path(&data)));
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        for path in [&data, &log, &index] {
            fs::write(path, "").unwrap();
            fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
        }
        fs::set_permissions(&data, Permissions::from_mode(0o640)).unwrap();
        // The old index is missing: nothing is known of it.
        like(&data, &log, &index).unwrap();
        assert_eq!((mode(&log), mode(&index)), (0o640, 0o600));
        fs::write(index::path_of(&data), "").unwrap();
        fs::set_permissions(index::path_of(&data), Permissions::from_mode(0o440)).unwrap();
        like(&data, &log, &index).unwrap();
        assert_eq!((mode(&log), mode(&index)), (0o640, 0o440));
        fs::remove_dir_all(&dir).unwrap();
    }
}
