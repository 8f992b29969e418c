//! Bodies of messages: written as they come, and handed out again when they turn out not to belong.
//!
//! They stand in MESSAGE lines, one body behind the other, and are tentative until a MAILBOX line
//! refers to them. Format: `doc/format.md`.

use super::Backup;
use crate::cyrus::guid::Guid;
use crate::cyrus::header::{Envelope, LOOKED_AT};
use crate::error::{Error, Kind, Result};
use crate::store::line::{body_head, prefix};
use crate::store::log::read_chunk_plain;
use crate::util::time::Timestamp;
use std::sync::Arc;

/// Takes bytes in pieces.
pub type Sink<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

/// Takes a pending body: message, partition, size, and what reads its bytes into a sink.
pub type EachBody<'a> =
    dyn FnMut(Guid, &str, u64, &mut dyn FnMut(&mut Sink<'_>) -> Result<()>) -> Result<()> + 'a;

/// A body that is being written.
pub(super) struct Body {
    guid: Guid,
    size: u64,
    partition: String,
    at: u64,
    start: Vec<u8>,
    written: u64,
}

impl Backup {
    /// Begins a body. `size` bytes follow through [`Backup::body_data`].
    pub fn body_begin(
        &mut self,
        partition: &[u8],
        guid: Guid,
        size: u64,
        now: Timestamp,
    ) -> Result<()> {
        let done = self.body_begin_inner(partition, guid, size, now);
        self.settle(done)
    }

    fn body_begin_inner(
        &mut self,
        partition: &[u8],
        guid: Guid,
        size: u64,
        now: Timestamp,
    ) -> Result<()> {
        if self.body.is_some() {
            return Err(Error::new(Kind::Internal, "a body is not complete"));
        }
        self.begin(now)?;
        let full = self.log.plain_position().saturating_add(size) > self.settings.chunk_max;
        if full && self.log.plain_position() > 4096 {
            self.messages_end_inner()?;
            self.end_chunk()?;
            self.begin_chunk(now)?;
            self.clock(now)?;
        }
        let mut head = Vec::new();
        match &mut self.in_messages {
            Some(n) => {
                head.push(b' ');
                *n += 1;
            }
            None => {
                let stamp = self.next_stamp(now);
                head = prefix(stamp, "MESSAGE");
                head.push(b'(');
                self.in_messages = Some(1);
            }
        }
        head.extend_from_slice(&body_head(partition, guid, size));
        self.log.append(&head)?;
        self.body = Some(Body {
            guid,
            size,
            partition: String::from_utf8_lossy(partition).into_owned(),
            at: self.log.plain_position(),
            start: Vec::new(),
            written: 0,
        });
        Ok(())
    }

    /// Adds bytes to the body that was begun.
    pub fn body_data(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(body) = &mut self.body else {
            return Err(Error::new(Kind::Internal, "no body was begun"));
        };
        let room = LOOKED_AT - body.start.len();
        body.start
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
        body.written += bytes.len() as u64;
        let done = self.log.append(bytes);
        self.settle(done)
    }

    /// Ends the body; the caller has checked its GUID.
    pub fn body_end(&mut self) -> Result<()> {
        let done = self.body_end_inner();
        self.settle(done)
    }

    fn body_end_inner(&mut self) -> Result<()> {
        let body = self
            .body
            .take()
            .filter(|b| b.written == b.size)
            .ok_or_else(|| Error::new(Kind::Internal, "a body is not complete"))?;
        // A second copy in one unit counts once: the row moves.
        let again = self.is_pending(body.guid)?;
        self.index.message(
            body.guid,
            self.chunk_id()?,
            body.at,
            body.size,
            &body.partition,
            &Envelope::read(&body.start),
            Timestamp(self.stamp + self.lines.clock),
        )?;
        if !again {
            self.pending += 1;
        }
        Ok(())
    }

    /// Whether the message's body came since the last durable point.
    pub fn is_pending(&self, guid: Guid) -> Result<bool> {
        let Some(unit) = &self.unit else {
            return Ok(false);
        };
        Ok(self
            .index
            .body(guid)?
            .is_some_and(|b| (b.chunk_id, b.offset) >= unit.from))
    }

    /// Ends the MESSAGE line, if one is open.
    pub fn messages_end(&mut self) -> Result<()> {
        let done = self.messages_end_inner();
        self.settle(done)
    }

    fn messages_end_inner(&mut self) -> Result<()> {
        if self.in_messages.take().is_some() {
            self.log.append(b")\r\n")?;
            if let Some(id) = self.chunk {
                self.index.touch_chunk(id, Timestamp(self.stamp))?;
            }
        }
        Ok(())
    }

    /// Ends a MESSAGE line that is open; a body that is not complete is an error.
    pub(super) fn between_lines(&mut self) -> Result<()> {
        if self.body.is_some() {
            return Err(Error::new(Kind::Internal, "a body is not complete"));
        }
        self.messages_end_inner()
    }

    /// Hands every pending body to `each` (message, partition, then its bytes in pieces), then
    /// undoes the unit: the log is as at the last durable point.
    pub fn evict(&mut self, each: &mut EachBody<'_>) -> Result<()> {
        let done = self.evict_inner(each);
        self.abort();
        done
    }

    fn evict_inner(&mut self, each: &mut EachBody<'_>) -> Result<()> {
        let Some(unit) = &self.unit else {
            return Ok(());
        };
        let from = unit.from;
        if self.pending == 0 {
            return Ok(());
        }
        self.withdraw()?;
        // Of a body that is not complete nothing is handed out: the index does not know it.
        self.log.flush()?;
        for p in self.index.pending(from.0, from.1)? {
            let chunk = self
                .index
                .chunk(p.chunk_id)?
                .ok_or_else(|| Error::new(Kind::Internal, "a body without a chunk"))?;
            let file = Arc::clone(&self.file);
            each(p.guid, &p.partition, p.size, &mut |sink| {
                read_chunk_plain(&*file, chunk.offset, p.offset, p.size, sink)
            })?;
        }
        Ok(())
    }
}
