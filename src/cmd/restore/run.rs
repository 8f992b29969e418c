//! Goes through the backups: chooses, connects, brings, reports.
//!
//! A server gets a connection for each user, several at a time; files are one destination for all, one
//! user after the other. An error of the destination ends the whole run, after a report of what is
//! there and what is not; run again, it goes on where it stopped, since nothing is brought twice.
//! So do INT and TERM, between two messages, or when the destination does not answer for a moment; a
//! second one ends it at once.

use super::super::mailboxes::candidates;
use super::super::output::Out;
use super::super::parallel::in_order;
use super::super::select::Chosen;
use super::super::{Context, Outcome, status};
use super::guids::{self, Row};
use super::report::{Line, Report, Sum};
use super::{Args, Where};
use crate::client::Login;
use crate::client::csync::Timeouts;
use crate::client::socket::Stop;
use crate::client::tls::Trust;
use crate::cyrus::config::options::Opt;
use crate::cyrus::guid::Guid;
use crate::cyrus::mboxname::{Owner, inbox_of};
use crate::error::{Error, Kind, Result};
use crate::restore::bodies::FromBackup;
use crate::restore::choose::{Choice, Into, Pick, Wanted, Which};
use crate::restore::out::{Setting, open};
use crate::restore::target::Target;
use crate::restore::{Bodies, Destination, Done, Folder};
use crate::util::progress::Progress;
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Said of a user who is gone when history does not reach back to his end.
const NOT_KNOWN: &str = "the user is gone for longer than history is kept: which script was active, and what was seen, is not known";

/// What all users have in common.
struct Work<'a> {
    args: &'a Args,
    c: &'a Context,
    wanted: Wanted,
    mailboxes: Vec<String>,
    rows: Vec<Row>,
    setting: Setting,
    stop: Arc<AtomicBool>,
    meter: Meter,
}

/// Runs the command.
pub fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let mut listed = args.guids.clone();
    let mut mailboxes = args.mailboxes.clone();
    let mut rows = Vec::new();
    let mut some = !listed.is_empty();
    if let Some(file) = &args.guid_file {
        let list = guids::read(file)?;
        // An empty list wants nothing, not everything; nor does one that is all about others.
        some |= !list.guids.is_empty() || list.mailboxes.is_empty();
        listed.extend(list.guids);
        mailboxes.extend(list.mailboxes);
        rows = list.rows;
    }
    let wanted = Wanted {
        mailboxes: Vec::new(),
        recursive: args.recursive,
        guids: some.then_some(listed),
        rows: HashMap::new(),
        which: args.which.unwrap_or(Which::Alive),
        // Who names a message wants it, whatever became of it.
        which_named: args.which.unwrap_or(match args.at {
            None => Which::Ever,
            Some(_) => Which::Alive,
        }),
        // Who names a user means it; of all users, those who are gone stay so.
        revive: !args.select.is_set(),
        since: args.since.map(|t| t.0),
        until: args.until.map(|t| t.0),
        what: args.what(),
        flags_only: args.flags_only,
        keep_uids: args.keep_uids,
        newest_first: args.newest_first,
        into: Into::Place,
        user: args.user(c)?,
        partition: args.partition.clone(),
        acl: args.acl.clone(),
    };
    if let Where::Tree(_) = args.place {
        args.into("", &c.namespace)?;
    }
    let found = args.select.find(&c.catalog(), &c.namespace)?;
    if !args.select.is_set() {
        if let Some((name, e)) = found.missing.into_iter().next() {
            return Err(match e.kind() {
                Kind::NotFound => Error::new(Kind::NotFound, format!("{name}: {e}")),
                _ => e,
            });
        }
    }
    let stop = Arc::new(AtomicBool::new(false));
    let ended = i32::from(status(Kind::Stopping));
    for signal in [SIGINT, SIGTERM] {
        // The second one does not wait for the report.
        signal_hook::flag::register_conditional_shutdown(signal, ended, stop.clone())
            .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
            .map_err(|e| Error::io("cannot watch for signals", e))?;
    }
    let work = Work {
        args,
        c,
        wanted,
        mailboxes,
        rows,
        setting: setting(c, &stop),
        stop,
        meter: Meter::new(&found.chosen),
    };
    if !args.is_to_stdout() {
        return work.all(&found.chosen, out);
    }
    // Data goes to standard output, everything else elsewhere.
    let mut report = Out::new(Box::new(std::io::stderr()));
    let outcome = work.all(&found.chosen, &mut report);
    report.flush()?;
    outcome
}

