//! `history`: the life of a message, of a mailbox, or of all that is in a backup: what happened, and when.
//!
//! Times are those at which the sender told us. Told as it is found, from the log; what of it does
//! not read is complained about.

use super::args::{self, no_more, usage};
use super::diff::{flag_changes, keys_json, value_text};
use super::once::ever_named;
use super::output::{Out, bytes_json, plain, plain_bytes, when};
use super::select::{self, Select};
use super::{Context, Job, Outcome, View};
use crate::cyrus::guid::Guid;
use crate::error::{Error, Kind, Result};
use crate::store::history::{
    Event, MailboxChange, MessageChange, Spot, Told, What, begins, history,
};
use crate::store::index::Watch;
use crate::util::time::Timestamp;
use crate::util::when::Day;
use getopts::{Matches, Options};
use serde_json::{Value, json};

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    select: Select,
    item: Option<String>,
    uid: Option<u32>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    json: bool,
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    select::options(&mut o);
    args::json(&mut o);
    o.optopt("", "uid", "only this message of the mailbox", "UID");
    o.optopt("", "since", "what happened not before", "TIME");
    o.optopt("", "until", "what happened not after", "TIME");
    o
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    let args = Args::parse(m)?;
    Ok(Box::new(move |c, out| run(&args, c, out)))
}

impl Args {
    fn parse(m: &Matches) -> Result<Args> {
        let (select, items) = Select::one(m, &m.free)?;
        let item = items.first().cloned();
        no_more(items.get(1..).unwrap_or_default())?;
        let uid = match m.opt_str("uid") {
            None => None,
            Some(text) => {
                let uid = text.parse().ok().filter(|&n: &u32| n > 0);
                Some(uid.ok_or_else(|| usage("--uid wants a number"))?)
            }
        };
        let is_mailbox = item
            .as_ref()
            .is_some_and(|i| Guid::parse(i.as_bytes()).is_none());
        if uid.is_some() && !is_mailbox {
            return Err(usage("--uid of which mailbox?"));
        }
        Ok(Args {
            select,
            item,
            uid,
            since: args::time(m, "since", Day::Begins)?,
            until: args::time(m, "until", Day::Ends)?,
            json: m.opt_present("j"),
        })
    }

    fn watch(&self, view: &View, c: &Context) -> Result<Watch> {
        let Some(item) = &self.item else {
            return Ok(Watch::All);
        };
        if let Some(guid) = Guid::parse(item.as_bytes()) {
            let index = view.index();
            if index.records_of(guid)?.is_empty() {
                let e = Error::new(Kind::NotFound, format!("no mailbox has message {guid}"));
                return Err(e.for_user(&view.key));
            }
            return Ok(Watch::Message(guid));
        }
        let rows = ever_named(view, item, c)?;
        let ids = rows.into_iter().map(|row| row.uniqueid).collect();
        Ok(match self.uid {
            Some(uid) => Watch::Uid(ids, uid),
            None => Watch::Mailboxes(ids),
        })
    }

    fn covers(&self, time: i64) -> bool {
        self.since.is_none_or(|t| time >= t.0) && self.until.is_none_or(|t| time <= t.0)
    }
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let view = c.open_one(&args.select)?;
    let watch = args.watch(&view, c)?;
    let scratch = c.config.backup_staging_path();
    let tell = |each: &mut dyn FnMut(Event) -> Result<()>| -> Result<Told> {
        history(
            &view.reader,
            &scratch,
            &watch,
            &mut |event| match args.covers(event.time) {
                true => each(event),
                false => Ok(()),
            },
        )
    };
    let told = if args.json {
        let mut told = Told::default();
        out.document(&view.fields(), |d| {
            d.list("events")?;
            told = tell(&mut |event| d.row(&as_json(&event, c)))?;
            d.field("begins", &told.begins.into())
        })?;
        told
    } else {
        if let Some(time) = begins(view.index())? {
            let time = when(Some(time));
            out.line(format_args!(
                "before {time} not known, but for what was there:"
            ))?;
        }
        tell(&mut |event| out.line(format_args!("{}", as_text(&event, c))))?
    };
    for (offset, what) in &told.damage {
        let what = format!("history is not whole: file offset {offset}: {what}");
        c.complain(&view.key, &Error::new(Kind::Damaged, what));
    }
    Ok(c.outcome())
}

fn spot_json(spot: &Spot, c: &Context) -> Value {
    json!({
        "mboxname": spot.mboxname,
        "adminname": c.admin_name(&spot.mboxname),
        "uniqueid": spot.uniqueid,
        "uid": spot.uid,
    })
}

fn flags_json(flags: &[Vec<u8>]) -> Value {
    flags.iter().map(|f| bytes_json(f)).collect()
}

