//! Proves a backup: that its log reads, that every body is what its GUID says, and that the index
//! says what the log says.
//!
//! Takes no lock and delays nobody: it looks at the state of one moment, up to the acknowledged
//! length. `quick` reads the compressed bytes only and compares their hashes; `full` inflates
//! everything and builds a second index beside, which must equal the first row for row. Findings
//! are told, not judged; nothing is changed.

use super::file::FileReader;
use super::gzip::{MemberEnd, MemberReader};
use super::index::{self, Difference, Index, differences};
use super::line::CHUNK_START;
use super::reader::{Reader, Stale};
use super::reindex::{self, From, Trailing};
use crate::cyrus::guid::Guid;
use crate::error::{Error, Result};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// How deep to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Lengths, structure and hashes of the compressed bytes.
    Quick,
    /// Everything.
    Full,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub what: String,
    /// Offset in the file of the member concerned.
    pub offset: Option<u64>,
    /// The chunk's number in the index.
    pub chunk: Option<i64>,
    /// The message concerned.
    pub guid: Option<Guid>,
    /// Where it is used: mailbox name and UID.
    pub records: Vec<(String, u32)>,
}

/// What was looked at and found.
#[derive(Clone, Debug, Default)]
pub struct Proof {
    /// Bytes of the log up to the acknowledged length.
    pub bytes: u64,
    /// Chunks.
    pub chunks: u64,
    /// Messages.
    pub messages: u64,
    /// Lines read; 0 for `quick`.
    pub lines: u64,
    /// Findings; none is good.
    pub findings: Vec<Finding>,
}

/// Findings of one kind that are told before it is left at a number.
const TOLD: usize = 100;

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Looks at the backup whose data file is at `path`. A second index is made in `scratch` and
/// removed again.
pub fn verify(path: &Path, depth: Depth, scratch: &Path) -> Result<Proof> {
    let reader = Reader::open(path, Stale::Refuse)?;
    let index = reader.index();
    let acknowledged = index.meta_number("acknowledged")?.unwrap_or(0) as u64;
    let mut proof = Proof {
        bytes: acknowledged,
        messages: index.totals()?.messages as u64,
        ..Proof::default()
    };
    structure(&reader, acknowledged, &mut proof)?;
    if depth == Depth::Full {
        let name = scratch.join(format!(
            "verify.{}.{}.index",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        ));
        std::fs::create_dir_all(scratch)
            .map_err(|e| Error::io("cannot make folder", e).at(scratch))?;
        let done = contents(&reader, acknowledged, &name, &mut proof);
        let removed = index::remove(&name);
        done?;
        removed?;
    }
    Ok(proof)
}

/// Members back to back, of the right hashes.
fn structure(reader: &Reader, acknowledged: u64, proof: &mut Proof) -> Result<()> {
    let mut at = 0;
    for chunk in reader.index().chunks()? {
        proof.chunks += 1;
        let mut find = |what: String| {
            proof.findings.push(Finding {
                what,
                offset: Some(chunk.offset),
                chunk: Some(chunk.id),
                ..Finding::default()
            });
        };
        if chunk.offset < at {
            find(format!(
                "begins inside the chunk before, which ends at {at}"
            ));
        }
        // Logs of the old tools may hold empty members between chunks: a gap is no fault.
        let Some(length) = chunk.length else {
            at = acknowledged;
            continue;
        };
        at = chunk.offset + length;
        if at > acknowledged {
            find(format!(
                "ends at {at}, beyond the acknowledged {acknowledged}"
            ));
            continue;
        }
        match reindex::hash(reader.file(), chunk.offset, length) {
            Ok(hash) if chunk.sha256.as_deref() == Some(&hash[..]) => {}
            Ok(_) => find("compressed bytes differ from what was written".into()),
            Err(e) => find(e.to_string()),
        }
    }
    at = behind_empty(reader, at, acknowledged)?;
    if at < acknowledged {
        proof.findings.push(Finding {
            what: format!("{} bytes at the end are in no chunk", acknowledged - at),
            offset: Some(at),
            ..Finding::default()
        });
    }
    Ok(())
}

/// Where sealed members end that say nothing: the old server wrote one for each session that only
/// asked, and they are no chunks.
fn behind_empty(reader: &Reader, mut at: u64, acknowledged: u64) -> Result<u64> {
    while at < acknowledged {
        let mut member = MemberReader::new(FileReader::until(reader.file(), at, acknowledged));
        let end = member.end().map_err(|e| Error::io("cannot read log", e))?;
        match end {
            MemberEnd::Sealed { compressed_len }
                if member.plain_len() <= CHUNK_START.len() as u64 =>
            {
                at += compressed_len;
            }
            _ => break,
        }
    }
    Ok(at)
}

/// Everything in the log, entered into a second index.
fn contents(reader: &Reader, acknowledged: u64, name: &Path, proof: &mut Proof) -> Result<()> {
    let index = reader.index();
    let second = Index::create(name)?;
    second.begin()?;
    let from = From {
        member: 0,
        known: None,
    };
    let entered = reindex::enter(reader.file(), &second, from, acknowledged, Trailing::Keep)?;
    proof.lines = entered.lines;
    if second.meta_text("generation")?.is_none() {
        // As for a log of the old tools.
        second.set_meta("generation", "")?;
    }
    // The member that a writer is at ends at its last flush, not in a trailer.
    let open = index.last_chunk()?.filter(|c| c.length.is_none());
    let plain = index.meta_number("acknowledged_plain")?.unwrap_or(0) as u64;
    for (offset, what) in &entered.damage {
        let at_work = open.as_ref().is_some_and(|c| c.offset == *offset)
            && entered
                .good
                .is_some_and(|g| g.member == *offset && g.plain == plain);
        if !at_work {
            proof.findings.push(Finding {
                what: what.clone(),
                offset: Some(*offset),
                ..Finding::default()
            });
        }
    }
    for (guid, offset) in &entered.wrong {
        let mut finding = Finding {
            what: "body does not match its GUID".into(),
            offset: Some(*offset),
            guid: Some(*guid),
            ..Finding::default()
        };
        name_records(index, *guid, &mut finding)?;
        proof.findings.push(finding);
    }
    let found = differences(index, &second, TOLD)?;
    for Difference { table, row, what } in found {
        let mut finding = Finding {
            what: format!("index and log differ: {table} {row}: {what}"),
            ..Finding::default()
        };
        if table == "message" && what == "only in the index" {
            let id = row.parse().unwrap_or(0);
            if let Some(guid) = index.message_guid(id)? {
                finding.guid = Some(guid);
                name_records(index, guid, &mut finding)?;
            }
        }
        proof.findings.push(finding);
    }
    second.rollback();
    Ok(())
}

fn name_records(index: &Index, guid: Guid, finding: &mut Finding) -> Result<()> {
    for row in index.records_of(guid)? {
        if let Some(mailbox) = index.mailbox_by_id(row.mailbox_id)? {
            finding.records.push((mailbox.mboxname, row.record.uid));
        }
    }
    Ok(())
}
