//! What does not read comes back: from the index, from a copy, or it is asked for again.

use super::looking::{ONE, Store};
use super::store::{Dir, SETTINGS, body, deliver, mailbox, record, send};
use cyr_backup::cyrus::dlist::Value;
use cyr_backup::cyrus::guid::Guid;
use cyr_backup::cyrus::mboxname::Namespace;
use cyr_backup::store::backup::Backup;
use cyr_backup::store::heal::{Healed, copies, heal};
use cyr_backup::store::index;
use cyr_backup::store::line::Line;
use cyr_backup::store::lock::{Create, DataLock, Wait};
use cyr_backup::store::reader::{Reader, Stale, readable};
use cyr_backup::store::spool::Spool;
use cyr_backup::util::time::Timestamp;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

const NOW: Timestamp = Timestamp(5000);

type All = Vec<(u32, Guid, usize)>;

/// A backup of `rounds` members with five messages each.
fn filled(rounds: i64) -> (Dir, All) {
    let dir = Dir::new();
    let mut all = Vec::new();
    for round in 0..rounds {
        let mut backup = dir.open();
        deliver(&dir, &mut backup, &mut all, 5, 1000 + round);
        backup.finish().unwrap();
    }
    (dir, all)
}

/// Spoils the middle of a chunk, from 1.
/// Damages a chunk in its middle.
fn spoil(dir: &Dir, chunk: i64) {
    spoil_at(dir, chunk, 2);
}

/// Damages a chunk behind a `part`th of it; bodies come first, then the records.
fn spoil_at(dir: &Dir, chunk: i64, part: u64) {
    let row = {
        let reader = Reader::open(&dir.data(), Stale::Refuse).unwrap();
        reader.index().chunk(chunk).unwrap().unwrap()
    };
    let mut bytes = fs::read(dir.data()).unwrap();
    let middle = (row.offset + row.length.unwrap() / part) as usize;
    bytes[middle..middle + 8]
        .iter_mut()
        .for_each(|b| *b ^= 0x5a);
    fs::write(dir.data(), bytes).unwrap();
}

fn copy_of(dir: &Dir) -> PathBuf {
    let copy = dir.0.join("copy");
    fs::copy(dir.data(), &copy).unwrap();
    copy
}

fn healed(dir: &Dir, copies: &[PathBuf]) -> Healed {
    let mut backup = dir.open();
    let done = heal(&mut backup, copies, &HashSet::new(), &dir.0, 1 << 20, NOW).unwrap();
    backup.finish().unwrap();
    for entry in fs::read_dir(&dir.0).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            !name.starts_with("heal.") && !name.starts_with("verify."),
            "{name}"
        );
    }
    done
}

fn reads(path: &Path, guids: impl IntoIterator<Item = Guid>) -> usize {
    let reader = Reader::open(path, Stale::Refuse).unwrap();
    readable(reader.index(), reader.file(), guids)
        .unwrap()
        .len()
}

fn live(dir: &Dir, uniqueid: &str) -> Vec<u32> {
    let reader = Reader::open(&dir.data(), Stale::Refuse).unwrap();
    let row = reader.index().mailbox(uniqueid).unwrap().unwrap();
    let mut out = Vec::new();
    reader
        .index()
        .records(row.id, Some(row.epoch), false, &mut |r| {
            out.push(r.record.uid);
            Ok(())
        })
        .unwrap();
    out
}

fn reindexed(dir: &Dir) {
    index::remove(&index::path_of(&dir.data())).unwrap();
    dir.open().finish().unwrap();
}

fn marked(dir: &Dir) -> bool {
    let reader = Reader::open(&dir.data(), Stale::Refuse).unwrap();
    reader.index().any_resync().unwrap()
}

