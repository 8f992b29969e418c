//! Members of a log, inflated ahead of whoever enters them.
//!
//! Lines are entered by one thread, in order; inflating costs several times as much and is done by others meanwhile.
//! A scout says where members may begin: the index knows, or the file is searched for what begins like
//! one. That is only a guess at work to be done: the one who enters asks for the member at an offset,
//! and what begins elsewhere, or does not come, is inflated on the spot. So the result is the same with
//! and without.
//!
//! Memory is bounded: some MiB for each thread, whatever the size of members and log. Threads end when
//! [`Ahead`] is dropped; errors of reading are told at the place where they were met.

use super::file::{FileReader, LogFile};
use super::gzip::{MemberEnd, MemberReader, find_next_member};
use super::reindex::hash;
use crate::error::Result;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::io::{self, BufRead, Read};
use std::thread::{Builder, Scope};

/// Blocks of a stretch that wait to be entered: 8 MiB, so that a member of usual size is inflated
/// whole while the one before it is entered.
const BLOCKS: usize = 64;

/// Plain bytes of a block, about.
const BLOCK: usize = 128 * 1024;

/// Compressed bytes that are worth handing over: small members go together.
const STRETCH: u64 = 256 * 1024;

/// A log shorter than this is read by one thread: others would cost more than they bring.
const WORTH: u64 = 1024 * 1024;

/// Who helps to read a log, and what they know.
#[derive(Clone, Debug, Default)]
pub struct Help {
    /// Threads that inflate; with fewer than two nobody helps.
    pub threads: usize,
    /// Where members begin, in order, as far as is known; `None` to search the file.
    pub begins: Option<Vec<u64>>,
}

impl Help {
    /// Nobody helps.
    pub fn none() -> Help {
        Help::default()
    }

    /// So many threads, which search the file.
    pub fn threads(threads: usize) -> Help {
        Help {
            threads,
            begins: None,
        }
    }
}

/// What a thread hands over.
enum Part {
    /// Plain bytes of the member at hand.
    Plain(Vec<u8>),
    /// It ended; the hash of its compressed bytes if it is sealed and they were read.
    End(io::Result<MemberEnd>, Option<[u8; 32]>),
}

/// A stretch of the file that one thread inflates, member by member.
struct Stretch {
    from: u64,
    to: u64,
    parts: Sender<Part>,
}

/// The same, on the side where it is entered.
struct Coming {
    from: u64,
    parts: Receiver<Part>,
}

/// Gives the members of a log, inflated by others where they could.
pub(super) struct Ahead<'f> {
    file: &'f dyn LogFile,
    until: u64,
    coming: Option<Receiver<Coming>>,
    /// The next stretch, taken out of the queue too early.
    next: Option<Coming>,
    now: Option<Now>,
}

/// The stretch that is being entered.
struct Now {
    /// Where the member begins that comes next; 0 with `within`.
    at: u64,
    parts: Receiver<Part>,
    /// A member was begun and its end not seen.
    within: bool,
}

