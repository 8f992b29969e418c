//! The index of one backup: an SQLite file derived from the log, disposable, rebuilt from it.
//!
//! WAL, synchronous NORMAL: a commit is visible at once and not synced; after power loss the file
//! is a consistent older state, which the acknowledged length, stored with every commit, betrays.
//! What lines mean is in `write`, `mailbox` and `apply`, in one place for receiving and for
//! rebuilding; `read` has the questions. The only SQL in the tree is in this folder.

mod apply;
mod compare;
mod keep;
mod mailbox;
mod over;
mod read;
mod schema;
mod search;
mod summary;
mod watch;
mod write;

pub use apply::{Lines, Place, apply_line};
pub use compare::{Difference, differences};
pub use keep::{KeepRow, Lasting, Late, RowRanges};
pub use mailbox::{MailboxApply, MailboxOutcome, Mode, PastRecords, Stated, TIMES};
pub use read::{
    AnnotationRow, ChunkRow, Counts, MailboxRow, MessageRow, RecordRow, SeenRow, SieveRow,
    SubscriptionRow, Totals,
};
pub use search::{Field, IsWanted, RecordFilter};
pub use summary::ChunkSums;
pub use watch::{RowChange, Table, Watch};
pub use write::Pending;

use crate::error::{Error, Kind, Result};
use crate::sys::fs::sync_folder;
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use std::cell::Cell;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An open index.
pub struct Index {
    conn: Connection,
    path: PathBuf,
    /// Its write-ahead log is new: see [`Index::commit`].
    fresh: Cell<bool>,
    /// SQLite has met what it cannot have written.
    damaged: Cell<bool>,
    /// How others open it for reading.
    reading: &'static str,
}

/// As a file that may be written to, and as one that nobody changes.
const SHARED: &str = "mode=ro";
const STILL: &str = "immutable=1";

/// While an index is put in the place of another: asked again so often, after such a pause.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(5);

/// The name of the index that belongs to a data file.
pub fn path_of(data: &Path) -> PathBuf {
    let mut name = data.as_os_str().to_owned();
    name.push(".index");
    PathBuf::from(name)
}

/// A file's name as SQLite takes it with options.
fn uri(path: &Path, options: &str) -> String {
    use std::os::unix::ffi::OsStrExt;
    let mut uri = String::from("file:");
    for &b in path.as_os_str().as_bytes() {
        if b.is_ascii_alphanumeric() || b"/._-@+=".contains(&b) {
            uri.push(char::from(b));
        } else {
            uri.push_str(&format!("%{b:02X}"));
        }
    }
    uri.push('?');
    uri.push_str(options);
    uri
}

/// Removes an index with all that SQLite keeps beside it. What is not there is fine.
pub fn remove(path: &Path) -> Result<()> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let name = PathBuf::from(name);
        match std::fs::remove_file(&name) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("cannot remove", e).at(&name));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Makes room for a new index: one of ours is removed, anybody else's is renamed to
/// `<index>.<unixtime>`, as the old `reindex` did. The caller holds the backup's lock.
pub fn retire(path: &Path) -> Result<()> {
    let fail = |e| Error::io("cannot set aside", e).at(path);
    if !is_foreign(path) {
        return remove(path);
    }
    for n in crate::util::time::now().0.. {
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".{n}"));
        let aside = PathBuf::from(aside);
        if aside.try_exists().map_err(fail)? {
            continue;
        }
        std::fs::rename(path, &aside).map_err(fail)?;
        log::info!("old index kept filename=<{}>", aside.display());
        break;
    }
    remove(path)
}

/// Whether a database lies there that is not ours. What is no database at all is not meant: it may
/// have been ours. A journal that its writer left is played back by this.
fn is_foreign(path: &Path) -> bool {
    let look = || -> rusqlite::Result<bool> {
        let mode = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(path, mode)?;
        let number = |sql| conn.query_row(sql, [], |r| r.get::<_, i64>(0));
        Ok(number("PRAGMA application_id")? != schema::APPLICATION_ID
            && number("SELECT count(*) FROM sqlite_master")? > 0)
    };
    look().unwrap_or(false)
}

