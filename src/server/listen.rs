//! Listening sockets: handed over by Cyrus master or systemd, or opened here.
//!
//! Promises: close-on-exec on all of them; a UNIX socket of our own is never open to others than our user, not for
//! a moment; a socket file is replaced only when nobody answers on it. Opening fails with `Kind::Config` for what an
//! administrator must correct and `Kind::Io` for the rest. Whose format: Cyrus 3.6 master/service.h for master,
//! sd_listen_fds(3) for systemd.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

pub use super::stop::{DrainKind, Request, Stop};
pub use super::stream::{Keepalive, Peer, Stream, Wake, Watch};
use crate::cyrus::master::{Service, Status};
use crate::error::{Error, Kind, Result};
use crate::sys::fd::{self, Family};

/// First descriptor handed over by systemd.
const SYSTEMD_FIRST: i32 = 3;

/// More sockets than this are not taken from systemd.
const SYSTEMD_MAX: i32 = 32;

/// Where to listen, besides what the starter hands over.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Addresses from the command line: `ADDR:PORT`, `HOST:PORT`, `[V6]:PORT`, or `PORT` for all addresses.
    pub listen: Vec<String>,
    /// UNIX socket from the command line.
    pub socket: Option<PathBuf>,
    /// `backup_listen`: used only when neither the starter nor the command line gave a socket.
    pub config_listen: Vec<String>,
    /// `backup_socket`: likewise.
    pub config_socket: Option<PathBuf>,
}

/// All listening sockets of the process, and master's status pipe if it is a service.
#[derive(Debug, Default)]
pub struct Listeners {
    /// The sockets.
    pub sockets: Vec<Listener>,
    /// The pipe to master.
    pub master: Option<Status>,
    /// Keepalive for accepted TCP connections; `None`: off.
    pub keepalive: Option<Keepalive>,
}

impl Listeners {
    /// Takes over and opens all of them. `var` reads the environment, `pid` is ours. Call it before any other
    /// descriptor is opened and before there are threads (it sets the umask while it binds).
    pub fn open(
        sources: &Sources,
        var: impl Fn(&str) -> Option<OsString>,
        pid: u32,
    ) -> Result<Listeners> {
        let mut all = Listeners::default();
        if let Some(service) = Service::detect(&var) {
            let (socket, status) = service.inherit()?;
            let name = format!("{}/{}", service.name, service.id);
            all.sockets.push(Listener::inherited(socket, name)?);
            all.master = Some(status);
        }
        for number in systemd(&var, pid)? {
            let socket = fd::inherit(number, fd::Expect::Listener).map_err(|e| {
                Error::new(Kind::Config, "cannot take over a socket from systemd")
                    .place(format!("descriptor {number}"))
                    .because(e)
            })?;
            let name = format!("systemd/{number}");
            all.sockets.push(Listener::inherited(socket, name)?);
        }
        all.bind(&sources.listen, sources.socket.as_deref())?;
        if all.sockets.is_empty() {
            all.bind(&sources.config_listen, sources.config_socket.as_deref())?;
        }
        if all.sockets.is_empty() {
            return Err(Error::new(
                Kind::Config,
                "nowhere to listen: started neither by master nor by systemd, and neither --listen, --socket, \
                 backup_listen nor backup_socket is given",
            ));
        }
        Ok(all)
    }

    fn bind(&mut self, listen: &[String], socket: Option<&Path>) -> Result<()> {
        for text in listen {
            self.sockets.extend(Listener::tcp(text)?);
        }
        if let Some(path) = socket {
            self.sockets.push(Listener::unix(path)?);
        }
        Ok(())
    }
}

/// The numbers systemd hands over to process `pid`.
fn systemd(var: impl Fn(&str) -> Option<OsString>, pid: u32) -> Result<std::ops::Range<i32>> {
    let number = |key| var(key).and_then(|v| v.to_str()?.parse::<i64>().ok());
    // Left by the starter for another process: not ours.
    if number("LISTEN_PID") != Some(i64::from(pid)) {
        return Ok(0..0);
    }
    let count = number("LISTEN_FDS").and_then(|n| i32::try_from(n).ok());
    match count {
        Some(n @ 0..=SYSTEMD_MAX) => Ok(SYSTEMD_FIRST..SYSTEMD_FIRST + n),
        _ => Err(Error::new(Kind::Config, "LISTEN_FDS makes no sense")),
    }
}

