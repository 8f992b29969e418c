//! The socket below a connection: TCP or UNIX, with patience.
//!
//! Reads and writes block up to a timeout and then fail with `TimedOut`. Who may be told to stop
//! hands in a flag: once it is set, the peer has a moment left for what it is about to say, so that an
//! answer on its way is still heard, and then the same failure comes.

use super::stream::Address;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long nobody looks at the flag.
const SLICE: Duration = Duration::from_millis(200);

/// How long the peer may take once the flag is set.
const GRACE: Duration = match cfg!(test) {
    true => Duration::from_millis(300),
    false => Duration::from_secs(3),
};

/// A flag that somebody sets who wants an end.
pub type Stop = Arc<AtomicBool>;

#[derive(Debug)]
enum End {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connected socket.
#[derive(Debug)]
pub struct Socket {
    end: End,
    /// Milliseconds; 0: for ever.
    timeout: AtomicU64,
    stop: Option<Stop>,
}

impl Socket {
    /// Connects; each address of a host name is tried for up to `timeout`, which then holds for each
    /// read and write. The reason of the last attempt if none succeeds.
    pub fn connect(address: &Address, timeout: Duration, stop: Option<Stop>) -> io::Result<Socket> {
        let end = match address {
            Address::Unix(path) => End::Unix(UnixStream::connect(path)?),
            Address::Tcp(host, port) | Address::Tls(host, port) => {
                let mut last = io::Error::other("no address");
                let mut found = None;
                for addr in (host.as_str(), *port).to_socket_addrs()? {
                    match TcpStream::connect_timeout(&addr, timeout) {
                        Ok(s) => {
                            found = Some(s);
                            break;
                        }
                        Err(e) => last = e,
                    }
                }
                let socket = found.ok_or(last)?;
                socket.set_nodelay(true)?;
                End::Tcp(socket)
            }
        };
        let socket = Socket {
            stop,
            ..Socket::over(end)
        };
        socket.set_timeout(timeout)?;
        Ok(socket)
    }

    /// One end of a socket pair.
    pub fn of_unix(socket: UnixStream) -> Socket {
        Socket::over(End::Unix(socket))
    }

    fn over(end: End) -> Socket {
        Socket {
            end,
            timeout: AtomicU64::new(0),
            stop: None,
        }
    }

    /// The longest a single read or write may block; zero: for ever.
    pub fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        self.timeout.store(millis, Ordering::Relaxed);
        let timeout = Some(timeout).filter(|t| !t.is_zero());
        let slice = match &self.stop {
            None => timeout,
            Some(_) => Some(timeout.unwrap_or(SLICE).min(SLICE)),
        };
        match &self.end {
            End::Tcp(s) => s
                .set_read_timeout(slice)
                .and_then(|()| s.set_write_timeout(slice)),
            End::Unix(s) => s
                .set_read_timeout(slice)
                .and_then(|()| s.set_write_timeout(slice)),
        }
    }

    /// Whether the peer is on this machine, or something that leads to it from there.
    pub fn is_local(&self) -> bool {
        match &self.end {
            End::Unix(_) => true,
            End::Tcp(s) => s
                .peer_addr()
                .is_ok_and(|a| a.ip().to_canonical().is_loopback()),
        }
    }

    fn patiently(&self, mut act: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
        let Some(stop) = &self.stop else {
            return act();
        };
        let begun = Instant::now();
        let mut told = None;
        loop {
            match act() {
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::TimedOut
                            | io::ErrorKind::Interrupted
                    ) => {}
                done => return done,
            }
            let timeout = self.timeout.load(Ordering::Relaxed);
            let is_late = timeout > 0 && begun.elapsed() >= Duration::from_millis(timeout);
            let is_over = stop.load(Ordering::Relaxed)
                && told.get_or_insert_with(Instant::now).elapsed() >= GRACE;
            if is_late || is_over {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

impl Read for &Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.patiently(|| match &self.end {
            End::Tcp(s) => (&mut &*s).read(buf),
            End::Unix(s) => (&mut &*s).read(buf),
        })
    }
}

impl Write for &Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.patiently(|| match &self.end {
            End::Tcp(s) => (&mut &*s).write(buf),
            End::Unix(s) => (&mut &*s).write(buf),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A socket that may be told to stop, and its peer.
    fn pair(name: &str, stop: &Stop) -> (Socket, UnixStream) {
        let name = format!("cyr_backup-socket-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let address = Address::Unix(path.clone());
        let timeout = Duration::from_secs(60);
        let socket = Socket::connect(&address, timeout, Some(stop.clone())).unwrap();
        std::fs::remove_file(&path).unwrap();
        (socket, listener.accept().unwrap().0)
    }

    #[test]
    fn whoever_is_told_to_stop_waits_a_moment_only() {
        let stop = Stop::default();
        let (socket, mut peer) = pair("stop", &stop);
        // An answer on its way is heard.
        stop.store(true, Ordering::Relaxed);
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            peer.write_all(b"x").unwrap();
            peer
        });
        let mut buf = [0; 4];
        assert_eq!((&socket).read(&mut buf).unwrap(), 1);
        let _peer = late.join().unwrap();
        let begun = Instant::now();
        let e = (&socket).read(&mut buf).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::TimedOut);
        // Nor does who writes wait for a peer that does not read.
        let block = vec![0; 1 << 20];
        let e = loop {
            if let Err(e) = (&socket).write(&block) {
                break e;
            }
        };
        assert_eq!(e.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn whoever_is_not_waits_as_long_as_he_may() {
        let (socket, _peer) = pair("wait", &Stop::default());
        socket.set_timeout(Duration::from_millis(700)).unwrap();
        let begun = Instant::now();
        let e = (&socket).read(&mut [0; 4]).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= Duration::from_millis(600));
    }
}
