//! A small backup truncated at every length and with every byte flipped, with its index and without; the index and the
//! catalogue likewise: no panic, no hang, never a wrong answer that `verify` accepts, and damage
//! costs no more than its chunk.
//!
//! By default a part of the places is tried; `SWEEP=long` tries all of them, and a larger backup.

use super::store::{Dir, sub};
use super::sweep::long;
use cyr_backup::cyrus::dlist::Value;
use cyr_backup::cyrus::guid::Guid;
use cyr_backup::error::Kind;
use cyr_backup::store::ahead::Help;
use cyr_backup::store::backup::{Backup, MailboxResult, Settings};
use cyr_backup::store::catalog::Catalog;
use cyr_backup::store::file::FaultFile;
use cyr_backup::store::index::{self, Index, differences};
use cyr_backup::store::line::Line;
use cyr_backup::store::lock::{Create, Wait};
use cyr_backup::store::reader::{Reader, Stale, readable};
use cyr_backup::store::reindex::{From, Trailing, enter, enter_with};
use cyr_backup::store::spool::Spool;
use cyr_backup::store::verify::{Depth, verify};
use cyr_backup::util::time::Timestamp;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// A child of another test may hold a copy of the descriptor for a moment.
const WAIT: Wait = Wait::For(std::time::Duration::from_secs(10));

const SETTINGS: Settings = Settings {
    level: 1,
    chunk_max: 1 << 20,
};

/// Nothing on so small a backup takes longer, however busy the machine.
const HANG: Duration = Duration::from_secs(20);

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        b'a' + (x >> 24) as u8 % 26
    };
    (0..len).map(|_| next()).collect()
}

fn body(uid: u32, size: usize) -> Vec<u8> {
    let mut text = format!("From: a@b\r\nSubject: {uid}\r\n\r\n").into_bytes();
    text.extend(noise(u64::from(uid), size));
    text
}

/// A log, its index at rest, and the chunks that each message needs: its body's, its record's.
struct Sample {
    log: Vec<u8>,
    index: Vec<u8>,
    chunks: Vec<std::ops::Range<usize>>,
    messages: HashMap<Guid, [usize; 2]>,
}

