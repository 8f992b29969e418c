//! Proves a backup: that its log reads, that every body is what its GUID says, and that the index
//! says what the log says.
//!
//! Takes no lock and delays nobody: it looks at the state of one moment, up to the acknowledged
//! length. `quick` reads the compressed bytes only and compares their hashes; `full` inflates
//! everything and builds a second index beside, which must equal the first row for row. What lies
//! behind that length while nobody is at work is looked at, too (`tail`). Without an index that fits,
//! the log is proved alone: it may be one of the old tools that nobody has opened yet. Findings
//! are told, not judged; nothing is changed.

mod alone;

use super::ahead::Help;
use super::doubt::{Loss, assess};
use super::file::FileReader;
use super::former;
use super::gzip::{MemberEnd, MemberReader};
use super::index::{self, Difference, Index, differences};
use super::line::CHUNK_START;
use super::manifest;
use super::reader::Reader;
use super::reindex::{self, Entered, From, Trailing};
use super::tail::{self, Tail};
use crate::cyrus::guid::Guid;
use crate::error::{Error, Kind, Result};
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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
    /// Whose the index says it is; `None` where the log does not tell.
    pub key: Option<String>,
    /// The generation of the log; empty if it has none.
    pub generation: String,
    /// Findings; none is good.
    pub findings: Vec<Finding>,
    /// Whether the log itself does not read throughout.
    pub damaged: bool,
    /// Bytes at the end that an interrupted session left; the next opening settles them.
    pub unsettled: u64,
    /// A log of the old tools that has no index of ours yet: it was proved alone.
    pub unadopted: bool,
    /// What the findings mean for mailboxes; `None` if there are none, and for `quick`.
    pub loss: Option<Loss>,
}

/// Threads that inflate for one who does not say.
pub(super) const THREADS: usize = 2;

/// Findings of one kind that are told before it is left at a number.
const TOLD: usize = 100;

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// An index that does not fit may be one that is being changed: asked again after this, so often.
const AGAIN: (Duration, u32) = (Duration::from_millis(50), 5);

/// Looks at the backup whose data file is at `path`. A second index is made in `scratch`, without
/// a name. A data file that is missing and an index that does not fit are findings.
pub fn verify(path: &Path, depth: Depth, scratch: &Path) -> Result<Proof> {
    verify_by(THREADS, path, depth, scratch)
}

/// The same with so many threads that inflate, if the log is large.
pub fn verify_by(threads: usize, path: &Path, depth: Depth, scratch: &Path) -> Result<Proof> {
    look(path, depth, scratch, threads, false)
}

/// The same as `full`, and says what is lost even if that is known already.
pub fn examine(path: &Path, scratch: &Path) -> Result<Proof> {
    look(path, Depth::Full, scratch, THREADS, true)
}

fn look(path: &Path, depth: Depth, scratch: &Path, threads: usize, always: bool) -> Result<Proof> {
    let mut tries = 0;
    loop {
        let mut proof = Proof::default();
        match inner(path, depth, scratch, threads, always, &mut proof) {
            Err(e) if e.kind() == Kind::NeedsReindex => {
                if std::fs::metadata(path).is_ok_and(|m| m.len() == 0) && !had_more(path) {
                    // Made, and nothing written yet.
                    return Ok(Proof::default());
                }
                tries += 1;
                if tries < AGAIN.1 && !index::is_of_others(&index::path_of(path)) {
                    std::thread::sleep(AGAIN.0);
                    continue;
                }
                return alone::verify(path, scratch, threads, &e);
            }
            Err(e) if e.kind() == Kind::NotFound && !path.exists() => {
                let what = match former::interrupted(path) {
                    Some(what) => format!("data file is missing: {what}"),
                    None => "data file is missing; run rescan".into(),
                };
                proof.findings.push(Finding {
                    what,
                    ..Finding::default()
                });
            }
            done => done?,
        }
        return Ok(proof);
    }
}

fn inner(
    path: &Path,
    depth: Depth,
    scratch: &Path,
    threads: usize,
    always: bool,
    proof: &mut Proof,
) -> Result<()> {
    let reader = Reader::open_as_is(path, scratch)?;
    let index = reader.index();
    let acknowledged = index.meta_number("acknowledged")?.unwrap_or(0) as u64;
    proof.bytes = acknowledged;
    proof.messages = index.totals()?.messages as u64;
    proof.key = index.meta_text("key")?;
    proof.generation = index.meta_text("generation")?.unwrap_or_default();
    if depth == Depth::Quick {
        structure(&reader, acknowledged, None, proof)?;
        return behind(&reader, scratch, acknowledged, proof);
    }
    std::fs::create_dir_all(scratch).map_err(|e| Error::io("cannot make folder", e).at(scratch))?;
    let name = scratch.join(scratch_name("verify"));
    let second = again(&reader, acknowledged, &name, threads)?;
    structure(&reader, acknowledged, Some(&second.0), proof)?;
    contents(&reader, second, always, proof)?;
    behind(&reader, scratch, acknowledged, proof)
}

