//! What a command works with: settings, catalogue, and backups opened for reading as they are or were.
//!
//! A backup that fails is complained about and counted here; the others go on.

use super::args::Globals;
use super::output::plain;
use super::select::{Chosen, Select};
use super::{IDENT, Outcome, say};
use crate::cyrus::config::Config;
use crate::cyrus::mboxname::{MboxName, Namespace};
use crate::cyrus::syslog;
use crate::error::{Error, Kind, Result};
use crate::store::backup::Settings;
use crate::store::catalog::Catalog;
use crate::store::compacted::Compacted;
use crate::store::former;
use crate::store::index::Index;
use crate::store::past::{self, Past};
use crate::store::proven::Proven;
use crate::store::reader::{Reader, Stale};
use crate::sys::identity;
use crate::util::time::Timestamp;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// What a command works with.
pub struct Context {
    /// imapd.conf.
    pub config: Config,
    /// How mailbox names are read and shown.
    pub namespace: Namespace,
    /// What was typed besides.
    pub globals: Globals,
    /// Backups that failed and were complained about.
    failures: AtomicU64,
}

impl Context {
    /// Nothing has failed yet.
    pub(super) fn new(config: Config, globals: Globals) -> Context {
        Context {
            namespace: config.namespace(),
            config,
            globals,
            failures: AtomicU64::new(0),
        }
    }

    /// The catalogue, for reading.
    pub fn catalog(&self) -> Catalog {
        Catalog::open(&self.config.backup_db_path(), false)
    }

    /// When backups were proven.
    pub fn proven(&self) -> Proven {
        Proven::beside(&self.config.backup_db_path())
    }

    /// What compaction found when it last looked.
    pub fn compacted(&self) -> Compacted {
        Compacted::beside(&self.config.backup_db_path())
    }

    /// How backups are written, as imapd.conf says.
    pub fn settings(&self) -> Settings {
        Settings {
            level: self.config.backup_ingest_level(),
            chunk_max: self.config.backup_chunk_max(),
        }
    }

    /// The repair of a stale index, with the settings of imapd.conf.
    pub fn repair(&self) -> Stale {
        Stale::Repair(self.settings())
    }

    /// Finds and opens the one backup a command is about.
    pub fn open_one(&self, select: &Select) -> Result<View> {
        let chosen = select.find_one(&self.catalog(), &self.namespace)?;
        self.open(&chosen, self.repair())
    }

    /// What opening backups needs, for other threads.
    pub fn place(&self) -> Place {
        Place {
            namespace: self.namespace.clone(),
            repair: self.repair(),
            scratch: self.config.backup_staging_path(),
        }
    }

    /// Opens a backup for reading.
    pub fn open(&self, chosen: &Chosen, stale: Stale) -> Result<View> {
        View::open(chosen, stale, &self.config.backup_staging_path())
    }

    /// Finds and opens the one backup a command is about, as it was at a time. What of its past
    /// does not read is complained about.
    pub fn open_one_at(&self, select: &Select, time: Option<Timestamp>) -> Result<View> {
        let chosen = select.find_one(&self.catalog(), &self.namespace)?;
        self.open_at(&chosen, time)
    }

    /// Opens a backup as it was at a time, or as it is.
    pub fn open_at(&self, chosen: &Chosen, time: Option<Timestamp>) -> Result<View> {
        let view = self.place().open_at(chosen, time)?;
        for e in view.damage() {
            self.complain(&view.key, &e);
        }
        Ok(view)
    }

    /// The name of a mailbox as an administrator sees it.
    pub fn admin_name(&self, mboxname: &str) -> String {
        admin_name(mboxname, &self.namespace)
    }

