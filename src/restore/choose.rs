//! Choosing what is brought back: from a backup's index, as it is or as it was, to a [`Plan`].
//!
//! Reads the index only, never a body. Of large mailboxes the messages are counted first and read
//! again when their turn comes ([`Choice::load`]): memory is that of the largest one. What is wanted is told by [`Wanted`]; where each mailbox goes is
//! decided here, so that a destination has nothing to choose.
//!
//! What was deleted: messages expunged from mailboxes that live, unless the same message lives
//! elsewhere with the user (it was moved), and whole mailboxes that were deleted. A deleted message
//! has lost `\Deleted` when it comes back, or the next EXPUNGE would take it again.

use super::{Folder, Item, Plan, Script};
use crate::cyrus::dlist::Value;
use crate::cyrus::guid::Guid;
use crate::cyrus::mboxname::{MboxName, Namespace, Owner, inbox_of};
use crate::error::{Error, Kind, Result};
use crate::store::index::{Index, MailboxRow, RecordRow};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Messages held in memory besides those of the folder that is being restored.
const HELD: u64 = 20_000;

/// Which messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Which {
    /// Those that are alive. Of a user or mailbox that is gone: those that were so at its end.
    #[default]
    Alive,
    /// Those that were deleted, with their mailbox or alone.
    Deleted,
    /// Everything that ever was, once for each mailbox.
    Ever,
}

/// Where mailboxes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Into {
    /// Where they were.
    Place,
    /// Below a tree of folders in the user's INBOX (or the shared root): its parts, escaped.
    Tree(Vec<String>),
    /// All into one mailbox: its internal name.
    Mailbox(String),
}

/// A mailbox that was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pick {
    /// As it was typed; a uniqueid is compared with this.
    pub typed: String,
    /// The internal names it may mean, best first.
    pub names: Vec<String>,
}

/// What of the user besides mail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct What {
    /// Mailboxes and messages.
    pub mail: bool,
    /// Subscriptions.
    pub subscriptions: bool,
    /// Seen states of other people's mailboxes.
    pub seen: bool,
    /// Sieve scripts and which is active.
    pub sieve: bool,
    /// Limits.
    pub quota: bool,
}

impl What {
    /// Everything.
    pub const ALL: What = What {
        mail: true,
        subscriptions: true,
        seen: true,
        sieve: true,
        quota: true,
    };
    /// Mailboxes only.
    pub const MAIL: What = What {
        mail: true,
        subscriptions: false,
        seen: false,
        sieve: false,
        quota: false,
    };
}

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Mailboxes; empty: all.
    pub mailboxes: Vec<Pick>,
    /// With all mailboxes below them.
    pub recursive: bool,
    /// Only these messages.
    pub guids: Option<HashSet<Guid>>,
    /// Which of them.
    pub which: Which,
    /// A user who is gone altogether comes back as it was at its end.
    pub revive: bool,
    /// Not before: by internal date, of deleted ones by the time of deletion. Seconds.
    pub since: Option<i64>,
    /// Not after.
    pub until: Option<i64>,
    /// What of the user.
    pub what: What,
    /// Only flags, of messages that are there.
    pub flags_only: bool,
    /// UIDs and identities as they were.
    pub keep_uids: bool,
    /// INBOX and what has the newest mail first.
    pub newest_first: bool,
    /// Where to.
    pub into: Into,
    /// Another user than the one it was.
    pub user: Option<String>,
    /// The partition of what is made.
    pub partition: Option<String>,
    /// The ACL of what is made: `None` as it was, empty the destination's default.
    pub acl: Option<String>,
}

/// What a mailbox row is about.
struct Source {
    row: MailboxRow,
    name: MboxName,
    /// Its name before it was deleted.
    base: String,
    /// When it was deleted.
    deleted: Option<i64>,
}

/// The plan for one backup, whose key is `key`, all of it in memory. `NotFound` if a mailbox that
/// was named is not there.
pub fn choose(index: &Index, key: &str, wanted: &Wanted, ns: &Namespace) -> Result<Plan> {
    let mut choice = Choice::of(index, key, wanted, ns)?;
    let folders = (0..choice.parts.len()).map(|at| choice.load(at));
    let folders = folders.collect::<Result<_>>()?;
    choice.plan.folders = folders;
    Ok(choice.plan)
}

/// What was chosen of one backup.
pub struct Choice<'a> {
    chooser: Chooser<'a>,
    alive: HashSet<Guid>,
    parts: Vec<Part>,
    /// The plan, whose folders may lack their messages.
    pub plan: Plan,
}

/// A folder and where its messages come from.
struct Part {
    folder: Folder,
    sources: Vec<Source>,
    /// The messages are in the folder.
    is_loaded: bool,
    messages: u64,
    bytes: u64,
    newest: i64,
}

