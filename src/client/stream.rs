//! One connection to a server: TCP or a UNIX socket, buffered both ways, encrypted and compressed
//! from some point on if wished.
//!
//! A [`Stream`] is `BufRead` and `Write`. What was written leaves with `flush`, or when the buffer
//! is full; nothing is flushed by reading. Reads and writes block up to their deadlines and then
//! fail with `WouldBlock` or `TimedOut`, and the connection is of no more use.

use super::socket::{Socket, Stop};
use super::tls::Trust;
use crate::error::{Error, Kind, Result};
use crate::proto::compress::{Deflate, Inflate};
use crate::proto::line::{LineEnd, read_line};
use rustls::ClientConnection;
use std::fmt;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Bytes of the buffer in each direction.
const BUFFER: usize = 64 * 1024;

/// The longest line of a server, without literals.
const MAX_LINE: usize = 64 * 1024;

/// Bodies hardly shrink at any price; one that costs little is right.
const LEVEL: u8 = 1;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A host name or address, and a port.
    Tcp(String, u16),
    /// The same, where TLS begins with the first byte.
    Tls(String, u16),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl Address {
    /// Reads `host`, `host:port`, `[v6]`, `[v6]:port`; the port may be the name of a service that we
    /// speak. A bare IPv6 address has no port. `Usage` for what is none.
    pub fn parse(text: &str, default_port: u16) -> Result<Address> {
        let bad = || Error::new(Kind::Usage, format!("{text}: not a host or host:port"));
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, behind) = rest.split_once(']').ok_or_else(bad)?;
                match behind.strip_prefix(':') {
                    Some(port) => (host, Some(port)),
                    None if behind.is_empty() => (host, None),
                    None => return Err(bad()),
                }
            }
            None if text.matches(':').count() == 1 => {
                let (host, port) = text.split_once(':').ok_or_else(bad)?;
                (host, Some(port))
            }
            None => (text, None),
        };
        let port = match port {
            Some(port) => self::port(port).ok_or_else(bad)?,
            None => default_port,
        };
        let fine = |b: u8| b.is_ascii_graphic() && !b"/?#@[]".contains(&b);
        if host.is_empty() || !host.bytes().all(fine) {
            return Err(bad());
        }
        Ok(Address::Tcp(host.to_owned(), port))
    }

    /// The same place, with TLS from the first byte.
    pub fn with_tls(self) -> Address {
        match self {
            Address::Tcp(host, port) => Address::Tls(host, port),
            other => other,
        }
    }
}

