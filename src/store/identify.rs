//! Whose log a file is, by what stands in it; its name is not looked at.
//!
//! A log begins with a gzip member whose first line is the chunk line. Ours name their owner in the
//! GENERATION fact, the first line of all; in those of the old tools, and where the first member
//! does not read, it is the owner of the first mailbox or userid that a line names. Nothing is
//! written and no lock is taken. Damage costs the rest of its member; fails with `Io` only.
//! Format: `doc/format.md`, 3 and 6.

use super::file::{FileReader, LogFile};
use super::gzip::{MemberEnd, MemberReader, find_next_member};
use super::line::{PRIVATE, key_of};
use crate::cyrus::dlist::{Limits, ParseError, Parser, Start, Value};
use crate::cyrus::mboxname::{MboxName, Namespace, Owner, canonical_userid};
use crate::error::{Error, Kind, Result};
use std::io::BufRead;

/// Lines that are looked at for an owner.
const LINES: u64 = 10_000;
/// Where the old tools kept what is nobody's.
const OLD_SHARED: &str = "%SHARED";
const CHUNK: &[u8] = b"# cyrus backup: chunk start";

/// What a log says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Whose it is, as a key of `backups.db`; `None` if no line tells.
    pub key: Option<String>,
    /// Its identity, if it is ours.
    pub generation: Option<String>,
    /// Time of the first line that was read; 0 without one.
    pub first: i64,
    /// When the backup began, in seconds since 1970, if the log was made by a compaction.
    pub created: Option<i64>,
}

impl Identity {
    /// When the backup began, as far as the log tells, in seconds since 1970.
    pub fn began(&self) -> i64 {
        self.created.unwrap_or(self.first)
    }
}

/// What a file turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing is in it yet.
    Empty,
    /// A log.
    Log(Identity),
    /// Something else.
    Other,
}

/// Looks at the beginning of a file.
pub fn identify(file: &dyn LogFile, ns: &Namespace) -> Result<Content> {
    let mut magic = [0; 3];
    match file.read_at(&mut magic, 0).map_err(unreadable)? {
        0 => return Ok(Content::Empty),
        3 if magic == [0x1f, 0x8b, 8] => {}
        _ => return Ok(Content::Other),
    }
    let mut found = Identity::default();
    let mut lines = 0;
    let is_log = each_line(file, &mut |stamp, name, parser| {
        if lines == 0 {
            found.first = stamp;
        }
        lines += 1;
        owner(name, parser, ns, &mut found)?;
        Ok(found.key.is_some() || lines == LINES)
    })?;
    if found.generation.is_none() && found.key.as_deref().is_some_and(is_shared_root) {
        // One backup held them all.
        found.key = Some(OLD_SHARED.into());
    }
    Ok(if is_log {
        Content::Log(found)
    } else {
        Content::Other
    })
}

/// The greatest time printed in a log; 0 without a line. Reads all of it.
pub fn last_stamp(file: &dyn LogFile) -> Result<i64> {
    let mut last = 0;
    each_line(file, &mut |stamp, _, parser| {
        skip(parser, 0)?;
        last = last.max(stamp);
        Ok(false)
    })?;
    Ok(last)
}

/// Whom the last GENERATION fact of a log names. Reads all of it.
pub fn last_owner(file: &dyn LogFile) -> Result<Option<String>> {
    let mut last = None;
    each_line(file, &mut |_, name, parser| {
        if name != b"RESERVE" {
            skip(parser, 0)?;
            return Ok(false);
        }
        let value = parser.value()?;
        let fact = value.get(PRIVATE).and_then(|p| p.get("GENERATION"));
        if let Some(key) = fact.and_then(key_of).filter(|k| !k.is_empty()) {
            last = Some(key);
        }
        Ok(false)
    })?;
    Ok(last)
}

fn unreadable(e: std::io::Error) -> Error {
    Error::io("cannot read", e).with_kind(Kind::Io)
}

fn is_shared_root(key: &str) -> bool {
    matches!(Owner::from_key(key), Some(Owner::Shared { .. }))
}

type Member<'a> = Parser<MemberReader<FileReader<'a>>>;
/// Takes time and name of a line, with the parser before its value. True: enough.
type Take<'a> = dyn FnMut(i64, &[u8], &mut Member<'_>) -> Result<bool> + 'a;

