//! The replication protocol as its client: on its own port, on a UNIX socket, or inside IMAP
//! (servers that offer X-REPLICATION there; then every command is `TAG SYNC<command>`).
//!
//! One command at a time, the answer before the next. A refusal (`NO`, `BAD`) is a value
//! ([`Status`]) and the connection goes on; an `Err` means that it is lost. Literals are written
//! with `{n+}`, which the server needs, and answers are parsed as a stream.
//!
//! Source: Cyrus `imap/sync_support.c`, `imap/sync_server.c`; `doc/replication-protocol.md` 1, 2, 8.

use super::Login;
use super::sasl::{Client, Mechanism};
use super::socket::Stop;
use super::stream::{Address, Stream, broken};
use super::tls::Trust;
use crate::cyrus::dlist::{Form, Limits, Parser, Value, print};
use crate::error::{Error, Kind, Result};
use base64ct::{Base64, Encoding};
use std::io::{self, Write};
use std::time::Duration;

/// The port of `csync` where none is named.
pub const PORT: u16 = 2005;

/// Literals a server takes (`maxliteral`, its default) and words (`maxword`); message bodies have
/// no limit.
pub const MAX_LITERAL: usize = 128 * 1024;

/// How long a server may take.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// For each step until we are logged in.
    pub login: Duration,
    /// For each answer afterwards.
    pub work: Duration,
    /// Once that is set, a moment.
    pub stop: Option<Stop>,
}

impl Default for Timeouts {
    /// The defaults of `client_timeout` and `sync_timeout`.
    fn default() -> Timeouts {
        Timeouts {
            login: Duration::from_secs(10),
            work: Duration::from_secs(30 * 60),
            stop: None,
        }
    }
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// `OK`
    Ok,
    /// `NO` or `BAD`, with the text behind it.
    No(String),
}

impl Status {
    /// The code in a refusal: `IMAP_MAILBOX_NONEXISTENT`.
    pub fn code(&self) -> Option<&str> {
        match self {
            Status::Ok => None,
            Status::No(text) => text.split(' ').next().filter(|w| w.starts_with("IMAP_")),
        }
    }

    /// A refusal as an error; `what` was asked for.
    pub fn check(self, what: &str) -> Result<()> {
        let kind = match self.code() {
            Some("IMAP_MAILBOX_NONEXISTENT" | "IMAP_INVALID_USER") => Kind::NotFound,
            Some("IMAP_MAILBOX_LOCKED") => Kind::Locked,
            Some("IMAP_MAILBOX_MOVED") => Kind::Moved,
            Some("IMAP_SYNC_CHANGED" | "IMAP_SYNC_CHECKSUM") => Kind::Changed,
            Some("IMAP_PERMISSION_DENIED") => Kind::Denied,
            _ => Kind::Protocol,
        };
        match self {
            Status::Ok => Ok(()),
            Status::No(text) if text.contains("Permission denied") => {
                Err(Error::new(Kind::Denied, format!("{what}: {text}")))
            }
            Status::No(text) => Err(Error::new(kind, format!("{what}: {text}"))),
        }
    }
}

/// What a server says of itself before anything else, and again after STARTTLS.
#[derive(Debug, Default)]
struct Banner {
    mechanisms: Vec<String>,
    starttls: bool,
    deflate: bool,
}

impl Banner {
    fn read(stream: &mut Stream) -> Result<Banner> {
        let mut banner = Banner::default();
        loop {
            let line = stream.line()?;
            let text = String::from_utf8_lossy(&line).into_owned();
            let mut words = text.split_ascii_whitespace();
            if words.next() != Some("*") {
                return Err(Error::new(Kind::Protocol, "not a replication server"));
            }
            let word = words.next().unwrap_or_default().to_ascii_uppercase();
            match word.as_str() {
                "OK" => return Ok(banner),
                "SASL" => banner.mechanisms.extend(words.map(str::to_owned)),
                "STARTTLS" => banner.starttls = true,
                "COMPRESS" => banner.deflate = words.any(|w| w.eq_ignore_ascii_case("DEFLATE")),
                "NO" | "BAD" | "BYE" => {
                    return Err(Error::new(Kind::Io, format!("the server refuses: {text}")));
                }
                _ => {}
            }
        }
    }
}

