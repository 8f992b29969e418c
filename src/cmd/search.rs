//! `search`: messages by sender, recipient, subject, Message-ID, date, mailbox, flags, alive or deleted;
//! of one user, some, or all.
//!
//! From the indexes alone; no log is read but for `--at`. Two backups are gone through at a time; what is
//! found goes out as it is found, in the order of users, mailboxes and UIDs.

use super::args::{self, usage};
use super::messages::{flag_text, record_json};
use super::output::{Out, plain, when};
use super::parallel::{Part, streamed};
use super::select::{self, Chosen, Select};
use super::{Context, Job, Outcome, Place, admin_name};
use crate::cyrus::mboxname::{MboxName, Namespace, inbox_of};
use crate::cyrus::utf7;
use crate::error::{Error, Kind, Result};
use crate::store::index::{Field, MailboxRow};
use crate::store::search::{Hit, Query, State};
use crate::util::time::Timestamp;
use crate::util::when::Day;
use getopts::{Matches, Options};
use serde_json::{Value, json};

/// What was typed.
#[derive(Clone, Debug)]
pub struct Args {
    select: Select,
    query: Query,
    mailboxes: Vec<String>,
    json: bool,
    at: Option<Timestamp>,
}

const HEADERS: [(&str, Field, &str); 5] = [
    ("from", Field::From, "words of the sender's name or address"),
    ("to", Field::To, "words of To"),
    ("cc", Field::Cc, "words of Cc"),
    ("subject", Field::Subject, "words of the subject"),
    ("message-id", Field::MessageId, "part of the Message-ID"),
];

const TIMES: [(&str, &str); 4] = [
    ("since", "received not before"),
    ("until", "received not after"),
    ("deleted-since", "deleted not before"),
    ("deleted-until", "deleted not after"),
];

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    select::options(&mut o);
    args::json(&mut o);
    args::at(&mut o);
    for (name, _, help) in HEADERS {
        o.optmulti("", name, help, "TEXT");
    }
    for (name, help) in TIMES {
        o.optopt("", name, help, "TIME");
    }
    o.optmulti("", "mailbox", "in this mailbox; * is anything", "NAME");
    o.optmulti("", "flag", "that has the flag", "FLAG");
    o.optmulti("", "not-flag", "that has not", "FLAG");
    o.optflag("", "alive-only", "only what the server has");
    let help = "only what the server has no longer";
    o.optflag("", "deleted-only", help);
    o
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    let args = Args::parse(m)?;
    Ok(Box::new(move |c, out| run(&args, c, out)))
}

impl Args {
    fn parse(m: &Matches) -> Result<Args> {
        let mut query = Query::default();
        for (name, field, _) in HEADERS {
            for text in m.opt_strs(name) {
                if text.trim().is_empty() {
                    return Err(usage(format!("--{name}: no words")));
                }
                query.header(field, &text);
            }
        }
        let time = |name, day| args::time(m, name, day).map(|t| t.map(|t| t.0));
        query.since = time("since", Day::Begins)?;
        query.until = time("until", Day::Ends)?;
        query.deleted_since = time("deleted-since", Day::Begins)?;
        query.deleted_until = time("deleted-until", Day::Ends)?;
        query.flags = m.opt_strs("flag").iter().map(|f| flag(f)).collect();
        query.not_flags = m.opt_strs("not-flag").iter().map(|f| flag(f)).collect();
        let deleted = m.opt_present("deleted-only");
        let by_time = query.deleted_since.or(query.deleted_until).is_some();
        query.state = match (m.opt_present("alive-only"), deleted || by_time) {
            (true, true) => return Err(usage("alive and deleted at once")),
            (true, false) => State::Alive,
            (false, true) => State::Deleted,
            (false, false) => State::Any,
        };
        Ok(Args {
            select: Select::some(m)?,
            query,
            mailboxes: m.opt_strs("mailbox"),
            json: m.opt_present("j"),
            at: args::time(m, "at", Day::Begins)?,
        })
    }

