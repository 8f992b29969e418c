//! The log: a backend of the `log` crate that writes to the system's log socket.
//!
//! Lines look as those of every Cyrus service: `<PRI>Mmm dd hh:mm:ss prefix/ident[pid]: text`, so
//! that existing filters find them; the name of a thread other than main stands before the text.
//! Control characters in a text are escaped: nobody writes a line of their own into the log.
//!
//! Logging never fails and never panics. A log daemon that is gone is looked for again with each
//! line; one that does not read holds a thread up once, for [`PATIENCE`], and after that not at all
//! until it reads again. What is lost is counted, and said when a line gets through.
#![forbid(unsafe_code)]

use crate::error::{Error, Kind, Result};
use crate::sys::clock;
use crate::util::time;
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Where log daemons listen.
const SOCKET: &str = "/dev/log";
/// The environment variable that names another socket, for tests.
const SOCKET_ENV: &str = "CYR_BACKUP_SYSLOG";
/// How long one line waits for a log daemon that does not read.
const PATIENCE: Duration = Duration::from_millis(500);
/// Longer texts are cut: log daemons would cut them elsewhere, or refuse them.
const TEXT_MAX_BYTES: usize = 8000;

/// The syslog facilities of Cyrus' `syslog_facility`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Facility {
    /// Processes of users.
    User,
    /// Mail, the usual one.
    Mail,
    /// Daemons without a facility of their own.
    Daemon,
    /// News.
    News,
    /// LOCAL0 to LOCAL7, by number; greater ones count as 7.
    Local(u8),
}

impl Facility {
    /// The facility of that name, in any case.
    pub fn from_name(name: &str) -> Option<Facility> {
        let name = name.to_ascii_uppercase();
        Some(match name.as_str() {
            "USER" => Facility::User,
            "MAIL" => Facility::Mail,
            "DAEMON" => Facility::Daemon,
            "NEWS" => Facility::News,
            _ => match name.strip_prefix("LOCAL")?.as_bytes() {
                [d @ b'0'..=b'7'] => Facility::Local(d - b'0'),
                _ => return None,
            },
        })
    }

    /// Its number in RFC 3164.
    fn code(self) -> u8 {
        match self {
            Facility::User => 1,
            Facility::Mail => 2,
            Facility::Daemon => 3,
            Facility::News => 7,
            Facility::Local(n) => 16 + n.min(7),
        }
    }
}

/// Makes this the log of the process; can be done once.
///
/// Lines begin `<prefix>/<ident>`, or `<ident>`. `max_level` is the last level that is logged.
/// `also_stderr` shows each line there, too. A log daemon that is not there is no error; a second
/// call is `Kind::Internal`.
pub fn init(
    ident: &str,
    prefix: Option<&str>,
    facility: Facility,
    max_level: LevelFilter,
    also_stderr: bool,
) -> Result<()> {
    let path = std::env::var_os(SOCKET_ENV).map_or_else(|| PathBuf::from(SOCKET), PathBuf::from);
    let syslog = Syslog::new(path, ident, prefix, facility, max_level, also_stderr);
    log::set_boxed_logger(Box::new(syslog))
        .map_err(|e| Error::new(Kind::Internal, "log opened twice").because(e))?;
    log::set_max_level(max_level);
    Ok(())
}

/// Sends one line of level info, for programs whose log is elsewhere; false if nobody took it.
pub fn event(ident: &str, prefix: Option<&str>, facility: Facility, text: &str) -> bool {
    let path = std::env::var_os(SOCKET_ENV).map_or_else(|| PathBuf::from(SOCKET), PathBuf::from);
    let syslog = Syslog::new(path, ident, prefix, facility, LevelFilter::Info, false);
    let line = syslog.line(Level::Info, &escaped(text));
    let mut link = syslog.link.lock().unwrap_or_else(PoisonError::into_inner);
    link.send(&line)
}

struct Syslog {
    /// `prefix/ident`.
    name: String,
    facility: Facility,
    max_level: LevelFilter,
    also_stderr: bool,
    link: Mutex<Link>,
}