/// What lies behind the acknowledged length.
fn behind(reader: &Reader, scratch: &Path, acknowledged: u64, proof: &mut Proof) -> Result<()> {
    let Some(len) = unseen(reader, scratch, acknowledged)? else {
        return Ok(());
    };
    let index = reader.index();
    let open = index.last_chunk()?.filter(|c| c.length.is_none());
    let (member, plain) = match open {
        Some(chunk) => (
            chunk.offset,
            index.meta_number("acknowledged_plain")?.unwrap_or(0) as u64,
        ),
        None => (acknowledged, 0),
    };
    let found = tail::look(reader.file(), member, plain, len);
    let bytes = len - acknowledged;
    if found == Tail::Interrupted {
        proof.unsettled = bytes;
        return Ok(());
    }
    if unseen(reader, scratch, acknowledged)? != Some(len) {
        // Somebody came meanwhile, and settles it.
        return Ok(());
    }
    let (what, offset) = match found {
        Tail::Broken(offset, why) => {
            proof.damaged = true;
            let what = format!("{bytes} bytes behind what the index knows do not read: {why}");
            (what, offset)
        }
        _ => (
            format!("{bytes} bytes behind what the index knows"),
            acknowledged,
        ),
    };
    proof.findings.push(Finding {
        what: format!("{what}; run reindex"),
        offset: Some(offset),
        ..Finding::default()
    });
    Ok(())
}

