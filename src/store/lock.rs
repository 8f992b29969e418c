//! The lock of a backup: an open-file-description write lock on its data file.
//!
//! Promises: while a `DataLock` lives, no other session, process or old C tool holds the backup, and
//! the locked file is the one its path names (a file replaced while we waited is opened again). It
//! ends with `Drop`. Readers take no lock.
//!
//! Fails with `NotFound` (no such data file), `Exists` (`Create::New`), `Locked` (with the holder
//! where it can be found), `Io`. A created file is empty, mode 0600, and its folder is synced.
//! The C side is Cyrus 3.6 `backup/lcb.c`, which locks the data file with `fcntl`.

use crate::error::{Error, Kind, Result};
use crate::sys::fs::sync_folder;
use crate::sys::lock::{self, Holder, LockKind};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a file may be replaced under our hands before we give up.
const REPLACED_MAX: u32 = 64;
/// The longest the search for a holder may take.
const SEARCH_MAX: Duration = Duration::from_secs(1);

/// How long to wait for somebody else's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// About this long.
    For(Duration),
    /// As long as it takes.
    Forever,
}

/// Whether the data file may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Create {
    /// It must exist.
    No,
    /// It is made empty if it does not exist.
    IfMissing,
    /// It must not exist and is made empty.
    New,
}

/// The held lock and the open data file; dropping it unlocks.
#[derive(Debug)]
pub struct DataLock {
    file: File,
    path: PathBuf,
}

impl DataLock {
    /// Opens the data file for reading and writing and takes its lock; blocks as `wait` says.
    pub fn acquire(path: &Path, wait: Wait, create: Create) -> Result<DataLock> {
        let deadline = match wait {
            Wait::No => Some(Instant::now()),
            Wait::For(limit) => Instant::now().checked_add(limit),
            Wait::Forever => None,
        };
        let mut create = create;
        for _ in 0..REPLACED_MAX {
            let file = open(path, create)?;
            if create == Create::New {
                // It was new: from now on it may be any file of that name.
                create = Create::IfMissing;
            }
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            let locked = lock::lock_wait(&file, LockKind::Write, left)
                .map_err(|e| Error::io("cannot lock", e).at(path))?;
            if !locked {
                return Err(locked_by(&file, path));
            }
            if is_named(&file, path).map_err(|e| Error::io("cannot lock", e).at(path))? {
                let path = path.to_owned();
                return Ok(DataLock { file, path });
            }
        }
        Err(Error::new(
            Kind::Locked,
            "cannot lock: the file is being replaced all the time",
        )
        .at(path))
    }

    /// The locked data file, open for reading and writing.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn open(path: &Path, create: Create) -> Result<File> {
    let fail = |e| Error::io("cannot open", e).at(path);
    let mut options = File::options();
    options.read(true).write(true).mode(0o600);
    for _ in 0..REPLACED_MAX {
        if create != Create::New {
            match options.create_new(false).open(path) {
                Ok(file) => return regular(file, path),
                Err(e) if e.kind() == io::ErrorKind::NotFound && create == Create::IfMissing => (),
                Err(e) => return Err(fail(e)),
            }
        }
        match options.create_new(true).open(path) {
            Ok(file) => {
                sync_folder(path)?;
                return Ok(file);
            }
            // Made by somebody else in between.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && create != Create::New => (),
            Err(e) => return Err(fail(e)),
        }
    }
    Err(fail(io::Error::other("it comes and goes")))
}

fn regular(file: File, path: &Path) -> Result<File> {
    let meta = file
        .metadata()
        .map_err(|e| Error::io("cannot open", e).at(path))?;
    if meta.is_file() {
        Ok(file)
    } else {
        Err(Error::new(Kind::Io, "cannot open: not a regular file").at(path))
    }
}

