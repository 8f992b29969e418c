//! One compaction from beginning to end.

use super::need::{Need, Times, survey};
use super::out::{Out, XFL, XFL_AT};
use super::plan::{Member, Plan, Sizes, Step, Stretches, plan};
use super::rewrite::{Source, Take, rewrite};
use super::{Outcome, Policy, Report, new_path, state, switch};
use crate::cyrus::dlist::Value;
use crate::cyrus::guid::Guid;
use crate::error::{Error, Kind, Result};
use crate::store::backup::Backup;
use crate::store::file::{FileReader, LogFile};
use crate::store::index::{self, ChunkRow, Index};
use crate::store::line::{Line, body_head, generation, prefix};
use crate::store::lock::{Create, DataLock, Wait};
use crate::store::past;
use crate::store::reader::{Part, Reader, Stale, bodies as read_bodies, readable};
use crate::store::reindex::{self, From, Trailing};
use crate::util::hex;
use crate::util::time::Timestamp;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// So much may be left to be copied under the lock, in bytes.
const UNDER_LOCK: u64 = 1 << 20;
/// Groups of more plain bytes than this are written to the file at once, not in memory by a thread.
const IN_MEMORY: u64 = 32 << 20;
/// A clock this far behind the newest record is wrong, in seconds.
const BEHIND: i64 = 86_400;
/// What expired this long ago goes even where it hardly pays, in seconds.
const OVERDUE: i64 = 30 * 86_400;
/// Plain bytes of a bodies' member beside the bodies, at the most.
const FRAME: u64 = 80;

/// Compacts the backup whose data file is at `path`. `key` is whose it is, `scratch` a folder for
/// files that are thrown away. Sees to it itself that nobody else compacts it at the same time.
pub fn compact(
    path: &Path,
    key: &str,
    policy: &Policy,
    times: &Times<'_>,
    scratch: &Path,
) -> Result<Report> {
    if std::fs::metadata(path)
        .map_err(|e| Error::io("cannot open", e).at(path))?
        .len()
        == 0
    {
        return Ok(Report::default());
    }
    match attempt(path, key, policy, times, scratch, Reading::Whole) {
        Err(e) if e.kind() == Kind::Damaged && policy.force && !policy.dry_run => {
            log::warn!("history up to now is dropped: {e}");
            attempt(path, key, policy, times, scratch, Reading::Salvage)
        }
        done => done,
    }
}

/// What is made of a log that does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// It is left alone.
    Whole,
    /// The present state is stated anew, with the bodies that read; the old log is set aside.
    Salvage,
}

fn attempt(
    path: &Path,
    key: &str,
    policy: &Policy,
    times: &Times<'_>,
    scratch: &Path,
    reading: Reading,
) -> Result<Report> {
    let reader = opened(path, key, policy, times, reading)?;
    let survey = Survey::make(&reader, policy, times, reading)?;
    if survey.report.outcome != Outcome::Done || policy.dry_run {
        return Ok(survey.report);
    }
    let lock =
        DataLock::acquire(&new_path(path), Wait::No, Create::IfMissing).map_err(|e| {
            match e.kind() {
                Kind::Locked => Error::new(Kind::Locked, "is being compacted already").at(path),
                _ => e,
            }
        })?;
    let made = make(path, key, policy, times, scratch, reader, survey, &lock);
    if made.is_err() {
        // The old pair is as it was, unless the new log has taken its name already.
        let ours = lock.file().metadata().ok();
        let named = std::fs::metadata(new_path(path)).ok();
        use std::os::unix::fs::MetadataExt;
        if let (Some(ours), Some(named)) = (ours, named) {
            if ours.ino() == named.ino() {
                let _ = index::remove(&index::path_of(&new_path(path)));
                let _ = std::fs::remove_file(new_path(path));
            }
        }
    }
    made
}

