//! Reads a log and enters its lines into an index: for a tail that the index has not seen, and for
//! a whole index from nothing.
//!
//! Nothing is written to the log here. What is found is told in [`Entered`]: where the last line
//! that belongs ends, and what could not be read. Damage costs at most the rest of its member:
//! reading goes on at the next one.

use super::ahead::{Ahead, Help, Member};
use super::file::{FileReader, LogFile};
use super::gzip::{MemberEnd, MemberReader, find_next_member};
use super::index::{Index, Lines, Place, apply_line};
use super::line::CHUNK_START;
use crate::cyrus::dlist::{Limits, ParseError, Parser, Start, Why};
use crate::cyrus::guid::Guid;
use crate::error::{Error, Kind, Result};
use crate::util::time::Timestamp;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::io::{self, Read};

/// The end of the last line that belongs to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Good {
    /// Where its member begins in the file.
    pub member: u64,
    /// Plain bytes of that member up to the line's end.
    pub plain: u64,
    /// The member's end in the file, if it is sealed and nothing follows the line in it.
    pub sealed_end: Option<u64>,
}

/// What a run over a log found.
#[derive(Debug, Default)]
pub struct Entered {
    /// The last line that belongs; `None` if there was none.
    pub good: Option<Good>,
    /// The chunk that line is in.
    pub chunk_id: Option<i64>,
    /// Lines entered.
    pub lines: u64,
    /// The greatest printed stamp of what belongs.
    pub stamp: i64,
    /// The greatest printed stamp of all that was read.
    pub seen: i64,
    /// Something was wrong that tearing does not explain.
    pub broken: bool,
    /// Findings: file offset and what was wrong there.
    pub damage: Vec<(u64, String)>,
    /// Bodies that do not match their GUID, with the file offset of their member. Not entered.
    pub wrong: Vec<(Guid, u64)>,
    /// Mailboxes (uniqueid) that were stated in members whose bytes are wrong: what was said of them
    /// there may be so, too.
    pub hurt: BTreeSet<String>,
    /// A private fact was met: the log is one of ours.
    pub ours: bool,
    /// Where reading ended.
    pub end: u64,
    /// The last member that the disk did not give: where, and why. Nothing is known of it.
    pub unread: Option<(u64, String)>,
    /// Bodies at or behind this (chunk, offset) stand behind the last MAILBOX line.
    pub unsettled: Option<(i64, u64)>,
    /// Lines passed over because they could not be understood.
    pub(super) refused: u32,
    /// Plain bytes of the last member that could be read as lines.
    plain: u64,
}

impl Entered {
    /// Notes how a member ended that is not as it should be.
    fn ended(&mut self, offset: u64, end: &io::Result<MemberEnd>) {
        self.broken |= !matches!(end, Ok(MemberEnd::Torn));
        if let Err(e) = end {
            self.unread = Some((offset, e.to_string()));
        }
    }

    /// An error if the end of the log is not known because the disk did not give it: whoever wants to
    /// cut there must not.
    pub(super) fn end_is_read(&self) -> Result<()> {
        let good = self.good.map_or(0, |g| g.member);
        match &self.unread {
            Some((offset, why)) if *offset >= good => {
                let e = Error::new(Kind::Io, "cannot read log").because(why.clone());
                Err(e.place(format!("file offset {offset}")))
            }
            _ => Ok(()),
        }
    }
}

/// What becomes of MESSAGE lines at the end that no later line refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trailing {
    /// They stay: the log is as somebody sealed it. Any other line settles them.
    Keep,
    /// They were never acknowledged as anybody's: cut, with all that follows. Only MAILBOX settles
    /// them: manifests, clocks and what is written before a MAILBOX may stand behind them.
    Cut,
}

/// So many lines that read but cannot be understood are passed over; each costs reading its member
/// anew.
pub(super) const REFUSED: u32 = 100;

/// Where to begin.
#[derive(Clone, Copy, Debug)]
pub struct From {
    /// A member's beginning.
    pub member: u64,
    /// What the index knows of it already.
    pub known: Option<Known>,
}

/// How far a member is entered.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// The chunk's number.
    pub chunk_id: i64,
    /// Plain bytes.
    pub plain: u64,
    /// True time less printed time there, in seconds.
    pub clock: i64,
}

/// Enters all members from `from` up to `until` bytes of the file. The caller has a transaction
/// open and commits or rolls it back; what follows the last line that belongs is not entered.
///
/// A sealed member that ends in MESSAGE lines belongs wholly under `Trailing::Keep`; under
/// `Trailing::Cut` its end belongs only if something later does.
pub fn enter(
    file: &dyn LogFile,
    index: &Index,
    from: From,
    until: u64,
    trailing: Trailing,
) -> Result<Entered> {
    enter_with(Help::none(), file, index, from, until, trailing)
}

