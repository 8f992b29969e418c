//! The open data file: members appended, cut back, sealed. The one writer's tool; the lock is elsewhere.
//!
//! Promises: what [`Log::sync`] or [`Log::seal`] returned for is on stable storage. What a flush wrote
//! ends at a flush point, so a torn tail can be cut there and sealed. After a failed append, flush or
//! seal nothing more is appended until [`Log::rewind`] has cut the file back: never anything behind
//! garbage. A failed sync poisons the log, since the kernel may have dropped the bytes: it is not
//! retried, and every later call fails with the same kind; so does a failed rewind. A rewind then still cuts the file, but fails.
//!
//! Format: doc/format.md; members as in `store::gzip`. While much streams in, a helper thread deflates,
//! hashes and writes beside the caller; it is started by the first full buffer and joined by the next
//! flush, so small syncs never see it. Memory for an open member is about 1.3 MB while it runs.
#![forbid(unsafe_code)]

mod chunk;
mod helper;
mod sink;

pub use chunk::read_chunk_plain;

use crate::error::{Error, Kind, Result};
use crate::store::file::LogFile;
use crate::store::gzip::CHUNK_HEADER;
use helper::Helper;
use sha2::{Digest, Sha256};
use sink::Sink;
use std::sync::Arc;

/// Plain bytes are collected up to this size before they are deflated.
const BUFFER: usize = 128 * 1024;

/// What a buffer keeps while nothing is appended.
const KEPT: usize = 16 * 1024;

/// A data file open for appending. Dropping it forgets what was not flushed.
pub struct Log {
    file: Arc<dyn LogFile>,
    level: u8,
    /// Everything before it is written.
    end: u64,
    member: Option<Member>,
    /// Plain bytes that are not deflated yet.
    buffer: Vec<u8>,
    unsynced: bool,
    fault: Option<Fault>,
}

/// The member being written.
struct Member {
    offset: u64,
    plain_position: u64,
    engine: Engine,
}

/// Where the deflating is done.
enum Engine {
    Here(Box<Sink>),
    Away(Helper),
    /// Lost in a failure: only a rewind helps.
    Lost,
}

/// Why nothing can be appended.
struct Fault {
    kind: Kind,
    text: String,
    lasting: bool,
}

/// A place to come back to: a flush point, or the end of a sealed member.
#[derive(Clone)]
pub struct Checkpoint {
    end: u64,
    member: Option<MemberPoint>,
}

#[derive(Clone)]
struct MemberPoint {
    offset: u64,
    plain_len: u64,
    crc: u32,
    hash: Sha256,
}

impl Checkpoint {
    /// The length of the file, in bytes.
    pub fn file_len(&self) -> u64 {
        self.end
    }

    /// The plain length of the open member, if one was open.
    pub fn plain_len(&self) -> Option<u64> {
        self.member.as_ref().map(|m| m.plain_len)
    }
}

/// A completed member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Where it starts in the file.
    pub offset: u64,
    /// Its compressed bytes.
    pub length: u64,
    /// Its plain bytes.
    pub plain_length: u64,
    /// SHA-256 of the compressed bytes.
    pub sha256: [u8; 32],
}

impl Log {
    /// Appends to `file`, whose length `end` is the end of a member (or 0), at compression level 0 to 9.
    /// Writes nothing yet.
    pub fn new(file: Arc<dyn LogFile>, end: u64, level: u8) -> Log {
        Log {
            file,
            level,
            end,
            member: None,
            buffer: Vec::new(),
            unsynced: false,
            fault: None,
        }
    }

    /// Starts a member at the end of the file; `extra` are gzip FEXTRA subfields, or nothing. Its first plain
    /// bytes are [`CHUNK_HEADER`]. Nothing reaches the file before a flush or a full buffer.
    pub fn begin(&mut self, extra: &[u8]) -> Result<()> {
        self.sound()?;
        if self.member.is_some() {
            return Err(Error::new(Kind::Internal, "a chunk is open already"));
        }
        let sink = Sink::begin(Arc::clone(&self.file), self.end, self.level, extra);
        self.buffer.clear();
        self.member = Some(Member {
            offset: self.end,
            plain_position: 0,
            engine: Engine::Here(Box::new(sink)),
        });
        self.append(CHUNK_HEADER)
    }