fn port(text: &str) -> Option<u16> {
    match text {
        "imap" => Some(143),
        "imaps" => Some(993),
        "csync" => Some(2005),
        _ => text.parse().ok().filter(|&p| p > 0),
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(host, port) | Address::Tls(host, port) => match host.contains(':') {
                true => write!(f, "[{host}]:{port}"),
                false => write!(f, "{host}:{port}"),
            },
            Address::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A handle on the socket, for one direction.
#[derive(Clone)]
struct Half {
    socket: Arc<Socket>,
    /// Both directions share what TLS knows. One thread has the stream, so nobody waits for it.
    tls: Option<Arc<Mutex<ClientConnection>>>,
}

impl Half {
    fn plain(socket: Socket) -> Half {
        let (socket, tls) = (Arc::new(socket), None);
        Half { socket, tls }
    }

    /// Does something to the connection as it is now, plain or encrypted.
    fn with<T>(&self, act: impl FnOnce(&mut dyn Both) -> io::Result<T>) -> io::Result<T> {
        let mut socket = &*self.socket;
        match &self.tls {
            None => act(&mut socket),
            Some(tls) => {
                let mut tls = tls.lock().unwrap_or_else(PoisonError::into_inner);
                act(&mut rustls::Stream::new(&mut *tls, &mut socket))
            }
        }
    }
}

/// What can be read and written.
trait Both: Read + Write {}

impl<T: Read + Write> Both for T {}

impl Read for Half {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.with(|s| s.read(buf))
    }
}

impl Write for Half {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.with(|s| s.write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.with(|s| s.flush())
    }
}

enum Reader {
    Plain(BufReader<Half>),
    Deflated(Box<Inflate<Half>>),
}

enum Writer {
    Plain(BufWriter<Half>),
    Deflated(Box<Deflate<BufWriter<Half>>>),
    /// Between two of them.
    None,
}

/// A connection.
pub struct Stream {
    half: Half,
    /// The name that a certificate must have, and whom it must be from. None for a UNIX socket.
    certified: Option<(String, Trust)>,
    reader: Reader,
    writer: Writer,
    /// Bytes handed to `write`.
    written: u64,
}

impl Stream {
    /// Connects, as [`Socket::connect`] does. `Io` with the reason of the last attempt. `trust`
    /// decides about the server's certificate, here or later.
    pub fn connect(
        address: &Address,
        trust: &Trust,
        timeout: Duration,
        stop: Option<Stop>,
    ) -> Result<Stream> {
        let socket = Socket::connect(address, timeout, stop).map_err(|e| {
            Error::io("cannot connect", e)
                .with_kind(Kind::Io)
                .place(address.to_string())
        })?;
        let mut stream = Stream::over(Half::plain(socket));
        if let Address::Tcp(host, _) | Address::Tls(host, _) = address {
            stream.certified = Some((host.clone(), trust.clone()));
        }
        if let Address::Tls(..) = address {
            stream
                .start_tls()
                .map_err(|e| e.place(address.to_string()))?;
        }
        Ok(stream)
    }

    /// A stream over one end of a socket pair.
    pub fn of_unix(socket: UnixStream) -> Stream {
        Stream::over(Half::plain(Socket::of_unix(socket)))
    }

    fn over(half: Half) -> Stream {
        Stream {
            reader: Reader::Plain(BufReader::with_capacity(BUFFER, half.clone())),
            writer: Writer::Plain(BufWriter::with_capacity(BUFFER, half.clone())),
            half,
            certified: None,
            written: 0,
        }
    }

    /// The longest a single read or write may block.
    pub fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.half.socket.set_timeout(timeout)
    }

    /// Whether nobody else can listen: TLS, a UNIX socket, or a peer on this machine.
    pub fn is_private(&self) -> bool {
        self.half.tls.is_some() || self.is_local()
    }

    /// Whether the peer is on this machine, or something that leads to it from there.
    pub fn is_local(&self) -> bool {
        self.half.socket.is_local()
    }

    /// Bytes written so far, before compression.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Both directions are deflated from here on. The server's agreement was the last thing read,
    /// and nothing is unflushed.
    pub fn compress(&mut self) -> io::Result<()> {
        self.flush()?;
        if let Reader::Plain(plain) = &self.reader {
            let leftover = plain.buffer().to_vec();
            self.reader = Reader::Deflated(Box::new(Inflate::new(self.half.clone(), leftover)));
        }
        self.writer = match std::mem::replace(&mut self.writer, Writer::None) {
            Writer::Plain(plain) => Writer::Deflated(Box::new(Deflate::new(plain, LEVEL))),
            other => other,
        };
        Ok(())
    }

    /// Whether TLS can be started: it is a connection to a host, still in plain text.
    pub fn may_start_tls(&self) -> bool {
        self.certified.is_some() && self.half.tls.is_none()
    }

    /// Encrypts from here on. The server's agreement was the last thing read, and nothing is
    /// unflushed. If it fails, the connection is of no more use: whatever comes over it then is from
    /// nobody known. Kinds as of [`Trust::handshake`].
    pub fn start_tls(&mut self) -> Result<()> {
        let (host, trust) = match &self.certified {
            Some(certified) if self.may_start_tls() => certified,
            _ => {
                return Err(Error::new(
                    Kind::Internal,
                    "TLS on a connection that has none",
                ));
            }
        };
        match &self.reader {
            // What somebody put in between must not count as said by the server that we will know.
            Reader::Plain(r) if !r.buffer().is_empty() => {
                let why = "the server went on in plain text after it agreed to TLS";
                return Err(Error::new(Kind::Protocol, why).place(host.clone()));
            }
            Reader::Plain(_) => {}
            Reader::Deflated(_) => {
                return Err(Error::new(Kind::Internal, "TLS inside of compression"));
            }
        }
        let tls = trust.handshake(host, &mut &*self.half.socket)?;
        let half = Half {
            socket: self.half.socket.clone(),
            tls: Some(Arc::new(Mutex::new(tls))),
        };
        self.reader = Reader::Plain(BufReader::with_capacity(BUFFER, half.clone()));
        self.writer = Writer::Plain(BufWriter::with_capacity(BUFFER, half.clone()));
        self.half = half;
        Ok(())
    }

    /// The next line without its ending. `Protocol` if it is too long, `Io` when the server closes
    /// the connection or says nothing in time.
    pub fn line(&mut self) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        let end = read_line(self, MAX_LINE, &mut line).map_err(broken)?;
        match end {
            LineEnd::Line => Ok(line),
            LineEnd::TooLong => Err(Error::new(Kind::Protocol, "the server's line is too long")),
            LineEnd::Eof | LineEnd::EofInLine => Err(broken(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// Writes a line with its ending and flushes.
    pub fn send_line(&mut self, line: &[u8]) -> Result<()> {
        self.write_all(line)
            .and_then(|()| self.write_all(b"\r\n"))
            .and_then(|()| self.flush())
            .map_err(broken)
    }
}

/// A failed read or write, in words that help: always `Io`.
pub fn broken(e: io::Error) -> Error {
    let what = match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "the server does not answer",
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted => "the server closed the connection",
        _ => return Error::io("connection failed", e).with_kind(Kind::Io),
    };
    Error::new(Kind::Io, what)
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.reader {
            Reader::Plain(r) => r.read(buf),
            Reader::Deflated(r) => r.read(buf),
        }
    }
}

impl BufRead for Stream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match &mut self.reader {
            Reader::Plain(r) => r.fill_buf(),
            Reader::Deflated(r) => r.fill_buf(),
        }
    }

    fn consume(&mut self, n: usize) {
        match &mut self.reader {
            Reader::Plain(r) => r.consume(n),
            Reader::Deflated(r) => r.consume(n),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = match &mut self.writer {
            Writer::Plain(w) => w.write(buf)?,
            Writer::Deflated(w) => w.write(buf)?,
            Writer::None => return Err(io::ErrorKind::NotConnected.into()),
        };
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.writer {
            Writer::Plain(w) => w.flush(),
            Writer::Deflated(w) => w.flush(),
            Writer::None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let tcp = |h: &str, p| Address::Tcp(h.into(), p);
        for (text, address) in [
            ("host", tcp("host", 7)),
            ("host:143", tcp("host", 143)),
            ("host:csync", tcp("host", 2005)),
            ("[::1]:imap", tcp("::1", 143)),
            ("10.0.0.1:1", tcp("10.0.0.1", 1)),
            ("::1", tcp("::1", 7)),
            ("[::1]", tcp("::1", 7)),
            ("[::1]:99", tcp("::1", 99)),
        ] {
            assert_eq!(Address::parse(text, 7).unwrap(), address, "{text}");
        }
        for text in [
            "", ":1", "h:", "h:x", "h:0", "h:70000", "[::1", "[::1]x", "a/b", "u@h",
        ] {
            let e = Address::parse(text, 7).unwrap_err();
            assert_eq!(e.kind(), Kind::Usage, "{text}");
        }
        assert_eq!(tcp("::1", 5).to_string(), "[::1]:5");
    }

    #[test]
    fn talks_plain_and_then_compressed() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let peer = std::thread::spawn(move || {
            let mut peer = Stream::of_unix(theirs);
            assert_eq!(peer.line().unwrap(), b"COMPRESS");
            // What follows the answer at once is compressed already.
            peer.write_all(b"OK\r\n").unwrap();
            peer.compress().unwrap();
            peer.write_all(b"first\r\n").unwrap();
            peer.flush().unwrap();
            let mut got = vec![0; 300_000];
            peer.read_exact(&mut got).unwrap();
            assert!(got.iter().all(|&b| b == b'x'));
            peer.send_line(b"end").unwrap();
        });
        let mut ours = Stream::of_unix(ours);
        assert!(ours.is_private());
        ours.send_line(b"COMPRESS").unwrap();
        assert_eq!(ours.line().unwrap(), b"OK");
        ours.compress().unwrap();
        assert_eq!(ours.line().unwrap(), b"first");
        ours.write_all(&vec![b'x'; 300_000]).unwrap();
        ours.flush().unwrap();
        assert_eq!(ours.line().unwrap(), b"end");
        peer.join().unwrap();
        let e = ours.line().unwrap_err();
        assert_eq!(e.kind(), Kind::Io);
        assert_eq!(e.to_string(), "the server closed the connection");
    }

    #[test]
    fn silence_has_an_end() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut ours = Stream::of_unix(ours);
        ours.set_timeout(Duration::from_millis(20)).unwrap();
        let e = ours.line().unwrap_err();
        assert_eq!(e.to_string(), "the server does not answer");
    }
}
