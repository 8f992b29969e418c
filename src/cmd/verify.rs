//! `verify`: proves backups, without a lock and without changing anything.
//!
//! Exit status 65 if anything is damaged, 1 if a backup could not be looked at.

use super::args;
use super::output::{Out, plain};
use super::select::{self, Chosen, Select};
use super::{Context, Job, Outcome, status};
use crate::error::{Kind, Result};
use crate::store::verify::{Depth, Finding, Proof, verify};
use getopts::{Matches, Options};
use serde_json::{Value, json};

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    select: Select,
    depth: Depth,
    json: bool,
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    select::options(&mut o);
    args::json(&mut o);
    o.optflag("", "quick", "compare hashes of the compressed bytes only");
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
        })
    }
}

fn run(args: &Args, c: &Context, out: &mut Out) -> Result<Outcome> {
    let found = args.select.find(&c.catalog(), &c.namespace)?;
    for (name, e) in &found.missing {
        c.complain(name, e);
    }
    let mut damaged = false;
    let mut look = |chosen: &Chosen| -> Result<Proof> {
        let mut proof = verify(&chosen.path, args.depth, &c.config.backup_staging_path())?;
        if let Some(key) = &chosen.key {
            let view = c.open(
                &Chosen {
                    key: None,
                    path: chosen.path.clone(),
                },
                crate::store::reader::Stale::Refuse,
            )?;
            if proof.bytes > 0 && view.key != *key {
                proof.findings.push(Finding {
                    what: format!("backups.db says {key}, the log says {}", view.key),
                    ..Finding::default()
                });
            }
        }
        damaged |= !proof.findings.is_empty();
        Ok(proof)
    };
    if args.json {
        out.document(&[], |d| {
            d.list("backups")?;
            for chosen in &found.chosen {
                let row = match look(chosen) {
                    Ok(proof) => as_json(chosen, &proof, args.depth),
                    Err(e) => {
                        c.complain(&chosen.name(), &e);
                        json!({"userid": chosen.key, "path": chosen.path.to_string_lossy(),
                               "status": "failed", "error": e.to_string()})
                    }
                };
                d.row(&row)?;
            }
            Ok(())
        })?;
    } else {
        for chosen in &found.chosen {
            match look(chosen) {
                Ok(proof) if proof.findings.is_empty() => out.line(format_args!(
                    "{}: ok ({} bytes, {} chunks, {} messages)",
                    plain(&chosen.name()),
                    proof.bytes,
                    proof.chunks,
                    proof.messages
                ))?,
                Ok(proof) => {
                    for finding in &proof.findings {
                        out.line(format_args!(
                            "{}: damaged: {}",
                            plain(&chosen.name()),
                            plain(&describe(finding))
                        ))?;
                    }
                }
                Err(e) => c.complain(&chosen.name(), &e),
            }
        }
    }
    Ok(if damaged {
        Outcome::Status(status(Kind::Damaged))
    } else {
        c.outcome()
    })
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
        "findings": findings,
    })
}
