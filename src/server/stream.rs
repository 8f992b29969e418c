//! One connection: a TCP or UNIX stream socket that can be waited for together with the stop flag.
//!
//! Clones share the socket, so deadlines set on one hold for all, and it is closed when the last is gone. Reads and
//! writes block up to their deadline and then fail with `WouldBlock` or `TimedOut`; nothing here retries.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::stop::{DrainKind, Stop};
use crate::sys::fd;

/// A connected client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Over a UNIX socket; who it was when it connected.
    Unix {
        /// User.
        uid: u32,
        /// Primary group.
        gid: u32,
        /// Process; it may be gone.
        pid: i32,
    },
    /// Over TCP; an IPv4 address is never written as IPv6.
    Tcp(SocketAddr),
}

impl Peer {
    /// Whether it speaks from this machine.
    pub fn is_loopback(&self) -> bool {
        match self {
            Peer::Unix { .. } => true,
            Peer::Tcp(addr) => addr.ip().is_loopback(),
        }
    }

    pub(crate) fn tcp(addr: SocketAddr) -> Peer {
        Peer::Tcp(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
    }
}

impl fmt::Display for Peer {
    /// As Cyrus logs a host without a name: `[127.0.0.1]`, `[unix socket]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Unix { .. } => f.write_str("[unix socket]"),
            Peer::Tcp(addr) => write!(f, "[{}]", addr.ip()),
        }
    }
}

/// Probes that notice a dead TCP peer; 0 leaves the system's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// Seconds of silence before the first probe (`tcp_keepalive_idle`).
    pub idle_secs: u32,
    /// Seconds between probes (`tcp_keepalive_intvl`).
    pub interval_secs: u32,
    /// Probes before giving up (`tcp_keepalive_cnt`).
    pub count: u32,
}

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Bytes, the end of the stream or an error: a read will tell without blocking.
    Readable,
    /// The time is over.
    Timeout,
    /// The process drains at the level watched for.
    Stopping,
}

/// Whether a wait also ends when the process begins to leave.
#[derive(Clone, Copy, Debug)]
pub enum Watch<'a> {
    /// Wait for the client only.
    Client,
    /// End also when any drain begins: for sessions that do not know of it yet.
    Drain(&'a Stop),
    /// End also when the drain gets a deadline: for sessions that know of a drain under HUP.
    Term(&'a Stop),
}

/// A stream socket. Clones are the same socket.
#[derive(Clone, Debug)]
pub struct Stream {
    socket: Arc<Socket>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Another handle on the same socket, with the same deadlines; costs no descriptor. Never fails (the signature
    /// is that of std's streams).
    pub fn try_clone(&self) -> io::Result<Stream> {
        Ok(self.clone())
    }

    /// Who is on the other side.
    pub fn peer(&self) -> io::Result<Peer> {
        match &*self.socket {
            Socket::Tcp(s) => s.peer_addr().map(Peer::tcp),
            Socket::Unix(s) => {
                let (uid, gid, pid) = fd::peer_cred(s.as_fd())?;
                Ok(Peer::Unix { uid, gid, pid })
            }
        }
    }

    /// Small answers leave at once, and a dead peer is noticed. Nothing to do for a UNIX socket.
    pub fn tune(&self, keepalive: Option<Keepalive>) -> io::Result<()> {
        if let Socket::Tcp(s) = &*self.socket {
            s.set_nodelay(true)?;
            if let Some(k) = keepalive {
                fd::keepalive(s.as_fd(), k.idle_secs, k.interval_secs, k.count)?;
            }
        }
        Ok(())
    }

    /// The longest a single read may block; `None` is for ever. A zero duration is an error.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match &*self.socket {
            Socket::Tcp(s) => s.set_read_timeout(timeout),
            Socket::Unix(s) => s.set_read_timeout(timeout),
        }
    }

    /// The longest a single write may block; `None` is for ever. A zero duration is an error.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match &*self.socket {
            Socket::Tcp(s) => s.set_write_timeout(timeout),
            Socket::Unix(s) => s.set_write_timeout(timeout),
        }
    }

    /// Blocks until the client has something for us, the flag in `watch` is raised, or `timeout` is over; in this
    /// order if several are true. Bytes already taken into a buffer (of a reader, TLS or inflate) are not seen
    /// here: look there first.
    pub fn wait_readable(&self, watch: Watch<'_>, timeout: Duration) -> io::Result<Wake> {
        let stop = match watch {
            Watch::Client => None,
            Watch::Drain(stop) => Some(stop.fd(DrainKind::Hup)),
            Watch::Term(stop) => Some(stop.fd(DrainKind::Term)),
        };
        let mut on = vec![fd::Watch::readable(self.as_fd())];
        on.extend(stop.map(fd::Watch::readable));
        fd::poll(&mut on, Some(timeout))?;
        let ready = |i: usize| on.get(i).is_some_and(fd::Watch::is_ready);
        Ok(match (ready(0), ready(1)) {
            (true, _) => Wake::Readable,
            (false, true) => Wake::Stopping,
            (false, false) => Wake::Timeout,
        })
    }

    /// Ends one or both directions for every clone; a blocked read or write returns.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.socket.shutdown(how)
    }

    /// A handle that does not keep the socket open.
    pub fn downgrade(&self) -> Cutter {
        Cutter(Arc::downgrade(&self.socket))
    }
}

