//! Space on a file system, whether anything can be written there, and making names durable.

use crate::error::{Error, Result};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What statvfs tells of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// Free to processes that are not root, in KiB.
    pub free_kib: u64,
    /// All of it, in KiB.
    pub total_kib: u64,
    /// Tells file systems apart.
    pub fsid: u64,
}

/// Measures the file system a path is on. Blocks if that one does.
pub fn measure(path: &Path) -> io::Result<FileSystem> {
    let path = CString::new(path.as_os_str().as_bytes())
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    let mut stat = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` is NUL-terminated, `stat` writable and of the right type.
    if unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: filled in by a call that succeeded.
    let stat = unsafe { stat.assume_init() };
    // The widths of these fields differ between machines.
    #[allow(clippy::unnecessary_cast)]
    let [free, total, block, fsid] = [
        stat.f_bavail as u64,
        stat.f_blocks as u64,
        stat.f_frsize as u64,
        stat.f_fsid as u64,
    ];
    let kib = |blocks: u64| {
        let bytes = u128::from(blocks) * u128::from(block);
        u64::try_from(bytes >> 10).unwrap_or(u64::MAX)
    };
    Ok(FileSystem {
        free_kib: kib(free),
        total_kib: kib(total),
        fsid,
    })
}

/// Makes the names in the folder that a file is in durable.
pub fn sync_folder(file: &Path) -> Result<()> {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|e| Error::io("cannot sync folder", e).at(folder))
}

/// Whether this process, as who it is now, may write to a file, or make files in a folder.
pub fn is_writable(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: `path` is NUL-terminated; nothing is written to.
    unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::W_OK, libc::AT_EACCESS) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_working_folder_has_room() {
        let here = measure(Path::new(".")).unwrap();
        assert!(here.free_kib <= here.total_kib && here.total_kib > 0);
        assert_eq!(measure(Path::new("./src")).unwrap().fsid, here.fsid);
        let e = measure(Path::new("/no/such/folder")).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::NotFound);
        assert!(measure(Path::new("a\0b")).is_err());
        assert!(is_writable(&std::env::temp_dir()));
        for path in ["/proc/self/stat/x", "/no/such/folder", "a\0b"] {
            assert!(!is_writable(Path::new(path)), "{path}");
        }
    }
}
