//! What all sessions share: configuration, names, catalogue, logins, which never change, and who
//! waits for whom.

use super::auth::Authenticator;
use super::wanted::Wanted;
use crate::cyrus::config::Config;
use crate::cyrus::mboxname::{MboxName, Namespace, Owner, canonical_userid};
use crate::cyrus::partition::{Space, choose, dir_hash, file_stem};
use crate::error::{Error, Kind, Result};
use crate::store::backup::{Backup, Settings};
use crate::store::catalog::Catalog;
use crate::store::file::LogFile;
use crate::store::former;
use crate::store::index::{self, Index};
use crate::store::lock::{Create, DataLock, Wait};
use crate::store::orphan;
use crate::store::reader::{self, Reader, Stale};
use crate::sys::fs::sync_folder;
use crate::util::time;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a backup may be moved, deleted or set aside under our hands before we give up.
const TRIES: u32 = 5;

/// Shared by all sessions.
pub struct Shared {
    /// imapd.conf.
    pub config: Config,
    /// How names are read.
    pub ns: Namespace,
    /// backups.db.
    pub catalog: Catalog,
    /// Logins.
    pub auth: Authenticator,
    /// How backups are written.
    pub settings: Settings,
    /// How long a locked backup is waited for.
    pub lock_wait: Duration,
    /// Where nameless files are made.
    pub staging: PathBuf,
    /// Backups that sessions wait for.
    pub wanted: Wanted,
}

impl Shared {
    /// Whose backup a mailbox belongs to.
    pub fn owner_of(&self, mboxname: &str) -> Result<String> {
        Ok(MboxName::parse(mboxname, &self.ns)?.owner().key())
    }

    /// The key of a userid from the wire.
    pub fn user_key(&self, userid: &str) -> Result<String> {
        Ok(Owner::User(canonical_userid(userid, &self.ns)?).key())
    }

    /// Asks a backup's index something; `None` if there is no such backup. The question may come
    /// twice: what the first answer was good for is then forgotten.
    pub fn ask<T>(
        &self,
        key: &str,
        question: &mut dyn FnMut(&Index, &dyn LogFile) -> Result<T>,
    ) -> Result<Option<T>> {
        let Some(path) = self.lookup(key)? else {
            return Ok(None);
        };
        let mut ask = || {
            if let Some(answer) = reader::ask_still(&path, question)? {
                return Ok(Some(answer));
            }
            match self.reader(key)? {
                Some(reader) => question(reader.index(), reader.file()).map(Some),
                None => Ok(None),
            }
        };
        match ask() {
            Err(e) if e.kind() == Kind::NeedsReindex => {
                // Damaged where opening does not look. Who holds the lock finds out himself.
                log::error!("DBERROR: index is made anew user=<{key}> error=<{e}>");
                Backup::reindex(&path, key, Wait::No, self.settings, 2, Box::new(|_| ()))?
                    .finish()?;
                ask()
            }
            answer => answer,
        }
    }

    /// A reader of a backup; `None` if there is no such backup.
    pub fn reader(&self, key: &str) -> Result<Option<Reader>> {
        for _ in 0..TRIES {
            let Some(path) = self.lookup(key)? else {
                return Ok(None);
            };
            match Reader::open(&path, Stale::Repair(self.settings)) {
                Ok(reader) => return Ok(Some(reader)),
                Err(e) if e.kind() == Kind::Damaged => self.set_aside(key, &path, &e)?,
                Err(e) if e.kind() == Kind::NotFound => self.missing(key, &path, e)?,
                Err(e) => return Err(e.for_user(key)),
            }
        }
        let e = Error::new(Kind::Locked, "the backup is moved all the time");
        Err(e.for_user(key))
    }

    /// Opens a backup for writing, and makes it if there is none. Waits for its lock as told.
    pub fn open(&self, key: &str, wait: Wait) -> Result<Backup> {
        for _ in 0..TRIES {
            let path = match self.lookup(key)? {
                Some(path) => path,
                None => self.catalog.create_with(key, || self.make(key))?,
            };
            let opened = match Backup::open(&path, key, wait, Create::No, self.settings) {
                Err(e) if e.kind() == Kind::Damaged => {
                    self.set_aside(key, &path, &e)?;
                    Backup::open(&path, key, wait, Create::No, self.settings)
                }
                opened => opened,
            };
            match opened {
                // It may have been moved or deleted while we waited: a lock is worth something only
                // on the file that the catalogue names.
                Ok(backup) if self.catalog.lookup(key)?.as_ref() == Some(&path) => {
                    return Ok(backup);
                }
                Ok(_) => {}
                Err(e) if e.kind() == Kind::NotFound => self.missing(key, &path, e)?,
                Err(e) => return Err(e.for_user(key)),
            }
        }
        let e = Error::new(Kind::Locked, "the backup is moved all the time");
        Err(e.for_user(key))
    }