/// The length of a log that goes on behind what is acknowledged while nobody is at work.
fn unseen(reader: &Reader, scratch: &Path, acknowledged: u64) -> Result<Option<u64>> {
    let state = |reader: &Reader| -> Result<(u64, u64, Option<String>)> {
        let len = reader.file().len();
        let index = reader.index();
        Ok((
            index.meta_number("acknowledged")?.unwrap_or(0) as u64,
            len.map_err(|e| Error::io("cannot read", e).at(reader.path()))?,
            index.meta_text("generation")?,
        ))
    };
    let before = state(reader)?;
    if before.1 <= acknowledged || reader.is_held() {
        return Ok(None);
    }
    // A writer may have ended in between. The index is asked last: if it says the same now, it said so
    // while nobody was there.
    match Reader::open_as_is(reader.path(), scratch).and_then(|r| state(&r)) {
        Ok(now) if now == before => Ok(Some(before.1)),
        Ok(_) => Ok(None),
        Err(e) if matches!(e.kind(), Kind::NeedsReindex | Kind::NotFound) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether the index knows of anything in the log.
pub(super) fn had_more(path: &Path) -> bool {
    matches!(known_length(path), Ok(1..))
}

/// The length that the index acknowledges, whether it fits the log or not.
fn known_length(path: &Path) -> Result<u64> {
    let place = index::path_of(path);
    let index = match Index::open_read_only(&place) {
        // SQLite can make no file beside it.
        Err(e) if e.kind() != Kind::NeedsReindex => Index::open_still(&place)?,
        opened => opened?,
    };
    Ok(index.meta_number("acknowledged")?.unwrap_or(0) as u64)
}

/// A name for an index that is thrown away.
pub(super) fn scratch_name(what: &str) -> String {
    let n = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("{what}.{}.{n}.index", std::process::id())
}

/// Removes what an interrupted run has left in `scratch`.
pub fn clean(scratch: &Path) {
    let proc_is_here = Path::new("/proc/self").exists();
    for entry in std::fs::read_dir(scratch).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let mut parts = name.split('.');
        let ours = matches!(parts.next(), Some("verify" | "heal" | "past" | "copy"));
        let pid = parts.next().and_then(|p| p.parse::<u32>().ok());
        let is_scratch = ours && parts.nth(1).is_some_and(|p| p.starts_with("index"));
        let ended = proc_is_here && pid.is_some_and(|p| !Path::new(&format!("/proc/{p}")).exists());
        if is_scratch && ended {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Members back to back, of the right hashes: those of the index, and those that the log itself
/// lists. With `second`, an index made of the log just now, members that are in it are not hashed
/// once more.
fn structure(
    reader: &Reader,
    acknowledged: u64,
    second: Option<&Index>,
    proof: &mut Proof,
) -> Result<()> {
    let chunks = reader.index().chunks()?;
    let hashed: HashMap<(u64, u64), [u8; 32]> = match second {
        None => HashMap::new(),
        Some(second) => {
            let rows = second.chunks()?.into_iter();
            let hashed = rows.filter_map(|c| {
                let hash = c.sha256?.try_into().ok()?;
                Some(((c.offset, c.length?), hash))
            });
            hashed.collect()
        }
    };
    let mut members = Vec::new();
    let mut at = 0;
    for chunk in &chunks {
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
        at = chunk.offset.saturating_add(length);
        if at > acknowledged {
            find(format!(
                "ends at {at}, beyond the acknowledged {acknowledged}"
            ));
            continue;
        }
        let hash = match hashed.get(&(chunk.offset, length)) {
            Some(hash) => Ok(*hash),
            None => reindex::hash(reader.file(), chunk.offset, length),
        };
        match hash {
            Ok(hash) => {
                if chunk.sha256.as_deref() != Some(&hash[..]) {
                    find("compressed bytes differ from what was written".into());
                }
                members.push(manifest::Member {
                    offset: chunk.offset,
                    length,
                    sha256: hash,
                });
            }
            Err(e) => find(e.to_string()),
        }
    }
    for wrong in manifest::compare(reader, &chunks, &members)? {
        if proof
            .findings
            .iter()
            .any(|f| f.offset == Some(wrong.offset))
        {
            continue;
        }
        proof.findings.push(Finding {
            what: wrong.what,
            offset: Some(wrong.offset),
            chunk: wrong.chunk,
            ..Finding::default()
        });
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

/// Everything in the log, entered into a second index, which never has its name `name` for long.
fn again(
    reader: &Reader,
    acknowledged: u64,
    name: &Path,
    threads: usize,
) -> Result<(Index, Entered)> {
    let second = Index::create_nameless(name)?;
    second.begin()?;
    let from = From {
        member: 0,
        known: None,
    };
    let begins = reader.index().chunks()?.into_iter().map(|c| c.offset);
    let help = Help {
        threads,
        begins: Some(begins.collect()),
    };
    let keep = Trailing::Keep;
    let entered = reindex::enter_with(help, reader.file(), &second, from, acknowledged, keep)?;
    if acknowledged > 0 && second.meta_text("generation")?.is_none() {
        // As for a log of the old tools.
        second.set_meta("generation", "")?;
    }
    Ok((second, entered))
}

/// What was found while the log was entered anew, and where the two indexes differ.
fn contents(
    reader: &Reader,
    (second, entered): (Index, Entered),
    always: bool,
    proof: &mut Proof,
) -> Result<()> {
    let index = reader.index();
    proof.lines = entered.lines;
    // The member that a writer is at ends at its last flush, not in a trailer.
    let open = index.last_chunk()?.filter(|c| c.length.is_none());
    let plain = index.meta_number("acknowledged_plain")?.unwrap_or(0) as u64;
    for (offset, what) in &entered.damage {
        let at_work = open.as_ref().is_some_and(|c| c.offset == *offset)
            && entered
                .good
                .is_some_and(|g| g.member == *offset && g.plain == plain);
        if !at_work {
            proof.damaged = true;
            proof.findings.push(Finding {
                what: what.clone(),
                offset: Some(*offset),
                ..Finding::default()
            });
        }
    }
    wrong_bodies(&second, &entered, proof)?;
    for Difference { table, row, what } in differences(index, &second, TOLD)? {
        let mut finding = Finding {
            what: format!("index and log differ: {table} {row}: {what}"),
            ..Finding::default()
        };
        if table == "message" && what == "only in the index" {
            finding.guid = Guid::parse(row.as_bytes());
        }
        proof.findings.push(finding);
    }
    name_records(index, &mut proof.findings)?;
    if always || !proof.findings.is_empty() {
        proof.loss = Some(assess(index, &second)?);
    }
    second.rollback();
    Ok(())
}

/// Bodies that are not what they should be; `index` was made of the log just now.
fn wrong_bodies(index: &Index, entered: &Entered, proof: &mut Proof) -> Result<()> {
    for (guid, offset) in &entered.wrong {
        proof.damaged = true;
        let what = match index.body(*guid)? {
            None => "body does not match its GUID",
            Some(_) => "body does not match its GUID, another copy does",
        };
        proof.findings.push(Finding {
            what: what.into(),
            offset: Some(*offset),
            guid: Some(*guid),
            ..Finding::default()
        });
    }
    Ok(())
}

/// Adds to findings about messages where these are used; one pass over all records.
fn name_records(index: &Index, findings: &mut [Finding]) -> Result<()> {
    let mut uses: HashMap<Guid, Vec<(String, u32)>> = findings
        .iter()
        .filter_map(|f| Some((f.guid?, Vec::new())))
        .collect();
    if uses.is_empty() {
        return Ok(());
    }
    for mailbox in index.mailboxes(true)? {
        index.records(mailbox.id, None, true, &mut |row| {
            if let Some(uses) = uses.get_mut(&row.record.guid) {
                uses.push((mailbox.mboxname.clone(), row.record.uid));
            }
            Ok(())
        })?;
    }
    for finding in findings {
        if let Some(uses) = finding.guid.and_then(|guid| uses.get(&guid)) {
            finding.records.clone_from(uses);
        }
    }
    Ok(())
}
