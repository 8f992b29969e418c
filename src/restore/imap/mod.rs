//! Any IMAP server as a destination: mailboxes by CREATE, messages by APPEND with their flags and
//! internal dates, flags alone by STORE, subscriptions by SUBSCRIBE.
//!
//! Whoever gets the mail is logged in: with his own password, or by an administrator's right to act
//! for him. UIDs are the server's. What a message is recognized by is in `there`, how names are
//! written in `text`. A message the server refuses is told with its words and the run goes on; a
//! connection that breaks ends it, and run again it brings what is not there.

mod send;
mod text;
mod there;

use crate::client::Login;
use crate::client::csync::Timeouts;
use crate::client::imap::response::{Outcome, Token};
use crate::client::imap::{Imap, quote};
use crate::client::stream::Address;
use crate::client::tls::Trust;
use crate::cyrus::dlist::Value;
use crate::cyrus::mboxname::Namespace;
use crate::error::{Error, Kind, Result};
use crate::restore::{Became, Bodies, Destination, Done, Folder, Item, NOT_MADE, Own, Plan};
use send::Sender;
use std::collections::{BTreeMap, HashSet};
use text::{Names, Permanent, Space, Spaces};
use there::There;

/// UIDs in one STORE.
const AT_ONCE: usize = 500;

/// An IMAP server.
pub struct Append {
    name: String,
    address: Address,
    login: Option<Login>,
    trust: Trust,
    timeouts: Timeouts,
    ns: Namespace,
    /// Who is logged in or acted for.
    userid: String,
    imap: Option<Imap>,
    spaces: Spaces,
    names: Names,
}

/// A mailbox that was selected.
#[derive(Default)]
struct Selected {
    exists: u64,
    permanent: Permanent,
    read_only: bool,
}

impl Append {
    /// Over a connection on which `login` is logged in, if he can. Others than he are acted for
    /// over connections of their own.
    pub fn new(
        name: String,
        address: &Address,
        imap: Option<Imap>,
        login: Option<&Login>,
        (trust, timeouts): (&Trust, Timeouts),
        ns: &Namespace,
    ) -> Append {
        Append {
            name,
            address: address.clone(),
            userid: login.map(|l| l.user.clone()).unwrap_or_default(),
            login: login.cloned(),
            trust: trust.clone(),
            timeouts,
            ns: ns.clone(),
            imap,
            spaces: Spaces {
                personal: Space {
                    prefix: String::new(),
                    separator: "/".into(),
                },
                shared: None,
            },
            names: Names::default(),
        }
    }

    fn imap(&mut self) -> Result<&mut Imap> {
        let gone = || Error::new(Kind::Io, "there is no connection any more");
        self.imap.as_mut().ok_or_else(gone)
    }

    /// Runs a command and hands untagged data to `each`.
    fn run(&mut self, command: &[u8], each: &mut dyn FnMut(&[Token])) -> Result<Outcome> {
        self.imap()?.command(command, &mut |data| {
            each(data);
            Ok(())
        })
    }

    /// `VERB "name"REST`
    fn on(&mut self, verb: &str, name: &str, rest: &str) -> Result<Outcome> {
        self.run(&about(verb, name, rest), &mut |_| {})
    }

    /// Where the server keeps names of which kind.
    fn ask_spaces(&mut self) -> Result<()> {
        let mut spaces = None;
        if self.imap()?.has("NAMESPACE") {
            self.run(b"NAMESPACE", &mut |data| {
                if data.first().is_some_and(|t| t.is("NAMESPACE")) {
                    spaces = Spaces::read(data);
                }
            })?;
        }
        if spaces.is_none() {
            let mut separator = "/".to_owned();
            self.run(b"LIST \"\" \"\"", &mut |data| {
                if data.first().is_some_and(|t| t.is("LIST")) {
                    let text = data.get(2).and_then(Token::text);
                    separator = text.unwrap_or_default().to_owned();
                }
            })?;
            spaces = Some(Spaces {
                personal: Space {
                    prefix: String::new(),
                    separator,
                },
                shared: None,
            });
        }
        if let Some(spaces) = spaces {
            self.spaces = spaces;
        }
        Ok(())
    }

