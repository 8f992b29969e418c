//! Who this process is, what it may, and who is at the other end of a socket.
//!
//! Thin wrappers around libc: they do what they are told and verify it, and decide nothing. The
//! change of user is for the whole process (the C library sees to all threads) and cannot be undone.

use crate::error::{Error, Kind, Result};
use std::ffi::{CStr, CString};
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Room for a record of the user or group database; names in it are short, member lists not.
const RECORD_BYTES_MAX: usize = 1 << 20;

/// What [`become_user`] found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Became {
    /// We were root and are now the user with this id.
    Switched(u32),
    /// We were that user already.
    Already,
    /// We are neither root nor that user, but this one; nothing was changed.
    Other(u32),
}

/// If root: takes on `user`'s id, the group `group` and the user's supplementary groups, for good. Other
/// processes of that user may look at this one then, as at any of theirs.
///
/// `Kind::Config` when user or group do not exist, `Kind::Internal` when the system would not, or
/// when root could be had back. After an error the process may be half changed: it must end.
pub fn become_user(user: &str, group: &str) -> Result<Became> {
    // SAFETY: no arguments, cannot fail.
    let euid = unsafe { libc::geteuid() };
    let missing = |what: &str, name: &str| Error::new(Kind::Config, format!("no {what} {name}"));
    let lookup = |e| Error::io("cannot look up user", e).place(user);
    let record = user_record(user).map_err(lookup)?;
    if euid != 0 {
        // A user we cannot find is not us.
        return Ok(match record {
            Some((uid, _)) if uid == euid => Became::Already,
            _ => Became::Other(euid),
        });
    }
    let (uid, _) = record.ok_or_else(|| missing("user", user))?;
    let gid = gid_of(group)
        .map_err(|e| Error::io("cannot look up group", e).place(group))?
        .ok_or_else(|| missing("group", group))?;
    let fail = |what: &str| Error::io(what, io::Error::last_os_error()).with_kind(Kind::Internal);
    let name = c_string(user).map_err(lookup)?;
    // SAFETY: `name` is NUL-terminated and outlives the call.
    if unsafe { libc::initgroups(name.as_ptr(), gid) } != 0 {
        return Err(fail("cannot set groups").place(user));
    }
    // SAFETY: plain numbers.
    if unsafe { libc::setgid(gid) } != 0 {
        return Err(fail("cannot set group").place(group));
    }
    // SAFETY: plain numbers. The group went first: after this we may no more.
    if unsafe { libc::setuid(uid) } != 0 {
        return Err(fail("cannot set user").place(user));
    }
    if ids()? != ([uid; 3], [gid; 3]) {
        return Err(Error::new(Kind::Internal, "user did not change").place(user));
    }
    // SAFETY: plain numbers.
    if uid != 0 && unsafe { libc::setuid(0) } == 0 {
        return Err(Error::new(Kind::Internal, "root could be had back").place(user));
    }
    // Who changes its user is closed even to that user's other processes: its pages in /proc are root's,
    // and who wants a lock that it holds could not be told whose it is. This makes it like one
    // that was started as that user. So it may dump core, too, if the limit of core files lets it; that
    // file is the user's, who may read all the mail that could be in it. Children that are executed
    // are so in any case. It cannot fail for this value, and all else works without it.
    // SAFETY: plain numbers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
    Ok(Became::Switched(uid))
}

/// Real, effective and saved user and group ids.
fn ids() -> Result<([u32; 3], [u32; 3])> {
    let (mut u, mut g) = ([0; 3], [0; 3]);
    let [u0, u1, u2] = &mut u;
    let [g0, g1, g2] = &mut g;
    // SAFETY: six distinct places for one id each.
    let failed = unsafe { libc::getresuid(u0, u1, u2) != 0 || libc::getresgid(g0, g1, g2) != 0 };
    if failed {
        let e = io::Error::last_os_error();
        return Err(Error::io("cannot read ids", e).with_kind(Kind::Internal));
    }
    Ok((u, g))
}

/// The effective user id.
pub fn current_uid() -> u32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() }
}

/// The id of a user by name; `None` when there is none.
pub fn uid_of(user: &str) -> io::Result<Option<u32>> {
    Ok(user_record(user)?.map(|(uid, _)| uid))
}

