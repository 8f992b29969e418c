//! What the brake of compaction holds, where mail is older than its first sync.

use crate::compact::{policy, run};
use crate::keep::all_expunged;
use crate::store::{Dir, body, mailbox, send};
use cyr_backup::cyrus::config::retention::UserRetention;
use cyr_backup::cyrus::dlist::{Limits, Parser};
use cyr_backup::cyrus::guid::Guid;
use cyr_backup::cyrus::sync::{Record, Sums};
use cyr_backup::store::compact::{Policy, Report};
use cyr_backup::store::spool::Spool;
use cyr_backup::util::time::Timestamp;
use std::io::Read;

const DAY: i64 = 86_400;
/// A day on which everything happens, at ten.
const NOW: i64 = 20_000 * DAY + 36_000;

type Messages = Vec<(u32, Guid, usize)>;

/// States a mailbox, of whose records each has the internal date that `dates` tells.
fn stated(dir: &Dir, spool: &Spool, live: &Messages, dates: &dyn Fn(u32) -> i64, time: i64) {
    let mut text = String::new();
    spool
        .reader(0, spool.len())
        .read_to_string(&mut text)
        .unwrap();
    let mut sums = Sums::default();
    let dated = |text: &str| {
        let uid: String = text.chars().take_while(char::is_ascii_digit).collect();
        let date = format!("INTERNALDATE {}", dates(uid.parse().unwrap()));
        text.replacen("INTERNALDATE 2", &date, 1)
    };
    for (uid, guid, size) in live {
        let record = dated(&crate::store::record(*uid, *guid, *size)[6..]);
        let line = format!("%(UID {record}\r\n");
        let mut parser = Parser::new(line.as_bytes(), Limits::default());
        sums.toggle(Record::from_value(parser.value().unwrap()).unwrap().sums());
    }
    let mut parts = text.split("%(UID ");
    let head = parts.next().unwrap().to_string();
    let (start, rest) = head.split_once("SYNC_CRC ").unwrap();
    let rest = rest.split_once(' ').unwrap().1;
    let mut out = format!("{start}SYNC_CRC {} {rest}", sums.record);
    for part in parts {
        out.push_str("%(UID ");
        out.push_str(&dated(part));
    }
    let mut spool = Spool::new(&dir.0, 1 << 20);
    spool.append(out.as_bytes()).unwrap();
    let mut backup = dir.open();
    for (uid, ..) in live.iter().filter(|m| text.contains(&m.1.to_string())) {
        send(&mut backup, &body(*uid), time);
    }
    backup.messages_end().unwrap();
    backup.mailbox(&[], &spool, false, Timestamp(time)).unwrap();
    backup.commit().unwrap();
    backup.finish().unwrap();
}

/// Messages with these UIDs.
fn messages(uids: std::ops::RangeInclusive<u32>) -> Messages {
    uids.map(|uid| (uid, Guid::of(&body(uid)), body(uid).len()))
        .collect()
}

/// Some messages come first, of internal dates before `NOW`; of them some are expunged an hour
/// later, and after another hour some new ones come.
fn replaced(first: u32, gone: usize, new: u32, old: i64) -> Report {
    let dir = Dir::new();
    let dates = move |uid: u32| match uid <= first {
        true => NOW - old,
        false => NOW + 7200,
    };
    let all = messages(1..=first);
    stated(&dir, &mailbox(&dir, &all, &all), &all, &dates, NOW);
    let live = all[gone..].to_vec();
    let spool = all_expunged(&dir, &all[..gone], &live);
    stated(&dir, &spool, &live, &dates, NOW + 3600);
    if new > 0 {
        let fresh = messages(first + 1..=first + new);
        let both = [live, fresh.clone()].concat();
        let spool = mailbox(&dir, &fresh, &both);
        stated(&dir, &spool, &both, &dates, NOW + 7200);
    }
    let braking = Policy {
        brake: 50,
        dry_run: true,
        ..policy()
    };
    let week = UserRetention::always(Some(7 * DAY));
    run(&dir, &braking, &week, NOW + 7 * DAY + DAY / 2)
}

/// What the brake looked at.
fn loss(report: &Report) -> (u64, u64) {
    (report.loss.lost, report.loss.of)
}

#[test]
fn old_mail_that_was_replaced_on_the_day_of_its_first_sync_is_held() {
    let report = replaced(40, 30, 40, 400 * DAY);
    assert_eq!(loss(&report), (30, 40), "{report:?}");
    assert!(report.loss.brakes(50));
}

#[test]
fn a_clean_up_on_the_day_of_the_first_sync_is_not() {
    let report = replaced(40, 15, 40, 400 * DAY);
    assert_eq!(loss(&report), (15, 40), "{report:?}");
    assert!(!report.loss.brakes(50));
}

#[test]
fn mail_that_came_and_went_within_a_day_counts_for_nothing() {
    let report = replaced(40, 30, 40, DAY / 2);
    assert_eq!(report.loss.lost, 0, "{report:?}");
    assert!(!report.loss.brakes(1));
}
