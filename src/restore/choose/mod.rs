//! Choosing what is brought back: from a backup's index, as it is or as it was, to a [`Plan`].
//!
//! Reads the index only, never a body. Of large mailboxes the messages are counted first and read
//! again when their turn comes ([`Choice::load`]): memory is that of the largest one. What is wanted is told by [`Wanted`]; where each mailbox goes is
//! decided here, so that a destination has nothing to choose.
//!
//! What was deleted: messages expunged from mailboxes that live, unless the same message lives
//! elsewhere with the user (it was moved), and whole mailboxes that were deleted. A deleted message
//! has lost `\Deleted` when it comes back, or the next EXPUNGE would take it again.
//!
//! What an earlier run brought back is in the backup as well by now. Trees named [`TREE`], and the
//! place where mail goes this time, are passed over unless they are named, and a message that
//! lives there only is deleted all the same: so the same run twice brings nothing twice.

mod chooser;
mod records;

use super::{Folder, Plan};
use crate::cyrus::guid::Guid;
use crate::cyrus::mboxname::{MboxName, Namespace, Owner};
use crate::error::{Error, Kind, Result};
use crate::store::index::Index;
use chooser::{Chooser, Source};
use records::Known;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The first folder of the tree that mail comes back into, unless another place is named.
pub const TREE: &str = "RESTORED";

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

    /// Whether anything but mail is wanted.
    pub fn own(&self) -> bool {
        self.subscriptions || self.seen || self.sieve || self.quota
    }
}

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Mailboxes; empty: all.
    pub mailboxes: Vec<Pick>,
    /// With all mailboxes below them.
    pub recursive: bool,
    /// Messages, wherever they are or were; besides mailboxes that are named, instead of all if
    /// none is.
    pub guids: Option<HashSet<Guid>>,
    /// Messages of certain mailboxes, by UNIQUEID; likewise.
    pub rows: HashMap<String, HashSet<Guid>>,
    /// Which, of mailboxes.
    pub which: Which,
    /// Which, of messages that are named.
    pub which_named: Which,
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

impl Wanted {
    /// Whether messages are named.
    pub fn names_messages(&self) -> bool {
        self.guids.is_some() || !self.rows.is_empty()
    }
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
    known: Known,
    parts: Vec<Part>,
    /// The user is gone, and comes back as he was at his end: what of his own is not mail should be
    /// taken from the last state in which he lived ([`Choice::own_of`]). Until then it is what the
    /// index tells of that, without what it forgets.
    pub is_gone: bool,
    /// The plan, whose folders may lack their messages.
    pub plan: Plan,
}

/// A folder and where its messages come from.
pub(super) struct Part {
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
        let mut plan = Plan {
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
        let was_there = !sources.is_empty();
        if wanted.keep_uids && !gone {
            // A rebuilt server still has what can be undeleted there.
            sources = chooser.sources(true)?;
        }
        if wanted.mailboxes.is_empty() && !wanted.names_messages() && wanted.what.mail {
            let is_out = |s: &&Source| s.deleted.is_none() && chooser.leaves_out(s);
            let out: Vec<_> = sources.iter().filter(is_out).collect();
            if let Some(first) = out.first() {
                let name = first.name.to_admin(ns);
                let n = out.len();
                plan.notes.push(format!(
                    "left out unless named: {n} mailboxes that mail was brought back into, such as {name}"
                ));
            }
        }
        let mut acls = chooser.acls(&sources);
        sources = chooser.named(sources)?;
        let taken = chooser.taken(sources, gone);
        let known = chooser.known(&taken)?;
        let mut choice = Choice {
            chooser,
            known,
            parts: Vec::new(),
            is_gone: gone && was_there,
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
        choice.chooser.user(index, gone, &mut choice.plan)?;
        let bare = choice.parts.iter().map(|p| p.folder.head_only());
        choice.plan.folders = bare.collect();
        let folders = &choice.plan.folders;
        acls.retain(|name, _| {
            let below = format!("{name}.");
            folders.iter().any(|f| f.to.starts_with(&below))
        });
        choice.plan.acls = acls;
        Ok(choice)
    }

    /// Messages, and their bytes.
    pub fn totals(&self) -> (u64, u64) {
        let sizes = self.parts.iter().map(|p| (p.messages, p.bytes));
        sizes.fold((0, 0), |(n, bytes), (m, more)| (n + m, bytes + more))
    }

    /// Takes what is not mail from another state of the same backup.
    pub fn own_of(&mut self, index: &Index) -> Result<()> {
        self.chooser.user(index, false, &mut self.plan)
    }

    /// One of the plan's folders, with its messages; to be asked for once.
    pub fn load(&mut self, at: usize) -> Result<Folder> {
        let none = || Error::new(Kind::Internal, "no such folder");
        let part = self.parts.get_mut(at).ok_or_else(none)?;
        if !std::mem::take(&mut part.is_loaded) {
            self.chooser.fill(part, &self.known)?;
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
            chooser.fill(part, &self.known)?;
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
        let narrow = wanted.names_messages()
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

/// INBOX, then by the newest message in a mailbox or below it. Parents come by name before their
/// children and have never less, so they stay before them.
fn newest_first(parts: &mut [Part]) {
    let mut rank: HashMap<String, i64> = HashMap::new();
    for part in parts.iter() {
        let mut name = part.folder.to.as_str();
        loop {
            let best = rank.entry(name.to_owned()).or_insert(i64::MIN);
            *best = part.newest.max(*best);
            match name.rsplit_once('.') {
                Some((up, _)) => name = up,
                None => break,
            }
        }
    }
    parts.sort_by_key(|p| {
        let below = p.folder.to.matches('.').count() > 1;
        (below, Reverse(rank.get(&p.folder.to).copied()))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cyrus::sync::MailboxHead;

    fn part(name: &str, newest: i64) -> Part {
        let folder = Folder {
            from: name.into(),
            to: name.into(),
            head: MailboxHead { keys: Vec::new() },
            items: Vec::new(),
            tombstones: Vec::new(),
            bodiless: 0,
            flags_only: false,
            only_there: false,
            keep_uids: true,
            partition: None,
            acl: None,
        };
        Part {
            folder,
            sources: Vec::new(),
            is_loaded: true,
            messages: 1,
            bytes: 1,
            newest,
        }
    }

    #[test]
    fn inbox_and_new_mail_first_but_no_child_before_its_parent() {
        let mut parts: Vec<Part> = [
            ("user.a", 1),
            ("user.a.Empty", i64::MIN),
            ("user.a.Old", 2),
            ("user.a.Old.Child.New", 9),
            ("user.a.Sent", 7),
            ("user.a.Work", 8),
            ("user.a.Work.X", 3),
        ]
        .iter()
        .map(|(name, newest)| part(name, *newest))
        .collect();
        newest_first(&mut parts);
        let names: Vec<&str> = parts.iter().map(|p| p.folder.to.as_str()).collect();
        let expect = [
            "user.a",
            "user.a.Old",
            "user.a.Old.Child.New",
            "user.a.Work",
            "user.a.Sent",
            "user.a.Work.X",
            "user.a.Empty",
        ];
        assert_eq!(names, expect);
    }
}
