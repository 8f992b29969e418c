//! The pull parser. Every length is checked against a limit before memory is taken, and nesting
//! is bounded; what is read need not be canonical.

use super::Value;
use crate::cyrus::guid::Guid;
use crate::error::{Error, Kind};
use std::fmt;
use std::io::{self, BufRead};

/// Bytes of a key; those of Cyrus have under 20.
const MAX_KEY: usize = 1024;

/// Bytes of the partition's name in a file's head.
const MAX_PARTITION: usize = 1024;

/// What a parse may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one atom or quoted string.
    pub word: usize,
    /// Bytes of one literal held in memory.
    pub literal: u64,
    /// Bytes of one value tree, text and nodes together.
    pub tree: u64,
    /// Nesting of lists.
    pub depth: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            word: 1 << 20,
            literal: 64 << 20,
            tree: 64 << 20,
            depth: 20,
        }
    }
}

/// Where and why a parse failed. `at` counts bytes since the parser was made.
#[derive(Debug)]
pub struct ParseError {
    /// Position in bytes.
    pub at: u64,
    /// The reason.
    pub why: Why,
}

/// The reason of a failed parse.
#[derive(Debug)]
pub enum Why {
    /// The source failed.
    Io(io::Error),
    /// The source ended inside a value.
    Eof,
    /// The bytes are not dlist.
    Syntax(&'static str),
    /// A limit was passed.
    TooLong(&'static str),
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.why {
            Why::Io(e) => write!(f, "byte {}: {e}", self.at),
            Why::Eof => write!(f, "byte {}: ends in the middle", self.at),
            Why::Syntax(what) => write!(f, "byte {}: {what}", self.at),
            Why::TooLong(what) => write!(f, "byte {}: {what} is too long", self.at),
        }
    }
}

impl std::error::Error for ParseError {}

impl From<ParseError> for Error {
    fn from(e: ParseError) -> Error {
        let kind = match e.why {
            Why::Io(_) | Why::Eof => Kind::Io,
            _ => Kind::Protocol,
        };
        Error::new(kind, "cannot parse").because(e)
    }
}

type Result<T> = std::result::Result<T, ParseError>;

/// The head of a file literal `%{partition guid size}`; `size` bytes follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHead {
    /// The sender's partition: text, never a path.
    pub partition: Vec<u8>,
    /// What the bytes must hash to.
    pub guid: Guid,
    /// Bytes that follow.
    pub size: u64,
}

/// How a value begins.
#[derive(Debug)]
pub enum Start {
    /// `(`: go on with [`Parser::list_next`].
    List,
    /// `%(`: go on with [`Parser::kv_next`].
    Kv,
    /// `%{...}`: go on with [`Parser::body`].
    File(FileHead),
    /// A whole leaf.
    Leaf(Value),
}

/// Whether a key reads back as itself when it is printed bare.
fn is_key(key: &[u8]) -> bool {
    !key.is_empty()
        && key.iter().all(|&b| {
            b.is_ascii_graphic()
                && !matches!(b, b'(' | b')' | b'"' | b'{' | b'}' | b'%' | b'*' | b'\\')
        })
}

/// Reads dlist from any buffered source.
pub struct Parser<R> {
    src: R,
    at: u64,
    limits: Limits,
    budget: u64,
}

impl<R: BufRead> Parser<R> {
    /// A parser at the source's present position.
    pub fn new(src: R, limits: Limits) -> Parser<R> {
        Parser {
            src,
            at: 0,
            limits,
            budget: limits.tree,
        }
    }

    /// The source back; nothing is buffered here.
    pub fn into_inner(self) -> R {
        self.src
    }