/// The same, with others to inflate meanwhile.
pub fn enter_with(
    help: Help,
    file: &dyn LogFile,
    index: &Index,
    from: From,
    until: u64,
    trailing: Trailing,
) -> Result<Entered> {
    std::thread::scope(|scope| {
        let mut members = Ahead::new(scope, file, from.member, until, help);
        enter_from(&mut members, file, index, from, until, trailing)
    })
}

fn enter_from<'f>(
    members: &mut Ahead<'f>,
    file: &'f dyn LogFile,
    index: &Index,
    from: From,
    until: u64,
    trailing: Trailing,
) -> Result<Entered> {
    let mut out = Entered {
        end: from.member,
        ..Entered::default()
    };
    let mut offset = from.member;
    let mut known = from.known;
    index.savepoint("good")?;
    while offset < until {
        let at = At {
            file,
            offset,
            until,
            known: known.take(),
        };
        match member(members, index, at, trailing, &mut out)? {
            Some(length) if length > 0 => {
                offset += length;
            }
            _ => {
                // Torn or damaged: is there another member behind it?
                match find_next_member(file, offset + 1)
                    .map_err(|e| Error::io("cannot read log", e))?
                {
                    Some(next) if next < until => {
                        close(file, index, offset, next, &out)?;
                        out.damage
                            .push((offset, format!("goes on at the member at {next}")));
                        offset = next;
                    }
                    _ => break,
                }
            }
        }
        out.end = offset;
    }
    index.rollback_to("good")?;
    index.release("good")?;
    Ok(out)
}

/// Completes the row of a member that ends without a trailer and is not the last one.
fn close(file: &dyn LogFile, index: &Index, offset: u64, next: u64, out: &Entered) -> Result<()> {
    match index.last_chunk()? {
        Some(chunk) if chunk.offset == offset && chunk.length.is_none() => {
            let hash = hash(file, offset, next - offset)?;
            index.end_chunk(chunk.id, next - offset, out.plain, &hash)
        }
        _ => Ok(()),
    }
}

/// A member to be entered.
struct At<'f> {
    file: &'f dyn LogFile,
    offset: u64,
    until: u64,
    known: Option<Known>,
}

