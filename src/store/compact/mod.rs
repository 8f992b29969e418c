//! Compaction: a new log and index with what is still needed, in the place of the old pair.
//!
//! What has outlived its retention goes, small members are joined, and what was received in haste
//! is deflated better. Nothing is edited in place, and replication goes on meanwhile: the work is
//! done on what a reader sees, what came later is copied behind it, and only the last of that, and
//! the switch, happen under the lock. Inside retention nothing changes: every state of every
//! moment can be shown as before.
//!
//! A log that was compacted is, in this order: what it is (GENERATION); bodies; the state at the
//! retention's edge, as lines; bodies and lines of what happened since; a MANIFEST of all of it
//! (`doc/format.md` 3.6). `need` says what is needed, `plan` what is done with each member,
//! `rewrite` and `state` write, `making` puts it together, `switch` puts it in place; `run` is the
//! order of all that.
//!
//! Fails with `Damaged` if the log does not read (nothing is changed: `heal` first), `Locked` if
//! somebody else compacts it or has it for too long, and the kinds of the disk. Whatever fails, the
//! old pair stays as it was.

mod gauge;
mod making;
pub mod need;
pub mod out;
pub mod plan;
mod rewrite;
mod run;
mod state;
mod survey;
mod switch;
mod tidy;

pub use run::compact;
pub(super) use switch::finish_interrupted;
pub use tidy::is_left;

use super::backup::Settings;
use super::lock::Wait;
use crate::cyrus::guid::Guid;
use need::Loss;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// How a backup is compacted.
#[derive(Clone, Debug)]
pub struct Policy {
    /// How backups are written; `chunk_max` is also the size of members here, unless `max` is set.
    pub settings: Settings,
    /// Deflate level, 0 to 9.
    pub level: u8,
    /// Plain bytes below which neighbours are joined; 0: as it pays.
    pub min: u64,
    /// Plain bytes above which a member goes on in a further one; 0: `chunk_max`.
    pub max: u64,
    /// So many members at the least must be concerned.
    pub threshold: u64,
    /// Percent of the messages that may go inside one retention period; 0: any.
    pub brake: u32,
    /// Does all that can be done, whether it pays or not, and in spite of brake and clock.
    pub force: bool,
    /// Only says what would be done.
    pub dry_run: bool,
    /// The old data file stays beside, as `<log>.<seconds>`.
    pub keep_previous: bool,
    /// Threads that deflate, and as many that copy.
    pub jobs: usize,
    /// How long the lock is waited for.
    pub wait: Wait,
    /// Messages that go whatever else holds.
    pub erase: HashSet<Guid>,
}

/// How it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// There is a new pair, or would be.
    Done,
    /// There was nothing that pays.
    #[default]
    Nothing,
    /// Too much would go: the brake holds it.
    Held,
}

/// What was, or would be, done.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// Chunks before.
    pub chunks_before: u64,
    /// Chunks afterwards; the same as before if nothing was done.
    pub chunks_after: u64,
    /// Bytes of the log before.
    pub bytes_before: u64,
    /// Bytes afterwards; about so many of a dry run, and of what is held.
    pub bytes_after: u64,
    /// Bytes copied as they were.
    pub spliced: u64,
    /// Compressed bytes of what was deflated anew.
    pub rewritten: u64,
    /// Records that have expired and go, or whose messages go: each is counted once.
    pub expired_records: u64,
    /// Mailboxes that go.
    pub expired_mailboxes: u64,
    /// Scripts, subscriptions, limits and annotations that go.
    pub expired_others: u64,
    /// Members that held nothing needed.
    pub dropped_chunks: u64,
    /// Small members that were joined.
    pub joined_chunks: u64,
    /// Needed messages that do not read; dropped, and asked for again if they are alive.
    pub unreadable: u64,
    /// When the next thing will expire, in seconds since 1970.
    pub next: Option<i64>,
    /// What the brake looked at.
    pub loss: Loss,
    /// The log's new generation, or its present one.
    pub generation: String,
    /// The old data file, if it was kept.
    pub previous: Option<PathBuf>,
}

/// The name of the new log while it is made.
pub fn new_path(data: &Path) -> PathBuf {
    let mut name = data.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}
