//! Reading where nothing can be made or written: a copy on a medium, a snapshot, somebody else's file.
//!
//! SQLite makes files beside an index that others may use, and repairs write to log and index. Here
//! an index at rest is read without either; one that was left with a write-ahead log is copied to a
//! scratch folder with it; one that is missing or does not fit is made there from the log, for as
//! long as the reader lives. The backup must not be written to meanwhile. Fails as [`Reader::open`],
//! and with `Damaged` if the file is no log.

use super::{Reader, Stale};
use crate::error::{Error, Kind, Result};
use crate::store::ahead::Help;
use crate::store::index::{self, Index};
use crate::store::reindex::{self, From, Trailing};
use crate::store::verify::scratch_name;
use crate::sys::fs::is_writable;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Threads that inflate.
const THREADS: usize = 2;

/// An index in a scratch folder; it goes with this.
pub(super) struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = index::remove(&self.0);
    }
}

impl Reader {
    /// As [`Reader::open`]; where that is not possible because nothing can be written there, the
    /// backup is read as it lies. `scratch` is a folder for files that are thrown away.
    pub fn open_anywhere(path: &Path, stale: Stale, scratch: &Path) -> Result<Reader> {
        if is_writable(folder(path)) {
            match Reader::open(path, stale) {
                // A repair was refused because the log is not ours to write to.
                Err(_) if path.exists() && !is_writable(path) => {}
                opened => return opened,
            }
        }
        match at_rest(path, scratch) {
            Err(e) if e.kind() == Kind::NeedsReindex => made(path, scratch),
            opened => opened,
        }
    }

    /// Opens a log that nobody writes to, and changes and makes nothing beside it: with the index that it
    /// has if that fits, else with one that is made in `scratch`.
    pub fn open_apart(path: &Path, scratch: &Path) -> Result<Reader> {
        at_rest(path, scratch).or_else(|_| made(path, scratch))
    }

    /// Opens a backup with the index that it has, and repairs nothing.
    pub fn open_as_is(path: &Path, scratch: &Path) -> Result<Reader> {
        match is_writable(folder(path)) {
            true => Reader::open(path, Stale::Refuse),
            false => at_rest(path, scratch),
        }
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn file_at(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| Error::io("cannot open", e).at(path))
}

fn name_in(scratch: &Path) -> Result<Scratch> {
    fs::create_dir_all(scratch).map_err(|e| Error::io("cannot make folder", e).at(scratch))?;
    Ok(Scratch(scratch.join(scratch_name("copy"))))
}

fn with_wal(index: &Path) -> PathBuf {
    let mut wal = index.as_os_str().to_owned();
    wal.push("-wal");
    wal.into()
}

/// With the index that lies there.
fn at_rest(path: &Path, scratch: &Path) -> Result<Reader> {
    let file = file_at(path)?;
    let index_path = index::path_of(path);
    let wal = with_wal(&index_path);
    if !fs::metadata(&wal).is_ok_and(|m| m.len() > 0) {
        return Ok(Reader::with(path, file, Index::open_still(&index_path)?)?.0);
    }
    let copy = name_in(scratch)?;
    for (from, to) in [(&index_path, &copy.0), (&wal, &with_wal(&copy.0))] {
        fs::copy(from, to).map_err(|e| Error::io("cannot copy", e).at(from))?;
    }
    let (mut reader, _) = Reader::with(path, file, Index::open_read_only(&copy.0)?)?;
    reader._scratch = Some(copy);
    Ok(reader)
}

/// With an index that is made from the log now.
fn made(path: &Path, scratch: &Path) -> Result<Reader> {
    let file = file_at(path)?;
    let len = file.metadata();
    let len = len.map_err(|e| Error::io("cannot read", e).at(path))?.len();
    let place = name_in(scratch)?;
    let index = Index::create_apart(&place.0)?;
    index.begin()?;
    let from = From {
        member: 0,
        known: None,
    };
    let help = Help::threads(THREADS);
    let entered = reindex::enter_with(help, &file, &index, from, len, Trailing::Keep)
        .map_err(|e| e.at(path))?;
    if entered.good.is_none() && len > 0 {
        return Err(Error::new(Kind::Damaged, "nothing of it reads as a log").at(path));
    }
    for (at, what) in &entered.damage {
        log::warn!(
            "log finding filename=<{}> offset={at} reason=<{what}>",
            path.display()
        );
    }
    if index.meta_text("generation")?.is_none() {
        index.set_meta("generation", "")?;
    }
    index.set_meta("acknowledged", len as i64)?;
    index.commit()?;
    index.give()?;
    Ok(Reader {
        index: Index::open_read_only(&place.0)?,
        file,
        path: path.to_owned(),
        _lock: None,
        _scratch: Some(place),
    })
}
