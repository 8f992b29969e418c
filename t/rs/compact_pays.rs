//! What a dry run of compaction tells is what a run does, and a run saves something.

use crate::compact::{each_seed, policy, run};
use crate::history::{Dice, Life};
use crate::keep::all_expunged;
use crate::store::{Dir, SETTINGS, deliver, mailbox, send};
use cyr_backup::cyrus::config::retention::{Retention, UserRetention};
use cyr_backup::cyrus::guid::Guid;
use cyr_backup::cyrus::mboxname::Namespace;
use cyr_backup::store::backup::{Backup, Settings};
use cyr_backup::store::compact::{Outcome, Policy, Report};
use cyr_backup::store::lock::Create;
use cyr_backup::store::reader::{Reader, Stale};
use cyr_backup::store::spool::Spool;
use cyr_backup::util::time::Timestamp;
use std::io::Read;

const DAY: i64 = 86_400;
/// When things begin.
const THEN: i64 = 1_700_000_000;

fn dry() -> Policy {
    Policy {
        dry_run: true,
        ..policy()
    }
}

fn forced() -> Policy {
    Policy {
        force: true,
        ..policy()
    }
}

/// Whether a dry run was right: within a quarter, or 2 kB.
fn right(told: &Report, done: &Report, why: &str) {
    assert_eq!(told.outcome, done.outcome, "{why}: {told:?} {done:?}");
    let off = told.bytes_after.abs_diff(done.bytes_after);
    let few = (done.bytes_after / 4).max(2000);
    assert!(off <= few, "{why}: off by {off}: {told:?} {done:?}");
    let off = told.chunks_after.abs_diff(done.chunks_after);
    assert!(
        off <= 1 + done.chunks_after / 4,
        "{why}: chunks: {told:?} {done:?}"
    );
    let expired = |r: &Report| (r.expired_records, r.expired_mailboxes, r.expired_others);
    assert_eq!(expired(told), expired(done), "{why}");
}

/// One history, with compactions at random moments, each told before it is done.
fn told(seed: u64) {
    let dir = Dir::new();
    let mut life = Life::new(&dir, seed);
    let kept = 60 + life.dice.roll(3) as i64 * 200;
    let rules = ["", "*:Trash=20s", "*:Trash=2000s, *:Old=10s"][life.dice.roll(3) as usize];
    let retention = Retention::parse(Some(kept), rules).unwrap();
    let retention = retention.of(Some("anna"), None, &Namespace::default());
    let mut dice = Dice(seed ^ 78);
    let most = [10, 40, 200][dice.roll(3) as usize];
    for round in 0..3 + dice.roll(3) {
        for _ in 0..5 + dice.roll(most) {
            life.step();
        }
        life.rest();
        if !dir.data().exists() {
            continue;
        }
        let reader = Reader::open(&dir.data(), Stale::Repair(SETTINGS)).unwrap();
        let newest = reader.index().last_chunk().unwrap();
        drop(reader);
        let newest = newest.map_or(0, |c| c.last_time);
        let now = life.now.max(newest) + dice.roll(2) as i64 * dice.roll(300) as i64;
        let policy = Policy {
            force: dice.roll(3) == 0,
            max: [0, 5_000, 70_000][dice.roll(3) as usize],
            ..policy()
        };
        let dry = Policy {
            dry_run: true,
            ..policy.clone()
        };
        let told = run(&dir, &dry, &retention, now);
        let done = run(&dir, &policy, &retention, now);
        let why = format!("seed {seed} round {round}");
        if std::env::var("COMPACT_TELL").is_ok() {
            println!("{why}: {told:?} {done:?}");
        }
        right(&told, &done, &why);
        let smaller = done.bytes_after < done.bytes_before;
        if done.outcome == Outcome::Done {
            assert!(smaller || policy.force, "{why}: {done:?}");
        }
    }
}

#[test]
fn a_dry_run_tells_what_a_run_does() {
    each_seed(told);
}

/// A body of some bytes that hardly shrink.
fn noise(uid: u32, size: usize) -> Vec<u8> {
    let mut dice = Dice(u64::from(uid));
    let mut text = format!("From: a@b\r\nSubject: message {uid}\r\n\r\n");
    while text.len() < size {
        text.push_str(&format!("{:08x}", dice.roll(1 << 31)));
    }
    text.into_bytes()
}

