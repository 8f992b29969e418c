//! Compaction leaves the meaning of a backup alone.

use crate::history::{Dice, Life, picture, rows};
use crate::keep::all_expunged;
use crate::store::{Dir, SETTINGS};
use cyr_backup::cyrus::config::retention::{Retention, UserRetention};
use cyr_backup::cyrus::dlist::Value;
use cyr_backup::cyrus::guid::Guid;
use cyr_backup::cyrus::mboxname::Namespace;
use cyr_backup::store::backup::Backup;
use cyr_backup::store::compact::need::Times;
use cyr_backup::store::compact::{Outcome, Policy, Report, compact, new_path};
use cyr_backup::store::index::path_of;
use cyr_backup::store::line::Line;
use cyr_backup::store::lock::{Create, Wait};
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
    let retention = retention.of(Some("anna"), None, &Namespace::default());
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

/// COMPACT_HISTORIES=5000 for the long form, from COMPACT_FIRST on; COMPACT_SEED=N for one of them.
pub fn each_seed(one: fn(u64)) {
    let number = |name: &str| Some(std::env::var(name).ok()?.parse::<u64>().unwrap());
    if let Some(seed) = number("COMPACT_SEED") {
        return one(seed);
    }
    let first = number("COMPACT_FIRST").unwrap_or(1);
    (first..first + number("COMPACT_HISTORIES").unwrap_or(25)).for_each(one);
}

#[test]
fn compaction_leaves_the_meaning_alone() {
    each_seed(history);
}

fn lived(dir: &Dir, seed: u64, steps: u32) -> i64 {
    let mut life = Life::new(dir, seed);
    for _ in 0..steps {
        life.step();
    }
    life.rest();
    let reader = Reader::open(&dir.data(), Stale::Repair(SETTINGS)).unwrap();
    let newest = reader.index().last_chunk().unwrap().unwrap().last_time;
    newest.max(life.now) + 100
}

fn forced() -> Policy {
    Policy {
        force: true,
        ..policy()
    }
}

fn always() -> UserRetention {
    UserRetention::always(Some(150))
}

/// Everything that was alive is, and every body that is needed reads.
fn whole(dir: &Dir, live: &[String], now: i64, why: &str) {
    let reader = Reader::open(&dir.data(), Stale::Repair(SETTINGS)).unwrap();
    assert_eq!(picture(reader.index()), live, "{why}");
    let lost = bodies(&reader, &|_| now - 150);
    assert!(lost.values().all(|reads| *reads), "{why}");
    drop(reader);
    let proof = verify(&dir.data(), Depth::Full, &dir.0).unwrap();
    assert!(proof.findings.is_empty(), "{why}: {:?}", proof.findings);
}

