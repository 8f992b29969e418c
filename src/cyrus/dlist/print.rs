//! The canonical printer (Cyrus `lib/prot.c prot_printastring`, `imap/dlist.c dlist_print`).

use super::Value;
use std::io::{self, Write};

/// Who reads the text, which decides how literals are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The log, and requests: `{n+}`.
    Log,
    /// Our replies: `{n}`; stock clients reject `{n+}` from a server.
    Reply,
}

const MAX_SHORT: usize = 1024;

/// Prints one value without anything behind it.
pub fn print(value: &Value, form: Form, out: &mut dyn Write) -> io::Result<()> {
    match value {
        Value::Nil => out.write_all(b"NIL"),
        Value::Text(text) => print_text(text, form, out),
        Value::Flag(flag) => out.write_all(flag),
        Value::List(items) => {
            out.write_all(b"(")?;
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.write_all(b" ")?;
                }
                print(item, form, out)?;
            }
            out.write_all(b")")
        }
        Value::Kv(items) => {
            out.write_all(b"%(")?;
            for (i, (key, item)) in items.iter().enumerate() {
                if i > 0 {
                    out.write_all(b" ")?;
                }
                out.write_all(key)?;
                out.write_all(b" ")?;
                print(item, form, out)?;
            }
            out.write_all(b")")
        }
    }
}

/// The same into memory.
pub fn print_to_vec(value: &Value, form: Form) -> Vec<u8> {
    let mut out = Vec::new();
    // Writing to a Vec cannot fail.
    let _ = print(value, form, &mut out);
    out
}

/// Prints a string as atom, quoted string or literal, whichever Cyrus would choose.
pub fn print_text(text: &[u8], form: Form, out: &mut dyn Write) -> io::Result<()> {
    if text.is_empty() {
        out.write_all(b"\"\"")
    } else if is_atom(text) {
        out.write_all(text)
    } else if is_quotable(text) {
        out.write_all(b"\"")?;
        out.write_all(text)?;
        out.write_all(b"\"")
    } else {
        let plus = if form == Form::Log { "+" } else { "" };
        write!(out, "{{{}{plus}}}\r\n", text.len())?;
        out.write_all(text)
    }
}

/// Whether the text may stand as a bare atom. 0x1f may: a quirk of the original.
pub fn is_atom(text: &[u8]) -> bool {
    !text.is_empty()
        && text.len() < MAX_SHORT
        && text != b"NIL"
        && text.iter().all(|&b| {
            (0x1f..0x7f).contains(&b)
                && !matches!(b, b' ' | b'{' | b'(' | b')' | b'"' | b'%' | b'*' | b'\\')
        })
}

fn is_quotable(text: &[u8]) -> bool {
    text.len() < MAX_SHORT
        && text
            .iter()
            .all(|&b| b < 0x80 && !matches!(b, 0 | b'\r' | b'\n' | b'"' | b'%' | b'\\'))
}
