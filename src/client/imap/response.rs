//! What an IMAP server says (RFC 9051, 3501), as values. Pure: a response was read already.
//!
//! A response is a line, or several with literals between them ([`Piece`]). The reading is generous:
//! what is not understood is a text, and only nesting has a bound.

/// How deep lists may nest.
const DEEPEST: usize = 16;

/// A part of a response as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Text of a line, without its ending and without the announcement of a literal.
    Line(Vec<u8>),
    /// A literal.
    Literal(Vec<u8>),
}

/// A value in a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// `NIL`
    Nil,
    /// An atom, a quoted string or a literal.
    Text(Vec<u8>),
    /// `( ... )`
    List(Vec<Token>),
}

impl Token {
    /// The text's bytes.
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Token::Text(b) => Some(b),
            _ => None,
        }
    }

    /// The text, if it is UTF-8.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    /// The number, if it is one.
    pub fn number(&self) -> Option<u64> {
        self.text()?.parse().ok()
    }

    /// The elements of a list.
    pub fn list(&self) -> Option<&[Token]> {
        match self {
            Token::List(items) => Some(items),
            _ => None,
        }
    }

    /// Whether it is this word, in upper or lower case.
    pub fn is(&self, word: &str) -> bool {
        self.bytes()
            .is_some_and(|b| b.eq_ignore_ascii_case(word.as_bytes()))
    }
}

/// How a command ended, or what a server says by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// `OK`, `NO`, `BAD`, `BYE` or `PREAUTH`.
    pub word: String,
    /// What stands in brackets, without them: `APPENDUID 38505 3955`.
    pub code: Option<String>,
    /// Text for people.
    pub text: String,
}

impl Outcome {
    /// Reads `OK [CODE ...] text`; `None` if the first word is none of the five.
    pub fn read(line: &[u8]) -> Option<Outcome> {
        let line = String::from_utf8_lossy(line);
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let word = word.to_ascii_uppercase();
        if !["OK", "NO", "BAD", "BYE", "PREAUTH"].contains(&word.as_str()) {
            return None;
        }
        let mut rest = rest.trim_start();
        let mut code = None;
        if let Some((inside, behind)) = rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
            code = Some(inside.to_owned());
            rest = behind.trim_start();
        }
        Some(Outcome {
            word,
            code,
            text: rest.to_owned(),
        })
    }

    /// Whether it succeeded.
    pub fn is_ok(&self) -> bool {
        self.word == "OK"
    }

    /// Whether the code's first word is this one.
    pub fn has(&self, code: &str) -> bool {
        self.code
            .as_deref()
            .and_then(|c| c.split(' ').next())
            .is_some_and(|c| c.eq_ignore_ascii_case(code))
    }
}

/// As the server wrote it.
impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.word)?;
        if let Some(code) = &self.code {
            write!(f, " [{code}]")?;
        }
        write!(f, " {}", self.text)
    }
}

/// The length that a line announces at its end: `{17}` and what stands before it.
pub fn literal(line: &[u8]) -> Option<(&[u8], u64)> {
    let open = line.strip_suffix(b"}")?;
    let at = open.iter().rposition(|&b| b == b'{')?;
    let digits = &open[at + 1..];
    if digits.is_empty() || digits.len() > 19 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n = std::str::from_utf8(digits).ok()?.parse().ok()?;
    // RFC 3516: ~{n} may hold NULs; the same to us.
    let before = &line[..at];
    Some((before.strip_suffix(b"~").unwrap_or(before), n))
}

/// Splits a response into its values. A list that is not closed ends with the response.
pub fn tokens(pieces: &[Piece]) -> Vec<Token> {
    let mut stack: Vec<Vec<Token>> = vec![Vec::new()];
    for piece in pieces {
        match piece {
            Piece::Literal(bytes) => push(&mut stack, Token::Text(bytes.clone())),
            Piece::Line(line) => line_tokens(line, &mut stack),
        }
    }
    while stack.len() > 1 {
        close(&mut stack);
    }
    stack.pop().unwrap_or_default()
}

fn push(stack: &mut [Vec<Token>], token: Token) {
    if let Some(top) = stack.last_mut() {
        top.push(token);
    }
}

fn close(stack: &mut Vec<Vec<Token>>) {
    if stack.len() > 1 {
        let done = stack.pop().unwrap_or_default();
        push(stack, Token::List(done));
    }
}