/// One listening socket. Dropping it leaves an inherited one as it was found, and removes the file of a UNIX
/// socket of our own.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    name: String,
    origin: Origin,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

#[derive(Debug)]
enum Origin {
    Inherited,
    Bound,
    /// A file of ours, with device and inode.
    File(PathBuf, (u64, u64)),
}

impl Listener {
    /// One that somebody else opened.
    pub(crate) fn inherited(socket: OwnedFd, name: String) -> Result<Listener> {
        let family = fd::listening(socket.as_fd());
        let socket = match family {
            Ok(Some(Family::Inet)) => Socket::Tcp(socket.into()),
            Ok(Some(Family::Unix)) => Socket::Unix(socket.into()),
            Ok(None) => {
                let e = Error::new(Kind::Config, "not a listening stream socket");
                return Err(e.place(name));
            }
            Err(e) => {
                let e = Error::new(Kind::Config, "not a socket").because(e);
                return Err(e.place(name));
            }
        };
        Listener::new(socket, name, Origin::Inherited)
    }

    /// Binds every address that `text` stands for. One that this machine does not have (IPv6 switched off) is
    /// skipped if another could be bound.
    pub fn tcp(text: &str) -> Result<Vec<Listener>> {
        let mut bound: Vec<Listener> = Vec::new();
        let mut absent = None;
        for addr in addresses(text)? {
            let any = addr.ip().is_unspecified() && addr.is_ipv4();
            match TcpListener::bind(addr) {
                Ok(socket) => {
                    let local = socket.local_addr().unwrap_or(addr);
                    bound.push(Listener::new(
                        Socket::Tcp(socket),
                        local.to_string(),
                        Origin::Bound,
                    )?);
                }
                // The IPv6 one before it takes IPv4 as well, unless the system says otherwise.
                Err(e) if e.kind() == io::ErrorKind::AddrInUse && any && !bound.is_empty() => {}
                Err(e) if is_absent(&e) => absent = Some(e),
                Err(e) => return Err(Error::io("cannot listen", e).place(text)),
            }
        }
        match absent {
            Some(e) if bound.is_empty() => Err(Error::io("cannot listen", e)
                .with_kind(Kind::Config)
                .place(text)),
            _ => Ok(bound),
        }
    }

    /// Makes a UNIX socket at `path` that only our own user (and root) can connect to. What lies there is replaced
    /// if it is a socket on which nobody answers; `Kind::Exists` otherwise.
    pub fn unix(path: &Path) -> Result<Listener> {
        remove_stale(path)?;
        let before = fd::umask(0o077);
        let socket = UnixListener::bind(path);
        fd::umask(before);
        let fail = |e| {
            Error::io("cannot listen", e)
                .with_kind(Kind::Config)
                .at(path)
        };
        let socket = socket.map_err(fail)?;
        let meta = fs::symlink_metadata(path).map_err(fail)?;
        let origin = Origin::File(path.to_path_buf(), (meta.dev(), meta.ino()));
        Listener::new(Socket::Unix(socket), path.display().to_string(), origin)
    }

    fn new(socket: Socket, name: String, origin: Origin) -> Result<Listener> {
        let listener = Listener {
            socket,
            name,
            origin,
        };
        // Whoever waits in poll must not hang in accept when another process, or nobody, was behind the event.
        if let Err(e) = listener.set_nonblocking(true) {
            return Err(Error::io("cannot listen", e).place(listener.name.clone()));
        }
        Ok(listener)
    }

