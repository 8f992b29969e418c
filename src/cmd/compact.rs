//! `compact`: drops what has outlived its retention, and joins small chunks; made for EVENTS.
//!
//! Several backups at a time, those first that were not looked at for longest. A backup in which
//! nothing came and nothing expired since the last look costs a look at its size. Replication goes
//! on meanwhile. What the brake holds is told, and stays, until `--force`. Exit status 0 also where
//! there is nothing to do, 1 if a backup was held by somebody else or failed, 65 if a log does not
//! read; for one that is named, by its own reason.

mod tell;

use super::args;
use super::clock::{self, Look};
use super::delete::{self, Done};
use super::output::Out;
use super::parallel::in_order;
use super::select::{self, Chosen, Select};
use super::{Context, IDENT, Job, Outcome, say, status};
use crate::cyrus::config::options::Opt;
use crate::cyrus::config::retention::{Retention, UserRetention};
use crate::cyrus::syslog;
use crate::error::{Error, Kind, Result};
use crate::store::compact::need::Times;
use crate::store::compact::{Outcome as Ended, Policy, Report, compact, is_left};
use crate::store::compacted::{self, Compacted, Seen};
use crate::store::former::{self, Settled};
use crate::store::lock::Wait;
use crate::sys::priority;
use crate::util::time::{Timestamp, now};
use getopts::{Matches, Options};
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tell::{Sums, as_json, as_text, held};

/// How often a backup may move while it is compacted.
const MOVES_MAX: u32 = 3;

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    select: Select,
    all: bool,
    wait: bool,
    force: bool,
    dry_run: bool,
    clock_is_right: bool,
    json: bool,
    jobs: usize,
    max_time: Option<Duration>,
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    select::options(&mut o);
    args::json(&mut o);
    o.optflag("F", "force", "all that can be done, in spite of the brake");
    o.optflag("n", "dry-run", "say what would be done");
    o.optflag("w", "", "wait for backups that are locked");
    clock::option(&mut o);
    args::jobs(&mut o);
    args::max_time(&mut o);
    o
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    let args = Args::parse(m)?;
    Ok(Box::new(move |c, out| run(&args, c, out)))
}

impl Args {
    fn parse(m: &Matches) -> Result<Args> {
        Ok(Args {
            select: Select::some_or_all(m)?,
            all: m.free.is_empty(),
            wait: m.opt_present("w"),
            force: m.opt_present("F"),
            dry_run: m.opt_present("n"),
            clock_is_right: m.opt_present(clock::OPTION),
            json: m.opt_present("j"),
            jobs: args::jobs_of(m)?,
            max_time: args::max_time_of(m)?,
        })
    }

    fn look(&self) -> Look {
        match (self.dry_run, self.clock_is_right) {
            (true, _) => Look::Dry,
            (false, true) => Look::Right,
            (false, false) => Look::Real,
        }
    }
}

/// What is the same for all backups.
struct Work<'a> {
    c: &'a Context,
    args: &'a Args,
    policy: Policy,
    retention: Retention,
    seen: HashMap<String, Seen>,
    compacted: Compacted,
    now: Timestamp,
    /// An interrupted deletion was ended: until now nobody could see it among the deleted ones.
    deleted: AtomicBool,
}

/// What became of one backup.
enum Did {
    /// Nothing came and nothing expired since the last look.
    Still,
    /// There is none any more.
    Gone,
    Looked(Box<Report>),
}