/// Everything a user can have, session by session: each is a chunk.
fn sample(sessions: u32, size: usize) -> Sample {
    let dir = Dir::new();
    let path = dir.data();
    let kv = |pairs: &[(&str, &str)]| Value::kv(pairs.iter().map(|(k, v)| (*k, Value::text(*v))));
    let mut uid = 0;
    let mut guids = Vec::new();
    for session in 0..sessions {
        let now = Timestamp(1000 + i64::from(session));
        let mut backup = Backup::open(&path, "anna", WAIT, Create::IfMissing, SETTINGS).unwrap();
        let mut list = Vec::new();
        for _ in 0..2 {
            uid += 1;
            let body = body(uid, size);
            let guid = Guid::of(&body);
            guids.push(guid);
            backup
                .body_begin(b"default", guid, body.len() as u64, now)
                .unwrap();
            backup.body_data(&body).unwrap();
            backup.body_end().unwrap();
            list.push(format!(
                "%(UID {uid} MODSEQ {uid} LAST_UPDATED 1 FLAGS (\\Seen) INTERNALDATE 2 SIZE {} \
                 GUID {guid})",
                body.len()
            ));
        }
        backup.messages_end().unwrap();
        let (name, acl) = match session % 3 {
            1 => ("user.anna.renamed", "{4+}\r\na\tb\t"),
            _ => ("user.anna", "\"\""),
        };
        let mut spool = Spool::new(&dir.0, 1 << 30);
        let head = format!(
            "%(UNIQUEID u{} MBOXNAME {name}{} LAST_UID {uid} HIGHESTMODSEQ {uid} RECENTUID 0 \
             RECENTTIME 0 LAST_APPENDDATE 0 POP3_LAST_LOGIN 0 UIDVALIDITY 7 PARTITION default \
             SYNC_CRC 0 ACL {acl} OPTIONS P RECORD (",
            session / 3,
            session / 3,
        );
        spool.append(head.as_bytes()).unwrap();
        spool.append(list.join(" ").as_bytes()).unwrap();
        spool.append(b"))").unwrap();
        let literal = session % 3 == 1;
        match backup.mailbox(&[], &spool, literal, now).unwrap() {
            MailboxResult::Entered(out) => assert_eq!(out.missing, 0),
            MailboxResult::Unreferred => panic!("not referred to"),
        }
        backup.commit().unwrap();
        let line = match session % 6 {
            0 => sub("user.anna"),
            1 => Line::new(
                "UNSUB",
                &kv(&[("USERID", "anna"), ("MBOXNAME", "user.anna")]),
            ),
            2 => Line::new(
                "SEEN",
                &kv(&[("USERID", "anna"), ("UNIQUEID", "u9"), ("SEENUIDS", "1:4")]),
            ),
            3 => Line::private("QUOTA", kv(&[("ROOT", "user.anna"), ("STORAGE", "1000")])),
            4 => Line::private(
                "ACTIVATE_SIEVE",
                kv(&[("USERID", "anna"), ("FILENAME", "a.bc")]),
            ),
            _ => Line::new("UNMAILBOX", &Value::text("user.anna0")),
        };
        backup.append(&[line], now).unwrap();
        backup.finish().unwrap();
    }
    let reader = Reader::open(&path, Stale::Refuse).unwrap();
    let rows = reader.index().chunks().unwrap();
    let range = |c: &index::ChunkRow| c.offset as usize..(c.offset + c.length.unwrap()) as usize;
    let chunks: Vec<_> = rows.iter().map(range).collect();
    let mut messages = HashMap::new();
    for (n, guid) in guids.iter().enumerate() {
        let body = reader.index().body(*guid).unwrap().unwrap();
        let at = rows.iter().position(|c| c.id == body.chunk_id).unwrap();
        // A line with a literal is in the chunk behind that of its bodies.
        messages.insert(*guid, [at, at + usize::from(n / 2 % 3 == 1)]);
    }
    drop(reader);
    Sample {
        log: fs::read(&path).unwrap(),
        index: fs::read(index::path_of(&path)).unwrap(),
        chunks,
        messages,
    }
}

/// All messages that are listed and whose bodies read.
fn dumped(index: &Index, file: &dyn cyr_backup::store::file::LogFile) -> HashSet<Guid> {
    let mut listed = HashSet::new();
    for row in index.mailboxes(true).unwrap() {
        index
            .records(row.id, None, true, &mut |r| {
                listed.insert(r.record.guid);
                Ok(())
            })
            .unwrap();
    }
    let known: HashSet<Guid> = index
        .bodies(None)
        .unwrap()
        .into_iter()
        .map(|b| b.guid)
        .collect();
    // A record may be lost with its chunk while its body reads; and the other way round.
    readable(index, file, known.union(&listed).copied()).unwrap()
}

/// Whether `verify` finds anything. A kind of error other than that nothing fits is a failure.
fn is_found(path: &Path, depth: Depth, what: &str) -> bool {
    match verify(path, depth, path.parent().unwrap()) {
        Ok(proof) => !proof.findings.is_empty(),
        Err(e) if matches!(e.kind(), Kind::NeedsReindex | Kind::Damaged) => true,
        Err(e) => panic!("{what}: {e}"),
    }
}

