//! Compaction of logs that are not as most are.

use crate::compact::{policy, run};
use crate::history::rows;
use crate::store::{Dir, SETTINGS, deliver, mailbox, sub};
use cyr_backup::cyrus::config::retention::{Retention, UserRetention};
use cyr_backup::cyrus::dlist::Value;
use cyr_backup::cyrus::guid::Guid;
use cyr_backup::store::backup::MailboxResult;
use cyr_backup::store::compact::{Outcome, Policy};
use cyr_backup::store::line::Line;
use cyr_backup::store::log::read_chunk_plain;
use cyr_backup::store::reader::{Reader, Stale};
use cyr_backup::store::spool::Spool;
use cyr_backup::util::time::Timestamp;
use std::io::Read;

/// The messages stated again at `time`, in a line of which `change` makes another.
fn stated(dir: &Dir, all: &[(u32, Guid, usize)], time: i64, change: &dyn Fn(String) -> String) {
    let whole = mailbox(dir, all, all);
    let mut text = String::new();
    whole
        .reader(0, whole.len())
        .read_to_string(&mut text)
        .unwrap();
    let mut spool = Spool::new(&dir.0, 1 << 20);
    spool.append(change(text).as_bytes()).unwrap();
    let mut backup = dir.open();
    let done = backup.mailbox(&[], &spool, false, Timestamp(time)).unwrap();
    assert!(matches!(done, MailboxResult::Entered(o) if o.agrees));
    backup.commit().unwrap();
    backup.append(&[sub("user.anna")], Timestamp(time)).unwrap();
    backup.finish().unwrap();
}

fn filled(dir: &Dir, n: u32) -> Vec<(u32, Guid, usize)> {
    let mut all = Vec::new();
    let mut backup = dir.open();
    deliver(dir, &mut backup, &mut all, n, 1_000_000);
    backup.finish().unwrap();
    all
}

fn forced() -> Policy {
    Policy {
        force: true,
        ..policy()
    }
}

#[test]
fn a_sender_may_use_the_key_of_our_times() {
    let dir = Dir::new();
    let all = filled(&dir, 3);
    stated(&dir, &all, 1_000_100, &|text| {
        text.replace("FLAGS ()", "FLAGS () X-CYRBACKUP (1 2 3 gone)")
    });
    let all_rows = || {
        let reader = Reader::open(&dir.data(), Stale::Refuse).unwrap();
        rows(reader.index(), &|_| 0)
    };
    let before = all_rows();
    assert!(before.iter().any(|row| row.contains("X-CYRBACKUP")));
    let done = run(
        &dir,
        &forced(),
        &UserRetention::always(Some(150)),
        1_001_000,
    );
    assert_eq!(done.outcome, Outcome::Done);
    assert_eq!(all_rows(), before);
}

#[test]
fn a_member_ends_behind_a_literal_in_a_long_line() {
    let dir = Dir::new();
    let all = filled(&dir, 2);
    stated(&dir, &all, 1_000_100, &|text| {
        let long = format!("FLAGS () X-LONG (first {})", "item ".repeat(100_000));
        text.replace("FLAGS ()", &long)
            .replace("ACL \"\"", "ACL {3+}\r\na\nb")
    });
    let done = run(&dir, &forced(), &UserRetention::always(None), 1_001_000);
    assert_eq!(done.outcome, Outcome::Done);
    let reader = Reader::open(&dir.data(), Stale::Refuse).unwrap();
    let members = reader.index().chunks().unwrap();
    let members: Vec<String> = members
        .iter()
        .map(|c| {
            let mut text = Vec::new();
            let plain = c.plain_length.unwrap();
            read_chunk_plain(reader.file(), c.offset, 0, plain, &mut |part| {
                text.extend_from_slice(part);
                Ok(())
            })
            .unwrap();
            String::from_utf8_lossy(&text).into_owned()
        })
        .collect();
    let long = members.iter().find(|text| text.contains("X-LONG"));
    assert!(!long.unwrap().contains("APPLY SUB"));
    let short = members.iter().filter(|text| text.contains("APPLY SUB"));
    assert_eq!(short.count(), 1);
}

#[test]
fn what_went_long_ago_does_not_brake_for_ever() {
    let dir = Dir::new();
    filled(&dir, 20);
    let mut backup = dir.open();
    let gone = Line::new("UNMAILBOX", &Value::text("user.anna"));
    backup.append(&[gone], Timestamp(2_000_000)).unwrap();
    backup.finish().unwrap();
    // One folder keeps all lines, so that records outlive their bodies.
    let retention = Retention::parse(Some(150), "anna:Keep=forever").unwrap();
    let retention = retention.of(
        Some("anna"),
        None,
        &cyr_backup::cyrus::mboxname::Namespace::default(),
    );
    let braking = Policy {
        brake: 50,
        ..policy()
    };
    let held = run(&dir, &braking, &retention, 2_001_000);
    assert_eq!((held.outcome, held.loss.lost), (Outcome::Held, 20));
    run(&dir, &forced(), &retention, 2_001_000);
    let reader = Reader::open(&dir.data(), Stale::Repair(SETTINGS)).unwrap();
    assert_eq!(reader.index().totals().unwrap().messages, 0);
    assert_eq!(reader.index().mailboxes(true).unwrap().len(), 1);
    drop(reader);
    let later = run(&dir, &braking, &retention, 3_000_000);
    assert_eq!((later.outcome, later.loss.lost), (Outcome::Nothing, 0));
}