/// A user's id and primary group.
fn user_record(user: &str) -> io::Result<Option<(u32, u32)>> {
    let name = c_string(user)?;
    with_room(|room| {
        let mut record = MaybeUninit::<libc::passwd>::uninit();
        let mut found = std::ptr::null_mut();
        // SAFETY: `name` is NUL-terminated, `record` and `found` are writable, `room` has the
        // length given.
        let code = unsafe {
            libc::getpwnam_r(
                name.as_ptr(),
                record.as_mut_ptr(),
                room.as_mut_ptr(),
                room.len(),
                &mut found,
            )
        };
        if found.is_null() {
            return (code, None);
        }
        // SAFETY: a found record is filled in; only its numbers are read.
        let record = unsafe { record.assume_init() };
        (code, Some((record.pw_uid, record.pw_gid)))
    })
}

/// The id of a group by name.
fn gid_of(group: &str) -> io::Result<Option<u32>> {
    let name = c_string(group)?;
    with_room(|room| {
        let mut record = MaybeUninit::<libc::group>::uninit();
        let mut found = std::ptr::null_mut();
        // SAFETY: as in `user_record`.
        let code = unsafe {
            libc::getgrnam_r(
                name.as_ptr(),
                record.as_mut_ptr(),
                room.as_mut_ptr(),
                room.len(),
                &mut found,
            )
        };
        if found.is_null() {
            return (code, None);
        }
        // SAFETY: a found record is filled in; only its number is read.
        (code, Some(unsafe { record.assume_init() }.gr_gid))
    })
}

/// Calls a lookup with more and more room until it has enough.
fn with_room<T>(lookup: impl Fn(&mut [libc::c_char]) -> (i32, Option<T>)) -> io::Result<Option<T>> {
    let mut room = vec![0; 1024];
    loop {
        match lookup(&mut room) {
            (_, Some(found)) => return Ok(Some(found)),
            (libc::ERANGE, None) if room.len() < RECORD_BYTES_MAX => room.resize(room.len() * 4, 0),
            (libc::EINTR, None) => {}
            // The manual lists all of these for "not found".
            (0 | libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM, None) => return Ok(None),
            (code, None) => return Err(io::Error::from_raw_os_error(code)),
        }
    }
}

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}

/// Sets the mask for new files, for the whole process.
pub fn set_umask(mask: u32) {
    // SAFETY: a plain number; cannot fail.
    unsafe { libc::umask(mask & 0o777) };
}

/// Unblocks INT, QUIT, TERM, CHLD and HUP, which Cyrus master may have left blocked, in the calling
/// thread and those it starts. What the signals do is not changed.
pub fn unblock_signals() -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset fills in the set that sigaddset then changes; the old mask is not asked for.
    let code = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in SIGNALS {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut())
    };
    match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

const SIGNALS: [i32; 5] = [
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGCHLD,
    libc::SIGHUP,
];

/// Raises the limit on open files to what the system allows us and returns what now holds.
pub fn raise_nofile() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is writable and of the right type.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        // The least POSIX grants; the call cannot fail for a known resource.
        return 20;
    }
    let wanted = libc::rlimit {
        rlim_cur: limit.rlim_max,
        ..limit
    };
    // SAFETY: `wanted` is readable and of the right type.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &wanted) } {
        0 => wanted.rlim_cur,
        _ => limit.rlim_cur,
    }
}

/// Who connected a UNIX socket: user, group and process id at that time.
pub fn peer_cred(fd: BorrowedFd<'_>) -> io::Result<(u32, u32, i32)> {
    let mut cred = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `cred` is writable, `len` is its size, the descriptor is open while borrowed.
    let code = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast(),
            &mut len,
        )
    };
    if code != 0 {
        return Err(io::Error::last_os_error());
    }
    // Sockets that have no such peer answer with -1 for both ids.
    if len as usize != size_of::<libc::ucred>() || cred.uid == u32::MAX {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok((cred.uid, cred.gid, cred.pid))
}

