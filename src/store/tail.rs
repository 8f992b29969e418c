//! What lies behind the length that an index acknowledges, while nobody is at work: what an
//! interrupted session leaves, or more.
//!
//! A kill leaves at most one unit there, with one durable point at its end, and perhaps a torn line or
//! member: the next opening enters and cuts, and nobody was told OK about it and lost it. Whole units
//! behind a durable point are something else (an index that is older than its log), and so is what
//! does not read. Told here, changed nowhere; nothing fails: what the disk does not give does not read.
//! States: `doc/design.md`, 6.
#![forbid(unsafe_code)]

use super::file::{FileReader, LogFile};
use super::gzip::{MemberEnd, MemberReader, flush_points};
use super::line::CHUNK_START;
use super::reindex::{comment, end_line, first_line, head, skip};
use crate::cyrus::dlist::{Limits, ParseError, Parser};
use crate::error::{Kind, Result};
use std::io::Read;

/// What such bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// One unit at most, torn perhaps.
    Interrupted,
    /// Lines behind a durable point: the index is older than its log.
    Unseen,
    /// The member at this offset of the file does not read; why.
    Broken(u64, String),
}

/// Looks at the log from `plain` bytes of the member at `member` up to `until` bytes of the file.
pub(super) fn look(file: &dyn LogFile, member: u64, plain: u64, until: u64) -> Tail {
    let mut walk = Walk {
        durable: false,
        unseen: false,
    };
    let (mut offset, mut known) = (member, plain);
    while offset < until {
        let inside = || FileReader::until(file, offset, until);
        match walk.member(inside(), inside(), known) {
            Ok(Some(length)) if length > 0 => offset += length,
            Ok(_) => break,
            Err(why) => return Tail::Broken(offset, why),
        }
        known = 0;
    }
    match walk.unseen {
        true => Tail::Unseen,
        false => Tail::Interrupted,
    }
}

struct Walk {
    /// A durable point was passed.
    durable: bool,
    /// A line was read behind one.
    unseen: bool,
}

impl Walk {
    /// Reads one member, which is given twice. Its length if it is sealed, `None` if the file ends in
    /// it; else why it does not read.
    fn member(
        &mut self,
        bytes: impl Read,
        again: impl Read,
        known: u64,
    ) -> std::result::Result<Option<u64>, String> {
        let mut flushes = Vec::new();
        let walked = flush_points(again, |point| {
            flushes.push(point.plain);
            true
        });
        walked.map_err(|e| e.to_string())?;
        let mut parser = Parser::new(MemberReader::new(bytes), Limits::default());
        let read = self.lines(&mut parser, known, &flushes);
        match (read, parser.into_inner().end().map_err(|e| e.to_string())?) {
            (_, MemberEnd::Damaged(why)) => Err(format!("damaged member: {why}")),
            (Ok(()), MemberEnd::Sealed { compressed_len }) => Ok(Some(compressed_len)),
            (Ok(()), MemberEnd::Torn) => Ok(None),
            // The parser came to the end of what there is.
            (Err(e), MemberEnd::Torn) if e.kind() == Kind::Io => Ok(None),
            (Err(e), _) => Err(e.to_string()),
        }
    }