/// Hands over every line that reads. False if the file has no chunk at all.
fn each_line(file: &dyn LogFile, take: &mut Take<'_>) -> Result<bool> {
    let mut is_log = false;
    let mut offset = 0;
    loop {
        let reader = MemberReader::new(FileReader::new(file, offset));
        let mut parser = Parser::new(reader, Limits::default());
        let read = member(&mut parser, &mut is_log, take);
        if let Ok(true) = read {
            return Ok(is_log);
        }
        let end = parser.into_inner().end().map_err(unreadable)?;
        let next = match (read, end) {
            (Ok(_), MemberEnd::Sealed { compressed_len }) if compressed_len > 0 => {
                Some(offset + compressed_len)
            }
            _ => find_next_member(file, offset + 1).map_err(unreadable)?,
        };
        match next {
            Some(next) if next < file.len().map_err(unreadable)? => offset = next,
            _ => return Ok(is_log),
        }
    }
}

fn member(parser: &mut Member<'_>, is_log: &mut bool, take: &mut Take<'_>) -> Result<bool> {
    if parser.peek()?.is_none() {
        // Old zlibs write empty ones.
        return Ok(false);
    }
    if !parser.word(|b| b != b'\n')?.starts_with(CHUNK) {
        return Err(Error::new(Kind::Damaged, "does not begin as a chunk"));
    }
    parser.end_line()?;
    *is_log = true;
    while parser.peek()?.is_some() {
        let stamp = parser.word(|b| b.is_ascii_digit())?;
        let stamp = std::str::from_utf8(&stamp)
            .ok()
            .and_then(|t| t.parse().ok());
        parser.space()?;
        parser.word(|b| b.is_ascii_alphabetic())?;
        parser.space()?;
        let name = parser.word(|b| b.is_ascii_alphanumeric() || b == b'_')?;
        parser.space()?;
        let stamp = stamp.ok_or_else(|| Error::new(Kind::Damaged, "a line without a time"))?;
        if take(stamp, &name.to_ascii_uppercase(), parser)? {
            return Ok(true);
        }
        parser.end_line()?;
    }
    Ok(false)
}

/// Takes the line's value, up to what tells the owner.
fn owner(name: &[u8], parser: &mut Member<'_>, ns: &Namespace, found: &mut Identity) -> Result<()> {
    let mailbox = |name: &str| Some(MboxName::parse(name, ns).ok()?.owner().key());
    let user = |id: &str| canonical_userid(id, ns).ok();
    let text = |v: Option<Value>| v.and_then(|v| v.as_str().map(str::to_owned));
    found.key = match name {
        b"MAILBOX" => text(key(parser, b"MBOXNAME")?).and_then(|n| mailbox(&n)),
        b"UNMAILBOX" => parser.value()?.as_str().and_then(mailbox),
        b"RENAME" => text(key(parser, b"OLDMBOXNAME")?).and_then(|n| mailbox(&n)),
        b"SUB" | b"UNSUB" | b"SEEN" | b"SIEVE" | b"UNSIEVE" => {
            text(key(parser, b"USERID")?).and_then(|id| user(&id))
        }
        b"RESERVE" => {
            let value = parser.value()?;
            let fact = value.get(PRIVATE).and_then(|p| p.get("GENERATION"));
            let id = fact.and_then(|g| g.get("ID")).and_then(Value::as_str);
            found.generation = id.map(str::to_owned);
            let created = fact.and_then(|g| g.get("CREATED"));
            found.created = created.and_then(Value::as_u64).map(|t| t as i64);
            fact.and_then(key_of).filter(|k| !k.is_empty())
        }
        _ => {
            skip(parser, 0)?;
            None
        }
    };
    Ok(())
}

/// The value under a key of a list, and all that follows it passed over; `None` if it is not there.
fn key<R: BufRead>(parser: &mut Parser<R>, wanted: &[u8]) -> Result<Option<Value>> {
    let mut out = None;
    if !matches!(parser.start()?, Start::Kv) {
        return Err(Error::new(Kind::Damaged, "not a list of keys"));
    }
    while let Some(key) = parser.kv_next()? {
        if key.eq_ignore_ascii_case(wanted) && out.is_none() {
            out = Some(parser.value()?);
        } else {
            skip(parser, 0)?;
        }
    }
    Ok(out)
}

