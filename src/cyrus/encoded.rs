//! The text of a header field: encoded words (RFC 2047) and charsets made Unicode.
//!
//! Total: what cannot be decoded stays as it stands. Real mail is followed rather than the rules:
//! words count anywhere in the text, also in quotes and without blanks around them, blanks and
//! question marks in their text are allowed, and neighbours of one charset are decoded together, since many
//! senders cut in the middle of a character.

use encoding_rs::{Encoding, UTF_8, WINDOWS_1252};
use std::borrow::Cow;

/// Bytes without a charset: UTF-8 if they are, else Windows-1252, the superset of Latin-1. A
/// character of UTF-8 that was cut off at the end does not count.
pub fn text(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(e) if e.error_len().is_none() => String::from_utf8_lossy(&bytes[..e.valid_up_to()]),
        Err(_) => WINDOWS_1252.decode_without_bom_handling(bytes).0,
    }
}

/// A field's value with its encoded words decoded.
pub fn decode(value: &str) -> Cow<'_, str> {
    if !value.contains("=?") {
        return value.into();
    }
    let mut out = String::with_capacity(value.len());
    let mut open = Open::default();
    let mut rest = value;
    while let Some(at) = rest.find("=?") {
        let (before, from) = rest.split_at(at);
        let Some((word, behind)) = Word::parse(from) else {
            open.end(&mut out);
            out.push_str(before);
            out.push_str("=?");
            rest = &from[2..];
            continue;
        };
        // Blanks between two words are not part of the text.
        if !(open.encoding.is_some() && before.bytes().all(|b| b.is_ascii_whitespace())) {
            open.end(&mut out);
            out.push_str(before);
        }
        open.add(word, &mut out);
        rest = behind;
    }
    open.end(&mut out);
    out.push_str(rest);
    out.into()
}

/// Lower case for comparing: `fold(a)` is in `fold(b)` if a is in b whatever the case. In capitals `ß`
/// is two letters.
pub fn fold(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            'ß' | 'ẞ' => out.push_str("ss"),
            c if c.is_ascii() => out.push(c.to_ascii_lowercase()),
            c => out.extend(c.to_lowercase()),
        }
    }
    out
}

/// Words of one charset that follow each other.
#[derive(Default)]
struct Open {
    encoding: Option<&'static Encoding>,
    bytes: Vec<u8>,
}

impl Open {
    fn add(&mut self, word: Word<'_>, out: &mut String) {
        if self.encoding.is_some_and(|e| e != word.encoding) {
            self.end(out);
        }
        self.encoding = Some(word.encoding);
        word.bytes(&mut self.bytes);
    }

    fn end(&mut self, out: &mut String) {
        if let Some(encoding) = self.encoding.take() {
            out.push_str(&match encoding == UTF_8 {
                // What calls itself UTF-8 and is not is mostly of the other kind.
                true => text(&self.bytes),
                false => encoding.decode_without_bom_handling(&self.bytes).0,
            });
        }
        self.bytes.clear();
    }
}

/// `=?charset?B?text?=`
struct Word<'a> {
    encoding: &'static Encoding,
    base64: bool,
    text: &'a str,
}

impl<'a> Word<'a> {
    /// The word at the start of `from`, which begins with `=?`, and what is behind it.
    fn parse(from: &'a str) -> Option<(Word<'a>, &'a str)> {
        let (charset, rest) = from[2..].split_once('?')?;
        let base64 = match rest.as_bytes() {
            [b'b' | b'B', b'?', ..] => true,
            [b'q' | b'Q', b'?', ..] => false,
            _ => return None,
        };
        let (text, behind) = rest[2..].split_once("?=")?;
        // RFC 2231 allows a language behind it.
        let charset = charset.split('*').next()?;
        let encoding = match Encoding::for_label(charset.as_bytes()) {
            Some(encoding) => encoding,
            None if charset.to_ascii_lowercase().starts_with("unknown") => UTF_8,
            None => return None,
        };
        let word = Word {
            encoding,
            base64,
            text,
        };
        Some((word, behind))
    }

    fn bytes(&self, out: &mut Vec<u8>) {
        if self.base64 {
            return base64(self.text.bytes(), out);
        }
        let text = self.text.as_bytes();
        let mut at = 0;
        while let Some(&b) = text.get(at) {
            let hex = |i: usize| char::from(*text.get(i)?).to_digit(16);
            match (b, hex(at + 1), hex(at + 2)) {
                (b'=', Some(high), Some(low)) => {
                    out.push((high * 16 + low) as u8);
                    at += 2;
                }
                (b'_', ..) => out.push(b' '),
                _ => out.push(b),
            }
            at += 1;
        }
    }
}

