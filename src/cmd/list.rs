//! `list`: the backups, one a line.
//!
//! Cheap, however many there are: two looks at the folder for each backup that has not changed since
//! the last time, a count in its index for the others (`store::summary`). No log is read, no lock is
//! taken, nothing is repaired. A backup that cannot be read is listed with its error, and the exit
//! status is 1.

use super::args::{self, usage};
use super::compact::whose;
use super::output::{Out, number, plain, when};
use super::parallel::in_order;
use super::select::{self, Chosen, Select};
use super::{Context, Job, Outcome};
use crate::cyrus::mboxname::MboxName;
use crate::error::Result;
use crate::store::compacted::Seen;
use crate::store::former::{self, Former};
use crate::store::proven::{Proved, time_of};
use crate::store::reader::{Reader, Stale};
use crate::store::summary::{Cache, Looked, Summary, look};
use crate::util::time::{Timestamp, now};
use getopts::{Matches, Options};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::thread;

/// Backups that are looked at by one thread at a time.
const AT_A_TIME: usize = 64;

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    select: Select,
    json: bool,
    /// `--stale`, in seconds.
    stale_secs: Option<i64>,
    deleted: bool,
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    select::options(&mut o);
    args::json(&mut o);
    stale(&mut o);
    o.optflag("", "deleted", "the deleted ones instead");
    o
}

/// Adds `--stale`.
pub(super) fn stale(o: &mut Options) {
    let help = "only those whose last sync is older";
    o.optopt("", "stale", help, "HOURS");
}

/// What was given with it, in seconds.
pub(super) fn stale_of(m: &Matches) -> Result<Option<i64>> {
    let Some(text) = m.opt_str("stale") else {
        return Ok(None);
    };
    let hours: Option<u32> = text.parse().ok();
    let hours = hours.ok_or_else(|| usage("--stale wants a number of hours"))?;
    Ok(Some(i64::from(hours) * 3600))
}

/// Whether a backup is one of those that are asked for; what cannot be judged is.
pub(super) fn is_stale(summary: &Result<Summary>, limit: Option<i64>, now: Timestamp) -> bool {
    match (limit, summary) {
        (Some(limit), Ok(s)) => s.last_time.is_none_or(|t| t < now.0 - limit),
        (None, _) | (_, Err(_)) => true,
    }
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    let args = Args::parse(m)?;
    Ok(Box::new(move |c, out| run(&args, c, out)))
}

impl Args {
    fn parse(m: &Matches) -> Result<Args> {
        let stale_secs = stale_of(m)?;
        let select = Select::some_or_all(m)?;
        let deleted = m.opt_present("deleted");
        if deleted && (!select.is_all() || stale_secs.is_some()) {
            return Err(usage(
                "--deleted lists all that are deleted: no more can be said",
            ));
        }
        Ok(Args {
            select,
            json: m.opt_present("j"),
            stale_secs,
            deleted,
        })
    }
}

/// What is told about one backup, with or without its numbers.
struct Row {
    key: Option<String>,
    path: String,
    looked: Looked,
    proven: Option<i64>,
    /// What compaction found at its last look.
    seen: Option<Seen>,
}

impl Row {
    fn new(chosen: &Chosen, mut looked: Looked, known: &Known) -> Row {
        let key = chosen.key.clone().or(looked.key.take());
        let proven = match (&looked.summary, &key) {
            (Ok(summary), Some(key)) => time_of(&known.proofs, key, &summary.generation),
            _ => None,
        };
        let seen = match (&looked.summary, &key) {
            (Ok(summary), Some(key)) => known.seen_of(key, summary).cloned(),
            _ => None,
        };
        Row {
            seen,
            key,
            path: chosen.path.display().to_string(),
            looked,
            proven,
        }
    }

    fn summary(&self) -> Option<&Summary> {
        self.looked.summary.as_ref().ok()
    }

    fn json(&self, now: Timestamp) -> Value {
        let n = |f: fn(&Summary) -> i64| self.summary().map(f);
        let mut row = json!({
            "userid": self.key,
            "path": self.path,
            "bytes": self.looked.bytes,
            "index_bytes": self.looked.index_bytes,
            "last_sync": self.summary().and_then(|s| s.last_time),
            "last_change": self.summary().and_then(|s| s.last_change),
            "proven": self.proven,
            "compacted": self.seen.as_ref().and_then(|s| s.time),
            "held": held_json(self.seen.as_ref()),
            "chunks": n(|s| s.chunks),
            "mailboxes": n(|s| s.mailboxes),
            "messages": n(|s| s.messages),
            "resync": n(|s| s.resync),
            "plain_bytes": n(|s| s.plain_bytes),
            "ratio": self.summary().and_then(Summary::ratio),
            "live_bytes": n(|s| s.live_bytes),
            "waste_bytes": n(Summary::waste_bytes),
            "due_bytes": self.summary().map(|s| s.due_bytes(now.0)),
        });
        if let Err(e) = &self.looked.summary {
            row["error"] = e.to_string().into();
        }
        row
    }

