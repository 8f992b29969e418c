//! Sequences that once went wrong, or nearly: each shows one way to lose, leak or break a log.

use super::store::{Dir, check, contents, deliver, mailbox, send, sub};
use cyr_backup::cyrus::dlist::{Limits, Parser};
use cyr_backup::cyrus::guid::Guid;
use cyr_backup::store::backup::MailboxResult;
use cyr_backup::store::index;
use cyr_backup::util::time::Timestamp;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

fn pipe(command: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let out = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(out.status.success());
    out.stdout
}

/// A member as any other program makes it.
fn member(lines: &[u8]) -> Vec<u8> {
    pipe(
        &["gzip", "-nc"],
        &[b"# cyrus backup: chunk start\r\n", lines].concat(),
    )
}

fn append(path: &Path, bytes: &[u8]) {
    let mut file = fs::File::options()
        .append(true)
        .create(true)
        .open(path)
        .unwrap();
    file.write_all(bytes).unwrap();
}

fn text(path: &Path) -> Vec<u8> {
    pipe(&["gzip", "-dc"], &fs::read(path).unwrap())
}

fn has(text: &[u8], what: &str) -> bool {
    text.windows(what.len()).any(|w| w == what.as_bytes())
}

fn rebuilt_equals_live(dir: &Dir) {
    let before = contents(&dir.data());
    index::remove(&index::path_of(&dir.data())).unwrap();
    drop(dir.open());
    assert_eq!(before, contents(&dir.data()));
}

fn kept_copies(dir: &Dir) -> usize {
    fs::read_dir(&dir.0)
        .unwrap()
        .filter(|e| {
            let name = e.as_ref().unwrap().file_name();
            name.to_string_lossy().contains(".damaged.")
        })
        .count()
}

#[test]
fn a_kill_while_bodies_are_moved_away_leaves_none_of_them() {
    let dir = Dir::new();
    let mut all = Vec::new();
    let mut backup = dir.open();
    deliver(&dir, &mut backup, &mut all, 2, 1000);
    let mine = send(&mut backup, b"mine", 1001);
    send(&mut backup, b"the other's", 1001);
    backup.messages_end().unwrap();
    // It would put UID 1 into another message's place, had anybody agreed to it.
    let spool = mailbox(&dir, &[(1, mine, 4)], &[(1, mine, 4)]);
    let done = backup.mailbox(&[], &spool, false, Timestamp(1001)).unwrap();
    assert!(matches!(done, MailboxResult::Unreferred));
    let killed = Dir::new();
    backup
        .evict(&mut |_, _, _, read| {
            for suffix in ["", ".index", ".index-wal"] {
                let name = format!("anna_abcdef{suffix}");
                let _ = fs::copy(dir.0.join(&name), killed.0.join(&name));
            }
            read(&mut |_| Ok(()))
        })
        .unwrap();
    drop(killed.open());
    assert!(!has(&text(&killed.data()), "the other's"));
    check(&killed, &all);
    rebuilt_equals_live(&killed);
}

#[test]
fn only_a_mailbox_line_settles_bodies() {
    let stranger = b"the other's";
    let guid = Guid::of(stranger);
    for line in [
        "1000 APPLY UNMAILBOX user.anna.x\r\n",
        "1000 APPLY RESERVE %(PARTITION default MBOXNAME () GUID () X-CYRBACKUP %(CLOCK %(TIME 1000000)))\r\n",
    ] {
        for with_index in [true, false] {
            let dir = Dir::new();
            let mut all = Vec::new();
            let mut backup = dir.open();
            deliver(&dir, &mut backup, &mut all, 2, 1000);
            backup.finish().unwrap();
            let len = fs::metadata(dir.data()).unwrap().len();
            let message = format!("1000 APPLY MESSAGE (%{{default {guid} 11}}\r\nthe other's)\r\n");
            // As a unit leaves it that was killed behind a full chunk.
            append(&dir.data(), &member(message.as_bytes()));
            let next = member(line.as_bytes());
            append(&dir.data(), &next[..next.len() - 4]);
            if !with_index {
                index::remove(&index::path_of(&dir.data())).unwrap();
            }
            drop(dir.open());
            assert_eq!(fs::metadata(dir.data()).unwrap().len(), len, "{line}");
            check(&dir, &all);
        }
    }
}

#[test]
fn the_old_tools_log_is_indexed_once() {
    let dir = Dir::new();
    append(
        &dir.data(),
        &member(b"1000 APPLY SUB %(USERID anna MBOXNAME user.anna.x)\r\n"),
    );
    let mut backup = dir.open();
    backup
        .append(&[sub("user.anna.y")], Timestamp(1001))
        .unwrap();
    backup.finish().unwrap();
    let index = index::path_of(&dir.data());
    let before = fs::metadata(&index).unwrap().ino();
    let backup = dir.open();
    assert_eq!(backup.index().subscriptions(false).unwrap().len(), 2);
    drop(backup);
    assert_eq!(fs::metadata(&index).unwrap().ino(), before);
    rebuilt_equals_live(&dir);
}

#[test]
fn a_key_that_cannot_stand_bare_is_refused() {
    for text in ["%(\"a)\" x)", "%(\"\" x)", "%(\"a(b\" x)", "%(\"a{3}\" x)"] {
        let line = format!("{text}\r\n");
        let mut parser = Parser::new(line.as_bytes(), Limits::default());
        assert!(parser.value().is_err(), "{text}");
    }
}

