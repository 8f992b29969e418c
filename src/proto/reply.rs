//! What we say: fixed lines, and errors turned into words on the wire.
//!
//! All lines here are without their CR LF; `send` adds it. Every line is one line of printable
//! ASCII and at most `MAX` bytes, whatever the text came from, and a status word is always followed
//! by a blank and a text: the client takes a bare `OK` for a broken protocol and does not recognise
//! a code at the end of a line.
//!
//! The client branches on the code after `NO `. Which one an error gets decides what the client does
//! next, so each is given only for what it says: SYNC_CHECKSUM, which starts a repair of the sending
//! server from our state, is never sent. The words are Cyrus': `imap/sync_support.c`.

use std::io::{self, Write};

use crate::error::{Error, Kind};

/// The longest line in bytes; the client reads lines into 2048.
pub const MAX: usize = 512;

/// A command succeeded.
pub const OK: &str = "OK success";
/// Answer to NOOP.
pub const OK_NOOP: &str = "OK Noop completed";
/// Answer to RESTART.
pub const OK_RESTART: &str = "OK Restarting";
/// Answer to EXIT, before closing.
pub const OK_EXIT: &str = "OK Finished";
/// Answer to COMPRESS DEFLATE, the last line in plain.
pub const OK_COMPRESS: &str = "OK DEFLATE active";
/// Answer to STARTTLS, the last line in plain.
pub const OK_STARTTLS: &str = "OK Begin TLS negotiation now";
/// AUTHENTICATE succeeded; no mechanism of ours brings a security layer.
pub const OK_AUTH: &str = "OK Success (no protection)";
/// AUTHENTICATE failed; the reason is for our log only.
pub const NO_AUTH: &str = "NO authentication failed";
/// A command before login.
pub const NO_LOGIN: &str = "NO Please authenticate first";
/// A login that is not an admin's.
pub const NO_PERMISSION: &str = "NO Permission denied";
/// COMPRESS a second time.
pub const NO_COMPRESSED: &str = "NO Compression already active: DEFLATE";
/// COMPRESS with another algorithm.
pub const NO_COMPRESS: &str = "NO Unknown compression algorithm";
/// A command we know and do not offer.
pub const NO_COMMAND: &str = "NO command not implemented";
/// AUTHENTICATE with a mechanism we do not offer.
pub const NO_MECHANISM: &str = "NO no mechanism available";
/// AUTHENTICATE twice.
pub const BAD_AUTH_TWICE: &str = "BAD Already authenticated";
/// AUTHENTICATE with a word that is no mechanism name.
pub const BAD_MECHANISM: &str = "BAD Invalid mechanism";
/// The client gave up the exchange.
pub const BAD_AUTH_CANCELED: &str = "BAD Client canceled authentication";
/// An empty line.
pub const BAD_NULL: &str = "BAD Null command";
/// A word that is no command.
pub const BAD_UNKNOWN: &str = "BAD IMAP_PROTOCOL_ERROR Unrecognized command";
/// A line over the limit, before closing.
pub const BAD_TOO_LONG: &str = "BAD IMAP_PROTOCOL_ERROR Line too long";
/// New work while shutting down: the client sends NOOP and EXIT and comes back.
pub const NO_STOPPING: &str = "NO Shutting down, please come back later";
/// Before we close on shutdown.
pub const BYE_STOPPING: &str = "BYE shutting down";
/// Before we close on an idle connection.
pub const BYE_IDLE: &str = "BYE Idle for too long";
/// Banner line: STARTTLS may be sent.
pub const CAP_STARTTLS: &str = "* STARTTLS";
/// Banner line: COMPRESS DEFLATE may be sent. The client always does, if it sees this.
pub const CAP_COMPRESS: &str = "* COMPRESS DEFLATE";

/// What a banner tells.
#[derive(Clone, Copy, Debug, Default)]
pub struct Banner<'a> {
    /// Our host name, as configured.
    pub host: &'a str,
    /// Mechanisms offered, empty if none or none is needed.
    pub mechanisms: &'a [&'a str],
    /// Whether STARTTLS is offered.
    pub starttls: bool,
    /// Whether compression is offered.
    pub compress: bool,
}