    /// `SELECT`, or `EXAMINE`; the refusal if there is one.
    fn select(&mut self, name: &str, verb: &str) -> Result<std::result::Result<Selected, Outcome>> {
        let mut selected = Selected::default();
        let outcome = self.run(&about(verb, name, ""), &mut |data| match data {
            [n, word] if word.is("EXISTS") => selected.exists = n.number().unwrap_or(0),
            [ok, code, Token::List(list)] if ok.is("OK") && code.is("PERMANENTFLAGS") => {
                selected.permanent = Permanent::new(list);
            }
            _ => {}
        })?;
        selected.read_only = outcome.has("READ-ONLY");
        Ok(match outcome.is_ok() {
            true => Ok(selected),
            false => Err(outcome),
        })
    }

    /// Makes a mailbox; with its special use if the server takes that.
    fn create(&mut self, name: &str, folder: &Folder) -> Result<Outcome> {
        if self.imap()?.has("CREATE-SPECIAL-USE") {
            if let Some(special) = special_use(folder) {
                let outcome = self.on("CREATE", name, &format!(" (USE ({special}))"))?;
                if outcome.is_ok() {
                    return Ok(outcome);
                }
            }
        }
        self.on("CREATE", name, "")
    }

    /// The mailbox under the name it has there, selected, made if need be; `None`, and told, if it
    /// cannot be had. In a dry run one that is not there is empty.
    fn open(
        &mut self,
        name: String,
        folder: &Folder,
        dry_run: bool,
        done: &mut Done,
    ) -> Result<Option<(String, Selected)>> {
        let first = match self.try_open(&name, folder, dry_run, done)? {
            Ok(selected) => return Ok(Some((name, selected))),
            Err(refused) => refused,
        };
        // RFC 5530: never under this name.
        let other = match first.has("CANNOT") {
            true => self.names.instead(&name, &folder.to, &self.spaces),
            false => None,
        };
        let mut refused = first;
        refused.text.push_str(&format!(" ({name})"));
        if let Some(other) = other {
            match self.try_open(&other, folder, dry_run, done)? {
                Ok(selected) => {
                    done.notes.push(format!("the server calls it {other}"));
                    return Ok(Some((other, selected)));
                }
                Err(second) => refused = second,
            }
        }
        match folder.flags_only {
            true => done.notes.push(format!("there is no {name}: {refused}")),
            false if folder.only_there => done.failed.push((0, format!("{NOT_MADE}: {refused}"))),
            false => done.failed.push((0, refused.to_string())),
        }
        Ok(None)
    }

    fn try_open(
        &mut self,
        name: &str,
        folder: &Folder,
        dry_run: bool,
        done: &mut Done,
    ) -> Result<std::result::Result<Selected, Outcome>> {
        let verb = if dry_run { "EXAMINE" } else { "SELECT" };
        let first = match self.select(name, verb)? {
            Ok(selected) => return Ok(Ok(selected)),
            Err(refused) => refused,
        };
        if folder.flags_only || folder.only_there || first.has("CANNOT") {
            return Ok(Err(first));
        }
        if dry_run {
            done.made = true;
            return Ok(Ok(Selected::default()));
        }
        let made = self.create(name, folder)?;
        if !made.is_ok() {
            // Why it cannot be selected says more, if it is there.
            let is_there = made.has("ALREADYEXISTS");
            return Ok(Err(if is_there { first } else { made }));
        }
        done.made = true;
        self.select(name, verb)
    }

