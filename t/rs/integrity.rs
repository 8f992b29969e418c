//! Proving and repairing: catalogue, index and log against each other, through the built program.

use super::looking::{NOW, Ran, Store};
use cyr_backup::cyrus::dlist::Value as Dlist;
use cyr_backup::cyrus::mboxname::Namespace;
use cyr_backup::store::backup::Backup;
use cyr_backup::store::catalog::Catalog;
use cyr_backup::store::index;
use cyr_backup::store::line::Line;
use cyr_backup::store::lock::{Create, DataLock, Wait};
use cyr_backup::store::orphan::find;
use cyr_backup::store::reader::{Reader, Stale};
use cyr_backup::util::time::Timestamp;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

fn catalog(store: &Store) -> Catalog {
    Catalog::open(&store.0.join("conf/backups.db"), true)
}

fn parsed(ran: &Ran) -> Value {
    serde_json::from_slice(&ran.out).unwrap_or_else(|e| panic!("{e}: {}", ran.err))
}

/// Findings of `rescan` as "kind userid fixed".
fn rescan(store: &Store, status: i32, more: &[&str]) -> Vec<String> {
    let ran = store.run(&[&["rescan", "-j"], more].concat());
    assert_eq!(ran.status, status, "{} {:?}", ran.err, parsed(&ran));
    let found = parsed(&ran)["findings"].as_array().unwrap().clone();
    let word = |v: &Value| v.as_str().unwrap_or("?").to_owned();
    found
        .iter()
        .map(|f| {
            let fixed = if f["fixed"] == true { "fixed" } else { "left" };
            format!("{} {} {fixed}", word(&f["finding"]), word(&f["userid"]))
        })
        .collect()
}

fn copy(store: &Store, from: &str, to: &str) -> PathBuf {
    let target = store.0.join("data").join(to);
    fs::create_dir_all(target.parent().unwrap()).unwrap();
    fs::copy(store.path(from), &target).unwrap();
    store.hand_over();
    target
}

#[test]
fn rescan_makes_the_catalogue_again() {
    let store = Store::new("rescan");
    let catalog = || catalog(&store).list().unwrap();
    let before = catalog();
    assert_eq!(before.len(), 3);
    assert!(rescan(&store, 0, &[]).is_empty());

    // All gone: nothing is changed unasked.
    fs::remove_file(store.0.join("conf/backups.db")).unwrap();
    let orphans = |how: &str| {
        ["%SHARED//news", "anna", "carl@x.example"].map(|key| format!("orphan {key} {how}"))
    };
    assert_eq!(rescan(&store, 1, &[]), orphans("left"));
    assert!(!store.0.join("conf/backups.db").exists());
    assert_eq!(rescan(&store, 0, &["--fix"]), orphans("fixed"));
    assert_eq!(catalog(), before);
    assert!(rescan(&store, 0, &[]).is_empty());

    // Not readable: kept, and made again.
    fs::write(store.0.join("conf/backups.db"), b"rubbish").unwrap();
    store.hand_over();
    assert_eq!(rescan(&store, 1, &[]), orphans("left"));
    assert_eq!(
        fs::read(store.0.join("conf/backups.db")).unwrap(),
        b"rubbish"
    );
    assert_eq!(rescan(&store, 0, &["--fix"]), orphans("fixed"));
    assert_eq!(catalog(), before);
    let kept = fs::read_dir(store.0.join("conf")).unwrap().flatten();
    let kept = kept.filter(|f| f.file_name().to_string_lossy().contains(".damaged."));
    assert_eq!(kept.count(), 1);
}