    fn line(&self, out: &mut Out) -> Result<()> {
        let n = |f: fn(&Summary) -> i64| number(self.summary().map(f));
        out.line(format_args!(
            "{:<24} {:<20} {:<20} {:>12} {:>10} {:>7} {:>8} {:>6} {:>6} {:>9} {}",
            plain(self.key.as_deref().unwrap_or("-")),
            when(self.summary().and_then(|s| s.last_time)),
            when(self.proven),
            number(self.looked.bytes),
            number(self.looked.index_bytes),
            n(|s| s.chunks),
            n(|s| s.messages),
            self.summary()
                .map_or("-".into(), |s| percent(s.waste_bytes(), s.body_bytes)),
            n(|s| s.resync),
            match self.seen.as_ref().and_then(|s| s.held) {
                Some((lost, of)) => format!("{lost}/{of}"),
                None => "-".into(),
            },
            plain(&self.path)
        ))
    }
}

/// What is known of backups beside their files.
pub(super) struct Known {
    /// When they were proven.
    pub proofs: HashMap<String, Proved>,
    /// What compaction found, by owner.
    seen: HashMap<String, Seen>,
}

impl Known {
    /// Reads it, of all backups.
    pub fn read(c: &Context) -> Result<Known> {
        Ok(Known {
            proofs: c.proven().all()?,
            seen: c.compacted().all()?,
        })
    }

    /// What compaction found at its last look at this log, not at one its owner had before.
    pub fn seen_of(&self, key: &str, summary: &Summary) -> Option<&Seen> {
        self.seen.get(key)?.of(&summary.generation)
    }
}

/// What the brake holds back.
pub(super) fn held_json(seen: Option<&Seen>) -> Value {
    match seen.and_then(|s| s.held) {
        Some((lost, of)) => json!({ "messages": lost, "of": of }),
        None => Value::Null,
    }
}

/// A share for people.
fn percent(part: i64, whole: i64) -> String {
    match whole {
        0 => "0%".into(),
        whole => format!("{:.0}%", part as f64 * 100.0 / whole as f64),
    }
}

/// Bytes of a file; only its folder is looked at.
pub(super) fn size(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|m| m.len())
}

/// Finds the numbers of backups, remembered ones where they are still true, and hands them to `tell`
/// in order.
pub(super) fn each(
    chosen: &[Chosen],
    c: &Context,
    stale: Stale,
    is_whole: bool,
    tell: &mut dyn FnMut(&Chosen, Looked) -> Result<()>,
) -> Result<()> {
    let rules = c.config.retention();
    let mut cache = match chosen.len() {
        // To read what is remembered of all costs more than to ask.
        0..AT_A_TIME if !is_whole => None,
        _ => Some(Cache::beside(
            &c.config.backup_db_path(),
            &format!("{rules:?}"),
        )),
    };
    let ns = &c.namespace;
    let catalog = c.catalog();
    let scratch = c.config.backup_staging_path();
    let open = |path: &Path| match stale {
        Stale::Refuse => Reader::open_as_is(path, &scratch),
        repair => Reader::open_anywhere(path, repair, &scratch),
    };
    let work = |chosen: &&[Chosen]| -> Vec<Looked> {
        let one = |chosen: &Chosen| {
            let key = chosen.key.as_deref();
            let known = cache.as_ref().zip(key).and_then(|(c, key)| c.known(key));
            let (userid, domain) = key.map_or((None, None), whose);
            let mine = rules.of(userid, domain, &c.namespace);
            let keep = |name: &str| match MboxName::parse(name, ns) {
                Ok(name) => mine.mailbox(&name),
                Err(_) => mine.general(),
            };
            let mut looked = look(&chosen.path, known, &open, &keep);
            if looked.summary.is_ok() {
                return looked;
            }
            match chosen.moved(&catalog) {
                Some(now) => look(&now.path, None, &open, &keep),
                None => {
                    looked.summary = looked.summary.map_err(|e| former::explain(e, &chosen.path));
                    looked
                }
            }
        };
        chosen.iter().map(one).collect()
    };
    let parts: Vec<&[Chosen]> = chosen.chunks(AT_A_TIME).collect();
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    let mut fresh = Vec::new();
    let told = in_order(&parts, jobs, None, work, |part, looked| {
        for (chosen, mut looked) in part.iter().zip(looked) {
            if let (Some(key), Some(text)) = (&chosen.key, looked.fresh()) {
                fresh.push((key.clone(), text));
            }
            tell(chosen, looked)?;
        }
        Ok(())
    });
    if let Some(cache) = &mut cache {
        fresh
            .into_iter()
            .for_each(|(key, text)| cache.remember(&key, text));
        if is_whole && told.is_ok() {
            let keys: HashSet<&str> = chosen.iter().filter_map(|c| c.key.as_deref()).collect();
            cache.only(|key| keys.contains(key));
        }
        cache.save();
    }
    told.map(|_| ())
}