/// Opens for reading; a log that the old tools began is taken over first, so that it has a name.
fn opened(
    path: &Path,
    key: &str,
    policy: &Policy,
    times: &Times<'_>,
    reading: Reading,
) -> Result<Reader> {
    let reader = Reader::open(path, Stale::Repair(policy.settings))?;
    let newest = reader.index().last_chunk()?.map_or(0, |c| c.last_time);
    if newest > times.now.0.saturating_add(BEHIND) && !policy.force {
        let what = "the clock is more than a day behind the newest record: not compacted";
        return Err(Error::new(Kind::Denied, what).at(path));
    }
    let named = reader.index().meta_text("generation")?;
    let named = named.is_some_and(|id| !id.is_empty());
    if named && reading == Reading::Whole || policy.dry_run {
        return Ok(reader);
    }
    drop(reader);
    let mut backup = Backup::open(path, key, policy.wait, Create::No, policy.settings)?;
    if !named {
        backup.append(&[], times.now)?;
    }
    backup.finish()?;
    Reader::open(path, Stale::Repair(policy.settings))
}

/// What is to be done.
struct Survey {
    chunks: Vec<ChunkRow>,
    bodies: Places,
    members: Vec<Member>,
    stretches: Stretches,
    plan: Plan,
    report: Report,
    open: bool,
    /// Chunks that do not read, and needed messages that are lost with them.
    damaged: HashSet<i64>,
    lost: HashSet<Guid>,
}

impl Survey {
    fn make(
        reader: &Reader,
        policy: &Policy,
        times: &Times<'_>,
        reading: Reading,
    ) -> Result<Survey> {
        let index = reader.index();
        let mut need = survey(index, times)?;
        for guid in &policy.erase {
            need.messages.remove(guid);
        }
        let all = index.chunks()?;
        let before = all.len() as u64;
        let sealed: Vec<ChunkRow> = all.into_iter().filter(|c| c.length.is_some()).collect();
        let open = sealed.len() as u64 != before;
        let (mut damaged, mut lost) = (HashSet::new(), HashSet::new());
        if reading == Reading::Salvage {
            (damaged, lost) = damage(reader, &sealed, &need)?;
            need.messages.retain(|guid| !lost.contains(guid));
        }
        let (members, bodies) = members(reader, &sealed, &need)?;
        let mut stretches = stretches(index, &sealed, &members, &need, policy, times)?;
        if reading == Reading::Salvage {
            stretches.advance = sealed.last().map(|c| c.id);
        }
        let sizes = Sizes {
            min: policy.min,
            max: match policy.max {
                0 => policy.settings.chunk_max,
                max => max,
            },
            force: policy.force,
        };
        let plan = plan(&members, &stretches, &sizes);
        let bytes = index.meta_number("acknowledged")?.unwrap_or(0) as u64;
        let overdue = need.first_expired.is_some_and(|t| {
            let kept = times.edge().map_or(0, |edge| times.now.0 - edge);
            stretches.advance.is_some() && t < times.now.0 - kept - OVERDUE.max(kept)
        });
        let wanted = policy.force && (plan.dropped + plan.rewritten > 0)
            || plan.pays(policy.threshold)
            || overdue;
        let held = need.loss.brakes(policy.brake) && !policy.force;
        let report = Report {
            outcome: match (held, wanted) {
                (true, _) => Outcome::Held,
                (false, true) => Outcome::Done,
                (false, false) => Outcome::Nothing,
            },
            chunks_before: before,
            chunks_after: before,
            bytes_before: bytes,
            bytes_after: bytes.saturating_sub(plan.freed),
            rewritten: plan.rewritten_bytes,
            spliced: plan.bytes.saturating_sub(plan.rewritten_bytes),
            expired_records: need.expired_records,
            expired_mailboxes: need.expired_mailboxes,
            expired_others: need.expired_others,
            dropped_chunks: plan.dropped,
            joined_chunks: plan.joined,
            next: need.next,
            loss: need.loss,
            generation: index.meta_text("generation")?.unwrap_or_default(),
            previous: None,
        };
        Ok(Survey {
            chunks: sealed,
            bodies,
            members,
            stretches,
            plan,
            report,
            open,
            damaged,
            lost,
        })
    }

    fn source(&self, at: usize) -> Result<Source> {
        let chunk = self.chunks.get(at).ok_or_else(gone)?;
        let mut source = source(chunk)?;
        source.bodies = self.bodies.get(&chunk.id).cloned().unwrap_or_default();
        Ok(source)
    }
}

