//! Compaction leaves the meaning of a backup alone.

use crate::history::{Dice, Life, picture, rows};
use crate::store::{Dir, SETTINGS};
use cyr_backup::cyrus::config::retention::{Retention, UserRetention};
use cyr_backup::cyrus::guid::Guid;
use cyr_backup::cyrus::mboxname::Namespace;
use cyr_backup::store::compact::need::Times;
use cyr_backup::store::compact::{Outcome, Policy, Report, compact, new_path};
use cyr_backup::store::index::path_of;
use cyr_backup::store::lock::Wait;
use cyr_backup::store::past;
use cyr_backup::store::reader::{Reader, Stale};
use cyr_backup::store::verify::{Depth, verify};
use cyr_backup::util::time::Timestamp;
use std::collections::{BTreeMap, HashSet};

pub fn policy() -> Policy {
    Policy {
        settings: SETTINGS,
        level: 6,
        min: 0,
        max: 0,
        threshold: 1,
        brake: 0,
        force: false,
        dry_run: false,
        keep_previous: false,
        jobs: 2,
        wait: Wait::For(std::time::Duration::from_secs(10)),
        erase: HashSet::new(),
    }
}

pub fn run(dir: &Dir, policy: &Policy, retention: &UserRetention, now: i64) -> Report {
    let namespace = Namespace::default();
    let times = Times {
        retention,
        namespace: &namespace,
        now: Timestamp(now),
    };
    compact(&dir.data(), "anna", policy, &times, &dir.0).unwrap()
}

fn at(reader: &Reader, dir: &Dir, time: i64) -> Vec<String> {
    match past::at(reader, Timestamp(time), &dir.0) {
        Ok(Some(past)) => {
            assert!(past.damage().is_empty(), "{:?}", past.damage());
            picture(past.index())
        }
        Ok(None) => picture(reader.index()),
        Err(e) => vec![format!("{:?}", e.kind())],
    }
}

/// Messages of records that have not expired, and whether their bodies read.
fn bodies(reader: &Reader, edge: &dyn Fn(&str) -> i64) -> BTreeMap<Guid, bool> {
    let mut out = BTreeMap::new();
    let index = reader.index();
    for m in index.mailboxes(true).unwrap() {
        let edge = edge(&m.mboxname);
        index
            .records(m.id, None, true, &mut |r| {
                let went = [r.expunged, m.deleted].into_iter().flatten().min();
                if went.is_none_or(|t| t > edge) {
                    out.insert(r.record.guid, true);
                }
                Ok(())
            })
            .unwrap();
    }
    for (guid, reads) in &mut out {
        *reads = reader.body(*guid, &mut |_| Ok(())).is_ok();
    }
    out
}

/// One history, with compactions at random moments.
fn history(seed: u64) {
    let dir = Dir::new();
    let mut life = Life::new(&dir, seed);
    let kept = 60 + life.dice.roll(3) as i64 * 200;
    let rules = ["", "*:Trash=20s", "*:Trash=2000s, *:Old=10s"][life.dice.roll(3) as usize];
    let retention = Retention::parse(Some(kept), rules).unwrap();
    let retention = retention.of(Some("anna"), None);
    let namespace = Namespace::default();
    let mut dice = Dice(seed ^ 77);
    for round in 0..3 + dice.roll(3) {
        for _ in 0..5 + dice.roll(40) {
            life.step();
        }
        life.rest();
        if !dir.data().exists() {
            continue;
        }
        let newest = Reader::open(&dir.data(), Stale::Repair(SETTINGS)).unwrap();
        let newest = newest
            .index()
            .last_chunk()
            .unwrap()
            .map_or(0, |c| c.last_time);
        let now = life.now.max(newest) + dice.roll(2) as i64 * dice.roll(300) as i64;
        let times = Times {
            retention: &retention,
            namespace: &namespace,
            now: Timestamp(now),
        };
        let edge = |name: &str| times.edge_of(name).unwrap();
        let why = format!("seed {seed} round {round}");
        let reader = Reader::open(&dir.data(), Stale::Repair(SETTINGS)).unwrap();
        let (before, live) = (rows(reader.index(), &edge), picture(reader.index()));
        let had = bodies(&reader, &edge);
        let history_edge = times.history_edge().unwrap();
        let mut moments: Vec<i64> = life
            .times
            .iter()
            .copied()
            .filter(|t| *t >= history_edge)
            .collect();
        moments.push(history_edge);
        moments
            .extend((0..3).map(|_| history_edge + dice.roll((now - history_edge) as u64) as i64));
        while moments.len() > 12 {
            moments.swap_remove(dice.roll(moments.len() as u64) as usize);
        }
        let was: Vec<Vec<String>> = moments.iter().map(|t| at(&reader, &dir, *t)).collect();
        drop(reader);

        let policy = Policy {
            force: dice.roll(3) == 0,
            max: [0, 5_000, 70_000][dice.roll(3) as usize],
            ..policy()
        };
        let report = run(&dir, &policy, &retention, now);
        let proof = verify(&dir.data(), Depth::Full, &dir.0).unwrap();
        assert!(proof.findings.is_empty(), "{why}: {:?}", proof.findings);
        let reader = Reader::open(&dir.data(), Stale::Refuse).unwrap();
        assert_eq!(picture(reader.index()), live, "{why}");
        let after = rows(reader.index(), &edge);
        assert_eq!(after, before, "{why} {report:?}");
        assert_eq!(bodies(&reader, &edge), had, "{why}");
        for (t, was) in moments.iter().zip(&was) {
            // What was before the backup began is not known, now as then.
            let is = at(&reader, &dir, *t);
            assert_eq!(&is, was, "{why}: at {t}, {} before now", now - t);
        }
        drop(reader);
        let again = Policy {
            force: false,
            ..policy
        };
        if again.max > 0 {
            // Where members are cut smaller, more of them may be older than the edge.
            run(&dir, &again, &retention, now);
        }
        let bytes = std::fs::read(dir.data()).unwrap();
        let again = run(&dir, &again, &retention, now);
        assert_eq!(again.outcome, Outcome::Nothing, "{why}: {again:?}");
        assert_eq!(std::fs::read(dir.data()).unwrap(), bytes, "{why}");
        assert!(!new_path(&dir.data()).exists(), "{why}");
        assert!(!path_of(&new_path(&dir.data())).exists(), "{why}");
    }
}

/// COMPACT_HISTORIES=5000 for the long form; COMPACT_SEED=N for one of them.
#[test]
fn compaction_leaves_the_meaning_alone() {
    if let Ok(seed) = std::env::var("COMPACT_SEED") {
        return history(seed.parse().unwrap());
    }
    let many = std::env::var("COMPACT_HISTORIES");
    let many: u64 = many.map_or(40, |n| n.parse().unwrap());
    for seed in 1..=many {
        history(seed);
    }
}
