//! `list`: the backups, one a line.
//!
//! Cheap, however many there are: some small questions to each index, no log is read, no lock is
//! taken, nothing is repaired. A backup that cannot be read is listed with its error, and the exit
//! status is 1.

use super::args::{self, usage};
use super::output::{Out, number, plain, when};
use super::select::{self, Chosen, Select};
use super::{Context, Job, Outcome, View};
use crate::error::Result;
use crate::store::index::{self, Counts};
use crate::store::proven::{Proved, time_of};
use crate::store::reader::Stale;
use crate::util::time::{Timestamp, now};
use getopts::{Matches, Options};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    select: Select,
    json: bool,
    /// `--stale`, in seconds.
    stale_secs: Option<i64>,
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    select::options(&mut o);
    args::json(&mut o);
    let help = "only those whose last sync is older";
    o.optopt("", "stale", help, "HOURS");
    o
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    let args = Args::parse(m)?;
    Ok(Box::new(move |c, out| run(&args, c, out)))
}

impl Args {
    fn parse(m: &Matches) -> Result<Args> {
        let stale_secs = match m.opt_str("stale") {
            None => None,
            Some(text) => {
                let hours: Option<u32> = text.parse().ok();
                let hours = hours.ok_or_else(|| usage("--stale wants a number of hours"))?;
                Some(i64::from(hours) * 3600)
            }
        };
        Ok(Args {
            select: Select::some_or_all(m)?,
            json: m.opt_present("j"),
            stale_secs,
        })
    }
}

/// What is told about one backup, with or without its index.
struct Row {
    key: Option<String>,
    path: String,
    bytes: Option<u64>,
    index_bytes: Option<u64>,
    counts: Result<Counts>,
    proven: Option<i64>,
}

impl Row {
    /// Looks at a backup without waiting for anything.
    fn read(chosen: &Chosen, c: &Context, proofs: &HashMap<String, Proved>) -> Row {
        let view = c.open(chosen, Stale::Refuse);
        let proven = match &view {
            Ok(view) => proven(view, proofs).ok().flatten(),
            Err(_) => None,
        };
        Row {
            key: match &view {
                Ok(view) => Some(view.key.clone()),
                Err(_) => chosen.key.clone(),
            },
            path: chosen.path.display().to_string(),
            bytes: size(&chosen.path),
            index_bytes: size(&index::path_of(&chosen.path)),
            counts: view.and_then(|v| v.reader.index().counts()),
            proven,
        }
    }

    fn is_stale(&self, limit: Option<i64>, now: Timestamp) -> bool {
        match (limit, &self.counts) {
            (Some(limit), Ok(counts)) => counts.last_time.is_none_or(|t| t < now.0 - limit),
            // What cannot be judged is shown.
            (None, _) | (_, Err(_)) => true,
        }
    }

    fn json(&self) -> Value {
        let counts = self.counts.as_ref().ok();
        let n = |f: fn(&Counts) -> i64| counts.map(f);
        let mut row = json!({
            "userid": self.key,
            "path": self.path,
            "bytes": self.bytes,
            "index_bytes": self.index_bytes,
            "last_sync": counts.and_then(|c| c.last_time),
            "proven": self.proven,
            "chunks": n(|c| c.chunks),
            "mailboxes": n(|c| c.mailboxes),
            "messages": n(|c| c.records),
            "resync": n(|c| c.resync),
        });
        if let Err(e) = &self.counts {
            row["error"] = e.to_string().into();
        }
        row
    }

    fn line(&self, out: &mut Out) -> Result<()> {
        let counts = self.counts.as_ref().ok();
        let n = |f: fn(&Counts) -> i64| number(counts.map(f));
        out.line(format_args!(
            "{:<24} {:<20} {:<20} {:>12} {:>10} {:>7} {:>8} {:>6} {}",
            plain(self.key.as_deref().unwrap_or("-")),
            when(counts.and_then(|c| c.last_time)),
            when(self.proven),
            number(self.bytes),
            number(self.index_bytes),
            n(|c| c.chunks),
            n(|c| c.records),
            n(|c| c.resync),
            plain(&self.path)
        ))
    }
}

/// When a backup was proven, if its present log was.
pub(super) fn proven(view: &View, proofs: &HashMap<String, Proved>) -> Result<Option<i64>> {
    let generation = view.reader.index().meta_text("generation")?;
    Ok(time_of(proofs, &view.key, &generation.unwrap_or_default()))
}

/// Bytes of a file; only its folder is looked at.
pub(super) fn size(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|m| m.len())
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let found = args.select.find(&c.catalog(), &c.namespace)?;
    for (name, e) in &found.missing {
        c.complain(name, e);
    }
    let now = now();
    let proofs = c.proven().all()?;
    let rows = found.chosen.iter().map(|chosen| {
        let row = Row::read(chosen, c, &proofs);
        if let Err(e) = &row.counts {
            c.complain(&chosen.name(), e);
        }
        row
    });
    let mut rows = rows.filter(|row| row.is_stale(args.stale_secs, now));
    if args.json {
        out.document(&[], |d| {
            d.list("backups")?;
            rows.try_for_each(|row| d.row(&row.json()))
        })?;
    } else {
        out.line(format_args!(
            "{:<24} {:<20} {:<20} {:>12} {:>10} {:>7} {:>8} {:>6} DATA FILE",
            "BACKUP", "LAST SYNC", "PROVEN", "BYTES", "INDEX", "CHUNKS", "MESSAGES", "RESYNC"
        ))?;
        rows.try_for_each(|row| row.line(out))?;
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
        let row = |counts| Row {
            key: None,
            path: "/b".into(),
            bytes: None,
            index_bytes: None,
            counts,
            proven: None,
        };
        let at = |last_time| {
            row(Ok(Counts {
                last_time,
                ..Counts::default()
            }))
        };
        let now = Timestamp(10_000);
        let is = |row: Row| row.is_stale(Some(3600), now);
        assert!(!is(at(Some(6400))) && is(at(Some(6399))) && is(at(None)));
        assert!(at(Some(10_000)).is_stale(None, now));
        let broken = row(Err(Error::new(Kind::Damaged, "torn")));
        assert_eq!(broken.json()["error"], "torn");
        assert_eq!(broken.json()["chunks"], Value::Null);
        assert!(is(broken));
    }
}