fn gone() -> Error {
    Error::new(Kind::Internal, "a chunk is gone")
}

fn source(chunk: &ChunkRow) -> Result<Source> {
    Ok(Source {
        id: chunk.id,
        offset: chunk.offset,
        length: chunk.length.ok_or_else(gone)?,
        plain: chunk.plain_length.unwrap_or(0),
        sha256: chunk.sha256.clone().unwrap_or_default(),
        first_time: chunk.first_time,
        bodies: Vec::new(),
    })
}

/// The chunks that are not what was written, and the needed messages in them that do not read.
fn damage(
    reader: &Reader,
    chunks: &[ChunkRow],
    need: &Need,
) -> Result<(HashSet<i64>, HashSet<Guid>)> {
    let (mut damaged, mut lost) = (HashSet::new(), HashSet::new());
    for chunk in chunks {
        let source = source(chunk)?;
        let is = reindex::hash(reader.file(), source.offset, source.length)?;
        if is[..] == source.sha256[..] {
            continue;
        }
        damaged.insert(chunk.id);
        let rows = reader.index().bodies(Some(chunk.id))?;
        let wanted: HashSet<Guid> = rows.iter().map(|row| row.guid).collect();
        let wanted: Vec<Guid> = wanted.intersection(&need.messages).copied().collect();
        let good = readable(reader.index(), reader.file(), wanted.iter().copied())?;
        lost.extend(wanted.into_iter().filter(|guid| !good.contains(guid)));
    }
    Ok((damaged, lost))
}

/// Of each chunk the places of its needed bodies.
type Places = HashMap<i64, Vec<u64>>;

/// The members with what is needed of them, and where the needed bodies are.
fn members(reader: &Reader, chunks: &[ChunkRow], need: &Need) -> Result<(Vec<Member>, Places)> {
    /// What the bodies in a chunk come to.
    #[derive(Default)]
    struct Sum {
        kept: u64,
        all: u64,
        n: u64,
        bodies: Vec<u64>,
    }
    let mut sums: HashMap<i64, Sum> = HashMap::new();
    for row in reader.index().bodies(None)? {
        let sum = sums.entry(row.chunk_id).or_default();
        let head = body_head(row.partition.as_bytes(), row.guid, row.size);
        let bytes = head.len() as u64 + row.size;
        sum.all += bytes;
        sum.n += 1;
        if need.messages.contains(&row.guid) {
            sum.kept += bytes + 1;
            sum.bodies.push(row.offset);
        }
    }
    let mut members = Vec::with_capacity(chunks.len());
    let mut bodies = HashMap::new();
    for chunk in chunks {
        let mut xfl = [0];
        let at = chunk.offset + XFL_AT as u64;
        let read = reader.file().read_at(&mut xfl, at);
        let read = read.map_err(|e| Error::io("cannot read log", e))?;
        let sum = sums.remove(&chunk.id).unwrap_or_default();
        let plain = chunk.plain_length.unwrap_or(0);
        // All plain bytes are spoken for: the first line, one MESSAGE line, and its bodies.
        let line = prefix(Timestamp(chunk.first_time), "MESSAGE");
        let frame = crate::store::line::CHUNK_START.len() + line.len() + "()\r\n".len();
        let bodies_only = sum.n > 0 && plain == frame as u64 + sum.all + sum.n - 1;
        members.push(Member {
            id: chunk.id,
            length: chunk.length.unwrap_or(0),
            plain,
            kept: match sum.bodies.len() {
                0 => 0,
                _ => (sum.kept + FRAME).min(plain),
            },
            compacted: read == 1 && xfl[0] == XFL,
            bodies_only,
            has_bodies: sum.n > 0,
        });
        bodies.insert(chunk.id, sum.bodies);
    }
    Ok((members, bodies))
}