impl<'f> Ahead<'f> {
    /// The members of `file` from the one at `from` up to `until`. Starts threads in `scope`.
    pub(super) fn new<'s>(
        scope: &'s Scope<'s, 'f>,
        file: &'f dyn LogFile,
        from: u64,
        until: u64,
        help: Help,
    ) -> Ahead<'f> {
        let mut ahead = Ahead {
            file,
            until,
            coming: None,
            next: None,
            now: None,
        };
        if help.threads < 2 || until.saturating_sub(from) < WORTH {
            return ahead;
        }
        let (work, queue) = bounded::<Stretch>(0);
        let (announce, coming) = bounded(help.threads);
        let mut any = false;
        for _ in 0..help.threads {
            let queue = queue.clone();
            let inflate = move || queue.iter().for_each(|s| s.inflate(file, until));
            let started = Builder::new().name("inflate".into());
            any |= started.spawn_scoped(scope, inflate).is_ok();
        }
        let scout = move || {
            let stretch = |from, to| {
                let (parts, receiver) = bounded(BLOCKS);
                let coming = Coming {
                    from,
                    parts: receiver,
                };
                // Announced first: who enters may wait for it, and nothing is inflated for nobody.
                announce.send(coming).is_ok() && work.send(Stretch { from, to, parts }).is_ok()
            };
            let mut begun = from;
            let mut begins = help.begins.map(Vec::into_iter);
            let mut at = from;
            loop {
                let next = match &mut begins {
                    Some(known) => known.find(|&n| n > begun),
                    // What cannot be read is met again, and told, by who enters it.
                    None => find_next_member(file, at + 1).ok().flatten(),
                };
                at = next.unwrap_or(until).min(until);
                if at - begun >= STRETCH || at == until {
                    if at > begun && !stretch(begun, at) {
                        return;
                    }
                    begun = at;
                }
                if at == until {
                    return;
                }
            }
        };
        // With no thread to be had everything is done on the spot.
        if any
            && Builder::new()
                .name("scout".into())
                .spawn_scoped(scope, scout)
                .is_ok()
        {
            ahead.coming = Some(coming);
        }
        ahead
    }

    /// The member at `offset`, which is not before the one asked for last.
    pub(super) fn member(&mut self, offset: u64) -> Member<'_, 'f> {
        match self.find(offset) {
            None => Member::here(self.file, offset, self.until),
            Some(first) => {
                let mut member = Inflated {
                    ahead: self,
                    block: Vec::new(),
                    position: 0,
                    end: None,
                };
                member.take(first);
                Member::Ahead(member)
            }
        }
    }

    /// The first part of the member at `offset`, if it comes.
    fn find(&mut self, offset: u64) -> Option<Part> {
        if let Some(now) = self.now.take_if(|now| now.within || now.at != offset) {
            drop(now);
        }
        loop {
            if let Some(now) = &mut self.now {
                match now.parts.recv() {
                    Ok(part) => {
                        now.within = true;
                        return Some(part);
                    }
                    // Not gone on with: the next stretch begins here, or nobody has it.
                    Err(_) => self.now = None,
                }
            }
            let next = match self.next.take() {
                Some(next) => next,
                None => self.coming.as_ref()?.recv().ok()?,
            };
            match next.from {
                from if from < offset => {}
                from if from == offset => {
                    self.now = Some(Now {
                        at: offset,
                        parts: next.parts,
                        within: false,
                    });
                }
                _ => {
                    self.next = Some(next);
                    return None;
                }
            }
        }
    }
}

impl Stretch {
    /// Hands over the plain bytes of a member; gives the error that ended reading them, if it was
    /// one of the disk, and `None` if nobody wants them.
    fn plain(&self, reader: &mut impl BufRead) -> Option<Option<io::Error>> {
        let mut block = Vec::new();
        let failed = loop {
            let plain = match reader.fill_buf() {
                Ok([]) => break None,
                Ok(plain) => plain,
                Err(e) if e.kind() == io::ErrorKind::InvalidData => break None,
                Err(e) => break Some(e),
            };
            let len = plain.len();
            if block.is_empty() {
                block.reserve(BLOCK.max(len));
            } else if block.len() + len > BLOCK {
                self.parts
                    .send(Part::Plain(std::mem::take(&mut block)))
                    .ok()?;
                continue;
            }
            block.extend_from_slice(plain);
            reader.consume(len);
        };
        if !block.is_empty() {
            self.parts.send(Part::Plain(block)).ok()?;
        }
        Some(failed)
    }

    /// Inflates member after member, as long as each is sound and somebody wants it.
    fn inflate(self, file: &dyn LogFile, until: u64) {
        let mut at = self.from;
        let mut reader = MemberReader::new(FileReader::until(file, at, until));
        loop {
            let Some(failed) = self.plain(&mut reader) else {
                return;
            };
            let end = match failed {
                Some(e) => Err(e),
                None => reader.end(),
            };
            let length = match &end {
                Ok(MemberEnd::Sealed { compressed_len }) => Some(*compressed_len),
                _ => None,
            };
            let sha256 = length.and_then(|length| hash(file, at, length).ok());
            if self.parts.send(Part::End(end, sha256)).is_err() {
                return;
            }
            match length {
                Some(length) if at + length < self.to => at += length,
                _ => return,
            }
            if !reader.next_member().unwrap_or(false) {
                return;
            }
        }
    }
}