    /// True while a member is being written.
    pub fn is_open(&self) -> bool {
        self.member.is_some()
    }

    /// Where the open member starts in the file; without one, where the next will start.
    pub fn member_offset(&self) -> u64 {
        self.member.as_ref().map_or(self.end, |m| m.offset)
    }

    /// The offset in the open chunk of the next plain byte; 0 without one.
    pub fn plain_position(&self) -> u64 {
        self.member.as_ref().map_or(0, |m| m.plain_position)
    }

    /// The length of the file up to the last flush, in bytes.
    pub fn file_len(&self) -> u64 {
        self.end
    }

    /// Appends plain bytes. May block on the disk or on the helper thread; an error may be that of earlier
    /// bytes. After one, [`Log::rewind`].
    pub fn append(&mut self, plain: &[u8]) -> Result<()> {
        self.open_and_sound()?;
        let done = self.append_inner(plain);
        self.note(done)
    }

    /// Deflates and writes all that was appended, up to a flush point. Returns the length of the file.
    pub fn flush(&mut self) -> Result<u64> {
        self.sound()?;
        let done = self.flush_inner();
        self.note(done)?;
        Ok(self.end)
    }

    /// [`Log::flush`], and all of it on stable storage. Does not ask the disk if nothing changed.
    pub fn sync(&mut self) -> Result<u64> {
        self.flush()?;
        self.sync_file()?;
        Ok(self.end)
    }

    /// Flushes, and marks the place for [`Log::rewind`].
    pub fn checkpoint(&mut self) -> Result<Checkpoint> {
        self.flush()?;
        let member = self.member.as_ref().and_then(|m| match &m.engine {
            Engine::Here(sink) => Some(MemberPoint {
                offset: m.offset,
                plain_len: sink.writer.plain_len(),
                crc: sink.writer.crc(),
                hash: sink.hash.clone(),
            }),
            _ => None,
        });
        Ok(Checkpoint {
            end: self.end,
            member,
        })
    }

    /// Cuts the file back to `point` and goes on from there, inside the member that was open then. A
    /// member begun since is gone. Clears what a failed append left; a failure here poisons the log.
    pub fn rewind(&mut self, point: &Checkpoint) -> Result<()> {
        if self.fault.as_ref().is_some_and(|f| f.lasting) {
            // Not to go on: what the kernel may have dropped must not look as if it were there to
            // whoever opens the file next. If that fails too, nothing is lost by having tried.
            let _ = self.cut(point.end);
            return self.sound();
        }
        // Ends the helper, so that nothing is written behind the cut.
        self.member = None;
        self.buffer.clear();
        if let Err(e) = self.cut(point.end) {
            return Err(self.poison(e));
        }
        self.end = point.end;
        self.unsynced = true;
        self.fault = None;
        self.member = point.member.as_ref().map(|m| Member {
            offset: m.offset,
            plain_position: m.plain_len,
            engine: Engine::Here(Box::new(Sink::resume(
                Arc::clone(&self.file),
                point.end,
                self.level,
                m.plain_len,
                m.crc,
                m.hash.clone(),
            ))),
        });
        Ok(())
    }

    /// Completes the open member; it is on stable storage then.
    pub fn seal(&mut self) -> Result<Sealed> {
        self.open_and_sound()?;
        let done = self.seal_inner();
        let sealed = self.note(done)?;
        self.sync_file()?;
        Ok(sealed)
    }

    /// Shows `sink` the plain bytes `offset..offset + len` of the open member. Flushes first; inflates from the
    /// member's start.
    pub fn read_plain(
        &mut self,
        offset: u64,
        len: u64,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.open_and_sound()?;
        self.flush()?;
        match &self.member {
            Some(member) => read_chunk_plain(&*self.file, member.offset, offset, len, sink),
            None => Err(lost()),
        }
    }

    fn append_inner(&mut self, mut plain: &[u8]) -> Result<()> {
        let member = self.member.as_mut().ok_or_else(lost)?;
        member.plain_position += plain.len() as u64;
        while !plain.is_empty() {
            let room = BUFFER - self.buffer.len();
            let (now, later) = plain.split_at(room.min(plain.len()));
            self.buffer.extend_from_slice(now);
            plain = later;
            if self.buffer.len() == BUFFER {
                member.hand_over(&mut self.buffer)?;
            }
        }
        Ok(())
    }