/// A server that expunges at once states records whose bodies it has no longer.
#[test]
fn what_was_expunged_before_it_was_sent_is_not_lost() {
    let (dir, all) = filled(1);
    let mut backup = dir.open();
    let never = (all.len() as u32 + 1, Guid::of(b"never sent"), 10);
    let text = {
        let spool = mailbox(&dir, &[never], &all);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut spool.reader(0, spool.len()), &mut text).unwrap();
        text.replace("FLAGS ()", "FLAGS (\\Expunged)")
    };
    let mut spool = Spool::new(&dir.0, 1 << 30);
    spool.append(text.as_bytes()).unwrap();
    backup.mailbox(&[], &spool, false, Timestamp(2000)).unwrap();
    backup.commit().unwrap();
    backup.finish().unwrap();
    for _ in 0..2 {
        let done = healed(&dir, &[]);
        assert_eq!(done.findings, 0);
        assert!(done.nowhere.is_empty() && done.awaited.is_empty());
        reindexed(&dir);
    }
}

#[test]
fn what_is_whole_is_not_written_to() {
    let (dir, _) = filled(2);
    let copy = copy_of(&dir);
    let before = fs::read(dir.data()).unwrap();
    let done = healed(&dir, &[copy]);
    assert_eq!((done.findings, done.restated), (0, 0));
    assert!(done.returned.is_empty() && done.awaited.is_empty() && done.nowhere.is_empty());
    assert!(done.marked.is_empty());
    assert_eq!(fs::read(dir.data()).unwrap(), before);
    let empty = Dir::new();
    empty.open().finish().unwrap();
    assert_eq!(healed(&empty, &[]).findings, 0);
}

#[test]
fn without_a_copy_the_sender_is_asked() {
    let (dir, all) = filled(3);
    spoil_at(&dir, 2, 4);
    let done = healed(&dir, &[]);
    assert!(done.findings > 0);
    assert!(done.returned.is_empty() && done.nowhere.is_empty());
    let lost = done.awaited.len();
    assert!((1..=5).contains(&lost), "{lost}");
    assert_eq!(done.marked.len(), 1);
    assert_eq!(done.marked[0].0, "user.anna");
    assert!(marked(&dir));
    // Marked once is enough.
    assert!(healed(&dir, &[]).marked.is_empty());
    // The records did not go with the chunk: the index knew them.
    assert_eq!(done.restated, 5);
    reindexed(&dir);
    assert_eq!(live(&dir, "u1").len(), all.len());
    assert_eq!(
        reads(&dir.data(), all.iter().map(|r| r.1)),
        all.len() - lost
    );
    assert!(marked(&dir));
}

#[test]
fn bodies_come_back_from_a_copy() {
    for rebuilt in [false, true] {
        let (dir, all) = filled(3);
        let copy = copy_of(&dir);
        spoil_at(&dir, 2, 4);
        if rebuilt {
            // What the chunk said of records is lost as well; what is known comes back.
            reindexed(&dir);
        }
        let rubbish = dir.0.join("rubbish");
        fs::write(&rubbish, b"\x1f\x8b\x08 nothing").unwrap();
        let missing = dir.0.join("gone");
        let before = fs::read(&copy).unwrap();
        let done = healed(&dir, &[rubbish, missing, copy.clone()]);
        assert_eq!(fs::read(&copy).unwrap(), before);
        assert!(
            done.awaited.is_empty() && done.nowhere.is_empty(),
            "{done:?}"
        );
        let guids: Vec<Guid> = all.iter().map(|r| r.1).collect();
        if !rebuilt {
            assert!(!done.returned.is_empty());
            assert_eq!(reads(&dir.data(), guids.iter().copied()), all.len());
            assert_eq!(live(&dir, "u1").len(), all.len());
        }
        let now = reads(&dir.data(), guids.iter().copied());
        reindexed(&dir);
        assert_eq!(reads(&dir.data(), guids), now);
        assert!(marked(&dir));
    }
}