/// The host's name, `localhost` if it cannot be had.
pub fn host_name() -> String {
    let mut name = [0u8; 256];
    // SAFETY: the length is one less than the array's, so a NUL stays at its end.
    let code = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    match CStr::from_bytes_until_nul(&name) {
        Ok(name) if code == 0 && !name.is_empty() => name.to_string_lossy().into_owned(),
        _ => "localhost".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn users_are_found_or_not() {
        assert_eq!(uid_of("root").unwrap(), Some(0));
        assert_eq!(uid_of("no-such-user-here").unwrap(), None);
        assert!(uid_of("a\0b").is_err());
        assert_eq!(gid_of("root").unwrap(), Some(0));
        assert_eq!(gid_of("no-such-group-here").unwrap(), None);
    }

    #[test]
    fn a_lookup_gets_more_room() {
        let found = with_room(|room| match room.len() {
            n if n < 60_000 => (libc::ERANGE, None),
            n => (0, Some(n)),
        });
        assert_eq!(found.unwrap(), Some(65_536));
        let e = with_room::<()>(|_| (libc::ERANGE, None)).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::ERANGE));
        assert_eq!(with_room::<()>(|_| (libc::ENOENT, None)).unwrap(), None);
    }

    #[test]
    fn the_peer_of_a_socket_pair_is_us() {
        let (a, _b) = UnixStream::pair().unwrap();
        let (uid, _, pid) = peer_cred(a.as_fd()).unwrap();
        assert_eq!(uid, current_uid());
        assert_eq!(pid as u32, std::process::id());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(peer_cred(file.as_fd()).is_err());
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(peer_cred(tcp.as_fd()).is_err());
    }

    #[test]
    fn nofile_reaches_the_hard_limit() {
        let now = raise_nofile();
        assert!(now >= 20);
        assert_eq!(raise_nofile(), now);
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        let line = limits
            .lines()
            .find(|l| l.starts_with("Max open files"))
            .unwrap();
        let fields: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(fields[3], fields[4]);
        assert_eq!(fields[3], now.to_string());
    }

    /// The thread's blocked signals, as a bit mask.
    fn blocked() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find(|l| l.starts_with("SigBlk:")).unwrap();
        u64::from_str_radix(line[7..].trim(), 16).unwrap()
    }

    #[test]
    fn signals_are_unblocked() {
        // In a thread of its own: a mask belongs to a thread.
        std::thread::spawn(|| {
            let bits = SIGNALS.iter().fold(0u64, |m, s| m | 1 << (s - 1));
            let usr1 = 1u64 << (libc::SIGUSR1 - 1);
            let mut all = MaybeUninit::<libc::sigset_t>::uninit();
            // SAFETY: sigfillset fills in the set before it is read.
            unsafe {
                libc::sigfillset(all.as_mut_ptr());
                libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut());
            }
            assert_eq!(blocked() & (bits | usr1), bits | usr1);
            unblock_signals().unwrap();
            assert_eq!(blocked() & (bits | usr1), usr1);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_host_has_a_name() {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        assert_eq!(host_name(), name.trim_end());
    }

    #[test]
    fn changing_user() {
        // In a child, because it cannot be undone; the child is this test.
        const MARK: &str = "CYR_BACKUP_TEST_BECOME";
        if let Ok(user) = std::env::var(MARK) {
            let (name, uid) = user.split_once(':').unwrap();
            let uid: u32 = uid.parse().unwrap();
            let e = become_user("no-such-user-here", "nogroup").unwrap_err();
            assert_eq!(e.kind(), Kind::Config);
            let e = become_user(name, "no-such-group-here").unwrap_err();
            assert_eq!(e.kind(), Kind::Config);
            assert_eq!(current_uid(), 0);
            assert_eq!(become_user(name, "mail").unwrap(), Became::Switched(uid));
            assert_eq!(current_uid(), uid);
            use std::os::unix::fs::MetadataExt;
            let page = std::fs::metadata("/proc/self/fdinfo").unwrap();
            assert_eq!(page.uid(), uid, "our pages are that user's");
            assert_eq!(become_user(name, "mail").unwrap(), Became::Already);
            assert_eq!(become_user("root", "root").unwrap(), Became::Other(uid));
            let groups = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = groups.lines().find(|l| l.starts_with("Groups:")).unwrap();
            assert!(!line.split_whitespace().any(|g| g == "0"), "{line}");
            set_umask(0o027);
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            assert!(status.contains("Umask:\t0027"));
            return;
        }
        if current_uid() != 0 {
            eprintln!("skipped: not root");
            return;
        }
        let candidates = ["cyrus", "nobody"];
        let user = candidates
            .iter()
            .find_map(|n| Some((n, uid_of(n).ok()??)))
            .filter(|_| gid_of("mail").is_ok_and(|g| g.is_some()));
        let Some((name, uid)) = user else {
            eprintln!("skipped: no user to become");
            return;
        };
        let exe = std::fs::read_link("/proc/self/exe").unwrap();
        let child = std::process::Command::new(exe)
            .args(["--exact", "sys::identity::tests::changing_user"])
            .env(MARK, format!("{name}:{uid}"))
            .output()
            .unwrap();
        let shown = String::from_utf8_lossy(&child.stdout).into_owned();
        assert!(
            child.status.success() && shown.contains("1 passed"),
            "{shown}"
        );
    }
}
