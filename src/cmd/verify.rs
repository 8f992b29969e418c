//! `verify`: proves backups, without a lock and without changing anything.
//!
//! Several at a time, told in order. Whole ones are remembered as proven (`store::proven`), so that
//! with `--max-time` those come first that were not looked at for longest. Exit status 65 if
//! anything is not as it should be, 1 if a backup could not be looked at.

use super::args;
use super::output::{Out, plain};
use super::parallel::in_order;
use super::select::{self, Chosen, Select};
use super::{Context, Job, Outcome, status};
use crate::error::{Kind, Result};
use crate::store::proven::{Proved, Proven};
use crate::store::rescan::fits;
use crate::store::verify::{Depth, Finding, Proof, clean, verify_by};
use crate::util::time::now;
use getopts::{Matches, Options};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    select: Select,
    depth: Depth,
    json: bool,
    jobs: usize,
    max_time: Option<Duration>,
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    select::options(&mut o);
    args::json(&mut o);
    o.optflag("", "quick", "compare hashes of the compressed bytes only");
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
            depth: match m.opt_present("quick") {
                true => Depth::Quick,
                false => Depth::Full,
            },
            json: m.opt_present("j"),
            jobs: args::jobs_of(m)?,
            max_time: args::max_time_of(m)?,
        })
    }
}

/// Looks at one backup; a whole one is remembered as proven. `busy` counts those that are looked
/// at: the threads are shared among them.
fn look(
    args: &Args,
    chosen: &Chosen,
    scratch: &Path,
    proven: &Proven,
    busy: &AtomicUsize,
) -> Result<Proof> {
    let depth = args.depth;
    let others = busy.fetch_add(1, Ordering::Relaxed);
    let proof = verify_by(args.jobs / (others + 1), &chosen.path, depth, scratch);
    busy.fetch_sub(1, Ordering::Relaxed);
    let mut proof = proof?;
    let Some(key) = &chosen.key else {
        return Ok(proof);
    };
    if let Some(owner) = proof.key.as_ref().filter(|owner| !fits(key, owner)) {
        proof.findings.push(Finding {
            what: format!("backups.db says {key}, the log says {owner}"),
            ..Finding::default()
        });
    }
    if proof.findings.is_empty() && proof.unsettled == 0 && depth == Depth::Full {
        let proved = Proved {
            time: now().0,
            generation: proof.generation.clone(),
        };
        if let Err(e) = proven.set(key, &proved) {
            log::warn!("cannot remember that a backup is proven: {e}");
        }
    }
    Ok(proof)
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let until = args.max_time.and_then(|t| Instant::now().checked_add(t));
    let found = args.select.find(&c.catalog(), &c.namespace)?;
    for (name, e) in &found.missing {
        c.complain(name, e);
    }
    let mut chosen = found.chosen;
    let proven = c.proven();
    if until.is_some() {
        let times = proven.all()?;
        let time = |key: &Option<String>| Some(times.get(key.as_ref()?)?.time);
        chosen.sort_by_key(|chosen| time(&chosen.key));
    }
    let scratch = c.config.backup_staging_path();
    clean(&scratch);
    let mut damaged = false;
    let busy = AtomicUsize::new(0);
    let work = |chosen: &Chosen| look(args, chosen, &scratch, &proven, &busy);
    let done = if args.json {
        let mut done = 0;
        out.document(&[], |d| {
            d.list("backups")?;
            done = in_order(&chosen, args.jobs, until, work, |chosen, proof| {
                damaged |= proof.as_ref().is_ok_and(|p| !p.findings.is_empty());
                d.row(&match proof {
                    Ok(proof) => as_json(chosen, &proof, args.depth),
                    Err(e) => {
                        c.complain(&chosen.name(), &e);
                        json!({"userid": chosen.key, "path": chosen.path.to_string_lossy(),
                               "status": "failed", "error": e.to_string()})
                    }
                })
            })?;
            d.field("left", &json!(chosen.len() - done))
        })?;
        done
    } else {
        in_order(&chosen, args.jobs, until, work, |chosen, proof| {
            damaged |= proof.as_ref().is_ok_and(|p| !p.findings.is_empty());
            match proof {
                Ok(proof) => as_text(chosen, &proof, out),
                Err(e) => {
                    c.complain(&chosen.name(), &e);
                    Ok(())
                }
            }
        })?
    };
    if done < chosen.len() {
        let left = chosen.len() - done;
        log::warn!("time is over, {left} of {} not looked at", chosen.len());
    }
    Ok(if damaged {
        Outcome::Status(status(Kind::Damaged))
    } else {
        c.outcome()
    })
}

fn as_text(chosen: &Chosen, proof: &Proof, out: &mut Out) -> Result<()> {
    let name = plain(&chosen.name());
    if proof.findings.is_empty() {
        return out.line(format_args!(
            "{name}: ok ({} bytes, {} chunks, {} messages){}",
            proof.bytes,
            proof.chunks,
            proof.messages,
            match note(proof) {
                Some(note) => format!(", {note}"),
                None => String::new(),
            }
        ));
    }
    for finding in &proof.findings {
        out.line(format_args!(
            "{name}: damaged: {}",
            plain(&describe(finding))
        ))?;
    }
    Ok(())
}

/// What is no fault, and yet to be known.
fn note(proof: &Proof) -> Option<String> {
    if proof.unadopted {
        return Some("not yet adopted from the old tools".into());
    }
    let bytes = Some(proof.unsettled).filter(|&n| n > 0)?;
    let text =
        format!("{bytes} bytes behind it are of an interrupted session, the next settles them");
    Some(text)
}

fn describe(f: &Finding) -> String {
    let mut text = f.what.clone();
    if let Some(chunk) = f.chunk {
        text.push_str(&format!(", chunk {chunk}"));
    }
    if let Some(offset) = f.offset {
        text.push_str(&format!(", file offset {offset}"));
    }
    if let Some(guid) = f.guid {
        text.push_str(&format!(", message {guid}"));
    }
    for (mailbox, uid) in &f.records {
        text.push_str(&format!(", {mailbox} uid {uid}"));
    }
    text
}

fn as_json(chosen: &Chosen, proof: &Proof, depth: Depth) -> Value {
    let findings: Vec<Value> = proof
        .findings
        .iter()
        .map(|f| {
            let records: Vec<Value> = f
                .records
                .iter()
                .map(|(m, u)| json!({"mboxname": m, "uid": u}))
                .collect();
            json!({"what": f.what, "chunk": f.chunk, "offset": f.offset,
                   "guid": f.guid.map(|g| g.to_string()), "records": records})
        })
        .collect();
    json!({
        "userid": chosen.key,
        "path": chosen.path.to_string_lossy(),
        "status": if findings.is_empty() { "ok" } else { "damaged" },
        "depth": if depth == Depth::Full { "full" } else { "quick" },
        "bytes": proof.bytes,
        "chunks": proof.chunks,
        "messages": proof.messages,
        "lines": proof.lines,
        "note": note(proof),
        "findings": findings,
    })
}