fn stretches(
    index: &Index,
    chunks: &[ChunkRow],
    members: &[Member],
    need: &Need,
    policy: &Policy,
    times: &Times<'_>,
) -> Result<Stretches> {
    let number = |key| index.meta_number(key);
    let state = number("state_chunk")?.zip(number("state_last")?);
    let mut out = Stretches {
        state,
        advance: None,
        about: [1, number("compacted")?.unwrap_or(0)],
    };
    let Some(edge) = times.history_edge() else {
        return Ok(out);
    };
    let since = state.map_or(0, |s| s.1);
    let old = chunks.iter().zip(members);
    let old = old.take_while(|(c, _)| c.last_time <= edge);
    // Bodies alone say nothing.
    let old = old.filter(|(c, m)| c.id > since && !m.bodies_only && !out.about.contains(&c.id));
    let Some((last, _)) = old.last() else {
        return Ok(out);
    };
    let between = |id: i64| id > since && id <= last.id;
    // Lines that could go, against what stating everything takes.
    let lines: u64 = members
        .iter()
        .filter(|m| between(m.id) && !m.bodies_only)
        .map(|m| m.plain.saturating_sub(m.kept))
        .sum();
    let records = index.counts()?.records.max(0) as u64;
    let frees = need.first_expired.is_some_and(|t| t <= last.last_time);
    if policy.force || frees || lines > (64 * 1024).max(records * 500) {
        out.advance = Some(last.id);
    }
    Ok(out)
}

/// The new pair while it is made.
struct Making<'a> {
    file: &'a File,
    end: u64,
    index: Index,
    max: u64,
    level: u8,
    /// Messages that nobody misses: they are to go, or are lost already.
    skip: HashSet<Guid>,
}

#[allow(clippy::too_many_arguments)]
fn make(
    path: &Path,
    key: &str,
    policy: &Policy,
    times: &Times<'_>,
    scratch: &Path,
    reader: Reader,
    survey: Survey,
    lock: &DataLock,
) -> Result<Report> {
    let mut report = survey.report.clone();
    let fail = |e| Error::io("cannot write", e).at(lock.path());
    LogFile::set_len(lock.file(), 0).map_err(fail)?;
    let index = Index::create(&index::path_of(lock.path()))?;
    index.attach(reader.index().path())?;
    index.begin()?;
    let mut making = Making {
        file: lock.file(),
        end: 0,
        index,
        max: match policy.max {
            0 => policy.settings.chunk_max,
            max => max,
        },
        level: policy.level,
        skip: policy.erase.union(&survey.lost).copied().collect(),
    };
    let id = new_id()?;
    making.generation(&id, key, reader.index(), &survey)?;
    making.steps(&reader, &survey, key, policy, times, scratch)?;
    let mut done = survey.chunks.last().map_or(0, |c| c.id);
    let was = reader.index().meta_text("generation")?;
    let old = reader.data_file()?;
    // What came meanwhile, until little is left.
    let mut reader = reader;
    loop {
        let later = reader.index().chunks_after(done)?;
        let later: Vec<_> = later.into_iter().filter(|c| c.length.is_some()).collect();
        let bytes: u64 = later.iter().filter_map(|c| c.length).sum();
        if bytes < UNDER_LOCK {
            break;
        }
        making.tail(&old, reader.index(), &later, done, times)?;
        done = later.last().map_or(done, |c| c.id);
        reader = Reader::open(path, Stale::Refuse)?;
        if reader.index().meta_text("generation")? != was {
            return Err(replaced(path));
        }
    }
    drop(reader);
    let mut backup = Backup::open(path, key, policy.wait, Create::No, policy.settings)?;
    backup.seal()?;
    if backup.index().meta_text("generation")? != was {
        return Err(replaced(path));
    }
    let later = backup.index().chunks_after(done)?;
    making.tail(&old, backup.index(), &later, done, times)?;
    making.manifest(times.now)?;
    same_state(backup.index(), &making.index)?;
    making.acknowledge(backup.index())?;
    report.bytes_before = backup.index().meta_number("acknowledged")?.unwrap_or(0) as u64;
    report.bytes_after = making.end;
    report.chunks_before = backup.index().counts()?.chunks as u64;
    report.chunks_after = making.index.counts()?.chunks as u64;
    report.generation = id;
    LogFile::sync_data(lock.file()).map_err(fail)?;
    making.index.commit()?;
    making.index.detach()?;
    let new_index = switch::close(making.index)?;
    let previous = match (survey.damaged.is_empty(), policy.keep_previous) {
        // Nothing is thrown away because it does not read.
        (false, _) => Some(format!(".damaged.{}", crate::util::time::now_ms())),
        (true, true) => Some(format!(".{}", times.now.0)),
        (true, false) => None,
    };
    if let Some(previous) = previous {
        let mut name = path.as_os_str().to_owned();
        name.push(previous);
        report.previous = Some(name.into());
    }
    let old_lock = backup.into_lock()?;
    switch::switch(path, &new_index, report.previous.as_deref())?;
    drop(old_lock);
    Ok(report)
}