    /// Gives others their rights in a mailbox that was made; its owner has his from the server.
    fn share(&mut self, name: &str, folder: &Folder, done: &mut Done) -> Result<()> {
        let words: Vec<&str> = match &folder.acl {
            Some(acl) => acl.split('\t').filter(|w| !w.is_empty()).collect(),
            None => return Ok(()),
        };
        let others: Vec<(&str, &str)> = words
            .chunks_exact(2)
            .map(|pair| (pair[0], pair[1]))
            .filter(|(who, _)| *who != self.userid)
            .collect();
        if !others.is_empty() && !self.imap()?.has("ACL") {
            done.notes.push("the server has no ACLs".into());
            return Ok(());
        }
        for (who, rights) in others {
            let mut rest = b" ".to_vec();
            if quote(who.as_bytes(), &mut rest).is_none() {
                done.notes.push(format!("ACL: {who}: not ASCII"));
                continue;
            }
            rest.push(b' ');
            let _ = quote(rights.as_bytes(), &mut rest);
            let rest = String::from_utf8_lossy(&rest).into_owned();
            let outcome = self.on("SETACL", name, &rest)?;
            if !outcome.is_ok() {
                done.notes.push(format!("ACL: {who}: {outcome}"));
            }
        }
        Ok(())
    }

    /// Gives messages that are there the flags they had.
    fn store(
        &mut self,
        found: &[(u32, &Item)],
        there: &There,
        permanent: &Permanent,
        dry_run: bool,
        done: &mut Done,
    ) -> Result<()> {
        let mut wanted: BTreeMap<String, Vec<(u32, u32)>> = BTreeMap::new();
        let mut lost = HashSet::new();
        for (uid, item) in found {
            let flags = text::flags(&item.record);
            let (flags, others): (Vec<String>, Vec<String>) =
                flags.into_iter().partition(|f| permanent.keeps(f));
            lost.extend(others);
            let folded = |f: &String| f.to_ascii_lowercase();
            let now: HashSet<String> = there.flags(*uid).iter().map(folded).collect();
            if now != flags.iter().map(folded).collect() {
                let list = wanted.entry(flags.join(" ")).or_default();
                list.push((*uid, item.record.uid));
            }
        }
        if !lost.is_empty() {
            let mut lost: Vec<String> = lost.into_iter().collect();
            lost.sort();
            let what = format!("the server does not keep {}", lost.join(" "));
            done.notes.push(what);
        }
        for (flags, uids) in wanted {
            for some in uids.chunks(AT_ONCE) {
                if dry_run {
                    done.flagged += some.len() as u64;
                    continue;
                }
                let set: Vec<String> = some.iter().map(|(uid, _)| uid.to_string()).collect();
                let command = format!("UID STORE {} FLAGS.SILENT ({flags})", set.join(","));
                let outcome = self.run(command.as_bytes(), &mut |_| {})?;
                match outcome.is_ok() {
                    true => done.flagged += some.len() as u64,
                    false => {
                        let why = |(_, uid): &(u32, u32)| (*uid, format!("STORE: {outcome}"));
                        done.failed.extend(some.iter().map(why));
                    }
                }
            }
        }
        Ok(())
    }

    /// Names that are subscribed.
    fn subscribed(&mut self) -> Result<HashSet<String>> {
        let mut names = HashSet::new();
        self.run(b"LSUB \"\" \"*\"", &mut |data| {
            if data.first().is_some_and(|t| t.is("LSUB")) {
                let name = data.get(3).and_then(Token::text);
                names.extend(name.map(str::to_owned));
            }
        })?;
        Ok(names)
    }
}

fn about(verb: &str, name: &str, rest: &str) -> Vec<u8> {
    let mut command = format!("{verb} ").into_bytes();
    // Names are UTF-7.
    let _ = quote(name.as_bytes(), &mut command);
    command.extend_from_slice(rest.as_bytes());
    command
}

