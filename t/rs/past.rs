//! States of the past: random histories, entered as a session enters them, with the clock going
//! forth and back; each state that was acknowledged is what `past::at` says of its time.

use super::store::{Dir, body, send, sub};
use cyr_backup::cyrus::dlist::Value;
use cyr_backup::cyrus::guid::Guid;
use cyr_backup::error::Kind;
use cyr_backup::store::backup::{Backup, MailboxResult, Settings};
use cyr_backup::store::history::{MailboxChange, MessageChange, What, history};
use cyr_backup::store::index::{Index, Watch};
use cyr_backup::store::line::Line;
use cyr_backup::store::lock::{Create, Wait};
use cyr_backup::store::reader::{Reader, Stale};
use cyr_backup::store::spool::Spool;
use cyr_backup::store::{diff, past};
use cyr_backup::util::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Numbers by seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }
}

#[derive(Clone)]
struct Message {
    guid: Guid,
    size: usize,
    flags: &'static str,
    expunged: bool,
}

#[derive(Clone)]
struct Folder {
    id: String,
    name: String,
    acl: &'static str,
    epoch: i64,
    modseq: u32,
    last_uid: u32,
    messages: BTreeMap<u32, Message>,
}

struct World {
    dir: Dir,
    backup: Option<Backup>,
    chance: Chance,
    now: i64,
    folders: Vec<Folder>,
    made: u32,
    /// What was acknowledged, and when, in order.
    states: Vec<(i64, String)>,
}

const FLAGS: [&str; 5] = [
    "",
    "\\Seen",
    "\\Flagged $Work",
    "\\Seen \\Answered",
    "\\Draft",
];
const NAMES: [&str; 6] = ["", ".A", ".B", ".A.x", ".C", ".D"];

/// Everything the index says, but whether a body had come already: what came later is there.
fn dump(index: &Index) -> String {
    let mut out = String::new();
    for row in index.mailboxes(true).unwrap() {
        writeln!(out, "{row:?}").unwrap();
        let mut each = |mut r: cyr_backup::store::index::RecordRow| {
            r.missing = false;
            writeln!(out, "  {r:?}").unwrap();
            Ok(())
        };
        index.records(row.id, None, true, &mut each).unwrap();
    }
    let subscriptions = index.subscriptions(true).unwrap();
    let (seen, scripts) = (index.seen_states().unwrap(), index.scripts(true).unwrap());
    writeln!(out, "{subscriptions:?}\n{seen:?}\n{scripts:?}").unwrap();
    let (active, quotas) = (index.active_script().unwrap(), index.quotas().unwrap());
    let (annotations, marks) = (index.all_annotations().unwrap(), index.marks().unwrap());
    writeln!(out, "{active:?}\n{quotas:?}\n{annotations:?}\n{marks:?}").unwrap();
    out
}

fn text(key: &str, value: impl AsRef<[u8]>) -> Value {
    Value::kv([(key, Value::text(value))])
}

impl World {
    fn new(seed: u64) -> World {
        World {
            dir: Dir::new(),
            backup: None,
            chance: Chance(seed),
            now: 1_700_000_000,
            folders: Vec::new(),
            made: 0,
            states: Vec::new(),
        }
    }

    fn open(&mut self) -> &mut Backup {
        let (dir, settings) = (
            &self.dir,
            Settings {
                level: 1,
                chunk_max: 3000,
            },
        );
        self.backup.get_or_insert_with(|| {
            let wait = Wait::For(std::time::Duration::from_secs(10));
            Backup::open(&dir.data(), "anna", wait, Create::IfMissing, settings).unwrap()
        })
    }

    fn acknowledged(&mut self) {
        let state = dump(self.open().index());
        self.states.push((self.now, state));
    }

    fn append(&mut self, lines: &[Line]) {
        let now = Timestamp(self.now);
        self.open().append(lines, now).unwrap();
        self.acknowledged();
    }

