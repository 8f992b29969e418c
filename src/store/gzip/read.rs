//! Reading one member after the other, in constant memory.

use super::inflate::{Inflater, Step};
use super::{MAGIC, flush::FlushPoint};
use std::io::{self, BufRead, Read};
use std::ops::Range;

const INPUT: usize = 32 * 1024;
/// Optional header fields longer than this are not a header.
const HEADER_MAX: u64 = 256 * 1024;

/// How a member ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberEnd {
    /// Complete; CRC and length are right.
    Sealed {
        /// Its bytes in the file: the next member starts this far behind its start.
        compressed_len: u64,
    },
    /// The file ends inside it: still being written, or torn.
    Torn,
    /// Its bytes are wrong; the text says how and where.
    Damaged(String),
}

impl MemberEnd {
    /// Whether all of it inflates, but to something else than was written: nobody can say what of it
    /// is wrong. Where it does not inflate, what came before is most likely right.
    pub fn is_wrong_sum(&self) -> bool {
        matches!(self, MemberEnd::Damaged(why) if why.starts_with(WRONG))
    }
}

/// How the reason begins if CRC or length are not those of the plain text.
const WRONG: &str = "wrong ";

/// The plain bytes of a member. `R` stands at its start.
///
/// Reading ends with `Ok(0)` also where a torn member stops: ask [`MemberReader::end`]. Damage is an error
/// of kind `InvalidData`, after the good bytes before it were delivered; other errors are `R`'s, and
/// the same is told from then on: nothing is left out in the middle.
/// Takes about 200 KiB whatever the size of the member, and reads ahead of its end in `R`.
pub struct MemberReader<R: Read> {
    inner: R,
    input: Vec<u8>,
    input_pos: usize,
    inflater: Inflater,
    ready: Range<usize>,
    crc: crc32fast::Hasher,
    plain_len: u64,
    compressed: u64,
    state: State,
    /// What `inner` failed with.
    failed: Option<(io::ErrorKind, Option<i32>)>,
}

#[derive(Clone)]
enum State {
    Header,
    Body,
    End(MemberEnd),
}

impl<R: Read> MemberReader<R> {
    /// Reads the member at which `inner` stands.
    pub fn new(inner: R) -> MemberReader<R> {
        MemberReader::with(inner, false)
    }

    pub(super) fn with(inner: R, blocks: bool) -> MemberReader<R> {
        MemberReader {
            inner,
            input: Vec::new(),
            input_pos: 0,
            inflater: Inflater::new(blocks),
            ready: 0..0,
            crc: crc32fast::Hasher::new(),
            plain_len: 0,
            compressed: 0,
            state: State::Header,
            failed: None,
        }
    }

    /// Reads to the end of the member and tells how it ended. Errors are those of `R`.
    pub fn end(&mut self) -> io::Result<MemberEnd> {
        loop {
            if let State::End(end) = &self.state {
                return Ok(end.clone());
            }
            self.pump()?;
        }
    }

    /// Goes on to the member that follows a sealed one. False at the end of the file, and when the
    /// current one is not sealed.
    pub fn next_member(&mut self) -> io::Result<bool> {
        if !matches!(self.end()?, MemberEnd::Sealed { .. }) || !self.more_input()? {
            return Ok(false);
        }
        self.inflater.restart();
        self.ready = 0..0;
        self.crc = crc32fast::Hasher::new();
        self.plain_len = 0;
        self.compressed = 0;
        self.state = State::Header;
        Ok(true)
    }

    /// Plain bytes inflated so far; at the end, the length of the chunk.
    pub fn plain_len(&self) -> u64 {
        self.plain_len
    }

    /// Compressed bytes taken so far, the header included.
    pub fn compressed_len(&self) -> u64 {
        self.compressed
    }

    /// Takes one step. With block stops on, returns the point at which the member could be cut.
    pub(super) fn pump(&mut self) -> io::Result<Option<FlushPoint>> {
        match self.state {
            State::Header => self.header().map(|()| None),
            State::Body => self.body(),
            State::End(_) => Ok(None),
        }
    }

    /// How the member ended, once its end was seen.
    pub(super) fn ended(&self) -> Option<MemberEnd> {
        match &self.state {
            State::End(end) => Some(end.clone()),
            _ => None,
        }
    }

    fn body(&mut self) -> io::Result<Option<FlushPoint>> {
        let more = self.more_input()?;
        let (step, taken, plain) = self.inflater.step(&self.input[self.input_pos..]);
        self.input_pos += taken;
        self.compressed += taken as u64;
        self.crc.update(self.inflater.plain(plain.clone()));
        self.plain_len += plain.len() as u64;
        let idle = plain.is_empty() && taken == 0;
        self.ready = plain;
        match step {
            Step::More if idle && !more => self.state = State::End(MemberEnd::Torn),
            Step::More if idle => self.damaged("the decoder stands still"),
            Step::More => {}
            Step::Block { aligned: true } => {
                return Ok(Some(FlushPoint {
                    compressed: self.compressed,
                    plain: self.plain_len,
                    crc: self.crc.clone().finalize(),
                }));
            }
            Step::Block { aligned: false } => {}
            Step::Done => self.trailer()?,
            Step::Bad => self.damaged("bad deflate data"),
        }
        Ok(None)
    }

