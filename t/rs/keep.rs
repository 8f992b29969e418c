//! Summaries: what is live, what is waste, when it is due, and when a remembered one counts.

use super::store::{Dir, SETTINGS, body, deliver, mailbox, record, send, sub};
use cyr_backup::cyrus::guid::Guid;
use cyr_backup::store::backup::MailboxResult;
use cyr_backup::store::index;
use cyr_backup::store::reader::{Reader, Stale};
use cyr_backup::store::spool::Spool;
use cyr_backup::store::summary::{Cache, Looked, Summary, look};
use cyr_backup::util::time::Timestamp;
use std::fs::{self, File, FileTimes};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Five messages at 1000; one of them expunged at 2000; the mailbox deleted at 3000, if `deleted`.
fn fill(dir: &Dir, deleted: bool) -> Vec<usize> {
    let mut backup = dir.open();
    let mut all = Vec::new();
    deliver(dir, &mut backup, &mut all, 5, 1000);
    let sizes: Vec<usize> = all.iter().map(|r| r.2).collect();
    let gone = all.remove(1);
    let spool = expunged(dir, gone, &all);
    let MailboxResult::Entered(_) = backup.mailbox(&[], &spool, false, Timestamp(2000)).unwrap()
    else {
        panic!("no bodies were pending")
    };
    backup.commit().unwrap();
    if deleted {
        let line = cyr_backup::store::line::Line::new(
            "UNMAILBOX",
            &cyr_backup::cyrus::dlist::Value::text("user.anna"),
        );
        backup.append(&[line], Timestamp(3000)).unwrap();
    }
    backup.finish().unwrap();
    sizes
}

fn expunged(dir: &Dir, gone: (u32, Guid, usize), live: &[(u32, Guid, usize)]) -> Spool {
    all_expunged(dir, &[gone], live)
}

/// A MAILBOX line that says of messages that they are expunged.
pub fn all_expunged(dir: &Dir, gone: &[(u32, Guid, usize)], live: &[(u32, Guid, usize)]) -> Spool {
    let whole = mailbox(dir, &[], live);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut whole.reader(0, whole.len()), &mut text).unwrap();
    let records: Vec<String> = gone
        .iter()
        .map(|r| record(r.0, r.1, r.2).replace("FLAGS ()", "FLAGS (\\Expunged)"))
        .collect();
    let record = records.join(" ");
    let mut spool = Spool::new(&dir.0, 1 << 20);
    let text = text.replace("RECORD ()", &format!("RECORD ({record})"));
    spool.append(text.as_bytes()).unwrap();
    spool
}

fn of(path: &Path, keep: Option<i64>) -> Summary {
    let reader = Reader::open(path, Stale::Refuse).unwrap();
    Summary::of(reader.index(), &|_| keep).unwrap()
}

#[test]
fn live_waste_and_due() {
    let dir = Dir::new();
    let sizes = fill(&dir, false);
    let s = of(&dir.data(), Some(7200));
    let all: usize = sizes.iter().sum();
    assert_eq!((s.bodies, s.body_bytes), (5, all as i64));
    assert_eq!(s.waste_bytes(), sizes[1] as i64);
    assert_eq!(s.live_bytes, (all - sizes[1]) as i64);
    assert_eq!((s.messages, s.mailboxes, s.unreferenced), (4, 1, 0));
    assert_eq!((s.first_time, s.last_time), (Some(1000), Some(2000)));
    assert_eq!(s.last_change, Some(2000));
    // Expunged at 2000, kept for two hours: due at 9200, that is in the third hour.
    assert_eq!(s.due, [(3, sizes[1] as i64)]);
    assert_eq!(
        (s.due_bytes(10_799), s.due_bytes(10_800)),
        (0, sizes[1] as i64)
    );
    assert!(
        of(&dir.data(), None).due.is_empty(),
        "kept for ever is never due"
    );
    let log = File::open(dir.data()).unwrap();
    let zcat = std::process::Command::new("zcat").stdin(log).output();
    assert_eq!(s.plain_bytes, zcat.unwrap().stdout.len() as i64);
    assert_eq!(
        s.stored_bytes,
        fs::metadata(dir.data()).unwrap().len() as i64
    );
}

#[test]
fn a_deleted_mailbox_is_all_waste() {
    let dir = Dir::new();
    let sizes = fill(&dir, true);
    let s = of(&dir.data(), Some(0));
    assert_eq!((s.live_bytes, s.messages, s.mailboxes), (0, 0, 0));
    assert_eq!(s.due_bytes(3600), sizes.iter().sum::<usize>() as i64);
    assert_eq!(s.last_change, Some(3000));
}

