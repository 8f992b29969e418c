//! A log gets its name, and one that the old tools began becomes ours.
//!
//! The name, its generation, is in the first line that we write. Behind it in an adopted log stand the
//! marks of what the old tools missed. Format: `doc/format.md`.

use super::Backup;
use crate::error::{Error, Kind, Result};
use crate::store::line::generation;
use crate::store::recover::{HURT, doubts};
use crate::util::hex;
use crate::util::time::Timestamp;

impl Backup {
    /// Makes a log of the old tools ours, before anything else is written to it: names it, and marks
    /// what they missed, so that it is asked for again. Durable by itself, whatever becomes of the unit
    /// that follows. True if that was to be done.
    pub fn adopt(&mut self, now: Timestamp) -> Result<bool> {
        let idle = self.unit.is_none() && self.chunk.is_none();
        if !idle || self.index.meta_text("generation")?.as_deref() != Some("") {
            return Ok(false);
        }
        let done = self.begin_unit(now).and_then(|()| self.commit());
        self.settle(done)?;
        Ok(true)
    }

    /// Names a log that has no name yet, and marks what is in doubt in one of the old tools. A chunk has
    /// just been begun.
    pub(super) fn name_log(&mut self, now: Timestamp) -> Result<()> {
        // None in a new log, empty in one that the old tools began.
        let named = self.index.meta_text("generation")?;
        let adopted = named.as_deref() == Some("") && self.log.member_offset() > 0;
        if named.is_none_or(|id| id.is_empty()) {
            let mut id = [0; 8];
            getrandom::fill(&mut id).map_err(|e| {
                Error::new(Kind::Internal, "no random numbers").because(e.to_string())
            })?;
            let line = generation(&hex::encode(&id), &self.key);
            self.put(&line, now)?;
        }
        if adopted {
            // From here on the log is ours: what the old tools missed is asked for again.
            let hurt = self.index.meta_text(HURT)?.unwrap_or_default();
            for found in doubts(&self.index, hurt.split_whitespace(), true)? {
                let line = self.doubted(&found);
                self.put(&line, now)?;
            }
            self.index.unset_meta(HURT)?;
        }
        Ok(())
    }
}
