//! From mailbox rows to folders: which are meant, which of their records, and their names at the
//! destination.

use super::super::{Folder, Plan, Script};
use super::{Into, TREE, Wanted, Which};
use crate::cyrus::dlist::Value;
use crate::cyrus::mboxname::{MboxName, Namespace, inbox_of};
use crate::error::{Error, Kind, Result};
use crate::store::index::{Index, MailboxRow};
use std::collections::{BTreeMap, HashMap, HashSet};

/// What a mailbox row is about.
pub(super) struct Source {
    pub(super) row: MailboxRow,
    pub(super) name: MboxName,
    /// Its name before it was deleted.
    pub(super) base: String,
    /// When it was deleted.
    pub(super) deleted: Option<i64>,
    /// It is a tree that mail was brought back into, or is to be now, or below one.
    pub(super) is_copy: bool,
    /// It is wanted as such, not only messages of it.
    pub(super) whole: bool,
    /// It is alive, or all that is left of a mailbox whose end is wanted.
    pub(super) current: bool,
}

pub(super) struct Chooser<'a> {
    pub(super) index: &'a Index,
    pub(super) wanted: &'a Wanted,
    pub(super) ns: &'a Namespace,
    /// Whose mail it is, if anybody's.
    pub(super) from: Option<String>,
    pub(super) to: String,
}