#[test]
fn rescan_believes_the_log() {
    let store = Store::new("rescan-log");
    let set = |key: &str, path: &PathBuf| catalog(&store).set(key, path).unwrap();
    set("anna", &store.path("carl@x.example"));
    set("dora", &store.0.join("data/gone"));
    set("emil", &store.0.join("unmounted/x/gone"));
    set("fred", &store.0.join("imapd.conf"));
    // What is set aside, kept or being made is none of its business.
    copy(&store, "anna", "anna_123456.damaged.1795442465123");
    copy(&store, "anna", "anna_123456.1795442465");
    copy(&store, "anna", "anna_123456.new");
    fs::write(store.0.join("data/readme.gz"), b"\x1f\x8b\x08rubbish").unwrap();
    fs::write(store.0.join("data/new_abcdef"), b"").unwrap();
    store.hand_over();
    let found = |how| {
        vec![
            format!("disagrees anna {how}"),
            format!("missing dora {how}"),
            "missing emil left".into(),
            "nolog fred left".into(),
        ]
    };
    assert_eq!(rescan(&store, 1, &[]), found("left"));
    assert_eq!(rescan(&store, 1, &["--fix"]), found("fixed"));
    let now = catalog(&store);
    assert_eq!(now.lookup("anna").unwrap(), Some(store.path("anna")));
    assert_eq!(now.lookup("dora").unwrap(), None);
    assert!(now.lookup("emil").unwrap().is_some(), "perhaps not mounted");
    assert_eq!(rescan(&store, 1, &["--fix"]), found("")[2..].to_vec());
}

#[test]
fn of_two_logs_the_one_written_to_last_is_the_backup() {
    let store = Store::new("rescan-double");
    let old = copy(&store, "anna", "x/elsewhere");
    assert_eq!(rescan(&store, 1, &["--fix"]), ["double anna left"]);
    assert_eq!(
        catalog(&store).lookup("anna").unwrap(),
        Some(store.path("anna")),
        "of equals the one that was named"
    );
    // The copy goes on, the other one not.
    let wait = cyr_backup::store::lock::Wait::No;
    let create = cyr_backup::store::lock::Create::No;
    let mut backup = Backup::open(&old, "anna", wait, create, super::looking::SETTINGS).unwrap();
    let line = Line::new("SUB", &Dlist::kv([("MBOXNAME", Dlist::text("news"))]));
    backup.append(&[line], Timestamp(NOW.0 + 5000)).unwrap();
    backup.finish().unwrap();
    store.hand_over();
    let size = fs::metadata(store.path("anna")).unwrap().len();
    assert_eq!(rescan(&store, 1, &[]), ["double anna left"]);
    assert_eq!(
        catalog(&store).lookup("anna").unwrap(),
        Some(store.path("anna"))
    );
    assert_eq!(rescan(&store, 0, &["--fix"]), ["double anna fixed"]);
    assert_eq!(catalog(&store).lookup("anna").unwrap(), Some(old.clone()));
    // Never deleted; told as long as it lies there.
    assert_eq!(fs::metadata(store.path("anna")).unwrap().len(), size);
    assert_eq!(rescan(&store, 1, &["--fix"]), ["double anna left"]);
    index::remove(&index::path_of(&old)).unwrap();
    fs::remove_file(&old).unwrap();
    assert_eq!(rescan(&store, 0, &["--fix"]), ["missing anna fixed"]);
    assert_eq!(
        catalog(&store).lookup("anna").unwrap(),
        Some(store.path("anna"))
    );
}

#[test]
fn an_owner_without_an_entry_has_the_log_that_lies_in_his_folder() {
    let store = Store::new("left");
    let ns = Namespace::default();
    let data = store.0.join("data");
    let find = |key: &str| {
        let dirs = [store.0.join("gone"), data.clone()];
        find(&dirs, key, &ns, &catalog(&store)).unwrap()
    };
    assert_eq!(find("anna"), None, "no such folder");
    fs::create_dir_all(data.join("a")).unwrap();
    fs::create_dir_all(data.join("Z")).unwrap();
    let put = |from: &str, to: &str| {
        let to = data.join(to);
        fs::copy(store.path(from), &to).unwrap();
        to
    };
    put("anna", "a/anna_AbCdEf.copy");
    put("anna", "a/anna_AbCdEf.deleted.1795439789");
    put("carl@x.example", "a/anna_Carl00");
    fs::write(data.join("a/anna_Empty0"), b"").unwrap();
    fs::write(data.join("a/anna_Other0"), b"no log").unwrap();
    assert_eq!(find("anna"), None);
    let first = put("anna", "a/anna_AbCdEf");
    assert_eq!(find("anna"), Some(first.clone()));
    assert_eq!(find("ann"), None);
    // The one that was written to last.
    let second = put("anna", "a/anna_aaaaaa");
    let (wait, create) = (Wait::No, Create::No);
    let settings = super::looking::SETTINGS;
    let mut backup = Backup::open(&second, "anna", wait, create, settings).unwrap();
    let line = Line::new("SUB", &Dlist::kv([("MBOXNAME", Dlist::text("x"))]));
    backup.append(&[line], Timestamp(NOW.0 + 9000)).unwrap();
    backup.finish().unwrap();
    assert_eq!(find("anna"), Some(second.clone()));
    // One that is somebody's already, though not rightly.
    catalog(&store).set("bert", &second).unwrap();
    assert_eq!(find("anna"), Some(first));
    // Who was deleted begins anew.
    catalog(&store)
        .set("%FORMER/anna/u-inbox", &data.join("x"))
        .unwrap();
    assert_eq!(find("anna"), None);
}