#[test]
fn any_partition_reads_back() {
    let dir = Dir::new();
    let mut backup = dir.open();
    let mut live = Vec::new();
    for (n, partition) in [&b"a}b"[..], b"a b", b"a\"b}", b"\xff}", b""]
        .iter()
        .enumerate()
    {
        let body = format!("body {n}").into_bytes();
        let guid = Guid::of(&body);
        backup
            .body_begin(partition, guid, body.len() as u64, Timestamp(1000))
            .unwrap();
        backup.body_data(&body).unwrap();
        backup.body_end().unwrap();
        live.push((n as u32 + 1, guid, body.len()));
    }
    backup.messages_end().unwrap();
    let spool = mailbox(&dir, &live, &live);
    backup.mailbox(&[], &spool, false, Timestamp(1000)).unwrap();
    backup.commit().unwrap();
    backup.finish().unwrap();
    rebuilt_equals_live(&dir);
}

#[test]
fn a_slow_upload_under_a_clock_that_went_back_stays_readable() {
    let dir = Dir::new();
    let mut backup = dir.open();
    backup
        .append(&[sub("user.anna.x")], Timestamp(9000))
        .unwrap();
    let mut live = Vec::new();
    for (n, time) in [1000, 1005, 1010, 9100].into_iter().enumerate() {
        let body = format!("body {n}");
        let guid = send(&mut backup, body.as_bytes(), time);
        live.push((n as u32 + 1, guid, body.len()));
    }
    let spool = mailbox(&dir, &live, &live);
    let done = backup.mailbox(&[], &spool, false, Timestamp(1011)).unwrap();
    assert!(matches!(done, MailboxResult::Entered(_)));
    backup.commit().unwrap();
    // A tail of the same chunk that the index has not seen keeps its true time.
    backup
        .append(&[sub("user.anna.y")], Timestamp(1012))
        .unwrap();
    backup.finish().unwrap();
    rebuilt_equals_live(&dir);
}

#[test]
fn members_without_a_line_are_no_damage() {
    let dir = Dir::new();
    let mut all = Vec::new();
    let mut backup = dir.open();
    deliver(&dir, &mut backup, &mut all, 2, 1000);
    backup.finish().unwrap();
    append(&dir.data(), &member(b""));
    append(&dir.data(), &pipe(&["gzip", "-nc"], b""));
    let len = fs::metadata(dir.data()).unwrap().len();
    index::remove(&index::path_of(&dir.data())).unwrap();
    drop(dir.open());
    assert_eq!(fs::metadata(dir.data()).unwrap().len(), len);
    assert_eq!(kept_copies(&dir), 0);
    check(&dir, &all);
}

#[test]
fn what_was_acknowledged_is_kept_when_it_must_be_cut() {
    let dir = Dir::new();
    let mut all = Vec::new();
    let mut backup = dir.open();
    deliver(&dir, &mut backup, &mut all, 3, 1000);
    backup.finish().unwrap();
    let first = fs::metadata(dir.data()).unwrap().len() as usize;
    let mut backup = dir.open();
    deliver(&dir, &mut backup, &mut all, 3, 1001);
    deliver(&dir, &mut backup, &mut all, 3, 1002);
    drop(backup);
    let whole = fs::read(dir.data()).unwrap();
    let index = fs::read(index::path_of(&dir.data())).unwrap();
    let mut kept = 0;
    for at in (first + 20..whole.len() - 8).step_by(13) {
        let mut bytes = whole.clone();
        bytes[at..at + 8].fill(0xff);
        fs::write(dir.data(), &bytes).unwrap();
        index::remove(&index::path_of(&dir.data())).unwrap();
        fs::write(index::path_of(&dir.data()), &index).unwrap();
        drop(dir.open());
        let backup = dir.open();
        assert!(backup.index().body(all[0].1).unwrap().is_some());
        if backup.index().totals().unwrap().records < 9 {
            kept += 1;
            // Cut back to an older whole state, or marked.
            let records = backup.index().totals().unwrap().records;
            let marks = backup.index().marks().unwrap().len();
            assert!(marks == 1 || records % 3 == 0, "byte {at}");
            let copies = fs::read_dir(&dir.0).unwrap().filter_map(|e| {
                let path = e.unwrap().path();
                let name = path.to_string_lossy().into_owned();
                name.contains(".damaged.").then_some(path)
            });
            let copies: Vec<_> = copies.collect();
            assert_eq!(copies.len(), 1, "byte {at}");
            assert!(fs::metadata(&copies[0]).unwrap().len() > first as u64);
            fs::remove_file(&copies[0]).unwrap();
        }
        assert_eq!(kept_copies(&dir), 0);
    }
    assert!(kept > 0);
}

#[test]
fn a_body_the_sender_never_had_is_asked_for_once() {
    let dir = Dir::new();
    let mut backup = dir.open();
    let lost = Guid::of(b"lost");
    let live = [(1, lost, 4)];
    for missing in [1, 0] {
        let spool = mailbox(&dir, &live, &live);
        let done = backup.mailbox(&[], &spool, false, Timestamp(1000)).unwrap();
        let MailboxResult::Entered(outcome) = done else {
            panic!("nothing is pending");
        };
        assert_eq!(outcome.missing, missing);
        backup.commit().unwrap();
    }
}

#[test]
fn half_a_body_is_never_followed_by_a_line() {
    let dir = Dir::new();
    let mut all = Vec::new();
    let mut backup = dir.open();
    deliver(&dir, &mut backup, &mut all, 2, 1000);
    let guid = Guid::of(b"whole body");
    backup
        .body_begin(b"default", guid, 10, Timestamp(1001))
        .unwrap();
    backup.body_data(b"whole").unwrap();
    let spool = mailbox(&dir, &all, &all);
    assert!(backup.mailbox(&[], &spool, false, Timestamp(1001)).is_err());
    deliver(&dir, &mut backup, &mut all, 2, 1002);
    backup.finish().unwrap();
    check(&dir, &all);
    rebuilt_equals_live(&dir);
}