fn replaced(path: &Path) -> Error {
    Error::new(Kind::Locked, "the log was replaced meanwhile").at(path)
}

fn new_id() -> Result<String> {
    let mut id = [0; 8];
    getrandom::fill(&mut id)
        .map_err(|e| Error::new(Kind::Internal, "no random numbers").because(e.to_string()))?;
    Ok(hex::encode(&id))
}

/// The last look before the switch: what is alive, and how much of everything else there is.
fn same_state(old: &Index, new: &Index) -> Result<()> {
    let differs = |what: &str| {
        let what = format!("compaction would change {what}: abandoned, nothing is changed");
        Error::new(Kind::Internal, what)
    };
    let mut count = 0;
    for was in old.mailboxes(false)? {
        count += 1;
        let is = new.mailbox(&was.uniqueid)?;
        let same = is.is_some_and(|is| {
            (&is.head, is.epoch, is.records, is.sums, is.deleted)
                == (&was.head, was.epoch, was.records, was.sums, was.deleted)
                && (is.created, is.changed) == (was.created, was.changed)
        });
        if !same {
            return Err(differs(&format!("mailbox {}", was.mboxname)));
        }
    }
    if new.mailboxes(false)?.len() != count {
        return Err(differs("the list of mailboxes"));
    }
    let subscriptions = |index: &Index| -> Result<Vec<(String, i64)>> {
        let rows = index.subscriptions(false)?;
        Ok(rows.into_iter().map(|s| (s.mboxname, s.time)).collect())
    };
    if subscriptions(old)? != subscriptions(new)? {
        return Err(differs("subscriptions"));
    }
    let scripts = |index: &Index| -> Result<Vec<(String, Guid, i64)>> {
        let rows = index.scripts(false)?;
        let rows = rows.into_iter().map(|s| (s.filename, s.guid, s.time));
        Ok(rows.collect())
    };
    if scripts(old)? != scripts(new)? || old.active_since()? != new.active_since()? {
        return Err(differs("sieve scripts"));
    }
    if old.seen_states()?.len() != new.seen_states()?.len()
        || old.quotas()? != new.quotas()?
        || old.marks_since()? != new.marks_since()?
        || old.all_annotations()?.len() != new.all_annotations()?.len()
    {
        return Err(differs("seen states, quota, annotations or marks"));
    }
    Ok(())
}

