//! A tree of files, one for each message: `eml:DIR`, `maildir:DIR`, and `tar:FILE`, which is an
//! `eml` tree in an archive. The layout is told in `doc/format.md` 11.
//!
//! The name of a message's file holds its UID and GUID, so that what is there is known without
//! reading it. A message that is there under another UID is there.

use super::document;
use super::maildir;
use super::names::{self, Layout, Taken};
use super::store::{self, Store};
use crate::cyrus::guid::Guid;
use crate::cyrus::mboxname::Namespace;
use crate::cyrus::sync::Record;
use crate::error::{Error, Kind, Result};
use crate::restore::{Became, Bodies, Destination, Done, Folder, Item, Own, Plan, is_of_message};
use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::path::PathBuf;

/// Which tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// `FOLDER/UID-GUID.eml`
    Eml,
    /// A Maildir++ in this directory.
    Maildir(PathBuf),
}

impl Form {
    fn layout(&self) -> Layout {
        match self {
            Form::Eml => Layout::Nested,
            Form::Maildir(_) => Layout::Dotted,
        }
    }

    /// The name of a message's file; of a Maildir without its flags, which readers change.
    fn file(&self, r: &Record) -> String {
        match self {
            Form::Eml => format!("{:010}-{}.eml", r.uid, r.guid),
            Form::Maildir(_) => maildir::base(r),
        }
    }

    fn parse(&self, name: &str) -> Option<(u32, Guid)> {
        match self {
            Form::Maildir(_) => maildir::parse(name),
            Form::Eml => {
                let (uid, guid) = name.strip_suffix(".eml")?.split_once('-')?;
                Some((uid.parse().ok()?, Guid::parse(guid.as_bytes())?))
            }
        }
    }
}

/// A tree as a destination.
pub struct Tree {
    name: String,
    form: Form,
    store: Box<dyn Store>,
    ns: Namespace,
    taken: Taken,
}

/// Messages of a folder that are there: by GUID their UIDs and file names.
type There = HashMap<Guid, Vec<(u32, String)>>;

/// Names of the files of those items that have another than theirs.
type Others = HashMap<(u32, Guid), String>;

impl Tree {
    /// A tree in a store; `name` is for people.
    pub fn new(name: String, form: Form, store: Box<dyn Store>, ns: Namespace) -> Tree {
        Tree {
            name,
            form,
            store,
            ns,
            taken: Taken::default(),
        }
    }

    /// Where a folder's messages lie, below the folder itself.
    fn inside(&self, path: &str) -> String {
        match self.form {
            Form::Eml => path.to_owned(),
            Form::Maildir(_) => format!("{path}/cur"),
        }
    }

    fn there(&mut self, path: &str) -> Result<Option<There>> {
        let mut lists = vec![self.store.list(&self.inside(path))?];
        if matches!(self.form, Form::Maildir(_)) {
            lists.push(self.store.list(&format!("{path}/new"))?);
        }
        if lists.iter().all(Option::is_none) {
            return Ok(None);
        }
        let mut there = There::new();
        for name in lists.into_iter().flatten().flatten() {
            if let Some((uid, guid)) = self.form.parse(&name) {
                let base = name.split(':').next().unwrap_or(&name).to_owned();
                there.entry(guid).or_default().push((uid, base));
            }
        }
        Ok(Some(there))
    }

    /// Puts one message. The inner error is of the message alone.
    fn message(
        &mut self,
        path: &str,
        item: &Item,
        bodies: &mut dyn Bodies,
    ) -> Result<std::result::Result<(), String>> {
        let r = &item.record;
        let mut of_message = false;
        let mtime = r.internaldate as i64;
        let done = self.store.put(path, r.size, mtime, &mut |w| {
            let mut of_writing = false;
            let sent = copy(bodies, r, w, &mut of_writing);
            of_message = !of_writing && sent.as_ref().is_err_and(is_of_message);
            sent
        });
        match done {
            Err(e) if of_message => Ok(Err(e.to_string())),
            done => done.map(Ok),
        }
    }

    /// Puts the messages that are wanted.
    fn fill(
        &mut self,
        path: &str,
        folder: &Folder,
        wanted: &[&Item],
        bodies: &mut dyn Bodies,
        done: &mut Done,
    ) -> Result<()> {
        let mut keywords = maildir::Keywords::default();
        if let Form::Maildir(root) = &self.form {
            keywords = maildir::prepare(&root.join(path), path.contains('/'), &folder.items)?;
        }
        for item in wanted {
            let r = &item.record;
            let mut file = format!("{}/{}", self.inside(path), self.form.file(r));
            if matches!(self.form, Form::Maildir(_)) {
                file.push_str(&keywords.flags(r));
            }
            match self.message(&file, item, bodies)? {
                Ok(()) => {
                    done.brought += 1;
                    done.bytes += r.size;
                }
                Err(why) => done.failed.push((r.uid, why)),
            }
        }
        self.store.settle()
    }

    fn mailbox(&mut self, path: &str, folder: &Folder, others: &Others) -> Result<bool> {
        let form = &self.form;
        let name = |r: &Record| {
            let other = others.get(&(r.uid, r.guid)).cloned();
            Some(other.unwrap_or_else(|| form.file(r)))
        };
        let write = |w: &mut dyn Write| document::mailbox(folder, &name, w);
        let stem = format!("{path}/mailbox");
        store::document(&mut *self.store, &stem, "json", None, &write)
    }
}