/// A connection that speaks replication.
pub struct Csync {
    stream: Stream,
    /// Inside IMAP: the number of the last tag.
    tag: Option<u32>,
}

/// Reads data lines: their name and the parser before the value, which must be read wholly.
pub type Each<'a> = dyn FnMut(&str, &mut Parser<&mut Stream>) -> Result<()> + 'a;

impl Csync {
    /// Connects to a replication port, starts TLS if the server offers it, logs in if the server
    /// wants that, and compresses if it offers to and is not on this machine. `Denied` if the login
    /// is refused, `Config` if there is no way to log in or the certificate is not accepted.
    pub fn connect(
        address: &Address,
        login: Option<&Login>,
        trust: &Trust,
        timeouts: Timeouts,
    ) -> Result<Csync> {
        let connected = Csync::try_connect(address, login, trust, timeouts);
        connected.map_err(|e| match e.kind() {
            // Has its place.
            Kind::Io if e.to_string().contains("cannot connect") => e,
            _ => e.place(address.to_string()),
        })
    }

    fn try_connect(
        address: &Address,
        login: Option<&Login>,
        trust: &Trust,
        timeouts: Timeouts,
    ) -> Result<Csync> {
        let stream = Stream::connect(address, trust, timeouts.login, timeouts.stop)?;
        let csync = Csync::over(stream, matches!(address, Address::Unix(_)), login)?;
        csync.stream.set_timeout(timeouts.work).map_err(broken)?;
        Ok(csync)
    }

    /// The same over a stream on which nothing was read yet.
    fn over(mut stream: Stream, is_unix: bool, login: Option<&Login>) -> Result<Csync> {
        let mut banner = Banner::read(&mut stream)?;
        if banner.starttls && stream.may_start_tls() {
            stream.send_line(b"STARTTLS")?;
            let line = stream.line()?;
            if !line.starts_with(b"OK") {
                let text = String::from_utf8_lossy(&line).into_owned();
                return Err(
                    Error::new(Kind::Protocol, "STARTTLS was offered and is refused").place(text),
                );
            }
            stream.start_tls()?;
            // What it said in plain text counts for nothing.
            banner = Banner::read(&mut stream)?;
        }
        let offered = banner.mechanisms;
        if !offered.is_empty() {
            let login = login.ok_or_else(|| {
                Error::new(
                    Kind::Config,
                    "the server wants a login: restore_authname is not set",
                )
            })?;
            authenticate(&mut stream, Flavour::Csync, &offered, login)?;
        } else if !is_unix {
            return Err(Error::new(
                Kind::Config,
                "the server offers no way to log in",
            ));
        }
        if banner.deflate && !stream.is_local() {
            stream.send_line(b"COMPRESS DEFLATE")?;
            if stream.line()?.starts_with(b"OK") {
                stream.compress().map_err(broken)?;
            }
        }
        Ok(Csync { stream, tag: None })
    }

    /// Replication inside IMAP, over a connection that is logged in as an administrator of a server
    /// with X-REPLICATION in its capabilities.
    pub fn over_imap(stream: Stream) -> Csync {
        Csync {
            stream,
            tag: Some(0),
        }
    }

    /// Bytes sent so far, before compression.
    pub fn written(&self) -> u64 {
        self.stream.written()
    }

    /// Runs one command whose argument `write` writes, and hands the data lines to `each`. `verb`
    /// is like `APPLY MESSAGE`.
    pub fn exchange(
        &mut self,
        verb: &str,
        write: &mut dyn FnMut(&mut dyn Write) -> Result<()>,
        each: &mut Each<'_>,
    ) -> Result<Status> {
        if let Some(tag) = &mut self.tag {
            *tag += 1;
            write!(self.stream, "S{tag} SYNC{verb} ").map_err(broken)?;
        } else {
            write!(self.stream, "{verb} ").map_err(broken)?;
        }
        write(&mut self.stream)?;
        self.stream
            .write_all(b"\r\n")
            .and_then(|()| self.stream.flush())
            .map_err(broken)?;
        self.answer(each).map_err(|e| e.place(verb.to_owned()))
    }

