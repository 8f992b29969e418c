//! A log without an index that fits, proved alone: what it says reads, and every body is what its
//! GUID says.
//!
//! One of the old tools that nobody has opened yet is as they left it, and no index of ours is missed.
//! Beside any other log the lack of an index is a finding. Fails as [`super::verify`] does.

use super::{Finding, Proof, known_length, name_records, scratch_name, wrong_bodies};
use crate::error::{Error, Result};
use crate::store::ahead::Help;
use crate::store::file::FileReader;
use crate::store::gzip::last_flush_point;
use crate::store::index::{self, Index};
use crate::store::reindex::{self, From, Trailing};
use crate::sys::lock::{Holder, holder};
use std::fs::File;
use std::path::Path;

/// Reads the whole log at `path`; `e` is why its index cannot be used.
pub(super) fn verify(path: &Path, scratch: &Path, threads: usize, e: &Error) -> Result<Proof> {
    let file = File::open(path).map_err(|e| Error::io("cannot open", e).at(path))?;
    let fail = |e| Error::io("cannot read", e).at(path);
    let len = file.metadata().map_err(fail)?.len();
    let mut proof = Proof {
        bytes: len,
        ..Proof::default()
    };
    std::fs::create_dir_all(scratch).map_err(|e| Error::io("cannot make folder", e).at(scratch))?;
    let name = scratch.join(scratch_name("verify"));
    let ours = whole(&file, len, &name, threads, &mut proof).map_err(|e| e.at(path))?;
    let index_path = index::path_of(path);
    let missing = !index_path.exists();
    let what = match known_length(path) {
        Ok(known) if known > len => {
            format!("log is {len} bytes, {known} were acknowledged; run heal")
        }
        // As they left it.
        Err(_) if !ours && (missing || index::is_of_others(&index_path)) => {
            proof.unadopted = true;
            return Ok(proof);
        }
        _ if missing => "index is missing; run reindex".into(),
        _ => format!("index does not fit its log; run reindex ({e})"),
    };
    proof.findings.insert(
        0,
        Finding {
            what,
            ..Finding::default()
        },
    );
    Ok(proof)
}

/// Enters a whole log into a scratch index, for what comes up. Whether we wrote to it.
fn whole(file: &File, len: u64, name: &Path, threads: usize, proof: &mut Proof) -> Result<bool> {
    let index = Index::create_nameless(name)?;
    index.begin()?;
    let from = From {
        member: 0,
        known: None,
    };
    let help = Help::threads(threads);
    let mut entered = reindex::enter_with(help, file, &index, from, len, Trailing::Keep)?;
    if let Some(good) = entered.good.filter(|g| g.sealed_end.is_none()) {
        // Unsealed, as a writer has it between two units, or was when it was killed.
        let held = !matches!(holder(file), Ok(Holder::Nobody));
        if !entered.broken && (held || ends_at_flush(file, good, len)?) {
            entered.damage.retain(|(at, _)| *at != good.member);
        }
    }
    for (offset, what) in &entered.damage {
        proof.damaged = true;
        proof.findings.push(Finding {
            what: what.clone(),
            offset: Some(*offset),
            ..Finding::default()
        });
    }
    wrong_bodies(&index, &entered, proof)?;
    let totals = index.totals()?;
    proof.chunks = totals.chunks as u64;
    proof.messages = totals.messages as u64;
    proof.lines = entered.lines;
    proof.key = index.meta_text("key")?;
    proof.generation = index.meta_text("generation")?.unwrap_or_default();
    name_records(&index, &mut proof.findings)?;
    index.rollback();
    Ok(entered.ours || !proof.generation.is_empty())
}

/// Whether a log ends at a flush, right behind the last line that belongs.
fn ends_at_flush(file: &File, good: reindex::Good, len: u64) -> Result<bool> {
    let member = FileReader::until(file, good.member, len);
    let point =
        last_flush_point(member, good.plain).map_err(|e| Error::io("cannot read log", e))?;
    Ok(point.is_some_and(|p| p.plain == good.plain && good.member + p.compressed == len))
}
