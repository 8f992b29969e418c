//! Backups that Debian's backupd wrote (t/data/old-backups): read where they lie, continued, and
//! nothing of them lost.

use crate::history::picture;
use cyr_backup::cyrus::config::retention::UserRetention;
use cyr_backup::cyrus::dlist::Value as Dlist;
use cyr_backup::cyrus::guid::Guid;
use cyr_backup::cyrus::mboxname::Namespace;
use cyr_backup::store::backup::{Backup, Settings};
use cyr_backup::store::compact::need::Times;
use cyr_backup::store::compact::{Policy, compact};
use cyr_backup::store::index::{self, Index};
use cyr_backup::store::line::Line;
use cyr_backup::store::lock::{Create, Wait};
use cyr_backup::store::reader::{Reader, Stale};
use cyr_backup::store::verify::{Depth, verify};
use cyr_backup::util::time::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

const SETTINGS: Settings = Settings {
    level: 1,
    chunk_max: 1 << 20,
};

/// Every sample, with what our verify finds in it and the bodies that no record refers to.
const SAMPLES: [(&str, usize, i64); 16] = [
    ("clock", 0, 0),
    ("compacted", 0, 0),
    ("empty", 0, 0),
    ("first", 0, 0),
    ("folders", 0, 0),
    ("foreign", 0, 8),
    ("intermediate", 1, 0),
    ("killed", 4, 0),
    ("literals", 0, 0),
    ("literals-n", 0, 0),
    ("moved", 0, 0),
    ("renamed", 0, 0),
    ("resurrected", 0, 0),
    ("rolling", 0, 0),
    ("sessions", 0, 0),
    ("shared", 0, 0),
];

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A copy of a sample, with the old index beside it.
struct Sample {
    dir: PathBuf,
    name: &'static str,
    state: Value,
    log: Vec<u8>,
    index: Vec<u8>,
}

impl Drop for Sample {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("t/data/old-backups")
}