    /// The same for a value and an answer that fit into memory.
    pub fn command(&mut self, verb: &str, value: &Value) -> Result<(Vec<(String, Value)>, Status)> {
        let mut lines = Vec::new();
        let status = self.exchange(
            verb,
            &mut |w| print(value, Form::Log, w).map_err(broken),
            &mut |name, parser| {
                lines.push((name.to_owned(), parser.value()?));
                Ok(())
            },
        )?;
        Ok((lines, status))
    }

    /// The same where nothing but `OK` is of use.
    pub fn apply(&mut self, verb: &str, value: &Value) -> Result<Status> {
        self.command(verb, value).map(|(_, status)| status)
    }

    /// Has the server forget reservations and uploaded messages and release its locks.
    pub fn restart(&mut self) -> Result<()> {
        match &mut self.tag {
            Some(tag) => {
                *tag += 1;
                let line = format!("S{tag} SYNCRESTART");
                self.stream.send_line(line.as_bytes())?;
            }
            None => self.stream.send_line(b"RESTART")?,
        }
        self.answer(&mut |_, parser| parser.value().map(drop).map_err(Error::from))?
            .check("RESTART")
    }

    /// Ends in order; what the server says to it matters to nobody.
    pub fn close(mut self) {
        let line: &[u8] = match self.tag {
            Some(_) => b"Z LOGOUT",
            None => b"EXIT",
        };
        if self.stream.send_line(line).is_ok() {
            let _ = self.stream.line();
        }
    }

    fn answer(&mut self, each: &mut Each<'_>) -> Result<Status> {
        loop {
            let limits = Limits::default();
            let mut parser = Parser::new(&mut self.stream, limits);
            let word = |p: &mut Parser<&mut Stream>| -> Result<String> {
                let word = p.word(|b| b.is_ascii_graphic()).map_err(lost)?;
                Ok(String::from_utf8_lossy(&word).into_owned())
            };
            let first = word(&mut parser)?;
            let tagged = self.tag.map(|n| format!("S{n}"));
            if first == "*" {
                parser.space().map_err(lost)?;
                let name = word(&mut parser)?;
                if matches!(name.as_str(), "OK" | "NO" | "BAD" | "BYE") {
                    let text = self.rest()?;
                    if name == "BYE" {
                        return Err(Error::new(Kind::Io, format!("the server says BYE{text}")));
                    }
                    continue;
                }
                parser.space().map_err(lost)?;
                each(&name, &mut parser)?;
                parser.end_line().map_err(lost)?;
                continue;
            }
            let outcome = match &tagged {
                None => first,
                Some(tag) if *tag == first => {
                    parser.space().map_err(lost)?;
                    word(&mut parser)?
                }
                Some(_) => {
                    return Err(Error::new(Kind::Protocol, "an answer to something else"));
                }
            };
            let text = self.rest()?;
            let text = text.trim_start().to_owned();
            return match outcome.as_str() {
                "OK" => Ok(Status::Ok),
                "NO" | "BAD" => Ok(Status::No(text)),
                "BYE" => Err(Error::new(Kind::Io, format!("the server says BYE {text}"))),
                _ => Err(Error::new(Kind::Protocol, "an answer that is none")),
            };
        }
    }

    fn rest(&mut self) -> Result<String> {
        let line = self.stream.line()?;
        Ok(String::from_utf8_lossy(&line).into_owned())
    }
}

/// A parser's failure: of the connection, if that is what failed.
fn lost(e: crate::cyrus::dlist::ParseError) -> Error {
    use crate::cyrus::dlist::Why;
    match e.why {
        Why::Io(e) => broken(e),
        Why::Eof => broken(io::ErrorKind::UnexpectedEof.into()),
        _ => e.into(),
    }
}

/// Which protocol an AUTHENTICATE is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Replication: no tag, the initial response on the same line.
    Csync,
    /// IMAP: a tag, and the first response after a `+`.
    Imap,
}