    /// States some messages of a folder, or with an epoch all of them.
    fn state(&mut self, at: usize, uids: &[u32], complete: bool, keep: bool) {
        let now = self.now;
        let f = self.folders[at].clone();
        let mut records = String::new();
        for uid in uids {
            let m = &f.messages[uid];
            let expunged = if m.expunged { " \\Expunged" } else { "" };
            let flags = format!("{}{expunged}", m.flags);
            write!(
                records,
                " %(UID {uid} MODSEQ {} LAST_UPDATED {now} FLAGS ({}) INTERNALDATE {} SIZE {} GUID {})",
                f.modseq,
                flags.trim(),
                1_600_000_000 + uid,
                m.size,
                m.guid
            )
            .unwrap();
        }
        let mut spool = Spool::new(&self.dir.0, 1 << 20);
        let head = format!(
            "%(UNIQUEID {} MBOXNAME {} SYNC_CRC 0 LAST_UID {} HIGHESTMODSEQ {} RECENTUID 0 \
             RECENTTIME 0 LAST_APPENDDATE 0 POP3_LAST_LOGIN 0 UIDVALIDITY {} PARTITION default \
             ACL \"{}\" OPTIONS P RECORD ({}))",
            f.id,
            f.name,
            f.last_uid,
            f.modseq,
            7 + f.epoch,
            f.acl,
            records.trim()
        );
        spool.append(head.as_bytes()).unwrap();
        let fact = Value::kv([
            ("UNIQUEID", Value::text(&f.id)),
            ("EPOCH", Value::num(f.epoch)),
        ]);
        let before = Line::private("COMPLETE", fact);
        let before = if complete {
            std::slice::from_ref(&before)
        } else {
            &[]
        };
        let backup = self.open();
        match backup
            .mailbox(before, &spool, false, Timestamp(now))
            .unwrap()
        {
            MailboxResult::Entered(_) if keep => backup.commit().unwrap(),
            MailboxResult::Entered(_) => return backup.abort(),
            MailboxResult::Unreferred => panic!("bodies left over"),
        }
        self.acknowledged();
    }

    fn bodies(&mut self, at: usize, count: usize) -> Vec<u32> {
        let now = self.now;
        let mut uids = Vec::new();
        for _ in 0..count {
            self.made += 1;
            let bytes = body(self.made);
            let guid = send(self.open(), &bytes, now);
            let flags = self.chance.pick(&FLAGS);
            let f = &mut self.folders[at];
            f.last_uid += 1;
            uids.push(f.last_uid);
            let message = Message {
                guid,
                size: bytes.len(),
                flags,
                expunged: false,
            };
            f.messages.insert(f.last_uid, message);
        }
        self.open().messages_end().unwrap();
        uids
    }

    fn some_uids(&mut self, at: usize) -> Vec<u32> {
        let uids: Vec<u32> = self.folders[at].messages.keys().copied().collect();
        uids.into_iter()
            .filter(|_| self.chance.below(3) == 0)
            .collect()
    }

    fn forget(&mut self, gone: impl Fn(&Folder) -> bool) {
        self.folders.retain(|f| !gone(f));
    }

    fn create(&mut self) {
        self.made += 1;
        let name = format!("user.anna{}", self.chance.pick(&NAMES));
        // Who had the name is gone.
        self.forget(|f| f.name == name);
        self.folders.push(Folder {
            id: format!("u{}", self.made),
            name,
            acl: "anna\tlrswipkxtecda\t",
            epoch: 1,
            modseq: 1,
            last_uid: 0,
            messages: BTreeMap::new(),
        });
        let at = self.folders.len() - 1;
        let count = self.chance.below(4);
        let uids = self.bodies(at, count);
        self.state(at, &uids, true, true);
    }

    fn about_folder(&mut self) {
        let at = self.chance.below(self.folders.len());
        self.folders[at].modseq += 1;
        match self.chance.below(10) {
            0 | 1 => {
                let count = 1 + self.chance.below(3);
                let uids = self.bodies(at, count);
                self.state(at, &uids, false, true);
            }
            2..=4 => {
                let uids = self.some_uids(at);
                for uid in &uids {
                    let (flags, gone) = (self.chance.pick(&FLAGS), self.chance.below(4) == 0);
                    let m = self.folders[at].messages.get_mut(uid).unwrap();
                    // What is expunged comes back at times.
                    (m.flags, m.expunged) = (flags, gone);
                }
                self.state(at, &uids, false, true);
            }
            5 => {
                let name = format!("user.anna{}", self.chance.pick(&NAMES));
                let id = self.folders[at].id.clone();
                self.folders[at].name = name.clone();
                self.state(at, &[], false, true);
                self.forget(|f| f.name == name && f.id != id);
            }
            6 => {
                let name = self.folders[at].name.clone();
                self.append(&[Line::new("UNMAILBOX", &Value::text(&name))]);
                // Such a one may be told of again.
                if self.chance.below(2) == 0 {
                    let at = self.folders.iter().position(|f| f.name == name).unwrap();
                    self.state(at, &[], false, true);
                } else {
                    self.forget(|f| f.name == name);
                }
            }
            7 => {
                // All there is: some are gone, perhaps in a new epoch.
                let uids = self.some_uids(at);
                let f = &mut self.folders[at];
                f.messages.retain(|uid, _| uids.contains(uid));
                f.epoch += i64::from(self.chance.below(2) == 0);
                self.state(at, &uids, true, true);
            }
            8 => {
                self.folders[at].acl = self.chance.pick(&["anna\tlrs\t", "anyone\tlr\t", ""]);
                self.state(at, &[], false, true);
            }
            _ => {
                // Refused: as if it had never come.
                let before = self.folders.clone();
                let uids = self.bodies(at, 2);
                self.state(at, &uids, false, false);
                self.folders = before;
            }
        }
    }