impl Syslog {
    fn new(
        path: PathBuf,
        ident: &str,
        prefix: Option<&str>,
        facility: Facility,
        max_level: LevelFilter,
        also_stderr: bool,
    ) -> Syslog {
        Syslog {
            name: match prefix {
                Some(prefix) => escaped(&format!("{prefix}/{ident}")),
                None => escaped(ident),
            },
            facility,
            max_level,
            also_stderr,
            link: Mutex::new(Link {
                path,
                socket: None,
                stuck: false,
                lost: 0,
            }),
        }
    }

    fn line(&self, level: Level, text: &str) -> Vec<u8> {
        let pid = std::process::id();
        let severity = match level {
            Level::Error => 3,
            Level::Warn => 4,
            Level::Info => 6,
            Level::Debug | Level::Trace => 7,
        };
        let priority = self.facility.code() * 8 + severity;
        let stamp = stamp(time::now().0);
        format!("<{priority}>{stamp} {}[{pid}]: {text}", self.name).into_bytes()
    }
}

impl Log for Syslog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.max_level
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let thread = std::thread::current();
        let text = match thread.name() {
            None | Some("main") => record.args().to_string(),
            Some(name) => format!("{name}: {}", record.args()),
        };
        let text = escaped(&text);
        if self.also_stderr {
            // Nobody is left to tell when this fails.
            let _ = io::stderr().write_all(format!("{}: {text}\n", self.name).as_bytes());
        }
        let line = self.line(record.level(), &text);
        // A thread that died while logging leaves a link that is still whole.
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        if !link.send(&line) {
            link.lost = link.lost.saturating_add(1);
        } else if link.lost > 0 {
            let text = format!("log lines were lost count=<{}>", link.lost);
            if link.send(&self.line(Level::Warn, &text)) {
                link.lost = 0;
            }
        }
    }

    fn flush(&self) {}
}

/// The way to the log daemon.
struct Link {
    path: PathBuf,
    socket: Option<UnixDatagram>,
    /// The daemon did not read in time; do not wait for it again.
    stuck: bool,
    /// Lines that did not get through.
    lost: u64,
}

impl Link {
    /// Sends one line; on an error reconnects and tries once more.
    fn send(&mut self, line: &[u8]) -> bool {
        for _ in 0..2 {
            if self.socket.is_none() {
                self.socket = connect(&self.path, self.stuck).ok();
            }
            let Some(socket) = &self.socket else {
                return false;
            };
            match socket.send(line) {
                Ok(_) => {
                    if std::mem::take(&mut self.stuck) {
                        let _ = socket.set_nonblocking(false);
                    }
                    return true;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.stuck = true;
                    let _ = socket.set_nonblocking(true);
                    return false;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.socket = None,
            }
        }
        false
    }
}

fn connect(path: &std::path::Path, stuck: bool) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.set_nonblocking(stuck)?;
    Ok(socket)
}

/// `Mmm dd hh:mm:ss`, local time, the day padded with a blank.
fn stamp(secs: i64) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let [month, day, hour, minute, second] = clock::local(secs).unwrap_or([1, 1, 0, 0, 0]);
    let month = MONTHS.get(month as usize - 1).unwrap_or(&"Jan");
    format!("{month} {day:2} {hour:02}:{minute:02}:{second:02}")
}

