//! `messages`: the messages of a backup, or of some of its mailboxes, one a line, in the order of
//! mailboxes and UIDs. Rows go out as they are read.

use super::args::{self, usage};
use super::once::now_named;
use super::output::{
    Document, Out, annotations_json, bytes_json, dlist_json, plain, plain_bytes, when,
};
use super::select::{self, Select};
use super::{Context, Job, Outcome, View};
use crate::cyrus::dlist::Value as Dlist;
use crate::error::Result;
use crate::store::index::{MailboxRow, RecordRow};
use crate::store::search::deleted_at;
use crate::util::time::Timestamp;
use crate::util::when::Day;
use getopts::{Matches, Options};
use serde_json::{Value, json};
use std::collections::HashSet;

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    select: Select,
    mailboxes: Vec<String>,
    json: bool,
    deleted: bool,
    /// Only what was deleted in between, in seconds.
    since: Option<i64>,
    until: Option<i64>,
    at: Option<Timestamp>,
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    select::options(&mut o);
    args::json(&mut o);
    args::at(&mut o);
    let help = "also what was expunged, and mailboxes that were deleted";
    o.optflag("", "deleted", help);
    o.optopt("", "since", "only what was deleted not before", "TIME");
    o.optopt("", "until", "only what was deleted not after", "TIME");
    o
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    let args = Args::parse(m)?;
    Ok(Box::new(move |c, out| run(&args, c, out)))
}

impl Args {
    fn parse(m: &Matches) -> Result<Args> {
        let (select, mailboxes) = Select::one(m, &m.free)?;
        let deleted = m.opt_present("deleted");
        let time = |name, day| args::time(m, name, day).map(|t| t.map(|t| t.0));
        let (since, until) = (time("since", Day::Begins)?, time("until", Day::Ends)?);
        if since.or(until).is_some() && !deleted {
            return Err(usage("--since and --until are about --deleted"));
        }
        Ok(Args {
            select,
            mailboxes,
            json: m.opt_present("j"),
            deleted,
            since,
            until,
            at: args::time(m, "at", Day::Begins)?,
        })
    }
}

/// A message in a mailbox as an object.
pub(super) fn record_json(mailbox: &MailboxRow, adminname: &str, row: &RecordRow) -> Value {
    let r = &row.record;
    json!({
        "mboxname": mailbox.mboxname,
        "adminname": adminname,
        "uniqueid": mailbox.uniqueid,
        "epoch": row.epoch,
        "uid": r.uid,
        "modseq": r.modseq,
        "guid": r.guid.to_string(),
        "size": r.size,
        // Times before 1970 wrap on the wire.
        "internaldate": r.internaldate as i64,
        "last_updated": r.last_updated as i64,
        "flags": r.flags.iter().map(flag_json).collect::<Value>(),
        "annotations": annotations_json(&r.annotations),
        "expunged": row.expunged,
        "gone": row.gone,
        "missing": row.missing,
    })
}

fn flag_json(flag: &Dlist) -> Value {
    flag.as_bytes().map_or_else(|| dlist_json(flag), bytes_json)
}

/// The same for people.
pub(super) fn record_line(adminname: &str, row: &RecordRow) -> String {
    let r = &row.record;
    let mut state = String::new();
    if let Some(time) = row.expunged {
        let how = if row.gone { "gone" } else { "expunged" };
        state.push_str(&format!(" [{how} {}]", when(Some(time))));
    }
    if row.missing {
        state.push_str(" [no body]");
    }
    format!(
        "{:>7} {} {:>10} {:<20} {} ({}){state}",
        r.uid,
        r.guid,
        r.size,
        when(Some(r.internaldate as i64)),
        plain(adminname),
        flag_text(&r.flags)
    )
}

/// Flags for people.
pub(super) fn flag_text(flags: &[Dlist]) -> String {
    let flags = flags.iter().filter_map(Dlist::as_bytes).map(plain_bytes);
    flags.collect::<Vec<String>>().join(" ")
}

/// The head of such lines.
pub(super) fn record_head() -> String {
    format!(
        "{:>7} {:<40} {:>10} {:<20} MAILBOX (FLAGS)",
        "UID", "GUID", "SIZE", "DATE"
    )
}

impl Args {
    /// Whether a message that was deleted then, or not at all, is to be shown.
    fn covers(&self, deleted: Option<i64>) -> bool {
        self.since.is_none_or(|t| deleted.is_some_and(|d| d >= t))
            && self.until.is_none_or(|t| deleted.is_some_and(|d| d <= t))
    }

    fn mailboxes(&self, view: &View, c: &Context) -> Result<Vec<MailboxRow>> {
        if self.mailboxes.is_empty() {
            return view.index().mailboxes(self.deleted);
        }
        let mut seen = HashSet::new();
        let mut rows = Vec::new();
        for name in &self.mailboxes {
            rows.extend(now_named(view, name, self.deleted, c)?);
        }
        rows.retain(|row| seen.insert(row.id));
        Ok(rows)
    }
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let view = c.open_one_at(&args.select, args.at)?;
    let mailboxes = args.mailboxes(&view, c)?;
    let each = |row: &mut dyn FnMut(&MailboxRow, &str, RecordRow) -> Result<()>| {
        mailboxes.iter().try_for_each(|m| {
            let adminname = c.admin_name(&m.mboxname);
            let epoch = (!args.deleted).then_some(m.epoch);
            let with_it = deleted_at(m, &c.namespace);
            view.index()
                .records(m.id, epoch, args.deleted, &mut |r| match args
                    .covers(r.expunged.or(with_it))
                {
                    true => row(m, &adminname, r),
                    false => Ok(()),
                })
        })
    };
    if args.json {
        out.document(&view.fields(), |d: &mut Document<'_>| {
            d.list("messages")?;
            each(&mut |m, adminname, r| d.row(&record_json(m, adminname, &r)))
        })?;
    } else {
        out.line(format_args!("{}", record_head()))?;
        each(&mut |m, adminname, r| {
            let mut line = record_line(adminname, &r);
            if let (Some(time), None) = (deleted_at(m, &c.namespace), r.expunged) {
                line.push_str(&format!(" [mailbox deleted {}]", when(Some(time))));
            }
            out.line(format_args!("{line}"))
        })?;
    }
    Ok(c.outcome())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mailboxes_follow_the_backup() {
        let args = |words: &[&str]| Args::parse(&options().parse(words).unwrap());
        let a = args(&["anna", "-j", "user/anna", "INBOX"]).unwrap();
        assert_eq!(a.mailboxes, ["user/anna", "INBOX"]);
        assert!(a.json && !a.deleted);
        let a = args(&["-f", "/b/anna_1", "--deleted"]).unwrap();
        assert!(a.mailboxes.is_empty() && a.deleted);
        assert!(args(&["anna", "--deleted", "--since", "-1h"]).is_ok());
        assert!(args(&["anna", "--since", "-1h"]).is_err());
        assert!(args(&[]).is_err());
        assert!(args(&["-D", "x"]).is_err());
    }
}