/// Enters one member. Returns its compressed length if it is sealed and sound.
fn member<'f>(
    members: &mut Ahead<'f>,
    index: &Index,
    at: At<'f>,
    trailing: Trailing,
    out: &mut Entered,
) -> Result<Option<u64>> {
    let At {
        file,
        offset,
        until,
        known,
    } = at;
    let mut parser = Parser::new(members.member(offset), Limits::default());
    let mut lines = Lines {
        clock: known.map_or(0, |k| k.clock),
        ..Lines::default()
    };
    let mut chunk = known.map(|k| k.chunk_id);
    let mut broken: Option<String> = None;
    let mut ends_good = chunk.is_none();

    let mut skip = known.map_or(CHUNK_START.len() as u64, |k| k.plain);
    if known.is_none() {
        match first_line(&mut parser) {
            Ok(true) => skip = 0,
            Ok(false) => {
                // An empty member, as old zlibs write them.
                let length = parser_end(parser, out, offset);
                if let Some(length) = length {
                    let good = Good {
                        member: offset,
                        plain: 0,
                        sealed_end: Some(offset + length),
                    };
                    without_lines(index, out, trailing, good)?;
                }
                return Ok(length);
            }
            Err(e) => {
                out.damage.push((offset, e.to_string()));
                out.ended(offset, &parser.into_inner().end());
                return Ok(None);
            }
        }
    }
    if let Err(e) = parser.body(skip, &mut |_| Ok::<(), ParseError>(())) {
        out.damage.push((offset, e.to_string()));
        out.ended(offset, &parser.into_inner().end());
        return Ok(None);
    }
    loop {
        let at = parser.position();
        match parser.peek() {
            Ok(None) => break,
            Ok(Some(b'#')) => match comment(&mut parser) {
                Ok(()) => continue,
                Err(e) => {
                    broken = Some(format!("line at {at}: {e}"));
                    ends_good = false;
                    break;
                }
            },
            Ok(Some(_)) => {}
            Err(e) => {
                broken = Some(e.to_string());
                break;
            }
        }
        index.savepoint("line")?;
        let before = chunk;
        match line(index, &mut parser, &mut lines, &mut chunk, offset, at, out) {
            Ok(settled) => {
                let belongs = settled && (trailing == Trailing::Keep || out.unsettled.is_none());
                index.release("line")?;
                out.lines += 1;
                ends_good = belongs;
                if belongs {
                    out.good = Some(Good {
                        member: offset,
                        plain: parser.position(),
                        sealed_end: None,
                    });
                    out.chunk_id = chunk;
                    out.stamp = out.seen;
                    index.release("good")?;
                    index.savepoint("good")?;
                }
            }
            Err(e) if matches!(e.kind(), Kind::Db | Kind::NoSpace | Kind::NeedsReindex) => {
                return Err(e);
            }
            Err(e) => {
                index.rollback_to("line")?;
                index.release("line")?;
                chunk = before;
                let what = format!("line at {at}: {e}");
                // Said well, but not to be understood: the old server logged what it then refused.
                let next = match trailing {
                    // What the disk did not give was not said at all.
                    Trailing::Keep if out.refused < REFUSED && e.kind() != Kind::Io => {
                        pass_in(Member::here(file, offset, until), at)
                    }
                    _ => None,
                };
                if let Some(next) = next {
                    out.refused += 1;
                    lines.complete = None;
                    lines.differs = None;
                    out.damage.push((offset, what));
                    parser = next;
                    ends_good = true;
                    continue;
                }
                broken = Some(what);
                ends_good = false;
                break;
            }
        }
    }
    out.ours |= lines.ours;
    out.wrong
        .extend(lines.wrong.drain(..).map(|(guid, _)| (guid, offset)));
    let plain = parser.position();
    out.plain = plain;
    let mut reader = parser.into_inner();
    let end = reader.end();
    match end {
        Ok(MemberEnd::Sealed { compressed_len }) if broken.is_none() => {
            if let Some(id) = chunk {
                let hash = reader.sha256(file, offset, compressed_len)?;
                index.end_chunk(id, compressed_len, plain, &hash)?;
                if ends_good || trailing == Trailing::Keep {
                    index.release("good")?;
                    index.savepoint("good")?;
                    out.chunk_id = Some(id);
                    out.stamp = out.seen;
                    out.good = Some(Good {
                        member: offset,
                        plain,
                        sealed_end: Some(offset + compressed_len),
                    });
                }
            } else {
                let good = Good {
                    member: offset,
                    plain,
                    sealed_end: Some(offset + compressed_len),
                };
                without_lines(index, out, trailing, good)?;
            }
            Ok(Some(compressed_len))
        }
        other => {
            out.ended(offset, &other);
            if other.as_ref().is_ok_and(MemberEnd::is_wrong_sum) {
                out.hurt.append(&mut lines.mailboxes);
            }
            let why = broken.unwrap_or_else(|| match other {
                Ok(MemberEnd::Torn) => "ends in the middle of a member".into(),
                Ok(MemberEnd::Damaged(why)) => format!("damaged member: {why}"),
                Ok(MemberEnd::Sealed { .. }) => "broken line".into(),
                Err(e) => e.to_string(),
            });
            out.damage.push((offset, why));
            Ok(None)
        }
    }
}

/// A sealed member in which nothing is said, as the old server writes one for each session that only
/// asks: the log may end with it.
fn without_lines(index: &Index, out: &mut Entered, trailing: Trailing, good: Good) -> Result<()> {
    let follows = out.good.is_some_and(|g| g.sealed_end == Some(good.member));
    if trailing == Trailing::Keep || follows {
        index.release("good")?;
        index.savepoint("good")?;
        out.good = Some(good);
    }
    Ok(())
}

fn parser_end(parser: Parser<Member<'_, '_>>, out: &mut Entered, offset: u64) -> Option<u64> {
    match parser.into_inner().end() {
        Ok(MemberEnd::Sealed { compressed_len }) => Some(compressed_len),
        end => {
            if let Err(e) = &end {
                out.unread = Some((offset, e.to_string()));
            }
            out.damage.push((offset, "torn empty member".into()));
            None
        }
    }
}

/// Takes the comment line. False at a member without a byte.
pub(super) fn first_line<R: io::BufRead>(parser: &mut Parser<R>) -> Result<bool> {
    if parser.peek()?.is_none() {
        return Ok(false);
    }
    let text = parser.word(|b| b != b'\n')?;
    parser.end_line()?;
    if !text.starts_with(b"# cyrus backup: chunk start") {
        return Err(Error::new(Kind::Damaged, "does not begin as a chunk"));
    }
    Ok(true)
}

