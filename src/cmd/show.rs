//! `show`: single things of a backup in detail: a mailbox with all its keys, a message by its
//! GUID, and what belongs to the user as a whole.
//!
//! A message's body is read to its end and compared with its GUID; if that fails, all else is
//! shown, the document says why, and the exit status is 65.

use super::args::{self, usage};
use super::mailboxes::{Marks, mailbox_json, marks};
use super::messages::{record_head, record_json, record_line};
use super::once::now_named;
use super::output::{
    Document, Out, bytes_json, dlist_json, dlist_number, plain, plain_bytes, when,
};
use super::select::{self, Select};
use super::{Context, Job, Outcome, View};
use crate::cyrus::dlist::{Form, Value as Dlist, print_to_vec};
use crate::cyrus::guid::Guid;
use crate::error::{Error, Kind, Result};
use crate::store::index::{MailboxRow, MessageRow, RecordRow, SieveRow};
use crate::util::time::Timestamp;
use crate::util::when::Day;
use getopts::{Matches, Options};
use serde_json::{Map, Value, json};

/// Header bytes that are kept at most.
const HEADERS_MAX: usize = 64 * 1024;

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    select: Select,
    items: Vec<Item>,
    json: bool,
    deleted: bool,
    at: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    Subscriptions,
    Sieve,
    Seen,
    Quota,
    Annotations,
    Marks,
    Message(Guid),
    Mailbox(String),
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    select::options(&mut o);
    args::json(&mut o);
    args::at(&mut o);
    let help = "also what was deleted: mailboxes, scripts, subscriptions";
    o.optflag("", "deleted", help);
    o
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    let args = Args::parse(m)?;
    Ok(Box::new(move |c, out| run(&args, c, out)))
}

impl Item {
    fn of(word: &str) -> Item {
        match word {
            "subscriptions" => Item::Subscriptions,
            "sieve" => Item::Sieve,
            "seen" => Item::Seen,
            "quota" => Item::Quota,
            "annotations" => Item::Annotations,
            "marks" => Item::Marks,
            _ => match Guid::parse(word.as_bytes()) {
                Some(guid) => Item::Message(guid),
                None => Item::Mailbox(word.to_owned()),
            },
        }
    }
}

impl Args {
    fn parse(m: &Matches) -> Result<Args> {
        let (select, words) = Select::one(m, &m.free)?;
        if words.is_empty() {
            return Err(usage("show what?"));
        }
        let mut items: Vec<Item> = Vec::new();
        for item in words.iter().map(|w| Item::of(w)) {
            if !items.contains(&item) {
                items.push(item);
            }
        }
        Ok(Args {
            select,
            items,
            json: m.opt_present("j"),
            deleted: m.opt_present("deleted"),
            at: args::time(m, "at", Day::Begins)?,
        })
    }
}

/// A message and all that is known about it.
struct Message {
    guid: Guid,
    body: Option<MessageRow>,
    headers: Vec<u8>,
    /// Why the body is not what it should be.
    fault: Option<Error>,
    records: Vec<RecordRow>,
}

/// Records of a mailbox, counted.
#[derive(Default)]
struct Counted {
    live: u64,
    expunged: u64,
    missing: u64,
}

struct Show<'a> {
    view: &'a View,
    context: &'a Context,
    deleted: bool,
    marks: Marks,
    /// All of them, deleted ones, too.
    mailboxes: Vec<MailboxRow>,
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let view = c.open_one_at(&args.select, args.at)?;
    let index = view.index();
    let show = Show {
        view: &view,
        context: c,
        deleted: args.deleted,
        marks: marks(index)?,
        mailboxes: index.mailboxes(true)?,
    };
    // What is not there is said before anything is printed.
    let mut mailboxes = Vec::new();
    let mut messages = Vec::new();
    for item in &args.items {
        match item {
            Item::Mailbox(name) => mailboxes.extend(now_named(&view, name, args.deleted, c)?),
            Item::Message(guid) => messages.push(show.message(*guid)?),
            _ => {}
        }
    }
    if args.json {
        out.document(&view.fields(), |d| {
            show.json(args, &mailboxes, &messages, d)
        })?;
    } else {
        show.text(args, &mailboxes, &messages, out)?;
    }
    match messages.into_iter().find_map(|m| m.fault) {
        Some(e) => Err(e.for_user(&view.key)),
        None => Ok(c.outcome()),
    }
}

