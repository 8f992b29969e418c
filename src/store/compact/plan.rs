//! What is done with each member of a log. Pure: numbers in, steps out.
//!
//! A log is seen as three stretches: what is before the state, of which only bodies are needed; the
//! state itself, as compaction stated it; and the changes since. Members that compaction wrote and
//! that hold little waste are spliced; others are written anew, neighbours together; what holds
//! nothing that is needed goes.

/// A member, as the index and its header know it.
#[derive(Clone, Debug, Default)]
pub struct Member {
    /// Its number.
    pub id: i64,
    /// Compressed bytes.
    pub length: u64,
    /// Plain bytes.
    pub plain: u64,
    /// Plain bytes of the bodies in it that are needed.
    pub kept: u64,
    /// Plain bytes of all bodies in it.
    pub bodies: u64,
    /// Whether compaction wrote it.
    pub compacted: bool,
    /// Whether nothing but bodies stands in it.
    pub bodies_only: bool,
    /// Whether a body stands in it.
    pub has_bodies: bool,
}

/// Where the stretches begin and end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stretches {
    /// The first and last chunk of the old state, if there is one.
    pub state: Option<(i64, i64)>,
    /// The last chunk that goes into a new state; `None`: the old one stays, if any.
    pub advance: Option<i64>,
    /// Chunks of the last compaction that say something about that file only.
    pub about: [i64; 2],
}

impl Member {
    /// Whether it says something about the last compacted file only.
    pub fn is_about(&self, stretches: &Stretches) -> bool {
        stretches.about.contains(&self.id) && self.compacted && !self.has_bodies
    }
}

/// How large members shall be, and when something is done about them.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Plain bytes below which neighbours are joined; 0: as it pays.
    pub min: u64,
    /// Plain bytes above which a member goes on in a further one.
    pub max: u64,
    /// All waste goes, and everything is deflated anew.
    pub force: bool,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// These members, by their places in the list, are copied byte for byte.
    Splice(usize),
    /// These are written anew: their bodies, and with `true` all other lines.
    Rewrite(Vec<usize>, bool),
    /// The state is stated anew.
    State,
}

/// The plan and what it comes to.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In the order of the new log.
    pub steps: Vec<Step>,
    /// Members that are dropped.
    pub dropped: u64,
    /// Members that are written anew.
    pub rewritten: u64,
    /// Their compressed bytes.
    pub rewritten_bytes: u64,
    /// Compressed bytes of those that are copied.
    pub spliced_bytes: u64,
    /// Small members that are joined.
    pub joined: u64,
    /// What it is worth to be rid of them, in bytes, apart from what is saved.
    pub worth: u64,
    /// Compressed bytes of all.
    pub bytes: u64,
}

/// A member with more waste than one part in this is written anew.
const WASTE: u64 = 5;
/// A member below this many plain bytes is small.
const SMALL: u64 = 64 * 1024;
/// What it is worth to be rid of a small member, in bytes, but never more than it has.
const JOIN_GAIN: u64 = 4096;
/// So many small members are joined although the log does not shrink by that.
const MANY: u64 = 100;
/// A run pays if it saves one part in this of the log.
const PAYS: u64 = 50;
/// And what it saves is no gain unless it is one part in this of what is written anew: the size
/// afterwards is not known better.
const SURE: u64 = 50;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Drop,
    Splice,
    Rewrite,
}

impl Plan {
    /// The log will first be taken over, with a small member of so many bytes.
    pub fn take_over(&mut self, length: u64) {
        self.bytes += length;
        self.rewritten += 1;
        self.rewritten_bytes += length;
        self.joined += 1;
        self.worth += length.min(JOIN_GAIN);
    }

    /// Whether it is worth copying the whole log, which will have `after` bytes. `threshold`: so
    /// many members at the least must be concerned.
    pub fn pays(&self, threshold: u64, after: u64) -> bool {
        let concerned = self.dropped + self.rewritten;
        let saved = self.bytes.saturating_sub(after);
        let anew = after.saturating_sub(self.spliced_bytes);
        let grown = after.saturating_sub(self.bytes);
        let gain = saved.saturating_add(self.worth).saturating_sub(grown);
        concerned >= threshold.max(1)
            && (saved > anew / SURE || self.joined > MANY)
            && gain.saturating_mul(PAYS) >= self.bytes
    }
}

