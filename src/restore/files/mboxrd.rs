//! The bytes of an mbox: all messages in one file, mboxrd quoting (a line of `>`s and `From ` gets one `>` more). Pure.
//!
//! Lines end with LF, as every mbox reader expects; with CRLF put back it is the message, unless that
//! has bare LFs or no last line ending. Before each stands
//!
//! ```text
//! From UID.GUID.BYTES@FOLDER Thu Nov 26 16:45:28 2026
//! Status: RO
//! X-Status: AFTD
//! X-Keywords: $a $b
//! ```
//!
//! with the internal date in UTC; always these three lines, then the message. `BYTES` counts what
//! stands between the From line and the blank line at the end; `FOLDER` is a hash of the mailbox's
//! name. So a file that is there tells what it holds and whether its last message is whole.

use crate::cyrus::dlist::Value;
use crate::cyrus::guid::Guid;
use crate::cyrus::sync::Record;
use crate::util::hex;
use crate::util::time::{Timestamp, civil};
use sha2::{Digest, Sha256};

/// Puts a `>` before lines that would read as the next message, and ends lines with LF.
#[derive(Debug)]
pub struct Quoter {
    /// In the `>`s at the start of a line, and how much of `From ` came behind them.
    start: Option<usize>,
    cr: bool,
    last: u8,
}

/// Begins the line before each message.
pub const FROM: &[u8] = b"From ";

impl Quoter {
    /// At the start of a message.
    pub fn new() -> Quoter {
        Quoter {
            start: Some(0),
            cr: false,
            last: b'\n',
        }
    }

    /// Adds what of these bytes is ready.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for &b in bytes {
            if std::mem::take(&mut self.cr) && b != b'\n' {
                self.plain(b'\r', out);
            }
            match b {
                b'\r' => self.cr = true,
                _ => self.plain(b, out),
            }
        }
    }

    fn plain(&mut self, b: u8, out: &mut Vec<u8>) {
        self.last = b;
        if let Some(n) = self.start {
            if n == 0 && b == b'>' {
                out.push(b);
                return;
            }
            if b == FROM[n] {
                self.start = Some(n + 1);
                if n + 1 == FROM.len() {
                    out.push(b'>');
                    out.extend_from_slice(FROM);
                    self.start = None;
                }
                return;
            }
            out.extend_from_slice(&FROM[..n]);
            self.start = None;
        }
        out.push(b);
        if b == b'\n' {
            self.start = Some(0);
        }
    }

    /// The last line, ended if it was not.
    pub fn end(mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.cr) {
            self.plain(b'\r', out);
        }
        if let Some(n) = self.start {
            out.extend_from_slice(&FROM[..n]);
        }
        if self.last != b'\n' {
            out.push(b'\n');
        }
    }
}

/// The three lines before a message.
pub fn status(r: &Record) -> String {
    let has = |name: &[u8]| {
        let mut all = r.flags.iter().filter_map(Value::as_bytes);
        all.any(|f| f.eq_ignore_ascii_case(name))
    };
    let mut letters = String::new();
    for (name, letter) in [
        (&b"\\answered"[..], 'A'),
        (b"\\flagged", 'F'),
        (b"\\draft", 'T'),
        (b"\\deleted", 'D'),
    ] {
        if has(name) {
            letters.push(letter);
        }
    }
    let keywords: Vec<&str> = r
        .flags
        .iter()
        .filter_map(Value::as_str)
        .filter(|f| !f.starts_with('\\') && !f.contains(|c: char| c.is_control() || c == ' '))
        .collect();
    let seen = if has(b"\\seen") { "RO" } else { "O" };
    format!(
        "Status: {seen}\nX-Status: {letters}\nX-Keywords: {}\n",
        keywords.join(" ")
    )
}

/// `Thu Nov 26 16:45:28 2026`
pub fn asctime(secs: i64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (y, mo, d, h, mi, s) = civil(Timestamp(secs));
    let day = DAYS[secs.div_euclid(86_400).rem_euclid(7) as usize];
    let month = MONTHS[mo as usize - 1];
    format!("{day} {month} {d:2} {h:02}:{mi:02}:{s:02} {y:04}")
}

/// What a mailbox is called in a From line.
pub fn hash_of(mailbox: &str) -> String {
    hex::encode(&Sha256::digest(mailbox.as_bytes())[..6])
}

/// UID and GUID in one mailbox.
pub type Key = (String, Guid, u32);

/// What a From line of ours says: whose message, and how many bytes follow.
pub fn parse(line: &[u8]) -> Option<(Key, u64)> {
    let text = std::str::from_utf8(line.strip_prefix(FROM)?).ok()?;
    let (id, folder) = text.split(' ').next()?.split_once('@')?;
    let mut parts = id.split('.');
    let uid = parts.next()?.parse().ok()?;
    let guid = Guid::parse(parts.next()?.as_bytes())?;
    let bytes = parts.next()?.parse().ok()?;
    Some(((folder.to_owned(), guid, uid), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::files::tests::item;

    fn quoted(text: &str, pieces: usize) -> String {
        let mut q = Quoter::new();
        let mut out = Vec::new();
        for part in text.as_bytes().chunks(pieces) {
            q.push(part, &mut out);
        }
        q.end(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn quoting() {
        for (text, expect) in [
            ("a\r\nFrom b\r\n", "a\n>From b\n"),
            ("From \r\n", ">From \n"),
            (
                ">>From x\r\n>from y\r\nFro\r\n",
                ">>>From x\n>from y\nFro\n",
            ),
            ("a From b", "a From b\n"),
            ("x\r\n\r\nFrom", "x\n\nFrom\n"),
            ("FFrom \r\n>", "FFrom \n>\n"),
            ("a\rb\r\r\nc\r", "a\rb\r\nc\r\n"),
            ("a\nFrom b\n", "a\n>From b\n"),
            ("", ""),
        ] {
            for pieces in [1, 2, 3, 100] {
                assert_eq!(quoted(text, pieces), expect, "{text:?} {pieces}");
            }
        }
    }

    #[test]
    fn heads() {
        let i = item(7, "x", &["\\Seen", "\\Flagged", "$a", "\\answered", "b"]);
        assert_eq!(
            status(&i.record),
            "Status: RO\nX-Status: AF\nX-Keywords: $a b\n"
        );
        assert_eq!(asctime(0), "Thu Jan  1 00:00:00 1970");
        assert_eq!(asctime(1_795_711_528), "Thu Nov 26 16:45:28 2026");
        let guid = i.record.guid;
        let line = format!("From 7.{guid}.12@ab Thu Jan  1 00:00:00 1970\n");
        assert_eq!(parse(line.as_bytes()), Some((("ab".into(), guid, 7), 12)));
        assert_eq!(parse(b"From a@b Thu\n"), None);
        assert_eq!(parse(b"From \n"), None);
    }
}