impl Show<'_> {
    fn json(
        &self,
        args: &Args,
        mailboxes: &[MailboxRow],
        messages: &[Message],
        d: &mut Document<'_>,
    ) -> Result<()> {
        if !mailboxes.is_empty() {
            d.list("mailboxes")?;
            for row in mailboxes {
                d.row(&self.mailbox(row)?)?;
            }
        }
        if !messages.is_empty() {
            d.list("messages")?;
            for message in messages {
                d.row(&self.message_json(message))?;
            }
        }
        for item in &args.items {
            let name = match item {
                Item::Subscriptions => "subscriptions",
                Item::Sieve => "scripts",
                Item::Seen => "seen",
                Item::Quota => "quota",
                Item::Annotations => "annotations",
                Item::Marks => "marks",
                Item::Message(_) | Item::Mailbox(_) => continue,
            };
            d.list(name)?;
            self.rows(item)?.iter().try_for_each(|row| d.row(row))?;
        }
        Ok(())
    }

    fn text(
        &self,
        args: &Args,
        mailboxes: &[MailboxRow],
        messages: &[Message],
        out: &mut Out,
    ) -> Result<()> {
        for row in mailboxes {
            self.mailbox_text(row, out)?;
        }
        for message in messages {
            self.message_text(message, out)?;
        }
        for item in &args.items {
            for row in self.rows(item)? {
                self.row_text(&row, out)?;
            }
        }
        Ok(())
    }

    fn mailbox(&self, row: &MailboxRow) -> Result<Value> {
        let mut counted = Counted::default();
        let index = self.view.index();
        index.records(row.id, None, true, &mut |r| {
            match r.expunged {
                Some(_) => counted.expunged += 1,
                None => counted.live += 1,
            }
            counted.missing += u64::from(r.missing);
            Ok(())
        })?;
        let mut object = mailbox_json(row, &self.marks, self.context);
        object["created"] = row.created.into();
        object["changed"] = row.changed.into();
        object["unreliable"] = row.unreliable.into();
        object["records"] = json!({
            "live": counted.live,
            "expunged": counted.expunged,
            "missing": counted.missing,
        });
        object["head"] = dlist_json(&Dlist::Kv(row.head.keys.clone()));
        Ok(object)
    }

    fn mailbox_text(&self, row: &MailboxRow, out: &mut Out) -> Result<()> {
        let object = self.mailbox(row)?;
        out.line(format_args!(
            "{}",
            plain(&self.context.admin_name(&row.mboxname))
        ))?;
        let mut line = |key: &str, value: &str| out.line(format_args!("  {key:<22} {value}"));
        line("uniqueid", &plain(&row.uniqueid))?;
        line("created", &when(Some(row.created)))?;
        line("changed", &when(Some(row.changed)))?;
        line("deleted", &when(row.deleted))?;
        line("epoch", &row.epoch.to_string())?;
        if let Some(why) = self.marks.get(&row.uniqueid) {
            line("resync", &plain(why))?;
        }
        for (key, value) in object["records"].as_object().into_iter().flatten() {
            line(&format!("records {key}"), &value.to_string())?;
        }
        for (key, value) in &row.head.keys {
            let value = print_to_vec(value, Form::Log);
            line(&plain_bytes(key), &plain_bytes(&value))?;
        }
        Ok(())
    }

    /// `NotFound` if neither a body nor a record is known.
    fn message(&self, guid: Guid) -> Result<Message> {
        let index = self.view.index();
        let records = index.records_of(guid)?;
        // Bodies are known of all times.
        let body = match self.view.past.is_some() && records.is_empty() {
            true => None,
            false => index.body(guid)?,
        };
        if body.is_none() && records.is_empty() {
            let e = Error::new(Kind::NotFound, format!("no message {guid}"));
            return Err(e.for_user(&self.view.key));
        }
        let mut start = Vec::new();
        let fault = match &body {
            None => None,
            Some(_) => self
                .view
                .reader
                .body(guid, &mut |part| {
                    let room = HEADERS_MAX - start.len();
                    start.extend_from_slice(&part[..part.len().min(room)]);
                    Ok(())
                })
                .err(),
        };
        let end = start.windows(4).position(|w| w == b"\r\n\r\n");
        start.truncate(end.map_or(start.len(), |at| at + 2));
        Ok(Message {
            guid,
            body,
            headers: start,
            fault,
            records,
        })
    }

    fn owner_of(&self, record: &RecordRow) -> Option<(&MailboxRow, String)> {
        let row = self.mailboxes.iter().find(|m| m.id == record.mailbox_id)?;
        Some((row, self.context.admin_name(&row.mboxname)))
    }

    fn message_json(&self, m: &Message) -> Value {
        let body = m.body.as_ref().map(|b| {
            json!({
                "chunk": b.chunk_id,
                "chunk_offset": b.chunk_offset,
                "offset": b.offset,
                "size": b.size,
                "partition": b.partition,
            })
        });
        let records = m.records.iter().filter_map(|r| {
            let (mailbox, name) = self.owner_of(r)?;
            Some(record_json(mailbox, &name, r))
        });
        let mut object = json!({
            "guid": m.guid.to_string(),
            "body": body,
            "headers": m.body.as_ref().map(|_| bytes_json(&m.headers)),
            "records": records.collect::<Value>(),
        });
        if let Some(e) = &m.fault {
            object["error"] = e.to_string().into();
        }
        object
    }

    fn message_text(&self, m: &Message, out: &mut Out) -> Result<()> {
        match &m.body {
            Some(b) => out.line(format_args!(
                "{}: {} bytes, chunk {} offset {}, partition {}",
                m.guid,
                b.size,
                b.chunk_id,
                b.offset,
                plain(&b.partition)
            ))?,
            None => out.line(format_args!("{}: no body", m.guid))?,
        }
        out.line(format_args!("{}", record_head()))?;
        for record in &m.records {
            if let Some((_, name)) = self.owner_of(record) {
                out.line(format_args!("{}", record_line(&name, record)))?;
            }
        }
        for line in m.headers.split(|&b| b == b'\n') {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if !line.is_empty() {
                out.line(format_args!("  {}", plain_bytes(line)))?;
            }
        }
        Ok(())
    }

    /// The rows of what is not named singly.
    fn rows(&self, item: &Item) -> Result<Vec<Value>> {
        let index = self.view.index();
        let admin = |name: &str| self.context.admin_name(name);
        Ok(match item {
            Item::Subscriptions => {
                let rows = index.subscriptions(self.deleted)?.into_iter();
                rows.map(|r| {
                    json!({
                        "mboxname": r.mboxname,
                        "adminname": admin(&r.mboxname),
                        "time": r.time,
                        "unsubscribed": r.unsubscribed,
                    })
                })
                .collect()
            }
            Item::Sieve => {
                let active = index.active_script()?;
                let rows = index.scripts(self.deleted)?.into_iter();
                rows.map(|r| {
                    json!({
                        "filename": r.filename,
                        "guid": r.guid.to_string(),
                        "last_update": r.last_update,
                        "time": r.time,
                        "active": is_active(&r, active.as_deref()),
                        "content": bytes_json(&r.content),
                        "deleted": r.deleted,
                    })
                })
                .collect()
            }
            Item::Seen => {
                let rows = index.seen_states()?.into_iter();
                rows.map(|r| {
                    let number = |key| dlist_number(r.value.get(key));
                    json!({
                        "uniqueid": r.uniqueid,
                        "lastread": number("LASTREAD"),
                        "lastuid": number("LASTUID"),
                        "lastchange": number("LASTCHANGE"),
                        "seenuids": r.value.get("SEENUIDS").map(dlist_json),
                    })
                })
                .collect()
            }
            Item::Quota => {
                let rows = index.quotas()?.into_iter();
                rows.map(|(root, value)| {
                    let mut object = Map::new();
                    object.insert("root".into(), root.as_str().into());
                    object.insert("adminname".into(), admin(&root).into());
                    for (key, value) in value.as_kv().unwrap_or_default() {
                        let key = String::from_utf8_lossy(key).to_ascii_lowercase();
                        object
                            .entry(key)
                            .or_insert_with(|| dlist_number(Some(value)));
                    }
                    object.into()
                })
                .collect()
            }
            Item::Annotations => {
                let rows = index.all_annotations()?.into_iter();
                rows.map(|r| {
                    json!({
                        "mboxname": r.mboxname,
                        "adminname": admin(&r.mboxname),
                        "entry": r.entry,
                        "userid": r.userid,
                        "value": bytes_json(&r.value),
                    })
                })
                .collect()
            }
            Item::Marks => {
                let rows = index.marks()?.into_iter();
                rows.map(|(uniqueid, level, why)| {
                    let row = self.mailboxes.iter().find(|m| m.uniqueid == uniqueid);
                    json!({
                        "uniqueid": uniqueid,
                        "mboxname": row.map(|m| &m.mboxname),
                        "adminname": row.map(|m| admin(&m.mboxname)),
                        "level": level,
                        "why": why,
                    })
                })
                .collect()
            }
            Item::Message(_) | Item::Mailbox(_) => Vec::new(),
        })
    }

    /// Such a row for people: its fields, long ones on lines of their own.
    fn row_text(&self, row: &Value, out: &mut Out) -> Result<()> {
        let mut fields = Vec::new();
        let mut content = None;
        for (key, value) in row.as_object().into_iter().flatten() {
            let is_time = matches!(
                key.as_str(),
                "time" | "last_update" | "unsubscribed" | "deleted" | "lastread" | "lastchange"
            );
            match value {
                Value::Null => {}
                Value::String(text) if key == "content" => content = Some(text),
                Value::String(text) if text.is_empty() => {}
                _ if matches!(key.as_str(), "mboxname" | "root")
                    && row.get("adminname").is_some() => {}
                Value::String(text) if fields.is_empty() || key == "adminname" => {
                    fields.push(plain(text));
                }
                Value::String(text) => fields.push(format!("{key}={}", plain(text))),
                Value::Bool(true) => fields.push(key.clone()),
                Value::Bool(false) => {}
                value if is_time => fields.push(format!("{key}={}", when(value.as_i64()))),
                value => fields.push(format!("{key}={value}")),
            }
        }
        out.line(format_args!("{}", fields.join(" ")))?;
        for line in content.into_iter().flat_map(|text| text.lines()) {
            out.line(format_args!("    {}", plain(line)))?;
        }
        Ok(())
    }
}

