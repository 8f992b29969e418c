//! A terminal that does not show what is typed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Keeps a terminal from echoing, until it is dropped.
///
/// Keys that send signals are off as well, as in getpass(3): a Ctrl-C would end the program and
/// leave the terminal mute. They arrive as control characters in the line.
pub struct NoEcho<'a> {
    fd: BorrowedFd<'a>,
    before: libc::termios,
}

impl<'a> NoEcho<'a> {
    /// Silences `terminal` and drops what was typed ahead. Fails if it is not a terminal.
    pub fn new(terminal: &'a impl AsFd) -> io::Result<NoEcho<'a>> {
        let fd = terminal.as_fd();
        // SAFETY: termios is plain integers, for which all bits zero is a valid value.
        let mut before: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: `fd` is borrowed and so open, and `before` outlives the call.
        if unsafe { libc::tcgetattr(fd.as_raw_fd(), &mut before) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut silent = before;
        silent.c_lflag &= !(libc::ECHO | libc::ISIG);
        silent.c_lflag |= libc::ECHONL;
        set(fd, &silent)?;
        Ok(NoEcho { fd, before })
    }
}

impl Drop for NoEcho<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = set(self.fd, &self.before);
    }
}

fn set(fd: BorrowedFd<'_>, to: &libc::termios) -> io::Result<()> {
    // SAFETY: `fd` is borrowed and so open, and `to` is only read.
    match unsafe { libc::tcsetattr(fd.as_raw_fd(), libc::TCSAFLUSH, to) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::FromRawFd;
    use std::ptr::null_mut;

    fn flags(terminal: &File) -> libc::tcflag_t {
        // SAFETY: as in `NoEcho::new`.
        let mut t: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: as in `NoEcho::new`.
        assert_eq!(unsafe { libc::tcgetattr(terminal.as_raw_fd(), &mut t) }, 0);
        t.c_lflag
    }

    #[test]
    fn echo_goes_and_comes_back() {
        let (mut a, mut b) = (-1, -1);
        let (name, modes, size) = (null_mut(), null_mut(), null_mut());
        // SAFETY: both descriptors are written before the call returns 0; null pointers ask for
        // the defaults.
        let rc = unsafe { libc::openpty(&mut a, &mut b, name, modes, size) };
        if rc != 0 {
            eprintln!("skipped: no pseudo-terminals here");
            return;
        }
        // SAFETY: openpty made both descriptors and nobody else owns them.
        let (_master, terminal) = unsafe { (File::from_raw_fd(a), File::from_raw_fd(b)) };
        let before = flags(&terminal);
        assert_ne!(before & libc::ECHO, 0);
        let guard = NoEcho::new(&terminal).unwrap();
        assert_eq!(flags(&terminal) & (libc::ECHO | libc::ISIG), 0);
        drop(guard);
        assert_eq!(flags(&terminal), before);
    }

    #[test]
    fn a_file_is_no_terminal() {
        assert!(NoEcho::new(&File::open("/dev/null").unwrap()).is_err());
    }
}
