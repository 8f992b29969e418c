//! Writes members anew: first the bodies that are needed, then, where history is kept, all other
//! lines as they are.
//!
//! So bodies come to stand in members of their own, which never need to be deflated again, and
//! lines in others, which can go as a whole once their history has outlived its retention. Every
//! body is compared with its GUID on the way, and the compressed source with its hash.

use super::out::Out;
use crate::cyrus::dlist::{Limits, ParseError, Parser, Start, Value};
use crate::cyrus::guid::Guid;
use crate::error::{Error, Kind, Result};
use crate::store::file::{FileReader, LogFile};
use crate::store::gzip::{MemberEnd, MemberReader};
use crate::store::line::{Line, PRIVATE, body_head, prefix};
use crate::store::reindex::{comment, first_line, hash, head};
use crate::util::time::Timestamp;
use sha1::{Digest, Sha1};
use std::io::{self, BufRead, Read};

/// Lines are held up to this size before they are written.
const HELD: usize = 256 * 1024;

/// A member to be written anew.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its number in the old index.
    pub id: i64,
    /// Where it begins in the old log.
    pub offset: u64,
    /// Its compressed bytes.
    pub length: u64,
    /// Its plain bytes.
    pub plain: u64,
    /// Their SHA-256.
    pub sha256: Vec<u8>,
    /// The printed time of its first line.
    pub first_time: i64,
    /// Offsets, in its plain text, of the bodies that are needed.
    pub bodies: Vec<u64>,
}

/// What is taken of the sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Take {
    /// Needed bodies.
    pub bodies: bool,
    /// All other lines.
    pub lines: bool,
}

/// Writes what is taken of a row of members; bodies to the one, lines to the other. `max` is the
/// plain size at which a member goes on in a further one.
pub fn rewrite(
    file: &dyn LogFile,
    sources: &[Source],
    take: Take,
    max: u64,
    bodies: &mut Out<'_>,
    lines: &mut Out<'_>,
) -> Result<()> {
    let stamp = sources.first().map_or(0, |s| s.first_time);
    let mut bodies = Bodies::new(bodies, stamp, max);
    let mut lines = Lines {
        out: lines,
        max,
        held: Vec::new(),
        literal: false,
        clock: 0,
        source_clock: 0,
    };
    for source in sources {
        member(file, source, take, &mut bodies, &mut lines)
            .map_err(|e| e.in_chunk(source.id, source.offset))?;
    }
    bodies.end()?;
    lines.end()
}

fn member(
    file: &dyn LogFile,
    source: &Source,
    take: Take,
    bodies: &mut Bodies<'_, '_>,
    lines: &mut Lines<'_, '_>,
) -> Result<()> {
    if hash(file, source.offset, source.length)?[..] != source.sha256[..] {
        return Err(Error::new(
            Kind::Damaged,
            "compressed bytes differ from what was written",
        ));
    }
    let end = source.offset + source.length;
    let reader = MemberReader::new(FileReader::until(file, source.offset, end));
    let mut parser = Parser::new(Tee::new(reader), Limits::default());
    lines.source_clock = 0;
    let mut found = 0;
    if first_line(&mut parser)? {
        loop {
            match line(&mut parser, source, take, bodies, lines, &mut found) {
                Ok(true) => {}
                Ok(false) => break,
                // It was so when it was entered: nothing behind it was ever known.
                Err(e) if matches!(e.kind(), Kind::Protocol | Kind::Io) => {
                    lines.drop_line();
                    log::warn!("line passed over offset={} reason=<{e}>", source.offset);
                    break;
                }
                Err(e) => return Err(e),
            }
        }
    }
    if take.bodies && found < source.bodies.len() {
        return Err(Error::new(
            Kind::Damaged,
            "bodies are not where they should be",
        ));
    }
    let mut reader = parser.into_inner().inner;
    match reader.end().map_err(|e| Error::io("cannot read log", e))? {
        MemberEnd::Damaged(why) => Err(Error::new(Kind::Damaged, why)),
        // Old tools left torn ones; the hash says that this is all there ever was.
        MemberEnd::Sealed { .. } | MemberEnd::Torn => Ok(()),
    }
}

type Member<'a> = Parser<Tee<MemberReader<FileReader<'a>>>>;