/// A damaged log. `hurt` are the chunks that the damage touches.
fn try_log(sample: &Sample, log: &[u8], with_index: bool, hurt: &BTreeSet<usize>, what: &str) {
    let what = format!("{what}, index {with_index}");
    let begun = Instant::now();
    let dir = Dir::new();
    let path = dir.data();
    fs::write(&path, log).unwrap();
    if with_index {
        fs::write(index::path_of(&path), &sample.index).unwrap();
    }
    let safe: HashSet<Guid> = sample
        .messages
        .iter()
        .filter(|(_, needs)| needs.iter().all(|c| !hurt.contains(c)))
        .map(|(g, _)| *g)
        .collect();
    let all_safe = |have: &HashSet<Guid>, when: &str| {
        let lost = safe.difference(have).count();
        assert_eq!(lost, 0, "{what}: {when}: {lost} of {} lost", safe.len());
    };
    // Looking changes nothing, and shows what is there.
    if let Ok(reader) = Reader::open(&path, Stale::Refuse) {
        all_safe(&dumped(reader.index(), reader.file()), "read only");
    }
    // Without a byte and without an index it is a new one.
    let wrong = with_index && log != sample.log || !with_index && !log.is_empty();
    for depth in [Depth::Quick, Depth::Full] {
        assert_eq!(is_found(&path, depth, &what), wrong, "{what}: {depth:?}");
    }
    assert_eq!(fs::read(&path).unwrap(), log, "{what}");
    // Rebuilt from the log alone.
    let again = dir.0.join("again");
    fs::write(&again, log).unwrap();
    let watch = Box::new(|_| ());
    match Backup::reindex(&again, "anna", WAIT, SETTINGS, 2, watch) {
        Ok(backup) => {
            all_safe(&dumped(backup.index(), backup.file()), "reindex");
            let lost = sample
                .messages
                .keys()
                .any(|g| backup.index().body(*g).unwrap().is_none());
            let cut = backup.damage().is_empty() && log.len() < sample.log.len();
            assert!(
                !lost || cut || !backup.damage().is_empty(),
                "{what}: lost and not named"
            );
        }
        Err(e) => assert!(e.kind() == Kind::Damaged && safe.is_empty(), "{what}: {e}"),
    }
    // And the next sync goes on.
    match Backup::open(&path, "anna", WAIT, Create::No, SETTINGS) {
        Ok(mut backup) => {
            all_safe(&dumped(backup.index(), backup.file()), "opened");
            backup
                .append(&[sub("user.anna.further")], Timestamp(6000))
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            all_safe(&dumped(backup.index(), backup.file()), "appended");
            backup.finish().unwrap();
            let reader = Reader::open(&path, Stale::Refuse).unwrap();
            let subs = reader.index().subscriptions(false).unwrap();
            assert!(
                subs.iter().any(|s| s.mboxname == "user.anna.further"),
                "{what}"
            );
            all_safe(&dumped(reader.index(), reader.file()), "read after");
        }
        // Set aside by the server, with nothing in it that reads.
        Err(e) => assert!(e.kind() == Kind::Damaged && safe.is_empty(), "{what}: {e}"),
    }
    assert!(begun.elapsed() < HANG, "{what}: {:?}", begun.elapsed());
}

/// Runs `work` on each of `places`, or on a part of them, by two threads.
fn each(places: std::ops::Range<usize>, part: usize, work: &(dyn Fn(usize) + Sync)) {
    let step = if long() { 1 } else { part };
    std::thread::scope(|scope| {
        for half in 0..2 {
            let places = places.clone();
            scope.spawn(move || {
                places
                    .step_by(step)
                    .filter(|p| p / step % 2 == half)
                    .for_each(work)
            });
        }
    });
}

#[test]
fn a_log_cut_at_every_length() {
    let sample = sample(7, 150);
    assert!(sample.log.len() < 8000 && sample.chunks.len() >= 7);
    each(0..sample.log.len(), 61, &|cut| {
        let hurt = (0..sample.chunks.len())
            .filter(|c| sample.chunks[*c].end > cut)
            .collect();
        for with_index in [true, false] {
            let what = format!("cut at {cut} of {}", sample.log.len());
            try_log(&sample, &sample.log[..cut], with_index, &hurt, &what);
        }
    });
}