/// Whether a database of other tools lies there, also one that they did not close. Nothing is changed.
pub fn is_of_others(path: &Path) -> bool {
    let mode = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let id = Connection::open_with_flags(path, mode)
        .and_then(|conn| conn.query_row("PRAGMA application_id", [], |r| r.get::<_, i64>(0)));
    match id {
        Ok(id) => id != schema::APPLICATION_ID,
        // A journal that is to be played back. One of ours has none.
        Err(_) => {
            let mut journal = path.as_os_str().to_owned();
            journal.push("-journal");
            PathBuf::from(journal).exists()
        }
    }
}

impl Index {
    /// Makes a new, empty index; what lies there is removed. The caller holds the backup's lock.
    pub fn create(path: &Path) -> Result<Index> {
        let settings = [schema::SETTINGS, schema::FRESH, schema::MAKING, schema::WAL];
        Index::create_with(path, &settings.concat(), true)
    }

    /// The same for an index that is filled by one hand in one transaction, much faster. It is then
    /// thrown away, or given to others by [`Index::give`].
    pub fn create_apart(path: &Path) -> Result<Index> {
        Index::create_with(path, schema::APART, false)
    }

    /// The same for an index that is only thrown away: its name, in whose place it is made, is taken
    /// away at once, so that nothing is left however the process ends.
    pub fn create_nameless(path: &Path) -> Result<Index> {
        let index = Index::create_apart(path)?;
        // The journal is open and stays so: nothing is looked for by its name any more.
        remove(path)?;
        Ok(index)
    }

