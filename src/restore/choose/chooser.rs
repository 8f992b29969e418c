//! From mailbox rows to folders: which are meant, which of their records, and their names at the
//! destination.

use super::super::{Folder, Item, Plan, Script};
use super::{Into, Part, TREE, Wanted, Which};
use crate::cyrus::dlist::Value;
use crate::cyrus::guid::Guid;
use crate::cyrus::mboxname::{MboxName, Namespace, inbox_of};
use crate::cyrus::sync::Record;
use crate::error::{Error, Kind, Result};
use crate::store::index::{Index, MailboxRow, RecordRow};
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
        let as_it_was = self.wanted.into == Into::Place && self.wanted.which == Which::Alive;
        source.is_copy && !as_it_was
    }

    /// Those that were named; all but copies, if none was.
    pub(super) fn named(&self, sources: Vec<Source>) -> Result<Vec<Source>> {
        if self.wanted.mailboxes.is_empty() {
            let mut sources = sources;
            sources.retain(|s| !self.leaves_out(s));
            return Ok(sources);
        }
        let mut keep = vec![false; sources.len()];
        for pick in &self.wanted.mailboxes {
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
                    let open = self.wanted.recursive && (is_copy || !self.leaves_out(s));
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
            found.into_iter().for_each(|at| keep[at] = true);
        }
        let kept = sources.into_iter().zip(keep).filter(|(_, keep)| *keep);
        Ok(kept.map(|(source, _)| source).collect())
    }

    /// Of mailboxes those that matter.
    pub(super) fn taken(&self, mut sources: Vec<Source>, gone: bool) -> Vec<Source> {
        if self.wanted.which == Which::Alive {
            let live: HashSet<String> = sources
                .iter()
                .filter(|s| s.deleted.is_none())
                .map(|s| s.base.clone())
                .collect();
            let mut last: HashMap<String, (Option<i64>, i64)> = HashMap::new();
            for s in &sources {
                let best = last.entry(s.base.clone()).or_default();
                *best = (*best).max((s.deleted, s.row.id));
            }
            // Named, or all that is left of the user: its last state.
            let dead_too = gone || !self.wanted.mailboxes.is_empty();
            sources.retain(|s| {
                let end = dead_too && !live.contains(&s.base);
                s.deleted.is_none() || (end && last.get(&s.base) == Some(&(s.deleted, s.row.id)))
            });
        }
        sources.retain(|s| !s.row.intermediate || self.wanted.keep_uids);
        sources
    }

    /// Reads a folder's messages.
    pub(super) fn fill(&self, part: &mut Part, alive: &HashSet<Guid>) -> Result<()> {
        let folder = &mut part.folder;
        folder.bodiless = 0;
        for source in &part.sources {
            let mut chosen = Chosen::default();
            self.records(source, alive, &mut chosen)?;
            folder.items.append(&mut chosen.items);
            folder.tombstones.append(&mut chosen.tombstones);
            folder.bodiless += chosen.bodiless;
        }
        if self.wanted.which != Which::Alive {
            folder.items.sort_by_key(|i| i.record.uid);
        }
        Ok(())
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

    pub(super) fn alive(&self) -> Result<HashSet<Guid>> {
        let mut alive = HashSet::new();
        let sources = self.sources(false)?;
        // What lives only as a copy that was brought back is not where it was.
        for s in sources.iter().filter(|s| s.deleted.is_none() && !s.is_copy) {
            let epoch = Some(s.row.epoch);
            self.index.records(s.row.id, epoch, false, &mut |r| {
                alive.insert(r.record.guid);
                Ok(())
            })?;
        }
        Ok(alive)
    }

    fn records(&self, s: &Source, alive: &HashSet<Guid>, to: &mut Chosen) -> Result<()> {
        let w = self.wanted;
        let within = |t: i64| w.since.is_none_or(|x| t >= x) && w.until.is_none_or(|x| t <= x);
        let named = |guid: &Guid| w.guids.as_ref().is_none_or(|set| set.contains(guid));
        let (epoch, with_expunged) = match w.which {
            Which::Alive => (Some(s.row.epoch), w.keep_uids),
            _ => (None, true),
        };
        // Ever: what lives here, and where each message that does not was last.
        let mut here = HashSet::new();
        let mut dead: HashMap<Guid, usize> = HashMap::new();
        self.index
            .records(s.row.id, epoch, with_expunged, &mut |row| {
                if !named(&row.record.guid) {
                    return Ok(());
                }
                let date = row.record.internaldate as i64;
                let lives = row.expunged.is_none();
                match w.which {
                    Which::Alive if !lives => {
                        if !row.gone {
                            let mut record = row.record;
                            record.expunged = true;
                            to.tombstones.push(record);
                        }
                        return Ok(());
                    }
                    Which::Alive | Which::Ever => {
                        if !within(date) {
                            return Ok(());
                        }
                    }
                    Which::Deleted => {
                        let time = match (row.expunged, s.deleted) {
                            (Some(time), _) => time,
                            (None, Some(time)) => time,
                            (None, None) => return Ok(()),
                        };
                        let moved = s.deleted.is_none() && alive.contains(&row.record.guid);
                        if !within(time) || moved {
                            return Ok(());
                        }
                    }
                }
                let guid = row.record.guid;
                let lives_here = lives && (w.which != Which::Deleted || s.deleted.is_some());
                if w.which != Which::Alive {
                    if lives_here {
                        here.insert(guid);
                    } else {
                        // A later one takes its place.
                        if let Some(at) = dead.insert(guid, to.items.len()) {
                            to.doubled.push(at);
                        }
                    }
                }
                if row.missing && !lives {
                    to.bodiless += 1;
                    to.doubled.extend(dead.remove(&guid));
                }
                to.items.push(item(row));
                Ok(())
            })?;
        for (guid, at) in dead {
            if here.contains(&guid) {
                to.doubled.push(at);
            }
        }
        to.settle();
        Ok(())
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

/// What was chosen of one mailbox.
#[derive(Default)]
struct Chosen {
    items: Vec<Item>,
    tombstones: Vec<Record>,
    bodiless: u64,
    /// Items that another one stands for.
    doubled: Vec<usize>,
}

impl Chosen {
    fn settle(&mut self) {
        let doubled: HashSet<usize> = self.doubled.drain(..).collect();
        let mut at = 0;
        self.items.retain(|_| {
            at += 1;
            !doubled.contains(&(at - 1))
        });
    }
}

fn item(row: RecordRow) -> Item {
    let mut record = row.record;
    if record.expunged {
        record.expunged = false;
        record.flags.retain(|f| {
            f.as_bytes()
                .is_none_or(|b| !b.eq_ignore_ascii_case(b"\\Deleted"))
        });
    }
    Item { record }
}
