//! One connection, from greeting to end: reads commands, knows who may say what, answers.
//!
//! A connection is never dropped as a way to say "error": only what leaves the stream out of step
//! ends it, after one answer. While the process drains, what was begun is finished, a new GET is
//! refused so that the client leaves by itself, and an idle client is waited for.

use super::apply::{Applied, apply};
use super::auth::{Identity, Outcome, PeerKind};
use super::get::get;
use super::held::Held;
use super::shared::Shared;
use super::stop::{DrainKind, Stop};
use super::stream::{Peer, Stream, Wake, Watch};
use crate::cyrus::dlist::{Limits, ParseError, Parser, Why};
use crate::error::{Error, Kind, Result};
use crate::proto::compress::{Deflate, Inflate};
use crate::proto::line::{LineEnd, read_line};
use crate::proto::reply;
use std::cell::Cell;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A command word is never longer.
const MAX_WORD: usize = 64;

/// The rest of a line command.
const MAX_REST: usize = 64 * 1024;

/// Level of what we send: answers are short.
const LEVEL: u8 = 1;

/// Failed logins after which a connection is closed.
const MAX_LOGINS: u32 = 5;

/// How long a client may take to log in, however it spends the time; `sync_timeout` if that is
/// shorter.
const LOGIN_TIME: Duration = Duration::from_secs(120);

/// Answers of NO and BAD after which a connection without a login is closed.
const MAX_REFUSED: u64 = 50;

/// A backup that was not used for so long, while its client is waited for, is let go of if another
/// session waits for it.
const LET_GO: Duration = Duration::from_millis(500);

/// Serves one connection. Never panics on what the peer sends; never returns before everything
/// acknowledged is on disk.
pub fn run(stream: Stream, peer: Peer, shared: Arc<Shared>, stop: Stop) {
    let host = peer.to_string();
    let begun = Instant::now();
    let mut session = match Session::new(stream, &peer, shared, stop) {
        Ok(session) => session,
        Err(e) => {
            log::warn!("cannot serve host=<{host}> error=<{e}>");
            return;
        }
    };
    let end = session.serve();
    session.held.release();
    let stats = session.held.stats;
    let text = format!(
        "session ended host=<{host}> commands={} messages={} bytes={} mailboxes={} refused={} ms={}",
        stats.commands,
        stats.messages,
        stats.bytes,
        stats.mailboxes,
        stats.refused,
        begun.elapsed().as_millis()
    );
    match end {
        Ok(()) => log::info!("{text}"),
        Err(e) => log::info!("{text} reason=<{e}>"),
    }
}

/// The stream with an end to all reading: a client that sends a byte now and then is not waited
/// for longer than one that sends none.
struct Timed {
    stream: Stream,
    until: Rc<Cell<Option<Instant>>>,
}

impl Read for Timed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(until) = self.until.get() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
        }
        self.stream.read(buf)
    }
}

enum Input {
    Plain(BufReader<Timed>),
    Deflated(Box<Inflate<Timed>>),
}

impl Input {
    fn has_buffered(&self) -> bool {
        match self {
            Input::Plain(r) => !r.buffer().is_empty(),
            Input::Deflated(r) => r.has_buffered(),
        }
    }
}

impl Read for Input {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Input::Plain(r) => r.read(buf),
            Input::Deflated(r) => r.read(buf),
        }
    }
}

impl BufRead for Input {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self {
            Input::Plain(r) => r.fill_buf(),
            Input::Deflated(r) => r.fill_buf(),
        }
    }

    fn consume(&mut self, n: usize) {
        match self {
            Input::Plain(r) => r.consume(n),
            Input::Deflated(r) => r.consume(n),
        }
    }
}

enum Output {
    Plain(BufWriter<Stream>),
    Deflated(Box<Deflate<Stream>>),
}

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Output::Plain(w) => w.write(buf),
            Output::Deflated(w) => w.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Output::Plain(w) => w.flush(),
            Output::Deflated(w) => w.flush(),
        }
    }
}

/// Where an answer goes, and whether anybody is there to hear it.
struct Answer<'a> {
    output: &'a mut Output,
    is_gone: bool,
}

impl Write for Answer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let done = self.output.write(bytes);
        self.is_gone |= done.is_err();
        done
    }

    fn flush(&mut self) -> io::Result<()> {
        let done = self.output.flush();
        self.is_gone |= done.is_err();
        done
    }
}

/// Whether the connection goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Go,
    Close,
}

struct Session {
    stream: Stream,
    input: Input,
    output: Output,
    peer: PeerKind,
    shared: Arc<Shared>,
    stop: Stop,
    held: Held,
    identity: Option<Identity>,
    logins: u32,
    /// When a login must be done; nothing once it is.
    login_until: Rc<Cell<Option<Instant>>>,
}

