//! Which backups a session waits for, so that another that holds one and has nothing to do lets go
//! of it.
//!
//! Without this two senders can stand still: the client of one session waits for a lock on its own
//! server that the client of another holds, and that one's session waits for our backup.
#![forbid(unsafe_code)]

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Keys of backups, one for each session that waits.
#[derive(Debug, Default)]
pub struct Wanted(Mutex<Vec<String>>);

/// A session waits, until this is dropped.
#[derive(Debug)]
pub struct Waiting<'a> {
    wanted: &'a Wanted,
    key: String,
}

impl Wanted {
    /// Says that the caller waits for a backup.
    pub fn wait(&self, key: &str) -> Waiting<'_> {
        self.keys().push(key.to_owned());
        Waiting {
            wanted: self,
            key: key.to_owned(),
        }
    }

    /// Whether somebody waits for it.
    pub fn is_wanted(&self, key: &str) -> bool {
        self.keys().iter().any(|k| k == key)
    }

    fn keys(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut keys = self.wanted.keys();
        if let Some(i) = keys.iter().position(|k| *k == self.key) {
            keys.swap_remove(i);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wanted_as_long_as_one_waits() {
        let wanted = Wanted::default();
        let one = wanted.wait("anna");
        let two = wanted.wait("anna");
        let _other = wanted.wait("bert");
        drop(one);
        assert!(wanted.is_wanted("anna"));
        drop(two);
        assert!(!wanted.is_wanted("anna") && wanted.is_wanted("bert"));
    }
}
