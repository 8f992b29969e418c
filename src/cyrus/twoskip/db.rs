//! A twoskip file with its locks: open, read, transaction, replacement, repack.
//!
//! Promises: every call takes the lock it needs on the file itself (shared to read, exclusive to
//! write, waiting at most [`LOCK_WAIT`]) and then checks that the path still names this file, as the C
//! tools do; a file replaced meanwhile is opened again. Reading never writes. `commit` returns when
//! the change is on disk.
//!
//! Fails with `NotFound`, `Locked`, `Damaged` (names file and offset; the file is kept), `NoSpace`,
//! `Io`, and `Db` for what cannot be stored. Repacks when Cyrus would; a repack that fails costs a
//! line in the log, for the commit before it stands.

use super::Disk;
use super::list::{Condition, Fault, List};
use crate::error::{Error, Kind, Result};
use crate::sys::fs::sync_folder;
use crate::sys::lock::{self, LockKind};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a lock is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(60);
/// How often the file may be replaced under our hands before we give up.
const REPLACED_MAX: u32 = 64;
/// Smaller files are not repacked. The number is Cyrus', odd as it looks.
const REPACK_MIN: u64 = 16834;

impl Disk for File {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match FileExt::read_at(self, &mut buf[done..], at.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => (),
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn sync_all(&mut self) -> io::Result<()> {
        File::sync_all(self)
    }

    fn len(&self) -> io::Result<u64> {
        self.metadata().map(|m| m.len())
    }
}

/// What a database is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Reading only: the file must exist, need not be writable, and is never changed.
    Read,
    /// Reading and writing: the file must exist.
    ReadWrite,
    /// As `ReadWrite`; a missing file is made (mode 0600, folder synced).
    Create,
}

/// An open database. It holds no lock between calls.
#[derive(Debug)]
pub struct Db {
    path: PathBuf,
    mode: OpenMode,
    list: List<File>,
}

impl Db {
    /// Opens the database; one opened for writing is recovered if a writer died.
    pub fn open(path: &Path, mode: OpenMode) -> Result<Db> {
        let mut db = Db {
            path: path.to_owned(),
            mode,
            list: List::new(open_file(path, mode)?),
        };
        let mut condition = db.shared(|list| list.load())?;
        if condition != Condition::Clean && mode != OpenMode::Read {
            let held = db.lock(LockKind::Write)?;
            condition = held.db.ready()?;
        }
        log::debug!(
            "opened filename=<{}> condition=<{condition:?}>",
            path.display()
        );
        Ok(db)
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it was opened for.
    pub fn mode(&self) -> OpenMode {
        self.mode
    }

    /// The committed value of `key`.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.shared(|list| list.get(key))
    }

    /// Calls `f` with every key that begins with `prefix` and its value, in order, until it fails.
    ///
    /// One shared lock is held throughout, so this is a snapshot and writers wait for its end.
    pub fn for_each(
        &mut self,
        prefix: &[u8],
        mut f: impl FnMut(&[u8], &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut stopped = Ok(());
        self.shared(|list| {
            list.for_each(prefix, |key, value| {
                stopped = f(key, value);
                stopped.is_ok()
            })
        })?;
        stopped
    }

    /// Proves order, checksums, pointers and count of the whole file, under a shared lock.
    ///
    /// `Ok(false)`: nothing is lost, but a dead writer's leavings wait for the next writer.
    pub fn check(&mut self) -> Result<bool> {
        self.shared(|list| {
            if list.load()? == Condition::Unclean {
                return Ok(false);
            }
            list.check().map(|()| true)
        })
    }

    /// Begins a transaction: takes the write lock and holds it until its end.
    pub fn begin(&mut self) -> Result<Txn<'_>> {
        if self.mode == OpenMode::Read {
            let e = Error::new(Kind::Internal, "database was opened for reading only");
            return Err(e.at(&self.path));
        }
        let held = self.lock(LockKind::Write)?;
        held.db.ready()?;
        Ok(Txn { held })
    }

    /// Loads under the write lock and makes the file fit to be changed.
    fn ready(&mut self) -> Result<Condition> {
        let list = &mut self.list;
        let result = list.load().and_then(|condition| {
            match condition {
                Condition::Clean => (),
                Condition::Unclean => list.recover()?,
                Condition::Unborn => list.create()?,
            }
            Ok(condition)
        });
        if let Ok(Condition::Unclean) = result {
            log::warn!("recovered after a crash filename=<{}>", self.path.display());
        }
        result.map_err(|e| self.fail(e))
    }

    fn shared<T>(
        &mut self,
        f: impl FnOnce(&mut List<File>) -> std::result::Result<T, Fault>,
    ) -> Result<T> {
        let held = self.lock(LockKind::Read)?;
        let list = &mut held.db.list;
        let result = list.load().and_then(|_| f(list));
        result.map_err(|e| held.db.fail(e))
    }

