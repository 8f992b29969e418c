//! `mailboxes`: the mailboxes of a backup; and what the other commands need to name and print one.

use super::args;
use super::output::{Out, annotations_json, dlist_json, plain, when};
use super::select::{self, Select};
use super::{Context, Job, Outcome, View};
use crate::cyrus::dlist::Value as Dlist;
use crate::cyrus::mboxname::{MboxName, from_admin, inbox_of};
use crate::cyrus::utf7;
use crate::error::{Error, Kind, Result};
use crate::store::index::{Index, MailboxRow};
use crate::util::time::Timestamp;
use crate::util::when::Day;
use getopts::{Matches, Options};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::HashMap;

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    select: Select,
    json: bool,
    deleted: bool,
    at: Option<Timestamp>,
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    select::options(&mut o);
    args::json(&mut o);
    args::at(&mut o);
    o.optflag("", "deleted", "also those that were deleted");
    o
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    let args = Args::parse(m)?;
    Ok(Box::new(move |c, out| run(&args, c, out)))
}

impl Args {
    fn parse(m: &Matches) -> Result<Args> {
        let (select, rest) = Select::one(m, &m.free)?;
        args::no_more(&rest)?;
        Ok(Args {
            select,
            json: m.opt_present("j"),
            deleted: m.opt_present("deleted"),
            at: args::time(m, "at", Day::Begins)?,
        })
    }
}

/// Reasons of marked mailboxes, by uniqueid.
pub(super) type Marks = HashMap<String, String>;

/// The marks of a backup.
pub(super) fn marks(index: &Index) -> Result<Marks> {
    let marks = index.marks()?.into_iter();
    Ok(marks.map(|(id, _, why)| (id, why)).collect())
}

/// A mailbox as an object.
pub(super) fn mailbox_json(row: &MailboxRow, marks: &Marks, c: &Context) -> Value {
    let key = |key| row.head.get(key).map_or(Value::Null, dlist_json);
    let annotations = row.head.get("ANNOTATIONS").and_then(Dlist::as_list);
    json!({
        "mboxname": row.mboxname,
        "adminname": c.admin_name(&row.mboxname),
        "uniqueid": row.uniqueid,
        "uidvalidity": row.uidvalidity,
        "lastuid": row.last_uid,
        "highestmodseq": row.highestmodseq,
        "acl": key("ACL"),
        "options": key("OPTIONS"),
        "partition": key("PARTITION"),
        "mboxtype": key("MBOXTYPE"),
        "quotaroot": key("QUOTAROOT"),
        "deleted": row.deleted,
        "intermediate": row.intermediate,
        "resync": marks.get(&row.uniqueid),
        "epoch": row.epoch,
        "annotations": annotations_json(annotations.unwrap_or_default()),
        "messages": row.records,
    })
}

/// The internal names a person may mean by `name` in the backup of `key`, best first: as it stands,
/// in admin form, or below the user's INBOX, `INBOX` itself included; then the same with what is no
/// name in Cyrus' own spelling taken as text. And what is wrong with it as a name in admin form, if
/// none of them is there.
pub(super) fn candidates(name: &str, key: &str, c: &Context) -> (Vec<String>, Result<String>) {
    let ns = &c.namespace;
    let inbox = inbox_of(key, ns);
    let internal = from_admin(name, ns);
    let mut candidates = vec![name.to_owned()];
    candidates.extend(internal.as_ref().ok().cloned());
    if name.eq_ignore_ascii_case("INBOX") {
        candidates.push(inbox);
        return (candidates, internal);
    }
    let below = |name: &str| match ns.unixhierarchysep {
        true => format!("{inbox}.{}", name.replace('.', "^").replace('/', ".")),
        false => format!("{inbox}.{name}"),
    };
    candidates.push(below(name));
    if let Cow::Owned(name) = utf7::typed(name) {
        candidates.extend(from_admin(&name, ns).ok());
        candidates.push(below(&name));
    }
    (candidates, internal)
}

/// The mailboxes a person means by `name`: a uniqueid, or one of [`candidates`]; a deleted one is
/// meant by the name it had, too. Several only if deleted ones are wanted; else the one that lives or,
/// if none does, that was deleted last. `NotFound` if there is none, `Usage` if the name can be read
/// in two ways and is in neither.
pub(super) fn named(
    view: &View,
    name: &str,
    with_deleted: bool,
    c: &Context,
) -> Result<Vec<MailboxRow>> {
    let index = view.index();
    if let Some(row) = index.mailbox(name)? {
        return Ok(vec![row]);
    }
    let (candidates, internal) = candidates(name, &view.key, c);
    if !with_deleted {
        for candidate in &candidates {
            if let Some(row) = index.mailbox_by_name(candidate)? {
                return Ok(vec![row]);
            }
        }
    }
    let ns = &c.namespace;
    let mut all = Vec::new();
    for row in index.mailboxes(true)? {
        let parsed = MboxName::parse(&row.mboxname, ns).ok();
        let base = parsed.as_ref().map(|n| n.undeleted(ns));
        let deleted = parsed.and_then(|n| n.deleted()).or(row.deleted);
        all.push((base, deleted, row));
    }
    for candidate in candidates {
        let is_meant = |base: &Option<String>, row: &MailboxRow| {
            row.mboxname == candidate || base.as_ref() == Some(&candidate)
        };
        let found = all.iter().filter(|(base, _, row)| is_meant(base, row));
        let rows: Vec<MailboxRow> = match with_deleted {
            true => found.map(|(.., row)| row.clone()).collect(),
            false => {
                let last = found.max_by_key(|(_, deleted, row)| (*deleted, row.id));
                last.map(|(.., row)| row.clone()).into_iter().collect()
            }
        };
        if !rows.is_empty() {
            return Ok(rows);
        }
    }
    internal?;
    Err(Error::new(Kind::NotFound, format!("{name}: no mailbox")).for_user(&view.key))
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let view = c.open_one_at(&args.select, args.at)?;
    let index = view.index();
    let rows = index.mailboxes(args.deleted)?;
    let marks = marks(index)?;
    if args.json {
        out.document(&view.fields(), |d| {
            d.list("mailboxes")?;
            rows.iter()
                .try_for_each(|row| d.row(&mailbox_json(row, &marks, c)))
        })?;
        return Ok(c.outcome());
    }
    out.line(format_args!(
        "{:>8} {:>8} {:>10} {:<20} MAILBOX",
        "MESSAGES", "LASTUID", "MODSEQ", "DELETED"
    ))?;
    for row in &rows {
        let mark = match marks.get(&row.uniqueid) {
            Some(why) => format!("  [resync: {}]", plain(why)),
            None if row.intermediate => "  [intermediate]".into(),
            None => String::new(),
        };
        out.line(format_args!(
            "{:>8} {:>8} {:>10} {:<20} {}{mark}",
            row.records,
            row.last_uid,
            row.highestmodseq,
            when(row.deleted),
            plain(&c.admin_name(&row.mboxname))
        ))?;
    }
    Ok(c.outcome())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_backup_and_nothing_behind() {
        let args = |words: &[&str]| Args::parse(&options().parse(words).unwrap());
        let a = args(&["anna", "--deleted"]).unwrap();
        assert!(a.deleted && !a.json);
        assert!(args(&["-m", "user/anna", "-j"]).unwrap().json);
        for bad in [&[][..], &["a", "b"], &["-A"], &["-P", "a"]] {
            assert_eq!(args(bad).unwrap_err().kind(), Kind::Usage);
        }
    }
}