impl Session {
    fn new(stream: Stream, peer: &Peer, shared: Arc<Shared>, stop: Stop) -> Result<Session> {
        let fail = |e| Error::io("cannot set up the connection", e);
        let timeout = shared.config.sync_timeout();
        let kind = match peer {
            Peer::Unix { uid, .. } => PeerKind::Unix { uid: *uid },
            Peer::Tcp(addr) => PeerKind::Tcp {
                addr: addr.ip(),
                tls: false,
            },
        };
        let identity = shared.auth.without_login(&kind);
        let (first, until) = if identity.is_some() {
            (timeout, None)
        } else {
            let first = timeout.min(LOGIN_TIME);
            (first, Some(Instant::now() + first))
        };
        stream.set_read_timeout(Some(first)).map_err(fail)?;
        stream.set_write_timeout(Some(first)).map_err(fail)?;
        let login_until = Rc::new(Cell::new(until));
        let timed = Timed {
            stream: stream.clone(),
            until: Rc::clone(&login_until),
        };
        Ok(Session {
            input: Input::Plain(BufReader::with_capacity(64 * 1024, timed)),
            output: Output::Plain(BufWriter::new(stream.clone())),
            stream,
            peer: kind,
            held: Held::new(Arc::clone(&shared)),
            shared,
            stop,
            identity,
            logins: 0,
            login_until,
        })
    }

    fn send(&mut self, line: &str) -> Result<()> {
        if line.starts_with("NO") || line.starts_with("BAD") {
            self.held.stats.refused += 1;
        }
        reply::send(&mut self.output, line).map_err(|e| Error::io("cannot answer", e))
    }

    fn banner(&mut self) -> Result<()> {
        let mechanisms = match &self.peer {
            // As stock servers do: a UNIX peer is known already.
            PeerKind::Unix { .. } => Vec::new(),
            PeerKind::Tcp { .. } => self.shared.auth.mechanisms(&self.peer),
        };
        let host = self.shared.config.servername();
        let lines = reply::banner(&reply::Banner {
            host: &host,
            mechanisms: &mechanisms,
            // The place where STARTTLS will be offered.
            starttls: false,
            compress: matches!(self.peer, PeerKind::Tcp { .. }),
        });
        for line in lines {
            self.send(&line)?;
        }
        Ok(())
    }