/// COMPACT_SWITCHES=1000 for the long form.
#[test]
fn readers_never_see_a_mix() {
    let many = std::env::var("COMPACT_SWITCHES");
    let many: u32 = many.map_or(40, |n| n.parse().unwrap());
    let dir = Dir::new();
    let now = lived(&dir, 5, 60);
    run(&dir, &forced(), &always(), now);
    let live = {
        let reader = Reader::open(&dir.data(), Stale::Refuse).unwrap();
        picture(reader.index())
    };
    let over = std::sync::atomic::AtomicBool::new(false);
    let looks = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for n in 0..3 {
            let (dir, live, over, looks) = (&dir, &live, &over, &looks);
            scope.spawn(move || {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    match n {
                        // One that takes its time: opened before a switch, read behind it.
                        0 => {
                            let reader =
                                Reader::open(&dir.data(), Stale::Repair(SETTINGS)).unwrap();
                            std::thread::sleep(std::time::Duration::from_millis(30));
                            assert_eq!(&picture(reader.index()), live);
                            assert!(bodies(&reader, &|_| now - 150).values().all(|r| *r));
                        }
                        1 => {
                            let reader =
                                Reader::open(&dir.data(), Stale::Repair(SETTINGS)).unwrap();
                            assert_eq!(&picture(reader.index()), live);
                        }
                        _ => {
                            let proof = verify(&dir.data(), Depth::Full, &dir.0).unwrap();
                            assert!(proof.findings.is_empty(), "{:?}", proof.findings);
                        }
                    }
                    looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
        for _ in 0..many {
            let report = run(&dir, &forced(), &always(), now);
            assert_eq!(report.outcome, Outcome::Done);
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(looks.into_inner() >= many / 4);
}

/// A reader must not take what the next writer says for the index that was there before.
/// COMPACT_SWITCHES=1000 for the long form.
#[test]
fn readers_never_see_a_mix_while_others_write() {
    let many = std::env::var("COMPACT_SWITCHES");
    let many: u32 = many.map_or(60, |n| n.parse().unwrap());
    let dir = Dir::new();
    let now = lived(&dir, 6, 60);
    let over = std::sync::atomic::AtomicBool::new(false);
    let looks = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (dir, over, looks) = (&dir, &over, &looks);
            scope.spawn(move || {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    let proof = verify(&dir.data(), Depth::Full, &dir.0);
                    let found = proof.map(|proof| proof.findings);
                    if !found.as_ref().is_ok_and(Vec::is_empty) {
                        // Whoever compacts would go on for ever.
                        over.store(true, std::sync::atomic::Ordering::Relaxed);
                    }
                    assert_eq!(found.unwrap(), []);
                    looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
        for n in 0..many {
            if over.load(std::sync::atomic::Ordering::Relaxed) {
                break;
            }
            run(&dir, &forced(), &always(), now);
            let open = Backup::open(&dir.data(), "anna", policy().wait, Create::No, SETTINGS);
            let mut backup = open.unwrap();
            for turn in 0..6 {
                let name = Value::kv([("MBOXNAME", Value::text(format!("user.anna.{n}")))]);
                let line = Line::new(["SUB", "UNSUB"][turn % 2], &name);
                backup.append(&[line], Timestamp(now)).unwrap();
                if turn == 3 {
                    backup.seal().unwrap();
                }
            }
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(looks.into_inner() >= many / 4);
}

/// Not a test: what `a_kill_at_any_moment_leaves_a_pair` kills.
#[test]
fn compact_child() {
    let Ok(path) = std::env::var("COMPACT_CHILD") else {
        return;
    };
    let (path, now) = path.split_once(' ').unwrap();
    let namespace = Namespace::default();
    let retention = always();
    let times = Times {
        retention: &retention,
        namespace: &namespace,
        now: Timestamp(now.parse().unwrap()),
    };
    let path = std::path::Path::new(path);
    for _ in 0..10_000 {
        compact(path, "anna", &forced(), &times, path.parent().unwrap()).unwrap();
    }
}

/// COMPACT_KILLS=2000 for the long form.
#[test]
fn a_kill_at_any_moment_leaves_a_pair() {
    let many = std::env::var("COMPACT_KILLS");
    let many: u64 = many.map_or(25, |n| n.parse().unwrap());
    let dir = Dir::new();
    let now = lived(&dir, 9, 60);
    run(&dir, &forced(), &always(), now);
    let live = {
        let reader = Reader::open(&dir.data(), Stale::Refuse).unwrap();
        picture(reader.index())
    };
    let mut dice = Dice(std::process::id().into());
    for round in 0..many {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "compact::compact_child", "--nocapture"])
            .env("COMPACT_CHILD", format!("{} {now}", dir.data().display()))
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_micros(
            10_000 + dice.roll(150_000),
        ));
        child.kill().unwrap();
        child.wait().unwrap();
        whole(&dir, &live, now, &format!("round {round}"));
        if round % 5 == 0 {
            // The next run finishes or cleans up by itself.
            run(&dir, &forced(), &always(), now);
            assert!(!new_path(&dir.data()).exists());
            assert!(!path_of(&new_path(&dir.data())).exists());
            whole(&dir, &live, now, "afterwards");
        }
    }
}

#[test]
fn the_switch_is_completed_by_who_opens_next() {
    let dir = Dir::new();
    let now = lived(&dir, 11, 40);
    let old = std::fs::read(path_of(&dir.data())).unwrap();
    let report = run(&dir, &forced(), &always(), now);
    let live = picture(Reader::open(&dir.data(), Stale::Refuse).unwrap().index());
    // As a crash between the two renames leaves it.
    std::fs::rename(path_of(&dir.data()), path_of(&new_path(&dir.data()))).unwrap();
    std::fs::write(path_of(&dir.data()), &old).unwrap();
    assert_eq!(
        Reader::open(&dir.data(), Stale::Refuse)
            .err()
            .map(|e| e.kind()),
        Some(cyr_backup::error::Kind::NeedsReindex)
    );
    let reader = Reader::open(&dir.data(), Stale::Repair(SETTINGS)).unwrap();
    assert_eq!(picture(reader.index()), live);
    let generation = reader.index().meta_text("generation").unwrap();
    assert_eq!(generation.as_deref(), Some(report.generation.as_str()));
    assert!(!path_of(&new_path(&dir.data())).exists());
}

#[test]
fn what_goes_while_the_clock_is_behind_is_kept_from_when_it_was_told() {
    let dir = Dir::new();
    let mut all = Vec::new();
    let mut backup = dir.open();
    crate::store::deliver(&dir, &mut backup, &mut all, 20, 1_000_000);
    let spool = all_expunged(&dir, &all[..8], &all[8..]);
    backup
        .mailbox(&[], &spool, false, Timestamp(500_000))
        .unwrap();
    backup.commit().unwrap();
    let value = Value::text("user.anna");
    backup
        .append(&[Line::new("UNMAILBOX", &value)], Timestamp(500_100))
        .unwrap();
    backup.finish().unwrap();
    let bodies = || {
        let reader = Reader::open(&dir.data(), Stale::Refuse).unwrap();
        let there = all
            .iter()
            .filter(|r| reader.body(r.1, &mut |_| Ok(())).is_ok());
        there.count()
    };
    // Within retention of what was printed, over and over, also where all of it is stated anew.
    for now in [1_000_010, 1_000_100, 1_000_149] {
        run(&dir, &forced(), &always(), now);
        assert_eq!(bodies(), 20, "{now}");
    }
    run(&dir, &forced(), &always(), 1_000_150);
    assert_eq!(bodies(), 0);
}

#[test]
fn what_does_not_pay_goes_in_the_end_though_nobody_looks_before() {
    let dir = Dir::new();
    let mut all = Vec::new();
    let mut backup = dir.open();
    crate::store::deliver(&dir, &mut backup, &mut all, 200, 1_000_000);
    let spool = all_expunged(&dir, &all[..1], &all[1..]);
    backup
        .mailbox(&[], &spool, false, Timestamp(1_000_100))
        .unwrap();
    backup.commit().unwrap();
    backup.finish().unwrap();
    let lazy = Policy {
        threshold: 1000,
        ..policy()
    };
    let early = run(&dir, &lazy, &always(), 1_001_000);
    let last_call = 1_000_100 + 150 + 30 * 86_400 + 1;
    assert_eq!(
        (early.outcome, early.next),
        (Outcome::Nothing, Some(last_call))
    );
    let late = run(&dir, &lazy, &always(), last_call);
    assert_eq!((late.outcome, late.expired_records), (Outcome::Done, 1));
}

/// Where one folder is kept for longer, or for ever, the edge of history is far back. What is due goes in the
/// end all the same, and once.
#[test]
fn what_is_due_goes_in_the_end_where_a_folder_is_kept_for_longer() {
    const DAY: i64 = 86_400;
    for rule in [
        "anna:Archive=365d",
        "anna:Archive=forever",
        "anna:Archive=40d",
    ] {
        let dir = Dir::new();
        let mut all = Vec::new();
        let mut backup = dir.open();
        crate::store::deliver(&dir, &mut backup, &mut all, 200, 1_000_000);
        let spool = all_expunged(&dir, &all[..80], &all[80..]);
        let gone = 1_000_100;
        backup.mailbox(&[], &spool, false, Timestamp(gone)).unwrap();
        backup.commit().unwrap();
        backup.finish().unwrap();
        let rules = Retention::parse(Some(DAY), rule).unwrap();
        let rules = rules.of(Some("anna"), None, &Namespace::default());
        let lazy = Policy {
            threshold: 1000,
            ..policy()
        };
        let has = |guid| {
            let reader = Reader::open(&dir.data(), Stale::Refuse).unwrap();
            reader.index().body(guid).unwrap().is_some()
        };
        let (mut now, mut done, mut looks) = (gone + 10, Vec::new(), 0);
        while now < gone + 500 * DAY {
            let report = run(&dir, &lazy, &rules, now);
            looks += 1;
            if report.outcome == Outcome::Done {
                done.push((now - gone) / DAY);
            }
            match report.next {
                Some(next) => now = next.max(now + DAY),
                None => break,
            }
        }
        assert!(
            done.first().is_some_and(|day| *day <= 33),
            "{rule}: {done:?}"
        );
        assert!(
            done.len() <= 2 && looks <= 8,
            "{rule}: {done:?}, {looks} looks"
        );
        assert!(all[..80].iter().all(|m| !has(m.1)), "{rule}");
        assert!(all[80..].iter().all(|m| has(m.1)), "{rule}");
    }
}

/// A backup to which twenty messages were delivered, and they.
fn twenty() -> (Dir, Backup, Vec<(u32, Guid, usize)>) {
    let dir = Dir::new();
    let mut backup = dir.open();
    let mut all = Vec::new();
    crate::store::deliver(&dir, &mut backup, &mut all, 20, 1_000_000);
    (dir, backup, all)
}

fn braking(percent: u32) -> Policy {
    Policy {
        brake: percent,
        ..policy()
    }
}

#[test]
fn the_brake_holds_what_was_replaced() {
    let (dir, mut backup, mut all) = twenty();
    crate::store::deliver(&dir, &mut backup, &mut all, 60, 2_000_000);
    let spool = all_expunged(&dir, &all[..15], &all[15..]);
    backup
        .mailbox(&[], &spool, false, Timestamp(2_000_010))
        .unwrap();
    backup.commit().unwrap();
    backup.finish().unwrap();
    let held = run(&dir, &braking(50), &always(), 2_000_200);
    let loss = (held.loss.lost, held.loss.of, held.loss.now);
    assert_eq!((held.outcome, loss), (Outcome::Held, (15, 20, 15)));
    // So many of all there is are no harm.
    assert_eq!(
        run(&dir, &braking(80), &always(), 2_000_200).outcome,
        Outcome::Done
    );
}

#[test]
fn the_brake_holds_what_went_at_once() {
    let (dir, mut backup, _) = twenty();
    let value = cyr_backup::cyrus::dlist::Value::text("user.anna");
    let line = cyr_backup::store::line::Line::new("UNMAILBOX", &value);
    backup.append(&[line], Timestamp(2_000_000)).unwrap();
    backup.finish().unwrap();
    let braking = braking(50);
    let early = run(&dir, &braking, &always(), 2_000_100);
    assert_ne!(early.outcome, Outcome::Held);
    assert_eq!(early.next, Some(2_000_150));
    let held = run(&dir, &braking, &always(), 2_000_150);
    assert_eq!(
        (held.outcome, held.loss.lost, held.loss.of),
        (Outcome::Held, 20, 20)
    );
    let before = std::fs::metadata(dir.data()).unwrap().len();
    let forced = Policy {
        force: true,
        ..braking
    };
    let dry = Policy {
        dry_run: true,
        ..forced.clone()
    };
    let told = run(&dir, &dry, &always(), 2_000_150);
    assert_eq!(told.outcome, Outcome::Done);
    assert!(told.expired_records >= 20 && told.bytes_after < told.bytes_before);
    assert_eq!(std::fs::metadata(dir.data()).unwrap().len(), before);
    run(&dir, &forced, &always(), 2_000_150);
    let reader = Reader::open(&dir.data(), Stale::Refuse).unwrap();
    assert!(reader.index().mailboxes(true).unwrap().is_empty());
    assert_eq!(reader.index().totals().unwrap().messages, 0);
}

#[test]
fn a_damaged_log_is_left_alone() {
    let dir = Dir::new();
    let now = lived(&dir, 13, 40);
    let mut bytes = std::fs::read(dir.data()).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 4;
    std::fs::write(dir.data(), &bytes).unwrap();
    let namespace = Namespace::default();
    let retention = always();
    let times = Times {
        retention: &retention,
        namespace: &namespace,
        now: Timestamp(now),
    };
    let unforced = Policy {
        force: false,
        threshold: 1,
        ..policy()
    };
    let e = compact(&dir.data(), "anna", &unforced, &times, &dir.0).unwrap_err();
    assert_eq!(e.kind(), cyr_backup::error::Kind::Damaged, "{e}");
    assert_eq!(std::fs::read(dir.data()).unwrap(), bytes);
    assert!(!new_path(&dir.data()).exists());

    // Forced, the present is stated anew with all bodies that read, and the old log set aside.
    let reader = Reader::open(&dir.data(), Stale::Refuse).unwrap();
    let (live, had) = (picture(reader.index()), bodies(&reader, &|_| now - 150));
    drop(reader);
    let report = run(&dir, &forced(), &always(), now);
    assert_eq!(report.outcome, Outcome::Done);
    let aside = report.previous.unwrap();
    assert!(aside.to_string_lossy().contains(".damaged."));
    assert_eq!(std::fs::read(aside).unwrap(), bytes);
    let proof = verify(&dir.data(), Depth::Full, &dir.0).unwrap();
    assert!(proof.findings.is_empty(), "{:?}", proof.findings);
    let reader = Reader::open(&dir.data(), Stale::Refuse).unwrap();
    assert_eq!(picture(reader.index()), live);
    assert_eq!(bodies(&reader, &|_| now - 150), had);
}
