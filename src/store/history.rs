//! What happened to a message, to mailboxes, or in a whole backup, and when: told from the log, since the
//! index has the last state only.
//!
//! The log is entered into a scratch index as for [`super::past`], and what changes in the rows
//! is told line by line. So it says the same as the states between which it tells the difference.
//! Takes no lock and changes nothing of the backup.

use super::index::{Index, RowChange, Table, Watch};
use super::past::{Begin, Walk, scratch_index};
use super::reader::Reader;
use crate::cyrus::dlist::{Limits, Parser, Value};
use crate::cyrus::guid::Guid;
use crate::error::Result;
use std::path::Path;

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// True time, in seconds, at which we were told.
    pub time: i64,
    /// It is the state that history begins with: it was so before.
    pub before: bool,
    /// What happened.
    pub what: What,
}

/// A message in a mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// The mailbox's identity.
    pub uniqueid: String,
    /// Its internal name at that time.
    pub mboxname: String,
    /// The UID there.
    pub uid: u32,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum What {
    /// To a mailbox.
    Mailbox {
        /// Its identity.
        uniqueid: String,
        /// Its internal name from then on.
        mboxname: String,
        /// What.
        what: Box<MailboxChange>,
    },
    /// To a message in a mailbox.
    Message {
        /// Where.
        spot: Spot,
        /// The mailbox's epoch in which the UID counts.
        epoch: i64,
        /// Which message.
        guid: Guid,
        /// What.
        what: Box<MessageChange>,
    },
    /// A subscription began (true) or ended.
    Subscription(String, bool),
    /// A script was put (true) or deleted.
    Script(String, bool),
    /// The active script is another, or none.
    Active(Option<String>),
}

/// A key of a mailbox, its value before and after.
pub type KeyChange = (String, Option<Value>, Option<Value>);

/// What can happen to a mailbox.
#[derive(Clone, Debug)]
pub enum MailboxChange {
    /// It was first heard of.
    Created,
    /// It had the other name.
    Renamed(String),
    /// It is gone.
    Deleted,
    /// It is there again.
    Back,
    /// The server has gone back to an older state of it; UIDs count anew.
    Epoch(i64),
    /// Attributes changed.
    Keys(Vec<KeyChange>),
}

/// What can happen to a message in a mailbox.
#[derive(Clone, Debug)]
pub enum MessageChange {
    /// It came, with flags; other places where it is or was, and whether it is alive there. Expunged
    /// already, perhaps.
    Arrived {
        /// With these.
        flags: Vec<Vec<u8>>,
        /// Where else it is or was, and whether it is alive there.
        elsewhere: Vec<(Spot, bool)>,
        /// It was first told of when it was gone already.
        expunged: bool,
    },
    /// Flags changed.
    Flags {
        /// Set.
        added: Vec<Vec<u8>>,
        /// Taken away.
        removed: Vec<Vec<u8>>,
    },
    /// It was expunged.
    Expunged {
        /// A complete state lacked it.
        gone: bool,
        /// Where it is alive still.
        alive: Vec<Spot>,
    },
    /// It is alive again.
    Back,
}

/// What was found besides events.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// What was before that time is not known; `None` if all is.
    pub begins: Option<i64>,
    /// Members that did not read, by file offset, and why.
    pub damage: Vec<(u64, String)>,
}

/// Before this time nothing is known of a backup, in seconds; `None` if its log tells everything.
pub fn begins(index: &Index) -> Result<Option<i64>> {
    Ok(Begin::of(index)?.time)
}

/// Hands what happened to `each`, in the order of the log. The scratch file is made in `scratch` and
/// removed. `NeedsReindex` if the log was replaced meanwhile.
pub fn history(
    reader: &Reader,
    scratch: &Path,
    watch: &Watch,
    each: &mut dyn FnMut(Event) -> Result<()>,
) -> Result<Told> {
    let live = reader.index();
    let begin = Begin::of(live)?;
    let last = live.last_chunk()?.map_or(0, |c| c.id);
    let past = scratch_index(reader, scratch)?;
    let index = past.index();
    index.watch(watch)?;
    let mut walk = Walk::new(reader, begin.chunk, last)?;
    let mut before = begin.time.is_some();
    walk.run(index, &mut |time, _| {
        // The clock may go back later on.
        before &= begin.time.is_some_and(|t| time <= t);
        let mut events = Vec::new();
        for change in index.take_changes()? {
            of_change(index, change, before, &mut events)?;
        }
        tidy(&mut events);
        events.into_iter().try_for_each(|(at, what)| {
            let time = at.filter(|_| before).unwrap_or(time);
            each(Event { time, before, what })
        })
    })?;
    Ok(Told {
        begins: begin.time,
        damage: walk.damage,
    })
}

