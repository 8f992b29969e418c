//! Being a service of Cyrus master(8): what it hands us, and the status messages it reads.
//!
//! A process started by a SERVICES line finds the listening socket on descriptor 4, the write end of a status
//! pipe on descriptor 3 and its entry's name in CYRUS_SERVICE. Messages are optional for master; they are never
//! waited for long, and a pipe nobody reads any more is not an error of ours: `Status::gone` tells.
//!
//! Whose format: Cyrus 3.6 master/service.h (same in 3.0 to 3.13).
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | message, C int, native order |
//! | 4 | 4 | pid of the sender, native order |

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::sys::fd;

/// The write end of the status pipe.
const STATUS_FD: i32 = 3;

/// The listening socket.
const LISTEN_FD: i32 = 4;

/// Bytes of one message.
pub const MESSAGE_BYTES: usize = 8;

/// What a service tells master about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Ready for connections again. From a process that is ready master logs a warning.
    Available = 1,
    /// Takes no more connections: another process may be forked.
    Unavailable = 2,
    /// A process for one connection took one.
    Connection = 3,
    /// A process for many connections took one more and stays ready.
    ConnectionMulti = 4,
}

/// The bytes of `message` sent by process `pid`.
pub fn encode(message: Message, pid: u32) -> [u8; MESSAGE_BYTES] {
    let mut out = [0; MESSAGE_BYTES];
    out[..4].copy_from_slice(&(message as u32).to_ne_bytes());
    out[4..].copy_from_slice(&pid.to_ne_bytes());
    out
}

/// What master says about us in the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The entry's name in cyrus.conf.
    pub name: String,
    /// Which address of the entry this process serves, from 0.
    pub id: u32,
}

impl Service {
    /// Reads the environment through `var`. `None`: not a service of master (also for a DAEMON entry, which
    /// has no socket).
    pub fn detect(var: impl Fn(&str) -> Option<OsString>) -> Option<Service> {
        let name = var("CYRUS_SERVICE")?;
        if name.is_empty() || var("CYRUS_ISDAEMON").is_some() {
            return None;
        }
        let id = var("CYRUS_ID").and_then(|id| id.to_str()?.parse().ok());
        Some(Service {
            name: name.to_string_lossy().into_owned(),
            id: id.unwrap_or(0),
        })
    }

    /// Takes over the socket and the status pipe. Once per process, before anything else is opened;
    /// `Kind::Config` when the environment promises what is not there.
    pub fn inherit(&self) -> Result<(OwnedFd, Status)> {
        let take = |number, expect, what| {
            fd::inherit(number, expect).map_err(|e| {
                Error::new(Kind::Config, format!("cannot take over {what} from master"))
                    .place(format!("descriptor {number}"))
                    .because(e)
            })
        };
        let status = take(STATUS_FD, fd::Expect::Pipe, "the status pipe")?;
        let socket = take(LISTEN_FD, fd::Expect::Listener, "the listening socket")?;
        Ok((socket, Status::new(status)))
    }
}

/// The status pipe to master.
#[derive(Debug)]
pub struct Status {
    pipe: File,
}

impl Status {
    /// A status pipe on `pipe`, its write end.
    pub fn new(pipe: OwnedFd) -> Status {
        Status {
            pipe: File::from(pipe),
        }
    }

    /// Sends one message about this process, waiting at most `patience` for room in the pipe. `TimedOut` when
    /// there is none, `BrokenPipe` when master is gone.
    pub fn send(&self, message: Message, patience: Duration) -> io::Result<()> {
        // The pipe blocks and is shared with our siblings, so it stays as it is; a pipe that polls writable has
        // room for a page.
        if fd::poll(&mut [fd::Watch::writable(self.fd())], Some(patience))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        (&self.pipe).write_all(&encode(message, std::process::id()))
    }

    /// Whether master is gone.
    pub fn gone(&self) -> bool {
        let mut watch = [fd::Watch::broken(self.fd())];
        fd::poll(&mut watch, Some(Duration::ZERO)).is_ok_and(|_| watch[0].is_broken())
    }

    /// The pipe, to wait for its breaking.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn env(pairs: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
        move |key| {
            let pair = pairs.iter().find(|(k, _)| *k == key)?;
            Some(OsString::from(pair.1))
        }
    }

    #[test]
    fn message_is_as_master_reads_it() {
        // Bytes seen on a little-endian machine.
        if cfg!(target_endian = "little") {
            assert_eq!(
                encode(Message::ConnectionMulti, 0x5e41),
                [4, 0, 0, 0, 0x41, 0x5e, 0, 0]
            );
        }
        assert_eq!(encode(Message::Unavailable, 7)[..4], 2u32.to_ne_bytes());
        assert_eq!(encode(Message::Unavailable, 7)[4..], 7u32.to_ne_bytes());
    }

    #[test]
    fn environment_tells_service_from_daemon_and_shell() {
        assert_eq!(Service::detect(env(&[])), None);
        assert_eq!(Service::detect(env(&[("CYRUS_SERVICE", "")])), None);
        assert_eq!(
            Service::detect(env(&[("CYRUS_SERVICE", "x"), ("CYRUS_ISDAEMON", "1")])),
            None
        );
        assert_eq!(
            Service::detect(env(&[("CYRUS_SERVICE", "backupd"), ("CYRUS_ID", "1")])),
            Some(Service {
                name: "backupd".into(),
                id: 1
            })
        );
        let odd = Service::detect(env(&[("CYRUS_SERVICE", "b"), ("CYRUS_ID", "-x")]));
        assert_eq!(odd.map(|s| s.id), Some(0));
    }

    #[test]
    fn status_writes_whole_messages_and_notices_the_end() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let status = Status::new(ours.into());
        let patience = Duration::from_millis(20);
        status.send(Message::ConnectionMulti, patience).unwrap();
        let mut got = [0; MESSAGE_BYTES];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(got, encode(Message::ConnectionMulti, std::process::id()));
        assert!(!status.gone());
        drop(theirs);
        assert!(status.gone());
        assert!(status.send(Message::Unavailable, patience).is_err());
    }

    #[test]
    fn a_full_pipe_is_not_waited_for() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        while (&ours).write(&[0; 4096]).is_ok() {}
        let status = Status::new(ours.into());
        let e = status
            .send(Message::Unavailable, Duration::from_millis(20))
            .unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::TimedOut);
    }
}
