//! Descriptors: those a starter hands over, waiting on several at once, and what std cannot ask a socket.
//!
//! Promises: every function is safe to call with any argument; a descriptor number is given out as owned
//! at most once in the life of the process. Fails with the error of the system call; nothing here retries but
//! `poll`, which goes on after a signal. Decides nothing: what an error means is the caller's business.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Descriptor numbers that `inherit` accepts are below this.
const INHERIT_MAX: RawFd = 64;

/// One bit for each number already given out by `inherit`.
static INHERITED: AtomicU64 = AtomicU64::new(0);

/// What a descriptor handed over must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// A pipe.
    Pipe,
    /// A listening stream socket.
    Listener,
}

/// Takes over descriptor `number` (3 to 63), left open for us by whoever started the process, and sets
/// close-on-exec on it. `EBADF` if it is not open, `EINVAL` if it is something else, `EBUSY` if it was taken
/// over before.
pub fn inherit(number: RawFd, expect: Expect) -> io::Result<OwnedFd> {
    if !(3..INHERIT_MAX).contains(&number) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: fcntl with F_GETFD takes plain integers; on a number that is not open it fails.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    check(flags)?;
    // SAFETY: it is open, as just seen, and not -1; the borrow ends with this function.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let fits = match expect {
        Expect::Pipe => is_pipe(fd)?,
        Expect::Listener => matches!(listening(fd), Ok(Some(_))),
    };
    if !fits {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let bit = 1u64 << number;
    if INHERITED.fetch_or(bit, Ordering::SeqCst) & bit != 0 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: plain integers.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, flags | libc::FD_CLOEXEC) })?;
    // SAFETY: the number is open, and the bit set above makes this the only time it is wrapped here. Nothing else
    // in the process owns it: what the starter left open was never given to a file of ours, and if the
    // environment lies, the number is free or a file or log socket of ours, which `expect` has ruled out.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn is_pipe(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel fills what the pointer shows, or fails.
    check(unsafe { libc::fstat(fd.as_raw_fd(), stat.as_mut_ptr()) })?;
    // SAFETY: fstat succeeded, so it is filled.
    let mode = unsafe { stat.assume_init() }.st_mode;
    Ok(mode & libc::S_IFMT == libc::S_IFIFO)
}

/// What a descriptor waits for, and what came.
#[derive(Debug)]
pub struct Watch<'a> {
    fd: BorrowedFd<'a>,
    events: libc::c_short,
    seen: libc::c_short,
}

