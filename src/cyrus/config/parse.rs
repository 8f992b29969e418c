//! The text of imapd.conf: lines to entries, and the value types. Pure; nothing is opened here.
//!
//! Format: Cyrus `lib/libconfig.c` (3.6; durations and sizes as in 3.8 and later). A line is
//! `key: value`; `#` begins a comment only as the first thing on a line; a backslash right before
//! the newline joins the next line as it is, comments included, and one that ends the last line
//! loses that line. What Cyrus dies of is an error here, with its line.
#![forbid(unsafe_code)]

/// What one line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// `key: value`, the key in lower case.
    Entry {
        /// The key.
        key: String,
        /// The value without blanks around it; never empty.
        value: String,
        /// Where it begins, from 1.
        line: u32,
    },
    /// `@include: path`.
    Include {
        /// The path as written.
        path: String,
        /// Where it begins, from 1.
        line: u32,
    },
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// From 1.
    pub line: u32,
    /// Why.
    pub why: String,
}

/// Splits the text of one file.
pub fn parse(text: &[u8]) -> Result<Vec<Item>, ParseError> {
    let mut items = Vec::new();
    let mut joined: Vec<u8> = Vec::new();
    let mut first = 1;
    for (number, piece) in (1u32..).zip(text.split_inclusive(|b| *b == b'\n')) {
        if let Some(start) = piece.strip_suffix(b"\\\n") {
            joined.extend_from_slice(start);
            continue;
        }
        joined.extend_from_slice(piece.strip_suffix(b"\n").unwrap_or(piece));
        if let Some(item) = line(&joined, first)? {
            items.push(item);
        }
        joined.clear();
        first = number.saturating_add(1);
    }
    Ok(items)
}

fn line(bytes: &[u8], line: u32) -> Result<Option<Item>, ParseError> {
    let fail = |why: String| Err(ParseError { line, why });
    let bytes = trim(bytes);
    if bytes.is_empty() || bytes[0] == b'#' {
        return Ok(None);
    }
    if bytes.contains(&0) {
        return fail("NUL byte".into());
    }
    let directive = bytes[0] == b'@';
    let name_end = bytes
        .iter()
        .skip(usize::from(directive))
        .position(|b| !(b.is_ascii_alphanumeric() || *b == b'-' || *b == b'_'))
        .map_or(bytes.len(), |n| n + usize::from(directive));
    let (name, rest) = bytes.split_at(name_end);
    let shown = String::from_utf8_lossy(name).to_ascii_lowercase();
    if rest.first() != Some(&b':') || name.len() == usize::from(directive) {
        return fail("invalid option name: expected \"name: value\"".into());
    }
    let value = trim(&rest[1..]);
    if value.is_empty() {
        return fail(format!("empty value for {shown}"));
    }
    let Ok(value) = std::str::from_utf8(value) else {
        return fail(format!("value for {shown} is not UTF-8"));
    };
    let value = value.to_string();
    match shown.as_str() {
        "@include" => Ok(Some(Item::Include { path: value, line })),
        _ if directive => fail(format!("invalid directive {shown}")),
        _ => Ok(Some(Item::Entry {
            key: shown,
            value,
            line,
        })),
    }
}

/// Without the blanks of C's isspace at both ends.
fn trim(bytes: &[u8]) -> &[u8] {
    let blank = |b: &u8| matches!(b, b' ' | b'\t'..=b'\r');
    let start = bytes.iter().position(|b| !blank(b)).unwrap_or(bytes.len());
    let end = bytes
        .iter()
        .rposition(|b| !blank(b))
        .map_or(start, |n| n + 1);
    &bytes[start..end]
}

/// On or off, judged by the first letters, which must be lower case.
pub fn switch(text: &str) -> Option<bool> {
    match text.as_bytes() {
        [b'0' | b'n' | b'f', ..] | [b'o', b'f', ..] => Some(false),
        [b'1' | b'y' | b't', ..] | [b'o', b'n', ..] => Some(true),
        _ => None,
    }
}

