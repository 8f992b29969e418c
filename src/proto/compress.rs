//! `COMPRESS DEFLATE`: both directions of a connection as one raw deflate stream each.
//!
//! `Inflate` is a reader over a reader, `Deflate` a writer over a writer. The bytes are raw deflate
//! (no zlib header), window 15 bits, one stream for the life of the connection; every flush ends
//! with a sync flush (`00 00 FF FF`), so that the other side can read all that was written.
//!
//! Promises: constant memory whatever the peer sends (a ring of 64 KiB and one input buffer), and no
//! waiting while something can be delivered: the inner reader is asked for more only when the
//! decompressor has nothing left to give.
//!
//! Fails with `InvalidData` when the stream is not deflate (for good: the place is lost), with
//! `UnexpectedEof` when it ends inside a block, and with whatever the inner reader or writer says;
//! after such an inner error (a timeout, say) the call can be repeated and nothing is lost.
//!
//! The format is RFC 1951; how Cyrus uses it: `lib/prot.c`.

use std::io::{self, BufRead, Read, Write};

use miniz_oxide::deflate::core::{
    CompressorOxide, TDEFLFlush, TDEFLStatus, compress_to_output, create_comp_flags_from_zip_params,
};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};

/// Decompressed bytes kept: a power of two, at least the 32 KiB window.
const RING: usize = 64 * 1024;
/// Compressed bytes read at once.
const INPUT: usize = 32 * 1024;
/// Plain bytes collected before they are compressed.
const PLAIN: usize = 16 * 1024;
/// An empty final stored block: ends a stream that stands between two blocks and no other.
const FINAL_BLOCK: [u8; 5] = [1, 0, 0, 0xff, 0xff];

/// What the decompressor can still do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    /// The ring filled up: there is more to come without further input.
    MoreOutput,
    /// The peer ended the stream, or closed the connection between two blocks.
    Ended,
    Corrupt,
    Truncated,
}

/// The decompressing reader.
pub struct Inflate<R> {
    inner: R,
    core: Box<DecompressorOxide>,
    input: Vec<u8>,
    /// The part of `input` not yet decompressed.
    next: usize,
    ring: Box<[u8]>,
    /// The part of `ring` not yet delivered.
    start: usize,
    end: usize,
    state: State,
}

impl<R: Read> Inflate<R> {
    /// Reads from `inner`; `leftover` is what was already read from it and belongs to the
    /// compressed stream.
    pub fn new(inner: R, leftover: Vec<u8>) -> Inflate<R> {
        Inflate {
            inner,
            core: Box::default(),
            input: leftover,
            next: 0,
            ring: vec![0; RING].into_boxed_slice(),
            start: 0,
            end: 0,
            state: State::Running,
        }
    }

    /// The reader below. Reading from it directly breaks the stream.
    pub fn get_ref(&self) -> &R {
        &self.inner
    }

    /// The reader below, to set its timeouts.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// Whether a read can be answered without asking the inner reader.
    pub fn has_buffered(&self) -> bool {
        self.start < self.end || self.next < self.input.len() || self.state == State::MoreOutput
    }

    /// Makes `start..end` non-empty, unless the stream is over.
    fn fill(&mut self) -> io::Result<()> {
        while self.start == self.end {
            match self.state {
                State::Ended => return Ok(()),
                State::Corrupt => return Err(corrupt()),
                State::Truncated => return Err(truncated()),
                State::MoreOutput => self.inflate(),
                State::Running if self.next < self.input.len() => self.inflate(),
                State::Running => {
                    // Leftover larger than our own buffer is used up and then shrinks to it.
                    self.input.resize(INPUT, 0);
                    self.input.shrink_to(INPUT);
                    self.next = INPUT;
                    let n = self.inner.read(&mut self.input)?;
                    self.input.truncate(n);
                    self.next = 0;
                    if n == 0 {
                        self.end_of_input();
                    }
                }
            }
        }
        Ok(())
    }

