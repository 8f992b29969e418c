//! A Cyrus server as the destination, over its replication protocol: on the port of its own, or
//! inside IMAP.
//!
//! `bring` adds messages with RESTORE, where the server decides on UIDs; `flags` puts flags back;
//! `rebuild` makes mailboxes exactly as they were with APPLY MAILBOX; `upload` gets bodies there;
//! `there` knows what the server has; `user` brings what is not mail. Traps of old servers are avoided
//! here, not left to the administrator: no mailbox annotations in RESTORE, RECORD always there,
//! parents before children, never a record without its body.
//!
//! Source: Cyrus `imap/sync_support.c`; `doc/replication-protocol.md` 2.4 and 8.

mod bring;
mod flags;
mod rebuild;
mod there;
mod upload;
mod user;

use super::{Bodies, Destination, Done, Folder, Own, Plan};
use crate::client::csync::{Csync, Status};
use crate::client::stream::Stream;
use crate::cyrus::dlist::{Parser, Value};
use crate::cyrus::mboxname::{MboxName, Namespace};
use crate::cyrus::sync::MailboxHead;
use crate::error::{Error, Kind, Result};
use std::collections::{HashMap, HashSet};
use there::User;

/// A connection to a Cyrus server.
pub struct Cyrus {
    /// `None` once it is closed.
    csync: Option<Csync>,
    name: String,
    ns: Namespace,
    user: User,
    /// What the backup knows of mailboxes that may have to be made above others.
    acls: HashMap<String, String>,
    /// Those that a dry run has told of.
    planned: HashSet<String>,
    /// That limits are not minded was said.
    is_limit_told: bool,
}

impl Cyrus {
    /// Over a connection that is logged in; `name` is for people.
    pub fn new(csync: Csync, name: String, ns: Namespace) -> Cyrus {
        Cyrus {
            csync: Some(csync),
            name,
            ns,
            user: User::default(),
            acls: HashMap::new(),
            planned: HashSet::new(),
            is_limit_told: false,
        }
    }

    fn csync(&mut self) -> Result<&mut Csync> {
        let closed = || Error::new(Kind::Internal, "connection was closed");
        self.csync.as_mut().ok_or_else(closed)
    }

    /// Asks the server about mailboxes by name.
    fn ask(&mut self, names: &[String]) -> Result<()> {
        let list = Value::List(names.iter().map(Value::text).collect());
        let (lines, status) = self.csync()?.command("GET MAILBOXES", &list)?;
        if !matches!(status.code(), Some("IMAP_MAILBOX_NONEXISTENT")) {
            status.check("GET MAILBOXES")?;
        }
        for (kind, value) in lines {
            self.user.take(&kind, value);
        }
        Ok(())
    }

    /// What is known of a mailbox that is there.
    fn head(&self, name: &str) -> Option<&MailboxHead> {
        self.user.mailboxes.get(name)
    }

    /// Names above a mailbox, from the INBOX or shared root down.
    fn parents(&self, name: &str) -> Vec<String> {
        let (prefix, rest) = match name.split_once('!') {
            Some((domain, rest)) => (format!("{domain}!"), rest),
            None => (String::new(), name),
        };
        let parts: Vec<&str> = rest.split('.').collect();
        // user.anna is one step.
        let first = if parts[0] == "user" { 2 } else { 1 };
        let above = first..parts.len();
        above
            .map(|n| format!("{prefix}{}", parts[..n].join(".")))
            .collect()
    }

    /// Where a mailbox lies or is to lie: bodies must be brought to the same partition.
    fn partition(&self, folder: &Folder) -> Option<String> {
        let of = |name: &str| self.head(name)?.text("PARTITION").map(str::to_owned);
        of(&folder.to)
            .or_else(|| folder.partition.clone())
            .or_else(|| self.partition_above(&folder.to))
            .or_else(|| folder.head.text("PARTITION").map(str::to_owned))
    }

    fn partition_above(&self, name: &str) -> Option<String> {
        let of = |name: &String| self.head(name)?.text("PARTITION").map(str::to_owned);
        self.parents(name).iter().rev().find_map(of)
    }
}

/// Reads over a data line that tells nothing we need.
fn pass(_: &str, parser: &mut Parser<&mut Stream>) -> Result<()> {
    parser.value()?;
    Ok(())
}

/// What a refusal is to people.
fn refused(what: &str, status: &Status) -> String {
    match status {
        Status::Ok => what.to_owned(),
        Status::No(text) => format!("{what}: the server says: {text}"),
    }
}

impl Destination for Cyrus {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn begin(&mut self, plan: &Plan, _dry_run: bool) -> Result<()> {
        self.user = User::default();
        self.acls.clone_from(&plan.acls);
        self.planned.clear();
        self.is_limit_told = false;
        if !plan.userid.is_empty() {
            let userid = Value::text(&plan.userid);
            let (lines, status) = self.csync()?.command("GET USER", &userid)?;
            if !matches!(status.code(), Some("IMAP_MAILBOX_NONEXISTENT")) {
                status.check("GET USER")?;
            }
            for (kind, value) in lines {
                self.user.take(&kind, value);
            }
        }
        // What does not belong to the user: shared folders and what is above them, where mail was.
        let mut names: Vec<String> = Vec::new();
        for folder in &plan.folders {
            names.extend([&folder.to, &folder.from].map(Clone::clone));
            names.extend(self.parents(&folder.to));
        }
        names.sort();
        names.dedup();
        names.retain(|n| {
            let owner = MboxName::parse(n, &self.ns).ok();
            let owner = owner.as_ref().and_then(MboxName::userid);
            owner != Some(plan.userid.as_str()) && !self.user.mailboxes.contains_key(n)
        });
        for part in names.chunks(1000) {
            self.ask(part)?;
        }
        Ok(())
    }

    fn folder(
        &mut self,
        folder: &Folder,
        bodies: &mut dyn Bodies,
        dry_run: bool,
        done: &mut Done,
    ) -> Result<()> {
        if folder.flags_only {
            return self.put_flags(folder, dry_run, done);
        }
        if folder.keep_uids {
            return self.rebuild(folder, bodies, dry_run, done);
        }
        self.bring(folder, bodies, dry_run, done)
    }

    fn user(&mut self, plan: &Plan, dry_run: bool, told: &mut Vec<Own>) -> Result<()> {
        self.bring_user(plan, dry_run, told)
    }

    fn finish(&mut self) -> Result<()> {
        if let Some(mut csync) = self.csync.take() {
            csync.restart()?;
            csync.close();
        }
        Ok(())
    }
}