/// The words an enum takes for `on` and `off`; any other word stands for itself.
pub fn enum_word(text: &str) -> &str {
    match text {
        "1" | "yes" | "t" | "true" => "on",
        "0" | "no" | "f" | "false" => "off",
        other => other,
    }
}

/// A whole number as C's strtol reads it in base 0: `0x10`, `010`, a sign; too large is the limit.
pub fn int(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = if let Some(hex) = lower.strip_prefix("0x") {
        (16, hex)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, &lower[1..])
    } else {
        (10, lower.as_str())
    };
    if digits.is_empty() {
        return None;
    }
    let mut value: i64 = 0;
    for c in digits.chars() {
        let digit = i64::from(c.to_digit(radix)?);
        value = value.saturating_mul(i64::from(radix)).saturating_add(digit);
    }
    Some(if negative { -value } else { value })
}

/// A duration in seconds: groups of digits and a unit out of d, h, m, s; `unit` serves a last
/// number without one. Beyond 32 bits is an error, as in Cyrus since 3.8.
pub fn duration(text: &str, unit: u8) -> Option<i64> {
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut total: i64 = 0;
    let mut number: Option<i64> = None;
    for b in rest.bytes() {
        if b.is_ascii_digit() {
            let digit = i64::from(b - b'0');
            number = Some(number.unwrap_or(0).checked_mul(10)?.checked_add(digit)?);
        } else {
            total = total.checked_add(number.take()?.checked_mul(unit_secs(b)?)?)?;
        }
    }
    if let Some(number) = number {
        total = total.checked_add(number.checked_mul(unit_secs(unit)?)?)?;
    }
    i32::try_from(total).ok()?;
    Some(if negative { -total } else { total })
}

fn unit_secs(unit: u8) -> Option<i64> {
    Some(match unit {
        b'd' => 86_400,
        b'h' => 3_600,
        b'm' => 60,
        b's' => 1,
        _ => return None,
    })
}

/// A size in bytes: digits, blanks, K, M or G of either case, `i`, `B`. Factors are powers of
/// 1024; `unit` serves a bare number.
pub fn bytesize(text: &str, unit: u8) -> Option<i64> {
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let split = rest
        .bytes()
        .position(|b| !b.is_ascii_digit())
        .unwrap_or(rest.len());
    let (digits, suffix) = rest.split_at(split);
    let number: i64 = digits.parse().ok()?;
    let suffix = suffix.trim_start_matches([' ', '\t']).to_ascii_lowercase();
    let shift = if suffix.is_empty() {
        factor_shift(unit.to_ascii_lowercase())?
    } else {
        match suffix.as_bytes() {
            [b'b'] => 0,
            [f] | [f, b'i'] | [f, b'b'] | [f, b'i', b'b'] => {
                factor_shift(*f).filter(|shift| *shift > 0)?
            }
            _ => return None,
        }
    };
    let bytes = number.checked_mul(1 << shift)?;
    Some(if negative { -bytes } else { bytes })
}