#[test]
fn a_lost_body_alone_marks_nothing_once_it_is_back() {
    // A body that is wrong inside of a sound chunk.
    let dir = Dir::new();
    let mut all = Vec::new();
    let mut backup = dir.open();
    deliver(&dir, &mut backup, &mut all, 2, 1000);
    backup.finish().unwrap();
    let mut backup = dir.open();
    let (good, bad) = (b"whole", b"wrong");
    let guid = Guid::of(good);
    backup.body_begin(b"default", guid, 5, NOW).unwrap();
    backup.body_data(bad).unwrap();
    backup.body_end().unwrap();
    backup.messages_end().unwrap();
    all.push((3, guid, 5));
    let spool = mailbox(&dir, &all[2..], &all);
    backup.mailbox(&[], &spool, false, NOW).unwrap();
    backup.commit().unwrap();
    backup.finish().unwrap();

    let first = healed(&dir, &[]);
    assert_eq!(
        (first.awaited.len(), first.marked.len(), first.restated),
        (1, 1, 0)
    );
    assert_eq!(first.marked[0].1, "bodies do not read");

    let other = Dir::new();
    let mut backup = other.open();
    let mut theirs = Vec::new();
    deliver(&other, &mut backup, &mut theirs, 3, 1000);
    send(&mut backup, good, 1000);
    let secret = send(&mut backup, b"somebody else's", 1000);
    backup.messages_end().unwrap();
    let more = [(4, guid, 5), (5, secret, 15)];
    let listed: All = theirs.iter().copied().chain(more).collect();
    let spool = mailbox(&other, &more, &listed);
    backup.mailbox(&[], &spool, false, NOW).unwrap();
    backup.commit().unwrap();
    backup.finish().unwrap();
    let done = healed(&dir, &[other.data()]);
    assert_eq!((done.returned.len(), done.awaited.len()), (1, 0));
    assert_eq!(done.returned[0].1[0].uid, 3);
    assert_eq!(reads(&dir.data(), [guid]), 1);
    // Only what records of this backup refer to is taken.
    let reader = Reader::open(&dir.data(), Stale::Refuse).unwrap();
    assert!(reader.index().body(secret).unwrap().is_none());
    assert!(reader.index().body(theirs[2].1).unwrap().is_none());
    drop(reader);
    reindexed(&dir);
    assert_eq!(reads(&dir.data(), all.iter().map(|r| r.1)), 3);
    assert_eq!(live(&dir, "u1"), [1, 2, 3]);
}

/// Bytes that do not deflate: the middle of their chunk is in them.
fn noise(n: u32) -> Vec<u8> {
    let mut x = n;
    let mut next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 24) as u8
    };
    (0..n).map(|_| next()).collect()
}

/// States a mailbox of one message and deletes it; perhaps another one takes the name.
fn deleted(dir: &Dir, backup: &mut Backup, heir: bool) -> Guid {
    let text = noise(3000);
    let guid = send(backup, &text, 1000);
    backup.messages_end().unwrap();
    let state = |id: &str, records: &str| {
        let mut spool = Spool::new(&dir.0, 1 << 20);
        let head = format!(
            "%(UNIQUEID {id} MBOXNAME user.anna.x LAST_UID 1 HIGHESTMODSEQ 1 RECENTUID 0 \
             RECENTTIME 0 LAST_APPENDDATE 0 POP3_LAST_LOGIN 0 UIDVALIDITY 7 PARTITION default \
             ACL \"\" OPTIONS P RECORD ({records}))"
        );
        spool.append(head.as_bytes()).unwrap();
        spool
    };
    let records = record(1, guid, text.len());
    backup
        .mailbox(&[], &state("old", &records), false, NOW)
        .unwrap();
    backup.commit().unwrap();
    backup
        .append(&[Line::new("UNMAILBOX", &Value::text("user.anna.x"))], NOW)
        .unwrap();
    backup.seal().unwrap();
    if heir {
        backup.mailbox(&[], &state("new", ""), false, NOW).unwrap();
        backup.commit().unwrap();
    }
    guid
}

#[test]
fn what_only_the_past_needs_comes_back_and_stays_past() {
    for heir in [false, true] {
        let (dir, all) = filled(1);
        let mut backup = dir.open();
        let guid = deleted(&dir, &mut backup, heir);
        backup.finish().unwrap();
        let copy = copy_of(&dir);
        spoil(&dir, 2);
        let lost = healed(&dir, &[]);
        assert_eq!((lost.nowhere.len(), lost.awaited.len()), (1, 0));
        assert_eq!(lost.nowhere[0].0, guid);
        let done = healed(&dir, &[copy]);
        assert_eq!(
            (done.nowhere.len(), done.returned.len()),
            (0, 1),
            "{done:?}"
        );
        for round in 0..2 {
            assert_eq!(reads(&dir.data(), [guid]), 1);
            let reader = Reader::open(&dir.data(), Stale::Refuse).unwrap();
            let row = reader.index().mailbox("old").unwrap().unwrap();
            assert!(
                row.deleted.is_some(),
                "heir {heir} round {round}: {}",
                text_of(&dir)
            );
            let alive = reader.index().mailbox_by_name("user.anna.x").unwrap();
            assert_eq!(alive.map(|row| row.uniqueid), heir.then(|| "new".into()));
            drop(reader);
            assert_eq!(live(&dir, "u1").len(), all.len());
            reindexed(&dir);
        }
    }
}

