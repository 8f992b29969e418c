//! What the server has already.

use super::{Cyrus, pass};
use crate::client::csync::Status;
use crate::client::stream::Stream;
use crate::cyrus::dlist::{Parser, Start, Value};
use crate::cyrus::sync::{MailboxHead, Record};
use crate::error::{Error, Kind, Result};
use std::collections::{HashMap, HashSet};

/// Of a user: mailboxes, and what is not mail.
#[derive(Debug, Default)]
pub struct User {
    /// Live mailboxes by internal name, of others as well where they matter.
    pub mailboxes: HashMap<String, MailboxHead>,
    /// Names.
    pub subscriptions: HashSet<String>,
    /// By UNIQUEID, the SEEN keys.
    pub seen: HashMap<String, Value>,
    /// Scripts by file name, with their GUID.
    pub scripts: HashMap<String, String>,
    /// The script that is active, by its file name.
    pub active: Option<String>,
    /// By root, the QUOTA keys.
    pub quotas: HashMap<String, Value>,
}

impl User {
    /// Takes a data line of GET USER or GET MAILBOXES.
    pub fn take(&mut self, kind: &str, value: Value) {
        let text = |key| {
            let value = value.get(key).and_then(Value::as_str);
            value.unwrap_or_default().to_owned()
        };
        match kind {
            "MAILBOX" => {
                let name = text("MBOXNAME");
                if let Value::Kv(keys) = value {
                    self.mailboxes.insert(name, MailboxHead { keys });
                }
            }
            // A root without limits stays when they are removed.
            "QUOTA" if limits(&value) > 0 => _ = self.quotas.insert(text("ROOT"), value),
            "SEEN" => _ = self.seen.insert(text("UNIQUEID"), value),
            "LSUB" => {
                let names = value.as_list().unwrap_or_default().iter();
                self.subscriptions
                    .extend(names.filter_map(Value::as_str).map(str::to_owned));
            }
            "SIEVE" => {
                if text("ISACTIVE") == "1" {
                    self.active = Some(text("FILENAME"));
                }
                self.scripts.insert(text("FILENAME"), text("GUID"));
            }
            _ => {}
        }
    }
}

/// How many resources are limited.
fn limits(quota: &Value) -> usize {
    const OTHER: [&[u8]; 3] = [b"ROOT", b"LIMIT", b"MODSEQ"];
    let keys = quota.as_kv().unwrap_or_default().iter();
    keys.filter(|(k, _)| !OTHER.contains(&k.as_slice())).count()
}

/// Hands over what is in a mailbox, one record at a time.
pub type Records<'a> = dyn FnMut(Record) -> Result<()> + 'a;

impl Cyrus {
    /// Reads a whole mailbox, expunged records too; `None` if there is none of that name.
    pub(super) fn full(
        &mut self,
        name: &str,
        each: &mut Records<'_>,
    ) -> Result<Option<MailboxHead>> {
        let mut head = None;
        let argument = Value::text(name);
        let status = self.csync()?.exchange(
            "GET FULLMAILBOX",
            &mut |w| {
                crate::cyrus::dlist::print(&argument, crate::cyrus::dlist::Form::Log, w)
                    .map_err(crate::client::stream::broken)
            },
            &mut |kind, parser| match kind {
                "MAILBOX" => {
                    head = Some(mailbox(parser, each)?);
                    Ok(())
                }
                _ => pass(kind, parser),
            },
        )?;
        match (&status, status.code()) {
            (Status::Ok, _) => Ok(head),
            (_, Some("IMAP_MAILBOX_NONEXISTENT")) => Ok(None),
            _ => status
                .check(&format!("GET FULLMAILBOX {name}"))
                .map(|()| None),
        }
    }
}

fn mailbox(parser: &mut Parser<&mut Stream>, each: &mut Records<'_>) -> Result<MailboxHead> {
    let bad = || Error::new(Kind::Protocol, "an answer that is no MAILBOX");
    if !matches!(parser.start()?, Start::Kv) {
        return Err(bad());
    }
    let mut head = MailboxHead { keys: Vec::new() };
    while let Some(key) = parser.kv_next()? {
        if key != b"RECORD" {
            head.keys.push((key, parser.value()?));
            continue;
        }
        if !matches!(parser.start()?, Start::List) {
            return Err(bad());
        }
        while parser.list_next()? {
            each(Record::from_value(parser.value()?)?)?;
        }
    }
    Ok(head)
}
