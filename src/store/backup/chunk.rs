//! Where the chunks of a log begin and end, and the lines of ours that stand first in them.
//!
//! Those are the log's name, the clock when the printed time is not the true one, and now and then a
//! manifest of the members before. Nothing here is durable by itself. Format: `doc/format.md`.

use super::Backup;
use crate::cyrus::dlist::Value;
use crate::error::{Error, Kind, Result};
use crate::store::line::{CHUNK_START, Line};
use crate::util::hex;
use crate::util::time::Timestamp;

/// A manifest lists at least so many members.
const MANIFEST_EVERY: i64 = 16;

impl Backup {
    /// Begins a member, with the lines that stand first in it.
    pub(super) fn begin_chunk(&mut self, now: Timestamp) -> Result<()> {
        self.log.begin(&[])?;
        let stamp = self.next_stamp(now);
        self.chunk = Some(self.index.begin_chunk(self.log.member_offset(), stamp)?);
        self.lines.clock = 0;
        self.name_log(now)?;
        self.manifest(now)
    }

    /// A line with a literal begins its own member: patched old tools lose what follows one.
    pub(super) fn own_member(&mut self, now: Timestamp) -> Result<()> {
        if self.log.plain_position() > CHUNK_START.len() as u64 {
            self.end_chunk()?;
            self.begin_chunk(now)?;
            self.clock(now)?;
        }
        Ok(())
    }

    /// Ends the open member in the middle of a unit; nothing is durable by that.
    pub(super) fn end_chunk(&mut self) -> Result<()> {
        if let Some(id) = self.chunk.take() {
            let sealed = self.log.seal()?;
            self.index
                .end_chunk(id, sealed.length, sealed.plain_length, &sealed.sha256)?;
        }
        Ok(())
    }

    /// The open chunk.
    pub(super) fn chunk_id(&self) -> Result<i64> {
        self.chunk
            .ok_or_else(|| Error::new(Kind::Internal, "no chunk is open"))
    }

    /// States the true time when the printed one is off by more than a second: it never goes back.
    pub(super) fn clock(&mut self, now: Timestamp) -> Result<()> {
        let off = now.0 - self.stamp.max(now.0);
        if (off - self.lines.clock).abs() <= 1 {
            return Ok(());
        }
        let fact = Value::kv([("TIME", Value::num(now.0 * 1000))]);
        self.put(&Line::private("CLOCK", fact), now)?;
        Ok(())
    }

    /// Lists the members sealed since the last manifest, when there are enough of them.
    fn manifest(&mut self, now: Timestamp) -> Result<()> {
        let listed = self.index.meta_number("manifest")?.unwrap_or(0);
        let chunk = self.chunk_id()?;
        if chunk - 1 - listed < MANIFEST_EVERY {
            return Ok(());
        }
        let mut members = Vec::new();
        let mut from = None;
        let (mut end, until) = (0, self.log.member_offset());
        for row in self.index.chunks_after(listed)? {
            if let (Some(length), Some(sha256)) = (row.length, &row.sha256) {
                from.get_or_insert(row.offset);
                // What is written stays: not what cannot be.
                if row.offset < end || row.offset.saturating_add(length) > until {
                    let what = format!("chunk {} cannot be where the index says", row.id);
                    return Err(self.index.doubted(&what));
                }
                end = row.offset + length;
                members.push(Value::num(length));
                members.push(Value::text(hex::encode(sha256)));
            }
        }
        let fact = Value::kv([
            ("FROM", Value::num(from.unwrap_or(0))),
            ("MEMBERS", Value::List(members)),
        ]);
        self.put(&Line::private("MANIFEST", fact), now)?;
        Ok(())
    }
}