    /// How it is called in the log: an address, a path, or the starter's name for it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address it is bound to; `None` for a UNIX socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(s) => s.local_addr().ok(),
            Socket::Unix(_) => None,
        }
    }

    /// The next connection; does not block: `WouldBlock` if there is none.
    pub fn accept(&self) -> io::Result<(Stream, Peer)> {
        if let Origin::Inherited = self.origin {
            // Another process on the same socket may have left and given the mode back.
            self.set_nonblocking(true)?;
        }
        match &self.socket {
            Socket::Tcp(s) => {
                let (stream, addr) = s.accept()?;
                Ok((stream.into(), Peer::tcp(addr)))
            }
            Socket::Unix(s) => {
                let stream = Stream::from(s.accept()?.0);
                let peer = stream.peer()?;
                Ok((stream, peer))
            }
        }
    }

    fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        match &self.socket {
            Socket::Tcp(s) => s.set_nonblocking(on),
            Socket::Unix(s) => s.set_nonblocking(on),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        match &self.origin {
            Origin::Bound => {}
            Origin::Inherited => {
                // The mode belongs to the socket, which a successor (perhaps another program) gets as well.
                let _ = self.set_nonblocking(false);
            }
            Origin::File(path, id) => {
                // A successor may have put its own there.
                let same = fs::symlink_metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == *id);
                if same {
                    let _ = fs::remove_file(path);
                }
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(s) => s.as_fd(),
            Socket::Unix(s) => s.as_fd(),
        }
    }
}

fn addresses(text: &str) -> Result<Vec<SocketAddr>> {
    let fail = |why: &str| {
        let e = Error::new(Kind::Config, format!("not an address to listen on: {why}"));
        e.place(text)
    };
    let (host, port) = match text.rsplit_once(':') {
        Some(("" | "*", port)) => (None, port),
        Some((host, port)) => (Some(host), port),
        None => (None, text),
    };
    let Ok(port) = port.parse::<u16>() else {
        return Err(fail("the port is not a number"));
    };
    let Some(host) = host else {
        let any = [
            SocketAddr::from(([0u16; 8], port)),
            SocketAddr::from(([0u8; 4], port)),
        ];
        return Ok(any.to_vec());
    };
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    if bare.is_none() && host.contains(':') {
        return Err(fail("an IPv6 address stands in brackets"));
    }
    let mut found: Vec<SocketAddr> = match (bare.unwrap_or(host), port).to_socket_addrs() {
        Ok(found) => found.collect(),
        Err(e) => return Err(fail("no such host").because(e)),
    };
    found.dedup();
    Ok(found)
}