impl Work<'_> {
    fn one(&self, chosen: &Chosen) -> Result<Did> {
        let mut done = self.look(chosen);
        let mut place = chosen.clone();
        // Moved or deleted since it was looked up.
        for _ in 0..MOVES_MAX {
            match (&done, &chosen.key) {
                (Err(e), Some(key)) if e.kind() == Kind::NotFound => {
                    let catalog = self.c.catalog();
                    match place.moved(&catalog) {
                        Some(now) => place = now,
                        None if catalog.lookup(key)?.is_none() => return Ok(Did::Gone),
                        None => match self.settled(key, &place)? {
                            Some(Settled::Deleted(_)) => return Ok(Did::Gone),
                            Some(Settled::Back) => {}
                            None => {
                                done = done.map_err(|e| former::explain(e, &place.path));
                                break;
                            }
                        },
                    }
                }
                _ => break,
            }
            done = self.look(&place);
        }
        if let (Err(_), Some(key), false) = (&done, &chosen.key, self.args.dry_run) {
            // Else one that always fails is always the first.
            let before = self.seen.get(key).cloned().unwrap_or_default();
            self.remember(key, &before.failed(self.now.0));
        }
        done
    }

    /// Ends what was interrupted, a deletion of it or the bringing back, if that is why it was not found.
    fn settled(&self, key: &str, chosen: &Chosen) -> Result<Option<Settled>> {
        if self.args.dry_run {
            return Ok(None);
        }
        let settled = former::settle(&self.c.catalog(), key, &chosen.path, &self.c.namespace)?;
        if matches!(settled, Some(Settled::Deleted(_))) {
            self.deleted.store(true, Ordering::Relaxed);
        }
        Ok(settled)
    }

    fn look(&self, chosen: &Chosen) -> Result<Did> {
        let key = self.key(chosen)?;
        let bytes = std::fs::metadata(&chosen.path).map(|m| m.len());
        let bytes = bytes.map_err(|e| Error::io("cannot open", e).at(&chosen.path))?;
        let (userid, domain) = whose(&key);
        let retention = self.retention.of(userid, domain, &self.c.namespace);
        let means = self.means(&retention);
        let seen = chosen.key.as_ref().and_then(|key| self.seen.get(key));
        let look = self.args.force || self.args.dry_run || is_left(&chosen.path);
        if !look && seen.is_some_and(|seen| seen.is_still(bytes, self.now.0, means)) {
            return Ok(Did::Still);
        }
        let times = Times {
            retention: &retention,
            namespace: &self.c.namespace,
            now: self.now,
        };
        let scratch = self.c.config.backup_staging_path();
        let report = compact(&chosen.path, &key, &self.policy, &times, &scratch)?;
        if let (Some(key), false) = (&chosen.key, self.args.dry_run) {
            let loss = report.loss;
            let seen = Seen {
                tried: self.now.0,
                time: Some(self.now.0),
                bytes: match report.outcome {
                    Ended::Done => report.bytes_after,
                    _ => bytes,
                },
                next: report.next,
                held: (report.outcome == Ended::Held).then_some((loss.lost, loss.of)),
                means: Some(means),
                generation: report.generation.clone(),
            };
            self.remember(key, &seen);
        }
        Ok(Did::Looked(Box::new(report)))
    }

    /// By what a backup is looked at.
    fn means(&self, retention: &UserRetention) -> u32 {
        let p = &self.policy;
        let sizes = (p.min, p.max, p.settings.chunk_max, p.threshold);
        compacted::means(&format!("{retention:?} {} {sizes:?}", p.brake))
    }

    /// Whose a backup is; for one named by path, as its log says.
    fn key(&self, chosen: &Chosen) -> Result<String> {
        match &chosen.key {
            Some(key) => Ok(key.clone()),
            None => Ok(self.c.open(chosen, self.c.repair())?.key),
        }
    }

    fn remember(&self, key: &str, seen: &Seen) {
        if let Err(e) = self.compacted.set(key, seen) {
            log::warn!("cannot remember what was compacted: {e}");
        }
    }

    /// A line for the system's log.
    fn event(&self, text: &str) {
        let config = &self.c.config;
        let (prefix, facility) = (config.syslog_prefix(), config.syslog_facility());
        syslog::event(IDENT, prefix, facility, text);
    }
}

