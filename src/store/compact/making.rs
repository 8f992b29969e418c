//! The new pair while it is made: members are written or copied, and entered as they come, which
//! also proves that they read.

use super::Policy;
use super::need::{Need, Times, survey};
use super::out::Out;
use super::plan::Step;
use super::rewrite::{Bodies, Source, Take, rewrite};
use super::run::new_id;
use super::state;
use super::survey::{Survey, gone, source};
use crate::cyrus::dlist::Value;
use crate::cyrus::guid::Guid;
use crate::error::{Error, Kind, Result};
use crate::store::file::{FileReader, LogFile};
use crate::store::index::{ChunkRow, Index, MessageRow, RowRanges};
use crate::store::line::{Line, generation, generation_of, prefix};
use crate::store::past;
use crate::store::reader::{Part, Reader, bodies as read_bodies};
use crate::store::reindex::{self, From, Trailing};
use crate::util::hex;
use crate::util::time::Timestamp;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Groups of more plain bytes than this are written to the file at once, not in memory by a thread.
const IN_MEMORY: u64 = 32 << 20;

/// The new pair while it is made.
pub(super) struct Making<'a> {
    pub(super) file: &'a File,
    pub(super) end: u64,
    pub(super) index: Index,
    pub(super) max: u64,
    pub(super) level: u8,
    /// Messages that nobody misses: they are to go, or are lost already.
    pub(super) skip: HashSet<Guid>,
    /// Where in the old index the bodies of its chunks are.
    pub(super) places: RowRanges,
}