fn factor_shift(unit: u8) -> Option<u32> {
    Some(match unit {
        b'b' => 0,
        b'k' => 10,
        b'm' => 20,
        b'g' => 30,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &str) -> Vec<(String, String, u32)> {
        parse(text.as_bytes())
            .unwrap()
            .into_iter()
            .map(|item| match item {
                Item::Entry { key, value, line } => (key, value, line),
                Item::Include { path, line } => ("@".into(), path, line),
            })
            .collect()
    }

    fn one(text: &str) -> (String, String) {
        let (key, value, _) = entries(text).remove(0);
        (key, value)
    }

    #[test]
    fn lines() {
        let text = "# c\n\n \t Key_1-a:  a # b  \r\n\x0b@Include:/x\nlast:z";
        let expect = [("key_1-a", "a # b", 3), ("@", "/x", 4), ("last", "z", 5)]
            .map(|(k, v, l)| (k.to_string(), v.to_string(), l));
        assert_eq!(entries(text), expect);
        assert_eq!(entries(""), []);
    }

    #[test]
    fn continuation() {
        assert_eq!(one("a: x\\\n  y\\\nz\nb: 1\n").1, "x  yz");
        assert_eq!(entries("a: x\\\ny\nb: 1\n")[1].2, 3);
        assert_eq!(one("a: x\\\n# y\n").1, "x# y");
        assert_eq!(entries("#x\\\na: 1\nb: 2\n").len(), 1);
        // A blank after it, or no newline: an ordinary byte. At the very end: the line is lost.
        assert_eq!(one("a: x\\ \n").1, "x\\");
        assert_eq!(one("a: x\\").1, "x\\");
        assert_eq!(entries("a: x\\\n"), []);
    }

    #[test]
    fn fatal_lines() {
        for (text, line, why) in [
            ("a: 1\nb:\n", 2, "empty value for b"),
            ("a : 1\n", 1, "invalid option name"),
            ("a.b: 1\n", 1, "invalid option name"),
            (": 1\n", 1, "invalid option name"),
            ("@: 1\n", 1, "invalid option name"),
            ("word\n", 1, "invalid option name"),
            ("@other: 1\n", 1, "invalid directive @other"),
            ("@include:\n", 1, "empty value"),
            ("a: \0\n", 1, "NUL"),
            ("é: 1", 1, "invalid option name"),
        ] {
            let e = parse(text.as_bytes()).unwrap_err();
            assert_eq!(e.line, line, "{text:?}");
            assert!(e.why.starts_with(why), "{text:?}: {}", e.why);
        }
        let e = parse(b"# \xff\na: 1\nb: \xff\n").unwrap_err();
        assert_eq!((e.line, e.why.as_str()), (3, "value for b is not UTF-8"));
    }

    #[test]
    fn switches_and_words() {
        for (text, value) in [
            ("0", Some(false)),
            ("nay", Some(false)),
            ("off", Some(false)),
            ("f", Some(false)),
            ("1", Some(true)),
            ("yes", Some(true)),
            ("onx", Some(true)),
            ("tiger", Some(true)),
            ("Yes", None),
            ("o", None),
            ("", None),
        ] {
            assert_eq!(switch(text), value, "{text}");
        }
        assert_eq!(enum_word("true"), "on");
        assert_eq!(enum_word("f"), "off");
        assert_eq!(enum_word("T"), "T");
    }

    #[test]
    fn numbers() {
        for (text, value) in [
            ("0", Some(0)),
            ("010", Some(8)),
            ("0x1F", Some(31)),
            ("-5", Some(-5)),
            ("+5", Some(5)),
            ("99999999999999999999", Some(i64::MAX)),
            ("0x", None),
            ("08", None),
            ("5 ", None),
            ("", None),
            ("-", None),
            ("+-5", None),
            ("é", None),
        ] {
            assert_eq!(int(text), value, "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, value) in [
            ("5", Some(300)),
            ("1d12h", Some(129_600)),
            ("-2s", Some(-2)),
            ("1h5", Some(3_900)),
            ("1m1h1m", Some(3_720)),
            ("-", Some(0)),
            ("5 m", None),
            ("5w", None),
            ("5M", None),
            ("h", None),
            ("+5", None),
            ("1h-5m", None),
            ("99999999999", None),
            ("99999999999999999999999s", None),
        ] {
            assert_eq!(duration(text, b'm'), value, "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, value) in [
            ("5", Some(5120)),
            ("5B", Some(5)),
            ("2 MiB", Some(2 << 20)),
            ("2m", Some(2 << 20)),
            ("1Gb", Some(1 << 30)),
            ("-1K", Some(-1024)),
            ("1 i", None),
            ("1T", None),
            ("K", None),
            ("1.5K", None),
            ("9999999999999G", None),
            ("", None),
        ] {
            assert_eq!(bytesize(text, b'K'), value, "{text}");
        }
    }
}
