//! `diff`: what differs in a backup, or in some of its mailboxes, between two times: messages that came, went,
//! or have other flags; mailboxes that came, went, have another name or other attributes; what is
//! the user's own.

use super::args::{self, usage};
use super::mailboxes::{mailbox_json, named};
use super::messages::{record_json, record_line};
use super::output::{Document, Out, bytes_json, dlist_json, plain, plain_bytes};
use super::select::{self, Select};
use super::{Context, Job, Outcome, View};
use crate::cyrus::dlist::{Form, Value as Dlist, print_to_vec};
use crate::error::{Error, Kind, Result};
use crate::store::diff::{self, MailboxPair, MessageChange, Other};
use crate::store::index::{MailboxRow, RecordRow};
use crate::util::time::Timestamp;
use crate::util::when::Day;
use getopts::{Matches, Options};
use serde_json::{Map, Value, json};
use std::collections::{HashMap, HashSet};

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    select: Select,
    mailboxes: Vec<String>,
    json: bool,
    from: Timestamp,
    to: Option<Timestamp>,
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    select::options(&mut o);
    args::json(&mut o);
    o.optopt("", "from", "the earlier time", "TIME");
    o.optopt("", "to", "the later time (default now)", "TIME");
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
        let from = args::time(m, "from", Day::Begins)?;
        let from = from.ok_or_else(|| usage("since when? --from TIME"))?;
        let to = args::time(m, "to", Day::Begins)?;
        if to.is_some_and(|to| to < from) {
            return Err(usage("--to is before --from"));
        }
        Ok(Args {
            select,
            mailboxes,
            json: m.opt_present("j"),
            from,
            to,
        })
    }
}

struct Diff<'a> {
    old: &'a View,
    new: &'a View,
    pairs: Vec<MailboxPair>,
    others: Vec<Other>,
    context: &'a Context,
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let old = c.open_one_at(&args.select, Some(args.from))?;
    let new = c.open_one_at(&args.select, args.to)?;
    let mut pairs = diff::mailboxes(old.index(), new.index())?;
    let mut others = Vec::new();
    if args.mailboxes.is_empty() {
        others = diff::others(old.index(), new.index())?;
    } else {
        let wanted = wanted(&args.mailboxes, &old, &new, c)?;
        pairs.retain(|p| p.row().is_some_and(|r| wanted.contains(&r.uniqueid)));
    }
    let diff = Diff {
        old: &old,
        new: &new,
        pairs,
        others,
        context: c,
    };
    if args.json {
        let to = args.to.map_or(Value::Null, |t| t.0.into());
        let fields = [
            ("userid", new.key.as_str().into()),
            ("from", args.from.0.into()),
            ("to", to),
        ];
        out.document(&fields, |d| diff.json(d))?;
    } else {
        diff.text(out)?;
    }
    Ok(c.outcome())
}

/// The mailboxes named; each in either state.
fn wanted(names: &[String], old: &View, new: &View, c: &Context) -> Result<HashSet<String>> {
    let mut ids = HashSet::new();
    for name in names {
        let (was, is) = (named(old, name, false, c), named(new, name, false, c));
        match (was, is) {
            (Err(_), Err(e)) => return Err(e),
            (was, is) => {
                let rows = was.into_iter().chain(is).flatten();
                ids.extend(rows.map(|row| row.uniqueid));
            }
        }
    }
    match ids.is_empty() {
        true => Err(Error::new(Kind::NotFound, "no mailbox").for_user(&new.key)),
        false => Ok(ids),
    }
}