fn as_json(event: &Event, c: &Context) -> Value {
    let mut row = json!({ "time": event.time, "before": event.before });
    let more = match &event.what {
        What::Mailbox {
            uniqueid,
            mboxname,
            what,
        } => {
            let mut row = json!({
                "event": mailbox_word(what),
                "mboxname": mboxname,
                "adminname": c.admin_name(mboxname),
                "uniqueid": uniqueid,
            });
            match &**what {
                MailboxChange::Renamed(old) => {
                    row["old_mboxname"] = old.as_str().into();
                    row["old_adminname"] = c.admin_name(old).into();
                }
                MailboxChange::Epoch(epoch) => row["epoch"] = (*epoch).into(),
                MailboxChange::Keys(keys) => row["keys"] = keys_json(keys),
                _ => {}
            }
            row
        }
        What::Message {
            spot,
            epoch,
            guid,
            what,
        } => {
            let mut row = spot_json(spot, c);
            row["event"] = message_word(what).into();
            row["epoch"] = (*epoch).into();
            row["guid"] = guid.to_string().into();
            match &**what {
                MessageChange::Arrived {
                    flags, elsewhere, ..
                } => {
                    row["flags"] = flags_json(flags);
                    let spots = elsewhere.iter().map(|(spot, alive)| {
                        let mut row = spot_json(spot, c);
                        row["alive"] = (*alive).into();
                        row
                    });
                    row["elsewhere"] = spots.collect();
                }
                MessageChange::Flags { added, removed } => {
                    row["added"] = flags_json(added);
                    row["removed"] = flags_json(removed);
                }
                MessageChange::Expunged { gone, alive } => {
                    row["gone"] = (*gone).into();
                    row["alive_in"] = alive.iter().map(|s| spot_json(s, c)).collect();
                }
                MessageChange::Back => {}
            }
            row
        }
        What::Subscription(name, began) => json!({
            "event": if *began { "subscribed" } else { "unsubscribed" },
            "mboxname": name,
            "adminname": c.admin_name(name),
        }),
        What::Script(name, put) => json!({
            "event": if *put { "script put" } else { "script deleted" },
            "filename": name,
        }),
        What::Active(name) => json!({ "event": "active script", "filename": name }),
    };
    if let (Value::Object(row), Value::Object(more)) = (&mut row, more) {
        row.extend(more);
    }
    row
}

fn mailbox_word(what: &MailboxChange) -> &'static str {
    match what {
        MailboxChange::Created => "created",
        MailboxChange::Renamed(_) => "renamed",
        MailboxChange::Deleted => "deleted",
        MailboxChange::Back => "back",
        MailboxChange::Epoch(_) => "epoch",
        MailboxChange::Keys(_) => "changed",
    }
}

fn message_word(what: &MessageChange) -> &'static str {
    match what {
        MessageChange::Arrived { expunged: true, .. } => "arrived expunged",
        MessageChange::Arrived { .. } => "arrived",
        MessageChange::Flags { .. } => "flags",
        MessageChange::Expunged { .. } => "expunged",
        MessageChange::Back => "back",
    }
}

fn as_text(event: &Event, c: &Context) -> String {
    let admin = |name: &str| plain(&c.admin_name(name));
    let spot = |s: &Spot| format!("{} {}", admin(&s.mboxname), s.uid);
    let what = match &event.what {
        What::Mailbox { mboxname, what, .. } => {
            let rest = match &**what {
                MailboxChange::Created => "created".into(),
                MailboxChange::Renamed(old) => format!("renamed, was {}", admin(old)),
                MailboxChange::Deleted => "deleted".into(),
                MailboxChange::Back => "there again".into(),
                MailboxChange::Epoch(n) => {
                    format!("the server went back to an older state; epoch {n}")
                }
                MailboxChange::Keys(keys) => {
                    let key = |(key, old, new): &(String, _, _)| {
                        let (old, new): (&Option<_>, &Option<_>) = (old, new);
                        let (old, new) = (value_text(old.as_ref()), value_text(new.as_ref()));
                        format!("{} was {old}, is {new}", plain(key))
                    };
                    keys.iter().map(key).collect::<Vec<_>>().join("; ")
                }
            };
            format!("mailbox {}: {rest}", admin(mboxname))
        }
        What::Message {
            spot: at,
            guid,
            what,
            ..
        } => {
            let rest = match &**what {
                MessageChange::Arrived {
                    flags,
                    elsewhere,
                    expunged,
                } => {
                    let flags: Vec<String> = flags.iter().map(|f| plain_bytes(f)).collect();
                    let mut text = format!("arrived ({})", flags.join(" "));
                    if *expunged {
                        text.push_str(", expunged already");
                    }
                    for (other, alive) in elsewhere {
                        let word = if *alive { "is" } else { "was" };
                        text.push_str(&format!(", {word} also in {}", spot(other)));
                    }
                    text
                }
                MessageChange::Flags { added, removed } => {
                    format!("flags{}", flag_changes(added, removed))
                }
                MessageChange::Expunged { gone, alive } => {
                    let mut text = String::from(if *gone { "gone" } else { "expunged" });
                    for other in alive {
                        text.push_str(&format!(", still in {}", spot(other)));
                    }
                    text
                }
                MessageChange::Back => "there again".into(),
            };
            format!("{} {guid}: {rest}", spot(at))
        }
        What::Subscription(name, true) => format!("subscribed to {}", admin(name)),
        What::Subscription(name, false) => format!("unsubscribed from {}", admin(name)),
        What::Script(name, true) => format!("script {} put", plain(name)),
        What::Script(name, false) => format!("script {} deleted", plain(name)),
        What::Active(Some(name)) => format!("script {} made active", plain(name)),
        What::Active(None) => "no script is active".into(),
    };
    format!("{} {what}", when(Some(event.time)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_of_a_mailbox() {
        let args = |words: &[&str]| Args::parse(&options().parse(words).unwrap());
        let guid = "5a184cd1a6222c5bdef730087d1de284fe479ccd";
        assert_eq!(args(&["anna", "INBOX", "--uid", "7"]).unwrap().uid, Some(7));
        assert!(args(&["anna", guid, "--since", "-3h"]).is_ok());
        assert!(args(&["anna"]).is_ok());
        for bad in [
            &[][..],
            &["anna", "--uid", "7"],
            &["anna", guid, "--uid", "7"],
            &["anna", "INBOX", "--uid", "0"],
            &["anna", "INBOX", "Sent"],
        ] {
            assert_eq!(args(bad).unwrap_err().kind(), Kind::Usage, "{bad:?}");
        }
    }
}
