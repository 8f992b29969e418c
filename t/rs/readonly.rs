//! A copy in a place where nothing can be written is read, proved and restored from with `-f`.

use super::looking::{NOW, ONE, Store};
use cyr_backup::cyrus::dlist::Value as Dlist;
use cyr_backup::cyrus::guid::Guid;
use cyr_backup::store::backup::Backup;
use cyr_backup::store::line::Line;
use cyr_backup::store::lock::{Create, Wait};
use cyr_backup::util::time::Timestamp;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder nobody but its owner, and not even he, writes to.
struct Still(PathBuf);

impl Still {
    fn new(store: &Store, files: &[(&Path, &str)]) -> Still {
        let dir = store.0.join("still");
        fs::create_dir(&dir).unwrap();
        for (from, name) in files {
            fs::copy(from, dir.join(name)).unwrap();
            let mode = fs::Permissions::from_mode(0o444);
            fs::set_permissions(dir.join(name), mode).unwrap();
        }
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o555)).unwrap();
        Still(dir)
    }

    fn log(&self) -> String {
        self.0.join("log").display().to_string()
    }

    /// Names, inodes, times and contents.
    fn all(&self) -> Vec<(PathBuf, u64, i64, Vec<u8>)> {
        let mut all: Vec<_> = fs::read_dir(&self.0)
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let meta = fs::metadata(&path).unwrap();
                let bytes = fs::read(&path).unwrap();
                (path, meta.ino(), meta.mtime(), bytes)
            })
            .collect();
        all.sort();
        all
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        let _ = fs::set_permissions(&self.0, fs::Permissions::from_mode(0o755));
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What looks at one backup, and its exit status.
fn looks_at(store: &Store, still: &Still, whole: i32) {
    let before = still.all();
    let log = still.log();
    let run = |words: &[&str], status: i32| {
        let ran = store.run(words);
        let out = String::from_utf8_lossy(&ran.out).into_owned();
        assert_eq!(ran.status, status, "{words:?}: {} {out}", ran.err);
        out
    };
    let one = Guid::of(ONE).to_string();
    let shown = run(&["messages", "-f", &log], 0);
    assert!(shown.contains(&one), "{shown}");
    assert_eq!(store.run(&["dump", "message", "-f", &log, &one]).out, ONE);
    for words in [
        &["mailboxes"][..],
        &["stat"],
        &["chunks"],
        &["history"],
        &["search", "--subject", "one"],
        &["diff", "--from", "2026-11-24"],
        &["messages", "--at", "2026-11-24T12:00"],
    ] {
        run(&[words, &["-f", &log]].concat(), 0);
    }
    run(&["show", "-f", &log, "subscriptions"], 0);
    for depth in [&["--quick"][..], &[]] {
        run(&[&["verify"], depth, &["-f", &log]].concat(), whole);
    }
    let to = format!("tar:{}", store.0.join("out.tar").display());
    // One message never came.
    run(&["restore", "--to", &to, "-f", &log], 1);
    let tar = output("tar", &["-tf", &to[4..]]);
    assert!(String::from_utf8_lossy(&tar).contains(&one));
    fs::remove_file(store.0.join("out.tar")).unwrap();
    assert_eq!(still.all(), before);
    let staging = fs::read_dir(store.0.join("staging")).unwrap();
    assert_eq!(staging.count(), 0, "left in staging");
}

fn store(name: &str) -> Store {
    let store = Store::new(name);
    let conf = store.0.join("imapd.conf");
    let mut text = fs::read_to_string(&conf).unwrap();
    text.push_str(&format!(
        "backup_staging_path: {}\n",
        store.0.join("staging").display()
    ));
    fs::write(&conf, text).unwrap();
    fs::create_dir(store.0.join("staging")).unwrap();
    let wait = Wait::No;
    let settings = super::looking::SETTINGS;
    // Something later than the time that is asked for.
    let path = store.path("anna");
    let mut backup = Backup::open(&path, "anna", wait, Create::No, settings).unwrap();
    let line = Line::new("SUB", &Dlist::kv([("MBOXNAME", Dlist::text("later"))]));
    backup.append(&[line], Timestamp(NOW.0 + 400_000)).unwrap();
    backup.finish().unwrap();
    store.hand_over();
    store
}