/// What is not of the alphabet is passed over; each run up to a padding stands for itself.
fn base64(text: impl Iterator<Item = u8>, out: &mut Vec<u8>) {
    let (mut bits, mut count) = (0u32, 0);
    for b in text {
        let value = match b {
            b'A'..=b'Z' => b - b'A',
            b'a'..=b'z' => b - b'a' + 26,
            b'0'..=b'9' => b - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            b'=' => {
                count = 0;
                continue;
            }
            _ => continue,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_senders_write() {
        for (value, expect) in [
            ("plain", "plain"),
            ("", ""),
            ("=?utf-8?Q?Gr=C3=BC=C3=9Fe?=", "Gr\u{fc}\u{df}e"),
            ("=?UTF-8?b?R3LDvMOfZQ==?= end", "Gr\u{fc}\u{df}e end"),
            ("=?iso-8859-1?q?a_b=FC?=", "a b\u{fc}"),
            ("=?windows-1252*de?Q?=80_1?=", "\u{20ac} 1"),
            (
                "=?koi8-r?B?8NLJ18XU?=",
                "\u{41f}\u{440}\u{438}\u{432}\u{435}\u{442}",
            ),
            ("=?ISO-2022-JP?B?GyRCRnxLXBsoQg==?=", "\u{65e5}\u{672c}"),
            ("=?gb2312?B?1tC5+g==?=", "\u{4e2d}\u{56fd}"),
            ("=?big5?B?pKSw6g==?=", "\u{4e2d}\u{570b}"),
            ("=?euc-kr?B?x9GxuQ==?=", "\u{d55c}\u{ad6d}"),
            ("=?shift_jis?B?k/qWew==?=", "\u{65e5}\u{672c}"),
            ("=?us-ascii?Q?hello?=", "hello"),
            // Blanks between words go, others stay.
            (
                "=?utf-8?Q?a?= \r\n\t=?utf-8?Q?b?= c =?utf-8?Q?d?=",
                "ab c d",
            ),
            ("=?utf-8?Q?a?= =?iso-8859-1?Q?=FC?=", "a\u{fc}"),
            // A character in two words, by either encoding.
            ("=?utf-8?Q?Gr=C3?= =?utf-8?Q?=BCn?=", "Gr\u{fc}n"),
            ("=?utf-8?B?R3LD?= =?utf-8?B?vG4=?=", "Gr\u{fc}n"),
            // Not by the rules.
            ("\"=?utf-8?Q?M=C3=BCller?=\" <m@x>", "\"M\u{fc}ller\" <m@x>"),
            ("=?utf-8?Q?a?=b=?utf-8?Q?c?=", "abc"),
            ("=?utf-8?Q?is it?yes?=", "is it?yes"),
            ("=?utf-8?Q?=?=", "="),
            ("=?utf-8?Q?=41=4?=", "A=4"),
            ("=?utf-8?Q??=x", "x"),
            ("=?utf-8?B?!!?=x", "x"),
            ("=?utf-8?Q?Gr=FCn?=", "Gr\u{fc}n"),
            ("=?unknown-8bit?Q?Gr=FCn?=", "Gr\u{fc}n"),
            // Not words.
            ("=?utf-8?X?a?=", "=?utf-8?X?a?="),
            ("=?nonsense?Q?a?=", "=?nonsense?Q?a?="),
            ("=?utf-8?Q?a", "=?utf-8?Q?a"),
            ("a =? b ?=", "a =? b ?="),
            ("=?", "=?"),
            ("=?=?utf-8?Q?a?=", "=?a"),
            ("=?utf-8?Q?a?= =?x =?utf-8?Q?b?=", "a =?x b"),
            ("\u{fc} =?utf-8?Q?=C3=BC?= \u{fc}", "\u{fc} \u{fc} \u{fc}"),
        ] {
            assert_eq!(decode(value), expect, "{value}");
        }
    }

    #[test]
    fn bytes_without_a_charset() {
        assert_eq!(text(b"plain"), "plain");
        assert_eq!(text("\u{fc}".as_bytes()), "\u{fc}");
        assert_eq!(text(b"M\xfcller"), "M\u{fc}ller");
        assert_eq!(text(b"Gr\xc3"), "Gr");
        assert_eq!(text(b""), "");
    }

    #[test]
    fn any_text_comes_out_of_it() {
        let mut seed = 1u64;
        let parts = [
            "=?",
            "?=",
            "?",
            "=",
            "utf-8",
            "iso-2022-jp",
            "utf-16le",
            "replacement",
            "hz-gb-2312",
            "?B?",
            "?Q?",
            "_",
            " ",
            "G\u{fc}",
            "=1b",
            "=FF",
            "$",
            "*",
            "QUJD",
            "\r\n\t",
        ];
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..12 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                text.push_str(parts[(seed >> 33) as usize % parts.len()]);
            }
            let _ = decode(&text);
        }
    }

    #[test]
    fn case_is_none() {
        assert_eq!(fold("GR\u{dc}SSE"), fold("gr\u{fc}\u{df}e"));
        assert_eq!(fold("GR\u{dc}N \u{41f}A"), "gr\u{fc}n \u{43f}a");
    }
}