type Messages = Vec<(u32, Guid, usize)>;

/// States `name`, whose number is `id`, as `spool` does the INBOX.
fn as_folder(dir: &Dir, spool: &Spool, id: u32, name: &str) -> Spool {
    let mut text = String::new();
    spool
        .reader(0, spool.len())
        .read_to_string(&mut text)
        .unwrap();
    let head = format!("UNIQUEID u{id} MBOXNAME user.anna{name} ");
    let text = text.replace("UNIQUEID u1 MBOXNAME user.anna ", &head);
    let mut out = Spool::new(&dir.0, 1 << 20);
    out.append(text.as_bytes()).unwrap();
    out
}

/// Brings messages of `size` bytes into a folder, in a session of its own.
fn bring(dir: &Dir, (id, name): (u32, &str), n: u32, size: usize, time: i64) -> Messages {
    let mut backup = dir.open();
    let mut all = Messages::new();
    for uid in id * 1000 + 1..=id * 1000 + n {
        let body = noise(uid, size);
        all.push((uid, send(&mut backup, &body, time), body.len()));
    }
    backup.messages_end().unwrap();
    let spool = as_folder(dir, &mailbox(dir, &all, &all), id, name);
    backup.mailbox(&[], &spool, false, Timestamp(time)).unwrap();
    backup.commit().unwrap();
    backup.finish().unwrap();
    all
}

/// Expunges the first of a folder's messages.
fn expunge(dir: &Dir, (id, name): (u32, &str), all: &Messages, n: usize, time: i64) {
    let mut backup = dir.open();
    let spool = all_expunged(dir, &all[..n], &all[n..]);
    let spool = as_folder(dir, &spool, id, name);
    backup.mailbox(&[], &spool, false, Timestamp(time)).unwrap();
    backup.commit().unwrap();
    backup.finish().unwrap();
}

#[test]
fn what_goes_by_a_rule_for_a_folder_is_told_and_counted_once() {
    let dir = Dir::new();
    let folders = [(1, ""), (2, ".Sent"), (3, ".Trash")];
    for folder in folders {
        let all = bring(&dir, folder, 40, 400, THEN);
        expunge(&dir, folder, &all, 15, THEN + 60);
    }
    let retention = Retention::parse(Some(30 * DAY), "anna:Trash=1d").unwrap();
    let retention = retention.of(Some("anna"), None, &Namespace::default());
    let now = THEN + 2 * DAY;
    let told = run(&dir, &dry(), &retention, now);
    assert!(told.bytes_after < told.bytes_before * 95 / 100, "{told:?}");
    let done = run(&dir, &policy(), &retention, now);
    right(&told, &done, "by a rule");
    assert_eq!((done.outcome, done.expired_records), (Outcome::Done, 15));
    // Their records stay, as long as how it was can be asked; nothing of them goes twice.
    let again = run(&dir, &forced(), &retention, now + 60);
    assert_eq!((again.outcome, again.expired_records), (Outcome::Done, 0));
    let in_the_end = run(&dir, &forced(), &retention, now + 40 * DAY);
    let counted = (in_the_end.outcome, in_the_end.expired_records);
    assert_eq!(counted, (Outcome::Done, 30), "{in_the_end:?}");
    let again = run(&dir, &forced(), &retention, now + 40 * DAY);
    assert_eq!((again.outcome, again.expired_records), (Outcome::Done, 0));
}

#[test]
fn a_small_backup_does_not_grow() {
    let week = UserRetention::always(Some(7 * DAY));
    for (n, size) in [(1, 100), (3, 100), (24, 500), (30, 50)] {
        let dir = Dir::new();
        bring(&dir, (1, ""), n, size, THEN);
        let before = std::fs::read(dir.data()).unwrap();
        for now in [THEN + 60, THEN + 30 * DAY, THEN + 300 * DAY] {
            let done = run(&dir, &policy(), &week, now);
            assert_eq!(done.outcome, Outcome::Nothing, "{n}: {done:?}");
        }
        assert_eq!(std::fs::read(dir.data()).unwrap(), before, "{n}");
    }
}