    /// Decompresses once, with the ring empty.
    fn inflate(&mut self) {
        if self.end == RING {
            self.end = 0;
        }
        let (status, read, written) = decompress(
            &mut self.core,
            &self.input[self.next..],
            &mut self.ring,
            self.end,
            inflate_flags::TINFL_FLAG_HAS_MORE_INPUT,
        );
        self.next += read;
        self.start = self.end;
        self.end += written;
        self.state = match status {
            TINFLStatus::Done => State::Ended,
            TINFLStatus::NeedsMoreInput => State::Running,
            // No output although the ring has room cannot be; it must not become a busy loop.
            TINFLStatus::HasMoreOutput if written > 0 => State::MoreOutput,
            _ => State::Corrupt,
        };
    }

    /// The peer is gone: between two blocks that is a clean end.
    fn end_of_input(&mut self) {
        let at = self.end % RING;
        let (status, _, written) = decompress(&mut self.core, &FINAL_BLOCK, &mut self.ring, at, 0);
        self.state = match status {
            TINFLStatus::Done if written == 0 => State::Ended,
            _ => State::Truncated,
        };
    }
}

impl<R: Read> Read for Inflate<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let from = self.fill_buf()?;
        let n = from.len().min(buf.len());
        buf[..n].copy_from_slice(&from[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl<R: Read> BufRead for Inflate<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.fill()?;
        Ok(&self.ring[self.start..self.end])
    }

    fn consume(&mut self, n: usize) {
        self.start = self.end.min(self.start + n);
    }
}

fn corrupt() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "compressed stream is damaged")
}

fn truncated() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "compressed stream ends inside a block",
    )
}

/// The compressing writer. Nothing is promised to reach the peer before `flush`; dropping it
/// without one loses what was not flushed.
pub struct Deflate<W> {
    inner: W,
    core: Box<CompressorOxide>,
    plain: Vec<u8>,
    /// Compressed bytes the inner writer has not taken yet, from `sent` on.
    out: Vec<u8>,
    sent: usize,
    /// Whether something went into the stream since the last sync flush.
    dirty: bool,
}

impl<W: Write> Deflate<W> {
    /// Writes to `inner` at zlib's `level`, 0 (stored) to 9.
    pub fn new(inner: W, level: u8) -> Deflate<W> {
        let flags = create_comp_flags_from_zip_params(i32::from(level.min(9)), -15, 0);
        Deflate {
            inner,
            core: Box::new(CompressorOxide::new(flags)),
            plain: Vec::with_capacity(PLAIN),
            out: Vec::new(),
            sent: 0,
            dirty: false,
        }
    }

    /// The writer below. Writing to it directly breaks the stream.
    pub fn get_ref(&self) -> &W {
        &self.inner
    }

