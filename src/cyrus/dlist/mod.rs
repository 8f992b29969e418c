//! dlist: the list syntax that replication's wire and the backup log share.
//!
//! Values are read by pulling ([`Parser`]), so that a command of hundreds of megabytes passes
//! through in constant memory, and printed in the canonical form of Cyrus' own printer
//! ([`print`]), so that what the old tools re-print has the same bytes. Source of the format:
//! Cyrus `imap/dlist.c`, `lib/imparse.c`; `doc/replication-protocol.md`.
//!
//! A parse fails with a [`ParseError`] that tells the position; after a syntax error the stream is
//! out of step and must be given up.

pub mod json;
mod parse;
mod print;
mod value;

pub use parse::{FileHead, Limits, ParseError, Parser, Start, Why};
pub use print::{Form, is_atom, print, print_text, print_to_vec};
pub use value::Value;