/// The lines of a banner, the last of them `* OK`.
pub fn banner(b: &Banner<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    if !b.mechanisms.is_empty() {
        lines.push(line("* SASL ", &b.mechanisms.join(" ")));
    }
    if b.starttls {
        lines.push(CAP_STARTTLS.to_owned());
    }
    if b.compress {
        lines.push(CAP_COMPRESS.to_owned());
    }
    let text = concat!(
        "Cyrus backup server, cyr_backup ",
        env!("CARGO_PKG_VERSION")
    );
    lines.push(line("* OK ", &format!("{} {text}", b.host)));
    lines
}

/// The final line for an error.
pub fn error(e: &Error) -> String {
    // A file that is missing is our trouble and not an answer about mailboxes: to UNMAILBOX,
    // "nonexistent" would mean success.
    let from_io = std::error::Error::source(e).is_some_and(|s| s.is::<io::Error>());
    let (code, detail) = match e.kind() {
        Kind::Locked => ("NO IMAP_MAILBOX_LOCKED Mailbox locked", false),
        Kind::Changed => ("NO IMAP_SYNC_CHANGED Changed since last sync", false),
        Kind::Moved => (
            "NO IMAP_MAILBOX_MOVED Mailbox exists with another name or uniqueid",
            false,
        ),
        Kind::NotFound if !from_io => ("NO IMAP_MAILBOX_NONEXISTENT No Such Mailbox", false),
        Kind::Protocol => ("NO IMAP_PROTOCOL_BAD_PARAMETERS Bad parameters", true),
        Kind::Denied => (NO_PERMISSION, false),
        Kind::Stopping => (NO_STOPPING, false),
        Kind::NoSpace => ("NO Backup server has no space left", true),
        Kind::Io | Kind::NotFound => ("NO Backup server has an I/O error", true),
        Kind::Db => ("NO Backup server has a database error", true),
        Kind::Damaged => ("NO Backup is damaged", true),
        Kind::NeedsReindex => ("NO Backup needs a reindex", true),
        Kind::Exists => ("NO Already exists", true),
        Kind::Usage | Kind::Config => ("NO Backup server is misconfigured", true),
        Kind::Internal => ("NO Internal error", true),
    };
    if detail {
        line(code, &format!(": {e}"))
    } else {
        code.to_owned()
    }
}

/// A command whose argument cannot be parsed.
pub fn bad_parse(verb: &str) -> String {
    line(
        "BAD IMAP_PROTOCOL_ERROR Failed to parse ",
        &format!("{} line", short(verb)),
    )
}

/// A command without the argument it needs.
pub fn bad_missing(verb: &str) -> String {
    line("BAD Missing required argument to ", short(verb))
}

/// A command with more arguments than it takes.
pub fn bad_extra(verb: &str) -> String {
    line("BAD Unexpected extra arguments to ", short(verb))
}

/// The answer to a line that is IMAP and begins with this tag. A client that tries IMAP first goes
/// on at once if its tag comes back, and waits for ten seconds otherwise.
pub fn bad_tagged(tag: &str) -> String {
    line(short(tag), " BAD This is a backup server, not IMAP")
}

/// `fixed` and then `text`, made fit for the wire: one line, printable ASCII, at most `MAX` bytes.
/// `text` comes from anywhere; its control and other characters become `?`, its blanks one blank.
pub fn line(fixed: &str, text: &str) -> String {
    let mut out = String::with_capacity(MAX);
    for c in fixed.chars().chain(text.chars()) {
        if out.len() == MAX {
            break;
        }
        match c {
            ' ' | '\t' | '\r' | '\n' if out.ends_with(' ') => {}
            '\t' | '\r' | '\n' => out.push(' '),
            ' '..='~' => out.push(c),
            _ => out.push('?'),
        }
    }
    out
}

/// Writes a line and its CR LF; does not flush.
pub fn send(w: &mut impl Write, line: &str) -> io::Result<()> {
    debug_assert!(!line.contains(['\r', '\n']));
    w.write_all(line.as_bytes())?;
    w.write_all(b"\r\n")
}

