//! Bringing mail back: what is to be restored, told once, for every way out.
//!
//! A [`Plan`] is chosen from a backup (`restore::choose`) and handed to a [`Destination`]: a Cyrus
//! server over the replication protocol, an IMAP server, or files. A destination is told one folder
//! after the other, then what belongs to the user; it never overwrites, skips what is there already
//! (by GUID where it can tell), and says for each folder what it did. Nothing here is kept in
//! memory that grows with the size of messages.
//!
//! `choose` makes plans of a backup, `bodies` reads messages out of it, `target` understands `--to`,
//! `out` opens the way out that is meant. Each kind of destination has a folder of its own.
#![forbid(unsafe_code)]

pub mod bodies;
pub mod choose;
pub mod cyrus;
pub mod files;
pub mod imap;
pub mod out;
pub mod target;

use crate::cyrus::dlist::Value;
use crate::cyrus::guid::Guid;
use crate::cyrus::sync::{MailboxHead, Record};
use crate::error::{Error, Kind, Result};
use std::collections::HashMap;

/// One message, as the backup has it, to be alive at the destination.
#[derive(Clone, Debug)]
pub struct Item {
    /// UID, modseq, flags, internal date, size, GUID, annotations. `\Expunged` is not among the flags.
    pub record: Record,
}

/// One mailbox with what is wanted of it.
#[derive(Clone, Debug)]
pub struct Folder {
    /// Its internal name in the backup, without what deletion added to it.
    pub from: String,
    /// Its internal name at the destination.
    pub to: String,
    /// All that is known of the mailbox itself: ACL, options, special use, annotations, UIDVALIDITY.
    pub head: MailboxHead,
    /// Messages by UID. From several mailboxes of one name, or epochs, UIDs may come twice.
    pub items: Vec<Item>,
    /// With `keep_uids`: expunged messages the server still knew of, without bodies; by UID.
    pub tombstones: Vec<Record>,
    /// Messages that were wanted but have no body here: expired, erased, or expunged before the first sync.
    pub bodiless: u64,
    /// The same as above, but only flags are wanted: messages that are not there are not brought.
    pub flags_only: bool,
    /// It is not made if it is not there: whoever's mail it is, others would read it.
    pub only_there: bool,
    /// UIDs, UIDVALIDITY and UNIQUEID are wanted as they were, where the destination can.
    pub keep_uids: bool,
    /// Where the mailbox shall lie, if it is made; `None`: where the destination likes.
    pub partition: Option<String>,
    /// Its ACL, if it is made: `id<TAB>rights<TAB>...`; `None`: the destination's default.
    pub acl: Option<String>,
}

impl Folder {
    /// The same without messages.
    pub fn head_only(&self) -> Folder {
        Folder {
            from: self.from.clone(),
            to: self.to.clone(),
            head: self.head.clone(),
            items: Vec::new(),
            tombstones: Vec::new(),
            bodiless: self.bodiless,
            flags_only: self.flags_only,
            only_there: self.only_there,
            keep_uids: self.keep_uids,
            partition: self.partition.clone(),
            acl: self.acl.clone(),
        }
    }
}

/// A sieve script.
#[derive(Clone, Debug)]
pub struct Script {
    /// File name as the server told it, `NAME.script`.
    pub filename: String,
    /// Seconds.
    pub last_update: u64,
    /// Its text.
    pub content: Vec<u8>,
}

/// What is brought back for one user.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Whose backup it is from: its key.
    pub from: String,
    /// Who gets it. Empty for mailboxes without owner.
    pub userid: String,
    /// Mailboxes, parents before children. Parents may be lacking: they are the destination's to make.
    pub folders: Vec<Folder>,
    /// Internal names at the destination.
    pub subscriptions: Vec<String>,
    /// Seen states of other people's mailboxes: UNIQUEID and the SEEN keys as received.
    pub seen: Vec<(String, Value)>,
    /// Scripts.
    pub scripts: Vec<Script>,
    /// The active script's bytecode name, `NAME.bc`.
    pub active_script: Option<String>,
    /// Limits: root at the destination, and the QUOTA keys as received.
    pub quotas: Vec<(String, Value)>,
    /// What the backup knows of the ACLs of mailboxes above the folders, by their internal name at
    /// the destination: they may have to be made, too.
    pub acls: HashMap<String, String>,
    /// What was left out on purpose, for people.
    pub notes: Vec<String>,
}

impl Plan {
    /// Messages, and their bytes.
    pub fn totals(&self) -> (u64, u64) {
        let sizes = self.folders.iter().flat_map(|f| &f.items);
        sizes.fold((0, 0), |(n, bytes), i| (n + 1, bytes + i.record.size))
    }
}

