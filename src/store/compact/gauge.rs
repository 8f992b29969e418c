//! How large the new log will be, before it is made.
//!
//! What is spliced keeps its size. Of what is written anew a sample is, into memory, just as it
//! will be; the rest is reckoned to shrink as the sample did. So is the state, where it has not too
//! many records. Where it cannot matter nothing is written. Nothing fails here: what does not read in the sample is reckoned by what is known
//! of its size, and the run itself will say so.

use super::need::Times;
use super::out::Out;
use super::plan::{Member, Plan, Step, Stretches};
use super::rewrite::{Source, Take, rewrite};
use super::state;
use super::survey::{Places, source};
use crate::store::index::{ChunkRow, Index};
use crate::store::reader::Reader;

/// So many plain bytes are written in a sample.
const SAMPLE: u64 = 1 << 20;
/// And so many are read for it, if no member is smaller.
const READ: u64 = 16 << 20;
/// A state of more records is not written for it.
const STATED: u64 = 5000;
/// What a record takes in a state, in compressed bytes.
const RECORD: u64 = 64;
/// A state without any, and of each mailbox.
const STATE: u64 = 300;
/// The member that says what log it is, here and in one that old tools began.
pub(super) const GENERATION: u64 = 180;
/// What the manifest takes without members, and for each.
const MANIFEST: [u64; 2] = [200, 40];
/// Where nothing is known, deflating anew saves one part in this.
const LEVEL_GAIN: u64 = 10;

/// What the size depends on.
pub(super) struct Gauge<'a> {
    pub(super) reader: &'a Reader,
    pub(super) chunks: &'a [ChunkRow],
    pub(super) members: &'a [Member],
    pub(super) bodies: &'a Places,
    pub(super) stretches: &'a Stretches,
    pub(super) times: &'a Times<'a>,
    pub(super) level: u8,
    pub(super) max: u64,
    /// Whether something is written to see what it comes to.
    pub(super) tries: bool,
}

/// What the new log will be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) bytes: u64,
    pub(super) chunks: u64,
}

/// Plain and compressed bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    plain: u64,
    length: u64,
}

impl Rate {
    fn add(&mut self, plain: u64, length: u64) {
        self.plain += plain;
        self.length += length;
    }

    fn of(&self, plain: u64) -> Option<u64> {
        (self.plain > 0).then(|| scaled(self.length, plain, self.plain))
    }
}

/// What was made of a sample of a group.
struct Sample {
    /// Plain bytes that were taken, and what they came to.
    bodies: Rate,
    lines: Rate,
    members: u64,
}