impl Making<'_> {
    /// The first member: what log this is.
    fn generation(&mut self, id: &str, key: &str, old: &Index, survey: &Survey) -> Result<()> {
        let stamp = survey.chunks.first().map_or(0, |c| c.first_time);
        let mut line = generation(id, key);
        if let Some(created) = old.meta_number("created")? {
            line = crate::store::line::generation_of(id, key, created);
        }
        self.lines(stamp, &[line])
    }

    /// Writes lines as a member of their own and enters them.
    fn lines(&mut self, stamp: i64, lines: &[Line]) -> Result<()> {
        let mut out = Out::file(self.file, self.end, self.level);
        out.begin()?;
        for line in lines {
            out.write(&prefix(Timestamp(stamp), line.name))?;
            out.write(&line.value)?;
            out.write(b"\r\n")?;
        }
        let (_, end) = out.finish()?;
        self.enter(end)
    }

    /// Enters what was written up to `end`: this also proves that it reads.
    fn enter(&mut self, end: u64) -> Result<()> {
        if end == self.end {
            return Ok(());
        }
        let from = From {
            member: self.end,
            known: None,
        };
        let entered = reindex::enter(self.file, &self.index, from, end, Trailing::Keep)?;
        let refused = entered.refused as usize;
        if entered.broken
            || entered.damage.len() > refused
            || !entered.wrong.is_empty()
            || entered.end != end
        {
            let why = match entered.damage.first() {
                Some((at, what)) => format!("{what} at {at} of the new log"),
                None => "bodies are not what they say".into(),
            };
            return Err(Error::new(Kind::Damaged, why));
        }
        self.end = end;
        Ok(())
    }

    /// Adds bytes that a thread has made.
    fn add(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_at(bytes, self.end)
            .map_err(|e| Error::io("cannot write", e))?;
        self.enter(self.end + bytes.len() as u64)
    }

    fn steps(
        &mut self,
        reader: &Reader,
        survey: &Survey,
        key: &str,
        policy: &Policy,
        times: &Times<'_>,
        scratch: &Path,
    ) -> Result<()> {
        let old = reader.data_file()?;
        let mut groups = Vec::new();
        for step in &survey.plan.steps {
            if let Step::Rewrite(group, lines) = step {
                let sources = group.iter().map(|at| survey.source(*at));
                let sources = sources.collect::<Result<Vec<_>>>()?;
                let take = Take {
                    bodies: sources.iter().any(|s| !s.bodies.is_empty()),
                    lines: *lines,
                };
                groups.push((sources, take));
            }
        }
        let (max, level) = (self.max, self.level);
        let torn = |sources: &[Source]| sources.iter().any(|s| survey.damaged.contains(&s.id));
        let small = |sources: &[Source]| {
            sources.iter().map(|s| s.plain).sum::<u64>() <= IN_MEMORY && !torn(sources)
        };
        let work = |(sources, take): &(Vec<Source>, Take)| -> Result<Option<(Vec<u8>, Vec<u8>)>> {
            if !small(sources) {
                return Ok(None);
            }
            let (mut bodies, mut lines) = (Out::memory(level), Out::memory(level));
            rewrite(&old, sources, *take, max, &mut bodies, &mut lines)?;
            Ok(Some((bodies.finish()?.0, lines.finish()?.0)))
        };
        ahead(&groups, policy.jobs, work, |next| {
            let mut at = 0;
            for step in &survey.plan.steps {
                match step {
                    Step::Splice(member) => self.splice(reader, survey, *member)?,
                    Step::State => self.state(reader, survey, key, times, scratch)?,
                    Step::Rewrite(..) => {
                        match next()? {
                            Some((bodies, lines)) => {
                                self.add(&bodies)?;
                                self.add(&lines)?;
                            }
                            None => {
                                let (sources, take) = groups.get(at).ok_or_else(gone)?;
                                match torn(sources) {
                                    true => self.salvage(reader, sources)?,
                                    false => self.large(&old, sources, *take)?,
                                }
                            }
                        }
                        at += 1;
                    }
                }
            }
            Ok(())
        })
    }

    /// The bodies that read, of members of which some do not.
    fn salvage(&mut self, reader: &Reader, sources: &[Source]) -> Result<()> {
        let mut out = Out::file(self.file, self.end, self.level);
        let stamp = sources.first().map_or(0, |s| s.first_time);
        let mut wanted = Vec::new();
        for source in sources {
            let rows = reader.index().bodies(Some(source.id))?.into_iter();
            let rows = rows.filter(|row| source.bodies.binary_search(&row.offset).is_ok());
            wanted.extend(rows.map(|row| row.guid));
        }
        let mut bodies = super::rewrite::Bodies::new(&mut out, stamp, self.max);
        read_bodies(
            reader.index(),
            reader.file(),
            wanted,
            &mut |row, part| match part {
                Part::Begin => bodies.begin(row.partition.as_bytes(), row.guid, row.size),
                Part::Data(bytes) => bodies.data(bytes),
                Part::End(true) => Ok(()),
                Part::End(false) => Err(Error::new(Kind::Damaged, "a body changed meanwhile")),
            },
        )?;
        bodies.end()?;
        let (_, end) = out.finish()?;
        self.enter(end)
    }

    /// A group that is too large to be held in memory: read once for bodies, once for lines.
    fn large(&mut self, old: &File, sources: &[Source], take: Take) -> Result<()> {
        let passes = [
            Take {
                lines: false,
                ..take
            },
            Take {
                bodies: false,
                ..take
            },
        ];
        for take in passes.into_iter().filter(|t| t.bodies || t.lines) {
            let mut out = Out::file(self.file, self.end, self.level);
            let mut none = Out::memory(0);
            match take.bodies {
                true => rewrite(old, sources, take, self.max, &mut out, &mut none)?,
                false => rewrite(old, sources, take, self.max, &mut none, &mut out)?,
            }
            let (_, end) = out.finish()?;
            self.enter(end)?;
        }
        Ok(())
    }

    /// Copies a member as it is, and enters it; rows of bodies are taken over, since its hash
    /// proves that they are still right.
    fn splice(&mut self, reader: &Reader, survey: &Survey, at: usize) -> Result<()> {
        let chunk = survey.chunks.get(at).ok_or_else(gone)?;
        let member = survey.members.get(at).ok_or_else(gone)?;
        let source = source(chunk)?;
        let end = self.copy(reader.file(), &source)?;
        if !member.bodies_only {
            return self.enter(end);
        }
        let id = self
            .index
            .begin_chunk(self.end, Timestamp(chunk.first_time))?;
        self.index.touch_chunk(id, Timestamp(chunk.last_time))?;
        self.index.take_bodies(chunk.id, id)?;
        let hash: [u8; 32] = source.sha256.try_into().map_err(|_| gone())?;
        self.index
            .end_chunk(id, source.length, source.plain, &hash)?;
        self.end = end;
        Ok(())
    }

    /// Copies a member's bytes to the end, compared with their hash. The new end.
    fn copy(&self, old: &dyn LogFile, source: &Source) -> Result<u64> {
        let end = source.offset + source.length;
        let mut reader = FileReader::until(old, source.offset, end);
        let mut hasher = Sha256::new();
        let mut buf = vec![0; 256 * 1024];
        let mut to = self.end;
        loop {
            let n = reader
                .read(&mut buf)
                .map_err(|e| Error::io("cannot read log", e))?;
            if n == 0 {
                break;
            }
            hasher.update(&buf[..n]);
            self.file
                .write_at(&buf[..n], to)
                .map_err(|e| Error::io("cannot write", e))?;
            to += n as u64;
        }
        if hasher.finalize()[..] != source.sha256[..] {
            let e = Error::new(
                Kind::Damaged,
                "compressed bytes differ from what was written",
            );
            return Err(e.in_chunk(source.id, source.offset));
        }
        Ok(to)
    }

    fn state(
        &mut self,
        reader: &Reader,
        survey: &Survey,
        key: &str,
        times: &Times<'_>,
        scratch: &Path,
    ) -> Result<()> {
        let upto = survey.stretches.advance.ok_or_else(gone)?;
        let last = survey.chunks.iter().find(|c| c.id == upto);
        let time = last.ok_or_else(gone)?.last_time;
        let present = !survey.open && survey.chunks.last().is_some_and(|c| c.id == upto);
        let past = match present {
            true => None,
            false => Some(past::upto(reader, upto, scratch)?),
        };
        if let Some((at, why)) = past.iter().flat_map(|p| p.damage()).next() {
            let what = format!("history does not read: file offset {at}: {why}");
            return Err(Error::new(Kind::Damaged, what));
        }
        let id = new_id()?;
        let what = state::Stating {
            then: past.as_ref().map_or(reader.index(), |p| p.index()),
            live: reader.index(),
            times,
            key,
            id: &id,
            time,
            max: self.max,
        };
        let mut out = Out::file(self.file, self.end, self.level);
        state::write(&what, &mut out)?;
        let (_, end) = out.finish()?;
        self.enter(end)
    }

    /// Copies what came after `done`, and before it the bodies that it refers to and that were not
    /// needed any more. Then everything needed must be there.
    fn tail(
        &mut self,
        old: &File,
        index: &Index,
        later: &[ChunkRow],
        done: i64,
        times: &Times<'_>,
    ) -> Result<()> {
        let need = survey(index, times)?;
        let mut lacking: BTreeMap<i64, Vec<u64>> = BTreeMap::new();
        for guid in need.messages.difference(&self.skip) {
            if self.index.body(*guid)?.is_some() {
                continue;
            }
            if let Some(body) = index.body(*guid)? {
                if body.chunk_id <= done {
                    lacking.entry(body.chunk_id).or_default().push(body.offset);
                }
            }
        }
        let mut sources = Vec::new();
        for (id, mut bodies) in lacking {
            bodies.sort_unstable();
            let chunk = index.chunk(id)?.ok_or_else(gone)?;
            let mut source = source(&chunk)?;
            source.bodies = bodies;
            sources.push(source);
        }
        if !sources.is_empty() {
            // Never before what is printed already.
            let stamp = self.index.last_chunk()?.map_or(0, |c| c.last_time);
            for source in &mut sources {
                source.first_time = stamp;
            }
            let take = Take {
                bodies: true,
                lines: false,
            };
            self.large(old, &sources, take)?;
        }
        for chunk in later {
            let end = self.copy(old, &source(chunk)?)?;
            self.enter(end)?;
        }
        for guid in need.messages.difference(&self.skip) {
            if self.index.body(*guid)?.is_none() && index.body(*guid)?.is_some() {
                let what = format!("compaction would lose message {guid}: abandoned");
                return Err(Error::new(Kind::Internal, what));
            }
        }
        Ok(())
    }

    /// The last member: what the file consists of.
    fn manifest(&mut self, now: Timestamp) -> Result<()> {
        let mut members = Vec::new();
        let mut stamp = now.0;
        for chunk in self.index.chunks()? {
            stamp = chunk.last_time;
            members.push(Value::num(chunk.length.ok_or_else(gone)?));
            let hash = chunk.sha256.ok_or_else(gone)?;
            members.push(Value::text(hex::encode(&hash)));
        }
        let manifest = Value::kv([("FROM", Value::num(0)), ("MEMBERS", Value::List(members))]);
        let compacted = Value::kv([("TIME", Value::num(now.0))]);
        self.lines(
            stamp,
            &[
                Line::private("MANIFEST", manifest),
                Line::private("COMPACTED", compacted),
            ],
        )
    }

    fn acknowledge(&self, old: &Index) -> Result<()> {
        let stamp = old.meta_number("stamp")?.unwrap_or(0);
        self.index.set_meta("acknowledged", self.end as i64)?;
        self.index.set_meta("acknowledged_plain", 0)?;
        self.index.set_meta("clock", 0)?;
        self.index.set_meta("stamp", stamp)
    }
}