/// The deleted ones, and until when they are kept.
fn run_deleted(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let formers = former::list(&c.catalog(), None)?;
    let until = |f: &Former| super::delete::until(f, c);
    if args.json {
        out.document(&[], |d| {
            d.list("backups")?;
            formers.iter().try_for_each(|f| {
                d.row(&json!({
                    "userid": f.owner,
                    "key": f.key,
                    "path": f.path.to_string_lossy(),
                    "bytes": size(&f.path),
                    "deleted": f.deleted.map(|t| t.0),
                    "until": until(f),
                }))
            })
        })?;
    } else {
        out.line(format_args!(
            "{:<24} {:<20} {:<20} {:>12} KEY",
            "BACKUP", "DELETED", "KEPT UNTIL", "BYTES"
        ))?;
        for f in &formers {
            out.line(format_args!(
                "{:<24} {:<20} {:<20} {:>12} {}",
                plain(&f.owner),
                when(f.deleted.map(|t| t.0)),
                when(until(f)),
                number(size(&f.path)),
                plain(&f.key)
            ))?;
        }
    }
    Ok(Outcome::Well)
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    if args.deleted {
        return run_deleted(args, c, out);
    }
    let found = args.select.find(&c.catalog(), &c.namespace)?;
    for (name, e) in &found.missing {
        c.complain(name, e);
    }
    let now = now();
    let known = Known::read(c)?;
    let row = |chosen: &Chosen, looked: Looked| {
        if let Err(e) = &looked.summary {
            c.complain(&chosen.name(), e);
        }
        let asked = is_stale(&looked.summary, args.stale_secs, now);
        asked.then(|| Row::new(chosen, looked, &known))
    };
    let is_all = args.select.is_all();
    if args.json {
        out.document(&[], |d| {
            d.list("backups")?;
            each(
                &found.chosen,
                c,
                Stale::Refuse,
                is_all,
                &mut |chosen, looked| {
                    let row = row(chosen, looked);
                    row.map_or(Ok(()), |row| d.row(&row.json(now)))
                },
            )
        })?;
    } else {
        out.line(format_args!(
            "{:<24} {:<20} {:<20} {:>12} {:>10} {:>7} {:>8} {:>6} {:>6} {:>9} DATA FILE",
            "BACKUP",
            "LAST SYNC",
            "PROVEN",
            "BYTES",
            "INDEX",
            "CHUNKS",
            "MESSAGES",
            "WASTE",
            "RESYNC",
            "HELD"
        ))?;
        each(
            &found.chosen,
            c,
            Stale::Refuse,
            is_all,
            &mut |chosen, looked| row(chosen, looked).map_or(Ok(()), |row| row.line(out)),
        )?;
    }
    Ok(c.outcome())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Kind};

    fn args(words: &[&str]) -> Result<Args> {
        Args::parse(&options().parse(words).unwrap())
    }

    #[test]
    fn all_is_the_default() {
        let all = args(&[]).unwrap();
        assert_eq!(all, args(&["-A"]).unwrap());
        assert!(!all.json && all.stale_secs.is_none());
        let some = args(&["-j", "--stale", "24", "-P", "a"]).unwrap();
        assert!(some.json && some.select.is_set());
        assert_eq!(some.stale_secs, Some(86_400));
        for bad in ["", "-1", "1.5", "99999999999"] {
            let e = args(&[&format!("--stale={bad}")]).unwrap_err();
            assert_eq!(e.to_string(), "--stale wants a number of hours");
        }
    }

    #[test]
    fn stale_is_older_or_never_or_unknown() {
        let at = |last_time| {
            Ok(Summary {
                last_time,
                ..Summary::default()
            })
        };
        let now = Timestamp(10_000);
        let is = |summary: &Result<Summary>| is_stale(summary, Some(3600), now);
        assert!(!is(&at(Some(6400))) && is(&at(Some(6399))) && is(&at(None)));
        assert!(is_stale(&at(Some(10_000)), None, now));
        let broken = Err(Error::new(Kind::Damaged, "torn"));
        assert!(is(&broken));
        let row = Row {
            key: None,
            path: "/b".into(),
            looked: Looked::unasked(broken),
            proven: None,
            seen: None,
        };
        assert_eq!(row.json(now)["error"], "torn");
        assert_eq!(row.json(now)["chunks"], Value::Null);
    }

    #[test]
    fn shares_are_percent() {
        assert_eq!(percent(0, 0), "0%");
        assert_eq!(percent(1, 3), "33%");
        assert_eq!(percent(3, 3), "100%");
    }
}