/// Logs in with the best mechanism offered that works. `Denied` if none does, with what the server
/// said to the last; `Config` if none can be used.
pub fn authenticate(
    stream: &mut Stream,
    flavour: Flavour,
    offered: &[String],
    login: &Login,
) -> Result<()> {
    authenticate_as(stream, flavour, offered, login, "")
}

/// The same, to act for `authzid` if that is not empty; servers let administrators do so.
pub fn authenticate_as(
    stream: &mut Stream,
    flavour: Flavour,
    offered: &[String],
    login: &Login,
    authzid: &str,
) -> Result<()> {
    let usable = Mechanism::usable(offered, login, stream.is_private());
    if usable.is_empty() {
        let clear = Mechanism::Plain.name();
        let why = if offered.iter().any(|o| o.eq_ignore_ascii_case(clear)) {
            "the server would take the password in clear only: use TLS, its UNIX socket, or a tunnel"
        } else {
            "the server offers no mechanism that we have"
        };
        return Err(Error::new(Kind::Config, why).place(offered.join(" ")));
    }
    let mut last = String::new();
    for mechanism in usable {
        let client = Client::fresh(mechanism, login)?.acting_as(authzid);
        match attempt(stream, flavour, client)? {
            Ok(()) => {
                let name = mechanism.name();
                log::info!(
                    "login: user={} for=<{authzid}> mechanism={name}",
                    login.user
                );
                return Ok(());
            }
            Err(why) => last = format!("{}: {why}", mechanism.name()),
        }
    }
    Err(Error::new(Kind::Denied, "login refused")
        .place(login.user.clone())
        .place(last))
}