    fn flush_inner(&mut self) -> Result<()> {
        if let Some(member) = &mut self.member {
            let sink = member.home()?;
            sink.put(&self.buffer)?;
            empty(&mut self.buffer);
            sink.flush()?;
            self.unsynced |= sink.end != self.end;
            self.end = sink.end;
        }
        Ok(())
    }

    fn seal_inner(&mut self) -> Result<Sealed> {
        let mut member = self.member.take().ok_or_else(lost)?;
        let sink = member.home()?;
        sink.put(&self.buffer)?;
        self.buffer.clear();
        let Engine::Here(sink) = member.engine else {
            return Err(lost());
        };
        let (end, hash) = sink.finish()?;
        self.unsynced = true;
        self.end = end;
        Ok(Sealed {
            offset: member.offset,
            length: end - member.offset,
            plain_length: member.plain_position,
            sha256: hash.finalize().into(),
        })
    }

    fn sync_file(&mut self) -> Result<()> {
        if self.unsynced {
            if let Err(e) = self.file.sync_data() {
                return Err(self.poison(Error::io("cannot sync", e)));
            }
            self.unsynced = false;
        }
        Ok(())
    }

    fn cut(&self, len: u64) -> Result<()> {
        let io = |e| Error::io("cannot cut back", e);
        if self.file.len().map_err(io)? < len {
            return Err(Error::new(Kind::Damaged, "the file is shorter than it was"));
        }
        self.file.set_len(len).map_err(io)
    }

    /// An error while no member is open, or it cannot be appended to.
    fn open_and_sound(&self) -> Result<()> {
        self.sound()?;
        match self.member {
            Some(_) => Ok(()),
            None => Err(Error::new(Kind::Internal, "no chunk is open")),
        }
    }

    /// An error while the log cannot be appended to.
    fn sound(&self) -> Result<()> {
        match &self.fault {
            None => Ok(()),
            Some(fault) => Err(Error::new(fault.kind, fault.text.clone())),
        }
    }

    /// Remembers a failure: until a rewind nothing more is appended.
    fn note<T>(&mut self, done: Result<T>) -> Result<T> {
        if let Err(e) = &done {
            self.fault = Some(Fault {
                kind: e.kind(),
                text: format!("not appending after an error: {e}"),
                lasting: false,
            });
        }
        done
    }

    fn poison(&mut self, e: Error) -> Error {
        self.member = None;
        self.fault = Some(Fault {
            kind: e.kind(),
            text: format!("closed after an error: {e}"),
            lasting: true,
        });
        e
    }
}

impl Member {
    /// Gives a full buffer to the helper, and takes an empty one.
    fn hand_over(&mut self, buffer: &mut Vec<u8>) -> Result<()> {
        if let Engine::Here(_) = self.engine {
            let Engine::Here(sink) = std::mem::replace(&mut self.engine, Engine::Lost) else {
                return Ok(());
            };
            self.engine = match Helper::start(sink) {
                Ok(helper) => Engine::Away(helper),
                Err(sink) => Engine::Here(sink),
            };
        }
        match &mut self.engine {
            Engine::Away(helper) => {
                if helper.give(buffer) {
                    return Ok(());
                }
                self.home()?;
                Err(Error::new(Kind::Internal, "the helper stopped"))
            }
            // No thread to be had: slower, but right.
            Engine::Here(sink) => {
                sink.put(buffer)?;
                buffer.clear();
                Ok(())
            }
            Engine::Lost => Err(lost()),
        }
    }

    /// Waits for the helper, if there is one; its errors are ours.
    fn home(&mut self) -> Result<&mut Sink> {
        if let Engine::Away(_) = self.engine {
            if let Engine::Away(helper) = std::mem::replace(&mut self.engine, Engine::Lost) {
                let (sink, done) = helper.join()?;
                self.engine = Engine::Here(sink);
                done?;
            }
        }
        match &mut self.engine {
            Engine::Here(sink) => Ok(sink),
            _ => Err(lost()),
        }
    }
}

/// Clears a buffer at a point after which nothing may come for long: a large one is freed.
fn empty(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.shrink_to(KEPT);
}

fn lost() -> Error {
    Error::new(Kind::Internal, "the chunk is lost")
}

#[cfg(test)]
mod tests;