/// Makes the plan.
pub fn plan(members: &[Member], stretches: &Stretches, sizes: &Sizes) -> Plan {
    let mut out = Plan::default();
    let end = stretches.advance.or(stretches.state.map(|s| s.0 - 1));
    let is_state = |m: &Member| {
        stretches
            .state
            .is_some_and(|(a, b)| (a..=b).contains(&m.id))
    };
    let before = |m: &Member| end.is_some_and(|end| m.id <= end);
    let fates: Vec<Fate> = members
        .iter()
        .map(|m| {
            if m.is_about(stretches) {
                return Fate::Drop;
            }
            if is_state(m) {
                return match stretches.advance {
                    Some(_) => Fate::Drop,
                    None => Fate::Splice,
                };
            }
            fate(m, before(m), sizes)
        })
        .collect();
    let mut groups = Groups::new(members, sizes);
    let mut stated = stretches.advance.is_none();
    for (at, m) in members.iter().enumerate() {
        out.bytes += m.length;
        let before = before(m);
        if !before && !stated {
            groups.settle();
            groups.steps.push(Step::State);
            stated = true;
        }
        match fates.get(at) {
            Some(Fate::Drop) if m.is_about(stretches) || is_state(m) => {}
            Some(Fate::Drop) => out.dropped += 1,
            Some(Fate::Rewrite) => {
                if m.plain < SMALL {
                    out.joined += 1;
                    out.worth += m.length.min(JOIN_GAIN);
                }
                groups.rewrite(at, !before);
            }
            _ => groups.splice(at, !before && !is_state(m), is_state(m)),
        }
    }
    groups.settle();
    if !stated {
        groups.steps.push(Step::State);
    }
    let length = |at: &usize| members.get(*at).map_or(0, |m| m.length);
    for step in &groups.steps {
        match step {
            Step::Rewrite(group, _) => {
                out.rewritten += group.len() as u64;
                out.rewritten_bytes += group.iter().map(length).sum::<u64>();
            }
            Step::Splice(at) => out.spliced_bytes += length(at),
            Step::State => {}
        }
    }
    out.steps = groups.steps;
    out
}

fn fate(m: &Member, before: bool, sizes: &Sizes) -> Fate {
    if before && m.kept == 0 {
        return Fate::Drop;
    }
    if !m.compacted || sizes.force {
        return Fate::Rewrite;
    }
    if m.bodies_only {
        let waste = m.plain.saturating_sub(m.kept);
        return match waste {
            _ if m.kept == 0 => Fate::Drop,
            waste if waste * WASTE > m.plain => Fate::Rewrite,
            _ => Fate::Splice,
        };
    }
    match before || m.has_bodies {
        true => Fate::Rewrite,
        false => Fate::Splice,
    }
}

/// Collects neighbours.
struct Groups<'a> {
    members: &'a [Member],
    sizes: &'a Sizes,
    steps: Vec<Step>,
    /// The group being collected, whether its lines are kept, and its size.
    open: Option<(Vec<usize>, bool, u64)>,
    /// Spliced members behind the last step that may still be joined; of the same stretch.
    loose: Vec<(usize, bool)>,
}