/// One attempt: whether it succeeded, or what the server said.
fn attempt(
    stream: &mut Stream,
    flavour: Flavour,
    mut client: Client<'_>,
) -> Result<std::result::Result<(), String>> {
    const TAG: &str = "L0";
    let name = client.mechanism().name();
    let mut due = None;
    match flavour {
        Flavour::Csync => {
            let first = Base64::encode_string(&client.first());
            stream.send_line(format!("AUTHENTICATE {name} {first}").as_bytes())?;
        }
        Flavour::Imap => {
            due = Some(client.first());
            stream.send_line(format!("{TAG} AUTHENTICATE {name}").as_bytes())?;
        }
    }
    loop {
        let line = stream.line()?;
        if let Some(challenge) = line.strip_prefix(b"+") {
            let text = String::from_utf8_lossy(challenge);
            let answer = match due.take() {
                Some(first) => Ok(first),
                None => match Base64::decode_vec(text.trim()) {
                    Ok(bytes) => client.answer(&bytes),
                    Err(_) => Err("bad challenge"),
                },
            };
            match answer {
                Ok(bytes) => stream.send_line(Base64::encode_string(&bytes).as_bytes())?,
                Err(why) => {
                    // It is not who it says, or cannot count: nothing more goes to it.
                    stream.send_line(b"*")?;
                    return Err(Error::new(Kind::Denied, format!("login: {name}: {why}")));
                }
            }
            continue;
        }
        let text = String::from_utf8_lossy(&line).into_owned();
        let rest = match flavour {
            Flavour::Csync => text.as_str(),
            Flavour::Imap => match text.strip_prefix(TAG) {
                Some(rest) => rest.trim_start(),
                None => continue,
            },
        };
        if rest == "OK" || rest.starts_with("OK ") {
            return match client.success(None) {
                Ok(()) => Ok(Ok(())),
                Err(why) => Err(Error::new(Kind::Denied, format!("login: {name}: {why}"))),
            };
        }
        return Ok(Err(rest.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixStream;

    /// A server that says `says`, one piece after each line it hears; what it heard.
    fn server(says: &[&str]) -> (Stream, std::thread::JoinHandle<Vec<String>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let says: Vec<String> = says.iter().map(|s| s.to_string()).collect();
        let thread = std::thread::spawn(move || {
            let mut heard = Vec::new();
            let mut lines = BufReader::new(&theirs).lines();
            for text in says {
                match lines.next() {
                    Some(Ok(line)) => heard.push(line),
                    _ => break,
                }
                (&theirs).write_all(text.as_bytes()).unwrap();
            }
            heard
        });
        (Stream::of_unix(ours), thread)
    }

    fn login() -> Login {
        Login {
            user: "admin".into(),
            password: b"secret".to_vec(),
            allow_plaintext: true,
        }
    }

    #[test]
    fn a_command_and_its_answer() {
        let says = "* MISSING (0000000000000000000000000000000000000001)\r\n* X {3}\r\na\r\n\r\nOK success\r\n";
        let (stream, thread) = server(&[says, "NO IMAP_MAILBOX_MOVED Mailbox\r\n", "BYE gone\r\n"]);
        let mut c = Csync { stream, tag: None };
        let (lines, status) = c
            .command("GET MAILBOXES", &Value::List(vec![Value::text("user.a b")]))
            .unwrap();
        assert_eq!(status, Status::Ok);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1], ("X".into(), Value::text("a\r\n")));
        let status = c.apply("APPLY SUB", &Value::text("x")).unwrap();
        assert_eq!(status.code(), Some("IMAP_MAILBOX_MOVED"));
        assert_eq!(status.check("SUB").unwrap_err().kind(), Kind::Moved);
        let e = c.restart().unwrap_err();
        assert_eq!(e.kind(), Kind::Io);
        drop(c);
        let heard = thread.join().unwrap();
        assert_eq!(
            heard,
            ["GET MAILBOXES (\"user.a b\")", "APPLY SUB x", "RESTART"]
        );
    }

    #[test]
    fn inside_imap() {
        let (stream, thread) = server(&[
            "* OK still here\r\n* ENABLED (A)\r\nS1 OK success\r\n",
            "S2 BAD Replication parse failure in Syncapply\r\n",
            "S7 OK\r\n",
        ]);
        let mut c = Csync::over_imap(stream);
        let (lines, status) = c.command("GET USER", &Value::text("anna")).unwrap();
        assert_eq!((lines.len(), status), (1, Status::Ok));
        let status = c.apply("APPLY SUB", &Value::Nil).unwrap();
        assert!(matches!(status, Status::No(_)));
        assert_eq!(c.restart().unwrap_err().kind(), Kind::Protocol);
        drop(c);
        let heard = thread.join().unwrap();
        assert_eq!(
            heard,
            [
                "S1 SYNCGET USER anna",
                "S2 SYNCAPPLY SUB NIL",
                "S3 SYNCRESTART"
            ]
        );
    }

    #[test]
    fn logs_in_with_what_works() {
        let offered = ["SCRAM-SHA-256".to_owned(), "PLAIN".to_owned()];
        let (mut stream, thread) =
            server(&["NO no such user\r\n", "OK Success (no protection)\r\n"]);
        authenticate(&mut stream, Flavour::Csync, &offered, &login()).unwrap();
        drop(stream);
        let heard = thread.join().unwrap();
        assert!(
            heard[0].starts_with("AUTHENTICATE SCRAM-SHA-256 biws"),
            "{heard:?}"
        );
        assert_eq!(heard[1], "AUTHENTICATE PLAIN AGFkbWluAHNlY3JldA==");

        let (mut stream, thread) = server(&["+ \r\n", "L0 OK [CAPABILITY X] done\r\n"]);
        authenticate(&mut stream, Flavour::Imap, &offered[1..], &login()).unwrap();
        drop(stream);
        assert_eq!(
            thread.join().unwrap(),
            ["L0 AUTHENTICATE PLAIN", "AGFkbWluAHNlY3JldA=="]
        );

        // Success without the server's own proof is none.
        let (mut stream, thread) = server(&["OK fine\r\n"]);
        let e = authenticate(&mut stream, Flavour::Csync, &offered[..1], &login()).unwrap_err();
        assert_eq!(e.kind(), Kind::Denied);
        drop(stream);
        thread.join().unwrap();
        let (mut stream, _thread) = server(&[]);
        let e = authenticate(&mut stream, Flavour::Csync, &["GSSAPI".into()], &login());
        assert_eq!(e.unwrap_err().kind(), Kind::Config);
    }
}
