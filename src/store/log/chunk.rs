//! Plain bytes out of a chunk, sealed or still open.

use crate::error::{Error, Kind, Result};
use crate::store::file::{FileReader, LogFile};
use crate::store::gzip::MemberReader;
use std::io::{BufRead, ErrorKind};

/// Shows `sink` the plain bytes `plain_offset..plain_offset + len` of the member at `member_offset`, in order
/// and in pieces of at most 160 KiB. Inflates from the member's start, in constant memory, and stops
/// behind the last byte asked for: neither CRC nor trailer are judged.
///
/// `Damaged` if the member ends or breaks before that; errors of `sink` pass through.
pub fn read_chunk_plain(
    file: &dyn LogFile,
    member_offset: u64,
    plain_offset: u64,
    len: u64,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut reader = MemberReader::new(FileReader::new(file, member_offset));
    let mut skip = plain_offset;
    let mut left = len;
    while left > 0 {
        let plain = match reader.fill_buf() {
            Ok(plain) => plain,
            Err(e) if e.kind() == ErrorKind::InvalidData => {
                return Err(Error::new(Kind::Damaged, "damaged chunk")
                    .place(format!("file offset {member_offset}"))
                    .because(e));
            }
            Err(e) => return Err(Error::io("cannot read chunk", e)),
        };
        if plain.is_empty() {
            return Err(Error::new(Kind::Damaged, "chunk ends too early")
                .place(format!("file offset {member_offset}"))
                .place(format!("plain offset {}", reader.plain_len())));
        }
        let size = plain.len();
        let start = usize::try_from(skip).map_or(size, |n| n.min(size));
        let take = usize::try_from(left).unwrap_or(size).min(size - start);
        if take > 0 {
            sink(&plain[start..start + take])?;
        }
        skip -= start as u64;
        left -= take as u64;
        reader.consume(size);
    }
    Ok(())
}