/// Takes one line; false at the end.
fn line(
    parser: &mut Member<'_>,
    source: &Source,
    take: Take,
    bodies: &mut Bodies<'_, '_>,
    lines: &mut Lines<'_, '_>,
    found: &mut usize,
) -> Result<bool> {
    match parser.peek()? {
        None => return Ok(false),
        Some(b'#') => {
            comment(parser)?;
            return Ok(true);
        }
        Some(_) => {}
    }
    parser.get_mut().hold();
    let (stamp, name) = head(parser)?;
    if name == b"MESSAGE" {
        parser.get_mut().let_go();
        messages(parser, source, take, bodies, found)?;
        parser.end_line()?;
        return Ok(true);
    }
    if !take.lines {
        parser.get_mut().let_go();
        pass(parser, 0, &mut |_| Ok(()))?;
        parser.end_line()?;
        return Ok(true);
    }
    if name == b"RESERVE" {
        let value = parser.value()?;
        parser.end_line()?;
        let text = parser.get_mut().let_go();
        lines.private(stamp, &value, &text)?;
        return Ok(true);
    }
    lines.begin(stamp)?;
    pass(parser, 0, &mut |tee| lines.add(tee))?;
    parser.end_line()?;
    lines.add_all(parser.get_mut())?;
    parser.get_mut().let_go();
    Ok(true)
}

fn messages(
    parser: &mut Member<'_>,
    source: &Source,
    take: Take,
    bodies: &mut Bodies<'_, '_>,
    found: &mut usize,
) -> Result<()> {
    if !matches!(parser.start()?, Start::List) {
        return Err(Error::new(Kind::Protocol, "MESSAGE without a list"));
    }
    while parser.list_next()? {
        match parser.start()? {
            Start::File(head) => {
                let at = parser.position();
                let wanted = take.bodies && source.bodies.binary_search(&at).is_ok();
                if !wanted {
                    parser.body(head.size, &mut |_| Ok::<(), ParseError>(()))?;
                    continue;
                }
                *found += 1;
                bodies.begin(&head.partition, head.guid, head.size)?;
                let mut sha1 = Sha1::new();
                parser.body(head.size, &mut |part| {
                    sha1.update(part);
                    bodies.data(part)
                })?;
                if sha1.finalize()[..] != head.guid.0 {
                    let what = format!("body of message {}", head.guid);
                    return Err(Error::new(Kind::Damaged, what));
                }
            }
            Start::Leaf(_) => {}
            _ => return Err(Error::new(Kind::Protocol, "MESSAGE with a list in it")),
        }
    }
    Ok(())
}

/// Passes over a value; `each` may take what was read so far, in a long list.
fn pass<R: BufRead>(
    parser: &mut Parser<Tee<R>>,
    depth: u32,
    each: &mut dyn FnMut(&mut Tee<R>) -> Result<()>,
) -> Result<()> {
    if depth > Limits::default().depth {
        return Err(Error::new(Kind::Protocol, "nested too deeply"));
    }
    match parser.start()? {
        Start::Leaf(_) => {}
        Start::File(head) => parser.body(head.size, &mut |_| Ok::<(), ParseError>(()))?,
        Start::List => {
            while parser.list_next()? {
                pass(parser, depth + 1, each)?;
                each(parser.get_mut())?;
            }
        }
        Start::Kv => {
            while parser.kv_next()?.is_some() {
                pass(parser, depth + 1, each)?;
            }
        }
    }
    Ok(())
}

/// Keeps a copy of what is read, while asked to.
struct Tee<R> {
    inner: R,
    held: Vec<u8>,
    holds: bool,
}

impl<R> Tee<R> {
    fn new(inner: R) -> Tee<R> {
        Tee {
            inner,
            held: Vec::new(),
            holds: false,
        }
    }

    fn hold(&mut self) {
        self.held.clear();
        self.holds = true;
    }

    fn let_go(&mut self) -> Vec<u8> {
        self.holds = false;
        std::mem::take(&mut self.held)
    }
}

impl<R: BufRead> Read for Tee<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}

impl<R: BufRead> BufRead for Tee<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        if self.holds {
            // What is consumed was shown before: asking again is no reading.
            if let Ok(buf) = self.inner.fill_buf() {
                self.held.extend_from_slice(&buf[..amount.min(buf.len())]);
            }
        }
        self.inner.consume(amount);
    }
}

/// MESSAGE lines with the bodies that are kept.
pub(super) struct Bodies<'o, 'a> {
    out: &'o mut Out<'a>,
    stamp: Timestamp,
    max: u64,
}

impl<'o, 'a> Bodies<'o, 'a> {
    /// All lines are printed with the time `stamp`; a member ends before a body with which it
    /// would pass `max` plain bytes.
    pub(super) fn new(out: &'o mut Out<'a>, stamp: i64, max: u64) -> Bodies<'o, 'a> {
        Bodies {
            out,
            stamp: Timestamp(stamp),
            max,
        }
    }

    /// Bytes of the body that was begun.
    pub(super) fn data(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write(bytes)
    }

