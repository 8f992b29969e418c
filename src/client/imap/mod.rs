//! IMAP (RFC 3501, 9051) as its client: connect, log in, commands and literals, many in flight.
//!
//! A refusal (`NO`, `BAD`) is a value ([`Outcome`]) and the connection goes on; an `Err` means that
//! it is lost. Literals are sent with `{n+}` where the server takes that (RFC 7888), else its
//! invitation is waited for. What a server may send is bounded: [`MAX_RESPONSE`].

pub mod response;

use super::Login;
use super::csync::{Flavour, Timeouts, authenticate_as};
use super::stream::{Address, Stream, broken};
use super::tls::Trust;
use crate::error::{Error, Kind, Result};
use response::{Outcome, Piece, Token, literal, tokens};
use std::io::{Read, Write};

/// The port where none is named.
pub const PORT: u16 = 143;

/// The port where TLS begins with the first byte.
pub const TLS_PORT: u16 = 993;

/// The longest response in bytes, literals included.
pub const MAX_RESPONSE: u64 = 4 * 1024 * 1024;

/// LITERAL- (RFC 7888) takes longer ones only by invitation.
const MINUS_MAX: u64 = 4096;

/// Longer ones are announced in any case: a server with a limit refuses such a one, but must close the
/// connection on one that comes uninvited.
const AT_ONCE_MAX: u64 = 1024 * 1024;

/// What a server says untagged: data of a response, as values, without the star.
pub type Each<'a> = dyn FnMut(&[Token]) -> Result<()> + 'a;

/// A connection that is logged in.
pub struct Imap {
    stream: Stream,
    count: u32,
    capabilities: Vec<String>,
    /// Commands that ended while another was waited for.
    ended: Vec<(u32, Outcome)>,
    /// Why the server said that it goes.
    bye: Option<String>,
}

/// The number of a command in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(u32);

/// One thing a server said.
enum Said {
    Data(Vec<Token>),
    Continue,
    Ended(u32, Outcome),
}

impl Imap {
    /// Connects, starts TLS if the server offers it, and logs in, to act for `authzid` if that is not
    /// empty. Compresses if the server offers to and is not on this machine. `Denied` if the login is
    /// refused, `Config` if there is no way to log in or the certificate is not accepted.
    pub fn connect(
        address: &Address,
        login: Option<&Login>,
        authzid: &str,
        trust: &Trust,
        timeouts: Timeouts,
    ) -> Result<Imap> {
        let stream = Stream::connect(address, trust, timeouts.login, timeouts.stop)?;
        let over = |e: Error| e.place(address.to_string());
        let mut imap = Imap::over(stream, login, authzid).map_err(over)?;
        imap.stream.set_timeout(timeouts.work).map_err(broken)?;
        let compress = imap.has("COMPRESS=DEFLATE") && !imap.stream.is_local();
        if compress && imap.command(b"COMPRESS DEFLATE", &mut |_| Ok(()))?.is_ok() {
            imap.stream.compress().map_err(broken)?;
        }
        Ok(imap)
    }

    /// The same over a stream on which nothing was read yet.
    pub fn over(stream: Stream, login: Option<&Login>, authzid: &str) -> Result<Imap> {
        let mut imap = Imap {
            stream,
            count: 0,
            capabilities: Vec::new(),
            ended: Vec::new(),
            bye: None,
        };
        let line = imap.stream.line()?;
        let greeting = line.strip_prefix(b"* ").and_then(Outcome::read);
        match greeting {
            Some(o) if o.word == "PREAUTH" => {
                imap.ask_capabilities()?;
                return Ok(imap);
            }
            Some(o) if o.is_ok() => {}
            Some(o) => return Err(Error::new(Kind::Io, format!("the server refuses: {o}"))),
            None => return Err(Error::new(Kind::Protocol, "not an IMAP server")),
        }
        imap.ask_capabilities()?;
        if imap.has("STARTTLS") && imap.stream.may_start_tls() {
            imap.start_tls()?;
        }
        let login = login.ok_or_else(|| {
            let why = "the server wants a login: restore_authname is not set";
            Error::new(Kind::Config, why)
        })?;
        imap.log_in(login, authzid)?;
        imap.ask_capabilities()?;
        Ok(imap)
    }

    /// Encrypts, and asks again what is offered: what was said in plain text counts for nothing.
    fn start_tls(&mut self) -> Result<()> {
        let outcome = self.command(b"STARTTLS", &mut |_| Ok(()))?;
        if !outcome.is_ok() {
            let why = "STARTTLS was offered and is refused";
            return Err(Error::new(Kind::Protocol, why).place(outcome.to_string()));
        }
        self.stream.start_tls()?;
        self.ended.clear();
        self.bye = None;
        self.ask_capabilities()
    }

