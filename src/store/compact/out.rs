//! Members being written: to memory, for a thread of its own, or to the new log.
//!
//! Nothing is synced here. The header of what compaction wrote says so (XFL 2): a hint, by which
//! the next run knows what need not be deflated again.

use crate::error::{Error, Kind, Result};
use crate::store::file::LogFile;
use crate::store::gzip::{CHUNK_HEADER, MemberWriter};

/// Plain bytes are collected up to this size before they are deflated.
const BUFFER: usize = 128 * 1024;
/// Compressed bytes are written when there are this many.
const WRITE: usize = 256 * 1024;

/// Where XFL stands in a member's header.
pub const XFL_AT: usize = 8;
/// Its value in members that compaction wrote.
pub const XFL: u8 = 2;

/// Where compressed bytes go.
enum To<'a> {
    Memory(Vec<u8>),
    File(&'a dyn LogFile, u64),
}

/// Writes members one after the other.
pub struct Out<'a> {
    to: To<'a>,
    level: u8,
    writer: Option<MemberWriter>,
    compressed: Vec<u8>,
    plain: Vec<u8>,
    position: u64,
    members: u64,
    written: u64,
}

impl<'a> Out<'a> {
    fn new(to: To<'a>, level: u8) -> Out<'a> {
        Out {
            to,
            level,
            writer: None,
            compressed: Vec::new(),
            plain: Vec::new(),
            position: 0,
            members: 0,
            written: 0,
        }
    }

    /// Members in memory, back to back.
    pub fn memory(level: u8) -> Out<'static> {
        Out::new(To::Memory(Vec::new()), level)
    }

    /// Members at the end of a file.
    pub fn file(file: &'a dyn LogFile, end: u64, level: u8) -> Out<'a> {
        Out::new(To::File(file, end), level)
    }

    /// Whether a member is open.
    pub fn is_open(&self) -> bool {
        self.writer.is_some()
    }

    /// Members that were begun.
    pub fn members(&self) -> u64 {
        self.members
    }

    /// Plain bytes of all members.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Plain bytes of the open member.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Begins a member with the first line of every chunk.
    pub fn begin(&mut self) -> Result<()> {
        let at = self.compressed.len();
        self.writer = Some(MemberWriter::new(self.level, &[], &mut self.compressed));
        if let Some(xfl) = self.compressed.get_mut(at + XFL_AT) {
            *xfl = XFL;
        }
        self.position = 0;
        self.members += 1;
        self.write(CHUNK_HEADER)
    }

    /// Adds plain bytes to the open member.
    pub fn write(&mut self, plain: &[u8]) -> Result<()> {
        self.position += plain.len() as u64;
        self.written += plain.len() as u64;
        self.plain.extend_from_slice(plain);
        if self.plain.len() >= BUFFER {
            self.deflate()?;
        }
        Ok(())
    }

    fn deflate(&mut self) -> Result<()> {
        let writer = self.writer.as_mut().ok_or_else(none_open)?;
        writer.write(&self.plain, &mut self.compressed);
        self.plain.clear();
        self.drain(WRITE)
    }

    fn drain(&mut self, least: usize) -> Result<()> {
        if self.compressed.len() < least {
            return Ok(());
        }
        match &mut self.to {
            To::Memory(bytes) => bytes.append(&mut self.compressed),
            To::File(file, end) => {
                file.write_at(&self.compressed, *end)
                    .map_err(|e| Error::io("cannot write", e))?;
                *end += self.compressed.len() as u64;
                self.compressed.clear();
            }
        }
        Ok(())
    }

    /// Ends the open member, if there is one.
    pub fn end(&mut self) -> Result<()> {
        if !self.is_open() {
            return Ok(());
        }
        self.deflate()?;
        let writer = self.writer.take().ok_or_else(none_open)?;
        writer.finish(&mut self.compressed);
        self.position = 0;
        self.drain(0)
    }

    /// Ends the open member. The bytes, if they are in memory, else the end of the file.
    pub fn finish(mut self) -> Result<(Vec<u8>, u64)> {
        self.end()?;
        Ok(match self.to {
            To::Memory(bytes) => (bytes, 0),
            To::File(_, end) => (Vec::new(), end),
        })
    }
}

fn none_open() -> Error {
    Error::new(Kind::Internal, "no member is open")
}
