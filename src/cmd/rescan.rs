//! `rescan`: compares `backups.db` with the logs in the partitions; with `--fix`, builds it anew.
//!
//! Exit status 1 while anything disagrees that was not fixed, or could not be looked at.

use super::args;
use super::output::{Out, plain};
use super::{Context, Job, Outcome};
use crate::error::{Error, Kind, Result};
use crate::store::catalog::Catalog;
use crate::store::former::{self, Settled};
use crate::store::rescan::{
    Finding, What, apply, entries, outdated, plan as compare, set_aside, walk,
};
use crate::util::time::now_ms;
use getopts::{Matches, Options};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::PathBuf;

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    json: bool,
    fix: bool,
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    args::json(&mut o);
    o.optflag("", "fix", "change backups.db");
    o
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    args::no_more(&m.free)?;
    let args = Args {
        json: m.opt_present("j"),
        fix: m.opt_present("fix"),
    };
    Ok(Box::new(move |c, out| run(&args, c, out)))
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let db = c.config.backup_db_path();
    let partitions: Vec<PathBuf> = c
        .config
        .backup_partitions()
        .into_iter()
        .map(|p| p.1)
        .collect();
    if partitions.is_empty() {
        return Err(Error::new(Kind::Config, "no backuppartition-NAME is set"));
    }
    let catalog = Catalog::open(&db, args.fix);
    let (mut settled, unsettled) = match args.fix {
        true => settle(&catalog, c),
        false => Default::default(),
    };
    let mut walked = walk(&partitions, &c.namespace);
    let known = match entries(&catalog, &c.namespace, &mut walked) {
        Err(e) if e.kind() == Kind::Damaged => {
            let name = db.display().to_string();
            if !args.fix {
                c.complain(&name, &e);
            } else {
                let aside = set_aside(&db, now_ms())?;
                log::warn!("{name}: {e}: kept as {}", aside.display());
            }
            Vec::new()
        }
        known => known?,
    };
    let not_entered = outdated(&catalog, &mut walked, &known)?;
    for e in &walked.failed {
        c.complain("rescan", e);
    }
    let mut findings = compare(&walked.logs, &known, &not_entered);
    for found in findings.iter_mut().filter(|f| f.what == What::Missing) {
        if let Some(what) = former::interrupted(&found.path) {
            found.why = Some(what.into());
        }
    }
    let is_unsettled = |found: &Finding| {
        let path = match found.what {
            What::Missing => Some(found.path.clone()),
            What::Deleted => former::split(&found.path).map(|(before, _)| before),
            _ => None,
        };
        path.is_some_and(|path| unsettled.contains(&path))
    };
    for found in findings.iter_mut().filter(|f| is_unsettled(f)) {
        found.change = None;
    }
    settled.append(&mut findings);
    findings = settled;
    if args.fix {
        apply(&catalog, &mut findings)?;
    }
    if args.json {
        let counts = [
            ("entries", json!(known.len())),
            ("logs", json!(walked.logs.len())),
        ];
        out.document(&counts, |d| {
            d.list("findings")?;
            findings.iter().try_for_each(|f| d.row(&as_json(f)))
        })?;
    } else {
        for f in &findings {
            out.line(format_args!("{}", plain(&as_text(f, args.fix))))?;
        }
        let left = findings.iter().filter(|f| !f.fixed).count();
        out.line(format_args!(
            "{} logs, {} entries, {} findings, {left} left",
            walked.logs.len(),
            known.len(),
            findings.len()
        ))?;
    }
    Ok(match findings.iter().all(|f| f.fixed) {
        true => c.outcome(),
        false => Outcome::Partly,
    })
}

/// Ends deletions, and what brought backups back, where that was interrupted: what was ended, and the paths of
/// logs for which it could not be. What does not read is told by the comparison.
fn settle(catalog: &Catalog, c: &Context) -> (Vec<Finding>, HashSet<PathBuf>) {
    let (mut done, mut failed) = (Vec::new(), HashSet::new());
    for (key, path) in catalog.list().unwrap_or_default() {
        if path.exists() || former::is_former(&key) {
            continue;
        }
        match former::settle(catalog, &key, &path, &c.namespace) {
            Ok(None) => {}
            Ok(Some(settled)) => {
                let why = match settled {
                    Settled::Deleted(former) => format!("deleted, as was begun: {}", former.key),
                    Settled::Back => "brought back, as was begun".into(),
                };
                done.push(Finding {
                    what: What::Missing,
                    key: Some(key),
                    path,
                    why: Some(why),
                    change: None,
                    fixed: true,
                });
            }
            Err(e) => {
                c.complain(&key, &e);
                failed.insert(path);
            }
        }
    }
    (done, failed)
}

fn word(what: What) -> &'static str {
    match what {
        What::Orphan => "orphan",
        What::Double => "double",
        What::Nameless => "nameless",
        What::Deleted => "deleted",
        What::Missing => "missing",
        What::Disagrees => "disagrees",
        What::NoLog => "nolog",
    }
}

fn as_text(f: &Finding, fix: bool) -> String {
    let what = match f.what {
        What::Orphan => "a log without an entry",
        What::Double => "one of several logs",
        What::Nameless => "a log without an entry that names nobody",
        What::Deleted => "the log of a deleted backup without an entry",
        What::Missing => "an entry without a file",
        What::Disagrees => "an entry that names another's log",
        What::NoLog => "an entry that names no log",
    };
    let mut text = match &f.key {
        Some(key) => format!("{key}: {what}: {}", f.path.display()),
        None => format!("{what}: {}", f.path.display()),
    };
    if let Some(why) = &f.why {
        text.push_str(&format!(" ({why})"));
    }
    match (&f.change, f.fixed) {
        (Some(Some(path)), true) => text.push_str(&format!(": entry set to {}", path.display())),
        (Some(None), true) => text.push_str(": entry removed"),
        (None, true) => {}
        _ if fix => text.push_str(": not fixed"),
        (Some(Some(path)), false) => {
            text.push_str(&format!(": --fix sets the entry to {}", path.display()));
        }
        (Some(None), false) => text.push_str(": --fix removes the entry"),
        (None, _) => {}
    }
    text
}

fn as_json(f: &Finding) -> Value {
    json!({
        "finding": word(f.what),
        "userid": f.key,
        "path": f.path.to_string_lossy(),
        "why": f.why,
        "fixable": f.change.is_some(),
        "entry": f.change.as_ref().map(|p| p.as_ref().map(|p| p.to_string_lossy())),
        "fixed": f.fixed,
    })
}
