//! What there is to be done: what is needed, where it is, and whether it pays.

use super::gauge::{GENERATION, Gauge};
use super::need::{Body, Need, Times, survey};
use super::out::{XFL, XFL_AT};
use super::plan::{Member, Plan, Sizes, Step, Stretches, plan};
use super::rewrite::Source;
use super::{Outcome, Policy, Report};
use crate::cyrus::guid::Guid;
use crate::error::{Error, Kind, Result};
use crate::store::index::{ChunkRow, Index};
use crate::store::line::{body_head, prefix};
use crate::store::reader::{Reader, readable};
use crate::store::reindex;
use crate::util::time::Timestamp;
use std::collections::{HashMap, HashSet};

/// What expired this long ago goes even where it hardly pays, in seconds.
const OVERDUE: i64 = 30 * 86_400;
/// Plain bytes of a bodies' member beside the bodies, at the most.
const FRAME: u64 = 80;

/// What is made of a log that does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// It is left alone.
    Whole,
    /// The present state is stated anew, with the bodies that read; the old log is set aside.
    Salvage,
}

/// What is to be done.
pub(super) struct Survey {
    pub(super) chunks: Vec<ChunkRow>,
    pub(super) bodies: Places,
    pub(super) members: Vec<Member>,
    pub(super) stretches: Stretches,
    pub(super) plan: Plan,
    pub(super) report: Report,
    pub(super) open: bool,
    /// Chunks that do not read, and needed messages that are lost with them.
    pub(super) damaged: HashSet<i64>,
    pub(super) lost: HashSet<Guid>,
}