#[test]
fn rescan_speaks() {
    let store = Store::new("rescan-text");
    assert!(
        store
            .text(&["rescan"])
            .ends_with("3 logs, 3 entries, 0 findings, 0 left\n")
    );
    catalog(&store).remove("anna").unwrap();
    let ran = store.run(&["rescan"]);
    let text = String::from_utf8_lossy(&ran.out);
    assert_eq!(ran.status, 1);
    assert!(text.contains("anna: a log without an entry: "), "{text}");
    assert!(text.contains(": --fix sets the entry to /"), "{text}");
    assert_eq!(store.run(&["rescan", "anna"]).status, 64);
}

/// `verify -j`: exit status, and for each backup its status and first finding.
fn verify(store: &Store, more: &[&str]) -> (i32, Vec<(String, String)>) {
    let ran = store.run(&[&["verify", "-j"], more].concat());
    let word = |v: &Value| v.as_str().unwrap_or("").to_owned();
    let rows = parsed(&ran)["backups"].as_array().unwrap().clone();
    let rows = rows.iter();
    let told = rows.map(|b| {
        let what = word(&b["findings"][0]["what"]);
        (
            format!("{} {}", word(&b["userid"]), word(&b["status"])),
            what,
        )
    });
    (ran.status, told.collect())
}

fn proven(store: &Store, command: &str) -> Vec<bool> {
    let rows = store.json(&[command, "-j", "-A"])["backups"].clone();
    let rows = rows.as_array().unwrap().iter();
    rows.map(|b| b["proven"].as_i64().is_some()).collect()
}

#[test]
fn verify_remembers_and_tells_what_is_not_there() {
    let store = Store::new("proven");
    let whole = |key: &str| (format!("{key} ok"), String::new());
    let all = vec![
        whole("%SHARED//news"),
        whole("anna"),
        whole("carl@x.example"),
    ];
    assert_eq!(verify(&store, &["--quick"]), (0, all.clone()));
    assert_eq!(proven(&store, "list"), [false; 3], "quick proves nothing");
    assert_eq!(verify(&store, &["anna"]), (0, all[1..2].to_vec()));
    assert_eq!(proven(&store, "list"), [false, true, false]);
    assert_eq!(proven(&store, "stat"), [false, true, false]);
    assert!(store.text(&["list"]).contains(" PROVEN "));
    assert!(
        store
            .text(&["stat", "anna"])
            .contains("  proven             20")
    );
    // The order is that of the catalogue, however many work at it; with --max-time those that were
    // never proven come first.
    for jobs in ["1", "2", "7"] {
        assert_eq!(
            verify(&store, &["--jobs", jobs, "--quick"]),
            (0, all.clone())
        );
    }
    let order = vec![all[0].clone(), all[2].clone(), all[1].clone()];
    assert_eq!(verify(&store, &["--max-time", "1h", "--quick"]), (0, order));
    for bad in ["--jobs=0", "--jobs=x", "--max-time=0", "--max-time=1x"] {
        assert_eq!(store.run(&["verify", bad]).status, 64, "{bad}");
    }
    assert_eq!(verify(&store, &[]), (0, all));
    assert_eq!(proven(&store, "list"), [true; 3]);

    // Another log in its place is not the one that was proven.
    let path = store.path("carl@x.example");
    fs::remove_file(&path).unwrap();
    index::remove(&index::path_of(&path)).unwrap();
    let mut backup = store.backup("carl@x.example");
    let line = Line::new("SUB", &Dlist::kv([("MBOXNAME", Dlist::text("news"))]));
    backup.append(&[line], NOW).unwrap();
    backup.finish().unwrap();
    store.hand_over();
    assert_eq!(proven(&store, "list"), [true, true, false]);

    // An entry without a file, an index without its log, somebody else's log.
    catalog(&store)
        .set("dora", &store.0.join("data/gone"))
        .unwrap();
    catalog(&store).set("emil", &store.path("anna")).unwrap();
    index::remove(&index::path_of(&path)).unwrap();
    store.hand_over();
    let (status, found) = verify(&store, &[]);
    assert_eq!(status, 65);
    let starts = [
        ("%SHARED//news ok", ""),
        ("anna ok", ""),
        ("carl@x.example damaged", "index is missing; run reindex"),
        ("dora damaged", "data file is missing"),
        ("emil damaged", "backups.db says emil, the log says anna"),
    ];
    assert_eq!(found.len(), starts.len());
    for ((who, what), (expect, start)) in found.iter().zip(starts) {
        assert_eq!(who, expect);
        assert!(what.starts_with(start), "{who}: {what}");
    }
    assert_eq!(verify(&store, &["dora"]).0, 65);
}

