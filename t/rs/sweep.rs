//! The disk fails or stops at every single operation of a session, of its recovery, and of a rebuild; what was acknowledged is
//! there afterwards, the rest is whole or absent.
//!
//! The log is a `FaultFile`, the index a real file that is copied at each durable point. A state to
//! come back from is a log (as a kill or a power loss leaves it: unsynced writes dropped, torn, out of
//! order) with an index (as committed, of some earlier durable point, none, torn). By default each log is
//! tried with one index in turn; with `SWEEP=long` with all, and with more seeds.

use super::store::{Dir, sub};
use cyr_backup::cyrus::dlist::{Limits, Parser, Value};
use cyr_backup::cyrus::guid::Guid;
use cyr_backup::cyrus::sync::Record;
use cyr_backup::error::Result;
use cyr_backup::store::backup::{Backup, MailboxResult, Settings};
use cyr_backup::store::file::{Fault, FaultFile};
use cyr_backup::store::index::{self, Index, differences};
use cyr_backup::store::line::Line;
use cyr_backup::store::lock::{Create, Wait};
use cyr_backup::store::reader::readable;
use cyr_backup::store::spool::Spool;
use cyr_backup::store::verify::{Depth, verify};
use cyr_backup::util::time::Timestamp;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A child of another test may hold a copy of the descriptor for a moment.
const WAIT: Wait = Wait::For(std::time::Duration::from_secs(10));

const SETTINGS: Settings = Settings {
    level: 1,
    chunk_max: 30_000,
};