impl Chooser<'_> {
    /// All mailboxes; those that only deletion named otherwise are live ones with `as_named`.
    pub(super) fn sources(&self, as_named: bool) -> Result<Vec<Source>> {
        let mut out = Vec::new();
        for row in self.index.mailboxes(true)? {
            // What cannot be a name cannot be restored under it either.
            let Ok(name) = MboxName::parse(&row.mboxname, self.ns) else {
                continue;
            };
            let (base, deleted) = match as_named {
                true => (row.mboxname.clone(), row.deleted),
                false => (name.undeleted(self.ns), name.deleted().or(row.deleted)),
            };
            let Ok(name) = MboxName::parse(&base, self.ns) else {
                continue;
            };
            out.push(Source {
                is_copy: self.is_copy(&name),
                whole: false,
                current: deleted.is_none(),
                name,
                base,
                deleted,
                row,
            });
        }
        Ok(out)
    }

    /// Whether mail was brought back into a mailbox, or is to be: it is in a tree for that, below the
    /// INBOX or a shared root, or the one mailbox that gets everything.
    fn is_copy(&self, name: &MboxName) -> bool {
        let folders = match name.userid() {
            Some(_) => name.folders(),
            None => name.folders().get(1..).unwrap_or_default(),
        };
        let stays = self.from.as_deref().unwrap_or_default() == self.to;
        let is_below = |tree: &[String]| {
            let mut tree = tree.iter().map(|part| part.replace('^', "."));
            folders.len() >= tree.len() && tree.by_ref().zip(folders).all(|(a, b)| a == *b)
        };
        folders.first().is_some_and(|top| top == TREE)
            || match &self.wanted.into {
                Into::Place => false,
                Into::Tree(tree) => stays && is_below(tree),
                Into::Mailbox(to) => name.internal() == to,
            }
    }

    /// Whether a mailbox is passed over unless it is named: what was brought back once is not brought
    /// back again from there, but where everything is as it was.
    pub(super) fn leaves_out(&self, source: &Source) -> bool {
        let w = self.wanted;
        let as_it_was = w.into == Into::Place && w.which == Which::Alive && !w.names_messages();
        source.is_copy && !as_it_was
    }

    /// Those that are wanted, wholly because they were named, or all but copies if nothing was; or
    /// because of messages that were named.
    pub(super) fn named(&self, mut sources: Vec<Source>) -> Result<Vec<Source>> {
        let w = self.wanted;
        for source in &mut sources {
            source.whole =
                w.mailboxes.is_empty() && !w.names_messages() && !self.leaves_out(source);
        }
        for pick in &w.mailboxes {
            let of = |test: &dyn Fn(&Source) -> bool| -> Vec<usize> {
                let found = sources.iter().enumerate().filter(|(_, s)| test(s));
                found.map(|(at, _)| at).collect()
            };
            let mut found = of(&|s| s.row.uniqueid == pick.typed);
            for name in &pick.names {
                if !found.is_empty() {
                    break;
                }
                let below = format!("{name}.");
                let is_copy = MboxName::parse(name, self.ns).is_ok_and(|n| self.is_copy(&n));
                let below = |s: &Source, text: &str| {
                    let open = w.recursive && (is_copy || !self.leaves_out(s));
                    open && text.starts_with(&below)
                };
                found = of(&|s| {
                    let names = [&s.base, &s.row.mboxname];
                    names.iter().any(|n| *n == name || below(s, n))
                });
            }
            if found.is_empty() {
                let what = format!("{}: no mailbox", pick.typed);
                return Err(Error::new(Kind::NotFound, what));
            }
            found.into_iter().for_each(|at| sources[at].whole = true);
        }
        sources.retain(|s| {
            let guids = w.guids.as_ref().is_some_and(|set| !set.is_empty());
            let of_messages = guids && !self.leaves_out(s);
            s.whole || of_messages || w.rows.contains_key(&s.row.uniqueid)
        });
        Ok(sources)
    }

    /// Of mailboxes those that matter.
    pub(super) fn taken(&self, mut sources: Vec<Source>, gone: bool) -> Vec<Source> {
        let w = self.wanted;
        for whole in [true, false] {
            // Named, or all that is left of the user: its last state.
            let dead_too = gone || (whole && !w.mailboxes.is_empty());
            let same = |s: &&Source| s.whole == whole;
            let live: HashSet<String> = sources
                .iter()
                .filter(same)
                .filter(|s| s.deleted.is_none())
                .map(|s| s.base.clone())
                .collect();
            let mut last: HashMap<String, (Option<i64>, i64)> = HashMap::new();
            for s in sources.iter().filter(same) {
                let best = last.entry(s.base.clone()).or_default();
                *best = (*best).max((s.deleted, s.row.id));
            }
            for s in sources.iter_mut().filter(|s| s.whole == whole) {
                let is_last = last.get(&s.base) == Some(&(s.deleted, s.row.id));
                s.current = s.deleted.is_none() || (dead_too && is_last && !live.contains(&s.base));
            }
        }
        let fits = |which, s: &Source| which != Which::Alive || s.current;
        sources.retain(|s| {
            let wanted =
                (s.whole && fits(w.which, s)) || (w.names_messages() && fits(w.which_named, s));
            wanted && (!s.row.intermediate || w.keep_uids)
        });
        sources
    }

    /// What cannot be anywhere but in its place.
    pub(super) fn skipped(&self, source: &Source, plan: &mut Plan) -> bool {
        let kind = source.row.head.text("MBOXTYPE").unwrap_or_default();
        let is_mail = kind.is_empty() || kind.starts_with(['e', 'i']);
        if !is_mail && self.wanted.into != Into::Place && !source.row.intermediate {
            plan.notes.push(format!(
                "{}: not mail (type {kind}): comes back in its place only",
                source.base
            ));
            return true;
        }
        false
    }

    pub(super) fn folder(&self, s: &Source) -> Folder {
        let mut head = s.row.head.clone();
        let in_place = self.wanted.into == Into::Place;
        if !in_place {
            // A second \Sent would confuse every client.
            if let Some(Value::List(list)) = head.get("ANNOTATIONS").cloned() {
                let special =
                    |v: &Value| v.get("ENTRY").and_then(Value::as_str) == Some("/specialuse");
                let rest = list.into_iter().filter(|v| !special(v)).collect();
                head.set("ANNOTATIONS", Value::List(rest));
            }
        }
        let acl = match &self.wanted.acl {
            Some(acl) => Some(acl.clone()).filter(|a| !a.is_empty()),
            None => head.text("ACL").map(|acl| self.acl(acl)),
        };
        Folder {
            from: s.base.clone(),
            to: self.place(&s.name),
            head,
            items: Vec::new(),
            tombstones: Vec::new(),
            bodiless: 0,
            flags_only: self.wanted.flags_only,
            only_there: !self.to.is_empty() && self.is_into_shared(),
            keep_uids: self.wanted.keep_uids,
            partition: self.wanted.partition.clone(),
            acl,
        }
    }

    fn is_into_shared(&self) -> bool {
        match &self.wanted.into {
            Into::Mailbox(to) => {
                MboxName::parse(to, self.ns).is_ok_and(|name| name.userid().is_none())
            }
            Into::Place | Into::Tree(_) => false,
        }
    }

    /// ACLs by name at the destination, of whoever keeps what was his.
    pub(super) fn acls(&self, sources: &[Source]) -> HashMap<String, String> {
        let stays = self.from.as_deref().unwrap_or_default() == self.to;
        if !stays || self.wanted.acl.as_ref().is_some_and(String::is_empty) {
            return HashMap::new();
        }
        // Those that live come last and count.
        let (dead, live): (Vec<_>, Vec<_>) = sources.iter().partition(|s| s.deleted.is_some());
        let both = dead.into_iter().chain(live);
        let acl = |s: &Source| Some((self.own_place(&s.name), s.row.head.text("ACL")?.to_owned()));
        both.filter_map(acl).collect()
    }

    /// The ACL with the new owner in the old one's place.
    fn acl(&self, acl: &str) -> String {
        let Some(from) = self.from.as_deref().filter(|f| *f != self.to) else {
            return acl.to_owned();
        };
        let mut words: Vec<&str> = acl.split('\t').collect();
        for at in (0..words.len()).step_by(2) {
            if words[at] == from {
                words[at] = &self.to;
            }
        }
        words.join("\t")
    }

    /// The name at the destination.
    fn place(&self, name: &MboxName) -> String {
        if self.wanted.keep_uids {
            return name.internal().to_owned();
        }
        let (root, mut rest) = self.split(name);
        let mut parts = vec![root];
        match &self.wanted.into {
            Into::Place => {}
            Into::Mailbox(name) => return name.clone(),
            Into::Tree(tree) => {
                parts.extend(tree.iter().cloned());
                if rest.is_empty() && name.userid().is_some() {
                    rest.push("INBOX".into());
                }
            }
        }
        parts.extend(rest);
        parts.join(".")
    }

    /// The same without a tree or another mailbox.
    fn own_place(&self, name: &MboxName) -> String {
        let (root, rest) = self.split(name);
        let mut parts = vec![root];
        parts.extend(rest);
        parts.join(".")
    }

    /// The INBOX or shared root at the destination, and the folders below it.
    fn split(&self, name: &MboxName) -> (String, Vec<String>) {
        let folders: Vec<String> = name.folders().iter().map(|f| f.replace('.', "^")).collect();
        let is_own = name.userid().is_some() && name.userid() == self.from.as_deref();
        match name.userid() {
            Some(_) if is_own => (inbox_of(&self.to, self.ns), folders),
            Some(userid) => (inbox_of(userid, self.ns), folders),
            None => {
                let domain = name.domain().map(|d| format!("{d}!")).unwrap_or_default();
                let (first, rest) = match folders.split_first() {
                    Some((first, rest)) => (first.clone(), rest.to_vec()),
                    None => (String::new(), Vec::new()),
                };
                (format!("{domain}{first}"), rest)
            }
        }
    }

    /// Where a name that somebody subscribed to, or a quota root, is afterwards.
    fn moved(&self, mboxname: &str) -> String {
        match MboxName::parse(mboxname, self.ns) {
            Ok(name) if name.userid().is_some() && name.userid() == self.from.as_deref() => {
                self.place(&name)
            }
            _ => mboxname.to_owned(),
        }
    }

    /// What is not mail, of a state of the backup.
    pub(super) fn user(&self, index: &Index, gone: bool, plan: &mut Plan) -> Result<()> {
        let what = self.wanted.what;
        let dead = self.wanted.which != Which::Alive;
        if what.subscriptions {
            let mut rows = index.subscriptions(gone || dead)?;
            if gone && !dead {
                let end = rows.iter().filter_map(|r| r.unsubscribed).max();
                rows.retain(|r| r.unsubscribed.is_none() || r.unsubscribed == end);
            }
            plan.subscriptions = rows.iter().map(|r| self.moved(&r.mboxname)).collect();
            plan.subscriptions.sort();
            plan.subscriptions.dedup();
        }
        if what.seen {
            let rows = index.seen_states()?;
            plan.seen = rows.into_iter().map(|r| (r.uniqueid, r.value)).collect();
        }
        if what.sieve {
            let mut rows = index.scripts(gone || dead)?;
            if gone && !dead {
                let end = rows.iter().filter_map(|r| r.deleted).max();
                rows.retain(|r| r.deleted.is_none() || r.deleted == end);
            }
            // Versions stand in order of age.
            let last: BTreeMap<_, _> = rows.into_iter().map(|r| (r.filename.clone(), r)).collect();
            plan.scripts = last
                .into_values()
                .map(|r| Script {
                    filename: r.filename,
                    last_update: r.last_update,
                    content: r.content,
                })
                .collect();
            plan.active_script = index.active_script()?;
        }
        if what.quota {
            let mut rows = index.quotas()?;
            if gone && rows.is_empty() {
                rows = index.last_quotas()?;
            }
            let moved = rows.into_iter().map(|(root, v)| (self.moved(&root), v));
            plan.quotas = moved.collect();
        }
        Ok(())
    }
}
