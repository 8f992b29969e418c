//! A MAILBOX line: written and entered, but not durable before the caller has judged what came of it.
//!
//! It must refer to every pending body, unless the caller says that all of them are its owner's; else
//! it is taken out of the log again. On an error the whole unit is undone.

use super::Backup;
use crate::cyrus::dlist::{Limits, Parser, Why};
use crate::error::{Error, Kind, Result};
use crate::store::index::{MailboxOutcome, Place, apply_line};
use crate::store::line::{Line, prefix};
use crate::store::spool::Spool;
use crate::util::time::Timestamp;
use std::io::Read;

/// Which pending bodies a MAILBOX line settles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bodies {
    /// Those it refers to; there may be no others.
    Referred,
    /// All: the caller knows whose they are, from older records perhaps.
    All,
}

/// What a MAILBOX line did.
#[derive(Debug)]
pub enum MailboxResult {
    /// It is entered, not yet durable; the caller judges and commits or aborts.
    Entered(MailboxOutcome),
    /// Some of the pending bodies are not referred to; nothing is entered. The caller evicts them
    /// and comes again.
    Unreferred,
}

impl Backup {
    /// Appends `before` and a MAILBOX line whose value is in `spool`, and enters them. Not durable
    /// until [`Backup::commit`].
    pub fn mailbox(
        &mut self,
        before: &[Line],
        spool: &Spool,
        has_literal: bool,
        now: Timestamp,
    ) -> Result<MailboxResult> {
        self.mailbox_and(Bodies::Referred, before, spool, has_literal, now)
    }

    /// The same, and says what becomes of pending bodies that the line does not refer to.
    pub fn mailbox_and(
        &mut self,
        bodies: Bodies,
        before: &[Line],
        spool: &Spool,
        has_literal: bool,
        now: Timestamp,
    ) -> Result<MailboxResult> {
        let done = self
            .mailbox_inner(before, spool, has_literal, now)
            .and_then(|outcome| {
                if bodies == Bodies::Referred && outcome.referred < self.pending {
                    self.withdraw()?;
                    return Ok(None);
                }
                Ok(Some(outcome))
            });
        match done {
            Ok(None) => Ok(MailboxResult::Unreferred),
            Ok(Some(outcome)) => Ok(MailboxResult::Entered(outcome)),
            Err(e) => {
                self.abort();
                Err(e.at(&self.path))
            }
        }
    }

    fn mailbox_inner(
        &mut self,
        before: &[Line],
        spool: &Spool,
        has_literal: bool,
        now: Timestamp,
    ) -> Result<MailboxOutcome> {
        self.begin(now)?;
        self.between_lines()?;
        if self.pending > 0 {
            // What follows must never be on disk before it is judged: whoever opens the log next
            // would take it for a reference to all of them.
            self.bodies_end = Some(self.log.checkpoint()?);
        }
        if has_literal || before.iter().any(|l| l.has_literal) {
            self.own_member(now)?;
        }
        for line in before {
            self.put(line, now)?;
        }
        let stamp = self.next_stamp(now);
        let chunk = self.chunk_id()?;
        let offset = self.log.plain_position();
        self.log.append(&prefix(stamp, "MAILBOX"))?;
        let at = self.log.plain_position();
        let mut reader = spool.reader(0, spool.len());
        let mut buf = vec![0; 64 * 1024];
        loop {
            let n = reader
                .read(&mut buf)
                .map_err(|e| Error::io("cannot read staging", e))?;
            if n == 0 {
                break;
            }
            self.log.append(&buf[..n])?;
        }
        self.log.append(b"\r\n")?;
        let mut parser = Parser::new(spool.reader(0, spool.len()), Limits::default());
        let outcome = apply_line(
            &self.index,
            &mut self.lines,
            b"MAILBOX",
            &mut parser,
            stamp,
            Place {
                chunk_id: chunk,
                line: offset,
                origin: at,
            },
        )?
        .ok_or_else(|| Error::new(Kind::Internal, "a MAILBOX line without an outcome"))?;
        parser.end_line().or_else(|e| match e.why {
            Why::Eof => Ok(()),
            _ => Err(e),
        })?;
        self.index.touch_chunk(chunk, stamp)?;
        // Its member ends with it, but not before it is judged: sealing puts it on disk.
        self.seal_next = has_literal;
        Ok(outcome)
    }

    /// Takes the MAILBOX line, and what was written with it, out of the log again. The bodies
    /// stay; the index is for the caller's abort.
    pub(super) fn withdraw(&mut self) -> Result<()> {
        match self.bodies_end.take() {
            Some(point) => self.log.rewind(&point),
            None => Ok(()),
        }
    }
}
