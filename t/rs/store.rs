//! One backup on disk: what is acknowledged stays, what is torn is cut, what is lost comes back.

use cyr_backup::cyrus::dlist::{Limits, Parser, Value};
use cyr_backup::cyrus::guid::Guid;
use cyr_backup::cyrus::sync::Record;
use cyr_backup::error::Kind;
use cyr_backup::store::backup::{Backup, MailboxResult, Settings};
use cyr_backup::store::file::{Fault, FaultFile};
use cyr_backup::store::index::{self, Index};
use cyr_backup::store::line::Line;
use cyr_backup::store::lock::{Create, Wait};
use cyr_backup::store::reader::{Reader, Stale, ask_still, readable};
use cyr_backup::store::spool::Spool;
use cyr_backup::util::time::Timestamp;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub const SETTINGS: Settings = Settings {
    level: 1,
    chunk_max: 1 << 20,
};

static NUMBER: AtomicU32 = AtomicU32::new(0);

pub(super) struct Dir(pub(super) PathBuf);

impl Dir {
    pub(super) fn new() -> Dir {
        let n = NUMBER.fetch_add(1, Ordering::Relaxed);
        // fsync is not the subject.
        let shm = PathBuf::from("/dev/shm");
        let base = if shm.is_dir() {
            shm
        } else {
            std::env::temp_dir()
        };
        let path = base.join(format!("cyrbackup-store-{}-{n}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Dir(path)
    }

    pub(super) fn data(&self) -> PathBuf {
        self.0.join("anna_abcdef")
    }

    pub(super) fn open(&self) -> Backup {
        Backup::open(
            &self.data(),
            "anna",
            // A child of another test may hold a copy of the descriptor for a moment.
            Wait::For(std::time::Duration::from_secs(10)),
            Create::IfMissing,
            SETTINGS,
        )
        .unwrap()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) fn body(n: u32) -> Vec<u8> {
    format!(
        "From: a@b\r\nSubject: message {n}\r\n\r\n{}\r\n",
        "text ".repeat(n as usize % 50)
    )
    .into_bytes()
}

pub(super) fn send(backup: &mut Backup, body: &[u8], time: i64) -> Guid {
    let guid = Guid::of(body);
    backup
        .body_begin(b"default", guid, body.len() as u64, Timestamp(time))
        .unwrap();
    backup.body_data(body).unwrap();
    backup.body_end().unwrap();
    guid
}

pub(super) fn record(uid: u32, guid: Guid, size: usize) -> String {
    format!(
        "%(UID {uid} MODSEQ {uid} LAST_UPDATED 1 FLAGS () INTERNALDATE 2 SIZE {size} GUID {guid})"
    )
}

pub(super) fn mailbox(
    dir: &Dir,
    records: &[(u32, Guid, usize)],
    live: &[(u32, Guid, usize)],
) -> Spool {
    let mut crc = 0;
    for (uid, guid, size) in live {
        let text = format!("{}\r\n", record(*uid, *guid, *size));
        let value = Parser::new(text.as_bytes(), Limits::default())
            .value()
            .unwrap();
        crc ^= Record::from_value(value).unwrap().sums().record;
    }
    let last = live.iter().map(|r| r.0).max().unwrap_or(0);
    let list: Vec<String> = records.iter().map(|(u, g, s)| record(*u, *g, *s)).collect();
    let mut spool = Spool::new(&dir.0, 1 << 30);
    spool
        .append(
            format!(
                "%(UNIQUEID u1 MBOXNAME user.anna SYNC_CRC {crc} LAST_UID {last} \
                 HIGHESTMODSEQ {last} RECENTUID 0 RECENTTIME 0 LAST_APPENDDATE 0 \
                 POP3_LAST_LOGIN 0 UIDVALIDITY 7 PARTITION default ACL \"\" OPTIONS P \
                 RECORD ({}))",
                list.join(" ")
            )
            .as_bytes(),
        )
        .unwrap();
    spool
}

pub(super) fn deliver(
    dir: &Dir,
    backup: &mut Backup,
    all: &mut Vec<(u32, Guid, usize)>,
    n: u32,
    time: i64,
) {
    let from = all.len();
    for _ in 0..n {
        let uid = all.len() as u32 + 1;
        let body = body(uid);
        let guid = send(backup, &body, time);
        all.push((uid, guid, body.len()));
    }
    backup.messages_end().unwrap();
    let spool = mailbox(dir, &all[from..], all);
    let MailboxResult::Entered(outcome) =
        backup.mailbox(&[], &spool, false, Timestamp(time)).unwrap()
    else {
        panic!("bodies were not referred to")
    };
    assert!(outcome.agrees && outcome.missing == 0);
    backup.commit().unwrap();
}

pub(super) fn sub(name: &str) -> Line {
    Line::new(
        "SUB",
        &Value::kv([
            ("USERID", Value::text("anna")),
            ("MBOXNAME", Value::text(name)),
        ]),
    )
}

/// Everything the index says, as text, but what only describes the file.
pub(super) fn contents(path: &Path) -> String {
    let out = Command::new("sqlite3")
        .arg("-readonly")
        .arg(index::path_of(path))
        .arg(".dump")
        .output();
    match out {
        Ok(out) if out.status.success() => String::from_utf8(out.stdout).unwrap(),
        _ => String::new(),
    }
}

pub(super) fn check(dir: &Dir, all: &[(u32, Guid, usize)]) {
    let reader = Reader::open(&dir.data(), Stale::Refuse).unwrap();
    let row = reader.index().mailbox("u1").unwrap().unwrap();
    let mut found = Vec::new();
    reader
        .index()
        .records(row.id, Some(row.epoch), false, &mut |r| {
            found.push((r.record.uid, r.record.guid, r.record.size as usize));
            Ok(())
        })
        .unwrap();
    assert_eq!(found, all);
    let good = readable(reader.index(), reader.file(), all.iter().map(|r| r.1)).unwrap();
    assert_eq!(
        good.len(),
        all.iter()
            .map(|r| r.1)
            .collect::<std::collections::HashSet<_>>()
            .len()
    );
    for (uid, guid, _) in all {
        let mut bytes = Vec::new();
        reader
            .body(*guid, &mut |part| {
                bytes.extend_from_slice(part);
                Ok(())
            })
            .unwrap();
        assert_eq!(bytes, body(*uid));
    }
    // Plain gzip, whatever happened.
    let gzip = Command::new("gzip")
        .arg("-t")
        .stdin(fs::File::open(dir.data()).unwrap())
        .status();
    assert!(gzip.unwrap().success());
}

#[test]
fn what_was_committed_is_there_sealed_or_not() {
    let dir = Dir::new();
    let mut all = Vec::new();
    for round in 0..6 {
        let mut backup = dir.open();
        deliver(&dir, &mut backup, &mut all, 5, 1000 + round);
        backup
            .append(&[sub(&format!("user.anna.{round}"))], Timestamp(1000))
            .unwrap();
        if round % 2 == 0 {
            backup.finish().unwrap();
        } else {
            // As after a kill: the member stays open, bodies without owner behind it.
            send(&mut backup, b"nobody's", 2000);
            drop(backup);
        }
        drop(dir.open());
        check(&dir, &all);
    }
    let reader = Reader::open(&dir.data(), Stale::Refuse).unwrap();
    assert_eq!(reader.index().subscriptions(false).unwrap().len(), 6);
    let mut plain = Vec::new();
    std::io::Read::read_to_end(
        &mut Command::new("zcat")
            .stdin(fs::File::open(dir.data()).unwrap())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap()
            .stdout
            .unwrap(),
        &mut plain,
    )
    .unwrap();
    assert!(!plain.windows(8).any(|w| w == b"nobody's"));
}

#[test]
fn a_rebuilt_index_equals_the_live_one() {
    let dir = Dir::new();
    let mut all = Vec::new();
    for round in 0..4 {
        let mut backup = dir.open();
        deliver(&dir, &mut backup, &mut all, 30, 1000 + round);
        let quota = Value::kv([
            ("ROOT", Value::text("user.anna")),
            ("LIMIT", Value::num(round)),
        ]);
        let script = Value::kv([
            ("USERID", Value::text("anna")),
            ("FILENAME", Value::text("a.script")),
            ("LAST_UPDATE", Value::num(round)),
            ("CONTENT", Value::text(format!("keep;\r\n#{round}\r\n"))),
        ]);
        backup
            .append(
                &[
                    Line::private("QUOTA", quota),
                    Line::new("SIEVE", &script),
                    sub("user.x"),
                ],
                Timestamp(1001 + round),
            )
            .unwrap();
        backup.finish().unwrap();
    }
    let before = contents(&dir.data());
    index::remove(&index::path_of(&dir.data())).unwrap();
    drop(dir.open());
    let after = contents(&dir.data());
    assert_eq!(before, after);
    check(&dir, &all);
}

#[test]
fn a_log_cut_anywhere_opens_and_keeps_what_lies_before() {
    let dir = Dir::new();
    let mut all = Vec::new();
    let mut backup = dir.open();
    deliver(&dir, &mut backup, &mut all, 3, 1000);
    backup.finish().unwrap();
    let first = fs::metadata(dir.data()).unwrap().len();
    let mut backup = dir.open();
    deliver(&dir, &mut backup, &mut all, 3, 1001);
    drop(backup);
    let whole = fs::read(dir.data()).unwrap();
    for cut in (0..whole.len()).step_by(7) {
        fs::write(dir.data(), &whole[..cut]).unwrap();
        // The index knows more than the log has: it is built anew.
        drop(dir.open());
        let backup = dir.open();
        let known = backup.index().totals().unwrap();
        if cut as u64 >= first {
            assert!(known.records >= 3, "cut at {cut}");
        }
        drop(backup);
        let gzip = Command::new("gzip")
            .arg("-t")
            .stdin(fs::File::open(dir.data()).unwrap())
            .output()
            .unwrap();
        assert!(
            gzip.status.success() || fs::metadata(dir.data()).unwrap().len() == 0,
            "cut at {cut} of {}, first ends at {first}: {}",
            whole.len(),
            String::from_utf8_lossy(&gzip.stderr)
        );
    }
}

#[test]
fn an_abort_leaves_no_trace() {
    let dir = Dir::new();
    let mut all = Vec::new();
    let mut backup = dir.open();
    deliver(&dir, &mut backup, &mut all, 3, 1000);
    let len = fs::metadata(dir.data()).unwrap().len();
    for n in 0..50 {
        send(&mut backup, &vec![n; 100_000], 1001);
    }
    backup.abort();
    assert_eq!(fs::metadata(dir.data()).unwrap().len(), len);
    deliver(&dir, &mut backup, &mut all, 3, 1002);
    backup.finish().unwrap();
    check(&dir, &all);
}

#[test]
fn bodies_nobody_refers_to_are_handed_back() {
    let dir = Dir::new();
    let mut backup = dir.open();
    let mine = send(&mut backup, b"mine", 1000);
    let other = send(&mut backup, b"other", 1000);
    backup.messages_end().unwrap();
    let spool = mailbox(&dir, &[(1, mine, 4)], &[(1, mine, 4)]);
    let result = backup.mailbox(&[], &spool, false, Timestamp(1000)).unwrap();
    assert!(matches!(result, MailboxResult::Unreferred));
    let mut evicted = Vec::new();
    backup
        .evict(&mut |guid, partition, size, read| {
            let mut bytes = Vec::new();
            read(&mut |part| {
                bytes.extend_from_slice(part);
                Ok(())
            })?;
            assert_eq!(partition, "default");
            assert_eq!(bytes.len() as u64, size);
            evicted.push((guid, bytes));
            Ok(())
        })
        .unwrap();
    assert_eq!(
        evicted,
        [(mine, b"mine".to_vec()), (other, b"other".to_vec())]
    );
    assert_eq!(fs::metadata(dir.data()).unwrap().len(), 0);
}

#[test]
fn a_lost_middle_marks_what_it_held() {
    let dir = Dir::new();
    let mut all = Vec::new();
    let mut ends = Vec::new();
    for round in 0..3 {
        let mut backup = dir.open();
        deliver(&dir, &mut backup, &mut all, 3, 1000 + round);
        backup.finish().unwrap();
        ends.push(fs::metadata(dir.data()).unwrap().len() as usize);
    }
    let mut bytes = fs::read(dir.data()).unwrap();
    let middle = (ends[0] + ends[1]) / 2;
    bytes[middle..middle + 8].fill(0xff);
    fs::write(dir.data(), &bytes).unwrap();
    index::remove(&index::path_of(&dir.data())).unwrap();
    let backup = dir.open();
    let marks = backup.index().marks().unwrap();
    assert_eq!(marks.len(), 1, "{marks:?}");
    // The last chunk's bodies are there all the same.
    assert!(backup.index().body(all[8].1).unwrap().is_some());
    drop(backup);
    // The mark is in the log, not only in the index.
    index::remove(&index::path_of(&dir.data())).unwrap();
    let backup = dir.open();
    assert_eq!(backup.index().marks().unwrap().len(), 1);
}

#[test]
fn a_foreign_file_is_refused_and_untouched() {
    let dir = Dir::new();
    fs::write(dir.data(), b"this is no log at all, but somebody's file").unwrap();
    let e = Backup::open(&dir.data(), "anna", Wait::No, Create::No, SETTINGS)
        .err()
        .unwrap();
    assert_eq!(e.kind(), Kind::Damaged);
    assert_eq!(
        fs::read(dir.data()).unwrap(),
        b"this is no log at all, but somebody's file"
    );
}

#[test]
fn a_stale_index_of_another_log_is_not_believed() {
    let dir = Dir::new();
    let mut all = Vec::new();
    let mut backup = dir.open();
    deliver(&dir, &mut backup, &mut all, 3, 1000);
    backup.finish().unwrap();
    let other = Dir::new();
    let mut none = Vec::new();
    let mut backup = other.open();
    deliver(&other, &mut backup, &mut none, 9, 1000);
    backup.finish().unwrap();
    fs::copy(index::path_of(&other.data()), index::path_of(&dir.data())).unwrap();
    drop(dir.open());
    check(&dir, &all);
}

#[test]
fn a_clock_that_goes_back_is_told_in_the_log() {
    let dir = Dir::new();
    let mut backup = dir.open();
    backup.append(&[sub("one")], Timestamp(5000)).unwrap();
    backup.append(&[sub("two")], Timestamp(1000)).unwrap();
    backup.append(&[sub("three")], Timestamp(1003)).unwrap();
    backup.finish().unwrap();
    let mut backup = dir.open();
    backup.append(&[sub("four")], Timestamp(2000)).unwrap();
    backup.append(&[sub("five")], Timestamp(6000)).unwrap();
    backup.finish().unwrap();
    let times = |backup: &Backup| -> Vec<(String, i64)> {
        let rows = backup.index().subscriptions(false).unwrap();
        rows.into_iter().map(|s| (s.mboxname, s.time)).collect()
    };
    let backup = dir.open();
    let live = times(&backup);
    drop(backup);
    let want = [
        ("five", 6000),
        ("four", 2000),
        ("one", 5000),
        ("three", 1003),
        ("two", 1000),
    ];
    assert_eq!(live, want.map(|(n, t)| (n.to_string(), t)));
    let before = contents(&dir.data());
    index::remove(&index::path_of(&dir.data())).unwrap();
    let backup = dir.open();
    assert_eq!(times(&backup), live);
    drop(backup);
    assert_eq!(contents(&dir.data()), before);
    let zcat = Command::new("zcat")
        .stdin(fs::File::open(dir.data()).unwrap())
        .output()
        .unwrap();
    let text = String::from_utf8(zcat.stdout).unwrap();
    let stamps: Vec<i64> = text
        .lines()
        .filter_map(|l| l.split(' ').next()?.parse().ok())
        .collect();
    assert!(stamps.is_sorted(), "{stamps:?}");
}

#[test]
fn many_members_are_listed_in_manifests() {
    use sha2::{Digest, Sha256};
    let dir = Dir::new();
    for n in 0..40 {
        let mut backup = dir.open();
        backup
            .append(&[sub(&format!("m{n}"))], Timestamp(1000 + n))
            .unwrap();
        backup.finish().unwrap();
    }
    let bytes = fs::read(dir.data()).unwrap();
    let zcat = Command::new("zcat")
        .stdin(fs::File::open(dir.data()).unwrap())
        .output()
        .unwrap();
    let text = String::from_utf8(zcat.stdout).unwrap();
    let mut at = 0;
    let mut manifests = 0;
    for line in text.lines().filter(|l| l.contains("MANIFEST")) {
        let from: usize = line
            .split("FROM ")
            .nth(1)
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!(from, at);
        let list = line
            .split("MEMBERS (")
            .nth(1)
            .unwrap()
            .split(')')
            .next()
            .unwrap();
        let words: Vec<&str> = list.split(' ').collect();
        for pair in words.chunks(2) {
            let len: usize = pair[0].parse().unwrap();
            let hash = Sha256::digest(&bytes[at..at + len]);
            assert_eq!(pair[1], cyr_backup::util::hex::encode(&hash));
            at += len;
        }
        manifests += 1;
    }
    assert_eq!(manifests, 2);
    let before = contents(&dir.data());
    index::remove(&index::path_of(&dir.data())).unwrap();
    drop(dir.open());
    assert_eq!(contents(&dir.data()), before);
}

#[test]
fn verify_is_content_with_what_is_whole_and_names_what_is_not() {
    use cyr_backup::store::verify::{Depth, verify};
    let dir = Dir::new();
    let mut all = Vec::new();
    for round in 0..3 {
        let mut backup = dir.open();
        deliver(&dir, &mut backup, &mut all, 5, 1000 + round);
        backup
            .append(&[sub(&format!("user.anna.{round}"))], Timestamp(1001))
            .unwrap();
        if round < 2 {
            backup.finish().unwrap();
        } else {
            // A writer at work.
            for depth in [Depth::Quick, Depth::Full] {
                let proof = verify(&dir.data(), depth, &dir.0).unwrap();
                assert_eq!(proof.findings, []);
                assert_eq!(proof.messages, 15);
            }
        }
    }
    drop(dir.open());
    let whole = fs::read(dir.data()).unwrap();
    for depth in [Depth::Quick, Depth::Full] {
        assert_eq!(verify(&dir.data(), depth, &dir.0).unwrap().findings, []);
    }
    for at in (0..whole.len()).step_by(11) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(dir.data(), &bytes).unwrap();
        for depth in [Depth::Quick, Depth::Full] {
            match verify(&dir.data(), depth, &dir.0) {
                Ok(proof) => assert!(!proof.findings.is_empty(), "byte {at} {depth:?}"),
                Err(e) => assert_eq!(e.kind(), Kind::NeedsReindex, "byte {at}: {e}"),
            }
        }
    }
    fs::write(dir.data(), &whole).unwrap();
    // No second index is left behind.
    for entry in fs::read_dir(&dir.0).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(!name.starts_with("verify"), "{name}");
    }
}

#[test]
fn a_scratch_index_has_no_name() {
    let dir = Dir::new();
    let index = Index::create_nameless(&dir.0.join("scratch.index")).unwrap();
    assert!(names(&dir).is_empty());
    // More than the cache holds, so that it is written and played back.
    let value = |n: i64| format!("{n}").repeat(2000);
    let all = |index: &Index| {
        (0..3000).all(|n| index.meta_text(&n.to_string()).unwrap() == Some(value(n)))
    };
    index.begin().unwrap();
    for n in 0..3000 {
        index.set_meta(&n.to_string(), value(n)).unwrap();
    }
    index.savepoint("mark").unwrap();
    for n in 0..3000 {
        index.set_meta(&n.to_string(), value(n + 1)).unwrap();
    }
    assert!(!all(&index));
    index.rollback_to("mark").unwrap();
    assert!(all(&index));
    assert!(names(&dir).is_empty());
    index.rollback();
    assert_eq!(index.meta_text("1").unwrap(), None);
    assert_eq!(index.meta_number("schema").unwrap(), Some(2));
}

#[test]
fn a_rebuild_that_fails_leaves_nothing_beside() {
    let dir = Dir::new();
    let mut backup = dir.open();
    deliver(&dir, &mut backup, &mut Vec::new(), 5, 1000);
    backup.finish().unwrap();
    let log = fs::read(dir.data()).unwrap();
    let before = names(&dir);
    index::remove(&index::path_of(&dir.data())).unwrap();
    let file = FaultFile::with(&log);
    // The one sync of a rebuild that finds all well.
    file.plan(1, Fault::Eio);
    let wait = Wait::For(std::time::Duration::from_secs(10));
    let open = || Backup::open_on(Arc::new(file.clone()), &dir.data(), "anna", wait, SETTINGS);
    let e = open().err().unwrap();
    assert_eq!(e.kind(), Kind::Io, "{e}");
    assert_eq!(names(&dir), [before[0].clone()]);
    file.heal();
    drop(open().unwrap());
    assert_eq!(names(&dir), before);
}

#[test]
fn a_new_backup_reads_as_empty_while_its_first_bodies_come() {
    let dir = Dir::new();
    let mut backup = dir.open();
    for n in 0..30 {
        send(&mut backup, &vec![n; 200_000], 1000);
    }
    assert!(fs::metadata(dir.data()).unwrap().len() > 0);
    let reader = Reader::open(&dir.data(), Stale::Repair(SETTINGS)).unwrap();
    assert_eq!(reader.index().mailboxes(true).unwrap().len(), 0);
    // Killed now, nothing of it is left.
    drop(reader);
    drop(backup);
    let backup = dir.open();
    assert_eq!(backup.index().totals().unwrap().messages, 0);
    drop(backup);
    let reader = Reader::open(&dir.data(), Stale::Refuse).unwrap();
    assert_eq!(reader.index().mailboxes(true).unwrap().len(), 0);
}

/// Names in the folder.
fn names(dir: &Dir) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(&dir.0)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_backup_at_rest_is_asked_without_a_trace() {
    let dir = Dir::new();
    let mut all = Vec::new();
    let mut backup = dir.open();
    deliver(&dir, &mut backup, &mut all, 1, 100);
    let ask = || {
        ask_still(&dir.data(), &mut |index, _| {
            Ok(index.mailbox_by_name("user.anna")?.unwrap().last_uid)
        })
        .unwrap()
    };
    let settle = || std::thread::sleep(std::time::Duration::from_millis(120));
    settle();
    assert_eq!(ask(), None, "a writer has what is not in the file yet");
    backup.finish().unwrap();
    settle();
    let before = names(&dir);
    assert_eq!(before, ["anna_abcdef", "anna_abcdef.index"]);
    let first = ask();
    assert!(first.is_some());
    assert_eq!(names(&dir), before);

    // What is written while it is asked spoils the answer, also through a whole session.
    let spoilt = ask_still(&dir.data(), &mut |index, _| {
        let mut backup = dir.open();
        deliver(&dir, &mut backup, &mut all, 2, 200);
        backup.finish().unwrap();
        Ok(index.mailbox_by_name("user.anna")?.unwrap().last_uid)
    });
    assert_eq!(spoilt.unwrap_or(None), None);
    settle();
    assert_eq!(ask(), first.map(|n| n + 2));

    // A tail behind what the index knows is somebody else's business.
    let mut log = fs::OpenOptions::new()
        .append(true)
        .open(dir.data())
        .unwrap();
    std::io::Write::write_all(&mut log, b"tail").unwrap();
    assert_eq!(ask(), None);
}

#[test]
fn a_line_with_a_literal_is_not_on_disk_before_it_is_judged() {
    let dir = Dir::new();
    let mut backup = dir.open();
    let mine = send(&mut backup, b"mine", 1000);
    backup.messages_end().unwrap();
    let spool = mailbox(&dir, &[(1, mine, 4)], &[(1, mine, 4)]);
    let result = backup.mailbox(&[], &spool, true, Timestamp(1000)).unwrap();
    assert!(matches!(result, MailboxResult::Entered(_)));
    // Killed now: what is left is nobody's.
    let left = Dir::new();
    fs::copy(dir.data(), left.data()).unwrap();
    let found = left.open();
    assert_eq!(found.index().mailboxes(true).unwrap().len(), 0);
    assert_eq!(found.index().totals().unwrap().messages, 0);
    backup.commit().unwrap();
    backup.finish().unwrap();
    let backup = dir.open();
    assert_eq!(backup.index().mailboxes(true).unwrap().len(), 1);
    assert_eq!(backup.index().totals().unwrap().messages, 1);
}

#[test]
fn a_log_in_which_nothing_reads_is_kept_beside() {
    let dir = Dir::new();
    let mut all = Vec::new();
    let mut backup = dir.open();
    deliver(&dir, &mut backup, &mut all, 20, 1000);
    backup.finish().unwrap();
    let mut bytes = fs::read(dir.data()).unwrap();
    bytes[12..40].fill(0xff);
    fs::write(dir.data(), &bytes).unwrap();
    index::remove(&index::path_of(&dir.data())).unwrap();
    let backup = dir.open();
    assert_eq!(backup.index().totals().unwrap().messages, 0);
    let copies: Vec<PathBuf> = fs::read_dir(&dir.0)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.to_string_lossy().contains(".damaged."))
        .collect();
    assert_eq!(copies.len(), 1);
    assert_eq!(fs::read(&copies[0]).unwrap(), bytes);
}