impl<'a> Groups<'a> {
    fn new(members: &'a [Member], sizes: &'a Sizes) -> Groups<'a> {
        Groups {
            members,
            sizes,
            steps: Vec::new(),
            open: None,
            loose: Vec::new(),
        }
    }

    fn plain(&self, at: usize, lines: bool) -> u64 {
        let Some(m) = self.members.get(at) else {
            return 0;
        };
        if lines && !m.bodies_only {
            m.plain
        } else {
            m.kept
        }
    }

    fn rewrite(&mut self, at: usize, lines: bool) {
        let size = self.plain(at, lines);
        match &mut self.open {
            Some((group, with, sum)) if *with == lines && *sum + size <= self.sizes.max => {
                group.push(at);
                *sum += size;
            }
            _ => {
                self.close();
                self.open = Some((vec![at], lines, size));
            }
        }
    }

    fn splice(&mut self, at: usize, lines: bool, is_state: bool) {
        self.close();
        if is_state {
            self.keep_loose();
            self.steps.push(Step::Splice(at));
        } else {
            self.loose.push((at, lines));
        }
    }

    /// Nothing more is joined to what came so far.
    fn settle(&mut self) {
        self.close();
        self.keep_loose();
    }

    /// What is loose stays as it is.
    fn keep_loose(&mut self) {
        let loose = std::mem::take(&mut self.loose);
        self.steps
            .extend(loose.into_iter().map(|(at, _)| Step::Splice(at)));
    }

    /// Ends the open group. Small members before it are taken in while they are not much larger
    /// than what comes: so each byte is deflated anew only a few times, however often little comes.
    fn close(&mut self) {
        let Some((mut group, lines, mut sum)) = self.open.take() else {
            return;
        };
        while let Some(&(at, with)) = self.loose.last() {
            let size = self.plain(at, lines);
            let small = size <= (2 * sum).max(SMALL) || size < self.sizes.min;
            if with != lines || !small || sum + size > self.sizes.max {
                break;
            }
            self.loose.pop();
            group.insert(0, at);
            sum += size;
        }
        self.keep_loose();
        self.steps.push(Step::Rewrite(group, lines));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes {
        min: 0,
        max: 8 << 20,
        force: false,
    };

    fn bodies(id: i64, plain: u64, kept: u64) -> Member {
        Member {
            id,
            length: plain / 2,
            plain,
            kept,
            bodies: plain,
            compacted: true,
            bodies_only: true,
            has_bodies: true,
        }
    }

    fn lines(id: i64, plain: u64) -> Member {
        Member {
            id,
            length: plain / 4,
            plain,
            compacted: true,
            ..Member::default()
        }
    }

    fn fresh(id: i64, plain: u64, kept: u64) -> Member {
        Member {
            compacted: false,
            bodies_only: false,
            ..bodies(id, plain, kept)
        }
    }

    #[test]
    fn what_was_compacted_and_is_needed_is_spliced() {
        let members = [
            bodies(1, 1 << 20, 1 << 20),
            lines(2, 5000),
            bodies(3, 1 << 20, 900_000),
        ];
        let plan = plan(&members, &Stretches::default(), &SIZES);
        let spliced: Vec<Step> = (0..3).map(Step::Splice).collect();
        assert_eq!(plan.steps, spliced);
        assert!(!plan.pays(1, plan.bytes / 2));
    }

    #[test]
    fn waste_is_written_anew_and_what_is_not_needed_goes() {
        let members = [
            bodies(1, 1 << 20, 0),
            bodies(2, 1 << 20, 700_000),
            bodies(3, 1 << 20, 1_000_000),
        ];
        let plan = plan(&members, &Stretches::default(), &SIZES);
        // The first of these is small enough beside the other to be joined, the last is behind it.
        assert_eq!(plan.steps, [Step::Rewrite(vec![1], true), Step::Splice(2)]);
        assert_eq!((plan.dropped, plan.rewritten), (1, 1));
        let after = plan.bytes - plan.bytes / 50;
        assert!(plan.pays(2, after - 1) && !plan.pays(3, after - 1));
        assert!(!plan.pays(2, after + 100));
    }

    #[test]
    fn small_ones_are_joined_and_take_in_small_neighbours() {
        let mut members = vec![bodies(1, 4 << 20, 4 << 20), bodies(2, 50_000, 50_000)];
        members.extend((3..103).map(|id| fresh(id, 3000, 2500)));
        let plan = plan(&members, &Stretches::default(), &SIZES);
        assert_eq!(plan.steps.len(), 2);
        assert_eq!(plan.steps[0], Step::Splice(0));
        let joined: Vec<usize> = (1..102).collect();
        assert_eq!(plan.steps[1], Step::Rewrite(joined, true));
        assert_eq!(plan.joined, 100);
        // They are worth no more than they are, and nothing if the whole does not shrink.
        assert_eq!(plan.worth, 100 * 1500);
        assert!(plan.pays(1, plan.bytes - 5000) && !plan.pays(1, plan.bytes - 1000));
    }

    #[test]
    fn many_small_ones_are_joined_unless_the_log_grows_by_more_than_that_is_worth() {
        let members: Vec<Member> = (1..=101).map(|id| fresh(id, 3000, 2500)).collect();
        let plan = plan(&members, &Stretches::default(), &SIZES);
        assert_eq!((plan.joined, plan.worth), (101, 101 * 1500));
        assert!(plan.pays(1, plan.bytes) && plan.pays(1, plan.bytes + 1500));
        assert!(!plan.pays(1, plan.bytes + plan.worth) && !plan.pays(102, plan.bytes));
    }

    #[test]
    fn before_the_state_only_bodies_stay() {
        let members = [
            lines(1, 100),
            bodies(2, 1 << 20, 1 << 20),
            lines(3, 90_000),
            fresh(4, 100_000, 60_000),
            fresh(5, 100_000, 60_000),
            lines(6, 5000),
        ];
        let stretches = Stretches {
            advance: Some(4),
            about: [1, 0],
            ..Stretches::default()
        };
        let plan = plan(&members, &stretches, &SIZES);
        assert_eq!(
            plan.steps,
            [
                Step::Splice(1),
                Step::Rewrite(vec![3], false),
                Step::State,
                Step::Rewrite(vec![4], true),
                Step::Splice(5)
            ]
        );
        assert_eq!(plan.dropped, 1);
    }

    #[test]
    fn an_old_state_stays_or_is_stated_anew() {
        let members = [
            bodies(1, 1 << 20, 1 << 20),
            lines(2, 5000),
            lines(3, 5000),
            fresh(4, 900, 800),
        ];
        let mut stretches = Stretches {
            state: Some((2, 3)),
            ..Stretches::default()
        };
        let stays = plan(&members, &stretches, &SIZES);
        let group = Step::Rewrite(vec![3], true);
        let kept = [Step::Splice(0), Step::Splice(1), Step::Splice(2)];
        assert_eq!(stays.steps[..3], kept);
        assert_eq!(stays.steps[3], group);
        stretches.advance = Some(4);
        let anew = plan(&members, &stretches, &SIZES);
        let rest = Step::Rewrite(vec![3], false);
        assert_eq!(anew.steps, [Step::Splice(0), rest, Step::State]);
    }
}