impl<'a> Watch<'a> {
    /// Wait until `fd` can be read, or accepted from, or is at its end.
    pub fn readable(fd: BorrowedFd<'a>) -> Watch<'a> {
        Watch {
            fd,
            events: libc::POLLIN,
            seen: 0,
        }
    }

    /// Wait until `fd` can be written.
    pub fn writable(fd: BorrowedFd<'a>) -> Watch<'a> {
        Watch {
            fd,
            events: libc::POLLOUT,
            seen: 0,
        }
    }

    /// Wait for nothing but trouble: the write end of a pipe reports it when the last reader is gone.
    pub fn broken(fd: BorrowedFd<'a>) -> Watch<'a> {
        Watch {
            fd,
            events: 0,
            seen: 0,
        }
    }

    /// Whether the last `poll` had anything to say about it: ready, or an error or end that the next call on
    /// the descriptor will tell.
    pub fn is_ready(&self) -> bool {
        self.seen != 0
    }

    /// Whether the other side is gone.
    pub fn is_broken(&self) -> bool {
        self.seen & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0
    }
}

/// Waits until one of `watches` is ready, at most `timeout` (`None`: for ever); returns how many are.
/// Blocks. An interrupting signal does not end the wait nor lengthen it.
pub fn poll(watches: &mut [Watch<'_>], timeout: Option<Duration>) -> io::Result<usize> {
    let start = Instant::now();
    let mut raw: Vec<libc::pollfd> = watches
        .iter()
        .map(|w| libc::pollfd {
            fd: w.fd.as_raw_fd(),
            events: w.events,
            revents: 0,
        })
        .collect();
    let count = libc::nfds_t::try_from(raw.len()).unwrap_or(libc::nfds_t::MAX);
    loop {
        let left = match timeout {
            None => -1,
            Some(t) => millis(t.saturating_sub(start.elapsed())),
        };
        // SAFETY: the pointer and count describe `raw`, which lives across the call; every descriptor in it
        // is borrowed for as long as `watches`.
        let n = unsafe { libc::poll(raw.as_mut_ptr(), count, left) };
        match usize::try_from(n) {
            Ok(n) => {
                for (w, r) in watches.iter_mut().zip(&raw) {
                    w.seen = r.revents;
                }
                // A wait longer than poll can express is cut into pieces.
                let over = timeout.is_some_and(|t| start.elapsed() >= t);
                if n > 0 || over {
                    return Ok(n);
                }
            }
            Err(_) => {
                let e = io::Error::last_os_error();
                if e.kind() != io::ErrorKind::Interrupted {
                    return Err(e);
                }
            }
        }
    }
}

/// Milliseconds for poll, rounded up so that a short wait is not a busy loop.
fn millis(t: Duration) -> libc::c_int {
    let ms = t.as_nanos().div_ceil(1_000_000);
    libc::c_int::try_from(ms).unwrap_or(libc::c_int::MAX)
}

/// The family of a socket that is listening for streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4 or IPv6.
    Inet,
    /// A UNIX socket.
    Unix,
}

/// The family of `fd` if it is a listening stream socket, else `None`. `ENOTSOCK` if it is no socket.
pub fn listening(fd: BorrowedFd<'_>) -> io::Result<Option<Family>> {
    let kind = sockopt(fd, libc::SO_TYPE)?;
    let accepts = sockopt(fd, libc::SO_ACCEPTCONN)?;
    if kind != libc::SOCK_STREAM || accepts == 0 {
        return Ok(None);
    }
    Ok(match sockopt(fd, libc::SO_DOMAIN)? {
        libc::AF_INET | libc::AF_INET6 => Some(Family::Inet),
        libc::AF_UNIX => Some(Family::Unix),
        _ => None,
    })
}

fn sockopt(fd: BorrowedFd<'_>, option: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = len_of::<libc::c_int>();
    // SAFETY: value and len are ours, len is the size of value.
    check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            &raw mut len,
        )
    })?;
    Ok(value)
}

/// Who connected a UNIX socket, as the kernel knows it from the time of connect: uid, gid, pid.
pub fn peer_cred(fd: BorrowedFd<'_>) -> io::Result<(u32, u32, i32)> {
    let mut cred = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = len_of::<libc::ucred>();
    // SAFETY: cred and len are ours, len is the size of cred, which is plain integers.
    check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast(),
            &raw mut len,
        )
    })?;
    Ok((cred.uid, cred.gid, cred.pid))
}

/// Switches TCP keepalive on. Seconds of silence before the first probe, seconds between probes, probes before
/// giving up; 0 leaves the system's value.
pub fn keepalive(
    fd: BorrowedFd<'_>,
    idle_secs: u32,
    interval_secs: u32,
    count: u32,
) -> io::Result<()> {
    set_sockopt(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    for (option, value) in [
        (libc::TCP_KEEPIDLE, idle_secs),
        (libc::TCP_KEEPINTVL, interval_secs),
        (libc::TCP_KEEPCNT, count),
    ] {
        if value != 0 {
            set_sockopt(fd, libc::IPPROTO_TCP, option, value)?;
        }
    }
    Ok(())
}

fn set_sockopt(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: u32,
) -> io::Result<()> {
    let value = libc::c_int::try_from(value).unwrap_or(libc::c_int::MAX);
    // SAFETY: value is ours and lives across the call; the length given is its size.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            len_of::<libc::c_int>(),
        )
    })
}

fn len_of<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}

/// Sets the process' file mode mask and returns the previous one. It is one for all threads: call it before
/// there are any.
pub fn umask(mask: u32) -> u32 {
    // SAFETY: umask takes and returns an integer and cannot fail.
    unsafe { libc::umask(mask) }
}