#[test]
fn a_body_that_stands_before_the_damage_is_not_lost() {
    let (dir, mut all) = filled(1);
    let text = vec![b'x'; 3000];
    let mut backup = dir.open();
    all.push((6, send(&mut backup, &text, 1000), text.len()));
    backup.messages_end().unwrap();
    let spool = mailbox(&dir, &all[5..], &all);
    backup.mailbox(&[], &spool, false, NOW).unwrap();
    backup.commit().unwrap();
    backup.finish().unwrap();
    // The middle of so little is in the MAILBOX line.
    spoil(&dir, 2);
    let done = healed(&dir, &[]);
    assert!(
        done.nowhere.is_empty() && done.awaited.is_empty(),
        "{done:?}"
    );
    assert_eq!(
        (done.restated, done.marked.len(), done.saved.len()),
        (1, 1, 1)
    );
    reindexed(&dir);
    assert_eq!(live(&dir, "u1"), [1, 2, 3, 4, 5, 6]);
    assert_eq!(reads(&dir.data(), all.iter().map(|r| r.1)), 6);
}

#[test]
fn bodies_of_an_older_epoch_come_back() {
    let (dir, mut all) = filled(1);
    let text = noise(3001);
    let mut backup = dir.open();
    let guid = send(&mut backup, &text, 1000);
    backup.messages_end().unwrap();
    all.push((6, guid, text.len()));
    let spool = mailbox(&dir, &all[5..], &all);
    backup.mailbox(&[], &spool, false, NOW).unwrap();
    backup.commit().unwrap();
    backup.seal().unwrap();
    // The server went back: UID 6 is another message now.
    let new = send(&mut backup, &body(77), 1000);
    backup.messages_end().unwrap();
    all[5] = (6, new, body(77).len());
    let complete = Value::kv([("UNIQUEID", Value::text("u1")), ("EPOCH", Value::num(2))]);
    let spool = mailbox(&dir, &all, &all);
    let before = [Line::private("COMPLETE", complete)];
    backup.mailbox(&before, &spool, false, NOW).unwrap();
    backup.commit().unwrap();
    backup.finish().unwrap();
    let copy = copy_of(&dir);
    spoil(&dir, 2);
    assert_eq!(healed(&dir, &[]).nowhere.len(), 1);
    let done = healed(&dir, &[copy]);
    assert_eq!(
        (done.nowhere.len(), done.returned.len()),
        (0, 1),
        "{done:?}"
    );
    for _ in 0..2 {
        assert_eq!(reads(&dir.data(), [guid, new]), 2);
        assert_eq!(live(&dir, "u1"), [1, 2, 3, 4, 5, 6]);
        let reader = Reader::open(&dir.data(), Stale::Refuse).unwrap();
        let row = reader.index().mailbox("u1").unwrap().unwrap();
        let six = reader.index().record(row.id, 2, 6).unwrap().unwrap();
        assert_eq!(six.record.guid, new);
        drop(reader);
        reindexed(&dir);
    }
}

#[test]
fn in_a_folder_the_owners_logs_are_found() {
    let (dir, _) = filled(1);
    let folder = dir.0.join("second/a");
    fs::create_dir_all(&folder).unwrap();
    let kept = folder.join("anna_abcdef.damaged.1795442465123");
    fs::copy(dir.data(), &kept).unwrap();
    fs::copy(dir.data(), folder.join("x.index")).unwrap();
    fs::write(folder.join("rubbish"), b"rubbish").unwrap();
    let mut again = Backup::open(
        &folder.join("anna_1"),
        "anna",
        Wait::No,
        Create::New,
        SETTINGS,
    )
    .unwrap();
    deliver(&dir, &mut again, &mut Vec::new(), 1, 1000);
    again.finish().unwrap();
    let bert = folder.join("bert_1");
    let mut bert = Backup::open(&bert, "bert", Wait::No, Create::New, SETTINGS).unwrap();
    deliver(&dir, &mut bert, &mut Vec::new(), 1, 1000);
    bert.finish().unwrap();
    let backup = dir.open();
    let ns = Namespace::default();
    let found = |from: &Path| copies(from, &backup, &ns).unwrap().0;
    assert_eq!(found(&dir.0), [kept.clone(), folder.join("anna_1")]);
    let one = folder.join("bert_1");
    assert_eq!(found(&one), [one]);
    assert!(copies(&dir.0.join("gone"), &backup, &ns).is_err());
}