impl Gauge<'_> {
    /// Bytes and chunks of the new log.
    pub(super) fn size(&self, plan: &Plan) -> Size {
        let (mut size, mut members) = (0, 1);
        let groups: Vec<(&[usize], bool)> = plan
            .steps
            .iter()
            .filter_map(|step| match step {
                Step::Rewrite(group, lines) => Some((&group[..], *lines)),
                _ => None,
            })
            .collect();
        let samples = self.samples(&groups);
        let (mut bodies, mut lines) = self.known();
        for sample in samples.iter().flatten() {
            bodies.add(sample.bodies.plain, sample.bodies.length);
            lines.add(sample.lines.plain, sample.lines.length);
        }
        for ((group, with), sample) in groups.iter().zip(&samples) {
            let (kept, said) = self.plain(group, *with);
            let sample = sample.as_ref();
            let rough = |plain| self.rough(group, plain);
            let rate = |own: Option<Rate>, all: &Rate, plain: u64| {
                let own = own.and_then(|own| own.of(plain));
                own.or(all.of(plain)).unwrap_or_else(|| rough(plain))
            };
            size += rate(sample.map(|s| s.bodies), &bodies, kept);
            size += rate(sample.map(|s| s.lines), &lines, said);
            members += match sample {
                Some(sample) => sample.members,
                None => 1 + (kept + said) / self.max.max(1),
            };
        }
        for step in &plan.steps {
            match step {
                Step::Splice(at) => {
                    size += self.members.get(*at).map_or(0, |m| m.length);
                    members += 1;
                }
                Step::State => {
                    size += self.state();
                    members += 1;
                }
                Step::Rewrite(..) => {}
            }
        }
        Size {
            bytes: size + GENERATION + MANIFEST[0] + MANIFEST[1] * members,
            chunks: members + 1,
        }
    }

    /// Plain bytes of a group that are written anew: of bodies, and of lines.
    fn plain(&self, group: &[usize], lines: bool) -> (u64, u64) {
        let members = group.iter().filter_map(|at| self.members.get(*at));
        members.fold((0, 0), |(kept, said), m| {
            let of_lines = m.plain.saturating_sub(m.bodies);
            (kept + m.kept, said + if lines { of_lines } else { 0 })
        })
    }

    /// What members that compaction wrote have come to.
    fn known(&self) -> (Rate, Rate) {
        let (mut bodies, mut lines) = (Rate::default(), Rate::default());
        for m in self.members.iter().filter(|m| m.compacted) {
            if m.bodies_only {
                bodies.add(m.plain, m.length);
            } else if !m.has_bodies && !m.is_about(self.stretches) {
                lines.add(m.plain, m.length);
            }
        }
        (bodies, lines)
    }

    /// As much of the plain bytes as there were compressed before, and a little less.
    fn rough(&self, group: &[usize], plain: u64) -> u64 {
        let mut is = Rate::default();
        for m in group.iter().filter_map(|at| self.members.get(*at)) {
            is.add(m.plain, m.length - m.length / LEVEL_GAIN);
        }
        is.of(plain).unwrap_or(0)
    }

    /// Writes some of each group, of small ones all.
    fn samples(&self, groups: &[(&[usize], bool)]) -> Vec<Option<Sample>> {
        let plain = |at: &usize| self.members.get(*at).map_or(0, |m| m.plain);
        let size = |n: &usize| -> u64 {
            let group = groups.get(*n).map_or(&[][..], |g| g.0);
            group.iter().map(plain).sum()
        };
        let mut order: Vec<usize> = (0..groups.len()).collect();
        order.sort_by_key(size);
        let mut left = if self.tries { SAMPLE } else { 0 };
        let mut samples: Vec<(usize, Option<Sample>)> = Vec::with_capacity(groups.len());
        for (done, n) in order.into_iter().enumerate() {
            let Some((group, lines)) = groups.get(n) else {
                continue;
            };
            // Less would say little: what is joined shrinks together.
            let share = (left / (groups.len() - done) as u64)
                .max(SAMPLE / 4)
                .min(left);
            let mut sum = 0;
            let some = group.iter().take_while(|at| {
                // One member may be larger than a share.
                let most = if sum == 0 { left } else { share };
                sum += plain(at);
                sum <= most
            });
            let some: Vec<usize> = some.copied().collect();
            let sample = match group.first() {
                // Of one that is larger than all that is written, the first bodies.
                Some(at) if some.is_empty() && left == SAMPLE && plain(at) <= READ => {
                    self.sample(&[*at], *lines, Some(SAMPLE))
                }
                _ => self.sample(&some, *lines, None),
            };
            let written = |s: &Sample| s.bodies.plain + s.lines.plain;
            left = left.saturating_sub(sample.as_ref().map_or(0, written));
            samples.push((n, sample));
        }
        samples.sort_by_key(|(n, _)| *n);
        samples.into_iter().map(|(_, sample)| sample).collect()
    }

    /// Writes members; with `most` only their first bodies, of about so many bytes.
    fn sample(&self, group: &[usize], lines: bool, most: Option<u64>) -> Option<Sample> {
        if group.is_empty() {
            return None;
        }
        let sources: Option<Vec<Source>> = group
            .iter()
            .map(|at| {
                let chunk = self.chunks.get(*at)?;
                let mut source = source(chunk).ok()?;
                source.bodies = self.bodies.get(&chunk.id).cloned().unwrap_or_default();
                if let (Some(most), Some(first)) = (most, source.bodies.first().copied()) {
                    source.bodies.retain(|offset| *offset < first + most);
                }
                Some(source)
            })
            .collect();
        let sources = sources?;
        let bodies = sources.iter().any(|s| !s.bodies.is_empty());
        let take = Take { bodies, lines };
        let (mut to, mut said) = (Out::memory(self.level), Out::memory(self.level));
        let file = self.reader.file();
        rewrite(file, &sources, take, self.max, &mut to, &mut said).ok()?;
        let members = match most {
            Some(_) => 2 + self.plain(group, lines).0 / self.max.max(1),
            None => to.members() + said.members(),
        };
        let plain = match most {
            Some(_) => (to.written(), said.written()),
            None => self.plain(group, lines),
        };
        let length = |out: Out<'_>| out.finish().map(|(bytes, _)| bytes.len() as u64).ok();
        Some(Sample {
            bodies: Rate {
                plain: plain.0,
                length: length(to)?,
            },
            lines: Rate {
                plain: plain.1,
                length: length(said)?,
            },
            members,
        })
    }

    fn state(&self) -> u64 {
        let upto = self.stretches.advance;
        let last = self.chunks.iter().find(|c| Some(c.id) == upto);
        let time = last.map_or(0, |c| c.last_time);
        let index = self.reader.index();
        let Some((before, later, mailboxes)) = records(index, time) else {
            return STATE;
        };
        let rough = STATE * (1 + mailboxes) + RECORD * before;
        if before + later > STATED || !self.tries {
            return rough;
        }
        let what = state::Stating {
            then: index,
            live: index,
            times: self.times,
            key: "",
            id: "0123456789abcdef",
            time,
            upto,
            max: self.max,
        };
        let mut out = Out::memory(self.level);
        let written = state::write(&what, &mut out).and_then(|()| out.finish());
        written.map_or(rough, |(bytes, _)| bytes.len() as u64)
    }
}

/// Records that came up to a time and later, and mailboxes.
fn records(index: &Index, time: i64) -> Option<(u64, u64, u64)> {
    let (mut before, mut later) = (0, 0);
    let mailboxes = index.mailboxes(true).ok()?;
    for mailbox in &mailboxes {
        let count = &mut |row: crate::store::index::KeepRow| match row.arrived <= time {
            true => before += 1,
            false => later += 1,
        };
        index.keep_rows(mailbox.id, count).ok()?;
    }
    Some((before, later, mailboxes.len() as u64))
}

/// A part of a size, as one number is of another.
fn scaled(size: u64, part: u64, of: u64) -> u64 {
    (u128::from(size) * u128::from(part) / u128::from(of.max(1))) as u64
}