/// Whether `path` still names `file`.
fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(theirs) => Ok(ours.ino() == theirs.ino() && ours.dev() == theirs.dev()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

fn locked_by(file: &File, path: &Path) -> Error {
    let pid = match lock::holder(file) {
        Ok(Holder::Process(pid)) => Some(pid),
        Ok(Holder::Nobody) | Err(_) => None,
        Ok(Holder::Description) => search_holder(file),
    };
    let who = match pid {
        Some(pid) if pid == std::process::id() => "held by another session of this process".into(),
        Some(pid) => match fs::read_to_string(format!("/proc/{pid}/comm")) {
            Ok(name) => format!("held by process {pid} ({})", name.trim_end()),
            Err(_) => format!("held by process {pid}"),
        },
        None => "held by another process".into(),
    };
    Error::new(Kind::Locked, format!("locked: {who}")).at(path)
}

/// Looks through the descriptors of all processes we may look into for a lock on this file.
///
/// The system names no owner of a description lock; only a descriptor's own page shows it.
fn search_holder(file: &File) -> Option<u32> {
    let start = Instant::now();
    let meta = file.metadata().ok()?;
    for process in fs::read_dir("/proc").ok()?.flatten() {
        if start.elapsed() > SEARCH_MAX {
            return None;
        }
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        for fd in descriptors.flatten() {
            let same = fs::metadata(fd.path())
                .is_ok_and(|m| m.ino() == meta.ino() && m.dev() == meta.dev());
            if !same {
                continue;
            }
            let page = process.path().join("fdinfo").join(fd.file_name());
            if fs::read_to_string(page).is_ok_and(|text| shows_lock(&text)) {
                return Some(pid);
            }
        }
    }
    None
}

/// Whether a page of /proc/PID/fdinfo shows a record lock held through that descriptor.
fn shows_lock(page: &str) -> bool {
    page.lines()
        .filter_map(|line| line.strip_prefix("lock:"))
        .any(|lock| lock.contains("OFDLCK") || lock.contains("POSIX"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path =
            std::env::temp_dir().join(format!("cyr_backup-lock-{}-{name}", std::process::id()));
        let _ = fs::remove_file(&path);
        path
    }

    #[test]
    fn one_holder_at_a_time_and_the_holder_is_named() {
        let path = scratch("one");
        let first = DataLock::acquire(&path, Wait::No, Create::IfMissing).unwrap();
        let e = DataLock::acquire(&path, Wait::No, Create::No).unwrap_err();
        assert_eq!(e.kind(), Kind::Locked);
        assert!(e.to_string().contains("this process"), "{e}");
        let start = Instant::now();
        let wait = Wait::For(Duration::from_millis(80));
        assert_eq!(
            DataLock::acquire(&path, wait, Create::No)
                .unwrap_err()
                .kind(),
            Kind::Locked
        );
        assert!(start.elapsed() >= Duration::from_millis(80));
        drop(first);
        let again = DataLock::acquire(&path, Wait::No, Create::No).unwrap();
        assert_eq!(again.path(), path);
        assert_eq!(again.file().metadata().unwrap().mode() & 0o777, 0o600);
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_description_lock_of_another_process_names_it() {
        let path = scratch("other");
        let lock = DataLock::acquire(&path, Wait::No, Create::New).unwrap();
        // The child shares the description and so keeps the lock when we close ours.
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .stdin(lock.file().try_clone().unwrap())
            .spawn()
            .unwrap();
        drop(lock);
        let e = DataLock::acquire(&path, Wait::No, Create::No).unwrap_err();
        child.kill().unwrap();
        child.wait().unwrap();
        let who = format!("held by process {} (sleep)", child.id());
        assert!(e.to_string().contains(&who), "{e}");
        DataLock::acquire(&path, Wait::No, Create::No).unwrap();
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn missing_existing_and_odd_files() {
        let path = scratch("kinds");
        let kind = |c| DataLock::acquire(&path, Wait::No, c).unwrap_err().kind();
        assert_eq!(kind(Create::No), Kind::NotFound);
        assert!(!path.exists());
        drop(DataLock::acquire(&path, Wait::No, Create::New).unwrap());
        assert_eq!(kind(Create::New), Kind::Exists);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(kind(Create::No), Kind::Io);
        assert_eq!(kind(Create::IfMissing), Kind::Io);
        fs::remove_dir(&path).unwrap();
    }

    #[test]
    fn a_file_replaced_while_we_wait_is_opened_again() {
        let path = scratch("swap");
        let new = scratch("swap.new");
        let old = DataLock::acquire(&path, Wait::No, Create::New).unwrap();
        fs::write(&new, b"new").unwrap();
        let waiting = {
            let path = path.clone();
            std::thread::spawn(move || DataLock::acquire(&path, Wait::Forever, Create::No))
        };
        std::thread::sleep(Duration::from_millis(30));
        fs::rename(&new, &path).unwrap();
        drop(old);
        let got = waiting.join().unwrap().unwrap();
        assert_eq!(got.file().metadata().unwrap().len(), 3);
        drop(got);
        // Unlinked while we wait: not there, unless it may be made again.
        let old = DataLock::acquire(&path, Wait::No, Create::No).unwrap();
        let waiting = {
            let path = path.clone();
            let wait = Wait::For(Duration::from_secs(20));
            std::thread::spawn(move || DataLock::acquire(&path, wait, Create::No))
        };
        std::thread::sleep(Duration::from_millis(30));
        fs::remove_file(&path).unwrap();
        drop(old);
        assert_eq!(waiting.join().unwrap().unwrap_err().kind(), Kind::NotFound);
    }

    #[test]
    fn lock_lines_are_recognised() {
        assert!(shows_lock(
            "pos:\t0\nflags:\t02\nlock:\t1: OFDLCK  ADVISORY  WRITE -1 00:19:77 0 EOF\n"
        ));
        assert!(!shows_lock(
            "pos:\t0\nlock:\t1: FLOCK  ADVISORY  WRITE 4 00:19:77 0 EOF\n"
        ));
        assert!(!shows_lock("pos:\t0\nino:\t77\n"));
    }
}
