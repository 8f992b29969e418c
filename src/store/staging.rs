//! Bodies whose owner is not known yet, one session's.
//!
//! They stay until RESTART or the end of the session, in memory while they are few and else in a
//! file without a name, within the session's budget.

use super::spool::Spool;
use crate::cyrus::guid::Guid;
use crate::error::{Error, Result};
use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::Path;

/// A session's staged bodies.
#[derive(Debug)]
pub struct Staging {
    spool: Spool,
    entries: HashMap<Guid, Entry>,
    begun: u64,
}

#[derive(Debug)]
struct Entry {
    at: u64,
    size: u64,
    partition: String,
    /// In whose log it is durable, the last of them.
    stored: Option<String>,
}

impl Staging {
    /// Nothing staged; `budget` in bytes.
    pub fn new(dir: &Path, budget: u64) -> Staging {
        Staging {
            spool: Spool::new(dir, budget),
            entries: HashMap::new(),
            begun: 0,
        }
    }

    /// Begins a body.
    pub fn begin(&mut self) {
        self.begun = self.spool.len();
    }

    /// Adds bytes to it. On an error the body is forgotten.
    pub fn data(&mut self, bytes: &[u8]) -> Result<()> {
        self.spool.append(bytes)
    }

    /// Ends the body that was begun.
    pub fn end(&mut self, guid: Guid, partition: &str) {
        let entry = Entry {
            at: self.begun,
            size: self.spool.len() - self.begun,
            partition: partition.to_owned(),
            stored: None,
        };
        self.entries.insert(guid, entry);
    }

    /// Forgets the body that was begun.
    pub fn forget(&mut self) {
        // What stays beyond the cut is no entry's.
        let _ = self.spool.truncate(self.begun);
    }

    /// Whether the body is here.
    pub fn has(&self, guid: Guid) -> bool {
        self.entries.contains_key(&guid)
    }

    /// The bodies among `guids` are durable in the log of `key` now.
    pub fn stored(&mut self, guids: &HashSet<Guid>, key: &str) {
        for guid in guids {
            if let Some(entry) = self.entries.get_mut(guid) {
                entry.stored = Some(key.to_owned());
            }
        }
    }

    /// Whether it came from here into the log of `key` already.
    pub fn is_stored(&self, guid: Guid, key: &str) -> bool {
        self.entries
            .get(&guid)
            .is_some_and(|e| e.stored.as_deref() == Some(key))
    }

    /// Whether nothing is here.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Partition and size of a body.
    pub fn head(&self, guid: Guid) -> Option<(&str, u64)> {
        self.entries
            .get(&guid)
            .map(|e| (e.partition.as_str(), e.size))
    }

    /// Hands a body's bytes to `sink` in pieces.
    pub fn read(&self, guid: Guid, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let Some(entry) = self.entries.get(&guid) else {
            return Ok(());
        };
        let mut reader = self.spool.reader(entry.at, entry.size);
        let mut buf = vec![0; 64 * 1024];
        loop {
            let n = reader
                .read(&mut buf)
                .map_err(|e| Error::io("cannot read staging", e))?;
            if n == 0 {
                return Ok(());
            }
            sink(&buf[..n])?;
        }
    }

    /// Drops everything and gives the space back.
    pub fn clear(&mut self) {
        self.entries = HashMap::new();
        self.spool.clear();
    }
}