#[test]
fn a_body_counts_once_and_lives_while_anybody_has_it() {
    let dir = Dir::new();
    let mut backup = dir.open();
    let mut all = Vec::new();
    deliver(&dir, &mut backup, &mut all, 1, 1000);
    // The same message under two more UIDs, one of which goes.
    let size = body(1).len();
    let guid = all[0].1;
    let live = [(1, guid, size), (2, guid, size)];
    let spool = mailbox(&dir, &live[1..], &live);
    backup.mailbox(&[], &spool, false, Timestamp(1500)).unwrap();
    backup.commit().unwrap();
    let spool = expunged(&dir, live[0], &live[1..]);
    backup.mailbox(&[], &spool, false, Timestamp(2000)).unwrap();
    backup.commit().unwrap();
    backup.finish().unwrap();
    let s = of(&dir.data(), Some(0));
    assert_eq!(
        (s.bodies, s.live_bytes, s.waste_bytes()),
        (1, size as i64, 0)
    );
    assert_eq!(s.messages, 1);
}

/// Sets the times of both files back, so that a change is sure to show.
fn settle(path: &Path) {
    // What a reader left, who found it in use.
    for end in ["-shm", "-wal"] {
        let _ = fs::remove_file(format!("{}{end}", index::path_of(path).display()));
    }
    let then = FileTimes::new().set_modified(SystemTime::now() - Duration::from_secs(60));
    for path in [path.to_owned(), index::path_of(path)] {
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_times(then)
            .unwrap();
    }
}

fn opener(stale: Stale) -> impl Fn(&Path) -> cyr_backup::error::Result<Reader> {
    move |path| Reader::open(path, stale)
}

fn seen(path: &Path, cache: &mut Cache) -> (Looked, bool) {
    let known = cache.known("anna").map(str::to_owned);
    let mut looked = look(path, known.as_deref(), &opener(Stale::Refuse), &|_| Some(0));
    let fresh = looked.fresh();
    let is_fresh = fresh.is_some();
    if let Some(text) = fresh {
        cache.remember("anna", text);
    }
    (looked, is_fresh)
}

#[test]
fn a_remembered_summary_never_lies() {
    let dir = Dir::new();
    fill(&dir, false);
    let path = dir.data();
    let db = dir.0.join("backups.db");
    let mut cache = Cache::beside(&db, "x");
    // Changed a moment ago: told, not remembered.
    let (looked, fresh) = seen(&path, &mut cache);
    assert!(!fresh && looked.summary.unwrap().messages == 4);
    settle(&path);
    let (first, fresh) = seen(&path, &mut cache);
    assert!(fresh);
    cache.save();
    let mut cache = Cache::beside(&db, "x");
    let (again, fresh) = seen(&path, &mut cache);
    assert!(!fresh, "remembered");
    assert_eq!(again.summary.unwrap(), first.summary.unwrap());
    assert!(!Path::new(&format!("{}-shm", index::path_of(&path).display())).exists());
    // A writer at work, then at rest.
    let mut backup = dir.open();
    let before = fs::metadata(&path).unwrap().len();
    send(&mut backup, b"pending", 4000);
    assert_eq!(seen(&path, &mut cache).0.summary.unwrap().messages, 4);
    backup.abort();
    backup.append(&[sub("user.anna")], Timestamp(4000)).unwrap();
    assert!(fs::metadata(&path).unwrap().len() > before);
    let (open, fresh) = seen(&path, &mut cache);
    assert!(!fresh, "an open one is not at rest");
    assert_eq!(open.summary.unwrap().subscriptions, 1);
    backup.finish().unwrap();
    settle(&path);
    let (sealed, fresh) = seen(&path, &mut cache);
    assert!(fresh && sealed.summary.unwrap().subscriptions == 1);
    // Another log of the same length and time.
    let copy = dir.0.join("copy");
    fs::copy(&path, &copy).unwrap();
    let times = fs::metadata(&path).unwrap().modified().unwrap();
    fs::rename(&copy, &path).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.set_times(FileTimes::new().set_modified(times))
        .unwrap();
    assert!(seen(&path, &mut cache).1, "another inode");
    // Without its index nothing is known.
    index::remove(&index::path_of(&path)).unwrap();
    assert!(seen(&path, &mut cache).0.summary.is_err());
    let repaired = look(&path, None, &opener(Stale::Repair(SETTINGS)), &|_| Some(0));
    assert_eq!(repaired.summary.unwrap().messages, 4);
}