#[test]
fn a_log_with_every_byte_flipped() {
    let sample = sample(7, 150);
    each(0..sample.log.len(), 61, &|at| {
        let mut log = sample.log.clone();
        log[at] ^= 1 << (at % 8);
        let hurt = (0..sample.chunks.len())
            .filter(|c| sample.chunks[*c].contains(&at))
            .collect();
        for with_index in [true, false] {
            let what = format!("bit {} of byte {at} of {}", at % 8, sample.log.len());
            try_log(&sample, &log, with_index, &hurt, &what);
        }
    });
}

#[test]
fn a_larger_log_with_some_bits_flipped() {
    let sample = sample(if long() { 40 } else { 12 }, 90_000);
    assert!(sample.log.len() > 1_200_000, "{}", sample.log.len());
    let part = sample.log.len() / if long() { 400 } else { 4 };
    let bits = |at: usize| (at * 31 + 7) % (sample.log.len() * 8);
    for at in (0..sample.log.len()).step_by(part) {
        let bit = bits(at);
        let mut log = sample.log.clone();
        log[bit / 8] ^= 1 << (bit % 8);
        let hurt = (0..sample.chunks.len())
            .filter(|c| sample.chunks[*c].contains(&(bit / 8)))
            .collect();
        try_log(&sample, &log, bit % 2 == 0, &hurt, &format!("bit {bit}"));
        // By several threads the same is found.
        let file = FaultFile::with(&log);
        let dir = Dir::new();
        let made = |name: &str, help: Option<Help>| {
            let index = Index::create_apart(&dir.0.join(name)).unwrap();
            index.begin().unwrap();
            let from = From {
                member: 0,
                known: None,
            };
            let (len, keep) = (log.len() as u64, Trailing::Keep);
            let entered = match help {
                None => enter(&file, &index, from, len, keep),
                Some(help) => enter_with(help, &file, &index, from, len, keep),
            };
            (index, format!("{:?}", entered.unwrap()))
        };
        let (here, found) = made("here", None);
        let (ahead, same) = made("ahead", Some(Help::threads(3)));
        assert_eq!(found, same, "bit {bit}");
        assert_eq!(differences(&here, &ahead, 5).unwrap(), [], "bit {bit}");
    }
}

/// A damaged index beside a whole log: what `verify` accepts is right, and using it or making it anew
/// mends it.
fn try_index(sample: &Sample, bytes: &[u8], what: &str) {
    let begun = Instant::now();
    let dir = Dir::new();
    let path = dir.data();
    fs::write(&path, &sample.log).unwrap();
    fs::write(index::path_of(&path), bytes).unwrap();
    let whole = dir.0.join("whole");
    fs::write(&whole, &sample.log).unwrap();
    fs::write(index::path_of(&whole), &sample.index).unwrap();
    let right = |when: &str| {
        let index = |path: &Path| Index::open_read_only(&index::path_of(path)).unwrap();
        let found = differences(&index(&path), &index(&whole), 5);
        assert_eq!(
            found.unwrap_or_else(|e| panic!("{what}: {when}: {e}")),
            [],
            "{what}: {when}"
        );
    };
    if !is_found(&path, Depth::Full, what) {
        right("accepted");
    }
    // A session: whatever it meets, the next one works.
    let mut met = Vec::new();
    for turn in 0..3 {
        match Backup::open(&path, "anna", WAIT, Create::No, SETTINGS) {
            Ok(mut backup) => {
                let done = backup.append(&[sub("user.anna")], Timestamp(900));
                let broken = backup.is_broken();
                let finished = backup.finish();
                if done.is_ok() && finished.is_ok() && !broken {
                    break;
                }
                met.push(format!("{done:?} {finished:?} {broken}"));
            }
            Err(e) => met.push(e.to_string()),
        }
        assert!(turn < 2, "{what}: refused for good: {met:?}");
    }
    let watch = Box::new(|_| ());
    Backup::reindex(&path, "anna", WAIT, SETTINGS, 2, watch)
        .unwrap_or_else(|e| panic!("{what}: {e}"))
        .finish()
        .unwrap();
    let found = verify(&path, Depth::Full, &dir.0).unwrap().findings;
    assert_eq!(found, [], "{what}");
    let reader = Reader::open(&path, Stale::Refuse).unwrap();
    let have = dumped(reader.index(), reader.file());
    assert!(sample.messages.keys().all(|g| have.contains(g)), "{what}");
    assert!(begun.elapsed() < HANG, "{what}: {:?}", begun.elapsed());
}

