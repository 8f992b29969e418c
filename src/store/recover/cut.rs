//! The end of a log: cut behind the last line that belongs, and sealed there.
//!
//! What tearing does not explain is kept before it goes: in a copy of the whole file, beside it. Nothing
//! is synced here but that copy.

use crate::error::{Error, Result};
use crate::store::file::{FileReader, LogFile};
use crate::store::gzip::{last_flush_point, seal_bytes};
use crate::store::index::Index;
use crate::store::reindex::{Good, hash};
use crate::sys::fs::sync_folder;
use crate::util::time::now_ms;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Where the file can end behind the last line that belongs.
pub(super) enum Ending {
    /// Sealed; the new length.
    At(u64),
    /// No flush point stood exactly there: the file was cut to this length, before it, and the
    /// index must be built anew.
    Before(u64),
}

/// Makes the file end, sealed, behind the last line that belongs. Before anything of the first
/// `acknowledged` bytes goes, `keep` is called.
pub(super) fn cut_and_seal(
    file: &dyn LogFile,
    index: &Index,
    good: Good,
    chunk: Option<i64>,
    len: u64,
    acknowledged: u64,
    keep: &dyn Fn() -> Result<()>,
) -> Result<Ending> {
    let fail = |e| Error::io("cannot seal", e);
    let set_len = |to: u64| {
        if to < acknowledged {
            keep()?;
        }
        file.set_len(to).map_err(fail)
    };
    if let Some(end) = good.sealed_end {
        if end < len {
            set_len(end)?;
        }
        return Ok(Ending::At(end));
    }
    let member = FileReader::until(file, good.member, len);
    let Some(point) = last_flush_point(member, good.plain).map_err(fail)? else {
        set_len(good.member)?;
        return Ok(Ending::Before(good.member));
    };
    let cut = good.member + point.compressed;
    let seal = seal_bytes(point.crc, point.plain);
    set_len(cut)?;
    file.write_at(&seal, cut).map_err(fail)?;
    let end = cut + seal.len() as u64;
    if point.plain != good.plain {
        return Ok(Ending::Before(end));
    }
    if let Some(id) = chunk {
        let hash = hash(file, good.member, end - good.member)?;
        index.end_chunk(id, end - good.member, point.plain, &hash)?;
    }
    Ok(Ending::At(end))
}

/// Whether an unsealed file ends at a flush, right behind the last line that belongs.
pub(super) fn ends_flushed(file: &dyn LogFile, good: Good, len: u64) -> Result<bool> {
    let member = FileReader::until(file, good.member, len);
    let point =
        last_flush_point(member, good.plain).map_err(|e| Error::io("cannot read log", e))?;
    Ok(good.sealed_end.is_none()
        && point.is_some_and(|p| p.plain == good.plain && good.member + p.compressed == len))
}

/// Nothing is thrown away because it does not fit: the file as it was stays beside.
pub(super) fn keep_copy(file: &dyn LogFile, path: &Path) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".damaged.{}", now_ms()));
    let copy = PathBuf::from(name);
    let keep = || -> std::io::Result<()> {
        let mut options = std::fs::File::options();
        let mut to = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&copy)?;
        std::io::copy(&mut FileReader::new(file, 0), &mut to)?;
        to.sync_all()
    };
    keep().map_err(|e| Error::io("cannot keep a copy", e).at(&copy))?;
    sync_folder(&copy)?;
    log::warn!(
        "end of log does not read, copy kept filename=<{}> copy=<{}>",
        path.display(),
        copy.display()
    );
    Ok(())
}