/// What happened, and when, where that is told apart: in the state that history begins with.
type Events = Vec<(Option<i64>, What)>;

/// A script that is replaced is not deleted.
fn tidy(events: &mut Events) {
    let put: Vec<String> = events
        .iter()
        .filter_map(|(_, event)| match event {
            What::Script(name, true) => Some(name.clone()),
            _ => None,
        })
        .collect();
    events.retain(|(_, e)| !matches!(e, What::Script(name, false) if put.contains(name)));
}

fn of_change(index: &Index, c: RowChange, before: bool, out: &mut Events) -> Result<()> {
    let name = || {
        c.new_name
            .clone()
            .or(c.old_name.clone())
            .unwrap_or_default()
    };
    let began = c.old.is_none() || (c.old_end.is_some() && c.new_end.is_none());
    let ended = c.old_end.is_none() && c.new_end.is_some();
    match c.table {
        Table::Mailbox => mailbox(index, &c, out)?,
        Table::Record => record(index, &c, before, out)?,
        Table::Subscription if began != ended => {
            out.push((None, What::Subscription(name(), began)));
        }
        Table::Sieve if began != ended => out.push((None, What::Script(name(), began))),
        Table::Active if c.old_name != c.new_name => out.push((None, What::Active(c.new_name))),
        Table::Subscription | Table::Sieve | Table::Active => {}
    }
    Ok(())
}

fn mailbox(index: &Index, c: &RowChange, out: &mut Events) -> Result<()> {
    let Some(row) = index.mailbox_by_id(c.mailbox_id)? else {
        return Ok(());
    };
    let mboxname = c.new_name.clone().unwrap_or_default();
    let mut push = |at, what| {
        let what = What::Mailbox {
            uniqueid: row.uniqueid.clone(),
            mboxname: mboxname.clone(),
            what: Box::new(what),
        };
        out.push((at, what));
    };
    let Some(old) = &c.old else {
        push(None, MailboxChange::Created);
        return Ok(());
    };
    if c.old_end.is_some() && c.new_end.is_none() {
        push(None, MailboxChange::Back);
    }
    if let Some(old_name) = c.old_name.as_ref().filter(|n| **n != mboxname) {
        push(None, MailboxChange::Renamed(old_name.clone()));
    }
    if c.gone && !old.is_empty() {
        push(None, MailboxChange::Epoch(c.epoch));
    }
    // It was inserted without a head, and the line's end enters it.
    if !old.is_empty() {
        let keys = key_changes(&keys(old), &keys(c.new.as_deref().unwrap_or_default()));
        if !keys.is_empty() {
            push(None, MailboxChange::Keys(keys));
        }
    }
    if c.old_end.is_none() && c.new_end.is_some() {
        push(c.new_end, MailboxChange::Deleted);
    }
    Ok(())
}

