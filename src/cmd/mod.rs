//! The program: one table of commands, and what they have in common.
//!
//! Data go to standard output, everything else to standard error. A closed pipe ends quietly.
//! Exit status: 0 all well, 1 some backups failed, else what [`status`] makes of the error. How a
//! command is started is in `start`, what it works with in `context`.
#![forbid(unsafe_code)]

pub mod args;
pub mod chunks;
mod clock;
pub mod compact;
mod context;
pub mod delete;
pub mod diff;
pub mod dump;
pub mod erase;
pub mod heal;
pub mod history;
pub mod list;
pub mod lock;
pub mod mailboxes;
pub mod messages;
pub mod moving;
pub mod old;
mod once;
pub mod output;
pub mod parallel;
pub mod passwd;
pub mod reindex;
pub mod rename;
pub mod rescan;
pub mod restore;
pub mod search;
pub mod select;
pub mod serve;
pub mod show;
mod start;
pub mod stat;
pub mod verify;

pub use context::{Context, Place, View, admin_name};
pub use start::main;

use crate::error::{Kind, Result};
use getopts::{Matches, Options};
use output::Out;
use std::fmt;
use std::io::Write;

/// Our name in messages, and the prefix of our own keys in imapd.conf.
const IDENT: &str = "cyr_backup";

/// One row of the table.
pub struct Command {
    /// What is typed.
    pub name: &'static str,
    /// What may follow it.
    pub operands: &'static str,
    /// What it does, in one line.
    pub help: &'static str,
    /// Its options, the common ones included.
    pub options: fn() -> Options,
    /// Judges what was typed: the Args half. What it returns is the run half.
    pub job: fn(&Matches) -> Result<Job>,
}

/// What is left to do once the command line is understood.
pub type Job = Box<dyn FnOnce(&Context, &mut Out) -> Result<Outcome>>;

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All well; nothing to do is well.
    Well,
    /// Some backups failed and were complained about.
    Partly,
    /// An exit status of its own.
    Status(u8),
}

/// All commands.
pub static COMMANDS: &[Command] = &[
    Command {
        name: "serve",
        operands: "",
        help: "receive from sync_client",
        options: serve::options,
        job: serve::job,
    },
    Command {
        name: "list",
        operands: "[MODE] [BACKUP...]",
        help: "the backups: last sync, sizes",
        options: list::options,
        job: list::job,
    },
    Command {
        name: "stat",
        operands: "[MODE] BACKUP...",
        help: "numbers about each backup",
        options: stat::options,
        job: stat::job,
    },
    Command {
        name: "chunks",
        operands: "[MODE] BACKUP",
        help: "the chunks of a log",
        options: chunks::options,
        job: chunks::job,
    },
    Command {
        name: "mailboxes",
        operands: "[MODE] BACKUP",
        help: "the mailboxes of a backup",
        options: mailboxes::options,
        job: mailboxes::job,
    },
    Command {
        name: "messages",
        operands: "[MODE] BACKUP [MAILBOX...]",
        help: "the messages of a backup",
        options: messages::options,
        job: messages::job,
    },
    Command {
        name: "show",
        operands: "[MODE] BACKUP ITEM...",
        help: "a mailbox, a message (by GUID), subscriptions, sieve, seen, quota, annotations, marks",
        options: show::options,
        job: show::job,
    },
    Command {
        name: "dump",
        operands: "message|chunk|sieve|log [MODE] BACKUP [ITEM]",
        help: "a message, chunk, script or the whole log as it is",
        options: dump::options,
        job: dump::job,
    },
    Command {
        name: "search",
        operands: "[MODE] BACKUP...",
        help: "messages by sender, recipient, subject, date, mailbox, flags",
        options: search::options,
        job: search::job,
    },
    Command {
        name: "history",
        operands: "[MODE] BACKUP [GUID | MAILBOX]",
        help: "the life of a message or mailbox",
        options: history::options,
        job: history::job,
    },
    Command {
        name: "diff",
        operands: "[MODE] BACKUP [MAILBOX...]",
        help: "what differs between two times",
        options: diff::options,
        job: diff::job,
    },
    Command {
        name: "verify",
        operands: "[MODE] [BACKUP...]",
        help: "prove that backups are whole",
        options: verify::options,
        job: verify::job,
    },
    Command {
        name: "reindex",
        operands: "[MODE] BACKUP...",
        help: "build an index anew from its log",
        options: reindex::options,
        job: reindex::job,
    },
    Command {
        name: "compact",
        operands: "[MODE] [BACKUP...]",
        help: "drop what has outlived its retention, join small chunks",
        options: compact::options,
        job: compact::job,
    },
    Command {
        name: "heal",
        operands: "[MODE] BACKUP...",
        help: "get back what does not read",
        options: heal::options,
        job: heal::job,
    },
    Command {
        name: "delete",
        operands: "[MODE] BACKUP...",
        help: "take a whole backup out of use; --undo brings it back",
        options: delete::options,
        job: delete::job,
    },
    Command {
        name: "erase",
        operands: "[MODE] BACKUP GUID...",
        help: "remove for good and at once",
        options: erase::options,
        job: erase::job,
    },
    Command {
        name: "lock",
        operands: "[MODE] BACKUP",
        help: "hold a backup's lock: until end of input, or around a command",
        options: lock::options,
        job: lock::job,
    },
    Command {
        name: "move",
        operands: "--to NAME [MODE] BACKUP...",
        help: "move backups to another backup partition",
        options: moving::options,
        job: moving::job,
    },
    Command {
        name: "rename",
        operands: "OLD NEW",
        help: "a user's backup goes to the user's new name",
        options: rename::options,
        job: rename::job,
    },
    Command {
        name: "rescan",
        operands: "",
        help: "compare backups.db with the logs in the partitions",
        options: rescan::options,
        job: rescan::job,
    },
    Command {
        name: "restore",
        operands: "[MODE] BACKUP [MAILBOX|GUID...]",
        help: "bring mail back, to a server or into files",
        options: restore::options,
        job: restore::job,
    },
    Command {
        name: "passwd",
        operands: "[USER]",
        help: "the credentials of senders",
        options: passwd::options,
        job: passwd::job,
    },
];

/// The exit status of an error (sysexits).
pub fn status(kind: Kind) -> u8 {
    match kind {
        Kind::NotFound | Kind::Exists => 1,
        Kind::Usage => 64,
        Kind::Damaged | Kind::NeedsReindex | Kind::Protocol => 65,
        Kind::Internal => 70,
        Kind::NoSpace | Kind::Io | Kind::Db => 74,
        Kind::Locked | Kind::Changed | Kind::Stopping => 75,
        Kind::Denied | Kind::Moved => 77,
        Kind::Config => 78,
    }
}

/// A line on standard error; that nobody reads it is no reason to fail.
pub fn say(text: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_their_exit_status() {
        assert_eq!(status(Kind::NotFound), 1);
        assert_eq!(status(Kind::Usage), 64);
        assert_eq!(status(Kind::Damaged), 65);
        assert_eq!(status(Kind::Internal), 70);
        assert_eq!(status(Kind::NoSpace), 74);
        assert_eq!(status(Kind::Locked), 75);
        assert_eq!(status(Kind::Denied), 77);
        assert_eq!(status(Kind::Config), 78);
    }
}