/// Whether everything is tried, or a part of it.
pub(super) fn long() -> bool {
    std::env::var("SWEEP").is_ok_and(|v| v == "long")
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Bodies by UID: small ones; one that passes `chunk_max` and what a log collects before it writes.
fn body(uid: u32) -> Vec<u8> {
    let mut text = format!("From: a@b\r\nSubject: {uid}\r\n\r\n").into_bytes();
    let size = if uid == 4 { 300_000 } else { 700 };
    text.extend(noise(u64::from(uid) + 7, size));
    text
}

fn record(uid: u32, flags: &str) -> (String, u32) {
    let (body, guid) = (body(uid), Guid::of(&body(uid)));
    let text = format!(
        "%(UID {uid} MODSEQ {uid} LAST_UPDATED 1 FLAGS ({flags}) INTERNALDATE 2 SIZE {} GUID {guid})",
        body.len()
    );
    let line = format!("{text}\r\n");
    let value = Parser::new(line.as_bytes(), Limits::default()).value();
    let value = value.unwrap();
    (text, Record::from_value(value).unwrap().sums().record)
}

fn send(backup: &mut Backup, body: &[u8], now: Timestamp) -> Result<()> {
    backup.body_begin(b"default", Guid::of(body), body.len() as u64, now)?;
    for part in body.chunks(50_000) {
        backup.body_data(part)?;
    }
    backup.body_end()
}

/// A MAILBOX line: name, records listed, UIDs alive, ACL.
fn mailbox(name: &str, list: &[(u32, &str)], live: &[(u32, &str)], acl: &str) -> Spool {
    let sum = live.iter().fold(0, |sum, (u, f)| sum ^ record(*u, f).1);
    let last = live.iter().map(|r| r.0).max().unwrap_or(0);
    let list: Vec<String> = list.iter().map(|(u, f)| record(*u, f).0).collect();
    let mut spool = Spool::new(&std::env::temp_dir(), 1 << 30);
    spool
        .append(
            format!(
                "%(UNIQUEID u1 MBOXNAME {name} SYNC_CRC {sum} LAST_UID {last} HIGHESTMODSEQ {last} \
                 RECENTUID 0 RECENTTIME 0 LAST_APPENDDATE 0 POP3_LAST_LOGIN 0 UIDVALIDITY 7 \
                 PARTITION default ACL {acl} OPTIONS P RECORD ({}))",
                list.join(" ")
            )
            .as_bytes(),
        )
        .unwrap();
    spool
}

/// What a session does: each step is one line, with the bodies it refers to.
const STEPS: usize = 11;

fn step(backup: &mut Backup, n: usize, now: Timestamp) -> Result<()> {
    let none = |uids: &[u32]| uids.iter().map(|u| (*u, "")).collect::<Vec<_>>();
    let kv = |pairs: &[(&str, &str)]| Value::kv(pairs.iter().map(|(k, v)| (*k, Value::text(*v))));
    let deliver = |backup: &mut Backup, uids: &[u32], spool: &Spool, literal| -> Result<()> {
        for uid in uids {
            send(backup, &body(*uid), now)?;
        }
        backup.messages_end()?;
        match backup.mailbox(&[], spool, literal, now)? {
            MailboxResult::Entered(out) => assert!(out.agrees && out.missing == 0, "step {n}"),
            MailboxResult::Unreferred => panic!("step {n}"),
        }
        backup.commit()
    };
    let inbox = "user.anna";
    match n {
        // A new user.
        0 => backup.append(&[sub("user.anna.x")], now),
        1 => {
            let (new, complete) = (none(&[1, 2, 3]), kv(&[("UNIQUEID", "u1"), ("EPOCH", "1")]));
            for uid in [1, 2, 3] {
                send(backup, &body(uid), now)?;
            }
            backup.messages_end()?;
            let spool = mailbox(inbox, &new, &new, "\"\"");
            let before = [Line::private("COMPLETE", complete)];
            backup.mailbox(&before, &spool, false, now)?;
            backup.commit()
        }
        // A message larger than a chunk; a few that fill the next one.
        2 => {
            let live = none(&[1, 2, 3, 4]);
            deliver(
                backup,
                &[4],
                &mailbox(inbox, &live[3..], &live, "\"\""),
                false,
            )
        }
        3 => {
            let live = none(&[1, 2, 3, 4, 5, 6]);
            deliver(
                backup,
                &[5, 6],
                &mailbox(inbox, &live[4..], &live, "\"\""),
                false,
            )
        }
        // A line with a literal.
        4 => {
            let live = none(&[1, 2, 3, 4, 5, 6, 7]);
            let spool = mailbox(inbox, &live[6..], &live, "{10+}\r\nanna\tlrs\t\t");
            deliver(backup, &[7], &spool, true)
        }
        // Somebody else's mail came first: taken out, and the rest comes again.
        5 => {
            let live = none(&[1, 2, 3, 4, 5, 6, 7, 8]);
            let spool = mailbox(inbox, &live[7..], &live, "\"\"");
            send(backup, &noise(99, 90_000), now)?;
            send(backup, &body(8), now)?;
            backup.messages_end()?;
            match backup.mailbox(&[], &spool, false, now)? {
                MailboxResult::Unreferred => {}
                MailboxResult::Entered(_) => panic!("not referred to"),
            }
            let mut taken = 0;
            backup.evict(&mut |_, _, _, read| {
                read(&mut |_| Ok(()))?;
                taken += 1;
                Ok(())
            })?;
            assert_eq!(taken, 2);
            deliver(backup, &[8], &spool, false)
        }
        // Flags, an expunged one, and another name.
        6 => {
            let changed = [(2, "\\Seen"), (3, "\\Expunged")];
            let live: Vec<_> = [(1, ""), (2, "\\Seen")]
                .into_iter()
                .chain(none(&[4, 5, 6, 7, 8]))
                .collect();
            let spool = mailbox("user.anna.renamed", &changed, &live, "\"\"");
            deliver(backup, &[], &spool, false)
        }
        7 => {
            let unsub = kv(&[("USERID", "anna"), ("MBOXNAME", "user.anna.x")]);
            backup.append(&[Line::new("UNSUB", &unsub)], now)
        }
        // A script is a literal: a member of its own.
        8 => {
            let content = "keep;\r\n# \"%\"\r\n";
            let script = kv(&[
                ("USERID", "anna"),
                ("FILENAME", "a.script"),
                ("CONTENT", content),
            ]);
            backup.append(&[Line::new("SIEVE", &script)], now)
        }
        9 => backup.append(
            &[Line::new("UNMAILBOX", &Value::text("user.anna.renamed"))],
            now,
        ),
        _ => backup.append(&[sub("user.anna.z")], now),
    }
}

/// Behind these steps the backup is sealed, and opened again: a session ends.
const ENDS: [usize; 2] = [5, 9];

/// What an index says, and whether every body it refers to is there.
fn state(what: &str, backup: &Backup) -> String {
    let index = backup.index();
    let mut out = String::new();
    let mut guids = Vec::new();
    for row in index.mailboxes(true).unwrap() {
        out += &format!("{} {:?}:", row.mboxname, row.deleted.is_some());
        index
            .records(row.id, None, true, &mut |r| {
                out += &format!(" {}{:?}", r.record.uid, r.record.flags.len());
                assert_eq!(r.record.guid, Guid::of(&body(r.record.uid)));
                guids.push(r.record.guid);
                Ok(())
            })
            .unwrap();
        out += "\n";
    }
    let good = readable(index, backup.file(), guids.iter().copied()).unwrap();
    for guid in guids {
        assert!(good.contains(&guid), "{what}: no body of {guid}: {out}");
    }
    for s in index.subscriptions(true).unwrap() {
        out += &format!("sub {} {}\n", s.mboxname, s.unsubscribed.is_some());
    }
    for s in index.scripts(true).unwrap() {
        out += &format!("script {}\n", s.filename);
    }
    out
}

/// Files of an index, by what stands behind its name.
type Files = Vec<(&'static str, Vec<u8>)>;

fn index_files(path: &Path) -> Files {
    let name = |suffix| PathBuf::from(format!("{}{suffix}", index::path_of(path).display()));
    let files = ["", "-wal"].into_iter();
    files
        .filter_map(|s| Some((s, fs::read(name(s)).ok()?)))
        .collect()
}

fn lay_index(path: &Path, files: &Files) {
    index::remove(&index::path_of(path)).unwrap();
    for (suffix, bytes) in files {
        fs::write(format!("{}{suffix}", index::path_of(path).display()), bytes).unwrap();
    }
}

/// A session over a file that fails.
struct Run {
    dir: Dir,
    file: FaultFile,
    /// Steps that were acknowledged.
    done: usize,
    /// The index at each durable point.
    indexes: Vec<Files>,
    /// The index at the first failure, and what the log held then.
    at_failure: Option<(Files, Vec<u8>, Vec<u8>, usize)>,
}

impl Run {
    fn new(file: FaultFile) -> Run {
        Run {
            dir: Dir::new(),
            file,
            done: 0,
            indexes: Vec::new(),
            at_failure: None,
        }
    }

    fn open(&self) -> Result<Backup> {
        Backup::open_on(
            Arc::new(self.file.clone()),
            &self.dir.data(),
            "anna",
            WAIT,
            SETTINGS,
        )
    }

    fn failed(&mut self) {
        if self.at_failure.is_none() {
            let files = index_files(&self.dir.data());
            let (kill, loss) = (self.file.after_kill(), self.file.after_power_loss(0));
            self.at_failure = Some((files, kill, loss, self.done));
        }
    }

    /// As the server goes on: what failed is answered NO, a broken backup opened again, and the client
    /// comes again. Gives up when it fails too often.
    fn go(&mut self, each: &mut dyn FnMut(&Backup)) -> bool {
        let mut open: Option<Backup> = None;
        let mut tries = 0;
        while self.done < STEPS {
            if tries > 4 {
                return false;
            }
            let mut backup = match open.take() {
                Some(backup) => backup,
                None => match self.open() {
                    Ok(backup) => backup,
                    Err(_) => {
                        self.failed();
                        tries += 1;
                        if tries > 1 {
                            self.file.heal();
                        }
                        continue;
                    }
                },
            };
            // A clock that is put back in the middle.
            let now = Timestamp(5000 - 10 * i64::from(self.done == 7));
            match step(&mut backup, self.done, now) {
                Ok(()) => {
                    self.done += 1;
                    self.indexes.push(index_files(&self.dir.data()));
                    each(&backup);
                }
                Err(_) => {
                    self.failed();
                    backup.abort();
                    tries += 1;
                    if tries > 1 {
                        // Space is free again, or another attempt is all it needs.
                        self.file.heal();
                    }
                    if !backup.is_broken() {
                        open = Some(backup);
                    }
                    continue;
                }
            }
            if ENDS.contains(&self.done) {
                if backup.finish().is_err() {
                    self.failed();
                }
            } else {
                open = Some(backup);
            }
        }
        // Not sealed: as a kill would leave it.
        drop(open);
        true
    }
}

/// The state after each number of steps, from a session in which nothing fails.
fn states() -> (Vec<String>, FaultFile) {
    let mut run = Run::new(FaultFile::new());
    let mut states = vec![state("new", &run.open().unwrap())];
    assert!(run.go(&mut |backup| states.push(state("whole", backup))));
    for pair in states.windows(2) {
        assert_ne!(pair[0], pair[1]);
    }
    (states, run.file.clone())
}

/// A log and an index are all that is left: they must come back with `done` steps, or one more.
fn check(what: &str, states: &[String], done: usize, log: &[u8], files: &Files) {
    let dir = Dir::new();
    let path = dir.data();
    fs::write(&path, log).unwrap();
    lay_index(&path, files);
    let what = format!(
        "{what}, {done} steps acknowledged, log of {} bytes",
        log.len()
    );
    let open = || Backup::open(&path, "anna", WAIT, Create::No, SETTINGS);
    if what.contains("index torn") {
        // No power loss leaves that. Opening may not see it; verify does, and reindex mends it.
        drop(open().unwrap_or_else(|e| panic!("{what}: {e}")));
        let found = verify(&path, Depth::Full, &dir.0).unwrap();
        if found
            .findings
            .iter()
            .any(|f| f.what.contains("run reindex"))
        {
            let watch = Box::new(|_| ());
            drop(Backup::reindex(&path, "anna", WAIT, SETTINGS, 2, watch).unwrap());
        }
    }
    let backup = open().unwrap_or_else(|e| panic!("{what}: {e}"));
    let found = state(&what, &backup);
    let next = states.len().min(done + 2);
    assert!(
        states[done..next].contains(&found),
        "{what}: {found} of {states:?}"
    );
    assert_eq!(backup.index().marks().unwrap(), [], "{what}");
    drop(backup);
    let whole = |what: &str| {
        for depth in [Depth::Quick, Depth::Full] {
            let proof = verify(&path, depth, &dir.0).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(proof.findings, [], "{what}");
        }
    };
    whole(&what);
    // The log alone says the same, row for row.
    let copy = dir.0.join("copy");
    fs::copy(&path, &copy).unwrap();
    drop(Backup::open(&copy, "anna", WAIT, Create::No, SETTINGS).unwrap());
    assert_eq!(fs::read(&copy).unwrap(), fs::read(&path).unwrap(), "{what}");
    let index = |path: &Path| Index::open_read_only(&index::path_of(path)).unwrap();
    assert_eq!(
        differences(&index(&path), &index(&copy), 5).unwrap(),
        [],
        "{what}"
    );
    // And it goes on.
    let mut backup = open().unwrap_or_else(|e| panic!("{what}: {e}"));
    backup
        .append(&[sub("user.anna.further")], Timestamp(6000))
        .unwrap();
    backup.finish().unwrap();
    whole(&format!("{what}, went on"));
}

/// Indexes that may lie beside a log when the machine comes up again: as committed, of an earlier
/// durable point, none, and torn ones.
fn beside(now: &Files, earlier: &[Files], dice: u64) -> Vec<(&'static str, Files)> {
    let mut all = vec![("committed", now.clone()), ("none", Vec::new())];
    if !earlier.is_empty() {
        all.push(("earlier", earlier[dice as usize % earlier.len()].clone()));
    }
    let dice = dice as usize;
    for (name, which) in [("torn", ""), ("torn log", "-wal")] {
        let mut torn = now.clone();
        let good = |(s, b): &&mut (&str, Vec<u8>)| *s == which && b.len() > 64;
        if let Some((_, bytes)) = torn.iter_mut().find(good) {
            let at = dice * 7919 % bytes.len();
            match dice % 3 {
                0 => bytes.truncate(at),
                1 => bytes[at..].fill(0),
                _ => bytes[..64].fill(0x5a),
            }
            all.push((name, torn));
        }
    }
    all
}

/// [`check`] with all of them, or with one.
fn check_all(
    what: &str,
    states: &[String],
    done: usize,
    log: &[u8],
    now: &Files,
    earlier: &[Files],
    dice: u64,
) {
    let all = beside(now, earlier, dice);
    let n = all.len();
    for (i, (name, files)) in all.iter().enumerate() {
        if long() || i == dice as usize % n {
            check(&format!("{what}, index {name}"), states, done, log, files);
        }
    }
}

#[test]
fn a_session_frozen_at_every_operation_comes_back() {
    let (states, whole) = states();
    let last = whole.operations();
    assert!(last > 40, "{last}");
    let mut seen = HashSet::new();
    for at in 1..=last + 1 {
        let file = FaultFile::new();
        file.plan(at, Fault::Freeze);
        let mut run = Run::new(file.clone());
        // Healing is for the others: what is frozen stays so.
        let mut ends = |_: &Backup| ();
        let complete = frozen(&mut run, &mut ends);
        assert_eq!(complete, at > last, "{at} of {last}");
        let (now, done) = match &run.at_failure {
            Some((files, _, _, done)) => (files.clone(), *done),
            None => (index_files(&run.dir.data()), run.done),
        };
        let seeds = if long() { 12 } else { 2 };
        for seed in 0..=seeds {
            let log = match seed {
                0 => file.after_kill(),
                1 => file.after_power_loss(0),
                _ => file.after_power_loss(at * 1000 + seed),
            };
            // An index may be older than the log, which was synced first; never newer.
            if seen.insert((log.clone(), at * 16 + seed)) {
                let what = format!("frozen at {at} of {last}, seed {seed}");
                check_all(&what, &states, done, &log, &now, &run.indexes, at + seed);
            }
        }
    }
}

/// Goes until it freezes.
fn frozen(run: &mut Run, each: &mut dyn FnMut(&Backup)) -> bool {
    let mut open: Option<Backup> = None;
    while run.done < STEPS {
        let opened = match open.take() {
            Some(backup) => Ok(backup),
            None => run.open(),
        };
        let now = Timestamp(5000 - 10 * i64::from(run.done == 7));
        let done = opened.and_then(|mut backup| {
            let done = step(&mut backup, run.done, now);
            if done.is_err() {
                run.failed();
            }
            done.map(|()| backup)
        });
        let Ok(backup) = done else {
            run.failed();
            return false;
        };
        run.done += 1;
        run.indexes.push(index_files(&run.dir.data()));
        each(&backup);
        if ENDS.contains(&run.done) {
            if backup.finish().is_err() {
                run.failed();
                return false;
            }
        } else {
            open = Some(backup);
        }
    }
    drop(open);
    true
}

#[test]
fn a_fault_at_every_operation_costs_a_refusal_and_nothing_else() {
    let (states, whole) = states();
    let last = whole.operations();
    for fault in [Fault::Eio, Fault::NoSpace, Fault::SyncLies] {
        for at in 1..=last {
            let what = format!("{fault:?} at {at} of {last}");
            let file = FaultFile::new();
            file.plan(at, fault);
            let mut run = Run::new(file.clone());
            assert!(run.go(&mut |_| ()), "{what}: refused for good");
            if let Some((files, kill, loss, done)) = run.at_failure.clone() {
                let earlier = &run.indexes[..done];
                check_all(
                    &format!("{what}, killed then"),
                    &states,
                    done,
                    &kill,
                    &files,
                    earlier,
                    at,
                );
                let what = format!("{what}, power lost then");
                check_all(&what, &states, done, &loss, &files, earlier, at + 1);
            }
            let now = index_files(&run.dir.data());
            let end = file.after_kill();
            check(&format!("{what}, in the end"), &states, STEPS, &end, &now);
            // Its power is lost in the end, too: acknowledged is what a sync returned for.
            let end = file.after_power_loss(at);
            check(
                &format!("{what}, power lost in the end"),
                &states,
                STEPS,
                &end,
                &now,
            );
        }
    }
}

/// Logs and indexes as crashes leave them, in which opening has something to do.
fn to_recover(states: &[String], last: u64) -> Vec<(String, usize, Vec<u8>, Files)> {
    let mut all = Vec::new();
    let each = if long() { 1 } else { 5 };
    for at in (1..=last).step_by(each) {
        let file = FaultFile::new();
        file.plan(at, Fault::Freeze);
        let mut run = Run::new(file.clone());
        frozen(&mut run, &mut |_| ());
        let Some((files, kill, _, done)) = run.at_failure.clone() else {
            continue;
        };
        let mut torn = kill.clone();
        torn.extend(noise(at, 500));
        let what = format!("frozen at {at}");
        let older = run.indexes.get(done / 2).cloned().unwrap_or_default();
        all.push((format!("{what}, index older"), done, kill.clone(), older));
        all.push((format!("{what}, no index"), done, kill, Vec::new()));
        // Noise alone is no log.
        if torn.len() > 500 {
            all.push((format!("{what}, noise behind"), done, torn, files));
        }
    }
    assert!(states.len() > 3 && all.len() > 10);
    all
}

#[test]
fn recovery_that_fails_at_every_operation_is_done_by_the_next() {
    let (states, whole) = states();
    for (what, done, log, files) in to_recover(&states, whole.operations()) {
        let recover = |file: &FaultFile| {
            let run = Run::new(file.clone());
            lay_index(&run.dir.data(), &files);
            let opened = run.open().map(drop);
            (opened, index_files(&run.dir.data()))
        };
        for fault in [Fault::Eio, Fault::NoSpace, Fault::SyncLies, Fault::Freeze] {
            for at in 1.. {
                let file = FaultFile::with(&log);
                file.plan(at, fault);
                let (opened, after) = recover(&file);
                if file.operations() < at {
                    assert!(opened.is_ok(), "{what}");
                    break;
                }
                let what = format!("{what}, recovery {fault:?} at {at}");
                check(&what, &states, done, &file.after_kill(), &after);
                let lost = file.after_power_loss(at * 3 + 1);
                check(&format!("{what}, power lost"), &states, done, &lost, &after);
            }
        }
        // A read that fails proves nothing: nothing is cut for it.
        let file = FaultFile::with(&log);
        assert!(recover(&file).0.is_ok(), "{what}");
        let reads = file.reads();
        let each = if long() { 1 } else { 1 + reads as usize / 8 };
        for at in (1..=reads).step_by(each) {
            let file = FaultFile::with(&log);
            file.plan_read(at);
            let (_, after) = recover(&file);
            let what = format!("{what}, read {at} of {reads} fails");
            check(&what, &states, done, &file.after_kill(), &after);
        }
    }
}

#[test]
fn a_rebuild_that_stops_anywhere_leaves_an_index_or_none() {
    let (states, whole) = states();
    let log = whole.after_kill();
    let dir = Dir::new();
    let path = dir.data();
    let place = index::path_of(&path);
    let new = PathBuf::from(format!("{}.new", place.display()));
    fs::write(&path, &log).unwrap();
    drop(Backup::open(&path, "anna", WAIT, Create::No, SETTINGS).unwrap());
    let sealed = fs::read(&path).unwrap();
    let good = index_files(&path);
    let bytes = &good[0].1;
    // Beside the old one, whole or in part; the old one gone; the new one in its place.
    let half = &bytes[..bytes.len() / 2];
    for (old, beside) in [
        (Some(bytes), Some(&bytes[..0])),
        (Some(bytes), Some(half)),
        (Some(bytes), Some(&bytes[..])),
        (None, Some(half)),
        (None, Some(&bytes[..])),
        (None, None),
    ] {
        let files: Files = old.iter().map(|b| ("", b.to_vec())).collect();
        check("rebuild", &states, STEPS, &sealed, &files);
        fs::write(&path, &sealed).unwrap();
        lay_index(&path, &files);
        if let Some(beside) = beside {
            fs::write(&new, beside).unwrap();
            fs::write(format!("{}-journal", new.display()), noise(3, 900)).unwrap();
        }
        let watch = Box::new(|_| ());
        let backup = Backup::reindex(&path, "anna", WAIT, SETTINGS, 2, watch).unwrap();
        assert_eq!(state("rebuilt", &backup), states[STEPS]);
        drop(backup);
        assert!(!new.exists());
        let names = fs::read_dir(&dir.0).unwrap();
        let names = names.map(|e| e.unwrap().file_name().into_string().unwrap());
        let left: Vec<String> = names.filter(|n| n.contains(".new")).collect();
        assert_eq!(left, [""; 0]);
    }
}