fn record(index: &Index, c: &RowChange, before: bool, out: &mut Events) -> Result<()> {
    let (Some(guid), Some(row)) = (c.guid, index.mailbox_by_id(c.mailbox_id)?) else {
        return Ok(());
    };
    let spots = || -> Result<Vec<(Spot, bool)>> {
        let places = index.elsewhere(guid, (c.mailbox_id, c.epoch, c.uid))?;
        let mut out = Vec::new();
        for (id, uid, alive) in places {
            if let Some(row) = index.mailbox_by_id(id)? {
                let (uniqueid, mboxname) = (row.uniqueid, row.mboxname);
                out.push((
                    Spot {
                        uniqueid,
                        mboxname,
                        uid,
                    },
                    alive,
                ));
            }
        }
        Ok(out)
    };
    let mut push = |at, what| {
        let what = What::Message {
            spot: Spot {
                uniqueid: row.uniqueid.clone(),
                mboxname: row.mboxname.clone(),
                uid: c.uid,
            },
            epoch: c.epoch,
            guid,
            what: Box::new(what),
        };
        out.push((at, what));
    };
    let new = flags(c.new.as_deref().unwrap_or_default());
    let Some(old) = c.old.as_deref().map(flags) else {
        push(
            c.arrived,
            MessageChange::Arrived {
                flags: new,
                elsewhere: spots()?,
                expunged: c.new_end.is_some() && !before,
            },
        );
        if before && c.new_end.is_some() {
            let (gone, alive) = (c.gone, Vec::new());
            push(c.new_end, MessageChange::Expunged { gone, alive });
        }
        return Ok(());
    };
    if c.old_end.is_some() && c.new_end.is_none() {
        push(None, MessageChange::Back);
    }
    let (added, removed) = (minus(&new, &old), minus(&old, &new));
    if !added.is_empty() || !removed.is_empty() {
        push(None, MessageChange::Flags { added, removed });
    }
    if c.old_end.is_none() && c.new_end.is_some() {
        let alive = spots()?.into_iter().filter(|(_, alive)| *alive);
        push(
            None,
            MessageChange::Expunged {
                gone: c.gone,
                alive: alive.map(|(spot, _)| spot).collect(),
            },
        );
    }
    Ok(())
}

/// Flags in `a` that are not in `b`.
pub fn minus(a: &[Vec<u8>], b: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let has = |flag: &&Vec<u8>| !b.iter().any(|f| f.eq_ignore_ascii_case(flag));
    a.iter().filter(has).cloned().collect()
}

fn value(text: &[u8]) -> Option<Value> {
    let mut line = text.to_vec();
    line.push(b'\n');
    Parser::new(&line[..], Limits::default()).value().ok()
}

fn flags(text: &[u8]) -> Vec<Vec<u8>> {
    match value(text) {
        Some(Value::List(items)) => flag_names(&items),
        _ => Vec::new(),
    }
}

/// Names of flags. `\Expunged` is none.
pub fn flag_names(flags: &[Value]) -> Vec<Vec<u8>> {
    let names = flags.iter().filter_map(|f| f.as_bytes());
    let names = names.filter(|f| !f.eq_ignore_ascii_case(b"\\Expunged"));
    names.map(<[u8]>::to_vec).collect()
}

type Keys = Vec<(Vec<u8>, Value)>;

fn keys(head: &[u8]) -> Keys {
    match value(head) {
        Some(Value::Kv(keys)) => keys,
        _ => Vec::new(),
    }
}

/// Keys that change with every message, or are told otherwise.
const NOISE: [&str; 15] = [
    "UNIQUEID",
    "MBOXNAME",
    "LAST_UID",
    "HIGHESTMODSEQ",
    "RECENTUID",
    "RECENTTIME",
    "LAST_APPENDDATE",
    "POP3_LAST_LOGIN",
    "SYNC_CRC",
    "SYNC_CRC_ANNOT",
    "FOLDERMODSEQ",
    "CREATEDMODSEQ",
    "XCONVMODSEQ",
    "RACLMODSEQ",
    "RECORD",
];

/// Attributes that differ between two heads of a mailbox.
pub fn key_changes(old: &[(Vec<u8>, Value)], new: &[(Vec<u8>, Value)]) -> Vec<KeyChange> {
    let get = |keys: &[(Vec<u8>, Value)], key: &[u8]| -> Option<Value> {
        let found = keys.iter().find(|(k, _)| k == key);
        found.map(|(_, value)| value.clone())
    };
    let mut out: Vec<KeyChange> = Vec::new();
    for (key, _) in new.iter().chain(old) {
        let name = String::from_utf8_lossy(key).into_owned();
        let (before, after) = (get(old, key), get(new, key));
        let told = out.iter().any(|(k, ..)| *k == name);
        if before != after && !told && !NOISE.contains(&name.as_str()) {
            out.push((name, before, after));
        }
    }
    out
}