    /// The data file of a key. Without an entry, one that lies where it would be made is entered: the
    /// catalogue was lost.
    fn lookup(&self, key: &str) -> Result<Option<PathBuf>> {
        if let Some(path) = self.catalog.lookup(key)? {
            return Ok(Some(path));
        }
        let partitions = self.config.backup_partitions().into_iter();
        let partitions: Vec<PathBuf> = partitions.map(|(_, dir)| dir).collect();
        let Some(path) = orphan::find(&partitions, key, &self.ns, &self.catalog)? else {
            return Ok(None);
        };
        let change = [(key.to_owned(), Some(path.clone()))];
        match self.catalog.exchange(&[(key, None)], &change) {
            Ok(()) => {
                log::warn!(
                    "a log without an entry in backups.db is entered user=<{key}> filename=<{}>",
                    path.display()
                );
                Ok(Some(path))
            }
            // Somebody else was there first.
            Err(e) if e.kind() == Kind::Changed => self.catalog.lookup(key),
            Err(e) => Err(e),
        }
    }

    /// The file that an entry named was not there. No error if that has a reason and looking the
    /// entry up again helps.
    fn missing(&self, key: &str, path: &Path, e: Error) -> Result<()> {
        let is_other = self.catalog.lookup(key)?.as_deref() != Some(path);
        if is_other || former::settle(&self.catalog, key, path, &self.ns)?.is_some() {
            return Ok(());
        }
        let what = "a data file named in backups.db is missing; see cyr_backup rescan";
        Err(Error::new(Kind::Io, what).because(e).for_user(key))
    }

    /// Damage never refuses a write: a data file that cannot be read as a log is kept under another
    /// name, and a successor begins, into which the sender's next run brings everything.
    fn set_aside(&self, key: &str, path: &Path, why: &Error) -> Result<()> {
        let lock = DataLock::acquire(path, Wait::For(self.lock_wait), Create::No)?;
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".damaged.{}", time::now_ms()));
        let aside = PathBuf::from(aside);
        let fail = |e| Error::io("cannot set aside", e).at(path).for_user(key);
        // The name is never without a file: a crash in between needs nobody.
        std::fs::hard_link(path, &aside).map_err(fail)?;
        let mut next = path.as_os_str().to_owned();
        next.push(".new");
        let next = PathBuf::from(next);
        match std::fs::remove_file(&next) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(fail(e)),
            _ => {}
        }
        drop(DataLock::acquire(&next, Wait::No, Create::New)?);
        std::fs::rename(&next, path).map_err(fail)?;
        sync_folder(path)?;
        log::error!(
            "IOERROR: damaged backup set aside user=<{key}> filename=<{}> now=<{}> error=<{why}>",
            path.display(),
            aside.display()
        );
        index::retire(&index::path_of(path))?;
        drop(lock);
        Ok(())
    }

    /// Makes an empty data file for a new backup and returns its path.
    fn make(&self, key: &str) -> Result<PathBuf> {
        const LETTERS: &[u8; 62] =
            b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
        let mut random = [0; 14];
        getrandom::fill(&mut random)
            .map_err(|e| Error::new(Kind::Internal, "no random numbers").because(e.to_string()))?;
        let mut number = [0; 8];
        number.copy_from_slice(&random[..8]);
        let partitions = self.config.backup_partitions();
        let (_, dir) = choose(
            &partitions,
            &self.config.partition_select(),
            |dir| {
                std::fs::create_dir_all(dir)?;
                crate::sys::fs::measure(dir).map(|m| Space {
                    free_kib: m.free_kib,
                    total_kib: m.total_kib,
                    fsid: m.fsid,
                })
            },
            u64::from_le_bytes(number),
        )?;
        let suffix: String = random[8..]
            .iter()
            .map(|b| char::from(LETTERS[usize::from(*b) % LETTERS.len()]))
            .collect();
        let folder = dir.join(dir_hash(key, self.config.fulldirhash()).to_string());
        if !folder.is_dir() {
            std::fs::create_dir_all(&folder)
                .map_err(|e| Error::io("cannot make folder", e).at(&folder))?;
            // A folder is real once the one it is in is synced, and that one likewise.
            sync_folder(&folder)?;
            sync_folder(dir)?;
        }
        let path = folder.join(format!("{}_{suffix}", file_stem(key)));
        drop(DataLock::acquire(&path, Wait::No, Create::New)?);
        log::info!(
            "backup created user=<{key}> filename=<{}> time={}",
            path.display(),
            time::now()
        );
        Ok(path)
    }
}
