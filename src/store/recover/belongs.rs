//! Whether a log is one of ours, and whether an index was made from it.
//!
//! A log of ours names its generation in the first line. One that began with the old tools names it
//! further back, if at all, and is known by its first bytes. What does not read is no answer; what the
//! disk does not give is an error.

use crate::cyrus::dlist::{Limits, Parser, Value};
use crate::error::{Error, Kind, Result};
use crate::store::file::{FileReader, LogFile};
use crate::store::gzip::{MemberEnd, MemberReader};
use crate::store::index::Index;
use crate::store::line::PRIVATE;
use crate::store::reindex::hash;
use crate::util::hex;
use std::io::Read;

/// Compressed bytes in which the first line of a log of ours stands, unless names are very long.
const FIRST_LINE: u64 = 1024;

/// Bytes at the beginning of an old log that tell it from others: they hold the time and what was
/// said first.
pub(super) const HEAD: u64 = 4096;

/// The generation named in the first member, `None` in a log that is not (yet) ours.
pub fn generation(file: &dyn LogFile) -> Result<Option<String>> {
    // Every idle session asks this: inflate no more than is needed.
    match generation_in(FileReader::until(file, 0, FIRST_LINE))? {
        Some(id) => Ok(Some(id)),
        None => generation_in(FileReader::new(file, 0)),
    }
}

fn generation_in(bytes: impl Read) -> Result<Option<String>> {
    let mut parser = Parser::new(MemberReader::new(bytes), Limits::default());
    let mut read = || -> Result<Option<String>> {
        parser.word(|b| b != b'\n')?;
        parser.end_line()?;
        parser.word(|b| b.is_ascii_digit())?;
        parser.space()?;
        parser.word(|b| b.is_ascii_alphabetic())?;
        parser.space()?;
        if parser.word(|b| b.is_ascii_alphabetic())? != b"RESERVE" {
            return Ok(None);
        }
        parser.space()?;
        Ok(parser
            .value()?
            .get(PRIVATE)
            .and_then(|p| p.get("GENERATION"))
            .and_then(|g| g.get("ID"))
            .and_then(Value::as_str)
            .map(str::to_owned))
    };
    match read() {
        Ok(found) => Ok(found),
        Err(e) if e.kind() == Kind::Io || e.kind() == Kind::Protocol => {
            // A torn first line is the business of whoever enters the log; what the disk does not
            // give is no line at all.
            match parser.into_inner().end() {
                Ok(_) => Ok(None),
                Err(e) => Err(Error::io("cannot read log", e)),
            }
        }
        Err(e) => Err(e),
    }
}

/// Whether an index was made from this log, as far as their beginnings say. A log that began with
/// the old tools names its generation further back, if at all, and is known by its first bytes.
pub(in crate::store) fn belongs(index: &Index, file: &dyn LogFile) -> Result<bool> {
    let Some(known) = index.meta_text("generation")? else {
        return Ok(false);
    };
    if generation(file)?.as_ref() == Some(&known) {
        return Ok(true);
    }
    // The first member names none, or what it names does not read as a line.
    if let Some(known) = index.meta_text("origin")? {
        let len = known.split(':').next().and_then(|n| n.parse().ok());
        if known == origin(file, len.unwrap_or(0).min(HEAD))? {
            return Ok(true);
        }
    }
    Ok(!known.is_empty() && !first_reads(file)? && has_last_member(index, file)?)
}

/// What ties an index to a log whose first member names no generation: how many bytes at its
/// beginning were looked at, and their SHA-256.
pub(super) fn origin(file: &dyn LogFile, len: u64) -> Result<String> {
    Ok(format!("{len}:{}", hex::encode(&hash(file, 0, len)?)))
}

/// Whether the first member reads to its end, or to that of the file.
pub(super) fn first_reads(file: &dyn LogFile) -> Result<bool> {
    let fail = |e| Error::io("cannot read log", e);
    if !starts_as_member(file)? {
        return Ok(false);
    }
    let mut member = MemberReader::new(FileReader::new(file, 0));
    match std::io::copy(&mut member, &mut std::io::sink()) {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => return Ok(false),
        Err(e) => return Err(fail(e)),
    }
    Ok(!matches!(
        member.end().map_err(fail)?,
        MemberEnd::Damaged(_)
    ))
}

/// Whether the last sealed member that an index knows is in the log, byte for byte, where it says;
/// it is not the first one.
fn has_last_member(index: &Index, file: &dyn LogFile) -> Result<bool> {
    let mut id = index.last_chunk()?.map_or(0, |c| c.id);
    while let Some(chunk) = index.chunk(id)?.filter(|c| c.offset > 0) {
        if let (Some(length), Some(sha256)) = (chunk.length, &chunk.sha256) {
            return Ok(hash(file, chunk.offset, length)?[..] == sha256[..]);
        }
        id -= 1;
    }
    Ok(false)
}

/// Whether a log is one of ours, or torn so early that its first line does not say yet.
pub(in crate::store) fn begun_here(file: &dyn LogFile) -> Result<bool> {
    if generation(file)?.is_some() {
        return Ok(true);
    }
    if !starts_as_member(file)? {
        return Ok(false);
    }
    let mut member = MemberReader::new(FileReader::new(file, 0));
    let mut text = Vec::new();
    let fail = |e| Error::io("cannot read log", e);
    match member.by_ref().take(HEAD).read_to_end(&mut text) {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => return Ok(false),
        Err(e) => return Err(fail(e)),
    }
    let first = text.iter().filter(|&&b| b == b'\n').count() < 2 && (text.len() as u64) < HEAD;
    Ok(first && member.end().map_err(fail)? == MemberEnd::Torn)
}

/// Whether a file begins as a member does.
pub(super) fn starts_as_member(file: &dyn LogFile) -> Result<bool> {
    let mut magic = [0; 3];
    let n = file
        .read_at(&mut magic, 0)
        .map_err(|e| Error::io("cannot read", e))?;
    // A shorter file may be the very beginning of one.
    Ok([0x1f, 0x8b, 8].starts_with(&magic[..n]))
}
