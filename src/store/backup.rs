//! One backup under its lock: data file, index, and the order in which they change.
//!
//! Everything between two durable points is one unit: lines go to the log, their meaning into an
//! open transaction of the index; [`Backup::commit`] syncs the log, then commits the index, and
//! only then may the sender hear OK. Whatever fails before is undone by [`Backup::abort`]: the
//! transaction is rolled back and the log cut back. Opening is recovery: a tail that the index has
//! not seen is entered or cut, an unsealed member sealed, a missing or foreign index rebuilt.
//!
//! Bodies (MESSAGE) are tentative until a MAILBOX line refers to them. Format: `doc/format.md`;
//! states: `doc/design.md`.

mod adopt;
mod body;
mod chunk;
mod mailbox;
mod open;

pub use body::{EachBody, Sink};
pub use mailbox::{Bodies, MailboxResult};

use super::file::LogFile;
use super::index::{Index, Lines, MailboxOutcome, Place, apply_line};
use super::line::{Line, prefix};
use super::lock::DataLock;
use super::log::{Checkpoint, Log};
use crate::cyrus::dlist::{Limits, Parser, Value};
use crate::error::{Error, Kind, Result};
use crate::util::time::Timestamp;
use body::Body;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a backup is written.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Deflate level of what is received.
    pub level: u8,
    /// Plain bytes after which a chunk goes on in a further member.
    pub chunk_max: u64,
}

/// A backup that we hold and may write.
pub struct Backup {
    // Dropped first: readers and the next holder must find it closed.
    index: Index,
    log: Log,
    file: Arc<dyn LogFile>,
    path: PathBuf,
    key: String,
    settings: Settings,
    lines: Lines,
    /// The open chunk.
    chunk: Option<i64>,
    stamp: i64,
    /// Where to go back to, while a unit is open.
    unit: Option<Unit>,
    /// Bodies since the last durable point.
    pending: u64,
    /// The end of those bodies, where a MAILBOX line that is not durable yet begins.
    bodies_end: Option<Checkpoint>,
    /// The unit ends in a line with a literal: its member is sealed once that is durable.
    seal_next: bool,
    /// A MESSAGE line is open and has this many bodies.
    in_messages: Option<u64>,
    body: Option<Body>,
    /// Even going back failed: nothing more is written here.
    broken: bool,
    /// What was found wrong when the index was built anew on opening.
    damage: Vec<(u64, String)>,
    /// Lines that were entered on opening.
    entered: u64,
    /// Taken by `into_lock` only.
    lock: Option<DataLock>,
}

struct Unit {
    log: Checkpoint,
    chunk: Option<i64>,
    stamp: i64,
    clock: i64,
    /// What becomes pending stands at or behind this.
    from: (i64, u64),
}

impl Backup {
    /// How many lines were entered into the index on opening.
    pub fn entered(&self) -> u64 {
        self.entered
    }

    /// What was found wrong when the index was built anew: offset in the file and reason.
    pub fn damage(&self) -> &[(u64, String)] {
        &self.damage
    }

    /// The index, for questions.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The data file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose backup it is.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The data file, for reading bodies.
    pub fn file(&self) -> &dyn LogFile {
        &*self.file
    }

    /// Whether even undoing failed, or the index turned out to be damaged: the backup must be dropped
    /// and opened again.
    pub fn is_broken(&self) -> bool {
        self.broken || self.index.is_damaged()
    }

    /// Bodies that wait for a MAILBOX line.
    pub fn pending(&self) -> u64 {
        self.pending
    }

    /// Whether a member is open, so that [`Backup::finish`] has something to seal.
    pub fn is_open(&self) -> bool {
        self.log.is_open()
    }

    fn sound(&self) -> Result<()> {
        if self.is_broken() {
            return Err(Error::new(Kind::Io, "backup failed before").at(&self.path));
        }
        Ok(())
    }

    /// Opens a unit and a chunk if there is none.
    fn begin(&mut self, now: Timestamp) -> Result<()> {
        self.adopt(now)?;
        self.begin_unit(now)
    }

    fn begin_unit(&mut self, now: Timestamp) -> Result<()> {
        self.sound()?;
        if self.unit.is_none() {
            let log = self.log.checkpoint()?;
            self.index.begin()?;
            let from = match self.chunk {
                Some(id) => (id, self.log.plain_position()),
                None => (self.index.last_chunk()?.map_or(0, |c| c.id) + 1, 0),
            };
            self.unit = Some(Unit {
                log,
                chunk: self.chunk,
                stamp: self.stamp,
                clock: self.lines.clock,
                from,
            });
            self.lines = Lines {
                complete: None,
                waiting: Some(from),
                clock: self.lines.clock,
                ..Lines::default()
            };
        }
        if self.chunk.is_none() {
            self.begin_chunk(now)?;
        }
        self.clock(now)
    }

    /// The printed time never goes backwards.
    fn next_stamp(&mut self, now: Timestamp) -> Timestamp {
        self.stamp = self.stamp.max(now.0);
        Timestamp(self.stamp)
    }

    fn put(&mut self, line: &Line, now: Timestamp) -> Result<Option<MailboxOutcome>> {
        self.between_lines()?;
        let stamp = self.next_stamp(now);
        let chunk = self.chunk_id()?;
        let offset = self.log.plain_position();
        self.log.append(&prefix(stamp, line.name))?;
        let at = self.log.plain_position();
        self.log.append(&line.value)?;
        self.log.append(b"\r\n")?;
        let mut value = line.value.clone();
        value.extend_from_slice(b"\r\n");
        let mut parser = Parser::new(&value[..], Limits::default());
        let done = apply_line(
            &self.index,
            &mut self.lines,
            line.name.as_bytes(),
            &mut parser,
            stamp,
            Place {
                chunk_id: chunk,
                line: offset,
                origin: at,
            },
        )?;
        parser.end_line()?;
        self.index.touch_chunk(chunk, stamp)?;
        Ok(done)
    }