    fn lines(
        &mut self,
        parser: &mut Parser<MemberReader<impl Read>>,
        known: u64,
        flushes: &[u64],
    ) -> Result<()> {
        if known < CHUNK_START.len() as u64 {
            if !first_line(parser)? {
                return Ok(());
            }
        } else {
            parser.body(known, &mut |_| Ok::<(), ParseError>(()))?;
        }
        while let Some(byte) = parser.peek()? {
            if byte == b'#' {
                comment(parser)?;
                continue;
            }
            let (_, name) = head(parser)?;
            skip(parser, 0)?;
            end_line(parser)?;
            self.unseen |= self.durable;
            // Those two wait for what they belong to: a flush behind them is for another purpose.
            let settles = !matches!(&name[..], b"MESSAGE" | b"RESERVE");
            self.durable |= settles && flushes.binary_search(&parser.position()).is_ok();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::FaultFile;
    use super::super::gzip::MemberWriter;
    use super::*;

    const BODY: &str =
        "90 APPLY MESSAGE (%{default 4eea1e78e5032625a64f9ba26611156942a8f86a 4}\r\nAPPL)\r\n";
    const BOX: &str = "91 APPLY MAILBOX %(UNIQUEID x MBOXNAME user.anna RECORD ())\r\n";
    const MARK: &str = "92 APPLY RESERVE %(PARTITION default)\r\n";

    /// A member of these lines, with a flush behind each `|`; sealed unless they end with one.
    fn member(lines: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = MemberWriter::new(6, &[], &mut out);
        writer.write(b"# cyrus backup: chunk start\r\n", &mut out);
        for line in lines {
            match *line {
                "|" => writer.flush(&mut out),
                line => writer.write(line.as_bytes(), &mut out),
            }
        }
        if lines.last() != Some(&"|") {
            writer.finish(&mut out);
        }
        out
    }

    fn tail(bytes: &[u8]) -> Tail {
        look(&FaultFile::with(bytes), 0, 0, bytes.len() as u64)
    }

    #[test]
    fn a_kill_leaves_one_unit_wherever_it_comes() {
        let unit = [
            member(&[MARK, BODY, "|", BODY]),
            member(&[BODY, "|", MARK, BOX, "|"]),
        ]
        .concat();
        for end in 0..=unit.len() {
            assert_eq!(tail(&unit[..end]), Tail::Interrupted, "{end}");
        }
        // Sealed behind it, and nothing more.
        assert_eq!(tail(&member(&[BODY, BOX])), Tail::Interrupted);
        let sealed = member(&[BODY, BOX, "|", "# end\r\n"]);
        assert_eq!(tail(&sealed), Tail::Interrupted);
    }

    #[test]
    fn lines_behind_a_durable_point_show_an_index_that_is_older() {
        for two in [
            member(&[BODY, BOX, "|", BODY, BOX, "|"]),
            member(&[BOX, "|", MARK, "|"]),
            [
                member(&[BOX, "|", "# end\r\n"]),
                member(&[BODY]),
                member(&[BOX, "|"]),
            ]
            .concat(),
        ] {
            assert_eq!(tail(&two), Tail::Unseen);
            // From behind the first member on, or its last line, all is one unit.
            let plain = 29 + BODY.len() + BOX.len();
            let one = member(&[BODY, BOX, "|", BOX, "|"]);
            let file = FaultFile::with(&one);
            let from = look(&file, 0, plain as u64, one.len() as u64);
            assert_eq!(from, Tail::Interrupted);
        }
    }

    #[test]
    fn what_does_not_read_is_told_wherever_it_is() {
        let good = member(&[BODY, BOX, "|"]);
        let sealed = member(&[BODY, BOX]);
        let noise: Vec<u8> = (0..500u32).map(|n| ((n * 7919) >> 3) as u8).collect();
        for (before, behind) in [
            (&good[..], &noise[..]),
            (&sealed, &noise),
            (&[], &noise),
            (&sealed, &[0; 500]),
            (&good, &[0; 500]),
        ] {
            let bytes = [before, behind].concat();
            assert!(matches!(tail(&bytes), Tail::Broken(..)), "{bytes:?}");
        }
        // Of two members the second; the flip is not to be taken for a torn end.
        let mut two = [&sealed[..], &sealed].concat();
        let at = sealed.len() + 20;
        two[at] ^= 0x40;
        let Tail::Broken(offset, _) = tail(&two) else {
            panic!("{:?}", tail(&two));
        };
        assert_eq!(offset, sealed.len() as u64);
        let text = member(&["just text\n", "|"]);
        assert!(matches!(tail(&text), Tail::Broken(0, _)));
    }
}