impl Socket {
    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Socket::Tcp(s) => s.shutdown(how),
            Socket::Unix(s) => s.shutdown(how),
        }
    }
}

/// Cuts a connection off without owning it.
#[derive(Clone, Debug)]
pub struct Cutter(Weak<Socket>);

impl Cutter {
    /// Ends both directions, if the connection is still there.
    pub fn cut(&self) {
        if let Some(socket) = self.0.upgrade() {
            // An error here says that the peer was faster.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl From<TcpStream> for Stream {
    fn from(s: TcpStream) -> Stream {
        Stream {
            socket: Arc::new(Socket::Tcp(s)),
        }
    }
}

impl From<UnixStream> for Stream {
    fn from(s: UnixStream) -> Stream {
        Stream {
            socket: Arc::new(Socket::Unix(s)),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &*self.socket {
            Socket::Tcp(s) => s.as_fd(),
            Socket::Unix(s) => s.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &*self.socket {
            Socket::Tcp(s) => (&mut &*s).read(buf),
            Socket::Unix(s) => (&mut &*s).read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match &*self.socket {
            Socket::Tcp(s) => (&mut &*s).write(buf),
            Socket::Unix(s) => (&mut &*s).write(buf),
        }
    }

    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match &*self.socket {
            Socket::Tcp(s) => (&mut &*s).write_vectored(bufs),
            Socket::Unix(s) => (&mut &*s).write_vectored(bufs),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(20);

    fn pair() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours.into(), theirs)
    }

    #[test]
    fn peers_print_as_cyrus_prints_hosts() {
        let tcp = |s: &str| Peer::tcp(s.parse().unwrap());
        assert_eq!(tcp("127.0.0.1:9").to_string(), "[127.0.0.1]");
        assert_eq!(tcp("[::ffff:10.0.0.1]:9").to_string(), "[10.0.0.1]");
        assert_eq!(tcp("[2001:db8::1]:9").to_string(), "[2001:db8::1]");
        assert!(tcp("[::ffff:127.0.0.2]:9").is_loopback() && tcp("[::1]:9").is_loopback());
        assert!(!tcp("10.0.0.1:9").is_loopback());
        let (a, _b) = pair();
        let peer = a.peer().unwrap();
        assert_eq!(peer.to_string(), "[unix socket]");
        assert!(peer.is_loopback() && matches!(peer, Peer::Unix { .. }));
    }

    #[test]
    fn waits_end_for_the_client_first_then_for_the_flag_watched() {
        let (a, mut b) = pair();
        let stop = Stop::new().unwrap();
        let drain = Watch::Drain(&stop);
        assert_eq!(a.wait_readable(drain, SHORT).unwrap(), Wake::Timeout);

        stop.begin(DrainKind::Hup);
        let term = Watch::Term(&stop);
        assert_eq!(a.wait_readable(drain, LONG).unwrap(), Wake::Stopping);
        assert_eq!(a.wait_readable(term, SHORT).unwrap(), Wake::Timeout);
        stop.begin(DrainKind::Term);
        assert_eq!(a.wait_readable(term, LONG).unwrap(), Wake::Stopping);
        assert_eq!(
            a.wait_readable(Watch::Client, SHORT).unwrap(),
            Wake::Timeout
        );

        b.write_all(b"x").unwrap();
        assert_eq!(a.wait_readable(drain, LONG).unwrap(), Wake::Readable);
        drop(b);
        let mut all = Vec::new();
        a.clone().read_to_end(&mut all).unwrap();
        assert_eq!(all, b"x");
        assert_eq!(a.wait_readable(drain, LONG).unwrap(), Wake::Readable);
    }

    #[test]
    fn deadlines_hold_for_clones_and_a_cut_ends_a_blocked_read() {
        let (a, b) = pair();
        let mut clone = a.try_clone().unwrap();
        a.set_read_timeout(Some(SHORT)).unwrap();
        let e = clone.read(&mut [0]).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
        a.set_write_timeout(Some(SHORT)).unwrap();
        let e = clone.write_all(&vec![0; 8 << 20]).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::WouldBlock);

        a.set_read_timeout(None).unwrap();
        let cutter = a.downgrade();
        let start = Instant::now();
        let reader = std::thread::spawn(move || clone.read(&mut [0]).unwrap_or(0));
        std::thread::sleep(SHORT);
        cutter.cut();
        assert_eq!(reader.join().unwrap(), 0);
        assert!(start.elapsed() < LONG);
        drop(a);
        cutter.cut();
        drop(b);
    }
}