/// Reads bodies; a plan names them by GUID.
pub trait Bodies {
    /// Streams a body's bytes into `sink`. Nothing goes there before the body is proven: `NotFound`
    /// and `Damaged` come with nothing written, and the next body may be asked for. Any error of
    /// `sink` is returned as it is.
    fn body(&mut self, guid: Guid, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;

    /// The message's Message-ID as `cyrus::header` reads it, if that is known without its body.
    fn message_id(&mut self, _guid: Guid) -> Result<Option<String>> {
        Ok(None)
    }

    /// Brings GUIDs into the order in which their bodies are read at the least cost. UIDs in
    /// ascending order are nearly as good.
    fn order(&mut self, _guids: &mut [Guid]) -> Result<()> {
        Ok(())
    }
}

/// Whether a body that cannot be had concerns one message alone: the next may be asked for.
pub fn is_of_message(e: &Error) -> bool {
    !matches!(e.kind(), Kind::Stopping | Kind::NoSpace)
}

/// Why nothing came into a folder that is wanted only where it is.
pub const NOT_MADE: &str =
    "there is no such mailbox; a shared one is not made for somebody's own mail";

/// What became of one folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Whether the folder was made.
    pub made: bool,
    /// Mailboxes above it that were made for it, by their internal names.
    pub above: Vec<String>,
    /// Messages brought.
    pub brought: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Messages that were there already.
    pub there: u64,
    /// Messages whose flags were changed.
    pub flagged: u64,
    /// What was not brought, and why: UID (0: the folder itself) and reason.
    pub failed: Vec<(u32, String)>,
    /// With `keep_uids`: it was read back from the destination and compared.
    pub compared: bool,
    /// What then was not as it should be.
    pub differs: Vec<String>,
    /// What people should know besides.
    pub notes: Vec<String>,
}

/// What became of something that is not mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Became {
    /// It is there now, or in a dry run would be.
    Brought,
    /// It was there, and the same.
    There,
    /// Another one is there, and stays.
    Left,
    /// It could not be.
    Failed,
}

impl Became {
    /// One word.
    pub fn word(self) -> &'static str {
        match self {
            Became::Brought => "brought",
            Became::There => "there",
            Became::Left => "left",
            Became::Failed => "failed",
        }
    }
}

/// Something of a user's own that is not mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// `script`, `active script`, `subscription`, `seen state`, `quota`, or several at once.
    pub kind: &'static str,
    /// Which; empty for all of them.
    pub name: String,
    /// What became of it.
    pub became: Became,
    /// Why, if it was not brought and is not there.
    pub why: String,
}

impl Own {
    /// Without a reason.
    pub fn new(kind: &'static str, name: &str, became: Became) -> Own {
        Own {
            kind,
            name: name.to_owned(),
            became,
            why: String::new(),
        }
    }

    /// What could not be brought.
    pub fn failed(kind: &'static str, name: &str, why: impl Into<String>) -> Own {
        Own {
            why: why.into(),
            ..Own::new(kind, name, Became::Failed)
        }
    }

    /// What stays as it is there.
    pub fn left(kind: &'static str, name: &str, why: impl Into<String>) -> Own {
        Own {
            why: why.into(),
            ..Own::new(kind, name, Became::Left)
        }
    }
}

/// A way out. An error ends the run (the destination is gone, no space); what concerns one message
/// or folder is told in [`Done::failed`] and the run goes on.
pub trait Destination {
    /// What it is, for people: `imap://host`, `maildir:DIR`.
    fn name(&self) -> String;

    /// Told before the folders of each plan, which are without their messages still.
    fn begin(&mut self, _plan: &Plan, _dry_run: bool) -> Result<()> {
        Ok(())
    }

    /// Brings one folder's messages. With `dry_run` nothing is changed, and what would be done is
    /// told as far as it can be known. `done` is kept true all the while: if the run ends here, it
    /// says what is there.
    fn folder(
        &mut self,
        folder: &Folder,
        bodies: &mut dyn Bodies,
        dry_run: bool,
        done: &mut Done,
    ) -> Result<()>;

    /// Brings subscriptions, seen states, scripts and quota, and tells in `told` what became of each,
    /// as it happens; a destination that has no such thing says so once for each kind. With
    /// `dry_run` nothing is changed.
    fn user(&mut self, plan: &Plan, dry_run: bool, told: &mut Vec<Own>) -> Result<()>;

    /// Ends in order: everything is durable as far as the destination can say so.
    fn finish(&mut self) -> Result<()>;
}
