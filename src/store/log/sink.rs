//! Plain bytes to the file: deflate, hash, write.

use crate::error::{Error, Result};
use crate::store::file::LogFile;
use crate::store::gzip::MemberWriter;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Compressed bytes are written when there are this many.
const WRITE: usize = 64 * 1024;

/// The open member's way to the file. Goes to the helper thread and comes back.
pub(super) struct Sink {
    file: Arc<dyn LogFile>,
    pub(super) writer: MemberWriter,
    /// SHA-256 of the member's compressed bytes up to `end`.
    pub(super) hash: Sha256,
    /// Where the next compressed byte goes in the file.
    pub(super) end: u64,
    out: Vec<u8>,
}

impl Sink {
    /// A new member at `end`.
    pub(super) fn begin(file: Arc<dyn LogFile>, end: u64, level: u8, extra: &[u8]) -> Sink {
        let mut out = Vec::new();
        Sink {
            file,
            writer: MemberWriter::new(level, extra, &mut out),
            hash: Sha256::new(),
            end,
            out,
        }
    }

    /// The member that was cut back to `end`, a flush point.
    pub(super) fn resume(
        file: Arc<dyn LogFile>,
        end: u64,
        level: u8,
        plain_len: u64,
        crc: u32,
        hash: Sha256,
    ) -> Sink {
        Sink {
            file,
            writer: MemberWriter::resume(level, plain_len, crc),
            hash,
            end,
            out: Vec::new(),
        }
    }

    /// Takes plain bytes; writes when there is enough.
    pub(super) fn put(&mut self, plain: &[u8]) -> Result<()> {
        self.writer.write(plain, &mut self.out);
        if self.out.len() >= WRITE {
            self.drain()?;
        }
        Ok(())
    }

    /// Writes everything up to a flush point.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.writer.flush(&mut self.out);
        self.drain()?;
        super::empty(&mut self.out);
        Ok(())
    }

    /// Completes the member; returns the end of the file and the hash of the whole member.
    pub(super) fn finish(self) -> Result<(u64, Sha256)> {
        let mut sink = self;
        let writer = std::mem::replace(&mut sink.writer, MemberWriter::resume(0, 0, 0));
        writer.finish(&mut sink.out);
        sink.drain()?;
        Ok((sink.end, sink.hash))
    }

    fn drain(&mut self) -> Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        self.file
            .write_at(&self.out, self.end)
            .map_err(|e| Error::io("cannot append", e))?;
        self.hash.update(&self.out);
        self.end += self.out.len() as u64;
        self.out.clear();
        Ok(())
    }
}