/// Passes over a value of any size in constant memory.
fn skip<R: BufRead>(parser: &mut Parser<R>, depth: u32) -> Result<()> {
    if depth > Limits::default().depth {
        return Err(Error::new(Kind::Damaged, "nested too deep"));
    }
    match parser.start()? {
        Start::Leaf(_) => {}
        Start::File(head) => parser.body(head.size, &mut |_| Ok::<(), ParseError>(()))?,
        Start::List => {
            while parser.list_next()? {
                skip(parser, depth + 1)?;
            }
        }
        Start::Kv => {
            while parser.kv_next()?.is_some() {
                skip(parser, depth + 1)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::file::FaultFile;
    use super::super::gzip::MemberWriter;
    use super::*;

    fn gzip(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = MemberWriter::new(6, &[], &mut out);
        writer.write(text.as_bytes(), &mut out);
        writer.finish(&mut out);
        out
    }

    fn chunk(lines: &str) -> Vec<u8> {
        gzip(&format!("# cyrus backup: chunk start\r\n{lines}"))
    }

    fn of(bytes: &[u8]) -> Content {
        identify(&FaultFile::with(bytes), &Namespace::default()).unwrap()
    }

    fn key_of(bytes: &[u8]) -> Option<String> {
        match of(bytes) {
            Content::Log(found) => found.key,
            other => panic!("{other:?}"),
        }
    }

    const OURS: &str = "100 APPLY RESERVE %(PARTITION default MBOXNAME () GUID () X-CYRBACKUP \
        %(GENERATION %(ID b084f9da629569bf KEY anna FORMAT 1)))\r\n";
    const BODY: &str =
        "90 APPLY MESSAGE (%{default 4eea1e78e5032625a64f9ba26611156942a8f86a 4}\r\nAPPL)\r\n";
    const BOX: &str =
        "101 APPLY MAILBOX %(UNIQUEID x RECORD (%(UID 1)) MBOXNAME user.be^rt.Sent)\r\n";

    #[test]
    fn ours_name_themselves() {
        let log = [chunk(OURS), chunk(&OURS.replace("anna", "anne"))].concat();
        let last = last_owner(&FaultFile::with(&log)).unwrap();
        assert_eq!(last.as_deref(), Some("anne"));
        let found = Identity {
            created: None,
            key: Some("anna".into()),
            generation: Some("b084f9da629569bf".into()),
            first: 100,
        };
        // What follows says something else.
        assert_eq!(of(&chunk(&format!("{OURS}{BOX}"))), Content::Log(found));
    }

    #[test]
    fn old_logs_are_whose_mailbox_or_userid_comes_first() {
        let log = chunk(&format!("{BODY}{BOX}"));
        assert_eq!(key_of(&log).as_deref(), Some("be.rt"));
        for (line, key) in [
            (
                "SUB %(USERID carl@internal MBOXNAME user.anna)",
                Some("carl"),
            ),
            ("UNMAILBOX x.example!user.dora", Some("dora@x.example")),
            ("RENAME %(OLDMBOXNAME user.e NEWMBOXNAME user.f)", Some("e")),
            ("MAILBOX %(MBOXNAME news.unix RECORD ())", Some("%SHARED")),
            ("MAILBOX %(UNIQUEID x)", None),
            ("NEWS (a (b %(C d)))", None),
        ] {
            let log = chunk(&format!("5 APPLY {line}\r\n"));
            assert_eq!(key_of(&log).as_deref(), key, "{line}");
        }
        // Empty members, and ones with nothing but bodies, are passed over.
        let log = [gzip(""), chunk(BODY), chunk(BOX)].concat();
        assert_eq!(key_of(&log).as_deref(), Some("be.rt"));
        assert_eq!(last_stamp(&FaultFile::with(&log)).unwrap(), 101);
    }

    #[test]
    fn behind_damage_lines_still_tell() {
        let mut log = chunk(OURS);
        let first = log.len();
        log[first - 20..].fill(0x55);
        log.extend(chunk(BOX));
        assert_eq!(key_of(&log).as_deref(), Some("be.rt"));
        for cut in 0..log.len() {
            of(&log[..cut]);
        }
        // A torn line names nobody, unless the name was read.
        let torn = chunk("7 APPLY MAILBOX %(UNIQUEID x MBOX");
        assert_eq!(key_of(&torn), None);
    }

    #[test]
    fn other_files_are_no_logs() {
        assert_eq!(of(b""), Content::Empty);
        for other in [
            &b"SQLite format 3\0"[..],
            b"\x1f\x8b",
            b"\x1f\x8b\x08rubbish",
        ] {
            assert_eq!(of(other), Content::Other);
        }
        assert_eq!(of(&gzip("just text\n")), Content::Other);
        let deep = format!("5 APPLY X {}{}\r\n", "(".repeat(500), ")".repeat(500));
        assert_eq!(key_of(&chunk(&deep)), None);
    }
}
