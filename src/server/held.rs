//! The backups one session holds, and what it was told about bodies.
//!
//! At most `backup_open_max` are held; the one unused for longest is sealed first. Bodies go into
//! the log of the owner that the last GET or RESERVE made likely; a MAILBOX of somebody else finds
//! them there, moves them to staging, and cuts that log back.

use super::shared::Shared;
use crate::cyrus::guid::Guid;
use crate::error::{Error, Kind, Result};
use crate::store::backup::Backup;
use crate::store::file::LogFile;
use crate::store::index::Index;
use crate::store::lock::Wait;
use crate::store::reader::{self, Part};
use crate::store::staging::Staging;
use crate::util::time;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a session holds.
pub struct Held {
    shared: Arc<Shared>,
    open: Vec<Open>,
    open_max: usize,
    /// Bodies whose owner is not known yet.
    pub staging: Staging,
    /// Owners that the last GET named.
    pub named: Vec<String>,
    /// Messages promised from another backup than the one owner: which.
    pub promised: HashMap<Guid, String>,
    /// Mailboxes (uniqueid) whose complete state we asked for after a FULLMAILBOX.
    pub complete: HashSet<String>,
    /// Mailboxes (uniqueid) that the last GET told, so that only changes may follow.
    pub told: HashSet<String>,
    /// Mailboxes (uniqueid) of renamed users, and by what the sum of their annotations changed with
    /// the name: a sender may state the one of before for a while.
    pub readdressed: HashMap<String, u32>,
    /// Counts for the log line at the end.
    pub stats: Stats,
}

struct Open {
    backup: Backup,
    used: Instant,
}

/// What a session did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Commands.
    pub commands: u64,
    /// Bodies received.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// MAILBOX lines entered.
    pub mailboxes: u64,
    /// Commands refused.
    pub refused: u64,
}

impl Held {
    /// Nothing held.
    pub fn new(shared: Arc<Shared>) -> Held {
        Held {
            staging: Staging::new(&shared.staging, shared.config.backup_staging_max()),
            open_max: shared.config.backup_open_max(),
            shared,
            open: Vec::new(),
            named: Vec::new(),
            promised: HashMap::new(),
            complete: HashSet::new(),
            told: HashSet::new(),
            readdressed: HashMap::new(),
            stats: Stats::default(),
        }
    }

    /// What all sessions share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The only owner bodies can belong to, if there is one.
    pub fn expected(&self) -> Option<&str> {
        match self.named.as_slice() {
            [one] => Some(one),
            _ => None,
        }
    }

    /// The backup, opened and made if need be.
    pub fn get(&mut self, key: &str) -> Result<&mut Backup> {
        self.open.retain(|o| !o.backup.is_broken());
        if let Some(i) = self.open.iter().position(|o| o.backup.key() == key) {
            let o = self.open.remove(i);
            self.open.push(o);
        } else {
            while self.open.len() >= self.open_max {
                self.close_first();
            }
            let backup = match self.shared.open(key, Wait::No) {
                Err(e) if e.kind() == Kind::Locked => {
                    // Nobody waits while others wait for him: two sessions that each want what
                    // the other holds would stand still.
                    while !self.open.is_empty() {
                        self.close_first();
                    }
                    let _waiting = self.shared.wanted.wait(key);
                    self.shared.open(key, Wait::For(self.shared.lock_wait))?
                }
                opened => opened?,
            };
            self.open.push(Open {
                backup,
                used: Instant::now(),
            });
        }
        let o = self
            .open
            .last_mut()
            .ok_or_else(|| Error::new(Kind::Internal, "no backup is open"))?;
        o.used = Instant::now();
        Ok(&mut o.backup)
    }

    /// The backup, if we hold it.
    pub fn held(&self, key: &str) -> Option<&Backup> {
        self.open
            .iter()
            .map(|o| &o.backup)
            .find(|b| b.key() == key && !b.is_broken())
    }

    /// Asks a backup's index something: the one we hold, else a reader's. `None` without a backup.
    /// The question may come twice; only its last answer counts.
    pub fn ask<T>(
        &self,
        key: &str,
        question: &mut dyn FnMut(&Index, &dyn LogFile) -> Result<T>,
    ) -> Result<Option<T>> {
        if let Some(backup) = self.held(key) {
            return question(backup.index(), backup.file()).map(Some);
        }
        self.shared.ask(key, question)
    }

    /// The same for a question that cannot be taken back.
    pub fn ask_once<T>(
        &self,
        key: &str,
        question: &mut dyn FnMut(&Index, &dyn LogFile) -> Result<T>,
    ) -> Result<Option<T>> {
        if let Some(backup) = self.held(key) {
            return question(backup.index(), backup.file()).map(Some);
        }
        match self.shared.reader(key)? {
            Some(reader) => question(reader.index(), reader.file()).map(Some),
            None => Ok(None),
        }
    }

    /// Closes the backup unused for longest; bodies that wait in it go to staging.
    fn close_first(&mut self) {
        let Some(first) = self.open.first() else {
            return;
        };
        let key = first.backup.key().to_owned();
        if let Err(e) = self.evict(&key) {
            // Whoever refers to them will find that they lack, and is sent them again.
            log::warn!("bodies dropped user=<{key}> error=<{e}>");
        }
        let first = self.open.remove(0);
        self.finish(first);
    }

    fn finish(&mut self, o: Open) {
        let key = o.backup.key().to_owned();
        let begun = Instant::now();
        match o.backup.finish() {
            Ok(()) => log::debug!(
                "backup closed user=<{key}> ms={}",
                begun.elapsed().as_millis()
            ),
            Err(e) => log::error!("IOERROR: cannot close backup user=<{key}> error=<{e}>"),
        }
    }