    fn create_with(path: &Path, settings: &str, fresh: bool) -> Result<Index> {
        remove(path)?;
        let conn = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_WRITE
                | OpenFlags::SQLITE_OPEN_CREATE
                | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )
        .map_err(|e| Error::from(e).at(path))?;
        let index = Index {
            conn,
            path: path.to_owned(),
            fresh: Cell::new(fresh),
            damaged: Cell::new(false),
            reading: SHARED,
        };
        index.settings(settings)?;
        index.run(schema::CREATE)?;
        Ok(index)
    }

    /// Closes an index that was made by [`Index::create_apart`] and committed: it is as others use
    /// it, and on stable storage.
    pub fn give(self) -> Result<()> {
        self.run(schema::WAL)?;
        let Index { conn, path, .. } = self;
        conn.close().map_err(|(_, e)| Error::from(e).at(&path))?;
        // No connection of ours is left, so none loses its locks by this.
        std::fs::File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(|e| Error::io("cannot sync", e).at(&path))
    }

    /// Writes all of it into a new file, which takes the place of what lies there and is synced.
    pub fn copy_to(&self, path: &Path) -> Result<()> {
        remove(path)?;
        self.conn
            .execute("VACUUM INTO ?1", [path.to_string_lossy()])
            .map_err(|e| self.error(e))?;
        std::fs::File::open(path)
            .and_then(|file| file.sync_all())
            .map_err(|e| Error::io("cannot sync", e).at(path))?;
        sync_folder(path)
    }

    /// Opens for writing. `NeedsReindex` if it is missing, foreign, or of an unknown version.
    pub fn open(path: &Path) -> Result<Index> {
        let mut wal = path.as_os_str().to_owned();
        wal.push("-wal");
        let fresh = match std::fs::metadata(PathBuf::from(wal)) {
            Ok(wal) => wal.len() == 0,
            Err(e) => e.kind() == std::io::ErrorKind::NotFound,
        };
        let index = Index::open_with(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        // An old tool may have switched it off in passing.
        index
            .conn
            .query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
            .map_err(|e| index.error(e))?;
        if fresh {
            index.run(schema::FRESH)?;
            index.fresh.set(true);
        }
        Ok(index)
    }

    /// Opens for reading; the same errors.
    pub fn open_read_only(path: &Path) -> Result<Index> {
        Index::open_with(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
    }

    /// Opens for reading a file that nobody changes meanwhile: without a lock, and without a file
    /// beside it. Whoever asks makes sure afterwards that it was so; until then an answer may be
    /// wrong. The same errors.
    pub fn open_still(path: &Path) -> Result<Index> {
        let uri = uri(path, STILL);
        let mode = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        let mut index = Index::connect(Path::new(&uri), path, mode, schema::READ_SETTINGS)?;
        index.reading = STILL;
        Ok(index)
    }

    fn open_with(path: &Path, mode: OpenFlags) -> Result<Index> {
        Index::connect(path, path, mode, schema::SETTINGS)
    }

    /// SQLite finds a write-ahead log by the index's name, and only when it is first read: if another
    /// index was put in the place of this one in between, that would be the other's.
    fn connect(name: &Path, path: &Path, mode: OpenFlags, settings: &str) -> Result<Index> {
        let identity = || std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
        for _ in 0..TRIES {
            let before = identity();
            let index = Index::connect_once(name, path, mode, settings);
            if identity() == before {
                return index;
            }
            std::thread::sleep(PAUSE);
        }
        let what = "another index is put in its place time and again";
        Err(Error::new(Kind::Db, what).at(path))
    }

    fn connect_once(name: &Path, path: &Path, mode: OpenFlags, settings: &str) -> Result<Index> {
        let mut tries = 0;
        let conn = loop {
            match Connection::open_with_flags(name, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX) {
                Ok(conn) => break conn,
                // While an index is put in the place of another there is none for a moment.
                Err(_) if tries < TRIES && path.try_exists().unwrap_or(false) => {
                    tries += 1;
                    std::thread::sleep(PAUSE);
                }
                // One that is there and cannot be opened, for want of descriptors perhaps, is no
                // reason to make it anew.
                Err(e) => {
                    let kind = match path.try_exists() {
                        Ok(false) => Kind::NeedsReindex,
                        _ => Kind::Io,
                    };
                    return Err(Error::new(kind, "cannot open index").because(e).at(path));
                }
            }
        };
        let index = Index {
            conn,
            path: path.to_owned(),
            fresh: Cell::new(false),
            damaged: Cell::new(false),
            reading: SHARED,
        };
        index.settings(settings)?;
        let application_id: i64 = index
            .conn
            .query_row("PRAGMA application_id", [], |r| r.get(0))
            .map_err(|e| index.error(e))?;
        if application_id != schema::APPLICATION_ID {
            let what = "an index of other tools; it is made anew at the next use";
            return Err(Error::new(Kind::NeedsReindex, what).at(path));
        }
        let version = index.meta_number("schema")?;
        if version != Some(schema::VERSION) {
            return Err(
                Error::new(Kind::NeedsReindex, format!("index version {version:?}")).at(path),
            );
        }
        Ok(index)
    }

    fn settings(&self, settings: &str) -> Result<()> {
        self.conn
            .busy_timeout(Duration::from_secs(20))
            .map_err(|e| self.error(e))?;
        self.conn
            .execute_batch(settings)
            .map_err(|e| self.error(e))?;
        self.conn.set_prepared_statement_cache_capacity(64);
        Ok(())
    }

    fn error(&self, e: rusqlite::Error) -> Error {
        let e = Error::from(e).at(&self.path);
        if e.kind() == Kind::NeedsReindex {
            self.damaged.set(true);
        }
        e
    }

    /// The error for an answer that cannot be true: the file counts as damaged from now on.
    pub fn doubted(&self, what: &str) -> Error {
        self.damaged.set(true);
        Error::new(Kind::NeedsReindex, what).at(&self.path)
    }

    /// Whether any answer so far showed that the file is damaged.
    pub fn is_damaged(&self) -> bool {
        self.damaged.get()
    }

    /// Where the index lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts the transaction in which everything up to the next durable point is entered.
    pub fn begin(&self) -> Result<()> {
        self.run("BEGIN IMMEDIATE")
    }

    /// Makes what was entered visible. Does not sync.
    ///
    /// With `synchronous` NORMAL SQLite would sync the header of a new write-ahead log and its
    /// folder at the first commit, lest a reused log be read as new. A log that begins as an empty
    /// file has nothing to be mixed up with, so that one commit goes without.
    pub fn commit(&self) -> Result<()> {
        self.run("COMMIT")?;
        if self.fresh.get() {
            match self.run(schema::SETTLED) {
                Ok(()) => self.fresh.set(false),
                // It is committed all the same; the next one tries again.
                Err(e) => log::error!("DBERROR: setting refused error=<{e}>"),
            }
        }
        Ok(())
    }

    /// Forgets what was entered; harmless outside a transaction.
    pub fn rollback(&self) {
        if !self.conn.is_autocommit() {
            if let Err(e) = self.run("ROLLBACK") {
                log::error!("DBERROR: rollback failed error=<{e}>");
            }
        }
    }

    /// Whether a transaction is open.
    pub fn in_transaction(&self) -> bool {
        !self.conn.is_autocommit()
    }

    /// Starts a transaction for reading, so that all answers are of one moment.
    pub fn begin_read(&self) -> Result<()> {
        self.run("BEGIN DEFERRED")
    }

    /// Marks a place inside the transaction.
    pub fn savepoint(&self, name: &str) -> Result<()> {
        self.run_cached(&format!("SAVEPOINT {name}"))
    }

    /// Keeps what was entered since the mark, and removes the mark.
    pub fn release(&self, name: &str) -> Result<()> {
        self.run_cached(&format!("RELEASE {name}"))
    }

    /// Forgets what was entered since the mark, and keeps the mark.
    pub fn rollback_to(&self, name: &str) -> Result<()> {
        self.run_cached(&format!("ROLLBACK TO {name}"))
    }

    fn run(&self, sql: &str) -> Result<()> {
        self.conn.execute_batch(sql).map_err(|e| self.error(e))
    }

    /// What is said for every line is parsed once.
    fn run_cached(&self, sql: &str) -> Result<()> {
        self.conn
            .prepare_cached(sql)
            .and_then(|mut s| s.execute([]))
            .map(|_| ())
            .map_err(|e| self.error(e))
    }

    /// A number of the meta table.
    pub fn meta_number(&self, key: &str) -> Result<Option<i64>> {
        self.conn
            .prepare_cached("SELECT value FROM meta WHERE key = ?1")
            .and_then(|mut s| s.query_row([key], |r| r.get(0)).optional())
            .map_err(|e| self.error(e))
    }

    /// A text of the meta table.
    pub fn meta_text(&self, key: &str) -> Result<Option<String>> {
        self.conn
            .prepare_cached("SELECT value FROM meta WHERE key = ?1")
            .and_then(|mut s| s.query_row([key], |r| r.get(0)).optional())
            .map_err(|e| self.error(e))
    }

    /// Removes a value of the meta table.
    pub fn unset_meta(&self, key: &str) -> Result<()> {
        self.conn
            .prepare_cached("DELETE FROM meta WHERE key = ?1")
            .and_then(|mut s| s.execute([key]))
            .map_err(|e| self.error(e))?;
        Ok(())
    }

    /// Sets a value of the meta table.
    pub fn set_meta(&self, key: &str, value: impl rusqlite::ToSql) -> Result<()> {
        self.conn
            .prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")
            .and_then(|mut s| s.execute(rusqlite::params![key, value]))
            .map_err(|e| self.error(e))?;
        Ok(())
    }
}