#[test]
fn an_index_damaged_at_many_places() {
    let sample = sample(7, 150);
    let len = sample.index.len();
    // The long form: every 37th byte, and a few bytes in each row of a page.
    let places = len / if long() { 37 } else { len.min(1500) };
    // BYTE=64195 for the long form's one place.
    let only = std::env::var("BYTE")
        .ok()
        .map(|n| n.parse::<usize>().unwrap());
    each(0..places, 1, &|n| {
        if only.is_some_and(|at| at != n * (len / places)) {
            return;
        }
        let at = n * (len / places);
        let mut bytes = sample.index.clone();
        bytes[at] ^= 1 << (n % 8);
        try_index(&sample, &bytes, &format!("index byte {at} of {len}"));
        if n % 4 == 0 {
            try_index(
                &sample,
                &sample.index[..at],
                &format!("index cut at {at} of {len}"),
            );
        }
        if n % 4 == 1 {
            let page = at / 4096 * 4096;
            let mut bytes = sample.index.clone();
            bytes[page..page + 4096].fill(if n % 8 == 1 { 0 } else { 0x5a });
            try_index(&sample, &bytes, &format!("index page at {page} of {len}"));
        }
    });
}

/// What SQLite takes as it is: names in the tables' definitions, and text in keys.
#[test]
fn an_index_whose_words_are_damaged() {
    let sample = sample(7, 150);
    for word in [
        "UNIQUE,",
        "PRIMARY KEY,",
        "first_time",
        "guid BLOB",
        "acknowledged",
        "user.anna",
        "generation",
    ] {
        let word = word.as_bytes();
        let at: Vec<usize> = (0..sample.index.len() - word.len())
            .filter(|at| sample.index[*at..].starts_with(word))
            .collect();
        assert!(!at.is_empty(), "{word:?}");
        for at in at.into_iter().take(12) {
            for (byte, bits) in [(0, 0x01), (word.len() - 1, 0x80)] {
                let mut bytes = sample.index.clone();
                bytes[at + byte] ^= bits;
                let what = format!("byte {} of {word:?} at {at}", byte);
                try_index(&sample, &bytes, &what);
            }
        }
    }
}

#[test]
fn a_catalogue_damaged_anywhere_is_an_error_or_right() {
    let dir = Dir::new();
    let db = dir.0.join("backups.db");
    let catalog = Catalog::open(&db, true);
    let mut entries = Vec::new();
    for n in 0..12 {
        let (key, path) = (format!("user{n}"), dir.0.join(format!("log{n}")));
        catalog.set(&key, &path).unwrap();
        entries.push((key, path));
    }
    catalog.remove("user3").unwrap();
    entries.remove(3);
    entries.sort();
    let whole = fs::read(&db).unwrap();
    assert_eq!(catalog.list().unwrap(), entries);
    each(0..whole.len(), 7, &|at| {
        let dir = Dir::new();
        let db = dir.0.join("backups.db");
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        for (what, bytes) in [("flipped", &flipped[..]), ("cut", &whole[..at])] {
            fs::write(&db, bytes).unwrap();
            let begun = Instant::now();
            // Names that are shown are right, though some may be missing; or it is refused.
            if let Ok(found) = Catalog::open(&db, false).list() {
                for entry in found {
                    let right = entries.contains(&entry) || entry.0 == "user3";
                    assert!(right, "{what} at {at}: {entry:?}");
                }
            }
            let _ = Catalog::open(&db, true).lookup("user7");
            let _ = Catalog::open(&db, true).set("new", &dir.0.join("new"));
            assert!(begun.elapsed() < HANG, "{what} at {at}");
        }
    });
}