/// Streams a body and sees to it that it has the length its record says. `of_writing` is set when
/// it was the writing that failed.
pub(super) fn copy(
    bodies: &mut dyn Bodies,
    r: &Record,
    w: &mut dyn Write,
    of_writing: &mut bool,
) -> Result<()> {
    let mut size = 0;
    bodies.body(r.guid, &mut |part| {
        size += part.len() as u64;
        if size > r.size {
            return Err(wrong_size(r));
        }
        w.write_all(part).map_err(|e| {
            *of_writing = true;
            Error::io("cannot write", e)
        })
    })?;
    match size == r.size {
        true => Ok(()),
        false => Err(wrong_size(r)),
    }
}

fn wrong_size(r: &Record) -> Error {
    let what = format!("the message has not the {} bytes its record says", r.size);
    Error::new(Kind::Damaged, what)
}

/// What is asked of files but cannot be.
pub(super) fn refuse(folder: &Folder) -> Result<()> {
    match folder.flags_only {
        true => Err(Error::new(
            Kind::Usage,
            "flags alone cannot be brought to files",
        )),
        false => Ok(()),
    }
}

impl Destination for Tree {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn folder(
        &mut self,
        folder: &Folder,
        bodies: &mut dyn Bodies,
        dry_run: bool,
        done: &mut Done,
    ) -> Result<()> {
        refuse(folder)?;
        let path = match names::path(&folder.to, &self.ns, self.form.layout()) {
            Ok(path) => self.taken.give(path, &folder.to),
            Err(e) => {
                done.failed.push((0, e.to_string()));
                return Ok(());
            }
        };
        let there = self.there(&path)?;
        let is_new = there.is_none();
        done.made = is_new && dry_run;
        let mut there = there.unwrap_or_default();
        let (wanted, others) = split(&folder.items, &mut there);
        done.there = (folder.items.len() - wanted.len()) as u64;
        if dry_run {
            done.brought = wanted.len() as u64;
            done.bytes = wanted.iter().map(|i| i.record.size).sum();
            return Ok(());
        }
        let filled = self.fill(&path, folder, &wanted, bodies, done);
        if filled.is_err() {
            // What is whole shall be there, if it can.
            let _ = self.store.settle();
        }
        // What is not sure to be there is not.
        let (files, bytes) = self.store.waiting();
        done.brought = done.brought.saturating_sub(files);
        done.bytes = done.bytes.saturating_sub(bytes);
        done.made = is_new && done.brought > 0;
        filled?;
        self.mailbox(&path, folder, &others)?;
        self.store.settle()?;
        done.made = is_new;
        Ok(())
    }

    fn user(&mut self, plan: &Plan, dry_run: bool, told: &mut Vec<Own>) -> Result<()> {
        if !document::has_user(plan) {
            return Ok(());
        }
        user(&mut *self.store, "", plan, dry_run, told)?;
        if let (Form::Maildir(root), false) = (&self.form, dry_run) {
            let root = root.join(names::owner(&plan.userid));
            maildir::subscribe(&root, &plan.subscriptions, &self.ns)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.store.finish()
    }
}

/// The items that are not there, and the names of those that are there under another UID.
fn split<'a>(items: &'a [Item], there: &mut There) -> (Vec<&'a Item>, Others) {
    let mut left = Vec::new();
    // One UID may come from several epochs of a mailbox; with the same message it is the same.
    let mut seen = HashSet::new();
    for item in items {
        let r = &item.record;
        if !seen.insert((r.uid, r.guid)) {
            continue;
        }
        let exact = there
            .get_mut(&r.guid)
            .and_then(|list| Some((list.iter().position(|(uid, _)| *uid == r.uid)?, list)));
        match exact {
            Some((at, list)) => drop(list.swap_remove(at)),
            None => left.push(item),
        }
    }
    let mut others = Others::new();
    left.retain(|item| {
        let r = &item.record;
        match there.get_mut(&r.guid).and_then(Vec::pop) {
            Some((_, name)) => {
                others.insert((r.uid, r.guid), name);
                false
            }
            None => true,
        }
    });
    (left, others)
}

/// Puts `user.json` and the sieve scripts below `top`.
pub(super) fn user(
    store: &mut dyn Store,
    top: &str,
    plan: &Plan,
    dry_run: bool,
    told: &mut Vec<Own>,
) -> Result<()> {
    let owner = format!("{top}{}", names::owner(&plan.userid));
    let script = |filename: &str| {
        let name = filename.strip_suffix(".script").unwrap_or(filename);
        format!("sieve/{}", names::component(name))
    };
    let mut put = |own: (&'static str, &str), stem: &str, ext, mtime, text: &[u8]| {
        let write = |w: &mut dyn Write| w.write_all(text);
        let is_new = match dry_run {
            true => store::free(store, stem, ext, &write)?.is_some(),
            false => store::document(store, stem, ext, mtime, &write)?,
        };
        let became = if is_new {
            Became::Brought
        } else {
            Became::There
        };
        told.push(Own::new(own.0, own.1, became));
        Ok::<(), Error>(())
    };
    for s in &plan.scripts {
        let stem = format!("{owner}/{}", script(&s.filename));
        let mtime = i64::try_from(s.last_update).ok();
        put(("script", &s.filename), &stem, "sieve", mtime, &s.content)?;
    }
    let text = document::user(plan, &|name| format!("{}.sieve", script(name)));
    let stem = format!("{owner}/user");
    put(("file", "user.json"), &stem, "json", None, &text)?;
    match dry_run {
        true => Ok(()),
        false => store.settle(),
    }
}