#[test]
fn heal_speaks() {
    let store = Store::new("heal");
    // It has a message that never came: nobody has it.
    let ran = store.run(&["heal", "anna"]);
    let text = String::from_utf8_lossy(&ran.out).into_owned();
    assert_eq!(ran.status, 65, "{}", ran.err);
    assert!(
        text.contains("lost, nobody has it any more, user/anna uid 3"),
        "{text}"
    );
    assert!(
        text.ends_with("0 messages came back, 0 awaited, 1 lost\n"),
        "{text}"
    );
    // Some log that has it.
    let mut backup = store.backup("dora");
    backup
        .body_begin(b"default", Guid::of(b"never came"), 10, NOW)
        .unwrap();
    backup.body_data(b"never came").unwrap();
    backup.body_end().unwrap();
    backup.messages_end().unwrap();
    let mut spool = Spool::new(&store.0, 1 << 20);
    let head = "%(UNIQUEID d MBOXNAME user.dora LAST_UID 0 HIGHESTMODSEQ 1 RECENTUID 0 RECENTTIME 0 \
        LAST_APPENDDATE 0 POP3_LAST_LOGIN 0 UIDVALIDITY 1 PARTITION default ACL \"\" OPTIONS P \
        RECORD ())";
    spool.append(head.as_bytes()).unwrap();
    backup.mailbox(&[], &spool, false, NOW).unwrap();
    backup.commit().unwrap();
    backup.finish().unwrap();
    store.hand_over();
    let from = store.path("dora").display().to_string();
    let value = store.json(&["heal", "-j", "--from", &from, "anna"]);
    let anna = &value["backups"][0];
    assert_eq!(anna["status"], "healed");
    assert_eq!(anna["returned"][0]["records"][0]["uid"], 3);
    assert_eq!(anna["nowhere"].as_array().unwrap().len(), 0);
    let shown = store.run(&["verify", "anna"]);
    assert_eq!(shown.status, 0, "{}", String::from_utf8_lossy(&shown.out));
    assert_eq!(store.run(&["heal", "anna"]).status, 0);
    assert_eq!(
        store
            .run(&["dump", "message", "anna", &Guid::of(ONE).to_string()])
            .out,
        ONE
    );
    assert_eq!(
        store.json(&["heal", "-j", "anna"])["backups"][0]["status"],
        "ok"
    );
    let lock = DataLock::acquire(&store.path("anna"), Wait::No, Create::No).unwrap();
    let ran = store.run(&["heal", "-j", "anna"]);
    assert_eq!(ran.status, 1);
    let value: serde_json::Value = serde_json::from_slice(&ran.out).unwrap();
    assert_eq!(value["backups"][0]["status"], "failed");
    drop(lock);
    assert_eq!(store.run(&["heal"]).status, 64);
    assert_eq!(store.run(&["heal", "nobody"]).status, 1);
}

/// What can be read of the log, member by member, for a failing test.
fn text_of(dir: &Dir) -> String {
    let bytes = fs::read(dir.data()).unwrap();
    let mut out = String::new();
    for at in 0..bytes.len().saturating_sub(3) {
        if bytes[at..at + 3] == [0x1f, 0x8b, 8] {
            fs::write(dir.0.join("part"), &bytes[at..]).unwrap();
            let file = fs::File::open(dir.0.join("part")).unwrap();
            let zcat = std::process::Command::new("zcat").stdin(file).output();
            let text = zcat.unwrap().stdout;
            out.push_str(&format!("== {at}\n{}\n", String::from_utf8_lossy(&text)));
        }
    }
    out
}