    fn log_in(&mut self, login: &Login, authzid: &str) -> Result<()> {
        let offered: Vec<String> = self
            .capabilities
            .iter()
            .filter_map(|c| c.strip_prefix("AUTH=").map(str::to_owned))
            .collect();
        let clear = self.stream.is_private() || login.allow_plaintext;
        if offered.is_empty() && authzid.is_empty() && clear && !self.has("LOGINDISABLED") {
            return self.plain_login(login);
        }
        let stream = &mut self.stream;
        authenticate_as(stream, Flavour::Imap, &offered, login, authzid)
    }

    /// `LOGIN`, for servers without SASL.
    fn plain_login(&mut self, login: &Login) -> Result<()> {
        let mut command = b"LOGIN ".to_vec();
        for (index, word) in [login.user.as_bytes(), &login.password].iter().enumerate() {
            if index > 0 {
                command.push(b' ');
            }
            quote(word, &mut command).ok_or_else(|| {
                let why = "the server takes no SASL, and this name or password needs it";
                Error::new(Kind::Config, why)
            })?;
        }
        let outcome = self.command(&command, &mut |_| Ok(()))?;
        match outcome.is_ok() {
            true => Ok(()),
            false => Err(Error::new(Kind::Denied, "login refused")
                .place(login.user.clone())
                .place(outcome.to_string())),
        }
    }

    fn ask_capabilities(&mut self) -> Result<()> {
        let mut found = Vec::new();
        let outcome = self.command(b"CAPABILITY", &mut |data| {
            if data.first().is_some_and(|t| t.is("CAPABILITY")) {
                let words = data[1..].iter().filter_map(Token::text);
                found = words.map(str::to_ascii_uppercase).collect();
            }
            Ok(())
        })?;
        self.capabilities = found;
        match outcome.is_ok() {
            true => Ok(()),
            false => Err(Error::new(Kind::Protocol, format!("CAPABILITY: {outcome}"))),
        }
    }