    fn trailer(&mut self) -> io::Result<()> {
        let mut trailer = [0; 8];
        for byte in &mut trailer {
            match self.byte()? {
                Some(b) => *byte = b,
                None => {
                    self.state = State::End(MemberEnd::Torn);
                    return Ok(());
                }
            }
        }
        let [a, b, c, d, e, f, g, h] = trailer;
        if u32::from_le_bytes([a, b, c, d]) != self.crc.clone().finalize() {
            self.damaged("wrong CRC");
        } else if u32::from_le_bytes([e, f, g, h]) != self.plain_len as u32 {
            self.damaged("wrong length");
        } else {
            self.state = State::End(MemberEnd::Sealed {
                compressed_len: self.compressed,
            });
        }
        Ok(())
    }

    /// Reads the header; fields of foreign members are passed over.
    fn header(&mut self) -> io::Result<()> {
        let mut crc = crc32fast::Hasher::new();
        let mut head = [0; 10];
        if !self.take(&mut head, &mut crc)? {
            self.torn_or_alien(&head);
            return Ok(());
        }
        let flags = head[3];
        if head[..3] != MAGIC || flags & 0xe0 != 0 {
            self.damaged("not a gzip member");
            return Ok(());
        }
        if flags & 4 != 0 {
            let mut len = [0; 2];
            if !self.take(&mut len, &mut crc)? || !self.skip(u16::from_le_bytes(len), &mut crc)? {
                self.state = State::End(MemberEnd::Torn);
                return Ok(());
            }
        }
        for field in [8, 16] {
            let mut byte = [1];
            while flags & field != 0 && byte[0] != 0 {
                if self.compressed > HEADER_MAX {
                    self.damaged("header too long");
                    return Ok(());
                }
                if !self.take(&mut byte, &mut crc)? {
                    self.state = State::End(MemberEnd::Torn);
                    return Ok(());
                }
            }
        }
        if flags & 2 != 0 {
            let sum = crc.clone().finalize() as u16;
            let mut stored = [0; 2];
            if !self.take(&mut stored, &mut crc)? {
                self.state = State::End(MemberEnd::Torn);
                return Ok(());
            }
            if u16::from_le_bytes(stored) != sum {
                self.damaged("wrong header CRC");
                return Ok(());
            }
        }
        self.state = State::Body;
        Ok(())
    }

    /// Too short for a header: torn if what is there could begin one.
    fn torn_or_alien(&mut self, head: &[u8]) {
        let got = (self.compressed as usize).min(MAGIC.len());
        if head[..got] == MAGIC[..got] {
            self.state = State::End(MemberEnd::Torn);
        } else {
            self.damaged("not a gzip member");
        }
    }

    fn take(&mut self, into: &mut [u8], crc: &mut crc32fast::Hasher) -> io::Result<bool> {
        for byte in into.iter_mut() {
            match self.byte()? {
                Some(b) => *byte = b,
                None => return Ok(false),
            }
        }
        crc.update(into);
        Ok(true)
    }

    fn skip(&mut self, count: u16, crc: &mut crc32fast::Hasher) -> io::Result<bool> {
        for _ in 0..count {
            if !self.take(&mut [0], crc)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn byte(&mut self) -> io::Result<Option<u8>> {
        if !self.more_input()? {
            return Ok(None);
        }
        let byte = self.input.get(self.input_pos).copied();
        self.input_pos += 1;
        self.compressed += 1;
        Ok(byte)
    }

    /// True if there is input, after reading some if need be.
    fn more_input(&mut self) -> io::Result<bool> {
        if self.input_pos < self.input.len() {
            return Ok(true);
        }
        if let Some((kind, errno)) = self.failed {
            return Err(match errno {
                Some(errno) => io::Error::from_raw_os_error(errno),
                None => kind.into(),
            });
        }
        self.input.resize(INPUT, 0);
        self.input_pos = INPUT;
        let got = loop {
            match self.inner.read(&mut self.input) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    self.failed = Some((e.kind(), e.raw_os_error()));
                    return Err(e);
                }
                Ok(got) => break got,
            }
        };
        self.input.truncate(got);
        self.input_pos = 0;
        Ok(got > 0)
    }

    fn damaged(&mut self, why: &str) {
        let (compressed, plain) = (self.compressed, self.plain_len);
        self.state = State::End(MemberEnd::Damaged(format!(
            "{why} at byte {compressed} of the member, plain offset {plain}"
        )));
    }
}

impl<R: Read> BufRead for MemberReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.ready.is_empty() {
            match &self.state {
                State::End(MemberEnd::Damaged(why)) => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, why.clone()));
                }
                State::End(_) => break,
                _ => self.pump()?,
            };
        }
        Ok(self.inflater.plain(self.ready.clone()))
    }

    fn consume(&mut self, amount: usize) {
        self.ready.start = self.ready.end.min(self.ready.start + amount);
    }
}

impl<R: Read> Read for MemberReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let plain = self.fill_buf()?;
        let got = plain.len().min(buf.len());
        buf[..got].copy_from_slice(&plain[..got]);
        self.consume(got);
        Ok(got)
    }
}