/// ACTIVATE_SIEVE names the compiled form, `main.bc` of `main.script`.
fn is_active(row: &SieveRow, active: Option<&str>) -> bool {
    let stem = |name: &str| -> String {
        let cut = name
            .strip_suffix(".bc")
            .or_else(|| name.strip_suffix(".script"));
        cut.unwrap_or(name).to_owned()
    };
    row.deleted.is_none() && active.is_some_and(|a| stem(a) == stem(&row.filename))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_guids_and_mailboxes_are_told_apart() {
        let args = |words: &[&str]| Args::parse(&options().parse(words).unwrap());
        let guid = "5a184cd1a6222c5bdef730087d1de284fe479ccd";
        let a = args(&["anna", "sieve", guid, "user/anna/sieve", "sieve", "-j"]).unwrap();
        let message = Item::Message(Guid::parse(guid.as_bytes()).unwrap());
        let mailbox = Item::Mailbox("user/anna/sieve".into());
        assert_eq!(a.items, [Item::Sieve, message, mailbox]);
        assert_eq!(args(&["anna"]).unwrap_err().kind(), Kind::Usage);
        assert!(args(&["-A", "sieve"]).is_err());
    }

    #[test]
    fn the_active_script_is_named_by_its_compiled_form() {
        let row = |filename: &str, deleted| SieveRow {
            filename: filename.into(),
            guid: Guid::NULL,
            last_update: 0,
            content: Vec::new(),
            time: 0,
            deleted,
        };
        assert!(is_active(&row("a.script", None), Some("a.bc")));
        assert!(is_active(&row("a.script", None), Some("a.script")));
        assert!(!is_active(&row("a.script", None), Some("b.bc")));
        assert!(!is_active(&row("a.script", None), None));
        assert!(!is_active(&row("a.script", Some(1)), Some("a.bc")));
    }
}