/// The plain bytes of a member; ends as [`MemberReader`] does.
pub(super) enum Member<'a, 'f> {
    /// Inflated by another thread.
    Ahead(Inflated<'a, 'f>),
    /// Inflated as it is read.
    Here(Box<MemberReader<FileReader<'f>>>),
}

/// A member that comes in blocks.
pub(super) struct Inflated<'a, 'f> {
    ahead: &'a mut Ahead<'f>,
    block: Vec<u8>,
    position: usize,
    end: Option<(io::Result<MemberEnd>, Option<[u8; 32]>)>,
}

impl Inflated<'_, '_> {
    fn take(&mut self, part: Part) {
        match part {
            Part::Plain(block) => {
                self.block = block;
                self.position = 0;
            }
            Part::End(end, sha256) => {
                match (&mut self.ahead.now, &end) {
                    (Some(now), Ok(MemberEnd::Sealed { compressed_len })) => {
                        now.at += compressed_len;
                        now.within = false;
                    }
                    (now, _) => *now = None,
                }
                self.block = Vec::new();
                self.position = 0;
                self.end = Some((end, sha256));
            }
        }
    }

    /// Goes on to the next block or the end.
    fn step(&mut self) {
        let part = match &self.ahead.now {
            Some(now) => now.parts.recv().ok(),
            None => None,
        };
        // A thread that ended without a word has panicked.
        let lost = || Part::End(Err(io::Error::other("the inflating thread stopped")), None);
        self.take(part.unwrap_or_else(lost));
    }

    fn again(end: &io::Result<MemberEnd>) -> io::Result<MemberEnd> {
        match end {
            Ok(end) => Ok(end.clone()),
            Err(e) => Err(match e.raw_os_error() {
                Some(errno) => io::Error::from_raw_os_error(errno),
                None => io::Error::new(e.kind(), e.to_string()),
            }),
        }
    }
}

impl<'a, 'f> Member<'a, 'f> {
    /// The member at `offset`, inflated as it is read.
    pub(super) fn here(file: &'f dyn LogFile, offset: u64, until: u64) -> Member<'a, 'f> {
        let reader = FileReader::until(file, offset, until);
        Member::Here(Box::new(MemberReader::new(reader)))
    }

    /// Reads to the end of the member and tells how it ended. Errors are those of reading the file.
    pub(super) fn end(&mut self) -> io::Result<MemberEnd> {
        match self {
            Member::Here(reader) => reader.end(),
            Member::Ahead(member) => loop {
                if let Some((end, _)) = &member.end {
                    return Inflated::again(end);
                }
                member.step();
            },
        }
    }

    /// The SHA-256 of the compressed bytes of a sealed member, which begins at `offset` and is
    /// `length` long.
    pub(super) fn sha256(&self, file: &dyn LogFile, offset: u64, length: u64) -> Result<[u8; 32]> {
        match self {
            Member::Ahead(Inflated {
                end: Some((_, Some(hash))),
                ..
            }) => Ok(*hash),
            _ => hash(file, offset, length),
        }
    }
}

impl BufRead for Member<'_, '_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self {
            Member::Here(reader) => reader.fill_buf(),
            Member::Ahead(member) => {
                while member.position == member.block.len() {
                    match &member.end {
                        None => member.step(),
                        Some((Ok(MemberEnd::Damaged(why)), _)) => {
                            return Err(io::Error::new(io::ErrorKind::InvalidData, why.clone()));
                        }
                        Some((end, _)) => {
                            Inflated::again(end)?;
                            break;
                        }
                    }
                }
                Ok(&member.block[member.position..])
            }
        }
    }

    fn consume(&mut self, amount: usize) {
        match self {
            Member::Here(reader) => reader.consume(amount),
            Member::Ahead(member) => {
                member.position = member.block.len().min(member.position + amount);
            }
        }
    }
}

