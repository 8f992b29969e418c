//! Gzip members: writing them with flush points, reading them in constant memory, mending torn ones.
//!
//! A backup's log is members back to back (RFC 1952); one member is one chunk, and its plain text starts
//! with [`CHUNK_HEADER`]. A member that is being written ends every durable point with a sync flush, an
//! empty stored block (`00 00 FF FF`) after which the stream is byte-aligned; so a torn member can be
//! cut there and closed with [`seal_bytes`]. Layout of a member as we write it:
//!
//! ```text
//!   1f 8b 08 FLG 00000000 00 03   FLG is 4 when extra bytes follow, else 0; no time; Unix
//!   [XLEN u16 LE, extra bytes]    hints that may be lost
//!   deflate blocks                any mix of our own and miniz_oxide's
//!   03 00                         the final block, empty
//!   CRC32 u32 LE, ISIZE u32 LE    of the plain bytes; the length modulo 2^32
//! ```
//!
//! Pure: bytes in, bytes out. Old and foreign members (any encoder, any optional header field) are read
//! as well. Damage is an error that says where; a member that just stops is [`MemberEnd::Torn`], which
//! is normal for the last one.
#![forbid(unsafe_code)]

mod choose;
mod flush;
mod huffman;
mod inflate;
mod read;
mod write;

pub use flush::{FlushPoint, find_next_member, flush_points, last_flush_point};
pub use read::{MemberEnd, MemberReader};
pub use write::MemberWriter;

/// The first plain bytes of every chunk.
pub const CHUNK_HEADER: &[u8; 29] = b"# cyrus backup: chunk start\r\n";

/// What every member starts with: magic and the deflate method.
pub(crate) const MAGIC: [u8; 3] = [0x1f, 0x8b, 0x08];

/// The bytes that complete a member which was cut at a flush point: the final block, the CRC-32 of the
/// plain bytes and their count (stored modulo 2^32).
pub fn seal_bytes(crc: u32, plain_len: u64) -> [u8; 10] {
    let mut seal = [3, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    seal[2..6].copy_from_slice(&crc.to_le_bytes());
    seal[6..].copy_from_slice(&(plain_len as u32).to_le_bytes());
    seal
}

#[cfg(test)]
pub(crate) mod tests;
