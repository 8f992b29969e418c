//! The thread that waits on all listening sockets and accepts when the supervisor has room.
//!
//! Promises: a connection that cannot be served yet stays in the kernel's backlog, not half open in our hands; the
//! sockets are closed (or given back as they were) when `run` returns. Transient errors of accept are waited
//! out and logged once; one that says the socket is of no use any more ends the thread with it.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use crossbeam_channel::Sender;

use super::listen::Listener;
use super::stop::{DrainKind, Stop};
use super::stream::{Keepalive, Peer, Stream};
use crate::sys::fd;

/// Descriptors kept free for the sessions there are: what one of them may open at most, and some for the log.
const SPARE_DESCRIPTORS: u64 = 64;

/// How long to wait when descriptors or memory ran out.
const EXHAUSTED: Duration = Duration::from_secs(1);

/// How long to wait when the network is down.
const NETWORK_DOWN: Duration = Duration::from_millis(50);

/// The acceptor: who owns the listening sockets.
pub(super) struct Acceptor {
    pub sockets: Vec<Listener>,
    pub keepalive: Option<Keepalive>,
    pub stop: Stop,
    /// Rendezvous: returns when the supervisor has room for one more.
    pub knock: Sender<()>,
    /// Rendezvous: what was accepted after that.
    pub accepted: Sender<(Stream, Peer)>,
}

impl Acceptor {
    /// Blocks until the process drains, or no socket is left (`stop` is raised then), or accept fails for good.
    pub fn run(mut self) -> io::Result<()> {
        let mut starved = false;
        loop {
            let Some(ready) = self.wait()? else {
                return Ok(());
            };
            let mut closed = Vec::new();
            for i in ready {
                let spare = has_spare_descriptors();
                if spare && self.knock.send(()).is_err() {
                    return Ok(());
                }
                let after = match self.sockets.get(i) {
                    Some(socket) if spare => self.accept(socket)?,
                    _ => After::Wait(EXHAUSTED, io::Error::from_raw_os_error(libc::EMFILE)),
                };
                match after {
                    After::Accepted => starved = false,
                    After::Again => {}
                    After::Closed => closed.push(i),
                    After::Wait(time, why) => {
                        if !std::mem::replace(&mut starved, true) {
                            log::error!("IOERROR: cannot accept, waiting: error=<{why}>");
                        }
                        self.pause(time)?;
                    }
                }
            }
            for i in closed.into_iter().rev() {
                let gone = self.sockets.remove(i);
                log::info!("listener was shut down listener=<{}>", gone.name());
            }
            if self.sockets.is_empty() {
                self.stop.begin(DrainKind::Hup);
                return Ok(());
            }
        }
    }

    /// Which sockets have a connection waiting; `None` when the process drains.
    fn wait(&self) -> io::Result<Option<Vec<usize>>> {
        let mut on: Vec<_> = self
            .sockets
            .iter()
            .map(|s| fd::Watch::readable(s.as_fd()))
            .collect();
        on.push(fd::Watch::readable(self.stop.fd(DrainKind::Hup)));
        fd::poll(&mut on, None)?;
        let mut ready: Vec<usize> = (0..on.len()).filter(|i| on[*i].is_ready()).collect();
        // The flag is the last one.
        if ready.last() == Some(&self.sockets.len()) {
            return Ok(None);
        }
        ready.truncate(self.sockets.len());
        Ok(Some(ready))
    }

    fn accept(&self, socket: &Listener) -> io::Result<After> {
        match socket.accept() {
            Ok((stream, peer)) => {
                if let Err(e) = stream.tune(self.keepalive) {
                    log::debug!("cannot tune socket peer={peer} error=<{e}>");
                }
                // The supervisor takes what was accepted until this thread has ended.
                let _ = self.accepted.send((stream, peer));
                Ok(After::Accepted)
            }
            Err(e) => judge(e),
        }
    }

    fn pause(&self, time: Duration) -> io::Result<()> {
        let mut on = [fd::Watch::readable(self.stop.fd(DrainKind::Hup))];
        fd::poll(&mut on, Some(time)).map(|_| ())
    }
}

/// What to do after an accept.
enum After {
    Accepted,
    Again,
    Wait(Duration, io::Error),
    /// Somebody called shutdown on the socket: master does when the entry leaves cyrus.conf.
    Closed,
}

fn judge(e: io::Error) -> io::Result<After> {
    Ok(match e.raw_os_error().unwrap_or(0) {
        libc::EINTR | libc::EAGAIN | libc::ECONNABORTED | libc::ECONNRESET => After::Again,
        // Linux hands over errors that wait on the new connection: accept(2).
        libc::EPROTO
        | libc::ENETDOWN
        | libc::ENOPROTOOPT
        | libc::EHOSTDOWN
        | libc::ENONET
        | libc::EHOSTUNREACH
        | libc::EOPNOTSUPP
        | libc::ENETUNREACH
        | libc::ETIMEDOUT
        | libc::ENOTCONN
        | libc::EPERM => After::Wait(NETWORK_DOWN, e),
        libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => After::Wait(EXHAUSTED, e),
        libc::EINVAL => After::Closed,
        _ => return Err(e),
    })
}

/// Whether one more connection leaves enough descriptors for all. True if nobody can tell.
fn has_spare_descriptors() -> bool {
    let (Ok(limit), Ok(open)) = (fd::nofile_limit(), std::fs::read_dir("/proc/self/fd")) else {
        return true;
    };
    let open = u64::try_from(open.count()).unwrap_or(u64::MAX);
    open.saturating_add(SPARE_DESCRIPTORS.min(limit / 4)) <= limit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_accept_are_told_apart() {
        let judge = |code| judge(io::Error::from_raw_os_error(code));
        assert!(matches!(judge(libc::EAGAIN), Ok(After::Again)));
        assert!(matches!(judge(libc::ECONNABORTED), Ok(After::Again)));
        assert!(matches!(judge(libc::EMFILE), Ok(After::Wait(EXHAUSTED, _))));
        assert!(matches!(
            judge(libc::ENETDOWN),
            Ok(After::Wait(NETWORK_DOWN, _))
        ));
        assert!(matches!(judge(libc::EINVAL), Ok(After::Closed)));
        assert!(judge(libc::EBADF).is_err() && judge(libc::ENOTSOCK).is_err());
    }
}