#[test]
fn what_has_expired_in_a_small_backup_goes_in_the_end() {
    let dir = Dir::new();
    let week = UserRetention::always(Some(7 * DAY));
    let all = bring(&dir, (1, ""), 3, 100, THEN);
    expunge(&dir, (1, ""), &all, 1, THEN + 60);
    let early = run(&dir, &policy(), &week, THEN + 8 * DAY);
    let last_call = THEN + 60 + 37 * DAY + 1;
    assert_eq!(
        (early.outcome, early.next),
        (Outcome::Nothing, Some(last_call)),
        "{early:?}"
    );
    let told = run(&dir, &dry(), &week, last_call);
    let done = run(&dir, &policy(), &week, last_call);
    right(&told, &done, "in the end");
    assert_eq!((done.outcome, done.expired_records), (Outcome::Done, 1));
    let gone = Reader::open(&dir.data(), Stale::Refuse).unwrap();
    assert!(gone.body(all[0].1, &mut |_| Ok(())).is_err());
    drop(gone);
    let again = run(&dir, &policy(), &week, last_call + 300 * DAY);
    assert_eq!(again.outcome, Outcome::Nothing, "{again:?}");
}

#[test]
fn many_tiny_chunks_are_joined() {
    let dir = Dir::new();
    let week = UserRetention::always(Some(7 * DAY));
    let mut all = Messages::new();
    for n in 0..60 {
        let mut backup = dir.open();
        deliver(&dir, &mut backup, &mut all, 1, THEN + n * 60);
        backup.finish().unwrap();
    }
    let now = THEN + 3600;
    let told = run(&dir, &dry(), &week, now);
    let done = run(&dir, &policy(), &week, now);
    right(&told, &done, "a hot hour");
    assert_eq!((done.outcome, done.chunks_before), (Outcome::Done, 60));
    assert!(done.chunks_after <= 4, "{done:?}");
    assert!(done.bytes_after < done.bytes_before / 2, "{done:?}");
}

#[test]
fn what_old_tools_wrote_is_told_as_well() {
    let samples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("t/data/old-backups");
    for name in [
        "clock",
        "compacted",
        "empty",
        "first",
        "folders",
        "literals",
        "literals-n",
        "moved",
        "renamed",
        "resurrected",
        "rolling",
        "sessions",
        "shared",
    ] {
        for kept in [None, Some(7 * DAY)] {
            let dir = Dir::new();
            std::fs::copy(samples.join(name).join("log"), dir.data()).unwrap();
            let kept = UserRetention::always(kept);
            let now = cyr_backup::util::time::now().0;
            let told = run(&dir, &dry(), &kept, now);
            let done = run(&dir, &policy(), &kept, now);
            right(&told, &done, name);
            let told = run(
                &dir,
                &Policy {
                    force: true,
                    ..dry()
                },
                &kept,
                now,
            );
            let done = run(&dir, &forced(), &kept, now);
            right(&told, &done, name);
        }
    }
}

#[test]
fn large_chunks_that_do_not_shrink_are_left() {
    let dir = Dir::new();
    let week = UserRetention::always(Some(7 * DAY));
    let large = Settings {
        chunk_max: 8 << 20,
        ..SETTINGS
    };
    let open = Backup::open(&dir.data(), "anna", policy().wait, Create::IfMissing, large);
    let mut backup = open.unwrap();
    let mut all = Messages::new();
    for uid in 1..=40 {
        let body: Vec<u8> = noise(uid, 100_000).iter().rev().copied().collect();
        all.push((uid, send(&mut backup, &body, THEN), body.len()));
    }
    backup.messages_end().unwrap();
    let spool = mailbox(&dir, &all, &all);
    backup.mailbox(&[], &spool, false, Timestamp(THEN)).unwrap();
    backup.commit().unwrap();
    backup.finish().unwrap();
    let policy = Policy {
        settings: large,
        ..policy()
    };
    let done = run(&dir, &policy, &week, THEN + 60);
    assert_eq!(done.chunks_before, 1, "{done:?}");
    let told = Policy {
        dry_run: true,
        force: true,
        ..policy.clone()
    };
    let told = run(&dir, &told, &week, THEN + 60);
    let forced = Policy {
        force: true,
        ..policy
    };
    let forced = run(&dir, &forced, &week, THEN + 60);
    right(&told, &forced, "large");
    let off = told.bytes_after.abs_diff(forced.bytes_after);
    assert!(off < forced.bytes_after / 100, "{told:?} {forced:?}");
    assert!(forced.bytes_after >= forced.bytes_before, "{forced:?}");
    assert_eq!(done.outcome, Outcome::Nothing, "{done:?}");
}
