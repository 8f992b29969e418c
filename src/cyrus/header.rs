//! The few header fields that are kept for searching, taken raw from the first bytes of a message.
//!
//! Values are unfolded but their encoded words are not decoded ([`super::encoded`] does that for who
//! looks); of repeated fields the first counts. Never fails: what cannot be read is absent.

use super::encoded::text;

/// How much of a message is looked at, in bytes.
pub const LOOKED_AT: usize = 32 * 1024;

/// How much of one value is kept, in bytes.
const KEPT: usize = 2048;

/// Raw values of the fields; bytes that are no UTF-8 are taken for Windows-1252.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// From
    pub from: Option<String>,
    /// To
    pub to: Option<String>,
    /// Cc
    pub cc: Option<String>,
    /// Subject
    pub subject: Option<String>,
    /// Message-ID
    pub message_id: Option<String>,
    /// Date
    pub date: Option<String>,
}

impl Envelope {
    /// Reads the header at the start of a message; `start` may be cut anywhere.
    pub fn read(start: &[u8]) -> Envelope {
        let mut e = Envelope::default();
        let mut lines = start.split(|&b| b == b'\n').peekable();
        while let Some(line) = lines.next() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                break;
            }
            let Some(colon) = line.iter().position(|&b| b == b':') else {
                continue;
            };
            let name = &line[..colon];
            let slot = match () {
                () if name.eq_ignore_ascii_case(b"from") => &mut e.from,
                () if name.eq_ignore_ascii_case(b"to") => &mut e.to,
                () if name.eq_ignore_ascii_case(b"cc") => &mut e.cc,
                () if name.eq_ignore_ascii_case(b"subject") => &mut e.subject,
                () if name.eq_ignore_ascii_case(b"message-id") => &mut e.message_id,
                () if name.eq_ignore_ascii_case(b"date") => &mut e.date,
                () => continue,
            };
            let mut value = line[colon + 1..].to_vec();
            while let Some(more) = lines.peek() {
                if !matches!(more.first(), Some(b' ' | b'\t')) || value.len() > KEPT {
                    break;
                }
                value.extend_from_slice(more.strip_suffix(b"\r").unwrap_or(more));
                lines.next();
            }
            if slot.is_none() {
                value.truncate(KEPT);
                *slot = Some(text(value.trim_ascii()).into_owned());
            }
        }
        e
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_folded_fields_and_stops_at_the_body() {
        let e = Envelope::read(
            b"FROM: a@b\r\nSubject: one\r\n two\r\nnonsense\r\nSubject: other\r\n\r\nTo: no\r\n",
        );
        assert_eq!(e.from.as_deref(), Some("a@b"));
        assert_eq!(e.subject.as_deref(), Some("one two"));
        assert_eq!(e.to, None);
        assert_eq!(Envelope::read(b""), Envelope::default());
        assert_eq!(Envelope::read(&[0xff; 100]), Envelope::default());
        let e = Envelope::read(b"From: M\xfcller\nTo: \xc3\xbc\n");
        assert_eq!(e.from.as_deref(), Some("M\u{fc}ller"));
        assert_eq!(e.to.as_deref(), Some("\u{fc}"));
        // A value that is cut in the middle of a character is not taken for another charset.
        let long = format!("Subject: {}\n", "\u{20ac}".repeat(KEPT));
        let e = Envelope::read(long.as_bytes());
        assert_eq!(e.subject.unwrap().chars().next_back(), Some('\u{20ac}'));
    }
}