/// What imapd.conf says about servers to restore to.
fn setting(c: &Context, stop: &Stop) -> Setting {
    let config = &c.config;
    let text = |opt| config.text(opt).filter(|t| !t.is_empty());
    let pair = |name, password| {
        let user = text(name)?.to_owned();
        let password = text(password).unwrap_or_default().as_bytes().to_vec();
        let allow_plaintext = false;
        Some(Login {
            user,
            password,
            allow_plaintext,
        })
    };
    let login = pair(Opt::RestoreAuthname, Opt::RestorePassword)
        .or_else(|| pair(Opt::SyncAuthname, Opt::SyncPassword));
    let path = |opt| text(opt).map(PathBuf::from);
    Setting {
        login,
        trust: Trust::new(path(Opt::TlsServerCaFile), path(Opt::TlsServerCaDir)),
        timeouts: Timeouts {
            work: config.sync_timeout(),
            stop: Some(stop.clone()),
            ..Timeouts::default()
        },
        namespace: c.namespace.clone(),
    }
}

impl Work<'_> {
    fn all(&self, chosen: &[Chosen], out: &mut Out) -> Result<Outcome> {
        let mut worst = None;
        let sum = Cell::new(Sum::default());
        let mut tell = |out: &mut dyn FnMut(&Report) -> Result<()>, report: Report| {
            out(&report)?;
            sum.set(sum.get().and(report.sum()));
            if let Some(e) = &report.error {
                self.c.complain(&report.from, e);
                worst.get_or_insert(e.kind());
            } else if !report.is_well() {
                let e = Error::new(Kind::Io, "not everything was restored");
                self.c.complain(&report.from, &e);
            }
            Ok(())
        };
        let server = self.args.to.as_ref().is_none_or(Target::is_server);
        let each = |tell_one: &mut dyn FnMut(Report) -> Result<()>| -> Result<()> {
            if server {
                let jobs = self.args.jobs;
                let work = |one: &Chosen| self.user(one, None);
                return in_order(chosen, jobs, None, work, |_, report| tell_one(report)).map(drop);
            }
            let mut files = self.open()?;
            for one in chosen {
                tell_one(self.user(one, files.as_deref_mut()))?;
            }
            match &mut files {
                Some(files) if !self.stop.load(Ordering::Relaxed) => files.finish(),
                _ => Ok(()),
            }
        };
        let dry_run = self.args.dry_run;
        if self.args.json {
            let to = self.args.to.as_ref().map(Target::to_string);
            let fields = [("to", json!(to)), ("dry_run", json!(dry_run))];
            out.document(&fields, |d| {
                d.list("users")?;
                let ns = &self.c.namespace;
                each(&mut |report| tell(&mut |r| d.row(&r.json(ns)), report))?;
                d.field("total", &sum.get().json())
            })?;
        } else {
            each(&mut |report| tell(&mut |r| r.text(self.c, dry_run, out), report))?;
            if chosen.len() > 1 {
                let who = format!("all {} backups", chosen.len());
                sum.get().text(&who, dry_run, out)?;
            }
        }
        Ok(match worst {
            Some(kind) if !self.args.select.is_set() => Outcome::Status(status(kind)),
            _ => self.c.outcome(),
        })
    }

    fn open(&self) -> Result<Option<Box<dyn Destination>>> {
        let open = |target| open(target, &self.setting);
        self.args.to.as_ref().map(open).transpose()
    }

    /// One user; if the run has ended before, the report says that nothing was begun.
    fn user(&self, chosen: &Chosen, files: Option<&mut (dyn Destination + 'static)>) -> Report {
        let mut report = Report {
            from: chosen.name(),
            ..Report::default()
        };
        let done = match self.stop.load(Ordering::Relaxed) {
            true => Err(Error::new(Kind::Stopping, "not begun")),
            false => self.bring(chosen, files, &mut report),
        };
        report.error = done.err();
        report
    }

    fn bring(
        &self,
        chosen: &Chosen,
        files: Option<&mut (dyn Destination + 'static)>,
        report: &mut Report,
    ) -> Result<()> {
        let c = self.c;
        let view = c.open_at(chosen, self.args.at)?;
        report.from.clone_from(&view.key);
        let mut wanted = self.wanted.clone();
        let pick = |name: &String| Pick {
            typed: name.clone(),
            names: candidates(name, &view.key, c).0,
        };
        wanted.mailboxes = self.mailboxes.iter().map(pick).collect();
        let is_his = |row: &&Row| row.userid.as_ref().is_none_or(|u| *u == view.key);
        for row in self.rows.iter().filter(is_his) {
            let of = wanted.rows.entry(row.uniqueid.clone()).or_default();
            of.insert(row.guid);
        }
        let owner = match Owner::from_key(&view.key) {
            Some(Owner::User(user)) => user,
            _ => String::new(),
        };
        let to = wanted.user.as_ref().unwrap_or(&owner);
        wanted.into = self.args.into(to, &c.namespace)?;
        let mut choice = Choice::of(view.index(), &view.key, &wanted, &c.namespace)
            .map_err(|e| e.for_user(&view.key))?;
        if choice.is_gone && !owner.is_empty() && wanted.what.own() {
            let inbox = inbox_of(&owner, &c.namespace);
            let lived = c.place().alive(&view, &inbox)?;
            match &lived {
                Some(past) => {
                    if let Some((offset, what)) = past.damage().first() {
                        let what = format!("history is not whole: file offset {offset}: {what}");
                        c.complain(&view.key, &Error::new(Kind::Damaged, what));
                    }
                    choice.own_of(past.index())?;
                }
                None => choice.plan.notes.push(NOT_KNOWN.into()),
            }
        }
        let (messages, bytes) = choice.totals();
        let plan = &choice.plan;
        report.userid.clone_from(&plan.userid);
        if let (Some(to), false) = (&self.args.to, self.args.dry_run) {
            c.audit(&format!(
                "restore from=<{}> user=<{}> to=<{to}> mailboxes={} messages={messages} bytes={bytes}",
                plan.from,
                plan.userid,
                plan.folders.len()
            ));
        }
        report.notes.clone_from(&plan.notes);
        let mut named = Named::new(&wanted, self.args.select.is_set());
        let mut own = None;
        let to: Option<&mut dyn Destination> = match files {
            Some(files) => Some(files),
            None => {
                // Whoever cannot be reached now is not by the next user either.
                let opened = self.open().map_err(|e| self.judged(e));
                own = opened.inspect_err(|_| self.stop.store(true, Ordering::Relaxed))?;
                own.as_deref_mut().map(|d| d as &mut dyn Destination)
            }
        };
        let Some(to) = to else {
            for at in 0..choice.plan.folders.len() {
                let folder = choice.load(at)?;
                named.found(&folder);
                let done = Done {
                    brought: folder.items.len() as u64,
                    bytes: folder.items.iter().map(|i| i.record.size).sum(),
                    ..Done::default()
                };
                report.lines.push(Line::new(&folder, done));
            }
            report.failed.extend(named.missing());
            return Ok(());
        };
        let dry_run = self.args.dry_run;
        let mut bodies = Watched {
            inner: FromBackup::new(&view.reader),
            stop: &self.stop,
            meter: &self.meter,
            share: self.meter.share(chosen, bytes),
        };
        let folders = choice.plan.folders.len();
        let mut begun = 0;
        let result = (|| {
            to.begin(&choice.plan, dry_run)?;
            for at in 0..folders {
                if self.stop.load(Ordering::Relaxed) {
                    return Err(stopped());
                }
                let folder = choice.load(at)?;
                named.found(&folder);
                begun = at + 1;
                let mut done = Done::default();
                let result = to.folder(&folder, &mut bodies, dry_run, &mut done);
                report.lines.push(Line::new(&folder, done));
                result.map_err(|e| e.place(c.admin_name(&folder.to)))?;
            }
            report.failed.extend(named.missing());
            to.user(&choice.plan, dry_run, &mut report.own)
        })();
        let left = choice.plan.folders.iter().skip(begun);
        report.not_begun = left.map(|f| f.from.clone()).collect();
        if let Some(mut own) = own {
            if result.is_ok() {
                own.finish()?;
            }
        }
        let result = result.map_err(|e| self.judged(e));
        if result.is_err() {
            // The destination is gone or full: other users would fare no better.
            self.stop.store(true, Ordering::Relaxed);
        }
        result
    }
}

/// Messages that were named: which of them the backup has.
#[derive(Default)]
struct Named {
    left: HashSet<Guid>,
}

impl Named {
    /// Of several backups each may lack some.
    fn new(wanted: &Wanted, is_set: bool) -> Named {
        if is_set {
            return Named::default();
        }
        let mut left = wanted.guids.clone().unwrap_or_default();
        left.extend(wanted.rows.values().flatten());
        Named { left }
    }

    fn found(&mut self, folder: &Folder) {
        for item in &folder.items {
            self.left.remove(&item.record.guid);
        }
    }

    fn missing(&self) -> Option<String> {
        let n = self.left.len();
        (n > 0).then(|| format!("{n} of the messages named are not in this backup"))
    }
}

impl Work<'_> {
    /// A connection that broke after somebody wanted an end was given up for that.
    fn judged(&self, e: Error) -> Error {
        match e.kind() {
            Kind::Io if self.stop.load(Ordering::Relaxed) => stopped().because(e.to_string()),
            _ => e,
        }
    }
}

