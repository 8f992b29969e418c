//! A user gets another name: the backup, with all of its past, goes along.
//!
//! First the log says so: one durable unit names the new owner (a further GENERATION fact, of the
//! same ID), states each mailbox under its new name, and moves subscriptions and quota roots. Then
//! one transaction of the catalogue takes the old entry away and enters the new one. The file keeps
//! its name. Interrupted in between, the log says the new name and the catalogue the old one: the
//! same call again does the second step, and `rescan --fix` would, too.
//!
//! Mailboxes that were deleted on the server and kept there (`DELETED.`) keep the old user's name
//! there. So they are over here, with their past, and a sync of the old name begins a backup for them.
//!
//! What an interrupted move has left would be another's under the old name, and nobody would look for it
//! there any more: first that is ended.
//!
//! Fails with `Exists` if the new name has a backup, `NotFound`, `Locked`, `Usage` for names that are
//! no users; then nothing is changed.

use super::backup::{Backup, Settings};
use super::catalog::Catalog;
use super::erased;
use super::former;
use super::index::Index;
use super::line::{Line, generation, mailbox_head};
use super::lock::{Create, Wait};
use super::moving;
use crate::cyrus::dlist::Value;
use crate::cyrus::mboxname::{MboxName, Namespace, Owner, inbox_of};
use crate::error::{Error, Kind, Result};
use crate::util::time::Timestamp;
use std::path::PathBuf;

/// Gives the backup of the user `old` to the user `new`. Its log's path. Waits for its lock as told.
pub fn rename(
    catalog: &Catalog,
    (old, new): (&str, &str),
    wait: Wait,
    settings: Settings,
    ns: &Namespace,
    now: Timestamp,
) -> Result<PathBuf> {
    for name in [old, new] {
        if !matches!(Owner::from_key(name), Some(Owner::User(_))) {
            return Err(Error::new(Kind::Usage, format!("{name} is no user")));
        }
    }
    if old == new {
        return Err(Error::new(Kind::Usage, format!("{new} is the same user")));
    }
    let path = catalog
        .lookup(old)?
        .ok_or_else(|| Error::new(Kind::NotFound, format!("{old}: no backup")))?;
    let taken = || {
        Error::new(
            Kind::Exists,
            format!("{new} has a backup: nothing is renamed"),
        )
    };
    if catalog.lookup(new)?.is_some() {
        return Err(taken());
    }
    former::settle_back(catalog, old, &path, ns)?;
    // A log that does not name itself yet will name the new owner.
    let mut backup = Backup::open(&path, new, wait, Create::No, settings)
        .map_err(|e| former::explain(e, &path))?;
    if catalog.lookup(old)?.as_ref() != Some(&path) {
        let e = Error::new(Kind::Locked, "the backup has moved meanwhile: try again");
        return Err(e.for_user(old));
    }
    former::finish(catalog, old, &path)?;
    if let Some(left) = moving::unended(catalog, &path)? {
        let what = "a move of it was interrupted and left that, or may have if its partition is not mounted: \
                    move --to PARTITION ends it first";
        return Err(Error::new(Kind::Locked, what).at(&left).for_user(old));
    }
    // Before anything says the new name: what was erased of the one is erased of the other.
    erased::inherit(catalog.path(), now, (old, new), &mut |_| Ok(true))?;
    if backup.index().meta_text("key")?.as_deref() != Some(new) {
        let lines = lines(backup.index(), old, new, ns)?;
        backup.append(&lines, now)?;
    }
    let lock = backup.into_lock()?;
    let changes = [(old.to_owned(), None), (new.to_owned(), Some(path.clone()))];
    catalog
        .exchange(&[(old, Some(&path)), (new, None)], &changes)
        .map_err(|e| match e.kind() {
            Kind::Changed => taken().because(e),
            _ => e,
        })?;
    drop(lock);
    log::info!(
        "backup renamed old=<{old}> new=<{new}> filename=<{}>",
        path.display()
    );
    Ok(path)
}

/// What the log is told.
fn lines(index: &Index, old: &str, new: &str, ns: &Namespace) -> Result<Vec<Line>> {
    let mut out = Vec::new();
    let id = index.meta_text("generation")?.unwrap_or_default();
    if !id.is_empty() {
        out.push(generation(&id, new));
    }
    let renamed = |name: &str| -> Option<String> {
        let parsed = MboxName::parse(name, ns).ok()?;
        let is_his = parsed.userid() == Some(old) && !parsed.is_deleted();
        let mut to = inbox_of(new, ns);
        for folder in parsed.folders() {
            to.push('.');
            to.push_str(&folder.replace('.', "^"));
        }
        is_his.then_some(to)
    };
    for row in index.mailboxes(false)? {
        match renamed(&row.mboxname) {
            Some(name) => {
                let mut head = row.head;
                head.set("MBOXNAME", Value::text(name));
                out.push(mailbox_head(&head));
            }
            None => out.push(Line::new("UNMAILBOX", &Value::text(row.mboxname))),
        }
    }
    let sub = |what, name: String| {
        let value = [
            ("USERID", Value::text(new)),
            ("MBOXNAME", Value::text(name)),
        ];
        Line::new(what, &Value::kv(value))
    };
    for row in index.subscriptions(false)? {
        if let Some(name) = renamed(&row.mboxname) {
            out.push(sub("UNSUB", row.mboxname));
            out.push(sub("SUB", name));
        }
    }
    for (root, value) in index.quotas()? {
        if let (Some(name), Value::Kv(mut keys)) = (renamed(&root), value) {
            keys.retain(|(key, _)| !key.eq_ignore_ascii_case(b"ROOT"));
            keys.insert(0, (b"ROOT".to_vec(), Value::text(name)));
            out.push(Line::private("UNQUOTA", Value::text(root)));
            out.push(Line::private("QUOTA", Value::Kv(keys)));
        }
    }
    Ok(out)
}