/// A further line in somebody's log.
fn go_on(store: &Store, key: &str, mailbox: &str) -> Backup {
    let (wait, create) = (Wait::No, Create::No);
    let mut backup = Backup::open(
        &store.path(key),
        key,
        wait,
        create,
        super::looking::SETTINGS,
    )
    .unwrap();
    let line = Line::new("SUB", &Dlist::kv([("MBOXNAME", Dlist::text(mailbox))]));
    backup.append(&[line], Timestamp(NOW.0 + 500)).unwrap();
    backup
}

#[test]
fn a_log_that_goes_on_behind_its_index_is_not_proven() {
    let store = Store::new("behind");
    let path = store.path("anna");
    let index = index::path_of(&path);
    let older = fs::read(&index).unwrap();
    let known = fs::metadata(&path).unwrap().len();
    go_on(&store, "anna", "a").finish().unwrap();
    go_on(&store, "anna", "b").finish().unwrap();
    let newer = fs::read(&index).unwrap();
    let log = fs::read(&path).unwrap();
    let more = log.len() as u64 - known;
    let both = |status: i32, what: &str| {
        store.hand_over();
        for depth in [&["--quick", "anna"][..], &["anna"]] {
            let (code, found) = verify(&store, depth);
            assert_eq!(code, status, "{found:?}");
            let (who, first) = &found[0];
            let told = if status == 0 {
                "anna ok"
            } else {
                "anna damaged"
            };
            assert_eq!(who, told, "{first}");
            assert!(first.starts_with(what), "{first}");
        }
    };
    // An index that was put back.
    fs::write(&index, &older).unwrap();
    let what = format!("{more} bytes behind what the index knows; run reindex");
    both(65, &what);
    assert_eq!(proven(&store, "list"), [false; 3]);
    store.text(&["reindex", "anna"]);
    both(0, "");
    assert!(proven(&store, "list")[1]);

    // Noise, or damage in what the index does not know.
    let noise: Vec<u8> = (0..500u32).map(|n| ((n * 7919) >> 3) as u8).collect();
    fs::write(&path, [&log[..], &noise].concat()).unwrap();
    fs::write(&index, &newer).unwrap();
    both(65, "500 bytes behind what the index knows do not read: ");
    let mut hurt = log.clone();
    hurt[known as usize + 40] ^= 4;
    fs::write(&path, &hurt).unwrap();
    fs::write(&index, &older).unwrap();
    let what = format!("{more} bytes behind what the index knows do not read: ");
    both(65, &what);
    // Who is at work has a tail like any.
    let lock = DataLock::acquire(&path, Wait::No, Create::No).unwrap();
    both(0, "");
    drop(lock);
    both(65, &what);

    // Less than the index knows.
    fs::write(&path, &log[..log.len() - 7]).unwrap();
    fs::write(&index, &newer).unwrap();
    let (now, known) = (log.len() - 7, log.len());
    both(
        65,
        &format!("log is {now} bytes, {known} were acknowledged; run heal"),
    );
}