impl Making<'_> {
    /// The first member: what log this is.
    pub(super) fn generation(
        &mut self,
        id: &str,
        key: &str,
        old: &Index,
        survey: &Survey,
    ) -> Result<()> {
        let stamp = survey.chunks.first().map_or(0, |c| c.first_time);
        let mut line = generation(id, key);
        if let Some(created) = old.meta_number("created")? {
            line = generation_of(id, key, created);
        }
        let mut lines = vec![line];
        for &(printed, first, last) in old.lates()?.rows() {
            let fact = Value::kv([
                ("PRINTED", Value::num(printed)),
                ("FIRST", Value::num(first)),
                ("LAST", Value::num(last)),
            ]);
            lines.push(Line::private("LATE", fact));
        }
        self.lines(stamp, &lines)
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

    pub(super) fn steps(
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
            let both_splice =
                |a: &Step, b: &Step| matches!((a, b), (Step::Splice(_), Step::Splice(_)));
            for steps in survey.plan.steps.chunk_by(both_splice) {
                match steps.first().ok_or_else(gone)? {
                    Step::Splice(_) => self.splice(&old, survey, steps, policy.jobs)?,
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
        let mut bodies = Bodies::new(&mut out, stamp, self.max);
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

    /// Copies members that follow one another as they are, with `jobs` threads, and enters them
    /// meanwhile; rows of bodies are taken over, since the hash proves that they are still right.
    fn splice(&mut self, old: &File, survey: &Survey, steps: &[Step], jobs: usize) -> Result<()> {
        let mut copies = Vec::new();
        let mut end = self.end;
        for step in steps {
            let Step::Splice(at) = step else { continue };
            let chunk = survey.chunks.get(*at).ok_or_else(gone)?;
            let member = survey.members.get(*at).ok_or_else(gone)?;
            let source = source(chunk)?;
            let to = end;
            end += source.length;
            copies.push((source, to, chunk, member));
        }
        let new = self.file;
        let work = |(source, to, ..): &(Source, u64, _, _)| copy(old, source, new, *to);
        ahead(&copies, jobs, work, |next| {
            for (source, to, chunk, member) in &copies {
                let end = *to + source.length;
                if !member.bodies_only {
                    next()?;
                    self.enter(end)?;
                    continue;
                }
                let id = self.index.begin_chunk(*to, Timestamp(chunk.first_time))?;
                self.index.touch_chunk(id, Timestamp(chunk.last_time))?;
                self.index.take_bodies(chunk.id, id, &self.places)?;
                let hash = source.sha256.as_slice().try_into().map_err(|_| gone())?;
                self.index
                    .end_chunk(id, source.length, source.plain, &hash)?;
                next()?;
                self.end = end;
            }
            Ok(())
        })
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
            upto: None,
            max: self.max,
        };
        let mut out = Out::file(self.file, self.end, self.level);
        state::write(&what, &mut out)?;
        let (_, end) = out.finish()?;
        self.enter(end)
    }

    /// Copies what came after `done`, and before it the bodies that it refers to and that were not
    /// needed any more. Then everything needed must be there.
    pub(super) fn tail(
        &mut self,
        old: &File,
        index: &Index,
        later: &[ChunkRow],
        done: i64,
        times: &Times<'_>,
    ) -> Result<()> {
        let need = survey(index, times)?;
        let mut lacking: BTreeMap<i64, Vec<u64>> = BTreeMap::new();
        for body in self.absent(&need, index)? {
            if body.chunk_id <= done {
                lacking.entry(body.chunk_id).or_default().push(body.offset);
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
            let source = source(chunk)?;
            copy(old, &source, self.file, self.end)?;
            self.enter(self.end + source.length)?;
        }
        match self.absent(&need, index)?.first() {
            None => Ok(()),
            Some(body) => {
                let what = format!("compaction would lose message {}: abandoned", body.guid);
                Err(Error::new(Kind::Internal, what))
            }
        }
    }

    /// Where in the old log the needed bodies are that are not in the new one.
    fn absent(&self, need: &Need, old: &Index) -> Result<Vec<MessageRow>> {
        let mut absent: HashSet<Guid> = need.messages.difference(&self.skip).copied().collect();
        self.index.each_body(&mut |guid, _, _| {
            absent.remove(&guid);
        })?;
        let mut bodies = Vec::new();
        for guid in absent {
            bodies.extend(old.body(guid)?);
        }
        Ok(bodies)
    }

    /// The last member: what the file consists of.
    pub(super) fn manifest(&mut self, now: Timestamp) -> Result<()> {
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

    pub(super) fn acknowledge(&self, old: &Index) -> Result<()> {
        let stamp = old.meta_number("stamp")?.unwrap_or(0);
        self.index.set_meta("acknowledged", self.end as i64)?;
        self.index.set_meta("acknowledged_plain", 0)?;
        self.index.set_meta("clock", 0)?;
        self.index.set_meta("stamp", stamp)
    }
}

/// Copies a member's bytes to where they belong in the new log, compared with their hash.
fn copy(old: &File, source: &Source, new: &File, mut to: u64) -> Result<()> {
    let mut reader = FileReader::until(old, source.offset, source.offset + source.length);
    let mut hasher = Sha256::new();
    let mut buf = vec![0; 256 * 1024];
    loop {
        let n = reader
            .read(&mut buf)
            .map_err(|e| Error::io("cannot read log", e))?;
        if n == 0 {
            break;
        }
        hasher.update(&buf[..n]);
        LogFile::write_at(new, &buf[..n], to).map_err(|e| Error::io("cannot write", e))?;
        to += n as u64;
    }
    if hasher.finalize()[..] != source.sha256[..] {
        let e = Error::new(
            Kind::Damaged,
            "compressed bytes differ from what was written",
        );
        return Err(e.in_chunk(source.id, source.offset));
    }
    Ok(())
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
        for n in 0..jobs {
            let (permit, sender, taken, work) = (permit.clone(), sender.clone(), &taken, &work);
            let thread = std::thread::Builder::new().spawn_scoped(scope, move || {
                while permit.send(()).is_ok() {
                    let at = taken.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { break };
                    if sender.send((at, work(item))).is_err() {
                        break;
                    }
                }
            });
            match thread {
                // Fewer do it, too.
                Err(_) if n > 0 => break,
                thread => thread.map_err(|e| Error::io("cannot start a thread", e))?,
            };
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