fn stopped() -> Error {
    Error::new(Kind::Stopping, "stopped: run it again to go on")
}

/// How far it is, for all users together: in bytes of the one user's messages, or of data files.
struct Meter {
    progress: OnceLock<Progress>,
    /// Bytes of all data files, if there are several.
    files: Option<u64>,
    done: AtomicU64,
}

impl Meter {
    fn new(chosen: &[Chosen]) -> Meter {
        let files = chosen.iter().map(Self::weight).sum();
        Meter {
            progress: OnceLock::new(),
            files: (chosen.len() > 1).then_some(files),
            done: AtomicU64::new(0),
        }
    }

    fn weight(chosen: &Chosen) -> u64 {
        std::fs::metadata(&chosen.path).map_or(0, |m| m.len())
    }

    /// What of the whole each byte of this user's messages is; there are so many of them.
    fn share(&self, chosen: &Chosen, bytes: u64) -> f64 {
        self.progress
            .get_or_init(|| Progress::new("restore", self.files.unwrap_or(bytes)));
        match self.files {
            Some(_) => Self::weight(chosen) as f64 / bytes.max(1) as f64,
            None => 1.0,
        }
    }

    fn add(&self, bytes: usize, share: f64) {
        let more = (bytes as f64 * share) as u64;
        let done = self.done.fetch_add(more, Ordering::Relaxed) + more;
        if let Some(progress) = self.progress.get() {
            progress.at(done);
        }
    }
}

/// Bodies, counted; ends when told to.
struct Watched<'a> {
    inner: FromBackup<'a>,
    stop: &'a AtomicBool,
    meter: &'a Meter,
    share: f64,
}

impl Bodies for Watched<'_> {
    fn body(&mut self, guid: Guid, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(stopped());
        }
        let (meter, share) = (self.meter, self.share);
        self.inner.body(guid, &mut |part| {
            meter.add(part.len(), share);
            sink(part)
        })
    }

    fn message_id(&mut self, guid: Guid) -> Result<Option<String>> {
        self.inner.message_id(guid)
    }

    fn order(&mut self, guids: &mut [Guid]) -> Result<()> {
        self.inner.order(guids)
    }
}