fn line_tokens(line: &[u8], stack: &mut Vec<Vec<Token>>) {
    let mut at = 0;
    while let Some(&b) = line.get(at) {
        match b {
            b' ' => at += 1,
            b'(' => {
                at += 1;
                if stack.len() < DEEPEST {
                    stack.push(Vec::new());
                }
            }
            b')' => {
                at += 1;
                close(stack);
            }
            b'"' => {
                let (text, next) = quoted(line, at + 1);
                push(stack, Token::Text(text));
                at = next;
            }
            _ => {
                let end = atom(line, at);
                let word = &line[at..end];
                push(
                    stack,
                    match word.eq_ignore_ascii_case(b"NIL") {
                        true => Token::Nil,
                        false => Token::Text(word.to_vec()),
                    },
                );
                at = end;
            }
        }
    }
}

fn quoted(line: &[u8], mut at: usize) -> (Vec<u8>, usize) {
    let mut text = Vec::new();
    while let Some(&b) = line.get(at) {
        at += 1;
        match b {
            b'"' => break,
            b'\\' => {
                text.extend(line.get(at));
                at += 1;
            }
            _ => text.push(b),
        }
    }
    (text, at)
}

/// Where an atom ends; a section in brackets (`BODY[HEADER.FIELDS (X)]<0>`) belongs to it.
fn atom(line: &[u8], mut at: usize) -> usize {
    let mut inside = false;
    while let Some(&b) = line.get(at) {
        match b {
            b'[' => inside = true,
            b']' => inside = false,
            b' ' | b'(' | b')' | b'"' if !inside => break,
            _ => {}
        }
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(s: &str) -> Token {
        Token::Text(s.as_bytes().to_vec())
    }

    #[test]
    fn a_fetch_with_a_literal_between() {
        let pieces = [
            Piece::Line(
                b"* 1 FETCH (UID 7 FLAGS (\\Seen $x) X NIL BODY[HEADER.FIELDS (MESSAGE-ID)]<0> "
                    .to_vec(),
            ),
            Piece::Literal(b"a)\r\n".to_vec()),
            Piece::Line(b" ENVELOPE (\"q\\\"\\\\)\" ()))".to_vec()),
        ];
        let got = tokens(&pieces);
        assert_eq!(got[..3], [text("*"), text("1"), text("FETCH")]);
        let list = got[3].list().unwrap();
        assert_eq!(list[1].number(), Some(7));
        assert_eq!(list[3], Token::List(vec![text("\\Seen"), text("$x")]));
        assert_eq!(list[5], Token::Nil);
        assert!(list[6].is("body[header.fields (message-id)]<0>"));
        assert_eq!(list[7].bytes(), Some(&b"a)\r\n"[..]));
        assert_eq!(
            list[9],
            Token::List(vec![text("q\"\\)"), Token::List(vec![])])
        );
    }

    #[test]
    fn nonsense_is_read_to_its_end() {
        for line in [
            "((((((((((((((((((((((((((((((a",
            "))))a(",
            "\"open",
            "\"\\",
            "x[ y",
        ] {
            let got = tokens(&[Piece::Line(line.as_bytes().to_vec())]);
            assert!(!got.is_empty() || line.is_empty(), "{line}");
        }
    }

    #[test]
    fn literals_and_outcomes() {
        assert_eq!(literal(b"* X {12}"), Some((&b"* X "[..], 12)));
        assert_eq!(literal(b"* X ~{0}"), Some((&b"* X "[..], 0)));
        for bad in ["{}", "{12", "12}", "{1 }", "{99999999999999999999}", ""] {
            assert_eq!(literal(bad.as_bytes()), None, "{bad}");
        }
        let o = Outcome::read(b"NO [OVERQUOTA] Quota is [full]").unwrap();
        assert!(!o.is_ok() && o.has("overquota") && !o.has("OVER"));
        assert_eq!(o.to_string(), "NO [OVERQUOTA] Quota is [full]");
        let o = Outcome::read(b"ok [APPENDUID 1 2] done").unwrap();
        assert!(o.is_ok() && o.has("APPENDUID"));
        assert_eq!(Outcome::read(b"OK").unwrap().to_string(), "OK ");
        assert_eq!(Outcome::read(b"FETCH x"), None);
    }
}