/// Raises the soft limit of open descriptors to the hard limit; returns the limit now in force.
pub fn raise_nofile() -> io::Result<u64> {
    let mut limit = nofile()?;
    if limit.rlim_cur < limit.rlim_max {
        let hard = limit.rlim_max;
        limit.rlim_cur = hard;
        // SAFETY: limit is ours and initialised.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    }
    Ok(limit.rlim_cur)
}

/// The soft limit of open descriptors.
pub fn nofile_limit() -> io::Result<u64> {
    Ok(nofile()?.rlim_cur)
}

fn nofile() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: limit is ours; the kernel fills it.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    Ok(limit)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn inherit_refuses_what_is_not_there_and_what_is_ours_already() {
        for number in [-1, 0, 2, 64, 1000] {
            let e = inherit(number, Expect::Pipe).unwrap_err();
            assert_eq!(e.raw_os_error(), Some(libc::EBADF), "{number}");
        }
        let (a, b) = UnixStream::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        for fd in [a.as_fd(), b.as_fd(), null.as_fd()] {
            if fd.as_raw_fd() < INHERIT_MAX {
                for expect in [Expect::Pipe, Expect::Listener] {
                    let e = inherit(fd.as_raw_fd(), expect).unwrap_err();
                    assert_eq!(e.raw_os_error(), Some(libc::EINVAL));
                }
            }
        }
    }

    #[test]
    fn poll_sees_data_timeout_and_end() {
        use std::io::Write;
        let (a, mut b) = UnixStream::pair().unwrap();
        let mut w = [Watch::readable(a.as_fd()), Watch::writable(a.as_fd())];
        assert_eq!(poll(&mut w, None).unwrap(), 1);
        assert!(!w[0].is_ready() && w[1].is_ready());

        let start = Instant::now();
        let mut w = [Watch::readable(a.as_fd())];
        assert_eq!(poll(&mut w, Some(Duration::from_millis(30))).unwrap(), 0);
        assert!(start.elapsed() >= Duration::from_millis(30));
        assert!(!w[0].is_ready());

        b.write_all(b"x").unwrap();
        assert_eq!(poll(&mut w, None).unwrap(), 1);
        assert!(w[0].is_ready() && !w[0].is_broken());
        drop(b);
        assert_eq!(poll(&mut w, None).unwrap(), 1);
        assert!(w[0].is_ready() && w[0].is_broken());
    }

    #[test]
    fn listening_tells_families_and_refuses_the_rest() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(listening(tcp.as_fd()).unwrap(), Some(Family::Inet));
        let client = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        assert_eq!(listening(client.as_fd()).unwrap(), None);
        keepalive(client.as_fd(), 60, 0, 3).unwrap();
        let (a, _b) = UnixStream::pair().unwrap();
        assert_eq!(listening(a.as_fd()).unwrap(), None);
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(listening(udp.as_fd()).unwrap(), None);
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(listening(null.as_fd()).is_err());
        let dir = std::env::temp_dir().join(format!("cyrb-fd-{}", std::process::id()));
        let unix = UnixListener::bind(&dir).unwrap();
        std::fs::remove_file(&dir).unwrap();
        assert_eq!(listening(unix.as_fd()).unwrap(), Some(Family::Unix));
    }

    #[test]
    fn peer_is_this_process() {
        let (a, _b) = UnixStream::pair().unwrap();
        let (uid, gid, pid) = peer_cred(a.as_fd()).unwrap();
        let me = std::fs::metadata("/proc/self").unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!((uid, gid), (me.uid(), me.gid()));
        assert_eq!(u32::try_from(pid).unwrap(), std::process::id());
    }

    #[test]
    fn limit_is_raised_to_the_hard_one() {
        let raised = raise_nofile().unwrap();
        assert_eq!(nofile_limit().unwrap(), raised);
        assert_eq!(nofile().unwrap().rlim_max, raised);
    }

    #[test]
    fn a_broken_pipe_is_seen_without_asking_for_events() {
        // `true` leaves at once and takes the read end of its standard input with it.
        let mut child = std::process::Command::new("true")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pipe = child.stdin.take().unwrap();
        let mut w = [Watch::broken(pipe.as_fd())];
        assert_eq!(poll(&mut w, Some(Duration::from_secs(10))).unwrap(), 1);
        assert!(w[0].is_broken() && is_pipe(pipe.as_fd()).unwrap());
        child.wait().unwrap();
    }
}
