//! What `compact` tells about each backup, and in the end.

use super::{Args, Did};
use crate::cmd::output::{Out, plain};
use crate::cmd::select::Chosen;
use crate::error::Result;
use crate::store::compact::{Outcome as Ended, Report};
use serde_json::{Value, json};
use std::time::Duration;

/// Sums for the last line.
#[derive(Default)]
pub struct Sums {
    /// Compacted.
    pub done: u64,
    /// Without anything to do.
    pub nothing: u64,
    /// Held by the brake.
    pub held: u64,
    /// Failed.
    pub failed: u64,
    /// Bytes freed.
    pub freed: i64,
    /// Records expired.
    pub expired: u64,
}

impl Sums {
    /// Counts one in.
    pub fn add(&mut self, did: &Result<Did>) {
        match did {
            Err(_) => self.failed += 1,
            Ok(Did::Still | Did::Gone) => self.nothing += 1,
            Ok(Did::Looked(report)) => match report.outcome {
                Ended::Nothing => self.nothing += 1,
                Ended::Held => self.held += 1,
                Ended::Done => {
                    self.done += 1;
                    self.freed += report.bytes_before as i64 - report.bytes_after as i64;
                    self.expired += report.expired_records;
                }
            },
        }
    }
}

/// What the brake holds.
pub fn held(report: &Report) -> String {
    format!(
        "{} of {} messages were deleted inside one retention period",
        report.loss.lost, report.loss.of
    )
}

/// One backup for people.
pub fn as_text(
    args: &Args,
    chosen: &Chosen,
    did: &Result<Did>,
    took: Duration,
    out: &mut Out,
) -> Result<()> {
    let name = plain(&chosen.name());
    let report = match did {
        Ok(Did::Looked(report)) => report,
        // Of thousands only those are told in which something was done.
        Ok(Did::Still | Did::Gone) if args.all => return Ok(()),
        Ok(Did::Gone) => return out.line(format_args!("{name}: deleted meanwhile")),
        Ok(Did::Still) => return out.line(format_args!("{name}: nothing to do")),
        Err(_) => return Ok(()),
    };
    let expired = format!(
        "expired: {} records, {} mailboxes, {} others",
        report.expired_records, report.expired_mailboxes, report.expired_others
    );
    match report.outcome {
        Ended::Nothing if args.all => Ok(()),
        Ended::Nothing => out.line(format_args!("{name}: nothing to do ({expired})")),
        Ended::Held => out.line(format_args!(
            "{name}: held: {}; {expired}; if that was meant: compact --force",
            held(report)
        )),
        Ended::Done if args.dry_run => out.line(format_args!(
            "{name}: would free about {} of {} bytes ({expired}); {} chunks dropped, {} joined, \
             {} bytes deflated anew, {} copied",
            report.bytes_before.saturating_sub(report.bytes_after),
            report.bytes_before,
            report.dropped_chunks,
            report.joined_chunks,
            report.rewritten,
            report.spliced,
        )),
        Ended::Done => out.line(format_args!(
            "{name}: {} to {} chunks, {} to {} bytes ({expired}){}, {:.1} s",
            report.chunks_before,
            report.chunks_after,
            report.bytes_before,
            report.bytes_after,
            match report.unreadable {
                0 => String::new(),
                n => format!("; {n} messages do not read and are dropped: see heal"),
            },
            took.as_secs_f64()
        )),
    }
}

/// One backup in JSON.
pub fn as_json(chosen: &Chosen, did: &Result<Did>, took: Duration) -> Value {
    let mut row = json!({"userid": chosen.key, "path": chosen.path.to_string_lossy()});
    let Some(fields) = row.as_object_mut() else {
        return row;
    };
    let mut add = |key: &str, value: Value| fields.insert(key.into(), value);
    match did {
        Err(e) => {
            add("status", "failed".into());
            add("error", e.to_string().into());
        }
        Ok(Did::Still) => {
            add("status", "nothing".into());
        }
        Ok(Did::Gone) => {
            add("status", "gone".into());
        }
        Ok(Did::Looked(report)) => {
            let status = match report.outcome {
                Ended::Done => "done",
                Ended::Nothing => "nothing",
                Ended::Held => "held",
            };
            add("status", status.into());
            for (key, number) in [
                ("chunks_before", report.chunks_before),
                ("chunks_after", report.chunks_after),
                ("bytes_before", report.bytes_before),
                ("bytes_after", report.bytes_after),
                ("spliced_bytes", report.spliced),
                ("rewritten_bytes", report.rewritten),
                ("dropped_chunks", report.dropped_chunks),
                ("joined_chunks", report.joined_chunks),
                ("expired_records", report.expired_records),
                ("expired_mailboxes", report.expired_mailboxes),
                ("expired_others", report.expired_others),
                ("unreadable_messages", report.unreadable),
                ("lost_messages", report.loss.lost),
                ("lost_of", report.loss.of),
            ] {
                add(key, number.into());
            }
            add("next", report.next.into());
            let previous = report.previous.as_ref().map(|p| p.to_string_lossy());
            add("previous", previous.into());
        }
    }
    add("seconds", took.as_secs_f64().into());
    row
}