    /// Whether the mailbox is one of those named.
    fn covers(&self, mailbox: &MailboxRow, ns: &Namespace) -> bool {
        if self.mailboxes.is_empty() {
            return true;
        }
        let names = names(&mailbox.mboxname, ns);
        self.mailboxes.iter().any(|pattern| {
            let pattern = match pattern.eq_ignore_ascii_case("INBOX") {
                true => "INBOX",
                false => pattern,
            };
            let text = utf7::typed(pattern);
            let says = |name: &String| covers(pattern, name) || covers(&text, name);
            names.iter().any(says) || *pattern == mailbox.uniqueid
        })
    }
}

/// `seen` is `\Seen`: a keyword of that name there is not.
fn flag(name: &str) -> String {
    let system = ["seen", "answered", "flagged", "deleted", "draft"];
    match system.iter().any(|s| s.eq_ignore_ascii_case(name)) {
        true => format!("\\{name}"),
        false => name.to_owned(),
    }
}

/// Names under which a mailbox can be meant: as it is, and without what deletion has added; in
/// internal form, in admin form, and below the INBOX.
fn names(mboxname: &str, ns: &Namespace) -> Vec<String> {
    let mut names = vec![mboxname.to_owned(), admin_name(mboxname, ns)];
    let Ok(name) = MboxName::parse(mboxname, ns) else {
        return names;
    };
    let Some(userid) = name.userid() else {
        return names;
    };
    if name.folders().is_empty() {
        names.push("INBOX".into());
    } else {
        let separator = if ns.unixhierarchysep { "/" } else { "." };
        names.push(name.folders().join(separator));
    }
    if name.is_deleted() {
        let mut internal = inbox_of(userid, ns);
        for folder in name.folders() {
            internal.push('.');
            internal.push_str(&folder.replace('.', "^"));
        }
        names.push(admin_name(&internal, ns));
        names.push(internal);
    }
    names
}

