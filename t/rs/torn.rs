//! What a writer leaves that died in the middle: opening and reindexing settle it without calling
//! it damage, without a copy, and without a mailbox to be sent again.

use cyr_backup::cyrus::dlist::Value;
use cyr_backup::cyrus::guid::Guid;
use cyr_backup::error::Kind;
use cyr_backup::store::backup::{Backup, Settings};
use cyr_backup::store::index;
use cyr_backup::store::line::Line;
use cyr_backup::store::lock::{Create, Wait};
use cyr_backup::store::reader::{Reader, Stale};
use cyr_backup::util::time::Timestamp;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SETTINGS: Settings = Settings {
    level: 1,
    chunk_max: 1 << 20,
};
/// Other tests start programs, which hold our locks for a moment, until they are what they are.
const WAIT: Wait = Wait::For(Duration::from_secs(20));
const NOW: Timestamp = Timestamp(1_795_439_789);

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir =
            std::env::temp_dir().join(format!("cyrbackup-torn-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    fn path(&self) -> PathBuf {
        self.0.join("anna_abcdef")
    }

    /// All there is, without what SQLite makes beside its file.
    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(&self.0).unwrap().flatten();
        let names = names.map(|f| f.file_name().to_string_lossy().into_owned());
        let mut names: Vec<_> = names
            .filter(|n| !n.ends_with("-wal") && !n.ends_with("-shm"))
            .collect();
        names.sort();
        names
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn open(path: &Path) -> Backup {
    Backup::open(path, "anna", WAIT, Create::IfMissing, SETTINGS).unwrap()
}

fn subscribe(backup: &mut Backup, name: &str) {
    let sub = Value::kv([
        ("USERID", Value::text("anna")),
        ("MBOXNAME", Value::text(name)),
    ]);
    backup.append(&[Line::new("SUB", &sub)], NOW).unwrap();
}

/// A large body that does not shrink, so that some of it is on disk before the unit is durable.
fn begin_body(backup: &mut Backup) {
    let mut state = 7_u32;
    let body: Vec<u8> = (0..400_000)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    let size = body.len() as u64;
    backup
        .body_begin(b"default", Guid::of(&body), size, NOW)
        .unwrap();
    backup.body_data(&body[..399_000]).unwrap();
}

fn settled(dir: &Dir, backup: &Backup, subscriptions: usize) {
    assert_eq!(backup.damage(), []);
    assert_eq!(backup.index().marks().unwrap(), []);
    let known = backup.index().subscriptions(false).unwrap();
    assert_eq!(known.len(), subscriptions);
    assert_eq!(dir.names(), ["anna_abcdef", "anna_abcdef.index"]);
}

fn reindex(path: &Path) -> Backup {
    Backup::reindex(path, "anna", WAIT, SETTINGS, 2, Box::new(|_| ())).unwrap()
}

#[test]
fn reindex_after_a_writer_that_died_in_a_unit() {
    let dir = Dir::new("unit");
    let mut backup = open(&dir.path());
    subscribe(&mut backup, "user.anna");
    let durable = fs::metadata(dir.path()).unwrap().len();
    begin_body(&mut backup);
    drop(backup);
    assert!(fs::metadata(dir.path()).unwrap().len() > durable, "torn");
    settled(&dir, &reindex(&dir.path()), 1);
}

#[test]
fn reindex_after_a_writer_that_died_between_units() {
    for with_index in [true, false] {
        let dir = Dir::new("idle");
        let mut backup = open(&dir.path());
        subscribe(&mut backup, "user.anna");
        drop(backup);
        if !with_index {
            index::remove(&index::path_of(&dir.path())).unwrap();
        }
        settled(&dir, &reindex(&dir.path()), 1);
    }
}

#[test]
fn a_new_backup_whose_first_unit_was_torn_begins_anew() {
    for rebuild in [false, true] {
        let dir = Dir::new("first");
        let mut backup = open(&dir.path());
        begin_body(&mut backup);
        drop(backup);
        let len = fs::metadata(dir.path()).unwrap().len();
        assert!(len > 100_000, "torn");
        // Wherever in its first lines the writer died.
        let all = fs::read(dir.path()).unwrap();
        for cut in (1..300).step_by(11).chain([len]) {
            fs::write(dir.path(), &all[..cut as usize]).unwrap();
            index::remove(&index::path_of(&dir.path())).unwrap();
            let empty = dir.0.join("empty");
            drop(open(&empty));
            fs::rename(index::path_of(&empty), index::path_of(&dir.path())).unwrap();
            fs::remove_file(&empty).unwrap();
            let mut backup = match rebuild {
                false => open(&dir.path()),
                true => reindex(&dir.path()),
            };
            settled(&dir, &backup, 0);
            subscribe(&mut backup, "user.anna");
            backup.finish().unwrap();
            settled(&dir, &open(&dir.path()), 1);
        }
    }
}

#[test]
fn a_new_index_beside_a_log_with_durable_units_takes_them_in() {
    // What is left when power goes: the log was synced, the index was not.
    let dir = Dir::new("power");
    let empty = dir.0.join("empty");
    drop(open(&empty));
    let mut backup = open(&dir.path());
    subscribe(&mut backup, "user.anna");
    subscribe(&mut backup, "user.anna.sub");
    drop(backup);
    index::remove(&index::path_of(&dir.path())).unwrap();
    fs::rename(index::path_of(&empty), index::path_of(&dir.path())).unwrap();
    fs::remove_file(&empty).unwrap();
    settled(&dir, &open(&dir.path()), 2);
}

#[test]
fn a_new_index_beside_a_broken_log_loses_nothing() {
    let dir = Dir::new("broken");
    let empty = dir.0.join("empty");
    drop(open(&empty));
    let mut backup = open(&dir.path());
    subscribe(&mut backup, "user.anna");
    backup.finish().unwrap();
    let mut all = fs::read(dir.path()).unwrap();
    all.extend_from_slice(b"not a member at all");
    fs::write(dir.path(), &all).unwrap();
    index::remove(&index::path_of(&dir.path())).unwrap();
    fs::rename(index::path_of(&empty), index::path_of(&dir.path())).unwrap();
    fs::remove_file(&empty).unwrap();
    let backup = open(&dir.path());
    assert_eq!(backup.index().subscriptions(false).unwrap().len(), 1);
    let kept: Vec<_> = dir.names();
    let kept: Vec<_> = kept.iter().filter(|n| n.contains(".damaged.")).collect();
    assert_eq!(kept.len(), 1, "the file as it was stays beside");
    assert_eq!(fs::read(dir.0.join(kept[0])).unwrap(), all);
}

#[test]
fn an_index_that_was_being_made_is_made_again() {
    let dir = Dir::new("journal");
    let mut backup = open(&dir.path());
    subscribe(&mut backup, "user.anna");
    backup.finish().unwrap();
    let place = index::path_of(&dir.path());
    index::remove(&place).unwrap();
    // A journal that is to be played back, as the first steps of making one used to leave it.
    let other = dir.0.join("other");
    let conn = rusqlite::Connection::open(&other).unwrap();
    conn.execute_batch(
        "CREATE TABLE a (b); INSERT INTO a VALUES (1); PRAGMA cache_size = 1; BEGIN;
         WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 500)
         INSERT INTO a SELECT randomblob(1000) FROM n;",
    )
    .unwrap();
    let named = |suffix: &str| PathBuf::from(format!("{}{suffix}", place.display()));
    fs::copy(&other, &place).unwrap();
    fs::copy(dir.0.join("other-journal"), named("-journal")).unwrap();
    fs::copy(&other, named(".new")).unwrap();
    drop(conn);
    fs::remove_file(&other).unwrap();
    // Who reads only may not play it back: it is told so, and has it made anew.
    let read = Reader::open(&dir.path(), Stale::Refuse);
    assert_eq!(read.err().map(|e| e.kind()), Some(Kind::NeedsReindex));
    let read = Reader::open(&dir.path(), Stale::Repair(SETTINGS)).unwrap();
    assert_eq!(read.index().subscriptions(false).unwrap().len(), 1);
    drop(read);
    assert!(!named("-journal").exists());
    assert!(!named(".new").exists(), "what a killed rebuild left");
}
