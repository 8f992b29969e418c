//! Modified UTF-7 (RFC 3501 5.1.3), in which mailbox names travel and in which Cyrus keeps them.
//!
//! Only what `encode` would write is decoded: so two different names never read the same.

use std::borrow::Cow;

/// The name as text; `None` if it is not well-formed, or has another spelling.
pub fn decode(name: &str) -> Option<String> {
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        let (run, behind) = rest[at + 1..].split_once('-')?;
        if run.is_empty() {
            out.push('&');
        } else {
            out.push_str(&decode_run(run)?);
        }
        rest = behind;
    }
    out.push_str(rest);
    (encode(&out) == name).then_some(out)
}

/// A name as a person types it: what is not ASCII is meant as text, and so is an `&` that begins
/// nothing well-formed. All else is a name already.
pub fn typed(name: &str) -> Cow<'_, str> {
    let is_name = name.is_ascii() && (!name.contains('&') || decode(name).is_some());
    match is_name {
        true => Cow::Borrowed(name),
        false => Cow::Owned(encode(name)),
    }
}

/// Text as a name.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut run: Vec<u16> = Vec::new();
    for c in text.chars() {
        if (' '..='~').contains(&c) {
            end_run(&mut run, &mut out);
            out.push(c);
            if c == '&' {
                out.push('-');
            }
        } else {
            run.extend_from_slice(c.encode_utf16(&mut [0; 2]));
        }
    }
    end_run(&mut run, &mut out);
    out
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+,";

fn end_run(run: &mut Vec<u16>, out: &mut String) {
    if run.is_empty() {
        return;
    }
    out.push('&');
    let (mut bits, mut held) = (0u32, 0);
    for unit in run.drain(..) {
        bits = bits << 16 | u32::from(unit);
        held += 16;
        while held >= 6 {
            held -= 6;
            out.push(ALPHABET[(bits >> held & 63) as usize] as char);
        }
        bits &= (1 << held) - 1;
    }
    if held > 0 {
        out.push(ALPHABET[(bits << (6 - held) & 63) as usize] as char);
    }
    out.push('-');
}

fn decode_run(run: &str) -> Option<String> {
    let mut units = Vec::new();
    let (mut bits, mut held) = (0u32, 0);
    for b in run.bytes() {
        let value = ALPHABET.iter().position(|&a| a == b)?;
        bits = bits << 6 | value as u32;
        held += 6;
        if held >= 16 {
            held -= 16;
            units.push((bits >> held) as u16);
            bits &= (1 << held) - 1;
        }
    }
    String::from_utf16(&units).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways() {
        for (name, text) in [
            ("Sent", "Sent"),
            ("Entw&APw-rfe", "Entwürfe"),
            ("A&-B", "A&B"),
            ("&AOk-&-", "é&"),
            ("~peter/mail/&U,BTFw-/&ZeVnLIqe-", "~peter/mail/台北/日本語"),
            ("&2D3eAA-", "😀"),
            ("&AAk-", "\t"),
            ("", ""),
        ] {
            assert_eq!(encode(text), name, "{text}");
            assert_eq!(decode(name).as_deref(), Some(text), "{name}");
        }
    }

    #[test]
    fn people_type_text_or_names() {
        for (text, name) in [
            ("Sent", "Sent"),
            ("Entwürfe", "Entw&APw-rfe"),
            ("Entw&APw-rfe", "Entw&APw-rfe"),
            ("R&D", "R&-D"),
            ("R&-D", "R&-D"),
            ("Mü & Co", "M&APw- &- Co"),
        ] {
            assert_eq!(typed(text), name);
        }
    }

    #[test]
    fn other_spellings_are_none() {
        for name in [
            "&",
            "a&b",
            "&APw",
            "&AP-",
            "&A-",
            "&AGE-",
            "&APw-&APw-",
            "&2D0-",
            "&AP*-",
            "é",
            "&APwA-",
        ] {
            assert_eq!(decode(name), None, "{name}");
        }
    }
}
