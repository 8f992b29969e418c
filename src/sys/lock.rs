//! Open-file-description locks on whole files.
//!
//! Promises: a lock here and a classical `fcntl` record lock of another program (Cyrus
//! `lib/lock_fcntl.c`) exclude each other, and so do two descriptions inside one process, which
//! classical locks and `flock` both fail to do. A lock ends when its description is unlocked or its
//! last descriptor is closed; closing another descriptor of the same file does not matter.
//! Converting a lock from one kind to the other is not atomic against waiters: unlock first.
//!
//! Fails with the system's error; a lock that is merely taken is `Ok(false)`, not an error.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// The longest pause between two attempts of a bounded wait.
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// The first pause of a bounded wait; each following one is twice as long.
const PAUSE_MIN: Duration = Duration::from_micros(100);

/// How a file is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// Shared with other readers; needs a readable descriptor.
    Read,
    /// Exclusive; needs a writable descriptor.
    Write,
}

/// Takes the lock if it is free; `Ok(false)` if somebody else's lock is in the way.
pub fn try_lock(file: &File, kind: LockKind) -> io::Result<bool> {
    match fcntl_lock(file, libc::F_OFD_SETLK, lock_type(kind)) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Waits for the lock: for ever if `limit` is `None`, else about that long, and then `Ok(false)`.
///
/// An interrupted wait goes on. The bounded wait asks again and again with growing pauses of at most
/// 50 ms, so a steady stream of other lockers may starve it.
pub fn lock_wait(file: &File, kind: LockKind, limit: Option<Duration>) -> io::Result<bool> {
    let Some(limit) = limit else {
        return fcntl_lock(file, libc::F_OFD_SETLKW, lock_type(kind)).map(|_| true);
    };
    let start = Instant::now();
    let mut pause = PAUSE_MIN;
    loop {
        if try_lock(file, kind)? {
            return Ok(true);
        }
        let left = limit.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(false);
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Gives the lock up; no error if there was none.
pub fn unlock(file: &File) -> io::Result<()> {
    fcntl_lock(file, libc::F_OFD_SETLK, libc::F_UNLCK as libc::c_short).map(|_| ())
}

/// Whose lock keeps `file` from being locked for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nobody's.
    Nobody,
    /// A classical lock of this process id.
    Process(u32),
    /// An open-file-description lock: the system does not say whose.
    Description,
}

/// Asks who is in the way of a write lock. The answer may be out of date at once.
pub fn holder(file: &File) -> io::Result<Holder> {
    let found = fcntl_lock(file, libc::F_OFD_GETLK, lock_type(LockKind::Write))?;
    if libc::c_int::from(found.l_type) == libc::F_UNLCK {
        return Ok(Holder::Nobody);
    }
    Ok(match u32::try_from(found.l_pid) {
        Ok(pid) if pid > 0 => Holder::Process(pid),
        _ => Holder::Description,
    })
}

fn lock_type(kind: LockKind) -> libc::c_short {
    match kind {
        LockKind::Read => libc::F_RDLCK as libc::c_short,
        LockKind::Write => libc::F_WRLCK as libc::c_short,
    }
}

/// One lock call for the whole file, repeated while a signal interrupts it.
fn fcntl_lock(file: &File, command: libc::c_int, kind: libc::c_short) -> io::Result<libc::flock> {
    loop {
        // SAFETY: flock is plain integers, for which all bits zero is a valid value. Zero is also
        // what start, length (to the end, however far it moves) and pid (required) must be.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = kind;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
        // SAFETY: the descriptor is open as long as `file` is borrowed, and `lock` outlives the call.
        let rc = unsafe { libc::fcntl(file.as_raw_fd(), command, &mut lock) };
        if rc != -1 {
            return Ok(lock);
        }
        let e = io::Error::last_os_error();
        if e.kind() != io::ErrorKind::Interrupted {
            return Err(e);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("cyr_backup-syslock-{}-{name}", std::process::id()))
    }

    fn open(path: &PathBuf) -> File {
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .unwrap()
    }

    #[test]
    fn two_descriptions_of_one_process_exclude_each_other() {
        let path = scratch("pair");
        let (a, b) = (open(&path), open(&path));
        assert!(try_lock(&a, LockKind::Read).unwrap());
        assert!(try_lock(&b, LockKind::Read).unwrap());
        assert!(!try_lock(&b, LockKind::Write).unwrap());
        assert_eq!(holder(&b).unwrap(), Holder::Description);
        // Closing an unrelated descriptor must not end the lock (a classical one would).
        drop(open(&path));
        assert!(!try_lock(&b, LockKind::Write).unwrap());
        unlock(&a).unwrap();
        assert!(try_lock(&b, LockKind::Write).unwrap());
        assert!(!try_lock(&a, LockKind::Read).unwrap());
        drop(b);
        assert!(try_lock(&a, LockKind::Write).unwrap());
        assert_eq!(holder(&a).unwrap(), Holder::Nobody);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_classical_lock_of_another_process_is_seen_and_excluded() {
        let path = scratch("classic");
        let file = open(&path);
        assert!(try_lock(&file, LockKind::Write).unwrap());
        let script = "use Fcntl; open(my $f, '+<', $ARGV[0]) or exit 9; \
            my $l = pack('s s l! l! i', F_WRLCK, 0, 0, 0, 0); \
            exit(fcntl($f, F_SETLK, $l) ? 0 : 1) if $ARGV[1] eq 'try'; \
            fcntl($f, F_SETLKW, $l) or exit 8; $| = 1; print \"held\\n\"; <STDIN>;";
        let tried = std::process::Command::new("perl")
            .args(["-e", script])
            .arg(&path)
            .arg("try")
            .status();
        let Ok(status) = tried else {
            eprintln!("skipped: no perl");
            return;
        };
        assert_eq!(status.code(), Some(1), "their lock must be refused");
        unlock(&file).unwrap();
        let mut child = std::process::Command::new("perl")
            .args(["-e", script])
            .arg(&path)
            .arg("hold")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut word = [0; 5];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut word).unwrap();
        assert!(!try_lock(&file, LockKind::Read).unwrap());
        assert_eq!(holder(&file).unwrap(), Holder::Process(child.id()));
        drop(child.stdin.take());
        assert!(lock_wait(&file, LockKind::Write, None).unwrap());
        child.wait().unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_bounded_wait_ends_and_a_freed_lock_is_taken() {
        let path = scratch("wait");
        let (a, b) = (open(&path), open(&path));
        assert!(try_lock(&a, LockKind::Write).unwrap());
        let start = Instant::now();
        assert!(!lock_wait(&b, LockKind::Read, Some(Duration::from_millis(60))).unwrap());
        assert!(start.elapsed() >= Duration::from_millis(60));
        let freeing = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(a);
        });
        assert!(lock_wait(&b, LockKind::Write, Some(Duration::from_secs(20))).unwrap());
        freeing.join().unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_write_lock_needs_a_writable_descriptor() {
        let path = scratch("readonly");
        drop(open(&path));
        let file = File::open(&path).unwrap();
        assert!(try_lock(&file, LockKind::Read).unwrap());
        assert!(try_lock(&file, LockKind::Write).is_err());
        std::fs::remove_file(path).unwrap();
    }
}
