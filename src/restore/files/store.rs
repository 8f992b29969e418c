//! Where the files of an export go: a directory, or an archive that is written in one piece.
//!
//! A [`Store`] never changes a file that is there. Paths are relative, `/` between components, and
//! were made safe by `names`.

use crate::error::{Error, Result};
use crate::util::time::now;
use sha2::{Digest, Sha256};
use std::io::{self, Write};

/// SHA-256 of a file.
pub type Hash = [u8; 32];

/// Writes the bytes of a file.
pub type Fill<'a> = dyn FnMut(&mut dyn Write) -> Result<()> + 'a;

/// Takes files.
pub trait Store {
    /// Names of the files in a folder of the tree; `None` if there is no such folder.
    fn list(&mut self, dir: &str) -> Result<Option<Vec<String>>>;

    /// What a small file holds that is there already.
    fn digest(&mut self, path: &str) -> Result<Option<Hash>>;

    /// Puts a file that is not there. `size` must be right, `mtime` is in seconds. If `fill` fails
    /// before it has written anything, there is no file and the next may be put.
    fn put(&mut self, path: &str, size: u64, mtime: i64, fill: &mut Fill<'_>) -> Result<()>;

    /// Files that were put and are not yet sure to be there, and their bytes.
    fn waiting(&self) -> (u64, u64);

    /// Everything put so far is there and durable when this returns.
    fn settle(&mut self) -> Result<()>;

    /// Ends in order.
    fn finish(&mut self) -> Result<()>;
}

/// Puts a document, unless it is there with just these bytes. One with others is left alone, and the
/// new one is called `STEM.2.EXT`, `STEM.3.EXT`, ... Returns whether anything was put.
pub fn document(
    store: &mut dyn Store,
    stem: &str,
    ext: &str,
    mtime: Option<i64>,
    write: &dyn Fn(&mut dyn Write) -> io::Result<()>,
) -> Result<bool> {
    let Some((path, size)) = free(store, stem, ext, write)? else {
        return Ok(false);
    };
    let mtime = mtime.unwrap_or_else(|| now().0);
    let fail = |e| Error::io("cannot write", e);
    store.put(&path, size, mtime, &mut |w| write(w).map_err(fail))?;
    Ok(true)
}

/// Where a document is to be put, and its bytes; `None` if it is there.
pub fn free(
    store: &mut dyn Store,
    stem: &str,
    ext: &str,
    write: &dyn Fn(&mut dyn Write) -> io::Result<()>,
) -> Result<Option<(String, u64)>> {
    let mut sum = Sum::default();
    write(&mut sum).map_err(|e| Error::io("cannot write", e))?;
    let size = sum.size;
    let hash: Hash = sum.hash.finalize().into();
    for version in 1u32.. {
        let path = match version {
            1 => format!("{stem}.{ext}"),
            n => format!("{stem}.{n}.{ext}"),
        };
        match store.digest(&path)? {
            Some(there) if there == hash => return Ok(None),
            Some(_) => {}
            None => return Ok(Some((path, size))),
        }
    }
    Ok(None)
}

/// Counts and hashes what is written.
#[derive(Default)]
pub struct Sum {
    /// Bytes.
    pub size: u64,
    /// Their hash.
    pub hash: Sha256,
}

impl Write for Sum {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.size += bytes.len() as u64;
        self.hash.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