/// Does `work` on every item with `jobs` threads, not far ahead of `take`, which is given what asks
/// for the next result in order.
fn ahead<I: Sync, T: Send>(
    items: &[I],
    jobs: usize,
    work: impl Fn(&I) -> Result<T> + Sync,
    take: impl FnOnce(&mut dyn FnMut() -> Result<T>) -> Result<()>,
) -> Result<()> {
    let jobs = jobs.clamp(1, items.len().max(1));
    let taken = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (permit, permits) = crossbeam_channel::bounded::<()>(jobs * 2);
        let (sender, results) = crossbeam_channel::unbounded();
        for _ in 0..jobs {
            let (permit, sender, taken, work) = (permit.clone(), sender.clone(), &taken, &work);
            scope.spawn(move || {
                while permit.send(()).is_ok() {
                    let at = taken.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { break };
                    if sender.send((at, work(item))).is_err() {
                        break;
                    }
                }
            });
        }
        drop((permit, sender));
        let mut early = BTreeMap::new();
        let mut due = 0;
        let mut next = || loop {
            if let Some(done) = early.remove(&due) {
                due += 1;
                let _ = permits.recv();
                return done;
            }
            match results.recv() {
                Ok((at, done)) => early.insert(at, done),
                Err(_) => return Err(Error::new(Kind::Internal, "a thread ended early")),
            };
        };
        let done = take(&mut next);
        // Threads that wait for a permit end when there is nobody to give one.
        drop(permits);
        done
    })
}
