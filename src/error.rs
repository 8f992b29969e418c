//! One error type for every room: a kind for code, a text and a place for people.
//!
//! `Kind` decides the reply on the wire (`proto::reply`) and the exit status (`cmd`); nothing else
//! branches on an error. The text reads `cannot append: /path: No space left on device`.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::Path;

/// What an error means to code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The command line is wrong.
    Usage,
    /// imapd.conf or the set-up is wrong.
    Config,
    /// The named thing does not exist.
    NotFound,
    /// The thing to be made exists already.
    Exists,
    /// Somebody else holds the backup.
    Locked,
    /// Stored bytes are wrong.
    Damaged,
    /// The index does not belong to the log, or is missing.
    NeedsReindex,
    /// The peer broke the protocol.
    Protocol,
    /// The sender's idea of our state is not ours: it must ask again.
    Changed,
    /// A name is taken by another identity.
    Moved,
    /// Refused authority.
    Denied,
    /// The disk is full.
    NoSpace,
    /// Any other I/O error.
    Io,
    /// An error of a database.
    Db,
    /// Shutting down: come back later.
    Stopping,
    /// Our own bug.
    Internal,
}

/// An error with its kind, what was tried, and where.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    what: String,
    place: Vec<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result of everything that can fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of `kind`; `what` says what failed, without its place.
    pub fn new(kind: Kind, what: impl Into<String>) -> Error {
        Error {
            kind,
            what: what.into(),
            place: Vec::new(),
            source: None,
        }
    }

    /// An I/O error met while doing `what`; a full disk gets its own kind.
    pub fn io(what: impl Into<String>, e: std::io::Error) -> Error {
        let kind = match e.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Kind::NoSpace,
            std::io::ErrorKind::NotFound => Kind::NotFound,
            std::io::ErrorKind::AlreadyExists => Kind::Exists,
            _ => Kind::Io,
        };
        Error::new(kind, what).because(e)
    }

    /// Adds the cause.
    pub fn because(mut self, e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        self.source = Some(e.into());
        self
    }

    /// Adds a path as the place.
    pub fn at(self, path: &Path) -> Error {
        self.place(path.display().to_string())
    }

    /// Adds a place: "chunk 4 offset 17", "user anna".
    pub fn place(mut self, place: impl Into<String>) -> Error {
        self.place.push(place.into());
        self
    }

    /// Adds the position inside a chunk, in uncompressed bytes.
    pub fn in_chunk(self, id: i64, offset: u64) -> Error {
        self.place(format!("chunk {id} offset {offset}"))
    }

    /// Adds the user.
    pub fn for_user(self, userid: &str) -> Error {
        self.place(format!("user {userid}"))
    }

    /// What the error means to code.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The same error with another kind.
    pub fn with_kind(mut self, kind: Kind) -> Error {
        self.kind = kind;
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        for place in &self.place {
            write!(f, ": {place}")?;
        }
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source
            .as_deref()
            .map(|e| e as &(dyn std::error::Error + 'static))
    }
}

impl From<rusqlite::Error> for Error {
    fn from(e: rusqlite::Error) -> Error {
        let extended = e.sqlite_error().map(|f| f.extended_code);
        let kind = match e.sqlite_error_code() {
            // A writer died, and this reader may not play back what it left.
            Some(rusqlite::ErrorCode::ReadOnly)
                if matches!(
                    extended,
                    Some(
                        rusqlite::ffi::SQLITE_READONLY_ROLLBACK
                            | rusqlite::ffi::SQLITE_READONLY_RECOVERY
                    )
                ) =>
            {
                Kind::NeedsReindex
            }
            Some(rusqlite::ErrorCode::DiskFull) => Kind::NoSpace,
            // The file by which readers and writers find each other cannot grow.
            Some(rusqlite::ErrorCode::SystemIoFailure)
                if extended == Some(rusqlite::ffi::SQLITE_IOERR_SHMSIZE) =>
            {
                Kind::NoSpace
            }
            Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
                Kind::NeedsReindex
            }
            // Our statements fit our tables.
            Some(rusqlite::ErrorCode::Unknown) if extended == Some(rusqlite::ffi::SQLITE_ERROR) => {
                Kind::NeedsReindex
            }
            Some(_) => Kind::Db,
            // A value of a type that nobody has put there.
            None => match e {
                rusqlite::Error::SqlInputError { .. }
                | rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
                | rusqlite::Error::Utf8Error(..) => Kind::NeedsReindex,
                _ => Kind::Db,
            },
        };
        Error::new(kind, "index").because(e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_names_what_where_and_why() {
        let e = Error::io(
            "cannot append",
            std::io::Error::from_raw_os_error(libc::ENOSPC),
        )
        .at(Path::new("/b/a"))
        .for_user("anna");
        assert_eq!(e.kind(), Kind::NoSpace);
        assert_eq!(
            e.to_string(),
            "cannot append: /b/a: user anna: No space left on device (os error 28)"
        );
    }
}