impl Diff<'_> {
    fn changed(&self) -> impl Iterator<Item = &MailboxPair> {
        self.pairs.iter().filter(|p| p.differs())
    }

    fn messages(
        &self,
        each: &mut dyn FnMut(&MailboxRow, &RecordRow, MessageChange) -> Result<()>,
    ) -> Result<()> {
        let (old, new) = (self.old.index(), self.new.index());
        self.pairs
            .iter()
            .try_for_each(|pair| diff::messages(old, new, pair, each))
    }

    fn json(&self, d: &mut Document<'_>) -> Result<()> {
        let c = self.context;
        d.list("mailboxes")?;
        for pair in self.changed() {
            let Some(row) = pair.row() else { continue };
            let mut object = json!({ "change": change(pair) });
            let all = mailbox_json(row, &HashMap::new(), c);
            if let (Value::Object(to), Value::Object(from)) = (&mut object, all) {
                to.extend(from);
            }
            if let Some(old) = pair.old.as_ref().filter(|_| pair.is_renamed()) {
                object["old_mboxname"] = old.mboxname.as_str().into();
                object["old_adminname"] = c.admin_name(&old.mboxname).into();
            }
            object["keys"] = keys_json(&pair.keys);
            d.row(&object)?;
        }
        d.list("messages")?;
        self.messages(&mut |mailbox, record, change| {
            let (name, added, removed) = match change {
                MessageChange::Came => ("came", None, None),
                MessageChange::Went => ("went", None, None),
                MessageChange::Flags(added, removed) => ("flags", Some(added), Some(removed)),
                MessageChange::Annotations => ("annotations", None, None),
            };
            let flags = |flags: Option<Vec<Vec<u8>>>| -> Value {
                let flags = flags.into_iter().flatten();
                flags.map(|f| bytes_json(&f)).collect()
            };
            let mut object = json!({
                "change": name,
                "added": flags(added),
                "removed": flags(removed),
            });
            let all = record_json(mailbox, &c.admin_name(&mailbox.mboxname), record);
            if let (Value::Object(to), Value::Object(from)) = (&mut object, all) {
                to.extend(from);
            }
            d.row(&object)
        })?;
        d.list("others")?;
        self.others.iter().try_for_each(|o| {
            d.row(&json!({
                "kind": o.kind,
                "name": o.name,
                "change": other_change(o),
                "old": o.old.as_ref().map(dlist_json),
                "new": o.new.as_ref().map(dlist_json),
            }))
        })
    }

    fn text(&self, out: &mut Out) -> Result<()> {
        let c = self.context;
        for pair in self.changed() {
            let Some(row) = pair.row() else { continue };
            let name = plain(&c.admin_name(&row.mboxname));
            match (&pair.old, &pair.new) {
                (None, _) => out.line(format_args!("+ mailbox {name}"))?,
                (_, None) => out.line(format_args!("- mailbox {name}"))?,
                (Some(old), Some(_)) if pair.is_renamed() => {
                    let old = plain(&c.admin_name(&old.mboxname));
                    out.line(format_args!("~ mailbox {name}: was {old}"))?;
                }
                _ => {}
            }
            for (key, old, new) in &pair.keys {
                let (old, new) = (value_text(old.as_ref()), value_text(new.as_ref()));
                let key = plain(key);
                out.line(format_args!("~ mailbox {name}: {key} was {old}, is {new}"))?;
            }
        }
        self.messages(&mut |mailbox, record, change| {
            let line = record_line(&c.admin_name(&mailbox.mboxname), record);
            match change {
                MessageChange::Came => out.line(format_args!("+ {line}")),
                MessageChange::Went => out.line(format_args!("- {line}")),
                MessageChange::Flags(added, removed) => {
                    let flags = flag_changes(&added, &removed);
                    out.line(format_args!("~ {line}:{flags}"))
                }
                MessageChange::Annotations => out.line(format_args!("~ {line}: annotations")),
            }
        })?;
        for other in &self.others {
            let sign = match (&other.old, &other.new) {
                (None, _) => '+',
                (_, None) => '-',
                _ => '~',
            };
            let name = match other.kind {
                "subscription" | "quota" => c.admin_name(&other.name),
                "active" => String::new(),
                _ => other.name.clone(),
            };
            let mut line = format!("{sign} {} {}", other.kind, plain(&name));
            if other.kind != "subscription" && other.kind != "script" {
                let was = value_text(other.old.as_ref());
                let is = value_text(other.new.as_ref());
                line = format!("{}: was {was}, is {is}", line.trim_end());
            }
            out.line(format_args!("{line}"))?;
        }
        Ok(())
    }
}

fn change(pair: &MailboxPair) -> &'static str {
    match (&pair.old, &pair.new) {
        (None, _) => "came",
        (_, None) => "went",
        _ if pair.is_renamed() => "renamed",
        _ => "changed",
    }
}

fn other_change(other: &Other) -> &'static str {
    match (&other.old, &other.new) {
        (None, _) => "came",
        (_, None) => "went",
        _ => "changed",
    }
}

/// Attributes with their old and new values.
pub(super) fn keys_json(keys: &[(String, Option<Dlist>, Option<Dlist>)]) -> Value {
    let mut map = Map::new();
    for (key, old, new) in keys {
        let json = |v: &Option<Dlist>| v.as_ref().map_or(Value::Null, dlist_json);
        map.insert(key.clone(), json!({ "old": json(old), "new": json(new) }));
    }
    map.into()
}

/// A value for people.
pub(super) fn value_text(value: Option<&Dlist>) -> String {
    match value {
        Some(value) => plain_bytes(&print_to_vec(value, Form::Log)),
        None => "-".into(),
    }
}

/// ` +\Seen -\Flagged`
pub(super) fn flag_changes(added: &[Vec<u8>], removed: &[Vec<u8>]) -> String {
    let signed = |sign, flags: &[Vec<u8>]| -> String {
        let flags = flags.iter().map(|f| format!(" {sign}{}", plain_bytes(f)));
        flags.collect()
    };
    signed('+', added) + &signed('-', removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_times_in_order() {
        let args = |words: &[&str]| Args::parse(&options().parse(words).unwrap());
        let a = args(&["anna", "--from", "-3h", "INBOX"]).unwrap();
        assert_eq!((a.to, &a.mailboxes[..]), (None, &["INBOX".to_owned()][..]));
        assert!(args(&["anna", "--from", "-3h", "--to", "-1h"]).is_ok());
        for bad in [
            &["anna"][..],
            &["anna", "--to", "-1h"],
            &["anna", "--from", "-1h", "--to", "-3h"],
            &["-A", "--from", "-3h"],
        ] {
            assert_eq!(args(bad).unwrap_err().kind(), Kind::Usage, "{bad:?}");
        }
    }
}