/// Userid and domain of a key; of a deleted backup those of its owner.
pub(super) fn whose(key: &str) -> (Option<&str>, Option<&str>) {
    let key = former::owner_of(key).unwrap_or(key);
    match key.strip_prefix("%SHARED/") {
        Some(rest) => (None, rest.split('/').next().filter(|d| !d.is_empty())),
        None if key.starts_with('%') => (None, None),
        None => (Some(key), key.split_once('@').map(|(_, domain)| domain)),
    }
}

/// How backups are compacted, by imapd.conf and with force or not.
pub(super) fn policy(c: &Context, jobs: usize, force: bool, wait: bool) -> Policy {
    let config = &c.config;
    Policy {
        settings: c.settings(),
        level: config.backup_compact_level(),
        min: config.bytes(Opt::BackupCompactMinsize),
        max: config.bytes(Opt::BackupCompactMaxsize),
        threshold: u64::try_from(config.int(Opt::BackupCompactWorkThreshold)).unwrap_or(0),
        brake: config.backup_compact_brake(),
        force,
        dry_run: false,
        keep_previous: config.switch(Opt::BackupKeepPrevious),
        jobs,
        wait: match wait {
            true => Wait::Forever,
            false => Wait::For(config.backup_lock_wait()),
        },
        erase: HashSet::new(),
    }
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let began = Instant::now();
    let until = args.max_time.and_then(|t| began.checked_add(t));
    let found = args.select.find(&c.catalog(), &c.namespace)?;
    for (name, e) in &found.missing {
        c.complain(name, e);
    }
    let mut chosen = found.chosen;
    let compacted = c.compacted();
    // One backup gets all threads; of several each gets one.
    let within = if chosen.len() > 1 { 1 } else { args.jobs };
    let work = Work {
        c,
        args,
        policy: Policy {
            dry_run: args.dry_run,
            ..policy(c, within, args.force, args.wait)
        },
        retention: c.config.retention(),
        seen: compacted.all()?,
        compacted,
        now: now(),
        deleted: AtomicBool::new(false),
    };
    let doubt = clock::check(c, work.now, args.look())?;
    match &doubt {
        Some(_) if args.dry_run && args.clock_is_right => {}
        Some(e) if args.dry_run && c.config.expires() => {
            say(format_args!("compact without --dry-run is refused: {e}"));
        }
        Some(e) if c.config.expires() => {
            work.event(&format!("not compacted error=<{e}>"));
            let refused = Error::new(e.kind(), e.to_string());
            if args.json {
                out.document(&[("dry_run", json!(false))], |d| {
                    d.list("backups")?;
                    Err(refused)
                })?;
                return Ok(Outcome::Well);
            }
            return Err(refused);
        }
        _ => {}
    }
    for (key, near) in c.config.unknown_backup_options() {
        // What has no name near is another program's.
        if let Some(near) = near {
            log::warn!("imapd.conf: {key} is no option: is {near} meant?");
        }
    }
    priority::lower();
    crate::store::verify::clean(&c.config.backup_staging_path());
    let last = |chosen: &Chosen| Some(work.seen.get(chosen.key.as_ref()?)?.tried);
    chosen.sort_by_key(last);
    let mut sums = Sums::default();
    let mut damaged = false;
    let named = (chosen.len() + found.missing.len() == 1 && !args.all).then_some(());
    let mut alone = None;
    let mut tell = |chosen: &Chosen, did: &Result<Did>| {
        sums.add(did);
        match did {
            Ok(Did::Looked(report)) if report.outcome == Ended::Held => {
                work.event(&format!("held user=<{}> {}", chosen.name(), held(report)));
            }
            Ok(_) => {}
            Err(e) => {
                damaged |= e.kind() == Kind::Damaged;
                // One that was named: its own reason.
                alone = named.map(|()| e.kind());
                c.complain(&chosen.name(), e);
                work.event(&format!(
                    "not compacted user=<{}> error=<{e}>",
                    chosen.name()
                ));
            }
        }
    };
    let one = |chosen: &Chosen| {
        let began = Instant::now();
        let did = work.one(chosen);
        (did, began.elapsed())
    };
    let done = if args.json {
        let mut done = 0;
        out.document(&[("dry_run", json!(args.dry_run))], |d| {
            d.list("backups")?;
            done = in_order(&chosen, args.jobs, until, one, |chosen, (did, took)| {
                tell(chosen, &did);
                d.row(&as_json(chosen, &did, took))
            })?;
            for (name, e) in &found.missing {
                let e = e.to_string();
                d.row(&json!({ "userid": name, "status": "failed", "error": e }))?;
            }
            d.field("left", &json!(chosen.len() - done))?;
            d.list("removed")?;
            bury(&work, doubt.as_ref(), &mut |gone| {
                d.row(&delete::as_json(gone, c))
            })
        })?;
        done
    } else {
        let done = in_order(&chosen, args.jobs, until, one, |chosen, (did, took)| {
            tell(chosen, &did);
            as_text(args, chosen, &did, took, out)
        })?;
        bury(&work, doubt.as_ref(), &mut |gone| {
            delete::as_text(gone, c, out)
        })?;
        done
    };
    let left = chosen.len() - done;
    if left > 0 {
        log::warn!("time is over, {left} of {} not looked at", chosen.len());
    }
    if !args.dry_run {
        let text = format!(
            "compacted backups={} nothing_to_do={} held={} failed={} left={left} \
             freed_bytes={} expired_records={} ms={}",
            sums.done,
            sums.nothing,
            sums.held,
            sums.failed,
            sums.freed,
            sums.expired,
            began.elapsed().as_millis()
        );
        work.event(&text);
        log::info!("{text}");
    }
    Ok(match alone.or(damaged.then_some(Kind::Damaged)) {
        Some(kind) => Outcome::Status(status(kind)),
        None => c.outcome(),
    })
}