impl Read for Member<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let plain = self.fill_buf()?;
        let got = plain.len().min(buf.len());
        buf[..got].copy_from_slice(&plain[..got]);
        self.consume(got);
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::file::FaultFile;
    use crate::store::file::next_random;
    use crate::store::gzip::MemberWriter;

    /// Members of all kinds of sizes, some empty, with noise between some of them.
    fn log() -> Vec<u8> {
        let (mut file, mut dice) = (Vec::new(), 7);
        for n in 0..60u64 {
            let mut writer = MemberWriter::new(1, b"", &mut file);
            let size = match n % 6 {
                0 => 700_000,
                1 => 0,
                _ => 3000 * n,
            };
            let mut plain = b"# cyrus backup: chunk start\r\n".to_vec();
            for _ in 0..size / 8 {
                dice = next_random(dice);
                plain.extend_from_slice(&dice.to_be_bytes());
            }
            writer.write(&plain, &mut file);
            writer.finish(&mut file);
            if n % 20 == 19 {
                file.extend_from_slice(b"noise");
            }
        }
        file
    }

    /// All that a reader finds: plain bytes, ends and hashes, going on behind damage.
    fn all(file: &dyn LogFile, help: Help) -> Vec<String> {
        let until = file.len().unwrap();
        std::thread::scope(|scope| {
            let mut ahead = Ahead::new(scope, file, 0, until, help);
            let (mut out, mut at) = (Vec::new(), 0);
            while at < until {
                let mut member = ahead.member(at);
                // Some are not read to their end.
                let mut left = if at % 5 == 0 { 1000 } else { u64::MAX };
                let mut crc = crc32fast::Hasher::new();
                let failed = loop {
                    match member.fill_buf() {
                        Ok([]) => break None,
                        Ok(plain) => {
                            let n = plain.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                            crc.update(&plain[..n]);
                            left -= n as u64;
                            member.consume(n);
                            if left == 0 {
                                break None;
                            }
                        }
                        Err(e) => break Some(e.to_string()),
                    }
                };
                let text = format!("{at} {:x} {failed:?}", crc.finalize());
                let end = match left {
                    // Let go in the middle.
                    0 => MemberReader::new(FileReader::new(file, at)).end().unwrap(),
                    _ => member.end().unwrap(),
                };
                let next = match &end {
                    MemberEnd::Sealed { compressed_len } if *compressed_len > 0 => {
                        let hash = member.sha256(file, at, *compressed_len).unwrap();
                        assert_eq!(hash, super::hash(file, at, *compressed_len).unwrap());
                        Some(at + compressed_len)
                    }
                    _ => find_next_member(file, at + 1).unwrap(),
                };
                out.push(format!("{text} {end:?}"));
                at = next.unwrap_or(until);
            }
            out
        })
    }

    #[test]
    fn what_comes_ahead_is_what_is_there() {
        let whole = log();
        let mut dice = 3;
        for round in 0..12 {
            let mut bytes = whole.clone();
            for _ in 0..round {
                dice = next_random(dice);
                let at = (dice >> 20) as usize % bytes.len();
                bytes[at] ^= 1 << (dice >> 61);
            }
            if round % 3 == 2 {
                bytes.truncate(bytes.len() - 1000 * round);
            }
            let file = FaultFile::with(&bytes);
            let here = all(&file, Help::none());
            assert!(here.len() >= 60 - round, "{round}: {}", here.len());
            assert_eq!(all(&file, Help::threads(2)), here, "{round}");
            assert_eq!(all(&file, Help::threads(5)), here, "{round}");
            // A guess may be as wrong as it likes.
            for begins in [vec![], vec![1, 2, 3, 700_000], vec![900_000, 5, u64::MAX]] {
                let help = Help {
                    threads: 3,
                    begins: Some(begins),
                };
                assert_eq!(all(&file, help), here, "{round}");
            }
        }
    }
}