/// Passes over a comment: whoever edited a log by hand may have left some.
pub(super) fn comment<R: io::BufRead>(parser: &mut Parser<R>) -> Result<()> {
    parser.word(|b| b != b'\n')?;
    Ok(parser.end_line()?)
}

/// Reads the member at `offset` anew up to behind the line at `at`; `None` if that line does not
/// read.
pub(super) fn pass(
    file: &dyn LogFile,
    offset: u64,
    until: u64,
    at: u64,
) -> Result<Option<Parser<MemberReader<FileReader<'_>>>>> {
    let reader = MemberReader::new(FileReader::until(file, offset, until));
    Ok(pass_in(reader, at))
}

/// The same of any reader that stands at the member's beginning.
fn pass_in<R: io::BufRead>(reader: R, at: u64) -> Option<Parser<R>> {
    let mut parser = Parser::new(reader, Limits::default());
    let mut read = || -> Result<()> {
        parser.body(at, &mut |_| Ok::<(), ParseError>(()))?;
        parser.word(|b| b.is_ascii_digit())?;
        for _ in 0..2 {
            parser.space()?;
            parser.word(|b| b.is_ascii_alphanumeric() || b == b'_')?;
        }
        parser.space()?;
        skip(&mut parser, 0)?;
        Ok(parser.end_line()?)
    };
    read().is_ok().then_some(parser)
}

/// Passes over a value in constant memory.
pub(super) fn skip<R: io::BufRead>(parser: &mut Parser<R>, depth: u32) -> Result<()> {
    if depth > Limits::default().depth {
        return Err(Error::new(Kind::Damaged, "nested too deeply"));
    }
    match parser.start()? {
        Start::Leaf(_) => {}
        Start::File(head) => {
            parser.body(head.size, &mut |_| Ok::<(), ParseError>(()))?;
        }
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

/// Takes what stands before a line's value: its printed time, and the command's name in upper case.
pub(super) fn head<R: io::BufRead>(parser: &mut Parser<R>) -> Result<(i64, Vec<u8>)> {
    let stamp = parser.word(|b| b.is_ascii_digit())?;
    let stamp: i64 = std::str::from_utf8(&stamp)
        .ok()
        .and_then(|t| t.parse().ok())
        .ok_or_else(|| Error::new(Kind::Damaged, "a line without a time"))?;
    parser.space()?;
    parser.word(|b| b.is_ascii_alphabetic())?;
    parser.space()?;
    let name = parser
        .word(|b| b.is_ascii_alphanumeric() || b == b'_')?
        .to_ascii_uppercase();
    parser.space()?;
    Ok((stamp, name))
}

/// Enters one line; false if what follows decides about it.
fn line<R: io::BufRead>(
    index: &Index,
    parser: &mut Parser<R>,
    lines: &mut Lines,
    chunk: &mut Option<i64>,
    member: u64,
    at: u64,
    out: &mut Entered,
) -> Result<bool> {
    let (stamp, name) = head(parser)?;
    let time = Timestamp(stamp);
    let id = match *chunk {
        Some(id) => id,
        None => *chunk.insert(index.begin_chunk(member, time)?),
    };
    let place = Place {
        chunk_id: id,
        line: at,
        origin: 0,
    };
    apply_line(index, lines, &name, parser, time, place)?;
    end_line(parser)?;
    index.touch_chunk(id, time)?;
    out.seen = out.seen.max(stamp);
    match name.as_slice() {
        b"MESSAGE" => out.unsettled = out.unsettled.or(Some((id, at))),
        b"MAILBOX" => out.unsettled = None,
        _ => {}
    }
    Ok(name != b"MESSAGE" && !lines.is_waiting())
}

/// Takes the end of a line, behind its value.
pub(super) fn end_line<R: io::BufRead>(parser: &mut Parser<R>) -> Result<()> {
    parser.end_line().map_err(|e| match e.why {
        Why::Eof => e.into(),
        _ => Error::new(Kind::Damaged, "a line goes on after its value"),
    })
}

/// SHA-256 of a stretch of the file.
pub(crate) fn hash(file: &dyn LogFile, offset: u64, len: u64) -> Result<[u8; 32]> {
    let mut hasher = Sha256::new();
    let mut reader = FileReader::until(file, offset, offset.saturating_add(len));
    let mut buf = vec![0; 64 * 1024];
    loop {
        match reader.read(&mut buf) {
            Ok(0) => return Ok(hasher.finalize().into()),
            Ok(n) => hasher.update(&buf[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("cannot read log", e)),
        }
    }
}