    fn about_user(&mut self) {
        let n = self.chance.below(4);
        let name = format!("user.anna.{n}");
        let script = Value::kv([
            ("USERID", Value::text("anna")),
            ("FILENAME", Value::text(format!("{n}.script"))),
            ("LAST_UPDATE", Value::num(self.now)),
            (
                "CONTENT",
                Value::text(format!("keep;\r\n#{}\r\n", self.now)),
            ),
        ]);
        let seen = Value::kv([
            ("UNIQUEID", Value::text(format!("x{n}"))),
            ("LASTUID", Value::num(self.now)),
        ]);
        let quota = Value::kv([
            ("ROOT", Value::text(&name)),
            ("LIMIT", Value::num(self.now)),
        ]);
        let annotation = |value: &str| {
            Value::kv([
                ("MBOXNAME", Value::text("")),
                ("ENTRY", Value::text(format!("/e{n}"))),
                ("USERID", Value::text("")),
                ("VALUE", Value::text(value)),
            ])
        };
        let lines = match self.chance.below(13) {
            0 | 1 => vec![sub(&name)],
            2 => vec![Line::new("UNSUB", &text("MBOXNAME", &name))],
            3 => vec![Line::new("SIEVE", &script)],
            4 => vec![Line::new(
                "UNSIEVE",
                &text("FILENAME", format!("{n}.script")),
            )],
            5 => vec![Line::private(
                "ACTIVATE_SIEVE",
                text("FILENAME", format!("{n}.bc")),
            )],
            6 => vec![Line::private("UNACTIVATE_SIEVE", Value::Nil)],
            7 => vec![Line::new("SEEN", &seen)],
            8 => vec![Line::private("QUOTA", quota)],
            9 => vec![Line::private("UNQUOTA", Value::text(&name))],
            10 => vec![Line::private("ANNOTATION", annotation("v"))],
            11 => vec![Line::private("UNANNOTATION", annotation("v"))],
            _ if self.chance.below(6) > 0 => vec![sub(&name), Line::new("SEEN", &seen)],
            _ => {
                // The user is deleted, and may come again.
                let mut lines = Vec::new();
                for f in &self.folders {
                    lines.push(Line::new("UNMAILBOX", &Value::text(&f.name)));
                }
                self.folders.clear();
                lines.push(Line::private("UNUSER", Value::text("user.anna")));
                lines
            }
        };
        self.append(&lines);
    }

    fn step(&mut self) {
        // Even seconds, since what is off by one is not noted.
        self.now += match self.chance.below(12) {
            0..=5 => 2 * self.chance.below(20) as i64,
            6..=9 => 0,
            10 => 2000,
            _ => -2 * self.chance.below(400) as i64,
        };
        match self.chance.below(10) {
            _ if self.folders.is_empty() => self.create(),
            0 => self.create(),
            1..=6 => self.about_folder(),
            _ => self.about_user(),
        }
        match self.chance.below(6) {
            0 => self.open().seal().unwrap(),
            1 => self.backup.take().unwrap().finish().unwrap(),
            // As after a kill.
            2 => drop(self.backup.take()),
            _ => {}
        }
    }

    /// The state that was last acknowledged until `time`, in the order of the log.
    fn expected(&self, time: i64) -> Option<&str> {
        let state = self.states.iter().rev().find(|(t, _)| *t <= time);
        state.map(|(_, state)| state.as_str())
    }