/// Deleted backups whose time of grace is over go for good if this run is for all, unless the clock is
/// doubted; hands each to `tell`.
fn bury(
    work: &Work<'_>,
    doubt: Option<&Error>,
    tell: &mut dyn FnMut(&Done) -> Result<()>,
) -> Result<()> {
    // What has just been found deleted is seen by somebody before it goes.
    if !work.args.all || work.args.dry_run || work.deleted.load(Ordering::Relaxed) {
        return Ok(());
    }
    if let Some(e) = doubt {
        log::warn!("no deleted backup is removed: {e}");
        return Ok(());
    }
    let grace = work.c.config.backup_delete_grace();
    former::expire(&work.c.catalog(), grace, work.now, &mut |former, done| {
        if done.is_ok() {
            work.event(&format!("removed deleted backup user=<{}>", former.owner));
        }
        let gone = delete::expired(work.c, former, done);
        if let Done::Failed(name, e) = &gone {
            work.c.complain(name, e);
        }
        tell(&gone)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_whose_they_are() {
        assert_eq!(whose("anna"), (Some("anna"), None));
        assert_eq!(whose("a@b.c"), (Some("a@b.c"), Some("b.c")));
        assert_eq!(whose("%SHARED//team"), (None, None));
        assert_eq!(whose("%SHARED/b.c/team"), (None, Some("b.c")));
        assert_eq!(whose("%FORMER/anna/u1"), (Some("anna"), None));
    }

    #[test]
    fn numbers_are_judged() {
        let parse = |words: &[&str]| Args::parse(&options().parse(words).unwrap());
        let args = parse(&["--jobs", "3", "--max-time", "90m", "-F", "anna"]).unwrap();
        assert_eq!((args.jobs, args.force, args.all), (3, true, false));
        assert_eq!(args.max_time, Some(Duration::from_secs(5400)));
        assert!(parse(&["-A"]).unwrap().all);
        assert!(parse(&["--jobs", "0", "-A"]).is_err());
        assert!(parse(&["--max-time", "0", "-A"]).is_err());
    }
}
