//! Manifests: what a log says of its own members, so that `verify` need not take the index's word.
//!
//! A MANIFEST fact lists length and SHA-256 of the members before it, from where the one before it
//! stands (`doc/format.md` 3.5). They are found from the end backwards: the index tells in which chunk the
//! last one is, and each begins with the chunk of the one before. Of those chunks only the lines up
//! to the fact are inflated. Chunks that do not read are told elsewhere; what lies before one is
//! then known to the index only.

use super::file::FileReader;
use super::gzip::MemberReader;
use super::index::ChunkRow;
use super::line::PRIVATE;
use super::reader::Reader;
use super::reindex::{comment, end_line, first_line, head, skip};
use crate::cyrus::dlist::{Limits, Parser, Value};
use crate::error::{Kind, Result};
use crate::util::hex;
use std::collections::HashMap;

/// A member as it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) sha256: [u8; 32],
}

/// A member that is not what a manifest says.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) what: String,
    /// Where it should begin.
    pub(super) offset: u64,
    /// The chunk that begins there.
    pub(super) chunk: Option<i64>,
}

/// What one manifest says.
struct Manifest {
    from: u64,
    /// Length and hash, in order.
    members: Vec<(u64, [u8; 32])>,
}

/// Compares the members of a log with its manifests. `chunks` are all rows of the index, `members`
/// those that could be read.
pub(super) fn compare(
    reader: &Reader,
    chunks: &[ChunkRow],
    members: &[Member],
) -> Result<Vec<Wrong>> {
    let at: HashMap<u64, &Member> = members.iter().map(|m| (m.offset, m)).collect();
    let mut wrong = Vec::new();
    let Some(listed) = reader.index().meta_number("manifest")? else {
        return Ok(wrong);
    };
    let mut place = chunks.iter().position(|c| c.id == listed + 1);
    // Nothing is listed by the first.
    while let Some(n) = place.filter(|&n| n > 0) {
        let Some(manifest) = read(reader, &chunks[n])? else {
            break;
        };
        let mut position = manifest.from;
        for (length, sha256) in &manifest.members {
            let is = |m: &&Member| m.length == *length && m.sha256 == *sha256;
            let found = match at.get(&position).copied().filter(is) {
                // Logs of the old tools have gaps.
                None => members.iter().filter(|m| m.offset > position).find(is),
                found => found,
            };
            if let Some(found) = found {
                position = found.offset + length;
                continue;
            }
            wrong.push(Wrong {
                what: format!(
                    "member of {length} bytes is not what the manifest in chunk {} says",
                    chunks[n].id
                ),
                offset: position,
                chunk: chunks.iter().find(|c| c.offset == position).map(|c| c.id),
            });
            position = position.saturating_add(*length);
        }
        let before = chunks[..n].iter().position(|c| c.offset == manifest.from);
        place = before.filter(|&before| before < n);
    }
    Ok(wrong)
}

/// The manifest in a chunk; `None` if there is none or it does not read.
fn read(reader: &Reader, chunk: &ChunkRow) -> Result<Option<Manifest>> {
    let until = chunk
        .length
        .map_or(u64::MAX, |n| chunk.offset.saturating_add(n));
    let bytes = FileReader::until(reader.file(), chunk.offset, until);
    let mut parser = Parser::new(MemberReader::new(bytes), Limits::default());
    let mut search = || -> Result<Option<Manifest>> {
        if !first_line(&mut parser)? {
            return Ok(None);
        }
        loop {
            match parser.peek()? {
                None => return Ok(None),
                Some(b'#') => {
                    comment(&mut parser)?;
                    continue;
                }
                Some(_) => {}
            }
            if head(&mut parser)?.1 != b"RESERVE" {
                skip(&mut parser, 0)?;
                end_line(&mut parser)?;
                continue;
            }
            let value = parser.value()?;
            end_line(&mut parser)?;
            if let Some(fact) = value.get(PRIVATE).and_then(|facts| facts.get("MANIFEST")) {
                return Ok(parse(fact));
            }
        }
    };
    match search() {
        Err(e) if matches!(e.kind(), Kind::Io | Kind::Protocol | Kind::Damaged) => Ok(None),
        found => found,
    }
}

fn parse(fact: &Value) -> Option<Manifest> {
    let Value::List(words) = fact.get("MEMBERS")? else {
        return None;
    };
    let pairs = words.chunks_exact(2);
    let member = |pair: &[Value]| {
        let (length, hash) = (pair.first()?.as_u64()?, pair.get(1)?.as_bytes()?);
        Some((length, hex::decode(hash)?))
    };
    Some(Manifest {
        from: fact.get("FROM")?.as_u64()?,
        members: pairs.map(member).collect::<Option<_>>()?,
    })
}