/// A word of the peer's, cut to a length nobody needs to exceed.
fn short(word: &str) -> &str {
    let mut end = word.len().min(32);
    while !word.is_char_boundary(end) {
        end -= 1;
    }
    &word[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Kind; 16] = [
        Kind::Usage,
        Kind::Config,
        Kind::NotFound,
        Kind::Exists,
        Kind::Locked,
        Kind::Damaged,
        Kind::NeedsReindex,
        Kind::Protocol,
        Kind::Changed,
        Kind::Moved,
        Kind::Denied,
        Kind::NoSpace,
        Kind::Io,
        Kind::Db,
        Kind::Stopping,
        Kind::Internal,
    ];

    #[test]
    fn every_kind_gives_one_clean_line() {
        let nasty = format!("x\r\nOK success\0\u{e9}\u{1f600}\t{}", "long ".repeat(1000));
        for kind in KINDS {
            let s = error(&Error::new(kind, &nasty));
            assert!(s.starts_with("NO ") && s.len() > 4 && s.len() <= MAX, "{s}");
            assert!(s.bytes().all(|b| (b' '..=b'~').contains(&b)), "{s}");
            if let Some(rest) = s.strip_prefix("NO IMAP_") {
                assert!(rest.split_once(' ').is_some_and(|(_, t)| !t.is_empty()));
            }
            assert!(!s.contains("CHECKSUM"));
        }
    }

    #[test]
    fn codes_are_exact() {
        let text = |kind| error(&Error::new(kind, "IMAP_SYNC_CHECKSUM trick"));
        assert_eq!(text(Kind::Locked), "NO IMAP_MAILBOX_LOCKED Mailbox locked");
        assert_eq!(
            text(Kind::Changed),
            "NO IMAP_SYNC_CHANGED Changed since last sync"
        );
        assert_eq!(
            text(Kind::NotFound),
            "NO IMAP_MAILBOX_NONEXISTENT No Such Mailbox"
        );
        assert_eq!(text(Kind::Denied), "NO Permission denied");
        assert_eq!(
            error(&Error::new(Kind::Protocol, "bad guid")),
            "NO IMAP_PROTOCOL_BAD_PARAMETERS Bad parameters: bad guid"
        );
        for kind in [Kind::NoSpace, Kind::Io, Kind::Db, Kind::Damaged] {
            assert!(!text(kind).starts_with("NO IMAP_"));
        }
    }

    #[test]
    fn a_missing_file_is_not_a_missing_mailbox() {
        let e = Error::io("cannot open", io::ErrorKind::NotFound.into());
        assert_eq!(e.kind(), Kind::NotFound);
        assert!(error(&e).starts_with("NO Backup server has an I/O error: cannot open"));
    }

    #[test]
    fn banner_ends_with_ok() {
        let b = Banner {
            host: "h\r\nx",
            mechanisms: &["SCRAM-SHA-256", "SCRAM-SHA-512"],
            starttls: false,
            compress: true,
        };
        let lines = banner(&b);
        assert_eq!(lines[0], "* SASL SCRAM-SHA-256 SCRAM-SHA-512");
        assert_eq!(lines[1], "* COMPRESS DEFLATE");
        assert!(lines[2].starts_with("* OK h x Cyrus backup server"));
        assert_eq!(lines.len(), 3);
        assert_eq!(banner(&Banner::default()).len(), 1);
    }

    #[test]
    fn words_of_the_peer_are_tamed() {
        assert_eq!(
            bad_missing("APPLY"),
            "BAD Missing required argument to APPLY"
        );
        assert_eq!(
            bad_parse("GET"),
            "BAD IMAP_PROTOCOL_ERROR Failed to parse GET line"
        );
        assert!(bad_tagged("C01").starts_with("C01 BAD "));
        assert!(bad_extra(&"\u{e9}".repeat(100)).len() < 80);
        let mut out = Vec::new();
        send(&mut out, OK).unwrap();
        assert_eq!(out, b"OK success\r\n");
    }
}