    fn check(&mut self, seed: u64) {
        let mut times: BTreeSet<i64> = self.states.iter().map(|(t, _)| *t).collect();
        times.extend(times.clone().into_iter().map(|t| t - 1));
        let reader = Reader::open(&self.dir.data(), Stale::Refuse).unwrap();
        for time in times {
            let found = past::at(&reader, Timestamp(time), &self.dir.0);
            let expected = self.expected(time);
            let found = match found {
                Ok(Some(past)) => {
                    assert!(past.damage().is_empty());
                    dump(past.index())
                }
                Ok(None) => dump(reader.index()),
                Err(e) => {
                    assert_eq!(
                        (e.kind(), expected),
                        (Kind::NotFound, None),
                        "seed {seed}: {e}"
                    );
                    continue;
                }
            };
            assert_eq!(Some(found.as_str()), expected, "seed {seed}, at {time}");
        }
    }
}

fn random_histories(seeds: std::ops::Range<u64>, steps: usize) {
    for seed in seeds {
        let mut world = World::new(seed);
        for step in 0..steps {
            world.step();
            if step == 25 {
                world.check(seed);
            }
        }
        world.check(seed);
        told_again(&world, seed);
        assert!(
            std::fs::read_dir(&world.dir.0).unwrap().count() <= 4,
            "scratch files stay"
        );
    }
}

#[test]
fn every_acknowledged_state_can_be_seen_again() {
    // More of them, for a long run: PAST_SEEDS.
    let seeds = std::env::var("PAST_SEEDS").map_or(4, |n| n.parse().unwrap());
    random_histories(1..seeds + 1, 60);
}

/// What `history` tells, put together, is the present state; and `diff` of a state and itself is nothing.
fn told_again(world: &World, seed: u64) {
    let reader = Reader::open(&world.dir.data(), Stale::Refuse).unwrap();
    let mut names: BTreeMap<String, Option<String>> = BTreeMap::new();
    type Alive = BTreeMap<(String, i64, u32), (Guid, BTreeSet<Vec<u8>>)>;
    let mut alive = Alive::new();
    let mut guids = BTreeSet::new();
    let mut count = 0;
    let told = history(&reader, &world.dir.0, &Watch::All, &mut |event| {
        assert!(!event.before);
        count += 1;
        match event.what {
            What::Mailbox {
                uniqueid,
                mboxname,
                what,
            } => match *what {
                MailboxChange::Deleted => drop(names.insert(uniqueid, None)),
                _ if names.get(&uniqueid) == Some(&None)
                    && !matches!(*what, MailboxChange::Back) => {}
                _ => drop(names.insert(uniqueid, Some(mboxname))),
            },
            What::Message {
                spot,
                epoch,
                guid,
                what,
            } => {
                let id = (spot.uniqueid, epoch, spot.uid);
                match *what {
                    MessageChange::Arrived {
                        flags, expunged, ..
                    } => {
                        guids.insert(guid);
                        if !expunged {
                            alive.insert(id, (guid, flags.into_iter().collect()));
                        }
                    }
                    MessageChange::Flags { added, removed } => {
                        if let Some((_, flags)) = alive.get_mut(&id) {
                            flags.extend(added);
                            flags.retain(|f| !removed.contains(f));
                        }
                    }
                    MessageChange::Expunged { .. } => drop(alive.remove(&id)),
                    MessageChange::Back => drop(alive.insert(id, (guid, BTreeSet::new()))),
                }
            }
            _ => {}
        }
        Ok(())
    });
    assert!(told.unwrap().begins.is_none() && count > 50);
    let index = reader.index();
    let (mut is, mut there) = (BTreeMap::new(), BTreeSet::new());
    for row in index.mailboxes(true).unwrap() {
        let mut each = |r: cyr_backup::store::index::RecordRow| {
            there.insert((row.uniqueid.clone(), r.epoch, r.record.uid));
            Ok(())
        };
        index.records(row.id, None, false, &mut each).unwrap();
        is.insert(row.uniqueid, row.deleted.is_none().then_some(row.mboxname));
    }
    assert_eq!(names, is, "seed {seed}");
    let told: BTreeSet<_> = alive.into_keys().collect();
    assert_eq!(told, there, "seed {seed}");
    // A message alone is told the same of.
    let guid = guids.first().copied().unwrap();
    let mut one = 0;
    history(&reader, &world.dir.0, &Watch::Message(guid), &mut |event| {
        if let What::Message { guid: of, .. } = event.what {
            assert_eq!(of, guid);
            one += 1;
        }
        Ok(())
    })
    .unwrap();
    assert!(one > 0);
    for pair in diff::mailboxes(index, index).unwrap() {
        assert!(!pair.differs());
        diff::messages(index, index, &pair, &mut |_, _, _| {
            panic!("differs from itself")
        })
        .unwrap();
    }
    assert_eq!(diff::others(index, index).unwrap(), []);
}