impl<'a> Choice<'a> {
    /// Chooses from a backup, whose key is `key`. `NotFound` if a mailbox that was named is not
    /// there.
    pub fn of(
        index: &'a Index,
        key: &str,
        wanted: &'a Wanted,
        ns: &'a Namespace,
    ) -> Result<Choice<'a>> {
        let owner = match Owner::from_key(key) {
            Some(Owner::User(userid)) => Some(userid),
            _ => None,
        };
        let plan = Plan {
            from: key.to_owned(),
            userid: match (&wanted.user, &owner) {
                (Some(user), _) => user.clone(),
                (None, Some(user)) => user.clone(),
                (None, None) => String::new(),
            },
            ..Plan::default()
        };
        let chooser = Chooser {
            index,
            wanted,
            ns,
            from: owner,
            to: plan.userid.clone(),
        };
        let mut sources = chooser.sources(false)?;
        // A user that is gone is taken as it was at its end.
        let gone = wanted.revive && sources.iter().all(|s| s.deleted.is_some());
        if wanted.keep_uids && !gone {
            // A rebuilt server still has what can be undeleted there.
            sources = chooser.sources(true)?;
        }
        sources = chooser.named(sources)?;
        let taken = chooser.taken(sources, gone);
        let alive = match (wanted.which, &wanted.guids) {
            // Who names messages means them.
            (Which::Deleted, None) => chooser.alive()?,
            _ => HashSet::new(),
        };
        let mut choice = Choice {
            chooser,
            alive,
            parts: Vec::new(),
            plan,
        };
        if wanted.what.mail {
            choice.folders(taken)?;
            if wanted.newest_first {
                newest_first(&mut choice.parts);
            }
            // What people miss least comes last.
            choice.parts.sort_by_key(|p| {
                let name = MboxName::parse(&p.folder.to, ns);
                name.is_ok_and(|n| n.is_deleted())
            });
        }
        choice.chooser.user(gone, &mut choice.plan)?;
        let bare = choice.parts.iter().map(|p| p.folder.head_only());
        choice.plan.folders = bare.collect();
        Ok(choice)
    }

    /// Messages, and their bytes.
    pub fn totals(&self) -> (u64, u64) {
        let sizes = self.parts.iter().map(|p| (p.messages, p.bytes));
        sizes.fold((0, 0), |(n, bytes), (m, more)| (n + m, bytes + more))
    }

    /// One of the plan's folders, with its messages; to be asked for once.
    pub fn load(&mut self, at: usize) -> Result<Folder> {
        let none = || Error::new(Kind::Internal, "no such folder");
        let part = self.parts.get_mut(at).ok_or_else(none)?;
        if !std::mem::take(&mut part.is_loaded) {
            self.chooser.fill(part, &self.alive)?;
        }
        let folder = &mut part.folder;
        Ok(Folder {
            items: std::mem::take(&mut folder.items),
            tombstones: std::mem::take(&mut folder.tombstones),
            ..folder.head_only()
        })
    }

    fn folders(&mut self, sources: Vec<Source>) -> Result<()> {
        let chooser = &self.chooser;
        let wanted = chooser.wanted;
        let mut parts: BTreeMap<String, Part> = BTreeMap::new();
        for source in sources {
            if chooser.skipped(&source, &mut self.plan) {
                continue;
            }
            let part = parts.entry(source.base.clone()).or_insert_with(|| Part {
                folder: chooser.folder(&source),
                sources: Vec::new(),
                is_loaded: true,
                messages: 0,
                bytes: 0,
                newest: i64::MIN,
            });
            if source.deleted.is_none() {
                part.folder.head = source.row.head.clone();
            }
            part.sources.push(source);
        }
        let mut held = 0;
        for part in parts.values_mut() {
            chooser.fill(part, &self.alive)?;
            part.messages = part.folder.items.len() as u64;
            part.bytes = part.folder.items.iter().map(|i| i.record.size).sum();
            let dates = part
                .folder
                .items
                .iter()
                .map(|i| i.record.internaldate as i64);
            part.newest = dates.max().unwrap_or(i64::MIN);
            held += part.messages + part.folder.tombstones.len() as u64;
            if held > HELD {
                part.is_loaded = false;
                part.folder.items = Vec::new();
                part.folder.tombstones = Vec::new();
            }
        }
        // Asked for messages, nobody wants empty mailboxes.
        let narrow = wanted.guids.is_some()
            || wanted.flags_only
            || wanted.since.is_some()
            || wanted.until.is_some();
        self.parts = parts.into_values().collect();
        self.parts.retain(|p| {
            p.messages > 0 || (!narrow && (wanted.which == Which::Alive || p.folder.bodiless > 0))
        });
        Ok(())
    }
}