/// Whether the machine has no such address or family.
fn is_absent(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::AddrNotAvailable || e.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

fn remove_stale(path: &Path) -> Result<()> {
    let fail = |e| Error::io("cannot replace", e).at(path);
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(fail(e)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(Error::new(Kind::Exists, "not a socket").at(path));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(fail)
        }
        Err(e) => Err(fail(e)),
        Ok(_) => Err(Error::new(Kind::Exists, "somebody listens already").at(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn none(_: &str) -> Option<OsString> {
        None
    }

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let path = std::env::temp_dir().join(format!("cyrb-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Dir(path)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn addresses_in_all_their_forms() {
        let one = |s: &str| addresses(s).unwrap()[0].to_string();
        assert_eq!(one("127.0.0.1:2005"), "127.0.0.1:2005");
        assert_eq!(one("[::1]:2005"), "[::1]:2005");
        assert_eq!(one("[127.0.0.1]:1"), "127.0.0.1:1");
        for all in ["2005", ":2005", "*:2005"] {
            let found = addresses(all).unwrap();
            assert_eq!(found[0].to_string(), "[::]:2005");
            assert_eq!(found[1].to_string(), "0.0.0.0:2005");
        }
        for bad in [
            "",
            "::1:2005",
            "localhost",
            "127.0.0.1:",
            "127.0.0.1:70000",
            "127.0.0.1:csync",
            "[::1",
            "no.such.host.invalid:1",
        ] {
            let e = addresses(bad).unwrap_err();
            assert_eq!(e.kind(), Kind::Config, "{bad}");
        }
    }

    #[test]
    fn tcp_listens_on_what_exists_and_accepts_without_blocking() {
        let all = Listener::tcp("127.0.0.1:0").unwrap();
        assert_eq!(all.len(), 1);
        let e = all[0].accept().unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
        let addr = all[0].local_addr().unwrap();
        let client = std::net::TcpStream::connect(addr).unwrap();
        let (stream, peer) = all[0].accept().unwrap();
        assert_eq!(peer, Peer::Tcp(client.local_addr().unwrap()));
        stream.tune(Some(Keepalive::default())).unwrap();

        let busy = Listener::tcp(&addr.to_string()).unwrap_err();
        assert_eq!(busy.kind(), Kind::Io);
        let absent = Listener::tcp("192.0.2.1:0").unwrap_err();
        assert_eq!(absent.kind(), Kind::Config);
        assert!(!Listener::tcp("0").unwrap().is_empty());
    }

    #[test]
    fn a_socket_file_is_private_and_replaced_only_when_dead() {
        let dir = Dir::new("unix");
        let path = dir.0.join("s");
        let live = Listener::unix(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0);
        let _client = UnixStream::connect(&path).unwrap();
        assert!(matches!(live.accept().unwrap().1, Peer::Unix { .. }));
        let e = Listener::unix(&path).unwrap_err();
        assert_eq!(e.kind(), Kind::Exists);
        drop(live);
        assert!(!path.exists());

        // Left behind by one that was killed.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let first = Listener::unix(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = Listener::unix(&path).unwrap();
        drop(first);
        assert!(path.exists(), "a successor's file is left alone");
        drop(second);

        fs::write(&path, "mail").unwrap();
        let e = Listener::unix(&path).unwrap_err();
        assert_eq!(e.kind(), Kind::Exists);
        assert_eq!(fs::read(&path).unwrap(), b"mail");
        let e = Listener::unix(&dir.0.join("x".repeat(200))).unwrap_err();
        assert_eq!(e.kind(), Kind::Config);
    }

    #[test]
    fn configuration_is_the_last_resort() {
        let e = Listeners::open(&Sources::default(), none, 1).unwrap_err();
        assert_eq!(e.kind(), Kind::Config);
        let mut sources = Sources {
            config_listen: vec!["127.0.0.1:0".into()],
            ..Sources::default()
        };
        let all = Listeners::open(&sources, none, 1).unwrap();
        assert_eq!(all.sockets.len(), 1);
        sources.listen = vec!["127.0.0.1:0".into(), "127.0.0.1:0".into()];
        let all = Listeners::open(&sources, none, 1).unwrap();
        assert_eq!(all.sockets.len(), 2);
        assert!(all.master.is_none());
    }

    #[test]
    fn systemd_speaks_to_one_process_only() {
        let env = |pid: &'static str, fds: &'static str| {
            move |key: &str| match key {
                "LISTEN_PID" => Some(OsString::from(pid)),
                "LISTEN_FDS" => Some(OsString::from(fds)),
                _ => None,
            }
        };
        assert_eq!(systemd(env("7", "2"), 7).unwrap(), 3..5);
        assert_eq!(systemd(env("8", "2"), 7).unwrap(), 0..0);
        assert_eq!(systemd(none, 7).unwrap(), 0..0);
        for bad in ["", "-1", "33", "99999999999", "x"] {
            assert!(systemd(env("7", bad), 7).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_inherited_socket_must_listen_and_gets_its_mode_back() {
        let e = Listener::inherited(fs::File::open("/dev/null").unwrap().into(), "x".into());
        assert_eq!(e.unwrap_err().kind(), Kind::Config);
        let (a, _b) = UnixStream::pair().unwrap();
        let e = Listener::inherited(a.into(), "x".into());
        assert_eq!(e.unwrap_err().kind(), Kind::Config);

        let dir = Dir::new("inherited");
        let socket = UnixListener::bind(dir.0.join("s")).unwrap();
        let other = socket.try_clone().unwrap();
        let listener = Listener::inherited(socket.into(), "x".into()).unwrap();
        assert!(other.accept().is_err(), "the mode is shared");
        other.set_nonblocking(false).unwrap();
        let e = listener.accept().unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
        drop(listener);
        let wait = std::thread::spawn(move || other.accept().map(|_| ()));
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!wait.is_finished());
        UnixStream::connect(dir.0.join("s")).unwrap();
        wait.join().unwrap().unwrap();
    }
}
