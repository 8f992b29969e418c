//! When each backup was last proven: `backups.db.proven`, a twoskip database beside the catalogue.
//!
//! Key: as in `backups.db`; value: `<seconds since 1970> <generation>`. A proof is of one log: an
//! entry with another generation than the backup now has says nothing. Not in the index, which is
//! derived from the log and may be made anew at any time, and which its writer has locked while mail
//! comes in. The file may be removed: then nothing was ever proven. One that does not read is made
//! anew by the next proof.

use super::notes::Notes;
use crate::error::Result;
use std::collections::HashMap;
use std::path::Path;

/// A proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proved {
    /// When, in seconds since 1970.
    pub time: i64,
    /// Of which generation; empty for a log without one.
    pub generation: String,
}

/// The proofs of one server; threads may share it.
#[derive(Debug)]
pub struct Proven(Notes);

impl Proven {
    /// The proofs that belong to the catalogue `backups_db`; nothing is opened yet.
    pub fn beside(backups_db: &Path) -> Proven {
        Proven(Notes::beside(backups_db, "proven"))
    }

    /// All proofs; none if there is no such file or it does not read.
    pub fn all(&self) -> Result<HashMap<String, Proved>> {
        let notes = self.0.all()?.into_iter();
        Ok(notes
            .filter_map(|(key, text)| Some((key, parse(&text)?)))
            .collect())
    }

    /// Remembers a proof.
    pub fn set(&self, key: &str, proved: &Proved) -> Result<()> {
        let value = format!("{} {}", proved.time, proved.generation);
        self.0.set(key, &value)
    }
}

fn parse(value: &str) -> Option<Proved> {
    let (time, generation) = value.split_once(' ')?;
    Some(Proved {
        time: time.parse().ok()?,
        generation: generation.to_owned(),
    })
}

/// When a backup was proven, if what was proven is the log it has now.
pub fn time_of(proofs: &HashMap<String, Proved>, key: &str, generation: &str) -> Option<i64> {
    let proved = proofs.get(key)?;
    (proved.generation == generation).then_some(proved.time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proofs_are_remembered_and_may_be_lost() {
        let dir = std::env::temp_dir().join(format!("cyr_backup-proven-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let proven = Proven::beside(&dir.join("backups.db"));
        assert!(proven.all().unwrap().is_empty());
        let proved = |time, generation: &str| Proved {
            time,
            generation: generation.into(),
        };
        proven.set("anna", &proved(5, "g1")).unwrap();
        proven.set("anna", &proved(7, "g2")).unwrap();
        proven.set("%SHARED//x y", &proved(6, "")).unwrap();
        let all = proven.all().unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(time_of(&all, "anna", "g2"), Some(7));
        assert_eq!(time_of(&all, "anna", "g1"), None);
        assert_eq!(time_of(&all, "%SHARED//x y", ""), Some(6));
        assert_eq!(time_of(&all, "bert", ""), None);
        std::fs::write(dir.join("backups.db.proven"), b"rubbish").unwrap();
        assert!(proven.all().unwrap().is_empty());
        proven.set("anna", &proved(8, "g")).unwrap();
        assert_eq!(proven.all().unwrap().len(), 1);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
