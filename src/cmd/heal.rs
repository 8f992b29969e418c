//! `heal`: gets back what does not read, from second copies or from the sender's next run.
//!
//! Exit status 65 if messages are lost that nobody has any more, 1 if a backup was locked or failed.

use super::args;
use super::output::{Out, plain};
use super::select::{self, Chosen, Select};
use super::{Context, Job, Outcome, status};
use crate::error::{Kind, Result};
use crate::store::backup::{Backup, Settings};
use crate::store::heal::{Healed, Lost, copies, heal};
use crate::store::lock::{Create, Wait};
use crate::store::verify::clean;
use crate::store::{erased, former};
use crate::util::time::now;
use getopts::{Matches, Options};
use serde_json::{Value, json};
use std::path::PathBuf;

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    select: Select,
    json: bool,
    wait: bool,
    from: Option<PathBuf>,
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    select::options(&mut o);
    args::json(&mut o);
    o.optflag("w", "", "wait for backups that are locked");
    let help = "take messages from another log, or from those in a folder";
    o.optopt("", "from", help, "PATH");
    o
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    let args = Args {
        select: Select::some(m)?,
        json: m.opt_present("j"),
        wait: m.opt_present("w"),
        from: m.opt_str("from").map(PathBuf::from),
    };
    Ok(Box::new(move |c, out| run(&args, c, out)))
}

fn work(args: &Args, c: &Context, chosen: &Chosen) -> Result<Healed> {
    let settings = Settings {
        level: c.config.backup_ingest_level(),
        chunk_max: c.config.backup_chunk_max(),
    };
    let wait = if args.wait { Wait::Forever } else { Wait::No };
    let key = chosen.key.clone().unwrap_or_default();
    let mut backup = Backup::open(&chosen.path, &key, wait, Create::No, settings)
        .map_err(|e| former::explain(e, &chosen.path))?;
    let mut sources = Vec::new();
    if let Some(from) = &args.from {
        let (found, failed) = copies(from, &backup, &c.namespace)?;
        for e in failed {
            c.complain(&chosen.name(), &e);
        }
        sources = found;
    }
    let scratch = c.config.backup_staging_path();
    let budget = c.config.backup_staging_max();
    let key = backup.index().meta_text("key")?.unwrap_or(key);
    let db = c.config.backup_db_path();
    let mut erased = erased::messages(&db, &key)?;
    if let Some(key) = &chosen.key {
        let owner = former::owner_of(key).unwrap_or(key);
        erased.extend(erased::messages(&db, owner)?);
    }
    let healed = heal(&mut backup, &sources, &erased, &scratch, budget, now())?;
    backup.finish()?;
    Ok(healed)
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let found = args.select.find(&c.catalog(), &c.namespace)?;
    for (name, e) in &found.missing {
        c.complain(name, e);
    }
    let scratch = c.config.backup_staging_path();
    std::fs::create_dir_all(&scratch)
        .map_err(|e| crate::error::Error::io("cannot make folder", e).at(&scratch))?;
    clean(&scratch);
    let mut lost = false;
    if args.json {
        out.document(&[], |d| {
            d.list("backups")?;
            found.chosen.iter().try_for_each(|chosen| {
                d.row(&match work(args, c, chosen) {
                    Ok(healed) => {
                        lost |= !healed.nowhere.is_empty();
                        as_json(chosen, &healed)
                    }
                    Err(e) => {
                        c.complain(&chosen.name(), &e);
                        json!({"userid": chosen.key, "path": chosen.path.to_string_lossy(),
                               "status": "failed", "error": e.to_string()})
                    }
                })
            })
        })?;
    } else {
        for chosen in &found.chosen {
            match work(args, c, chosen) {
                Ok(healed) => {
                    lost |= !healed.nowhere.is_empty();
                    as_text(c, chosen, &healed, out)?;
                }
                Err(e) => c.complain(&chosen.name(), &e),
            }
        }
    }
    Ok(if lost {
        Outcome::Status(status(Kind::Damaged))
    } else {
        c.outcome()
    })
}

fn as_text(c: &Context, chosen: &Chosen, healed: &Healed, out: &mut Out) -> Result<()> {
    let name = plain(&chosen.name());
    for (list, what) in [
        (
            &healed.saved,
            "written again, the line around it does not read",
        ),
        (&healed.returned, "came back"),
        (&healed.awaited, "the next sync brings it"),
        (&healed.erased, "erased here"),
        (&healed.nowhere, "lost, nobody has it any more"),
    ] {
        for (guid, uses) in list {
            let mut text = format!("message {guid}: {what}");
            for u in uses {
                text.push_str(&format!(", {} uid {}", c.admin_name(&u.mboxname), u.uid));
            }
            out.line(format_args!("{name}: {}", plain(&text)))?;
        }
    }
    for (mailbox, why) in &healed.marked {
        out.line(format_args!(
            "{name}: to be sent again: {}: {}",
            plain(&c.admin_name(mailbox)),
            plain(why)
        ))?;
    }
    out.line(format_args!(
        "{name}: {} findings, {} records and {} messages written again, {} messages came back, \
         {} awaited, {} lost",
        healed.findings,
        healed.restated,
        healed.saved.len(),
        healed.returned.len(),
        healed.awaited.len(),
        healed.nowhere.len()
    ))
}

fn outcome(healed: &Healed) -> &'static str {
    let bodies = [&healed.saved, &healed.returned, &healed.awaited];
    if !healed.nowhere.is_empty() {
        return "lost";
    }
    let nothing = healed.findings == 0
        && healed.restated == 0
        && healed.marked.is_empty()
        && bodies.iter().all(|list| list.is_empty());
    if nothing { "ok" } else { "healed" }
}

fn as_json(chosen: &Chosen, healed: &Healed) -> Value {
    let list = |list: &[Lost]| -> Value {
        list.iter()
            .map(|(guid, uses)| {
                let records: Vec<Value> = uses
                    .iter()
                    .map(|u| json!({"mboxname": u.mboxname, "uid": u.uid, "live": u.live}))
                    .collect();
                json!({"guid": guid.to_string(), "records": records})
            })
            .collect()
    };
    let marked: Vec<Value> = healed
        .marked
        .iter()
        .map(|(mboxname, why)| json!({"mboxname": mboxname, "why": why}))
        .collect();
    json!({
        "userid": chosen.key,
        "path": chosen.path.to_string_lossy(),
        "status": outcome(healed),
        "findings": healed.findings,
        "restated": healed.restated,
        "saved": list(&healed.saved),
        "returned": list(&healed.returned),
        "awaited": list(&healed.awaited),
        "erased": list(&healed.erased),
        "nowhere": list(&healed.nowhere),
        "marked": marked,
    })
}