impl Survey {
    pub(super) fn make(
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
        let (members, bodies, waste) = members(reader, &sealed, &need)?;
        let mut stretches = stretches(index, &sealed, &members, &need, policy, times)?;
        if reading == Reading::Salvage {
            stretches.advance = sealed.last().map(|c| c.id);
        }
        let max = match policy.max {
            0 => policy.settings.chunk_max,
            max => max,
        };
        let sizes = Sizes {
            min: policy.min,
            max,
            force: policy.force,
        };
        let mut plan = plan(&members, &stretches, &sizes);
        let generation = index.meta_text("generation")?.unwrap_or_default();
        let sealed_bytes = plan.bytes;
        if generation.is_empty() {
            // This is a dry run: a real one takes it over before it looks.
            plan.take_over(GENERATION);
        }
        let kept = times.edge().map_or(0, |edge| times.now.0 - edge);
        let ([expired_records, expired_mailboxes, expired_others], going) =
            dropped(&need, &waste, &plan, &sealed, &stretches);
        // From then on, whether it pays or not: what is said of it, once the edge of history is behind
        // that, and before it mail of which more is dropped than the fifth that is copied along.
        let call = |t: i64, kept: i64| t.saturating_add(kept + OVERDUE.max(kept) + 1);
        let history = times.history_edge().map_or(kept, |edge| times.now.0 - edge);
        let last_call = need.first_expired.map(|t| call(t, history.max(kept)));
        let going = going.map(|t| call(t, kept));
        let is_over = |call: Option<i64>| call.is_some_and(|t| t <= times.now.0);
        let overdue = stretches.advance.is_some() && is_over(last_call) || is_over(going);
        let certain = overdue || policy.force && (plan.dropped + plan.rewritten > 0);
        let gauge = Gauge {
            reader,
            chunks: &sealed,
            members: &members,
            bodies: &bodies,
            stretches: &stretches,
            times,
            level: policy.level,
            max,
            tries: match certain {
                // The run itself will tell.
                true => policy.dry_run,
                // What is copied stays as it is: if that is too much already, the rest is no matter.
                false => plan.pays(policy.threshold, plan.spliced_bytes),
            },
        };
        let after = gauge.size(&plan);
        let bytes = index.meta_number("acknowledged")?.unwrap_or(0) as u64;
        let wanted = certain || plan.pays(policy.threshold, after.bytes);
        let held = need.loss.brakes(policy.brake) && !policy.force;
        let report = Report {
            unreadable: lost.len() as u64,
            outcome: match (held, wanted) {
                (true, _) => Outcome::Held,
                (false, true) => Outcome::Done,
                (false, false) => Outcome::Nothing,
            },
            chunks_before: before,
            chunks_after: match held || wanted {
                true => before.saturating_sub(sealed.len() as u64) + after.chunks,
                false => before,
            },
            bytes_before: bytes,
            bytes_after: match held || wanted {
                true => bytes.saturating_sub(sealed_bytes) + after.bytes,
                false => bytes,
            },
            rewritten: plan.rewritten_bytes,
            spliced: plan.spliced_bytes,
            expired_records,
            expired_mailboxes,
            expired_others,
            dropped_chunks: plan.dropped,
            joined_chunks: plan.joined,
            next: {
                let more = match is_over(last_call) && !wanted {
                    true => advances(&sealed, &members, &stretches, times),
                    false => None,
                };
                let all = [need.next, last_call, going, more].into_iter().flatten();
                all.filter(|t| *t > times.now.0).min()
            },
            loss: need.loss,
            generation,
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

    pub(super) fn source(&self, at: usize) -> Result<Source> {
        let chunk = self.chunks.get(at).ok_or_else(gone)?;
        let mut source = source(chunk)?;
        source.bodies = self.bodies.get(&chunk.id).cloned().unwrap_or_default();
        Ok(source)
    }
}

pub(super) fn gone() -> Error {
    Error::new(Kind::Internal, "a chunk is gone")
}

pub(super) fn source(chunk: &ChunkRow) -> Result<Source> {
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
pub(super) type Places = HashMap<i64, Vec<u64>>;
/// The chunks of messages that are not needed.
type Waste = HashMap<Guid, i64>;

/// How many records, mailboxes and others go if the plan is carried out, and when the first of the messages
/// went that do.
fn dropped(
    need: &Need,
    waste: &Waste,
    plan: &Plan,
    chunks: &[ChunkRow],
    stretches: &Stretches,
) -> ([u64; 3], Option<i64>) {
    let mut goes: HashSet<i64> = chunks.iter().map(|c| c.id).collect();
    for step in &plan.steps {
        if let Step::Splice(at) = step {
            goes.remove(&chunks.get(*at).map_or(0, |c| c.id));
        }
    }
    let body = |guid: &Guid| match waste.get(guid) {
        Some(chunk) if goes.contains(chunk) => Body::Goes,
        Some(_) => Body::Stays,
        None if need.messages.contains(guid) => Body::Stays,
        None => Body::Gone,
    };
    let upto = chunks.iter().find(|c| Some(c.id) == stretches.advance);
    let going = need.expired_records.iter();
    let going = going.filter(|(guid, _)| body(guid) == Body::Goes);
    let first = going.map(|(_, when)| *when).min();
    (need.dropped(upto.map(|c| c.last_time), &body), first)
}

/// The members with what is needed of them, where the needed bodies are, and which are not.
fn members(
    reader: &Reader,
    chunks: &[ChunkRow],
    need: &Need,
) -> Result<(Vec<Member>, Places, Waste)> {
    /// What the bodies in a chunk come to.
    #[derive(Default)]
    struct Sum {
        kept: u64,
        all: u64,
        n: u64,
        bodies: Vec<u64>,
    }
    let mut sums: HashMap<i64, Sum> = HashMap::new();
    let mut waste = Waste::new();
    for row in reader.index().bodies(None)? {
        let sum = sums.entry(row.chunk_id).or_default();
        let head = body_head(row.partition.as_bytes(), row.guid, row.size);
        let bytes = head.len() as u64 + row.size;
        sum.all += bytes;
        sum.n += 1;
        if need.messages.contains(&row.guid) {
            sum.kept += bytes + 1;
            sum.bodies.push(row.offset);
        } else {
            waste.insert(row.guid, row.chunk_id);
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
            bodies: sum.all,
            compacted: read == 1 && xfl[0] == XFL,
            bodies_only,
            has_bodies: sum.n > 0,
        });
        bodies.insert(chunk.id, sum.bodies);
    }
    Ok((members, bodies, waste))
}

/// When the edge of history passes the next lines, if it ever does.
fn advances(
    chunks: &[ChunkRow],
    members: &[Member],
    stretches: &Stretches,
    times: &Times<'_>,
) -> Option<i64> {
    let kept = times.now.0.checked_sub(times.history_edge()?)?;
    let since = stretches.state.map_or(0, |s| s.1);
    let says =
        |(c, m): &(&ChunkRow, &Member)| c.id > since && !m.bodies_only && !m.is_about(stretches);
    let (next, _) = chunks.iter().zip(members).find(says)?;
    let time = next.last_time.checked_add(kept)?;
    (time > times.now.0).then_some(time)
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
    let old = old.filter(|(c, m)| c.id > since && !m.bodies_only && !m.is_about(&out));
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