/// `\Sent` and the like.
fn special_use(folder: &Folder) -> Option<String> {
    let annotations = folder.head.get("ANNOTATIONS")?.as_list()?;
    let one = annotations.iter().find(|a| {
        let entry = a.get("ENTRY").and_then(Value::as_str);
        entry == Some("/specialuse")
    })?;
    let value = one.get("VALUE")?.as_str()?;
    let fine = |w: &&str| {
        let word = w.strip_prefix('\\').unwrap_or_default();
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    let words: Vec<&str> = value.split(' ').filter(fine).collect();
    (!words.is_empty()).then(|| words.join(" "))
}

impl Destination for Append {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn begin(&mut self, plan: &Plan, _dry_run: bool) -> Result<()> {
        let other = !plan.userid.is_empty() && plan.userid != self.userid;
        if other || self.imap.is_none() {
            if let Some(imap) = self.imap.take() {
                imap.logout();
            }
            let login = self.login.as_ref();
            let authzid = if other { plan.userid.as_str() } else { "" };
            let imap = Imap::connect(
                &self.address,
                login,
                authzid,
                &self.trust,
                self.timeouts.clone(),
            );
            self.imap = Some(imap.map_err(|e| match other {
                true => e.place(format!("to act for {authzid}")),
                false => e,
            })?);
            if other {
                self.userid.clone_from(&plan.userid);
            }
        }
        self.names = Names::default();
        self.ask_spaces()
    }

    fn folder(
        &mut self,
        folder: &Folder,
        bodies: &mut dyn Bodies,
        dry_run: bool,
        done: &mut Done,
    ) -> Result<()> {
        if folder.keep_uids {
            let why = "APPEND cannot keep UIDs: log in as an administrator of a Cyrus server";
            return Err(Error::new(Kind::Usage, why));
        }
        let given = self
            .names
            .give(&folder.to, &self.userid, &self.ns, &self.spaces);
        let name = match given {
            Ok(name) => name,
            Err(why) => {
                done.failed.push((0, why));
                return Ok(());
            }
        };
        let Some((name, selected)) = self.open(name, folder, dry_run, done)? else {
            return Ok(());
        };
        let mut there = match selected.exists {
            0 => There::none(),
            _ => There::ask(self.imap()?, &folder.items, folder.flags_only)?,
        };
        let mut found = Vec::new();
        let mut wanted = Vec::new();
        for item in &folder.items {
            match there.take(self.imap()?, item, bodies)? {
                Some(uid) => found.push((uid, item)),
                None => wanted.push(item),
            }
        }
        done.there = found.len() as u64;
        if folder.flags_only {
            if selected.read_only && !dry_run {
                done.failed.push((0, "the mailbox is read-only".into()));
                return Ok(());
            }
            let permanent = match dry_run {
                // EXAMINE lets nothing be changed.
                true => Permanent::default(),
                false => selected.permanent,
            };
            return self.store(&found, &there, &permanent, dry_run, done);
        }
        if dry_run {
            done.brought = wanted.len() as u64;
            done.bytes = wanted.iter().map(|i| i.record.size).sum();
            return Ok(());
        }
        if done.made {
            self.share(&name, folder, done)?;
        }
        if self.imap()?.has("UNSELECT") {
            self.run(b"UNSELECT", &mut |_| {})?;
        }
        let permanent = selected.permanent;
        Sender::new(self.imap()?, bodies, &name, &permanent, done).send(&wanted)
    }

    fn user(&mut self, plan: &Plan, dry_run: bool, told: &mut Vec<Own>) -> Result<()> {
        for (is_there, what) in [
            (!plan.scripts.is_empty(), "sieve scripts"),
            (!plan.seen.is_empty(), "seen states of others' mailboxes"),
            (!plan.quotas.is_empty(), "quota"),
        ] {
            if is_there {
                told.push(Own::failed(what, "", "cannot be brought by IMAP"));
            }
        }
        if plan.subscriptions.is_empty() {
            return Ok(());
        }
        let there = self.subscribed()?;
        for internal in &plan.subscriptions {
            let given = self
                .names
                .give(internal, &self.userid, &self.ns, &self.spaces);
            let kind = "subscription";
            told.push(match given {
                Ok(name) if there.contains(&name) => Own::new(kind, internal, Became::There),
                Ok(_) if dry_run => Own::new(kind, internal, Became::Brought),
                Ok(name) => match self.on("SUBSCRIBE", &name, "")? {
                    outcome if outcome.is_ok() => Own::new(kind, internal, Became::Brought),
                    outcome => Own::failed(kind, internal, outcome.to_string()),
                },
                Err(why) => Own::failed(kind, internal, why),
            });
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        if let Some(imap) = self.imap.take() {
            imap.logout();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