#[test]
fn what_a_killed_writer_leaves_is_whole_and_not_yet_proven() {
    let store = Store::new("killed");
    let path = store.path("anna");
    let aside = store.0.join("aside");
    fs::create_dir(&aside).unwrap();
    let files = |suffix: &str| {
        let mut name = path.clone().into_os_string();
        name.push(suffix);
        (PathBuf::from(name), aside.join(format!("x{suffix}")))
    };
    // Durable, and the index not committed: the state between the two steps of a commit.
    let mut backup = go_on(&store, "anna", "a");
    for suffix in [".index", ".index-wal"] {
        let (from, to) = files(suffix);
        fs::copy(from, to).unwrap();
    }
    let line = Line::new("SUB", &Dlist::kv([("MBOXNAME", Dlist::text("b"))]));
    let known = fs::metadata(&path).unwrap().len();
    backup.append(&[line], Timestamp(NOW.0 + 501)).unwrap();
    let (from, to) = files("");
    fs::copy(from, to).unwrap();
    let more = fs::metadata(aside.join("x")).unwrap().len() - known;
    assert!(more > 0);
    backup.finish().unwrap();
    for suffix in ["", ".index", ".index-wal"] {
        let (to, from) = files(suffix);
        fs::copy(from, to).unwrap();
    }
    let _ = fs::remove_file(files(".index-shm").0);
    for less in [0, 1, more - 1] {
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_len(known + more - less).unwrap();
        store.hand_over();
        for depth in [&["--quick", "anna"][..], &["anna"]] {
            assert_eq!(verify(&store, depth).0, 0, "{less}");
        }
        let text = store.text(&["verify", "anna"]);
        let note = format!(
            "{} bytes behind it are of an interrupted session",
            more - less
        );
        assert!(text.contains(&note), "{text}");
        assert!(!proven(&store, "list")[1]);
        fs::copy(files("").1, &path).unwrap();
    }
    // The next opening settles it.
    go_on(&store, "anna", "c").finish().unwrap();
    store.hand_over();
    assert_eq!(
        store.json(&["verify", "-j", "anna"])["backups"][0]["note"],
        Value::Null
    );
    assert!(proven(&store, "list")[1]);
}

#[test]
fn reindex_switches_when_the_new_index_is_whole() {
    let store = Store::new("reindex");
    let path = store.path("anna");
    let before = store.json(&["stat", "-j", "anna"])["backups"][0].clone();
    // What an interrupted run has left is in nobody's way.
    let beside = store.0.join("data/anna.index.new");
    fs::write(&beside, b"rubbish").unwrap();
    fs::write(store.0.join("data/anna.index.new-wal"), b"rubbish").unwrap();
    store.hand_over();
    let old = Reader::open(&path, Stale::Refuse).unwrap();
    let value = store.json(&["reindex", "-j", "anna"]);
    let anna = &value["backups"][0];
    assert_eq!(anna["status"], "ok");
    assert!(anna["lines"].as_i64().unwrap() > 10, "{anna}");
    assert_eq!(anna["damage"].as_array().unwrap().len(), 0);
    let marks = anna["resync"].as_array().unwrap().iter();
    let marks: Vec<_> = marks.map(|m| m["mboxname"].as_str().unwrap()).collect();
    // One for a body that never came.
    assert_eq!(marks, ["user.anna", "user.anna.Sent"]);
    assert!(!beside.exists());
    // Who had the old one open goes on with it.
    assert_eq!(old.index().mailboxes(false).unwrap().len(), 2);
    drop(old);
    let after = store.json(&["stat", "-j", "anna"])["backups"][0].clone();
    for key in ["messages", "mailboxes", "bodies", "subscriptions"] {
        assert_eq!(before[key], after[key], "{key}");
    }
    assert!(store.text(&["reindex", "anna"]).contains(" lines, "));

    // One that cannot be made leaves the old one in use.
    fs::create_dir(&beside).unwrap();
    store.hand_over();
    let ran = store.run(&["reindex", "-j", "anna"]);
    assert_eq!(ran.status, 1);
    assert_eq!(parsed(&ran)["backups"][0]["status"], "failed");
    assert_eq!(verify(&store, &["anna"]).0, 0);
    fs::remove_dir(&beside).unwrap();

    // Damage is told.
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 30..end - 20].fill(0x5a);
    fs::write(&path, bytes).unwrap();
    let ran = store.run(&["reindex", "-j", "anna"]);
    assert_eq!(ran.status, 65, "{}", ran.err);
    let anna = parsed(&ran)["backups"][0].clone();
    assert_eq!(anna["status"], "salvaged");
    assert!(anna["damage"][0]["offset"].is_i64(), "{anna}");
}