    /// Lets go of everything: RESTART, EXIT, the end.
    pub fn release(&mut self) {
        for o in std::mem::take(&mut self.open) {
            self.finish(o);
        }
        self.staging.clear();
        self.named.clear();
        self.promised = HashMap::new();
        self.complete.clear();
        self.told.clear();
    }

    /// Seals backups that were not used for `idle`; what was promised stays.
    pub fn release_idle(&mut self, idle: Duration) {
        // In the order of their use.
        while self.open.first().is_some_and(|o| o.used.elapsed() >= idle) {
            self.close_first();
        }
    }

    /// Seals those among them that another session waits for; what was promised stays.
    pub fn release_wanted(&mut self, idle: Duration) {
        while let Some(i) = self
            .open
            .iter()
            .position(|o| o.used.elapsed() >= idle && self.shared.wanted.is_wanted(o.backup.key()))
        {
            let wanted = self.open.remove(i);
            self.open.insert(0, wanted);
            self.close_first();
        }
    }

    /// Drops backups in which even undoing failed; the next use opens and recovers them.
    pub fn drop_broken(&mut self) {
        self.open.retain(|o| !o.backup.is_broken());
    }

    /// Whether any backup is held.
    pub fn holds_any(&self) -> bool {
        !self.open.is_empty()
    }

    /// Moves the pending bodies of one backup to staging.
    pub fn evict(&mut self, key: &str) -> Result<()> {
        let Some(i) = self.open.iter().position(|o| o.backup.key() == key) else {
            return Ok(());
        };
        let staging = &mut self.staging;
        self.open[i]
            .backup
            .evict(&mut |guid, partition, _size, read| {
                if staging.has(guid) {
                    return Ok(());
                }
                staging.begin();
                let done = read(&mut |part| staging.data(part));
                match done {
                    Ok(()) => staging.end(guid, partition),
                    Err(_) => staging.forget(),
                }
                done
            })
    }

    /// Moves pending bodies to staging that stand in another log than `key`'s, if any of `wanted`
    /// is among them.
    pub fn gather(&mut self, key: &str, wanted: &HashSet<Guid>) -> Result<()> {
        let mut from = Vec::new();
        for o in &self.open {
            let b = &o.backup;
            if b.key() == key || b.pending() == 0 {
                continue;
            }
            for guid in wanted {
                if b.is_pending(*guid)? {
                    from.push(b.key().to_owned());
                    break;
                }
            }
        }
        for other in from {
            self.evict(&other)?;
        }
        Ok(())
    }

    /// Whether any backup but `key`'s has pending bodies.
    pub fn others_pending(&self, key: &str) -> bool {
        self.open
            .iter()
            .any(|o| o.backup.key() != key && o.backup.pending() > 0)
    }

    /// Brings the staged and promised ones among `wanted` into the log of `key`, unless it has
    /// them. What cannot be brought stays missing. On an error all that is pending is gone.
    pub fn supply(&mut self, key: &str, wanted: &HashSet<Guid>) -> Result<()> {
        let done = self.supply_inner(key, wanted);
        if done.is_err() {
            // No half body may stay behind.
            if let Some(o) = self.open.iter_mut().find(|o| o.backup.key() == key) {
                o.backup.abort();
            }
        }
        done
    }

    fn supply_inner(&mut self, key: &str, wanted: &HashSet<Guid>) -> Result<()> {
        self.fetch(key, wanted)?;
        let now = time::now();
        for guid in wanted {
            let Some((partition, size)) = self.staging.head(*guid).map(|(p, s)| (p.to_owned(), s))
            else {
                continue;
            };
            if self.staging.is_stored(*guid, key) || self.get(key)?.is_pending(*guid)? {
                continue;
            }
            self.get(key)?;
            let Some(o) = self.open.last_mut() else {
                continue;
            };
            o.backup
                .body_begin(partition.as_bytes(), *guid, size, now)?;
            self.staging
                .read(*guid, &mut |part| o.backup.body_data(part))?;
            o.backup.body_end()?;
        }
        if let Some(o) = self.open.iter_mut().find(|o| o.backup.key() == key) {
            o.backup.messages_end()?;
        }
        Ok(())
    }

    /// Brings bodies that other backups promised into staging, where `key`'s has none. A promise
    /// that is broken, the MAILBOX line will find out.
    fn fetch(&mut self, key: &str, wanted: &HashSet<Guid>) -> Result<()> {
        let mut from: HashMap<String, Vec<Guid>> = HashMap::new();
        for guid in wanted {
            if self.staging.has(*guid) {
                continue;
            }
            match self.promised.get(guid) {
                Some(other) if other != key => {
                    let other = other.clone();
                    if self.get(key)?.index().body(*guid)?.is_none() {
                        from.entry(other).or_default().push(*guid);
                    }
                }
                _ => {}
            }
        }
        for (other, guids) in from {
            // Taken out so that the other backup can be asked.
            let empty = Staging::new(&self.shared.staging, u64::MAX);
            let mut staging = std::mem::replace(&mut self.staging, empty);
            let read = self.ask_once(&other, &mut |index, file| {
                reader::bodies(index, file, guids.iter().copied(), &mut |row, part| {
                    match part {
                        Part::Begin => staging.begin(),
                        Part::Data(bytes) => staging.data(bytes)?,
                        Part::End(true) => staging.end(row.guid, &row.partition),
                        Part::End(false) => staging.forget(),
                    }
                    Ok(())
                })
            });
            self.staging = staging;
            read?;
        }
        Ok(())
    }
}