impl Sample {
    fn new(name: &'static str) -> Sample {
        let n = NUMBER.fetch_add(1, Ordering::Relaxed);
        // fsync is not the subject.
        let shm = PathBuf::from("/dev/shm");
        let base = if shm.is_dir() {
            shm
        } else {
            std::env::temp_dir()
        };
        let dir = base.join(format!("cyrbackup-adopt-{}-{n}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let from = samples().join(name);
        let gz = Command::new("gzip")
            .args(["-dc"])
            .arg(from.join("index.gz"))
            .output()
            .unwrap();
        assert!(gz.status.success());
        let sample = Sample {
            dir,
            name,
            state: serde_json::from_slice(&fs::read(from.join("state.json")).unwrap()).unwrap(),
            log: fs::read(from.join("log")).unwrap(),
            index: gz.stdout,
        };
        fs::write(sample.data(), &sample.log).unwrap();
        fs::write(index::path_of(&sample.data()), &sample.index).unwrap();
        sample
    }

    fn data(&self) -> PathBuf {
        self.dir.join("anna_old123")
    }

    fn reader(&self) -> Reader {
        Reader::open(&self.data(), Stale::Repair(SETTINGS)).unwrap()
    }

    fn open(&self) -> Backup {
        let wait = Wait::For(std::time::Duration::from_secs(10));
        Backup::open(&self.data(), "anna", wait, Create::No, SETTINGS).unwrap()
    }

    /// Files beside the log and its index.
    fn others(&self) -> Vec<PathBuf> {
        let mut found: Vec<_> = fs::read_dir(&self.dir)
            .unwrap()
            .map(|f| f.unwrap().path())
            .filter(|p| {
                let name = p.file_name().unwrap().to_str().unwrap();
                !matches!(
                    name.strip_prefix("anna_old123").unwrap(),
                    "" | ".index" | ".index-wal" | ".index-shm"
                )
            })
            .collect();
        found.sort();
        found
    }

    fn inode(&self) -> u64 {
        fs::metadata(index::path_of(&self.data())).unwrap().ino()
    }

    fn findings(&self) -> Vec<String> {
        let proof = verify(&self.data(), Depth::Full, &self.dir).unwrap();
        proof
            .findings
            .iter()
            .map(|f| format!("{} at {:?}", f.what, f.offset))
            .collect()
    }
}

/// Live mailboxes and records as the samples' state.json has them.
fn held(index: &Index) -> Value {
    let mut boxes = serde_json::Map::new();
    for row in index.mailboxes(false).unwrap() {
        if row.intermediate {
            continue;
        }
        let mut records = serde_json::Map::new();
        index
            .records(row.id, Some(row.epoch), false, &mut |r| {
                let mut flags: Vec<_> = r
                    .record
                    .flags
                    .iter()
                    .map(|f| String::from_utf8_lossy(f.as_bytes().unwrap()).into_owned())
                    .collect();
                flags.sort();
                let value = json!({
                    "guid": r.record.guid.to_string(),
                    "modseq": r.record.modseq,
                    "internaldate": r.record.internaldate,
                    "size": r.record.size,
                    "flags": flags,
                });
                records.insert(r.record.uid.to_string(), value);
                Ok(())
            })
            .unwrap();
        assert_eq!(row.records, records.len() as i64, "{}", row.mboxname);
        let text = |key| row.head.get(key).and_then(Dlist::as_str).unwrap_or("");
        let value = json!({
            "uniqueid": row.uniqueid,
            "mboxtype": text("MBOXTYPE"),
            "uidvalidity": row.uidvalidity,
            "lastuid": row.last_uid,
            "highestmodseq": row.highestmodseq,
            "acl": text("ACL"),
            "records": records,
        });
        boxes.insert(row.mboxname.clone(), value);
    }
    Value::Object(boxes)
}

fn names(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

/// Whether the index says what the server held.
fn check(sample: &Sample, index: &Index) {
    let ours = held(index);
    let wanted = &sample.state["mailboxes"];
    let mut extra: BTreeSet<_> = names(&ours);
    for (name, theirs) in wanted.as_object().unwrap() {
        extra.remove(name);
        let ours = &ours[name];
        for key in names(theirs) {
            assert_eq!(ours[&key], theirs[&key], "{}: {key} of {name}", sample.name);
        }
    }
    let scripts: BTreeSet<_> = index
        .scripts(false)
        .unwrap()
        .iter()
        .map(|s| (s.filename.clone(), s.guid.to_string()))
        .collect();
    let mut wanted: BTreeSet<_> = sample.state["sieve"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(n, g)| (n.clone(), g.as_str().unwrap().to_owned()))
        .collect();
    if sample.name == "resurrected" {
        // The old compact has dropped the lines that said that they were gone.
        assert!(extra.remove("user.resurrected.Gone"));
        wanted.extend(scripts.iter().filter(|(n, _)| n == "x.script").cloned());
    }
    // What cyr_expire has cleaned away nobody tells.
    extra.retain(|name| !name.starts_with("DELETED."));
    assert_eq!(extra, BTreeSet::new(), "{}", sample.name);
    assert_eq!(scripts, wanted, "{}", sample.name);
    let subscribed: BTreeSet<_> = index
        .subscriptions(false)
        .unwrap()
        .into_iter()
        .map(|s| s.mboxname)
        .collect();
    let wanted: BTreeSet<_> = sample.state["subscriptions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_str().unwrap().to_owned())
        .collect();
    assert_eq!(subscribed, wanted, "{}", sample.name);
    assert!(index.marks().unwrap().is_empty(), "{}", sample.name);
}

/// Whether GET USER tells what backupd told, in all that a client compares.
fn check_told(sample: &Sample, index: &Index) {
    let rows = index.mailboxes(false).unwrap();
    let mut told = 0;
    for line in sample.state["told"].as_array().unwrap() {
        if line[0] != "MAILBOX" || sample.name == "renamed" {
            continue;
        }
        told += 1;
        let theirs = &line[1];
        let name = theirs["MBOXNAME"].as_str().unwrap();
        let row = rows.iter().find(|r| r.mboxname == name);
        let row = row.unwrap_or_else(|| panic!("{}: {name} is told", sample.name));
        let ours = row.head.reply();
        for (key, value) in theirs.as_object().unwrap() {
            let ours = ours.get(key);
            let same = match (key.as_str(), value) {
                // Never kept by backupd, which answers these whatever came.
                ("QUOTAROOT" | "XCONVMODSEQ" | "MBOXTYPE", _) => true,
                ("ANNOTATIONS", list) => {
                    ours.and_then(Dlist::as_list).unwrap_or(&[]).len()
                        == list.as_array().unwrap().len()
                }
                (_, Value::Null) => ours.is_none_or(|v| *v == Dlist::Nil),
                (_, value) => ours.and_then(Dlist::as_str) == Some(value.as_str().unwrap()),
            };
            assert!(same, "{}: {name}: {key} {value} {ours:?}", sample.name);
        }
    }
    let live = rows.iter().filter(|r| !r.intermediate).count();
    if !matches!(sample.name, "renamed" | "shared") {
        assert_eq!(told, live, "{}", sample.name);
        assert!(told > 0);
    }
}

fn check_bodies(sample: &Sample, reader: &Reader) {
    let mut n = 0;
    let index = reader.index();
    for row in index.mailboxes(true).unwrap() {
        let mut guids = Vec::new();
        index
            .records(row.id, None, true, &mut |r| {
                assert!(!r.missing, "{}: {}", sample.name, r.record.guid);
                guids.push((r.record.guid, r.record.size));
                Ok(())
            })
            .unwrap();
        for (guid, size) in guids {
            let mut bytes = Vec::new();
            reader
                .body(guid, &mut |part| {
                    bytes.extend_from_slice(part);
                    Ok(())
                })
                .unwrap();
            assert_eq!(bytes.len() as u64, size);
            assert_eq!(Guid::of(&bytes), guid);
            n += 1;
        }
    }
    assert!(n > 0, "{}", sample.name);
}

fn subscribe(backup: &mut Backup, name: &str) {
    let value = [
        ("USERID", Dlist::text("anna")),
        ("MBOXNAME", Dlist::text(name)),
    ];
    let line = Line::new("SUB", &Dlist::kv(value));
    backup.append(&[line], Timestamp(1_700_000_000)).unwrap();
}

#[test]
fn all_samples_are_known() {
    let found: BTreeSet<_> = fs::read_dir(samples())
        .unwrap()
        .map(|f| f.unwrap().path())
        .filter(|p| p.is_dir())
        .map(|p| p.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    let known: BTreeSet<_> = SAMPLES.iter().map(|s| s.0.to_owned()).collect();
    assert_eq!(found, known);
}

#[test]
fn each_is_read_where_it_lies() {
    for (name, findings, foreign) in SAMPLES {
        let sample = Sample::new(name);
        let reader = sample.reader();
        check(&sample, reader.index());
        check_told(&sample, reader.index());
        check_bodies(&sample, &reader);
        let unreferenced = reader.index().unreferenced().unwrap();
        assert_eq!(unreferenced.0, foreign, "{name}");
        assert_eq!(unreferenced.1 > 0, foreign > 0, "{name}");
        drop(reader);
        assert_eq!(fs::read(sample.data()).unwrap(), sample.log, "{name}");
        // The old index is kept, and nothing else is made.
        let others = sample.others();
        assert_eq!(others.len(), 1, "{name}: {others:?}");
        let kept = others[0].to_str().unwrap();
        let time = kept.rsplit_once(".index.").unwrap().1;
        assert!(time.parse::<i64>().unwrap() > 1_600_000_000);
        assert_eq!(fs::read(kept).unwrap(), sample.index, "{name}");
        let found = sample.findings();
        assert_eq!(found.len(), findings, "{name}: {found:?}");
    }
}

#[test]
fn each_is_proved_before_anybody_opens_it() {
    for (name, findings, _) in SAMPLES {
        let mut told = Vec::new();
        for with_index in [true, false] {
            let sample = Sample::new(name);
            let index_path = index::path_of(&sample.data());
            if !with_index {
                index::remove(&index_path).unwrap();
            }
            for depth in [Depth::Quick, Depth::Full] {
                let proof = verify(&sample.data(), depth, &sample.dir).unwrap();
                assert!(proof.unadopted, "{name}");
                assert_eq!(
                    proof.findings.len(),
                    findings,
                    "{name}: {:?}",
                    proof.findings
                );
                assert_eq!(proof.bytes, sample.log.len() as u64);
                told = proof.findings;
            }
            assert_eq!(fs::read(sample.data()).unwrap(), sample.log, "{name}");
            assert_eq!(index_path.exists(), with_index);
            if with_index {
                assert_eq!(fs::read(&index_path).unwrap(), sample.index, "{name}");
            }
            assert!(sample.others().is_empty(), "{name}: {:?}", sample.others());
            // As opening it does, and proving it then.
            drop(sample.reader());
            assert_eq!(sample.findings().len(), findings, "{name}");
        }
        // A flip is found.
        let sample = Sample::new(name);
        let mut log = sample.log.clone();
        let at = log.len() / 2;
        log[at] ^= 0x21;
        fs::write(sample.data(), &log).unwrap();
        let proof = verify(&sample.data(), Depth::Full, &sample.dir).unwrap();
        assert_ne!(proof.findings, told, "{name}");
    }
}

#[test]
fn each_is_continued() {
    for (name, findings, _) in SAMPLES {
        let sample = Sample::new(name);
        sample.open().finish().unwrap();
        assert_eq!(fs::read(sample.data()).unwrap(), sample.log, "{name}");
        let inode = sample.inode();
        let before = held(sample.reader().index());
        let mut backup = sample.open();
        assert_eq!(
            sample.inode(),
            inode,
            "{name}: the index is not built twice"
        );
        assert_eq!(backup.index().meta_text("generation").unwrap().unwrap(), "");
        let clock = backup.index().meta_number("stamp").unwrap().unwrap();
        subscribe(&mut backup, "user.anna.one");
        let id = backup.index().meta_text("generation").unwrap().unwrap();
        assert_eq!(id.len(), 16);
        subscribe(&mut backup, "user.anna.two");
        backup.finish().unwrap();
        let log = fs::read(sample.data()).unwrap();
        assert!(log.starts_with(&sample.log), "{name}");
        // Again without our index: it says the same.
        for drop_index in [false, true] {
            if drop_index {
                index::remove(&index::path_of(&sample.data())).unwrap();
            }
            let reader = sample.reader();
            let index = reader.index();
            assert_eq!(index.meta_text("generation").unwrap().unwrap(), id);
            assert_eq!(index.meta_text("key").unwrap().unwrap(), "anna");
            assert_eq!(index.meta_number("stamp").unwrap().unwrap(), clock);
            assert!(index.is_subscribed("user.anna.two").unwrap());
            assert!(index.marks().unwrap().is_empty(), "{name}");
            assert_eq!(held(index), before, "{name}");
            drop(reader);
            let found = sample.findings();
            assert_eq!(found.len(), findings, "{name}: {found:?}");
        }
        assert_eq!(fs::read(sample.data()).unwrap(), log, "{name}");
        assert_eq!(sample.others().len(), 1, "{name}");
        let mut backup = sample.open();
        subscribe(&mut backup, "user.anna.three");
        assert_eq!(backup.index().meta_text("generation").unwrap().unwrap(), id);
        backup.finish().unwrap();
        let facts = Command::new("sh")
            .args([
                "-c",
                "zcat < \"$1\" 2>/dev/null | grep -ac 'GENERATION %('",
                "sh",
            ])
            .arg(sample.data())
            .output()
            .unwrap();
        if name != "killed" {
            assert_eq!(String::from_utf8_lossy(&facts.stdout).trim(), "1", "{name}");
        }
    }
}

#[test]
fn an_index_of_another_old_log_does_not_fit() {
    let (one, two) = (Sample::new("first"), Sample::new("sessions"));
    drop(one.reader());
    drop(two.reader());
    // Only the smaller one could pass for the other by its length.
    fs::copy(index::path_of(&one.data()), index::path_of(&two.data())).unwrap();
    assert!(Reader::open(&two.data(), Stale::Refuse).is_err());
    check(&two, two.reader().index());
    assert_eq!(two.others().len(), 1, "an index of ours is not kept");
}

#[test]
fn reindex_keeps_the_old_index() {
    let sample = Sample::new("first");
    let backup = Backup::reindex(
        &sample.data(),
        "anna",
        Wait::No,
        SETTINGS,
        2,
        Box::new(|_| ()),
    )
    .unwrap();
    check(&sample, backup.index());
    backup.finish().unwrap();
    assert_eq!(fs::read(&sample.others()[0]).unwrap(), sample.index);
}

#[test]
fn a_line_that_was_refused_costs_nothing_else() {
    let sample = Sample::new("intermediate");
    let found = {
        drop(sample.reader());
        sample.findings()
    };
    assert!(found[0].contains("UNIQUEID"), "{found:?}");
    let reader = sample.reader();
    assert!(reader.index().is_subscribed("user.intermediate.x").unwrap());
    let place = reader.index().mailbox("0000intermediate").unwrap().unwrap();
    assert!(place.intermediate && place.deleted.is_none());
}

#[test]
fn a_mailbox_that_went_to_another_user_is_not_live_here() {
    let sample = Sample::new("renamed");
    let reader = sample.reader();
    let all = reader.index().mailboxes(true).unwrap();
    let all: Vec<_> = all.iter().map(|r| r.mboxname.as_str()).collect();
    assert_eq!(all, ["user.other", "user.other.A"]);
    assert!(reader.index().mailboxes(false).unwrap().is_empty());
}

/// The member that backupd left unfinished may end anywhere, with more behind it.
#[test]
fn what_a_killed_writer_left_may_end_anywhere() {
    let whole = Sample::new("killed");
    let starts: Vec<usize> = (0..whole.log.len() - 3)
        .filter(|&i| whole.log[i..].starts_with(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0]))
        .collect();
    assert_eq!(starts.len(), 5);
    for end in (starts[1] + 1..starts[2]).step_by(7) {
        let sample = Sample::new("killed");
        let mut log = whole.log[..end].to_vec();
        log.extend_from_slice(&whole.log[starts[2]..]);
        fs::write(sample.data(), &log).unwrap();
        let reader = sample.reader();
        check(&sample, reader.index());
        check_bodies(&sample, &reader);
        drop(reader);
        assert_eq!(fs::read(sample.data()).unwrap(), log, "{end}");
        assert!(sample.findings().len() >= 3, "{end}");
        let mut backup = sample.open();
        subscribe(&mut backup, "user.anna.one");
        backup.finish().unwrap();
        check_bodies(&sample, &sample.reader());
    }
}

/// Where a session's last member is torn nothing lies behind it: it is cut, and a copy stays.
#[test]
fn a_torn_end_is_cut_and_kept() {
    let sample = Sample::new("sessions");
    for less in [1, 5, 9, 40, 300] {
        let torn = &sample.log[..sample.log.len() - less];
        fs::write(sample.data(), torn).unwrap();
        index::remove(&index::path_of(&sample.data())).unwrap();
        check_bodies(&sample, &sample.reader());
        let copies = sample.others();
        let copies = copies
            .iter()
            .filter(|p| fs::read(p).unwrap() == torn)
            .count();
        assert_eq!(copies, 1, "{less}");
        assert!(sample.findings().is_empty(), "{less}");
    }
}

/// What the old server lost is found when the log becomes ours, and asked for again.
#[test]
fn a_mailbox_that_lacks_something_is_marked_at_the_first_write() {
    let sample = Sample::new("sessions");
    let starts: Vec<usize> = (0..sample.log.len() - 3)
        .filter(|&i| sample.log[i..].starts_with(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0]))
        .collect();
    let mut log = sample.log[..starts[1]].to_vec();
    log.extend_from_slice(&sample.log[starts[2]..]);
    fs::write(sample.data(), &log).unwrap();
    assert!(sample.reader().index().marks().unwrap().is_empty());
    assert_eq!(
        fs::read(sample.data()).unwrap(),
        log,
        "looking writes nothing"
    );
    let mut backup = sample.open();
    subscribe(&mut backup, "user.anna.one");
    let marks = backup.index().marks().unwrap();
    assert_eq!(marks.len(), 1);
    backup.finish().unwrap();
    assert!(sample.findings().is_empty());
    index::remove(&index::path_of(&sample.data())).unwrap();
    let mut backup = sample.open();
    assert_eq!(backup.index().marks().unwrap().len(), 1);
    let len = fs::metadata(sample.data()).unwrap().len();
    drop(backup);
    backup = sample.open();
    assert_eq!(backup.index().marks().unwrap(), marks);
    assert_eq!(fs::metadata(sample.data()).unwrap().len(), len);
}

/// A session that only asked is all there is, and lies behind what a killed one left.
#[test]
fn members_without_lines_stay_wherever_they_are() {
    let sample = Sample::new("empty");
    let killed = Sample::new("killed");
    let header = &sample.log[..55];
    let starts: Vec<usize> = (0..killed.log.len() - 3)
        .filter(|&i| killed.log[i..].starts_with(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0]))
        .collect();
    let torn = [&killed.log[..starts[2]], header].concat();
    for (log, many) in [
        (header.to_vec(), 0),
        ([header, header].concat(), 0),
        (torn, 2),
    ] {
        fs::write(sample.data(), &log).unwrap();
        index::remove(&index::path_of(&sample.data())).unwrap();
        for _ in 0..2 {
            sample.open().finish().unwrap();
            assert_eq!(fs::read(sample.data()).unwrap(), log);
            assert_eq!(sample.findings().len(), many);
        }
        let mut backup = sample.open();
        subscribe(&mut backup, "user.anna.one");
        backup.finish().unwrap();
        assert!(fs::read(sample.data()).unwrap().starts_with(&log));
        let found = sample.findings();
        assert_eq!(found.len(), many, "{found:?}");
    }
    let others = sample.others();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn compaction_keeps_what_they_say() {
    let now = Timestamp(2_000_000_000);
    let said = |sample: &Sample| {
        let reader = sample.reader();
        let mut said = picture(reader.index());
        // Marks are set at the first write.
        said.retain(|line| !line.starts_with("mark "));
        let mut bodies = BTreeSet::new();
        for mailbox in reader.index().mailboxes(false).unwrap() {
            let each = &mut |row: index::RecordRow| {
                bodies.insert((row.record.guid, row.missing));
                Ok(())
            };
            let index = reader.index();
            index.records(mailbox.id, None, false, each).unwrap();
        }
        let lost = bodies
            .iter()
            .filter(|(guid, missing)| !missing && reader.body(*guid, &mut |_| Ok(())).is_err());
        assert_eq!(lost.count(), 0, "{}: bodies that do not read", sample.name);
        (said, bodies)
    };
    for (name, _, _) in SAMPLES {
        let sample = Sample::new(name);
        let before = said(&sample);
        for kept in [None, Some(0), None] {
            let policy = Policy {
                force: true,
                ..crate::compact::policy()
            };
            let retention = UserRetention::always(kept);
            let times = Times {
                retention: &retention,
                namespace: &Namespace::default(),
                now,
            };
            let done = compact(&sample.data(), "anna", &policy, &times, &sample.dir);
            done.unwrap_or_else(|e| panic!("{name} {kept:?}: {e}"));
            assert_eq!(said(&sample), before, "{name} {kept:?}");
            // A line that the old server refused stays as long as history does.
            let mut found = sample.findings();
            found.retain(|what| !(kept.is_none() && what.contains("without a good")));
            assert!(found.is_empty(), "{name} {kept:?}: {found:?}");
        }
    }
}
