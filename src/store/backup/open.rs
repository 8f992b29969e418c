//! Opening a backup: its lock is taken, log and index are brought together, and what a loss left in
//! doubt is marked.
//!
//! How they are brought together is in `store/recover.rs`. Fails with `Locked` if another holds it, and
//! with `Damaged`, changing nothing, if the file is no log.

use super::{Backup, Settings, resync_line};
use crate::error::{Error, Result};
use crate::store::file::{LogFile, Watch, Watched};
use crate::store::index::Lines;
use crate::store::line::Line;
use crate::store::lock::{Create, DataLock, Wait};
use crate::store::log::Log;
use crate::store::recover::{Opened, anew, recover};
use crate::store::shorter;
use crate::util::time::Timestamp;
use std::path::Path;
use std::sync::Arc;

impl Backup {
    /// Opens a backup, or starts it if the data file is empty and `create` allows to make it.
    /// Waits for the lock as `wait` says.
    pub fn open(
        path: &Path,
        key: &str,
        wait: Wait,
        create: Create,
        settings: Settings,
    ) -> Result<Backup> {
        let lock = DataLock::acquire(path, wait, create)?;
        let file = lock.file().try_clone();
        let file = file.map_err(|e| Error::io("cannot open", e).at(path))?;
        Backup::open_locked(lock, Arc::new(file), key, settings)
    }

    /// The same with the log in another file than that at `path`, which is locked all the same: for
    /// tests in which the disk fails.
    pub fn open_on(
        file: Arc<dyn LogFile>,
        path: &Path,
        key: &str,
        wait: Wait,
        settings: Settings,
    ) -> Result<Backup> {
        let lock = DataLock::acquire(path, wait, Create::IfMissing)?;
        Backup::open_locked(lock, file, key, settings)
    }

    /// Opens a backup with its index built anew from the log, whatever it was. The old index stays
    /// in use until the new one is whole. `threads` inflate a large log; `watch` is told how far it
    /// was read.
    pub fn reindex(
        path: &Path,
        key: &str,
        wait: Wait,
        settings: Settings,
        threads: usize,
        watch: Watch,
    ) -> Result<Backup> {
        let lock = DataLock::acquire(path, wait, Create::No)?;
        let fail = |e| Error::io("cannot open", e).at(path);
        let file: Arc<dyn LogFile> = Arc::new(lock.file().try_clone().map_err(fail)?);
        let len = file.len().map_err(fail)?;
        let file: Arc<dyn LogFile> = Arc::new(Watched::new(file, watch));
        let opened = anew(&file, path, len, threads).map_err(|e| e.at(path))?;
        Backup::opened(lock, file, key, settings, opened)
    }

    fn open_locked(
        lock: DataLock,
        file: Arc<dyn LogFile>,
        key: &str,
        settings: Settings,
    ) -> Result<Backup> {
        let path = lock.path();
        let len = file
            .len()
            .map_err(|e| Error::io("cannot read", e).at(path))?;
        let opened = recover(&file, path, len).map_err(|e| e.at(path))?;
        Backup::opened(lock, file, key, settings, opened)
    }

    fn opened(
        lock: DataLock,
        file: Arc<dyn LogFile>,
        key: &str,
        settings: Settings,
        opened: Opened,
    ) -> Result<Backup> {
        let doubtful = opened.doubtful;
        let mut backup = Backup {
            log: Log::new(Arc::clone(&file), opened.end, settings.level),
            index: opened.index,
            file,
            path: lock.path().to_owned(),
            key: key.to_owned(),
            settings,
            lines: Lines::default(),
            chunk: None,
            stamp: opened.stamp,
            unit: None,
            pending: 0,
            bodies_end: None,
            seal_next: false,
            in_messages: None,
            body: None,
            broken: false,
            damage: opened.damage,
            entered: opened.lines,
            lock: Some(lock),
        };
        if !doubtful.is_empty() {
            backup.doubt(&doubtful)?;
        }
        let lost = shorter::restate(&mut backup)?;
        let end = backup.log.file_len();
        backup
            .damage
            .extend(lost.into_iter().map(|what| (end, what)));
        Ok(backup)
    }

    /// Marks mailboxes that a loss left in doubt, so that the sender's next run brings them.
    fn doubt(&mut self, mailboxes: &[(String, String)]) -> Result<()> {
        let now = Timestamp(self.stamp);
        let lines: Vec<_> = mailboxes.iter().map(|m| self.doubted(m)).collect();
        self.append(&lines, now)?;
        self.seal()
    }

    /// The line that marks a mailbox, told to the log of the program, too.
    pub(super) fn doubted(&self, (uniqueid, why): &(String, String)) -> Line {
        log::warn!(
            "mailbox to be sent again filename=<{}> uniqueid=<{uniqueid}> reason=<{why}>",
            self.path.display()
        );
        resync_line(uniqueid, 1, why)
    }
}