    fn lock(&mut self, kind: LockKind) -> Result<Held<'_>> {
        let fail = |e| Error::io("cannot lock", e);
        for _ in 0..REPLACED_MAX {
            match lock::lock_wait(self.list.disk(), kind, Some(LOCK_WAIT)) {
                Ok(true) => (),
                Ok(false) => {
                    let e = Error::new(Kind::Locked, "locked: held by another process");
                    return Err(e.at(&self.path));
                }
                Err(e) => return Err(fail(e).at(&self.path)),
            }
            match is_named(self.list.disk(), &self.path) {
                Ok(true) => return Ok(Held { db: self }),
                Ok(false) => (),
                Err(e) => {
                    drop(Held { db: self });
                    return Err(fail(e).at(&self.path));
                }
            }
            let reopened = open_file(&self.path, self.mode);
            drop(Held { db: self });
            self.list = List::new(reopened?);
        }
        let e = Error::new(
            Kind::Locked,
            "cannot lock: the file is being replaced all the time",
        );
        Err(e.at(&self.path))
    }

    fn fail(&self, fault: Fault) -> Error {
        match fault {
            Fault::Io(e) => Error::io("database", e).at(&self.path),
            Fault::Bad { at, why } => Error::new(Kind::Damaged, "database is damaged")
                .at(&self.path)
                .place(format!("offset {at}"))
                .place(why),
            Fault::Refused(why) => Error::new(Kind::Db, why).at(&self.path),
        }
    }

    /// Writes the file anew without its dead records and replaces it. Needs the write lock, which
    /// ends with the old file.
    fn repack(&mut self) -> Result<()> {
        // Where the path is a symbolic link, the file it leads to is replaced.
        let target = fs::canonicalize(&self.path)
            .map_err(|e| Error::io("cannot repack", e).at(&self.path))?;
        let mut name = target.clone().into_os_string();
        name.push(".NEW");
        let new_path = PathBuf::from(name);
        let result = self.write_repacked(&new_path, &target);
        match result {
            Ok(list) => {
                self.list = list;
                sync_folder(&target)
            }
            Err(e) => {
                let _ = fs::remove_file(&new_path);
                Err(e)
            }
        }
    }

    fn write_repacked(&mut self, new_path: &Path, target: &Path) -> Result<List<File>> {
        let fail = |e| Error::io("cannot repack", e).at(new_path);
        self.list.check().map_err(|e| self.fail(e))?;
        match fs::remove_file(new_path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(fail(e)),
            _ => (),
        }
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(new_path)
            .map_err(fail)?;
        // A file owned by root would lock the other Cyrus processes out.
        let (old, new) = (self.list.disk().metadata(), file.metadata());
        let (old, new) = (old.map_err(fail)?, new.map_err(fail)?);
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            fchown(&file, Some(old.uid()), Some(old.gid())).map_err(fail)?;
        }
        file.set_permissions(Permissions::from_mode(old.mode() & 0o777))
            .map_err(fail)?;

        let mut list = List::new(file);
        let generation = self.list.header().generation.saturating_add(1);
        list.create()
            .and_then(|()| self.list.copy_to(&mut list))
            .and_then(|()| list.set_repacked(generation))
            .and_then(|()| list.commit())
            .and_then(|()| list.check())
            .map_err(|e| self.fail(e).place(new_path.display().to_string()))?;
        fs::rename(new_path, target).map_err(fail)?;
        Ok(list)
    }
}

/// A lock held on the database; ends with it.
struct Held<'a> {
    db: &'a mut Db,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // It fails only for a descriptor that is no longer open, and then there is no lock.
        let _ = lock::unlock(self.db.list.disk());
    }
}

/// A transaction: the write lock and the changes made so far. Dropping it undoes them.
pub struct Txn<'a> {
    held: Held<'a>,
}

impl Txn<'_> {
    /// The value of `key`, with the changes made so far.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let db = &*self.held.db;
        db.list.get(key).map_err(|e| db.fail(e))
    }

    /// Stores `value` under `key` (not empty), new or not. After an error only `abort` makes sense.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let result = self.held.db.list.put(key, value);
        result.map_err(|e| self.held.db.fail(e))
    }

    /// Removes `key`; whether it was there. After an error only `abort` makes sense.
    pub fn delete(&mut self, key: &[u8]) -> Result<bool> {
        let result = self.held.db.list.delete(key);
        result.map_err(|e| self.held.db.fail(e))
    }

    /// Makes the changes durable and unlocks; without changes nothing is written. On an error they
    /// are undone.
    pub fn commit(self) -> Result<()> {
        let db = &mut *self.held.db;
        let result = db.list.commit();
        result.map_err(|e| db.fail(e))?;
        let (size, packed) = (db.list.header().current_size, db.list.header().repack_size);
        if size > REPACK_MIN && size > packed.saturating_mul(2) {
            if let Err(e) = db.repack() {
                log::warn!("repack failed filename=<{}> error=<{e}>", db.path.display());
            }
        }
        Ok(())
    }

    /// Undoes the changes and unlocks.
    pub fn abort(self) -> Result<()> {
        let db = &mut *self.held.db;
        let result = db.list.abort();
        result.map_err(|e| db.fail(e))
    }
}

impl Drop for Txn<'_> {
    fn drop(&mut self) {
        let db = &mut *self.held.db;
        if let Err(e) = db.list.abort() {
            // Still marked dirty: the next writer recovers it.
            let path = db.path.display();
            log::error!("IOERROR: cannot undo a transaction filename=<{path}> error=<{e:?}>");
        }
    }
}

fn open_file(path: &Path, mode: OpenMode) -> Result<File> {
    let fail = |e| Error::io("cannot open database", e).at(path);
    let mut options = File::options();
    options.read(true).write(mode != OpenMode::Read).mode(0o600);
    for _ in 0..REPLACED_MAX {
        match options.create_new(false).open(path) {
            Ok(file) if file.metadata().map_err(fail)?.is_file() => return Ok(file),
            Ok(_) => return Err(fail(io::Error::other("not a regular file"))),
            Err(e) if e.kind() == io::ErrorKind::NotFound && mode == OpenMode::Create => (),
            Err(e) => return Err(fail(e)),
        }
        match options.create_new(true).open(path) {
            Ok(file) => {
                sync_folder(path)?;
                return Ok(file);
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => (),
            Err(e) => return Err(fail(e)),
        }
    }
    Err(fail(io::Error::other("it comes and goes")))
}

/// Whether `path` still names `file`; a path that names nothing does not.
fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(theirs) => Ok(ours.ino() == theirs.ino() && ours.dev() == theirs.dev()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}