/// Whether a name is what a pattern says, in which `*` stands for anything.
fn covers(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

fn hit_json(userid: &str, hit: &Hit<'_>, ns: &Namespace) -> Value {
    let adminname = admin_name(&hit.mailbox.mboxname, ns);
    let mut row = json!({ "userid": userid });
    let record = record_json(hit.mailbox, &adminname, &hit.record);
    if let (Value::Object(row), Value::Object(record)) = (&mut row, record) {
        row.extend(record);
    }
    row["deleted"] = hit.deleted.into();
    let e = hit.envelope.clone().unwrap_or_default();
    row["from"] = e.from.into();
    row["to"] = e.to.into();
    row["cc"] = e.cc.into();
    row["subject"] = e.subject.into();
    row["message_id"] = e.message_id.into();
    row["date"] = e.date.into();
    row
}

fn hit_line(userid: &str, hit: &Hit<'_>, ns: &Namespace) -> String {
    let r = &hit.record.record;
    let state = match hit.deleted {
        Some(time) => format!("deleted {}", when(Some(time))),
        None => "alive".into(),
    };
    let e = hit.envelope.clone().unwrap_or_default();
    let text = |value: Option<String>| plain(value.as_deref().unwrap_or("-").trim());
    format!(
        "{} {:<20} {:<28} {} {} {} ({}) | {} | {}",
        r.guid,
        when(Some(r.internaldate as i64)),
        state,
        plain(userid),
        plain(&admin_name(&hit.mailbox.mboxname, ns)),
        r.uid,
        flag_text(&r.flags),
        text(e.from),
        text(e.subject),
    )
}

enum Row {
    Json(Value),
    Text(String),
    /// Something does not read; the search went on.
    Damage(Error),
}

fn look(
    args: &Args,
    chosen: &Chosen,
    place: &Place,
    sink: &mut dyn FnMut(Row) -> Result<()>,
) -> Result<()> {
    let view = place.open_at(chosen, args.at)?;
    for e in view.damage() {
        sink(Row::Damage(e))?;
    }
    let ns = &place.namespace;
    let within = |mailbox: &MailboxRow| args.covers(mailbox, ns);
    args.query.run(view.index(), ns, &within, &mut |hit| {
        sink(match args.json {
            true => Row::Json(hit_json(&view.key, &hit, ns)),
            false => Row::Text(hit_line(&view.key, &hit, ns)),
        })
    })
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let found = args.select.find(&c.catalog(), &c.namespace)?;
    for (name, e) in &found.missing {
        c.complain(name, e);
    }
    let place = c.place();
    let chosen = found.chosen;
    let work =
        |chosen: &Chosen, sink: &mut dyn FnMut(Row) -> Result<()>| look(args, chosen, &place, sink);
    let complain = |chosen: &Chosen, e: Error| match e.kind() {
        // Nothing of a backup whose history begins later.
        Kind::NotFound if args.at.is_some() && args.select.is_set() => {}
        _ => c.complain(&chosen.name(), &e),
    };
    if args.json {
        let fields: Vec<_> = args.at.map(|t| ("at", t.0.into())).into_iter().collect();
        out.document(&fields, |d| {
            d.list("messages")?;
            streamed(&chosen, 2, work, |chosen, part| match part {
                Part::Row(Row::Json(row)) => d.row(&row),
                Part::Row(Row::Damage(e)) | Part::End(Err(e)) => {
                    complain(chosen, e);
                    Ok(())
                }
                Part::Row(Row::Text(_)) | Part::End(Ok(())) => Ok(()),
            })
        })?;
    } else {
        streamed(&chosen, 2, work, |chosen, part| match part {
            Part::Row(Row::Text(line)) => out.line(format_args!("{line}")),
            Part::Row(Row::Damage(e)) | Part::End(Err(e)) => {
                complain(chosen, e);
                Ok(())
            }
            Part::Row(Row::Json(_)) | Part::End(Ok(())) => Ok(()),
        })?;
    }
    Ok(c.outcome())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_have_stars() {
        for (pattern, name, expect) in [
            ("Sent", "Sent", true),
            ("Sent", "Sent/x", false),
            ("Sent*", "Sent/x", true),
            ("*x", "Sent/x", true),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "acb", false),
            ("ab*bc", "abc", false),
            ("**", "x", true),
        ] {
            assert_eq!(covers(pattern, name), expect, "{pattern} {name}");
        }
    }

    #[test]
    fn mailboxes_have_many_names() {
        let ns = Namespace {
            unixhierarchysep: true,
            ..Namespace::default()
        };
        let has = |mboxname: &str, name: &str| names(mboxname, &ns).contains(&name.to_owned());
        assert!(has("user.anna", "INBOX") && has("user.anna", "user/anna"));
        for name in ["user.anna.a^b.c", "user/anna/a.b/c", "a.b/c"] {
            assert!(has("user.anna.a^b.c", name), "{name}");
            assert!(has("DELETED.user.anna.a^b.c.5F3A1B2C", name), "{name}");
        }
        assert!(has("news.unix", "news/unix") && !has("news.unix", "unix"));
    }

    #[test]
    fn what_was_typed() {
        let args = |words: &[&str]| Args::parse(&options().parse(words).unwrap());
        let a = args(&[
            "anna", "--from", "boss", "--flag", "seen", "--flag", "$Work",
        ])
        .unwrap();
        assert_eq!(a.query.flags, ["\\seen", "$Work"]);
        assert_eq!(a.query.state, State::Any);
        let a = args(&["-A", "--deleted-since", "-3h"]).unwrap();
        assert_eq!(a.query.state, State::Deleted);
        assert!(a.query.deleted_since.is_some());
        for bad in [
            &[][..],
            &["anna", "--from", " "],
            &["anna", "--since", "soon"],
            &["anna", "--alive-only", "--deleted-only"],
            &["anna", "--alive-only", "--deleted-until", "now"],
        ] {
            assert_eq!(args(bad).unwrap_err().kind(), Kind::Usage, "{bad:?}");
        }
    }
}