    /// Whether the server offers this, as it said after the login. Upper case.
    pub fn has(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|c| c == capability)
    }

    /// The largest message in bytes that the server takes by APPEND (RFC 7889); `None` if it does not
    /// say.
    pub fn append_limit(&self) -> Option<u64> {
        let mut limits = self.capabilities.iter();
        limits.find_map(|c| c.strip_prefix("APPENDLIMIT=")?.parse().ok())
    }

    /// Bytes sent so far, before compression.
    pub fn written(&self) -> u64 {
        self.stream.written()
    }

    /// The connection itself; nothing is in flight.
    pub fn into_stream(self) -> Stream {
        self.stream
    }

    /// Begins a command; more of it may follow with [`Imap::write`] and [`Imap::literal`].
    pub fn begin(&mut self, text: &[u8]) -> Result<Tag> {
        self.count = self.count.wrapping_add(1);
        let tag = Tag(self.count);
        let head = format!("A{} ", tag.0);
        self.write(head.as_bytes())?;
        self.write(text)?;
        Ok(tag)
    }

    /// Writes on in a command.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream
            .write_all(bytes)
            .map_err(|e| self.lost(broken(e)))
    }

    /// Announces a literal of `n` bytes, which are to be written next. The outcome if the command
    /// is refused at this point: then nothing more of it may be sent.
    pub fn literal(&mut self, tag: Tag, n: u64) -> Result<Option<Outcome>> {
        if self.is_at_once(n) {
            self.write(format!("{{{n}+}}\r\n").as_bytes())?;
            return Ok(None);
        }
        self.write(format!("{{{n}}}\r\n").as_bytes())?;
        self.flush()?;
        loop {
            match self.hear()? {
                Said::Continue => return Ok(None),
                Said::Ended(n, outcome) if n == tag.0 => return Ok(Some(outcome)),
                Said::Ended(n, outcome) => self.ended.push((n, outcome)),
                Said::Data(_) => {}
            }
        }
    }

    /// Whether a literal of `n` bytes needs no invitation.
    pub fn is_at_once(&self, n: u64) -> bool {
        (n <= AT_ONCE_MAX && self.has("LITERAL+")) || (n <= MINUS_MAX && self.has("LITERAL-"))
    }

    /// Ends a command. It may stay in a buffer until something is waited for.
    pub fn end(&mut self) -> Result<()> {
        self.write(b"\r\n")
    }

    /// Waits until a command has ended; untagged data go to `each`.
    pub fn wait(&mut self, tag: Tag, each: &mut Each<'_>) -> Result<Outcome> {
        if let Some(at) = self.ended.iter().position(|(n, _)| *n == tag.0) {
            return Ok(self.ended.swap_remove(at).1);
        }
        self.flush()?;
        loop {
            match self.hear()? {
                Said::Ended(n, outcome) if n == tag.0 => return Ok(outcome),
                Said::Ended(n, outcome) => self.ended.push((n, outcome)),
                Said::Data(data) => each(&data)?,
                Said::Continue => {
                    let why = "the server invites to what nobody announced";
                    return Err(Error::new(Kind::Protocol, why));
                }
            }
        }
    }

    /// Runs one command without literals.
    pub fn command(&mut self, text: &[u8], each: &mut Each<'_>) -> Result<Outcome> {
        let tag = self.begin(text)?;
        self.end()?;
        self.wait(tag, each)
    }

    /// Ends in order; what the server says to it matters to nobody.
    pub fn logout(mut self) {
        let _ = self.command(b"LOGOUT", &mut |_| Ok(()));
    }

    fn flush(&mut self) -> Result<()> {
        self.stream.flush().map_err(|e| self.lost(broken(e)))
    }

    /// An error of the connection, with what the server said before.
    fn lost(&mut self, e: Error) -> Error {
        match self.bye.take() {
            Some(text) => e.place(format!("it said: {text}")),
            None => e,
        }
    }

    fn hear(&mut self) -> Result<Said> {
        let pieces = self.pieces()?;
        let Some(Piece::Line(line)) = pieces.first() else {
            return Err(Error::new(Kind::Protocol, "a response that is none"));
        };
        if line.starts_with(b"+") {
            return Ok(Said::Continue);
        }
        let Some(rest) = line.strip_prefix(b"* ") else {
            return self.tagged(line);
        };
        if let Some(outcome) = Outcome::read(rest) {
            if outcome.word == "BYE" {
                self.bye = Some(outcome.to_string());
            }
            let mut data = vec![Token::Text(outcome.word.into_bytes())];
            if let Some(code) = outcome.code {
                data.extend(tokens(&[Piece::Line(code.into_bytes())]));
            }
            return Ok(Said::Data(data));
        }
        let mut data = tokens(&pieces);
        data.remove(0);
        Ok(Said::Data(data))
    }

    fn tagged(&self, line: &[u8]) -> Result<Said> {
        let at = line.iter().position(|&b| b == b' ').unwrap_or(line.len());
        let (tag, rest) = line.split_at(at);
        let number = tag
            .strip_prefix(b"A")
            .and_then(|n| std::str::from_utf8(n).ok()?.parse().ok());
        match (number, Outcome::read(rest.trim_ascii_start())) {
            (Some(number), Some(outcome)) => Ok(Said::Ended(number, outcome)),
            // Whatever it was that could not be read: the server has a reason to say so.
            _ => {
                let text: String = String::from_utf8_lossy(line).chars().take(200).collect();
                Err(Error::new(Kind::Protocol, "an answer to something else").place(text))
            }
        }
    }

    fn pieces(&mut self) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut left = MAX_RESPONSE;
        loop {
            let line = match self.stream.line() {
                Ok(line) => line,
                Err(e) => return Err(self.lost(e)),
            };
            let Some((before, n)) = literal(&line) else {
                pieces.push(Piece::Line(line));
                return Ok(pieces);
            };
            let cost = n.saturating_add(line.len() as u64);
            left = left
                .checked_sub(cost)
                .ok_or_else(|| Error::new(Kind::Protocol, "the server's response is too long"))?;
            pieces.push(Piece::Line(before.to_vec()));
            let mut bytes = vec![0; n as usize];
            if let Err(e) = self.stream.read_exact(&mut bytes) {
                return Err(self.lost(broken(e)));
            }
            pieces.push(Piece::Literal(bytes));
        }
    }
}

/// Adds a quoted string; `None`, and nothing added, for what only a literal can carry.
pub fn quote(text: &[u8], to: &mut Vec<u8>) -> Option<()> {
    if text
        .iter()
        .any(|&b| b >= 0x80 || matches!(b, 0 | b'\r' | b'\n'))
    {
        return None;
    }
    to.push(b'"');
    for &b in text {
        if matches!(b, b'"' | b'\\') {
            to.push(b'\\');
        }
        to.push(b);
    }
    to.push(b'"');
    Some(())
}

#[cfg(test)]
mod tests;
