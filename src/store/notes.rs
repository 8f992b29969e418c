//! Notes about backups beside the catalogue: `backups.db.<what>`, a twoskip database of a line of text
//! for each key.
//!
//! Derived and disposable: not in the indexes, which are made anew at any time and which their
//! writer has locked while mail comes in. The file may be removed, and one that does not read is made
//! anew by the next note: then nothing was ever noted.

use crate::cyrus::twoskip::{Db, OpenMode};
use crate::error::{Kind, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The notes of one kind; threads may share it.
#[derive(Debug)]
pub struct Notes {
    path: PathBuf,
    /// Locks belong to the open file: one writer at a time in this process.
    writing: Mutex<()>,
}

impl Notes {
    /// The notes `what` that belong to the catalogue `backups_db`; nothing is opened yet.
    pub fn beside(backups_db: &Path, what: &str) -> Notes {
        let mut path = backups_db.as_os_str().to_owned();
        path.push(format!(".{what}"));
        Notes {
            path: path.into(),
            writing: Mutex::new(()),
        }
    }

    /// All of them; none if there is no such file or it does not read.
    pub fn all(&self) -> Result<HashMap<String, String>> {
        let mut out = HashMap::new();
        let read = Db::open(&self.path, OpenMode::Read).and_then(|mut db| {
            db.for_each(b"", |key, value| {
                if let (Ok(key), Ok(text)) = (std::str::from_utf8(key), std::str::from_utf8(value))
                {
                    out.insert(key.to_owned(), text.to_owned());
                }
                Ok(())
            })
        });
        match read {
            Ok(()) => Ok(out),
            Err(e) if e.kind() == Kind::NotFound => Ok(out),
            Err(e) if e.kind() == Kind::Damaged => {
                log::warn!("{e}: what was noted is forgotten");
                Ok(HashMap::new())
            }
            Err(e) => Err(e),
        }
    }

    /// One of them; none if there is no such file or it does not read.
    pub fn get(&self, key: &str) -> Result<Option<String>> {
        let read = Db::open(&self.path, OpenMode::Read).and_then(|mut db| db.get(key.as_bytes()));
        match read {
            Ok(text) => Ok(text.and_then(|t| String::from_utf8(t).ok())),
            Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Damaged) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Writes one, in the place of the one before.
    pub fn set(&self, key: &str, text: &str) -> Result<()> {
        self.change(key, Some(text))
    }

    /// Removes one, if it is there.
    pub fn remove(&self, key: &str) -> Result<()> {
        match self.get(key)? {
            Some(_) => self.change(key, None),
            None => Ok(()),
        }
    }

    fn change(&self, key: &str, text: Option<&str>) -> Result<()> {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let put = || -> Result<()> {
            let mut db = Db::open(&self.path, OpenMode::Create)?;
            let mut txn = db.begin()?;
            match text {
                Some(text) => txn.put(key.as_bytes(), text.as_bytes())?,
                None => {
                    txn.delete(key.as_bytes())?;
                }
            }
            txn.commit()
        };
        match put() {
            Err(e) if e.kind() == Kind::Damaged => {
                let _ = std::fs::remove_file(&self.path);
                put()
            }
            done => done,
        }
    }
}