    /// The source.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.src
    }

    /// Bytes read so far.
    pub fn position(&self) -> u64 {
        self.at
    }

    fn fail<T>(&self, why: Why) -> Result<T> {
        Err(ParseError { at: self.at, why })
    }

    /// The next byte without taking it; `None` at the end of the source.
    pub fn peek(&mut self) -> Result<Option<u8>> {
        loop {
            match self.src.fill_buf() {
                Ok(buf) => return Ok(buf.first().copied()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return self.fail(Why::Io(e)),
            }
        }
    }

    fn take(&mut self) -> Result<u8> {
        match self.peek()? {
            Some(b) => {
                self.src.consume(1);
                self.at += 1;
                Ok(b)
            }
            None => self.fail(Why::Eof),
        }
    }

    fn need(&mut self) -> Result<u8> {
        match self.peek()? {
            Some(b) => Ok(b),
            None => self.fail(Why::Eof),
        }
    }

    fn expect(&mut self, want: u8, what: &'static str) -> Result<()> {
        if self.need()? != want {
            return self.fail(Why::Syntax(what));
        }
        self.take().map(|_| ())
    }

    /// Skips one or more of the blanks that may separate items on one line.
    pub fn space(&mut self) -> Result<()> {
        if !matches!(self.need()?, b' ' | b'\t') {
            return self.fail(Why::Syntax("a blank is missing"));
        }
        while matches!(self.need()?, b' ' | b'\t') {
            self.take()?;
        }
        Ok(())
    }

    /// Skips white space inside a list, line ends included, as the original does.
    fn blanks(&mut self) -> Result<()> {
        let mut skipped = 0usize;
        while matches!(self.need()?, b' ' | b'\t' | b'\r' | b'\n') {
            self.take()?;
            skipped += 1;
            if skipped > self.limits.word {
                return self.fail(Why::TooLong("white space"));
            }
        }
        Ok(())
    }

    /// Takes the CR LF, or LF, that ends a line.
    pub fn end_line(&mut self) -> Result<()> {
        if self.need()? == b'\r' {
            self.take()?;
        }
        self.expect(b'\n', "the line goes on after its value")
    }

    fn spend(&mut self, bytes: usize) -> Result<()> {
        match self.budget.checked_sub(bytes as u64) {
            Some(rest) => {
                self.budget = rest;
                Ok(())
            }
            None => self.fail(Why::TooLong("value")),
        }
    }

    /// Reads a word of bytes for which `good` holds; it may be empty.
    pub fn word(&mut self, good: impl Fn(u8) -> bool) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        loop {
            let (used, done) = {
                let buf = match self.src.fill_buf() {
                    Ok(buf) => buf,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(e) => return self.fail(Why::Io(e)),
                };
                if buf.is_empty() {
                    return self.fail(Why::Eof);
                }
                let used = buf.iter().position(|&b| !good(b)).unwrap_or(buf.len());
                if out.len() + used > self.limits.word {
                    return self.fail(Why::TooLong("word"));
                }
                out.extend_from_slice(&buf[..used]);
                (used, used < buf.len())
            };
            self.src.consume(used);
            self.at += used as u64;
            if done {
                return Ok(out);
            }
        }
    }

    fn quoted(&mut self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        self.take()?;
        loop {
            match self.take()? {
                b'"' => return Ok(out),
                b'\\' => {
                    let escaped = self.take()?;
                    out.push(escaped);
                }
                b'\r' | b'\n' => return self.fail(Why::Syntax("line end in a quoted string")),
                b => out.push(b),
            }
            if out.len() > self.limits.word {
                return self.fail(Why::TooLong("quoted string"));
            }
        }
    }

    fn number(&mut self) -> Result<u64> {
        let digits = self.word(|b| b.is_ascii_digit())?;
        match std::str::from_utf8(&digits)
            .ok()
            .and_then(|t| t.parse().ok())
        {
            Some(n) => Ok(n),
            None => self.fail(Why::Syntax("a size is not a number")),
        }
    }

    fn literal(&mut self) -> Result<Vec<u8>> {
        self.take()?;
        let size = self.number()?;
        if self.need()? == b'+' {
            self.take()?;
        }
        self.expect(b'}', "a literal's size is not closed")?;
        self.end_line()?;
        if size > self.limits.literal {
            return self.fail(Why::TooLong("literal"));
        }
        self.spend(usize::try_from(size).unwrap_or(usize::MAX))?;
        // Grown as bytes arrive: a size alone takes no memory.
        let mut out = Vec::new();
        self.body(size, &mut |part| {
            out.extend_from_slice(part);
            Ok::<(), ParseError>(())
        })?;
        Ok(out)
    }

    /// Hands the next `size` bytes to `sink` in pieces. An error of the sink ends the reading at
    /// once, with the stream out of step.
    pub fn body<E: From<ParseError>>(
        &mut self,
        mut size: u64,
        sink: &mut dyn FnMut(&[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        while size > 0 {
            let used = {
                let buf = match self.src.fill_buf() {
                    Ok(buf) => buf,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(e) => {
                        return Err(ParseError {
                            at: self.at,
                            why: Why::Io(e),
                        }
                        .into());
                    }
                };
                if buf.is_empty() {
                    return Err(ParseError {
                        at: self.at,
                        why: Why::Eof,
                    }
                    .into());
                }
                let used = buf.len().min(usize::try_from(size).unwrap_or(usize::MAX));
                sink(&buf[..used])?;
                used
            };
            self.src.consume(used);
            self.at += used as u64;
            size -= used as u64;
        }
        Ok(())
    }

    fn file_head(&mut self) -> Result<FileHead> {
        self.take()?;
        let partition = self.astring(|b| !matches!(b, b' ' | b'\t' | b'\r' | b'\n' | b'}'))?;
        if partition.len() > MAX_PARTITION {
            return self.fail(Why::TooLong("partition"));
        }
        self.space()?;
        let guid = self.word(|b| b.is_ascii_alphanumeric())?;
        let Some(guid) = Guid::parse(&guid) else {
            return self.fail(Why::Syntax("a file's GUID is not 40 hex digits"));
        };
        self.space()?;
        let size = self.number()?;
        self.expect(b'}', "a file's head is not closed")?;
        self.end_line()?;
        Ok(FileHead {
            partition,
            guid,
            size,
        })
    }

    fn astring(&mut self, good: impl Fn(u8) -> bool) -> Result<Vec<u8>> {
        match self.need()? {
            b'"' => self.quoted(),
            b'{' => self.literal(),
            _ => {
                let word = self.word(good)?;
                if word.is_empty() {
                    return self.fail(Why::Syntax("a word is missing"));
                }
                Ok(word)
            }
        }
    }

    /// Reads how the next value begins, a leaf wholly.
    pub fn start(&mut self) -> Result<Start> {
        let atom = |b: u8| !matches!(b, b' ' | b'\t' | b'\r' | b'\n' | b'(' | b')' | b'"');
        match self.need()? {
            b'(' => {
                self.take()?;
                Ok(Start::List)
            }
            b'%' => {
                self.take()?;
                match self.need()? {
                    b'(' => {
                        self.take()?;
                        Ok(Start::Kv)
                    }
                    b'{' => Ok(Start::File(self.file_head()?)),
                    _ => self.fail(Why::Syntax("neither ( nor { after %")),
                }
            }
            b'"' => Ok(Start::Leaf(Value::Text(self.quoted()?))),
            b'{' => Ok(Start::Leaf(Value::Text(self.literal()?))),
            b'\\' => Ok(Start::Leaf(Value::Flag(self.word(atom)?))),
            b')' => self.fail(Why::Syntax("a value is missing")),
            _ => {
                let word = self.word(atom)?;
                if word.is_empty() {
                    self.fail(Why::Syntax("a value is missing"))
                } else if word == b"NIL" {
                    Ok(Start::Leaf(Value::Nil))
                } else {
                    Ok(Start::Leaf(Value::Text(word)))
                }
            }
        }
    }

    /// Inside a list: true if a value follows, false after its `)` was taken.
    pub fn list_next(&mut self) -> Result<bool> {
        self.blanks()?;
        if self.need()? == b')' {
            self.take()?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Inside a key-value list: the next key, with the parser before its value, or `None` after
    /// its `)` was taken.
    pub fn kv_next(&mut self) -> Result<Option<Vec<u8>>> {
        if !self.list_next()? {
            return Ok(None);
        }
        let key = self
            .astring(|b| !matches!(b, b' ' | b'\t' | b'\r' | b'\n' | b'(' | b')' | b'"' | b'{'))?;
        // Keys are printed as they are: one that needs quotes would come back as something else.
        if key.len() > MAX_KEY || !is_key(&key) {
            return self.fail(Why::Syntax("a key is not plain text"));
        }
        self.blanks()?;
        Ok(Some(key))
    }

    /// Reads a whole value as a tree. A file literal in it is a syntax error.
    pub fn value(&mut self) -> Result<Value> {
        self.budget = self.limits.tree;
        self.tree(0)
    }

    /// The same for values that are kept: all those of one parser share one limit.
    pub fn kept_value(&mut self, kept: &mut u64) -> Result<Value> {
        self.budget = self.limits.tree.saturating_sub(*kept);
        let before = self.budget;
        self.spend(MAX_KEY)?;
        let value = self.tree(0)?;
        *kept += before - self.budget;
        Ok(value)
    }

    fn tree(&mut self, depth: u32) -> Result<Value> {
        if depth > self.limits.depth {
            return self.fail(Why::TooLong("nesting"));
        }
        self.spend(48)?;
        match self.start()? {
            Start::Leaf(leaf) => {
                self.spend(leaf.as_bytes().map_or(0, <[u8]>::len))?;
                Ok(leaf)
            }
            Start::File(_) => self.fail(Why::Syntax("a file where none may stand")),
            Start::List => {
                let mut items = Vec::new();
                while self.list_next()? {
                    items.push(self.tree(depth + 1)?);
                }
                Ok(Value::List(items))
            }
            Start::Kv => {
                let mut items = Vec::new();
                while let Some(key) = self.kv_next()? {
                    self.spend(key.len())?;
                    let value = self.tree(depth + 1)?;
                    items.push((key, value));
                }
                Ok(Value::Kv(items))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Form, print_to_vec};
    use super::*;

    fn parse(text: &[u8]) -> Result<Value> {
        let mut p = Parser::new(text, Limits::default());
        let v = p.value()?;
        p.end_line()?;
        Ok(v)
    }

    #[test]
    fn reads_what_cyrus_writes_and_prints_it_the_same() {
        for text in [
            &b"NIL\r\n"[..],
            b"\"\"\r\n",
            b"%(USERID user2 MBOXNAME \"user.user2.Sp ace\")\r\n",
            b"(\\Seen $Forwarded NonJunk)\r\n",
            b"%(ACL \"anna\tlrs\t\" V {5+}\r\na%b\r\n L () K %())\r\n",
            b"(\"NIL\" NIL)\r\n",
        ] {
            let v = parse(text).unwrap();
            let mut printed = print_to_vec(&v, Form::Log);
            printed.extend_from_slice(b"\r\n");
            assert_eq!(printed, text, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn reads_what_is_not_canonical() {
        let v = parse(b"%( A  \"a\\\"b\"\r\n B {3}\r\nabc C {2+}\nxy )\n").unwrap();
        assert_eq!(v.get("A").unwrap().as_bytes(), Some(&b"a\"b"[..]));
        assert_eq!(v.get("B").unwrap().as_bytes(), Some(&b"abc"[..]));
        assert_eq!(
            print_to_vec(&v, Form::Reply),
            b"%(A {3}\r\na\"b B abc C xy)"
        );
    }

    #[test]
    fn refuses_hostile_input_with_a_position() {
        let deep = vec![b'('; 100_000];
        let mut long = b"A".repeat(2 << 20);
        long.extend_from_slice(b"\r\n");
        for (text, what) in [
            (&deep[..], "nesting"),
            (&long[..], "word"),
            (b"{99999999999}\r\nx", "literal"),
            (b"{99999999999999999999999}\r\nx", "number"),
            (b"{18446744073709551615}\r\n", "literal"),
            (b"%x\r\n", "neither"),
            (b"(a", "ends"),
            (b"{5+}\r\nabc", "ends"),
            (b")\r\n", "missing"),
            (b"a b\r\n", "goes on"),
            (b"%{p 00 3}\r\nabc\r\n", "40 hex"),
            (b"%(K)\r\n", "missing"),
            (b"%(\"K\\\"V\\\"\" MBOXNAME user.a U)\r\n", "plain text"),
            (b"%(\"\" v)\r\n", "plain text"),
            (b"%({3}\r\nK() v)\r\n", "plain text"),
            (
                b"(%{p 5a184cd1a6222c5bdef730087d1de284fe479ccd 3}\r\nabc)\r\n",
                "none may stand",
            ),
        ] {
            let e = parse(text).unwrap_err().to_string();
            assert!(e.contains(what), "{what}: {e}");
        }
    }

    #[test]
    fn kept_values_share_one_limit() {
        let limits = Limits {
            tree: 5000,
            ..Limits::default()
        };
        let mut p = Parser::new(&b"(a b c d e f)"[..], limits);
        p.start().unwrap();
        let (mut kept, mut n) = (0, 0);
        let e = loop {
            assert!(p.list_next().unwrap());
            match p.kept_value(&mut kept) {
                Ok(_) => n += 1,
                Err(e) => break e,
            }
        };
        assert!(n == 4 && matches!(e.why, Why::TooLong(_)), "{n}: {e}");
    }

    #[test]
    fn streams_files() {
        let text = b"(%{default 5a184cd1a6222c5bdef730087d1de284fe479ccd 3}\r\nab) NIL)\r\n";
        let mut p = Parser::new(&text[..], Limits::default());
        assert!(matches!(p.start().unwrap(), Start::List));
        assert!(p.list_next().unwrap());
        let Start::File(head) = p.start().unwrap() else {
            panic!()
        };
        let mut body = Vec::new();
        p.body(head.size, &mut |b| {
            body.extend_from_slice(b);
            Ok::<(), ParseError>(())
        })
        .unwrap();
        assert_eq!(body, b"ab)");
        assert!(p.list_next().unwrap());
        assert!(matches!(p.start().unwrap(), Start::Leaf(Value::Nil)));
        assert!(!p.list_next().unwrap());
        p.end_line().unwrap();
    }
}