    /// Begins a body: `size` bytes follow.
    pub(super) fn begin(&mut self, partition: &[u8], guid: Guid, size: u64) -> Result<()> {
        let full = self.out.position().saturating_add(size) > self.max;
        if self.out.is_open() && full && self.out.position() > 4096 {
            self.end()?;
        }
        if self.out.is_open() {
            self.out.write(b" ")?;
        } else {
            self.out.begin()?;
            self.out.write(&prefix(self.stamp, "MESSAGE"))?;
            self.out.write(b"(")?;
        }
        self.out.write(&body_head(partition, guid, size))
    }

    /// Ends the line and its member.
    pub(super) fn end(&mut self) -> Result<()> {
        if self.out.is_open() {
            self.out.write(b")\r\n")?;
        }
        self.out.end()
    }
}

/// All other lines.
struct Lines<'o, 'a> {
    out: &'o mut Out<'a>,
    max: u64,
    /// What belongs before the next line: facts, and the line itself up to a certain size.
    held: Vec<u8>,
    /// Whether there was a literal in what is written of the line already.
    literal: bool,
    /// True time less printed time as it stands in the open member.
    clock: i64,
    /// The same in the source.
    source_clock: i64,
}

impl Lines<'_, '_> {
    /// States the true time where the source had another difference.
    fn clock(&mut self, stamp: i64) {
        if self.clock != self.source_clock {
            let time = (stamp + self.source_clock) * 1000;
            let line = Line::private("CLOCK", Value::kv([("TIME", Value::num(time))]));
            self.held
                .extend_from_slice(&prefix(Timestamp(stamp), line.name));
            self.held.extend_from_slice(&line.value);
            self.held.extend_from_slice(b"\r\n");
            self.clock = self.source_clock;
        }
    }

    /// Between two lines: the member may end here.
    fn boundary(&mut self) -> Result<()> {
        if self.held.is_empty() && self.out.is_open() && self.out.position() > self.max {
            self.out.end()?;
            self.clock = 0;
        }
        Ok(())
    }

    /// A RESERVE line: facts go before the next line; those about the old file are over.
    fn private(&mut self, stamp: i64, value: &Value, text: &[u8]) -> Result<()> {
        for (key, fact) in value.get(PRIVATE).and_then(Value::as_kv).unwrap_or(&[]) {
            match key.as_slice() {
                b"CLOCK" => {
                    let ms = fact.get("TIME").and_then(Value::as_u64).unwrap_or(0) as i64;
                    self.source_clock = ms / 1000 - stamp;
                    return Ok(());
                }
                b"GENERATION" | b"MANIFEST" | b"COMPACTED" | b"LATE" => return Ok(()),
                b"STATE" | b"STATED" | b"PAST" | b"AT" => {
                    return Err(Error::new(Kind::Internal, "a state among changes"));
                }
                _ => {}
            }
        }
        self.boundary()?;
        self.clock(stamp);
        self.held.extend_from_slice(text);
        if has_literal(text) {
            return self.flush(true);
        }
        Ok(())
    }

    fn begin(&mut self, stamp: i64) -> Result<()> {
        self.boundary()?;
        self.clock(stamp);
        Ok(())
    }

    /// Takes what a long line has so far.
    fn add<R>(&mut self, tee: &mut Tee<R>) -> Result<()> {
        if tee.held.len() > HELD {
            self.held.append(&mut tee.held);
            let held = std::mem::take(&mut self.held);
            self.literal |= has_literal(&held);
            self.write(&held)?;
        }
        Ok(())
    }

    fn add_all<R>(&mut self, tee: &mut Tee<R>) -> Result<()> {
        self.held.append(&mut tee.held);
        let literal = std::mem::take(&mut self.literal) | has_literal(&self.held);
        self.flush(literal)
    }

    fn write(&mut self, text: &[u8]) -> Result<()> {
        if !self.out.is_open() {
            self.out.begin()?;
        }
        self.out.write(text)
    }

    /// Writes what is held; behind a literal the member ends, for the old tools.
    fn flush(&mut self, ends: bool) -> Result<()> {
        let held = std::mem::take(&mut self.held);
        self.write(&held)?;
        if ends {
            self.out.end()?;
            self.clock = 0;
        }
        Ok(())
    }

    /// A line that does not read to its end.
    fn drop_line(&mut self) {
        self.held.clear();
        // Whether it was stated is not known any more.
        self.clock = i64::MIN;
    }

    fn end(&mut self) -> Result<()> {
        if !self.held.is_empty() {
            self.flush(false)?;
        }
        self.out.end()
    }
}

/// Whether there is more than line ends: a quoted text never holds one.
fn has_literal(lines: &[u8]) -> bool {
    // Facts before a line end with CR LF as the line does; a literal's head ends with `}` CR LF.
    lines.windows(3).any(|w| w == b"}\r\n")
}