struct Chooser<'a> {
    index: &'a Index,
    wanted: &'a Wanted,
    ns: &'a Namespace,
    /// Whose mail it is, if anybody's.
    from: Option<String>,
    to: String,
}

impl Chooser<'_> {
    /// All mailboxes; those that only deletion named otherwise are live ones with `as_named`.
    fn sources(&self, as_named: bool) -> Result<Vec<Source>> {
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
                name,
                base,
                deleted,
                row,
            });
        }
        Ok(out)
    }

    /// Those that were named.
    fn named(&self, sources: Vec<Source>) -> Result<Vec<Source>> {
        if self.wanted.mailboxes.is_empty() {
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
                let below = |text: &str| self.wanted.recursive && text.starts_with(&below);
                found = of(&|s| {
                    [&s.base, &s.row.mboxname]
                        .iter()
                        .any(|n| *n == name || below(n))
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
    fn taken(&self, mut sources: Vec<Source>, gone: bool) -> Vec<Source> {
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
    fn fill(&self, part: &mut Part, alive: &HashSet<Guid>) -> Result<()> {
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
    fn skipped(&self, source: &Source, plan: &mut Plan) -> bool {
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

    fn alive(&self) -> Result<HashSet<Guid>> {
        let mut alive = HashSet::new();
        for s in self.sources(false)?.iter().filter(|s| s.deleted.is_none()) {
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

    fn folder(&self, s: &Source) -> Folder {
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
            keep_uids: self.wanted.keep_uids,
            partition: self.wanted.partition.clone(),
            acl,
        }
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
        let folders: Vec<String> = name.folders().iter().map(|f| f.replace('.', "^")).collect();
        let is_own = name.userid().is_some() && name.userid() == self.from.as_deref();
        let (root, mut rest) = match name.userid() {
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
        };
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

    /// Where a name that somebody subscribed to, or a quota root, is afterwards.
    fn moved(&self, mboxname: &str) -> String {
        match MboxName::parse(mboxname, self.ns) {
            Ok(name) if name.userid().is_some() && name.userid() == self.from.as_deref() => {
                self.place(&name)
            }
            _ => mboxname.to_owned(),
        }
    }

    fn user(&self, gone: bool, plan: &mut Plan) -> Result<()> {
        let what = self.wanted.what;
        let dead = self.wanted.which != Which::Alive;
        if what.subscriptions {
            let mut rows = self.index.subscriptions(gone || dead)?;
            if gone && !dead {
                let end = rows.iter().filter_map(|r| r.unsubscribed).max();
                rows.retain(|r| r.unsubscribed.is_none() || r.unsubscribed == end);
            }
            plan.subscriptions = rows.iter().map(|r| self.moved(&r.mboxname)).collect();
            plan.subscriptions.sort();
            plan.subscriptions.dedup();
        }
        if what.seen {
            let rows = self.index.seen_states()?;
            plan.seen = rows.into_iter().map(|r| (r.uniqueid, r.value)).collect();
        }
        if what.sieve {
            let mut rows = self.index.scripts(gone || dead)?;
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
            plan.active_script = self.index.active_script()?;
        }
        if what.quota {
            let rows = self.index.quotas()?;
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
    tombstones: Vec<crate::cyrus::sync::Record>,
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

/// INBOX, then by the newest message; a parent stands before its children all the same.
fn newest_first(parts: &mut Vec<Part>) {
    let mut left: Vec<Part> = std::mem::take(parts);
    left.sort_by_key(|p| {
        let below = p.folder.to.matches('.').count() > 1;
        (below, std::cmp::Reverse(p.newest))
    });
    let names: HashSet<String> = left.iter().map(|p| p.folder.to.clone()).collect();
    let parent = |name: &str| -> Option<String> {
        let mut name = name;
        while let Some((up, _)) = name.rsplit_once('.') {
            if names.contains(up) {
                return Some(up.to_owned());
            }
            name = up;
        }
        None
    };
    let mut waiting: HashMap<String, Vec<Part>> = HashMap::new();
    let mut done = HashSet::new();
    // Whoever waits for its parent follows it at once.
    let mut stack: Vec<Part> = left.into_iter().rev().collect();
    while let Some(part) = stack.pop() {
        let name = part.folder.to.clone();
        match parent(&name) {
            Some(up) if !done.contains(&up) => waiting.entry(up).or_default().push(part),
            _ => {
                let next = waiting.remove(&name).unwrap_or_default();
                done.insert(name);
                parts.push(part);
                stack.extend(next.into_iter().rev());
            }
        }
    }
    // Two of one name that wait for each other cannot be; nothing is ever left out.
    parts.extend(waiting.into_values().flatten());
}