    /// The writer below, to set its timeouts.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.inner
    }

    /// Compresses all of `plain`; with `Sync` the output ends on a byte.
    fn deflate(&mut self, flush: TDEFLFlush) -> io::Result<()> {
        let Deflate {
            core, plain, out, ..
        } = self;
        let (status, read) = compress_to_output(core, plain, flush, |bytes| {
            out.extend_from_slice(bytes);
            true
        });
        if status != TDEFLStatus::Okay || read != plain.len() {
            return Err(io::Error::other("cannot compress"));
        }
        plain.clear();
        Ok(())
    }

    /// Hands the compressed bytes down; what was not taken stays for the next call.
    fn drain(&mut self) -> io::Result<()> {
        while self.sent < self.out.len() {
            match self.inner.write(&self.out[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }
}

impl<W: Write> Write for Deflate<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.plain.len() == PLAIN {
            // Drained first, so that `out` never holds more than one round.
            self.drain()?;
            self.deflate(TDEFLFlush::None)?;
        }
        let n = buf.len().min(PLAIN - self.plain.len());
        self.plain.extend_from_slice(&buf[..n]);
        self.dirty |= n > 0;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.drain()?;
        if self.dirty {
            self.deflate(TDEFLFlush::Sync)?;
            self.dirty = false;
            self.drain()?;
        }
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// A small generator, so that failures repeat.
    struct Rng(u64);
    impl Rng {
        fn below(&mut self, n: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 11) as usize % n
        }
    }

    /// Hands out its pieces one by one and panics if asked after the last.
    struct Pieces(VecDeque<Vec<u8>>, bool);
    impl Read for Pieces {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let Some(mut piece) = self.0.pop_front() else {
                assert!(self.1, "asked for input it does not need");
                return Ok(0);
            };
            let n = piece.len().min(buf.len());
            buf[..n].copy_from_slice(&piece[..n]);
            if n < piece.len() {
                self.0.push_front(piece.split_off(n));
            }
            Ok(n)
        }
    }

    fn data(rng: &mut Rng, len: usize) -> Vec<u8> {
        let words: [&[u8]; 4] = [b"GUID ", b"%(UID 1 ", b"\r\n", b"FLAGS (\\Seen)"];
        let mut out = Vec::new();
        while out.len() < len {
            if rng.below(3) == 0 {
                let n = rng.below(300);
                out.extend((0..n).map(|_| rng.below(256) as u8));
            } else {
                out.extend_from_slice(words[rng.below(4)]);
            }
        }
        out.truncate(len);
        out
    }

    fn deflated(plain: &[u8], level: u8) -> Vec<u8> {
        let mut d = Deflate::new(Vec::new(), level);
        d.write_all(plain).unwrap();
        d.flush().unwrap();
        d.inner
    }

    #[test]
    fn round_trips_in_random_pieces() {
        let mut rng = Rng(88172645463325252);
        for round in 0..60 {
            let len = [0, 1, 500, 70_000, 300_000][round % 5];
            let plain = data(&mut rng, len);
            let mut d = Deflate::new(Vec::new(), (round % 10) as u8);
            let mut rest = &plain[..];
            while !rest.is_empty() {
                let n = rest.len().min(1 + rng.below(40_000));
                d.write_all(&rest[..n]).unwrap();
                rest = &rest[n..];
                if rng.below(2) == 0 {
                    d.flush().unwrap();
                    assert!(d.inner.ends_with(&[0, 0, 0xff, 0xff]));
                }
            }
            d.flush().unwrap();
            let mut packed = d.inner;
            let leftover: Vec<u8> = packed.drain(..rng.below(packed.len() + 1)).collect();
            let mut pieces = VecDeque::new();
            while !packed.is_empty() {
                let n = packed.len().min(1 + rng.below(9_000));
                pieces.push_back(packed.drain(..n).collect());
            }
            let mut i = Inflate::new(Pieces(pieces, true), leftover);
            let mut out = Vec::new();
            let mut buf = vec![0; 1 + rng.below(100_000)];
            loop {
                let n = i.read(&mut buf).unwrap();
                if n == 0 {
                    break;
                }
                out.extend_from_slice(&buf[..n]);
            }
            assert!(out == plain, "round {round}");
        }
    }

    #[test]
    fn flushed_bytes_arrive_without_further_input() {
        let mut d = Deflate::new(Vec::new(), 1);
        let mut pieces = VecDeque::new();
        let mut expected = Vec::new();
        for i in 0..50 {
            let line = format!("APPLY RESERVE %(X {i})\r\n");
            d.write_all(line.as_bytes()).unwrap();
            d.flush().unwrap();
            pieces.push_back(std::mem::take(&mut d.inner));
            expected.push(line);
        }
        let mut i = Inflate::new(Pieces(pieces, false), Vec::new());
        for line in expected {
            let mut buf = vec![0; line.len()];
            // `Pieces` panics if the reader runs ahead of the last piece.
            i.read_exact(&mut buf).unwrap();
            assert_eq!(buf, line.as_bytes());
        }
        assert!(!i.has_buffered());
    }

    #[test]
    fn empty_flush_writes_nothing() {
        let mut d = Deflate::new(Vec::new(), 1);
        d.flush().unwrap();
        assert!(d.inner.is_empty());
        d.write_all(b"x").unwrap();
        d.flush().unwrap();
        let n = d.inner.len();
        d.flush().unwrap();
        assert_eq!(d.inner.len(), n);
    }

    #[test]
    fn reads_what_zlib_writes() {
        // zlib 1.2.13, raw, level 6: a line, sync flush, the line three times, sync flush.
        const ZLIB: &[u8] = b"720c08f0895408720d760d0a735550d508700c0af10cf1f4f75348494d4b2ccd\
            2951f075f28ff073f47555d0282d4e2dd24bcccbd354700ff57451d0d0d4e4e502000000ffff\
            721ce2fa01000000ffff";
        let line = b"APPLY RESERVE %(PARTITION default MBOXNAME (user.ann) GUID ())\r\n";
        let packed: Vec<u8> = ZLIB
            .chunks(2)
            .map(|d| crate::util::hex::decode::<1>(d).unwrap()[0])
            .collect();
        let mut out = Vec::new();
        Inflate::new(&packed[..], Vec::new())
            .read_to_end(&mut out)
            .unwrap();
        assert_eq!(out, line.repeat(4));
    }

    #[test]
    fn cut_streams_are_not_clean() {
        let plain = data(&mut Rng(7), 5_000);
        let packed = deflated(&plain, 6);
        for cut in 1..packed.len() {
            let mut out = Vec::new();
            let e = Inflate::new(&packed[..cut], Vec::new())
                .read_to_end(&mut out)
                .unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::UnexpectedEof, "cut at {cut}");
            assert!(plain.starts_with(&out));
        }
        let mut none = Vec::new();
        assert_eq!(
            Inflate::new(&[][..], Vec::new())
                .read_to_end(&mut none)
                .unwrap(),
            0
        );
    }

    #[test]
    fn damage_is_an_error_and_stays_one() {
        let mut i = Inflate::new(&b"\x07\x07\x07\x07"[..], Vec::new());
        for _ in 0..2 {
            let e = i.read(&mut [0; 10]).unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::InvalidData);
        }
        // Any damage ends, in an error or in wrong bytes, but it ends.
        let plain = data(&mut Rng(9), 20_000);
        let packed = deflated(&plain, 6);
        let mut rng = Rng(11);
        for _ in 0..300 {
            let mut bad = packed.clone();
            let at = rng.below(bad.len());
            bad[at] ^= 1 << rng.below(8);
            let mut i = Inflate::new(&bad[..], Vec::new()).take(10_000_000);
            let _ = io::copy(&mut i, &mut io::sink());
        }
    }

    #[test]
    fn everything_after_the_final_block_is_ignored() {
        let mut packed = deflated(b"abc", 1);
        packed.extend_from_slice(&FINAL_BLOCK);
        packed.extend_from_slice(b"junk");
        let mut i = Inflate::new(&packed[..], Vec::new());
        let mut out = Vec::new();
        i.read_to_end(&mut out).unwrap();
        assert_eq!(out, b"abc");
    }

    /// Takes one byte at a time, with a timeout before each.
    struct Slow(Vec<u8>, bool);
    impl Write for Slow {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.0.push(buf[0]);
            Ok(1)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_writer_that_times_out_can_be_continued() {
        let plain = data(&mut Rng(3), 3_000);
        let mut d = Deflate::new(Slow(Vec::new(), false), 6);
        d.write_all(&plain).unwrap();
        while d.flush().is_err() {}
        let mut out = Vec::new();
        Inflate::new(&d.inner.0[..], Vec::new())
            .read_to_end(&mut out)
            .unwrap();
        assert!(out == plain);
    }

    #[test]
    #[ignore = "prints a speed"]
    fn speed() {
        let plain = data(&mut Rng(5), 64 << 20);
        for level in [0, 1, 6] {
            let t = std::time::Instant::now();
            let packed = deflated(&plain, level);
            let deflate = t.elapsed().as_secs_f64();
            let t = std::time::Instant::now();
            let n = io::copy(&mut Inflate::new(&packed[..], Vec::new()), &mut io::sink()).unwrap();
            assert_eq!(n, plain.len() as u64);
            let mb = plain.len() as f64 / 1e6;
            println!(
                "level {level}: ratio {:.2}, deflate {:.0} MB/s, inflate {:.0} MB/s",
                packed.len() as f64 / plain.len() as f64,
                mb / deflate,
                mb / t.elapsed().as_secs_f64()
            );
        }
    }
}
