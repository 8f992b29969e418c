//! Standard output: bytes, lines of text for people, and JSON written piece by piece.
//!
//! A JSON document is an object with `"version":1`. It goes out as it is made, so that a hundred
//! thousand rows need no memory, and it is valid JSON even when its making fails: then it ends with
//! an `"error"`. What is stored as bytes and is not UTF-8 becomes `{"base64": "..."}`.
//!
//! A reader that went away is an error of kind `Io` like any other, but [`Out::is_closed`] tells it
//! apart: nobody is to hear of it.

pub use crate::cyrus::dlist::json::{annotations_json, bytes_json, dlist_json, dlist_number};
use crate::error::{Error, Result};
use crate::util::time::{Timestamp, iso};
use serde_json::Value;
use std::fmt;
use std::io::{self, BufWriter, Write};

const BUFFER: usize = 64 * 1024;

/// Where data go.
pub struct Out {
    inner: BufWriter<Box<dyn Write>>,
    closed: bool,
}

impl Out {
    /// To the process' standard output.
    pub fn stdout() -> Out {
        Out::new(Box::new(io::stdout()))
    }

    /// To anything else, for tests.
    pub fn new(to: Box<dyn Write>) -> Out {
        Out {
            inner: BufWriter::with_capacity(BUFFER, to),
            closed: false,
        }
    }

    /// Whether an error came from a reader that went away.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Writes bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let done = self.inner.write_all(bytes);
        self.judge(done)
    }

    /// Writes a line of text. Parts that come from elsewhere go through [`plain`] first.
    pub fn line(&mut self, text: fmt::Arguments<'_>) -> Result<()> {
        let done = self.inner.write_fmt(format_args!("{text}\n"));
        self.judge(done)
    }

    /// Hands on what is buffered. Without it the end may be lost unnoticed.
    pub fn flush(&mut self) -> Result<()> {
        let done = self.inner.flush();
        self.judge(done)
    }

    fn json(&mut self, value: &Value) -> Result<()> {
        let done = serde_json::to_writer(&mut self.inner, value);
        self.judge(done.map_err(io::Error::from))
    }

    fn judge(&mut self, done: io::Result<()>) -> Result<()> {
        done.map_err(|e| {
            self.closed |= e.kind() == io::ErrorKind::BrokenPipe;
            Error::io("cannot write to standard output", e)
        })
    }

    /// Writes one JSON document: `fields` first, then what `body` adds. Its error becomes the
    /// document's `"error"` and is returned.
    pub fn document(
        &mut self,
        fields: &[(&str, Value)],
        body: impl FnOnce(&mut Document<'_>) -> Result<()>,
    ) -> Result<()> {
        self.bytes(b"{\"version\":1")?;
        let mut document = Document {
            out: self,
            list: None,
        };
        for (key, value) in fields {
            document.field(key, value)?;
        }
        let done = body(&mut document);
        if let Err(e) = done {
            if !document.out.closed {
                document.end_list()?;
                document.field("error", &e.to_string().into())?;
                document.out.bytes(b"}\n")?;
            }
            return Err(e);
        }
        document.end_list()?;
        self.bytes(b"}\n")
    }
}

/// A document being written: fields and lists of rows, in any order.
pub struct Document<'a> {
    out: &'a mut Out,
    /// A list is open, and whether it has a row.
    list: Option<bool>,
}

impl Document<'_> {
    /// Adds a field; an open list ends.
    pub fn field(&mut self, key: &str, value: &Value) -> Result<()> {
        self.key(key)?;
        self.out.json(value)
    }

    /// Begins a list; an open one ends.
    pub fn list(&mut self, key: &str) -> Result<()> {
        self.key(key)?;
        self.list = Some(false);
        self.out.bytes(b"[")
    }

    /// Adds a row to the open list, on a line of its own.
    pub fn row(&mut self, row: &Value) -> Result<()> {
        let separator: &[u8] = match self.list.replace(true) {
            Some(true) => b",\n",
            _ => b"\n",
        };
        self.out.bytes(separator)?;
        self.out.json(row)
    }

    fn key(&mut self, key: &str) -> Result<()> {
        self.end_list()?;
        self.out.bytes(b",")?;
        self.out.json(&key.into())?;
        self.out.bytes(b":")
    }

    fn end_list(&mut self) -> Result<()> {
        match self.list.take() {
            Some(_) => self.out.bytes(b"]"),
            None => Ok(()),
        }
    }
}

/// Text that may hold anything, for a terminal: control characters escaped.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    out
}

/// Bytes for people.
pub fn plain_bytes(bytes: &[u8]) -> String {
    plain(&String::from_utf8_lossy(bytes))
}

/// A time for people; `-` for none.
pub fn when(time: Option<i64>) -> String {
    match time {
        Some(time) => iso(Timestamp(time)),
        None => "-".into(),
    }
}

/// A number that may not be known, for people.
pub fn number(n: Option<impl fmt::Display>) -> String {
    n.map_or_else(|| "-".into(), |n| n.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use serde_json::json;
    use std::cell::RefCell;
    use std::rc::Rc;

    #[derive(Clone, Default)]
    struct Kept(Rc<RefCell<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Broken(io::ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(body: impl FnOnce(&mut Document<'_>) -> Result<()>) -> (Value, bool) {
        let kept = Kept::default();
        let mut out = Out::new(Box::new(kept.clone()));
        let done = out.document(&[("userid", "a\"\u{1}".into())], body);
        out.flush().unwrap();
        let text = kept.0.borrow();
        (serde_json::from_slice(&text).unwrap(), done.is_ok())
    }

    #[test]
    fn a_document_is_one_object() {
        let (value, ok) = written(|d| {
            d.list("rows")?;
            d.row(&json!({"a": 1}))?;
            d.row(&json!("b\n"))?;
            d.list("none")?;
            d.field("last", &Value::Null)
        });
        assert!(ok);
        let expect = json!({"version": 1, "userid": "a\"\u{1}", "rows": [{"a": 1}, "b\n"],
            "none": [], "last": null});
        assert_eq!(value, expect);
    }

    #[test]
    fn a_document_that_fails_is_still_one() {
        let (value, ok) = written(|d| {
            d.list("rows")?;
            d.row(&json!(1))?;
            Err(Error::new(Kind::Damaged, "torn"))
        });
        assert!(!ok);
        assert_eq!(
            value,
            json!({"version": 1, "userid": "a\"\u{1}", "rows": [1], "error": "torn"})
        );
    }

    #[test]
    fn a_closed_pipe_is_told_from_a_full_disk() {
        for (kind, closed) in [
            (io::ErrorKind::BrokenPipe, true),
            (io::ErrorKind::StorageFull, false),
        ] {
            let mut out = Out::new(Box::new(Broken(kind)));
            out.line(format_args!("x")).unwrap();
            assert!(out.flush().is_err());
            assert_eq!(out.is_closed(), closed);
        }
    }

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(plain("a\x1b[1m\u{9b}\u{fc}"), "a\\u{1b}[1m\\u{9b}\u{fc}");
    }
}
