//! Our twoskip and the C one on the same files: what one writes, the other must read.
//!
//! The oracle is Cyrus' `cyr_dbtool`; without it each test says so and passes.

use cyr_backup::cyrus::twoskip::{Db, OpenMode};
use cyr_backup::store::catalog::Catalog;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const TOOL: &str = "/usr/lib/cyrus/bin/cyr_dbtool";

/// A folder with a database both sides may write, and the C tool set up for it.
struct Bench {
    folder: PathBuf,
    owner: Option<(u32, u32)>,
}

impl Bench {
    /// `None`, with the reason on stderr, where the tool cannot be run.
    fn new(name: &str) -> Option<Bench> {
        let ram = Path::new("/dev/shm");
        let base = if ram.is_dir() {
            ram.to_owned()
        } else {
            std::env::temp_dir()
        };
        let folder = base.join(format!("cyr_backup-twoskip-{}-{name}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        let conf = format!(
            "configdirectory: {0}\ndefaultpartition: default\npartition-default: {0}\n",
            folder.display()
        );
        fs::write(folder.join("imapd.conf"), conf).unwrap();
        // Started as root the tool becomes the cyrus user by itself.
        let is_root = folder.metadata().unwrap().uid() == 0;
        let owner = is_root.then(|| Some((id("-u")?, id("-g")?))).flatten();
        if let Some((uid, gid)) = owner {
            chown(&folder, Some(uid), Some(gid)).unwrap();
        }
        let bench = Bench { folder, owner };
        let probe = bench.command(&["-n"], &["set", "probe", "1"]).output();
        match probe {
            Ok(out) if out.status.success() => {
                fs::remove_file(bench.path()).unwrap();
                Some(bench)
            }
            Ok(out) => {
                eprintln!("skipped: {TOOL}: {}", String::from_utf8_lossy(&out.stderr));
                None
            }
            Err(e) => {
                eprintln!("skipped: {TOOL}: {e}");
                None
            }
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.join("backups.db")
    }

    fn command(&self, options: &[&str], action: &[&str]) -> Command {
        let mut command = Command::new(TOOL);
        command.arg("-C").arg(self.folder.join("imapd.conf"));
        command
            .args(options)
            .arg(self.path())
            .arg("twoskip")
            .args(action);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if self.owner.is_none() {
            if let Ok(out) = Command::new("id").arg("-un").output() {
                let name = String::from_utf8_lossy(&out.stdout).trim().to_owned();
                command.env("CYRUS_USER", name);
            }
        }
        command
    }

    /// Runs one action and returns what it printed.
    fn tool(&self, action: &[&str]) -> String {
        let out = self.command(&[], action).output().unwrap();
        assert!(out.status.success(), "{action:?}: {out:?}");
        String::from_utf8(out.stdout).unwrap()
    }

    /// Starts an action that reads `lines`; its input stays open.
    fn feed(&self, options: &[&str], action: &str, lines: &str) -> Child {
        let mut command = self.command(options, &[action]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        child
            .stdin
            .as_mut()
            .unwrap()
            .write_all(lines.as_bytes())
            .unwrap();
        child
    }

    fn finish(mut child: Child) {
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }

    /// Opens ours and gives the file to the owner the tool runs as.
    fn open(&self) -> Db {
        let db = Db::open(&self.path(), OpenMode::Create).unwrap();
        if let Some((uid, gid)) = self.owner {
            chown(self.path(), Some(uid), Some(gid)).unwrap();
        }
        db
    }

    /// Both sides find the file whole and see the same.
    fn agree(&self, expected: &BTreeMap<String, String>) {
        assert_eq!(self.tool(&["consistent"]).trim(), "Yes, consistent");
        let mut theirs = BTreeMap::new();
        for line in self.tool(&["show"]).lines() {
            let (key, value) = line.split_once('\t').unwrap();
            theirs.insert(key.to_owned(), value.to_owned());
        }
        let mut db = Db::open(&self.path(), OpenMode::Read).unwrap();
        assert!(db.check().unwrap());
        let mut ours = BTreeMap::new();
        db.for_each(b"", |key, value| {
            ours.insert(text(key), text(value));
            Ok(())
        })
        .unwrap();
        assert!(
            &theirs == expected,
            "theirs: {} of {}",
            theirs.len(),
            expected.len()
        );
        assert!(
            &ours == expected,
            "ours: {} of {}",
            ours.len(),
            expected.len()
        );
        if let Some(owner) = self.owner {
            let meta = self.path().metadata().unwrap();
            assert_eq!((meta.uid(), meta.gid()), owner);
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn id(what: &str) -> Option<u32> {
    let out = Command::new("id").args([what, "cyrus"]).output().ok()?;
    String::from_utf8(out.stdout).ok()?.trim().parse().ok()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn set(db: &mut Db, key: &str, value: &str) {
    let mut txn = db.begin().unwrap();
    txn.put(key.as_bytes(), value.as_bytes()).unwrap();
    txn.commit().unwrap();
}

fn generation(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    u64::from_be_bytes(bytes[24..32].try_into().unwrap())
}

/// Keys in no order, as users come; all differ, for the modulus is prime.
fn key(i: u32) -> String {
    format!("user{:06}@example.com", u64::from(i) * 48_271 % 100_003)
}

#[test]
fn ten_thousand_of_ours_are_read_changed_and_repacked_by_theirs() {
    let Some(bench) = Bench::new("ours") else {
        return;
    };
    let mut db = bench.open();
    let mut expected = BTreeMap::new();
    for batch in 0..10 {
        let mut txn = db.begin().unwrap();
        for i in batch * 1000..(batch + 1) * 1000 {
            let value = format!("/backup/a/{}_x{i}", key(i));
            txn.put(key(i).as_bytes(), value.as_bytes()).unwrap();
            expected.insert(key(i), value);
        }
        txn.commit().unwrap();
    }
    assert_eq!(expected.len(), 10_000);
    bench.agree(&expected);
    let repacks = generation(&bench.path());
    assert!(
        repacks > 1,
        "growing to ten thousand keys repacks on the way"
    );

    // One by one: replaced, removed, new.
    for i in 0..300 {
        set(&mut db, &key(i * 7), "/moved");
        expected.insert(key(i * 7), "/moved".into());
        let mut txn = db.begin().unwrap();
        assert!(
            txn.delete(key(i * 11 + 1).as_bytes()).unwrap()
                == expected.remove(&key(i * 11 + 1)).is_some()
        );
        txn.commit().unwrap();
    }
    bench.agree(&expected);

    // Theirs go on with it and replace the file; ours, still open, follows.
    bench.tool(&["delete", &key(3)]);
    expected.remove(&key(3));
    let repacks = generation(&bench.path());
    bench.tool(&["repack"]);
    assert_eq!(generation(&bench.path()), repacks + 1);
    set(&mut db, "after", "repack");
    expected.insert("after".into(), "repack".into());
    bench.agree(&expected);
    assert_eq!(db.get(key(3).as_bytes()).unwrap(), None);

    // All removed, and then hardly a record among much waste: ours repacks by itself.
    let mut txn = db.begin().unwrap();
    for key in expected.keys() {
        assert!(txn.delete(key.as_bytes()).unwrap());
    }
    txn.commit().unwrap();
    bench.agree(&BTreeMap::new());
    bench.tool(&["repack"]);
    let repacks = generation(&bench.path());
    for _ in 0..300 {
        let mut txn = db.begin().unwrap();
        txn.put(b"gone", b"at once").unwrap();
        assert!(txn.delete(b"gone").unwrap());
        txn.commit().unwrap();
    }
    assert!(
        generation(&bench.path()) > repacks,
        "an empty list can be repacked"
    );
    bench.agree(&BTreeMap::new());
    for i in 0..3000 {
        let mut txn = db.begin().unwrap();
        txn.put(b"same", format!("{i}").as_bytes()).unwrap();
        txn.commit().unwrap();
    }
    assert!(
        bench.path().metadata().unwrap().len() < 40_000,
        "dead records are dropped"
    );
    bench.agree(&BTreeMap::from([("same".into(), "2999".into())]));
}

#[test]
fn theirs_is_read_and_changed_by_ours() {
    let Some(bench) = Bench::new("theirs") else {
        return;
    };
    let mut expected = BTreeMap::new();
    let mut lines = String::new();
    for i in 0..3000 {
        lines += &format!("{}\tvalue {i}\n", key(i));
        expected.insert(key(i), format!("value {i}"));
    }
    Bench::finish(bench.feed(&["-n"], "set", &lines));
    // Replaced and deleted by them, each in a transaction of its own.
    let (mut sets, mut deletes) = (String::new(), String::new());
    for i in 0..500 {
        sets += &format!("{}\tagain\n", key(i * 5));
        expected.insert(key(i * 5), "again".into());
        deletes += &format!("{}\n", key(i * 3));
        expected.remove(&key(i * 3));
    }
    Bench::finish(bench.feed(&[], "set", &sets));
    Bench::finish(bench.feed(&[], "delete", &deletes));
    bench.agree(&expected);
    // Neighbours, upwards and downwards: a deleted one before and after a deleted one.
    let neighbours: Vec<String> = expected.keys().skip(100).take(60).cloned().collect();
    let (up, down) = neighbours.split_at(30);
    let order: Vec<_> = up.iter().chain(down.iter().rev()).cloned().collect();
    Bench::finish(bench.feed(&[], "delete", &(order.join("\n") + "\n")));
    expected.retain(|key, _| !neighbours.contains(key));
    bench.agree(&expected);
    let mut db = bench.open();
    for key in order.iter().step_by(2) {
        set(&mut db, key, "back");
        expected.insert(key.clone(), "back".into());
    }
    for i in 0..500 {
        set(&mut db, &key(i * 2), "ours");
        expected.insert(key(i * 2), "ours".into());
        let mut txn = db.begin().unwrap();
        let was = txn.delete(key(i * 9).as_bytes()).unwrap();
        assert_eq!(was, expected.remove(&key(i * 9)).is_some());
        txn.commit().unwrap();
        // An abandoned one leaves no trace.
        let mut txn = db.begin().unwrap();
        txn.put(b"nobody", b"x").unwrap();
        txn.delete(key(i * 2).as_bytes()).unwrap();
    }
    bench.agree(&expected);
    bench.tool(&["repack"]);
    bench.agree(&expected);
    let with_prefix = expected.keys().filter(|k| k.starts_with("user001")).count();
    let mut seen = 0;
    db.for_each(b"user001", |_, _| {
        seen += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(seen, with_prefix);
    assert!(seen > 0);
}

#[test]
fn both_at_once_lose_no_update() {
    let Some(bench) = Bench::new("both") else {
        return;
    };
    drop(bench.open());
    let catalog = Arc::new(Catalog::open(&bench.path(), false));
    let mut expected = BTreeMap::new();
    let mut children = Vec::new();
    for n in 0..2 {
        let mut lines = String::new();
        for i in 0..400 {
            lines += &format!("theirs{n}-{}\t/{i}\nshared{i}\t/theirs\n", key(i));
            expected.insert(format!("theirs{n}-{}", key(i)), format!("/{i}"));
        }
        children.push(bench.feed(&[], "set", &lines));
    }
    let threads: Vec<_> = (0..2)
        .map(|n| {
            let catalog = catalog.clone();
            std::thread::spawn(move || {
                for i in 0..400 {
                    let own = format!("ours{n}-{}", key(i));
                    catalog.set(&own, Path::new(&format!("/{i}"))).unwrap();
                    catalog
                        .set(&format!("shared{i}"), Path::new("/ours"))
                        .unwrap();
                    assert!(catalog.lookup(&own).unwrap().is_some());
                }
            })
        })
        .collect();
    for (n, i) in (0..2).flat_map(|n| (0..400).map(move |i| (n, i))) {
        expected.insert(format!("ours{n}-{}", key(i)), format!("/{i}"));
    }
    threads.into_iter().for_each(|t| t.join().unwrap());
    children.into_iter().for_each(Bench::finish);
    // Who was last with a shared key is chance; that it has one of the two values is not.
    for i in 0..400 {
        let got = catalog.lookup(&format!("shared{i}")).unwrap().unwrap();
        let got = got.to_str().unwrap().to_owned();
        assert!(got == "/ours" || got == "/theirs");
        expected.insert(format!("shared{i}"), got);
    }
    bench.agree(&expected);
}

#[test]
fn a_transaction_of_theirs_keeps_ours_out_until_it_ends() {
    let Some(bench) = Bench::new("hold") else {
        return;
    };
    let mut db = bench.open();
    set(&mut db, "counter", "1");
    let held = bench.feed(&["-T"], "set", "counter\t2\n");
    // Until they have begun; the file then says so.
    let start = Instant::now();
    while fs::read(bench.path()).unwrap()[59] & 1 == 0 {
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(5));
    }
    let path = bench.path();
    let ours = std::thread::spawn(move || {
        let mut db = Db::open(&path, OpenMode::ReadWrite).unwrap();
        let mut txn = db.begin().unwrap();
        let was = text(&txn.get(b"counter").unwrap().unwrap());
        txn.put(b"counter", format!("{was}+ours").as_bytes())
            .unwrap();
        txn.commit().unwrap();
    });
    std::thread::sleep(Duration::from_millis(200));
    assert!(!ours.is_finished(), "their lock must keep us out");
    Bench::finish(held);
    ours.join().unwrap();
    bench.agree(&BTreeMap::from([("counter".into(), "2+ours".into())]));

    // And ours keeps theirs out.
    let mut txn = db.begin().unwrap();
    let mut child = bench.feed(&[], "set", "counter\ttheirs\n");
    drop(child.stdin.take());
    std::thread::sleep(Duration::from_millis(200));
    assert!(
        child.try_wait().unwrap().is_none(),
        "our lock must keep them out"
    );
    txn.put(b"counter", b"ours").unwrap();
    txn.put(b"other", b"x").unwrap();
    txn.commit().unwrap();
    Bench::finish(child);
    let expected = [("counter", "theirs"), ("other", "x")];
    bench.agree(&expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
}

#[test]
fn a_crash_of_either_is_recovered_by_the_other() {
    let Some(bench) = Bench::new("crash") else {
        return;
    };
    let mut db = bench.open();
    let mut expected = BTreeMap::new();
    for i in 0..50 {
        set(&mut db, &key(i), "first");
        expected.insert(key(i), "first".to_owned());
    }
    // Theirs begins a transaction and dies.
    let out = bench.command(&[], &["damage"]).output().unwrap();
    assert_eq!(out.status.code(), Some(70));
    let dirty = fs::read(bench.path()).unwrap();
    assert_eq!(dirty[59] & 1, 1);
    // A reader needs no recovery and changes nothing.
    let mut reader = Db::open(&bench.path(), OpenMode::Read).unwrap();
    assert!(!reader.check().unwrap());
    assert_eq!(reader.get(key(7).as_bytes()).unwrap().unwrap(), b"first");
    assert!(reader.begin().is_err());
    assert_eq!(fs::read(bench.path()).unwrap(), dirty);
    set(&mut db, "after", "crash");
    expected.insert("after".into(), "crash".into());
    bench.agree(&expected);

    // Killed in the middle of a longer transaction.
    let mut lines = String::new();
    for i in 0..200 {
        lines += &format!("{}\tlost\n", key(i));
    }
    let mut child = bench.feed(&["-T"], "set", &lines);
    let before = bench.path().metadata().unwrap().len();
    let start = Instant::now();
    while bench.path().metadata().unwrap().len() < before + 3000 {
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    drop(Db::open(&bench.path(), OpenMode::ReadWrite).unwrap());
    bench.agree(&expected);

    // Ours dies: the file as a reader saw it in the middle of our transaction is theirs to recover.
    let mut txn = db.begin().unwrap();
    for i in 25..75 {
        txn.put(key(i).as_bytes(), b"lost").unwrap();
        txn.delete(key(i / 3).as_bytes()).unwrap();
    }
    let torn = fs::read(bench.path()).unwrap();
    drop(txn);
    bench.agree(&expected);
    for cut in [0, 8, 1000] {
        fs::write(bench.path(), &torn[..torn.len() - cut]).unwrap();
        bench.tool(&["get", "after"]);
        bench.agree(&expected);
    }
}

#[test]
fn a_session_of_lookups_is_cheap() {
    let Some(bench) = Bench::new("speed") else {
        return;
    };
    drop(bench.open());
    let catalog = Catalog::open(&bench.path(), false);
    let entries: Vec<_> = (0..10_000)
        .map(|i| (key(i), Some(PathBuf::from(format!("/backup/{i}")))))
        .collect();
    catalog.replace(&entries).unwrap();
    let start = Instant::now();
    for i in 0..10_000 {
        let got = catalog.lookup(&key(i)).unwrap().unwrap();
        assert_eq!(got, Path::new(&format!("/backup/{i}")));
    }
    let took = start.elapsed();
    eprintln!("10000 lookups among 10000 keys: {took:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
    let start = Instant::now();
    assert_eq!(catalog.list().unwrap().len(), 10_000);
    eprintln!("list: {:?}", start.elapsed());
    assert_eq!(bench.tool(&["consistent"]).trim(), "Yes, consistent");
}