    /// Says that something is wrong with one of several backups, and counts.
    pub fn complain(&self, name: &str, e: &Error) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        say(format_args!("{}: {}", plain(name), plain(&e.to_string())));
    }

    /// Puts into the system's log who had what of whose mail: `uid` runs this, `login` is the one who
    /// logged in on this machine, whoever he became since.
    pub fn audit(&self, what: &str) {
        let login = std::fs::read_to_string("/proc/self/loginuid").ok();
        let login = login.and_then(|text| text.trim().parse::<u32>().ok());
        let login = match login {
            Some(uid) if uid != u32::MAX => uid.to_string(),
            _ => "-".into(),
        };
        let text = format!("{what} uid={} login={login}", identity::current_uid());
        log::info!("{text}");
        let (prefix, facility) = (self.config.syslog_prefix(), self.config.syslog_facility());
        syslog::event(IDENT, prefix, facility, &text);
    }

    /// How it went.
    pub fn outcome(&self) -> Outcome {
        match self.failures.load(Ordering::Relaxed) {
            0 => Outcome::Well,
            _ => Outcome::Partly,
        }
    }
}

/// What opening backups needs.
pub struct Place {
    /// How mailbox names are read and shown.
    pub namespace: Namespace,
    repair: Stale,
    scratch: PathBuf,
}

impl Place {
    /// Opens a backup as it was at a time, or as it is. What of its past does not read is in
    /// [`View::damage`].
    pub fn open_at(&self, chosen: &Chosen, time: Option<Timestamp>) -> Result<View> {
        let mut tries = 0;
        loop {
            let mut view = View::open(chosen, self.repair, &self.scratch)?;
            let Some(time) = time else {
                return Ok(view);
            };
            match past::at(&view.reader, time, &self.scratch) {
                // Compaction has put another log in its place.
                Err(e) if e.kind() == Kind::NeedsReindex && tries < 3 => tries += 1,
                Err(e) => return Err(e),
                Ok(past) => {
                    view.at = Some(time);
                    view.past = past;
                    return Ok(view);
                }
            }
        }
    }

    /// The last state of an open backup, until the time it was opened for, in which a mailbox was
    /// alive.
    pub fn alive(&self, view: &View, mboxname: &str) -> Result<Option<Past>> {
        past::alive(&view.reader, mboxname, view.at, &self.scratch)
    }
}

/// A backup opened for reading.
pub struct View {
    /// The backup.
    pub reader: Reader,
    /// Whose it is.
    pub key: String,
    /// The time that was asked for.
    pub at: Option<Timestamp>,
    /// Its state then; `None` for the present one.
    pub past: Option<Past>,
}

impl View {
    fn open(chosen: &Chosen, stale: Stale, scratch: &Path) -> Result<View> {
        let reader = Reader::open_anywhere(&chosen.path, stale, scratch)
            .map_err(|e| former::explain(e, &chosen.path))?;
        let key = match &chosen.key {
            Some(key) => key.clone(),
            None => reader
                .index()
                .meta_text("key")?
                .unwrap_or_else(|| chosen.name()),
        };
        Ok(View {
            reader,
            key,
            at: None,
            past: None,
        })
    }

    /// What of its past does not read.
    pub fn damage(&self) -> Vec<Error> {
        let damage = self.past.iter().flat_map(Past::damage);
        damage
            .map(|(offset, what)| {
                let what = format!("history is not whole: file offset {offset}: {what}");
                Error::new(Kind::Damaged, what)
            })
            .collect()
    }

    /// What to ask: the state that was asked for.
    pub fn index(&self) -> &Index {
        match &self.past {
            Some(past) => past.index(),
            None => self.reader.index(),
        }
    }

    /// What a JSON document about it begins with.
    pub fn fields(&self) -> Vec<(&'static str, serde_json::Value)> {
        let mut fields = vec![("userid", self.key.as_str().into())];
        fields.extend(self.at.map(|t| ("at", t.0.into())));
        fields
    }
}

/// The admin form of an internal name; one that cannot be parsed stays as it is.
pub fn admin_name(mboxname: &str, ns: &Namespace) -> String {
    match MboxName::parse(mboxname, ns) {
        Ok(name) => name.to_admin(ns),
        Err(_) => mboxname.to_owned(),
    }
}