    fn serve(&mut self) -> Result<()> {
        if matches!(self.peer, PeerKind::Unix { .. }) && self.identity.is_none() {
            log::warn!("badlogin: {} [uid not trusted]", self.peer.host());
            self.send("BYE this socket is for the cyrus user only")?;
            return self.flush();
        }
        self.banner()?;
        loop {
            self.flush()?;
            if !self.wait()? {
                return Ok(());
            }
            if self.command()? == Next::Close {
                return self.flush();
            }
            if self.identity.is_none() && self.held.stats.refused >= MAX_REFUSED {
                self.send("BYE Too many bad commands")?;
                return self.flush();
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.output
            .flush()
            .map_err(|e| Error::io("cannot answer", e))
    }

    /// Waits for the next command. False: the connection is to be closed.
    fn wait(&mut self) -> Result<bool> {
        let since = Instant::now();
        let timeout = self.shared.config.sync_timeout();
        let idle = self.shared.config.backup_chunk_idle();
        let drain = self.shared.config.backup_drain();
        loop {
            let mut left = timeout.saturating_sub(since.elapsed());
            if let Some(until) = self.login_until.get() {
                left = left.min(until.saturating_duration_since(Instant::now()));
            }
            if self.input.has_buffered() && !left.is_zero() {
                return Ok(true);
            }
            let draining = self.stop.draining();
            if let Some(deadline) = self.stop.deadline(drain) {
                left = left.min(deadline.saturating_duration_since(Instant::now()));
            }
            if left.is_zero() {
                let text = if draining.is_some() {
                    reply::BYE_STOPPING
                } else {
                    reply::BYE_IDLE
                };
                self.send(text)?;
                self.flush()?;
                return Ok(false);
            }
            let step = if self.held.holds_any() {
                left.min(idle.max(Duration::from_millis(10))).min(LET_GO)
            } else {
                left
            };
            let watch = match draining {
                None => Watch::Drain(&self.stop),
                Some((_, DrainKind::Hup)) => Watch::Term(&self.stop),
                Some((_, DrainKind::Term)) => Watch::Client,
            };
            let wake = self
                .stream
                .wait_readable(watch, step)
                .map_err(|e| Error::io("cannot wait", e))?;
            match wake {
                Wake::Readable => {
                    let ended = match self.input.fill_buf() {
                        Ok(bytes) => bytes.is_empty(),
                        // An inflater may have taken bytes without having any for us.
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => false,
                        Err(e) => return Err(Error::io("cannot read", e)),
                    };
                    if ended {
                        return Ok(false);
                    }
                    return Ok(true);
                }
                Wake::Stopping => {
                    // What is held can be sealed now: nothing is lost by it.
                    self.held.release_idle(Duration::ZERO);
                }
                Wake::Timeout => {
                    self.held.release_idle(idle);
                    self.held.release_wanted(LET_GO);
                }
            }
        }
    }

    fn command(&mut self) -> Result<Next> {
        self.held.stats.commands += 1;
        let mut parser = Parser::new(
            &mut self.input,
            Limits {
                word: MAX_WORD,
                ..Limits::default()
            },
        );
        let word = match parser.word(|b| !matches!(b, b' ' | b'\t' | b'\r' | b'\n')) {
            Ok(word) => word,
            Err(e) => return self.lost("", e),
        };
        let next = match parser.peek() {
            Ok(next) => next,
            Err(e) => return self.lost("", e),
        };
        let verb = word.to_ascii_uppercase();
        match verb.as_slice() {
            b"GET" | b"APPLY" if next == Some(b' ') => self.work(&verb),
            _ => self.line_command(&word, &verb),
        }
    }

    /// Commands of one plain line.
    fn line_command(&mut self, word: &[u8], verb: &[u8]) -> Result<Next> {
        let mut rest = Vec::new();
        match read_line(&mut self.input, MAX_REST, &mut rest)
            .map_err(|e| Error::io("cannot read", e))?
        {
            LineEnd::Line => {}
            LineEnd::TooLong => {
                self.send(reply::BAD_TOO_LONG)?;
                return Ok(Next::Close);
            }
            LineEnd::Eof | LineEnd::EofInLine => return Ok(Next::Close),
        }
        let rest = String::from_utf8_lossy(&rest).trim().to_owned();
        match verb {
            b"" => self.send(reply::BAD_NULL)?,
            b"NOOP" => self.send(reply::OK_NOOP)?,
            b"RESTART" => {
                self.held.release();
                self.send(reply::OK_RESTART)?;
            }
            b"EXIT" => {
                // Sealed before the answer: a client that is gone has nothing open here.
                self.held.release();
                self.send(reply::OK_EXIT)?;
                return Ok(Next::Close);
            }
            b"AUTHENTICATE" => return self.authenticate(&rest),
            b"COMPRESS" => self.compress(&rest)?,
            b"STARTTLS" | b"RESTORE" => self.send(reply::NO_COMMAND)?,
            b"GET" | b"APPLY" => {
                let verb = String::from_utf8_lossy(verb).into_owned();
                self.send(&reply::bad_missing(&verb))?;
            }
            _ => return self.unknown(word, &rest),
        }
        Ok(Next::Go)
    }

    /// An IMAP client's first words get an answer with their tag, so that it falls back at once.
    fn unknown(&mut self, word: &[u8], rest: &str) -> Result<Next> {
        let tag = String::from_utf8_lossy(word).into_owned();
        let is_tag = word.len() <= 16
            && word.first().is_some_and(u8::is_ascii_alphabetic)
            && word.last().is_some_and(u8::is_ascii_digit)
            && word.iter().all(u8::is_ascii_alphanumeric);
        if !is_tag {
            self.send(reply::BAD_UNKNOWN)?;
            return Ok(Next::Go);
        }
        self.send(&reply::bad_tagged(&tag))?;
        let logout = rest.eq_ignore_ascii_case("LOGOUT");
        Ok(if logout { Next::Close } else { Next::Go })
    }

    fn authenticate(&mut self, rest: &str) -> Result<Next> {
        if self.identity.is_some() {
            self.send(reply::BAD_AUTH_TWICE)?;
            return Ok(Next::Go);
        }
        let mut words = rest.split_ascii_whitespace();
        let (Some(mechanism), initial, None) = (words.next(), words.next(), words.next()) else {
            self.send(&reply::bad_missing("AUTHENTICATE"))?;
            return Ok(Next::Go);
        };
        let outcome = self.shared.auth.authenticate(
            mechanism,
            initial.map(str::as_bytes),
            &mut self.input,
            &mut self.output,
            &self.peer,
        )?;
        match outcome {
            Outcome::Known(identity) => {
                self.identity = Some(identity);
                self.login_until.set(None);
                let timeout = Some(self.shared.config.sync_timeout());
                self.stream
                    .set_read_timeout(timeout)
                    .and_then(|()| self.stream.set_write_timeout(timeout))
                    .map_err(|e| Error::io("cannot set up the connection", e))?;
                Ok(Next::Go)
            }
            Outcome::Refused => {
                self.logins += 1;
                if self.logins >= MAX_LOGINS {
                    self.send("BYE Too many failed logins")?;
                    return Ok(Next::Close);
                }
                Ok(Next::Go)
            }
            Outcome::Gone => Ok(Next::Close),
        }
    }

    fn compress(&mut self, rest: &str) -> Result<()> {
        if matches!(self.input, Input::Deflated(_)) {
            return self.send(reply::NO_COMPRESSED);
        }
        if !rest.eq_ignore_ascii_case("DEFLATE") {
            return self.send(reply::NO_COMPRESS);
        }
        self.send(reply::OK_COMPRESS)?;
        self.flush()?;
        let leftover = match &self.input {
            Input::Plain(r) => r.buffer().to_vec(),
            Input::Deflated(_) => Vec::new(),
        };
        let timed = Timed {
            stream: self.stream.clone(),
            until: Rc::clone(&self.login_until),
        };
        self.input = Input::Deflated(Box::new(Inflate::new(timed, leftover)));
        self.output = Output::Deflated(Box::new(Deflate::new(self.stream.clone(), LEVEL)));
        Ok(())
    }

    /// GET and APPLY.
    fn work(&mut self, verb: &[u8]) -> Result<Next> {
        let name = if verb == b"GET" { "GET" } else { "APPLY" };
        let refusal = match &self.identity {
            None => Some(reply::NO_LOGIN),
            Some(i) if !i.is_admin => Some(reply::NO_PERMISSION),
            Some(_) => None,
        };
        if let Some(text) = refusal {
            return self.turn_away(text);
        }
        let mut parser = Parser::new(&mut self.input, Limits::default());
        let head = parser.space().and_then(|()| {
            let what = parser.word(|b| b.is_ascii_alphabetic() || b == b'_')?;
            parser.space()?;
            Ok(what)
        });
        let what = match head {
            Ok(what) => what,
            Err(e) => return self.lost(name, e),
        };
        let mut answer = Answer {
            output: &mut self.output,
            is_gone: false,
        };
        let done = if name == "GET" {
            let value = match parser.value().and_then(|v| parser.end_line().map(|()| v)) {
                Ok(value) => value,
                Err(e) => return self.lost(name, e),
            };
            if self.stop.draining().is_some() {
                // New work: the client is to come back to our successor.
                Err(Error::new(Kind::Stopping, "shutting down"))
            } else {
                get(&mut self.held, &what, &value, &mut answer)
            }
        } else {
            match apply(&mut self.held, &what, &mut parser, &mut answer) {
                Applied::Done(done) => done,
                Applied::Lost(e) => return self.lost(name, e),
            }
        };
        let is_gone = answer.is_gone;
        match done {
            Ok(()) => self.send(reply::OK)?,
            // Nothing of ours failed.
            Err(e) if is_gone => return Err(e),
            Err(e) => {
                let what = String::from_utf8_lossy(&what).to_ascii_uppercase();
                match e.kind() {
                    Kind::NotFound | Kind::Stopping | Kind::Changed => {
                        log::info!("refused command=<{name} {what}> reason=<{e}>");
                    }
                    // What is damaged here, the sender can do nothing about.
                    Kind::NoSpace | Kind::Io | Kind::Db | Kind::Internal | Kind::Damaged => {
                        log::error!("IOERROR: command failed command=<{name} {what}> error=<{e}>");
                        self.held.drop_broken();
                        // A rolling client comes back at once, in a tight loop.
                        std::thread::sleep(Duration::from_secs(1));
                    }
                    _ => log::warn!("refused command=<{name} {what}> reason=<{e}>"),
                }
                self.send(&reply::error(&e))?;
            }
        }
        Ok(Next::Go)
    }

    /// Answers a command that is not allowed without looking into it.
    fn turn_away(&mut self, text: &str) -> Result<Next> {
        let mut rest = Vec::new();
        let end = read_line(&mut self.input, MAX_REST, &mut rest)
            .map_err(|e| Error::io("cannot read", e))?;
        self.send(text)?;
        // What follows a literal's head is nothing we want to step over for a stranger.
        let goes_on = rest.ends_with(b"}");
        Ok(match end {
            LineEnd::Line if !goes_on => Next::Go,
            _ => Next::Close,
        })
    }

    /// The stream is out of step: one answer, then the end.
    fn lost(&mut self, verb: &str, e: ParseError) -> Result<Next> {
        match e.why {
            Why::Io(_) | Why::Eof => Err(e.into()),
            _ => {
                log::warn!("cannot parse command=<{verb}> reason=<{e}>");
                let text = match e.why {
                    Why::TooLong(_) => reply::BAD_TOO_LONG.to_owned(),
                    _ => reply::bad_parse(verb),
                };
                self.send(&text)?;
                Ok(Next::Close)
            }
        }
    }
}