    /// Appends lines and makes them durable. The caller has seen to it that no bodies are pending.
    /// On any error nothing is changed.
    pub fn append(&mut self, lines: &[Line], now: Timestamp) -> Result<()> {
        let done = self.append_inner(lines, now).and_then(|()| self.commit());
        self.settle(done)
    }

    fn append_inner(&mut self, lines: &[Line], now: Timestamp) -> Result<()> {
        if self.pending > 0 {
            return Err(Error::new(Kind::Internal, "bodies are pending"));
        }
        self.begin(now)?;
        for line in lines {
            if self.chunk.is_none() {
                self.begin_chunk(now)?;
                self.clock(now)?;
            }
            if line.has_literal {
                self.own_member(now)?;
            }
            self.put(line, now)?;
            if line.has_literal {
                // The next line begins one: a member without lines is nothing to end a log with.
                self.end_chunk()?;
            }
        }
        Ok(())
    }

    fn settle<T>(&mut self, done: Result<T>) -> Result<T> {
        match done {
            Ok(v) => Ok(v),
            Err(e) => {
                self.abort();
                Err(e.at(&self.path))
            }
        }
    }

    /// Makes the open unit durable: log synced first, index committed second. On an error the
    /// caller aborts. A chunk that has grown past its limit is sealed.
    pub fn commit(&mut self) -> Result<()> {
        if self.unit.is_none() {
            return Ok(());
        }
        let done = self.commit_inner();
        self.settle(done)
    }

    fn commit_inner(&mut self) -> Result<()> {
        let end = self.log.sync()?;
        self.acknowledge(end)?;
        self.index.commit()?;
        self.unit = None;
        self.pending = 0;
        self.bodies_end = None;
        let ends = std::mem::take(&mut self.seal_next);
        if ends || self.log.plain_position() > self.settings.chunk_max {
            self.seal()?;
        }
        Ok(())
    }

    fn acknowledge(&self, end: u64) -> Result<()> {
        self.index.set_meta("acknowledged", end as i64)?;
        self.index
            .set_meta("acknowledged_plain", self.log.plain_position() as i64)?;
        // Of the open chunk: what is entered behind this must know it.
        let clock = self.chunk.map_or(0, |_| self.lines.clock);
        self.index.set_meta("clock", clock)?;
        self.index.set_meta("stamp", self.stamp)
    }

    /// Undoes everything since the last durable point.
    pub fn abort(&mut self) {
        let Some(unit) = self.unit.take() else {
            return;
        };
        self.index.rollback();
        self.pending = 0;
        self.seal_next = false;
        self.bodies_end = None;
        self.in_messages = None;
        self.body = None;
        self.chunk = unit.chunk;
        self.stamp = unit.stamp;
        self.lines.clock = unit.clock;
        if let Err(e) = self.log.rewind(&unit.log) {
            log::error!(
                "IOERROR: cannot cut the log back filename=<{}> error=<{e}>",
                self.path.display()
            );
            self.broken = true;
        }
        if self.index.in_transaction() {
            self.broken = true;
        }
    }

    /// Seals the open member, if any. Bodies still pending are forgotten first.
    pub fn seal(&mut self) -> Result<()> {
        self.abort();
        self.sound()?;
        if self.chunk.is_none() {
            return Ok(());
        }
        let done = self.seal_inner();
        if done.is_err() {
            // The member may be half sealed; opening again sorts it out.
            self.index.rollback();
            self.broken = true;
        }
        done.map_err(|e| e.at(&self.path))
    }

    fn seal_inner(&mut self) -> Result<()> {
        self.index.begin()?;
        self.end_chunk()?;
        self.acknowledge(self.log.file_len())?;
        self.index.commit()
    }

    /// Seals and lets go of the lock.
    pub fn finish(mut self) -> Result<()> {
        self.seal()
    }

    /// Seals, closes the index, and keeps the lock: both files are at rest as long as it lives.
    pub fn into_lock(mut self) -> Result<DataLock> {
        self.seal()?;
        let lock = self.lock.take();
        lock.ok_or_else(|| Error::new(Kind::Internal, "no lock").at(&self.path))
    }
}

impl Drop for Backup {
    fn drop(&mut self) {
        // Without a finish the member stays open; whoever opens next seals it.
        self.index.rollback();
        if self.index.is_damaged() {
            // It would be found good at the next opening, until its bad page is met again. We have
            // the lock until it is closed.
            log::error!(
                "DBERROR: index is damaged and is made anew filename=<{}>",
                self.index.path().display()
            );
            if let Err(e) = super::index::remove(self.index.path()) {
                log::error!("IOERROR: {e}");
            }
        }
    }
}

/// The line that marks a mailbox: its next statement must be complete. Level 2 begins a new epoch.
pub fn resync_line(uniqueid: &str, level: i64, why: &str) -> Line {
    Line::private(
        "RESYNC",
        Value::kv([
            ("UNIQUEID", Value::text(uniqueid)),
            ("LEVEL", Value::num(level)),
            ("WHY", Value::text(why)),
        ]),
    )
}