fn output(program: &str, args: &[&str]) -> Vec<u8> {
    Command::new(program).args(args).output().unwrap().stdout
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[test]
fn a_copy_with_its_index() {
    let store = store("still-index");
    let path = store.path("anna");
    let index = beside(&path, ".index");
    let still = Still::new(&store, &[(&path, "log"), (&index, "log.index")]);
    looks_at(&store, &still, 0);
}

#[test]
fn a_copy_whose_index_was_in_use() {
    let store = store("still-wal");
    let path = store.path("anna");
    let settings = super::looking::SETTINGS;
    let mut backup = Backup::open(&path, "anna", Wait::No, Create::No, settings).unwrap();
    let line = Line::new("SUB", &Dlist::kv([("MBOXNAME", Dlist::text("wal"))]));
    backup.append(&[line], Timestamp(NOW.0 + 400_001)).unwrap();
    let (index, wal) = (beside(&path, ".index"), beside(&path, ".index-wal"));
    assert!(fs::metadata(&wal).unwrap().len() > 0);
    let files: [(&Path, &str); 3] = [
        (&path, "log"),
        (&index, "log.index"),
        (&wal, "log.index-wal"),
    ];
    let still = Still::new(&store, &files);
    backup.finish().unwrap();
    store.hand_over();
    looks_at(&store, &still, 0);
    let shown = store
        .run(&["show", "-f", &still.log(), "subscriptions"])
        .out;
    assert!(String::from_utf8_lossy(&shown).contains("wal"));
}

#[test]
fn a_copy_without_an_index() {
    let store = store("still-none");
    let path = store.path("anna");
    let still = Still::new(&store, &[(&path, "log")]);
    // One of ours should have one.
    looks_at(&store, &still, 65);
}

#[test]
fn a_copy_that_was_cut() {
    let store = store("still-cut");
    let path = store.path("anna");
    let bytes = fs::read(&path).unwrap();
    let cut = store.0.join("cut");
    fs::write(&cut, &bytes[..bytes.len() - 9]).unwrap();
    let index = beside(&path, ".index");
    let still = Still::new(&store, &[(&cut, "log"), (&index, "log.index")]);
    let before = still.all();
    let ran = store.run(&["verify", "-f", &still.log()]);
    assert_eq!(ran.status, 65);
    let text = String::from_utf8(ran.out).unwrap();
    let (is, was) = (bytes.len() - 9, bytes.len());
    let told = format!("log is {is} bytes, {was} were acknowledged; run heal");
    assert!(text.contains(&told), "{text}");
    let ran = store.run(&["messages", "-f", &still.log()]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert!(String::from_utf8_lossy(&ran.out).contains(&Guid::of(ONE).to_string()));
    assert!(ran.err.contains("log finding"), "{}", ran.err);
    assert_eq!(still.all(), before);
}

#[test]
fn a_copy_of_the_old_tools() {
    let store = store("still-old");
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("t/data/old-backups/first");
    let index = store.0.join("old.index");
    let packed = sample.join("index.gz");
    fs::write(&index, output("gzip", &["-dc", packed.to_str().unwrap()])).unwrap();
    for with_index in [true, false] {
        let log = sample.join("log");
        let files: [(&Path, &str); 2] = [(&log, "log"), (&index, "log.index")];
        let still = Still::new(&store, &files[..1 + usize::from(with_index)]);
        let before = still.all();
        let log = still.log();
        for words in [&["verify"][..], &["messages"], &["mailboxes"], &["stat"]] {
            let ran = store.run(&[words, &["-f", &log]].concat());
            let out = String::from_utf8_lossy(&ran.out);
            assert_eq!(ran.status, 0, "{words:?}: {} {out}", ran.err);
            assert!(out.len() > 20, "{words:?}: {out}");
        }
        assert_eq!(still.all(), before);
    }
}
