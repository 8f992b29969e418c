//! `--to`: where mail is brought.
//!
//! `imap://host[:port]`, `imaps://host[:port]`, `csync://host[:port]`, `unix:/path` name servers;
//! `maildir:DIR`, `mbox:FILE`, `tar:FILE`, `eml:DIR` files. `-` for a path is standard output, and alone means `mbox:-`.

use crate::client::stream::Address;
use crate::client::{csync, imap};
use crate::error::{Error, Kind, Result};
use std::fmt;
use std::path::PathBuf;

/// A kind of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A Maildir++ tree in a directory.
    Maildir,
    /// One mbox file.
    Mbox,
    /// One tar archive.
    Tar,
    /// A directory of folders with one file for each message.
    Eml,
}

impl Format {
    /// All, with the word that names them.
    pub const ALL: [(&'static str, Format); 4] = [
        ("maildir", Format::Maildir),
        ("mbox", Format::Mbox),
        ("tar", Format::Tar),
        ("eml", Format::Eml),
    ];

    fn word(self) -> &'static str {
        let found = Format::ALL.iter().find(|(_, f)| *f == self);
        found.map_or("", |(word, _)| word)
    }
}

/// Where files go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Standard output.
    Stdout,
    /// A file or directory; need not exist.
    Path(PathBuf),
}

/// A way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An IMAP server: by its replication if it offers that, else by APPEND.
    Imap(Address),
    /// A Cyrus server's replication port, or the UNIX socket of one.
    Csync(Address),
    /// Files.
    Files(Format, Place),
}

impl Target {
    /// Reads what was typed; `Usage` for what is none.
    pub fn parse(text: &str) -> Result<Target> {
        let bad = || {
            let why = "not a destination: imap://host[:port], imaps://host[:port], csync://host[:port], unix:/path, \
                       maildir:DIR, mbox:FILE, tar:FILE, eml:DIR or -";
            Error::new(Kind::Usage, format!("{text}: {why}"))
        };
        if let Some(host) = text.strip_prefix("imap://") {
            return Address::parse(host.trim_end_matches('/'), imap::PORT).map(Target::Imap);
        }
        if let Some(host) = text.strip_prefix("imaps://") {
            let address = Address::parse(host.trim_end_matches('/'), imap::TLS_PORT)?;
            return Ok(Target::Imap(address.with_tls()));
        }
        if let Some(host) = text.strip_prefix("csync://") {
            return Address::parse(host.trim_end_matches('/'), csync::PORT).map(Target::Csync);
        }
        if text == "-" {
            return Ok(Target::Files(Format::Mbox, Place::Stdout));
        }
        let (word, path) = text.split_once(':').ok_or_else(bad)?;
        if path.is_empty() {
            return Err(bad());
        }
        if word == "unix" {
            return match path.starts_with('/') {
                true => Ok(Target::Csync(Address::Unix(path.into()))),
                false => Err(bad()),
            };
        }
        let found = Format::ALL.iter().find(|(w, _)| *w == word);
        let (_, format) = found.ok_or_else(bad)?;
        let place = match (path, format) {
            ("-", Format::Maildir) => {
                let why = "a Maildir cannot go to standard output";
                return Err(Error::new(Kind::Usage, format!("{text}: {why}")));
            }
            ("-", _) => Place::Stdout,
            _ => Place::Path(path.into()),
        };
        Ok(Target::Files(*format, place))
    }

    /// Whether it is a server, which knows of users; files do not.
    pub fn is_server(&self) -> bool {
        !matches!(self, Target::Files(..))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Imap(address @ Address::Tls(..)) => write!(f, "imaps://{address}"),
            Target::Imap(address) => write!(f, "imap://{address}"),
            Target::Csync(Address::Unix(path)) => write!(f, "unix:{}", path.display()),
            Target::Csync(address) => write!(f, "csync://{address}"),
            Target::Files(format, Place::Stdout) => write!(f, "{}:-", format.word()),
            Target::Files(format, Place::Path(path)) => {
                write!(f, "{}:{}", format.word(), path.display())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_out() {
        for text in [
            "imap://host:143",
            "imap://[::1]:1143",
            "imaps://host:1993",
            "csync://10.0.0.1:2005",
            "unix:/run/csync",
            "maildir:out/anna",
            "mbox:/tmp/x:y",
            "tar:-",
            "eml:dir",
        ] {
            assert_eq!(Target::parse(text).unwrap().to_string(), text);
        }
        let port = Target::parse("csync://host/").unwrap();
        assert_eq!(port.to_string(), "csync://host:2005");
        assert!(port.is_server());
        let tls = Target::parse("imaps://host").unwrap();
        assert_eq!(tls, Target::Imap(Address::Tls("host".into(), 993)));
        let out = Target::parse("-").unwrap();
        assert_eq!(out, Target::Files(Format::Mbox, Place::Stdout));
        assert!(!out.is_server());
        for text in [
            "",
            "host",
            "imap:host",
            "imap://",
            "imap://u@h",
            "imaps://",
            "imaps:h",
            "http://h",
            "unix:rel",
            "unix:",
            "mbox:",
            "maildir:-",
            "csync://h:0",
        ] {
            assert_eq!(
                Target::parse(text).unwrap_err().kind(),
                Kind::Usage,
                "{text}"
            );
        }
    }
}