/// The text with control characters as `\x0a`, cut at [`TEXT_MAX_BYTES`].
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(TEXT_MAX_BYTES));
    for c in text.chars() {
        if out.len() >= TEXT_MAX_BYTES {
            out.push_str("...");
            break;
        }
        if c.is_control() {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\x{:02x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::time::Instant;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let pid = std::process::id();
            let path = std::env::temp_dir().join(format!("cyr_backup-syslog-{name}-{pid}"));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir(&path).unwrap();
            Folder(path)
        }

        fn socket(&self) -> PathBuf {
            self.0.join("log")
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn listen(path: &Path) -> UnixDatagram {
        let _ = std::fs::remove_file(path);
        let socket = UnixDatagram::bind(path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        socket
    }

    fn receive(socket: &UnixDatagram) -> String {
        let mut room = [0; 20_000];
        let n = socket.recv(&mut room).unwrap();
        String::from_utf8(room[..n].to_vec()).unwrap()
    }

    fn backend(path: PathBuf) -> Syslog {
        let max = LevelFilter::Info;
        Syslog::new(path, "backupd", Some("cyrus"), Facility::Mail, max, false)
    }

    fn say(syslog: &Syslog, level: Level, text: &str) {
        syslog.log(
            &Record::builder()
                .level(level)
                .args(format_args!("{text}"))
                .build(),
        );
    }

    #[test]
    fn a_line_has_its_form() {
        let folder = Folder::new("form");
        let daemon = listen(&folder.socket());
        let syslog = backend(folder.socket());
        std::thread::scope(|s| {
            let named = std::thread::Builder::new().name("sess-7".into());
            let log = || {
                say(&syslog, Level::Debug, "unseen");
                say(&syslog, Level::Error, "a\nb\x1b[0m\u{85}é");
            };
            named.spawn_scoped(s, log).unwrap().join().unwrap();
        });
        let line = receive(&daemon);
        let pid = std::process::id();
        assert_eq!(
            line[19..],
            format!(" cyrus/backupd[{pid}]: sess-7: a\\x0ab\\x1b[0m\\x85é")
        );
        assert_eq!(&line[..4], "<19>");
        assert_eq!(line[4..19], stamp(time::now().0)[..15]);
    }

    #[test]
    fn severities_and_facilities() {
        let syslog = backend("/nowhere".into());
        for (level, priority) in [
            (Level::Error, "<19>"),
            (Level::Warn, "<20>"),
            (Level::Info, "<22>"),
            (Level::Debug, "<23>"),
        ] {
            assert!(syslog.line(level, "").starts_with(priority.as_bytes()));
        }
        for (name, code) in [
            ("mail", 2),
            ("USER", 1),
            ("Daemon", 3),
            ("NEWS", 7),
            ("LOCAL0", 16),
            ("local7", 23),
        ] {
            assert_eq!(Facility::from_name(name).unwrap().code(), code);
        }
        for name in ["", "LOCAL8", "LOCAL", "LOCAL00", "KERN"] {
            assert_eq!(Facility::from_name(name), None);
        }
    }

    #[test]
    fn a_daemon_that_restarts_is_found_again() {
        let folder = Folder::new("restart");
        let syslog = backend(folder.socket());
        say(&syslog, Level::Info, "lost");
        let daemon = listen(&folder.socket());
        say(&syslog, Level::Info, "one");
        assert!(receive(&daemon).ends_with("one"));
        assert!(receive(&daemon).ends_with("log lines were lost count=<1>"));
        drop(daemon);
        let daemon = listen(&folder.socket());
        say(&syslog, Level::Info, "two");
        assert!(receive(&daemon).ends_with("two"));
    }

    #[test]
    fn a_daemon_that_does_not_read_costs_little() {
        let folder = Folder::new("stuck");
        let daemon = listen(&folder.socket());
        let syslog = backend(folder.socket());
        let start = Instant::now();
        let lost = |s: &Syslog| s.link.lock().unwrap().lost;
        let mut sent = 0;
        while lost(&syslog) < 50 && sent < 100_000 {
            say(&syslog, Level::Info, "x");
            sent += 1;
        }
        assert_eq!(lost(&syslog), 50);
        assert!(start.elapsed() < Duration::from_secs(5));
        for _ in 0..sent - 50 {
            assert!(receive(&daemon).ends_with('x'));
        }
        say(&syslog, Level::Info, "again");
        assert!(receive(&daemon).ends_with("again"));
        assert!(receive(&daemon).ends_with("count=<50>"));
        assert!(!syslog.link.lock().unwrap().stuck);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let long = "é".repeat(TEXT_MAX_BYTES);
        let text = escaped(&long);
        assert!(text.ends_with("é...") && text.len() <= TEXT_MAX_BYTES + 10);
        assert_eq!(escaped("a\0b"), "a\\x00b");
    }

    #[test]
    fn stamps() {
        let stamp = stamp(1_615_809_600);
        assert!(stamp.starts_with("Mar 1") && stamp.len() == 15, "{stamp}");
    }
}
