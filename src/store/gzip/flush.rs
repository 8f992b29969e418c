//! Where a torn member can be cut, and where the next member starts after damage.

use super::{CHUNK_HEADER, MAGIC, MemberEnd, MemberReader};
use crate::store::file::{FileReader, LogFile};
use std::io::{self, Read};

/// A place at which a member can be cut and sealed: a block ends there at a byte boundary.
///
/// It is proved, not guessed: the decoder itself arrived there, so the bytes up to it, followed by
/// `seal_bytes(crc, plain)`, are a valid member of exactly `plain` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushPoint {
    /// Offset from the start of the member, compressed bytes.
    pub compressed: u64,
    /// Plain bytes before it.
    pub plain: u64,
    /// CRC-32 of those plain bytes.
    pub crc: u32,
}

/// Walks the member at which `inner` stands and shows `visit` every flush point in order; goes on while it
/// answers true. Returns how the member ended ([`MemberEnd::Torn`] if the walk was stopped).
/// Memory is constant. Errors are those of `inner`; damage is an answer.
pub fn flush_points(
    inner: impl Read,
    mut visit: impl FnMut(FlushPoint) -> bool,
) -> io::Result<MemberEnd> {
    let mut reader = MemberReader::with(inner, true);
    loop {
        if let Some(point) = reader.pump()? {
            if !visit(point) {
                return Ok(MemberEnd::Torn);
            }
        } else if let Some(end) = reader.ended() {
            return Ok(end);
        }
    }
}

/// The last flush point at or before the plain offset `limit`, if there is one.
pub fn last_flush_point(inner: impl Read, limit: u64) -> io::Result<Option<FlushPoint>> {
    let mut last = None;
    flush_points(inner, |point| {
        if point.plain <= limit {
            last = Some(point);
        }
        point.plain <= limit
    })?;
    Ok(last)
}

/// The offset of the first chunk at or behind `from`: a gzip header whose plain text begins like a
/// chunk. None if there is no further one. Reads on to the end of the file if it must.
pub fn find_next_member(file: &dyn LogFile, from: u64) -> io::Result<Option<u64>> {
    let mut window = vec![0; 64 * 1024];
    let mut start = from;
    loop {
        let mut filled = 0;
        while filled < window.len() {
            match file.read_at(&mut window[filled..], start + filled as u64)? {
                0 => break,
                got => filled += got,
            }
        }
        let bytes = &window[..filled];
        for at in 0..filled.saturating_sub(MAGIC.len() - 1) {
            if bytes[at..at + MAGIC.len()] == MAGIC && is_chunk(file, start + at as u64)? {
                return Ok(Some(start + at as u64));
            }
        }
        if filled < window.len() {
            return Ok(None);
        }
        // A magic may lie across the border of two windows.
        start += (filled - (MAGIC.len() - 1)) as u64;
    }
}

/// True if a member with a chunk's first line starts at `offset`. Development versions of old appended
/// a number to that line; it is not compared.
fn is_chunk(file: &dyn LogFile, offset: u64) -> io::Result<bool> {
    let want = &CHUNK_HEADER[..CHUNK_HEADER.len() - 2];
    let mut reader = MemberReader::new(FileReader::new(file, offset));
    let mut first = vec![0; want.len()];
    match reader.read_exact(&mut first) {
        Ok(()) => Ok(first == want),
        Err(e) => match e.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Ok(false),
            _ => Err(e),
        },
    }
}
