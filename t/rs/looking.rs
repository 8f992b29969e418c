//! The commands that look: a small store, the built program, its text, JSON and exit statuses.

use cyr_backup::cyrus::dlist::Value as Dlist;
use cyr_backup::cyrus::guid::Guid;
use cyr_backup::error::Kind;
use cyr_backup::store::backup::{Backup, MailboxResult, Settings};
use cyr_backup::store::catalog::Catalog;
use cyr_backup::store::line::Line;
use cyr_backup::store::lock::{Create, Wait};
use cyr_backup::store::reader::{Reader, Stale};
use cyr_backup::store::spool::Spool;
use cyr_backup::sys::identity;
use cyr_backup::util::time::Timestamp;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

pub const SETTINGS: Settings = Settings {
    level: 1,
    chunk_max: 8 << 20,
};
pub const NOW: Timestamp = Timestamp(1_795_439_789);
pub const ONE: &[u8] = b"From: a@x\r\nSubject: one\r\n\r\nfirst body\r\n";
pub const TWO: &[u8] = b"From: b@x\r\nSubject: two\r\n\r\nsecond body \xff\0\r\n";

pub struct Store(pub PathBuf);

impl Drop for Store {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub struct Ran {
    pub status: i32,
    pub out: Vec<u8>,
    pub err: String,
}

impl Ran {
    fn new(output: Output) -> Ran {
        Ran {
            status: output.status.code().unwrap_or(-1),
            out: output.stdout,
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn text(&self) -> String {
        assert_eq!(self.status, 0, "{}", self.err);
        String::from_utf8(self.out.clone()).unwrap()
    }
}

/// The user the program becomes when root starts it: user, group, uid.
fn other_user() -> Option<(&'static str, &'static str, u32)> {
    if identity::current_uid() != 0 {
        return None;
    }
    let users = [("cyrus", "mail"), ("nobody", "nogroup")];
    let found = users.into_iter().find_map(|(user, group)| {
        let uid = identity::uid_of(user).unwrap()?;
        Some((user, group, uid))
    });
    Some(found.expect("a user to become"))
}

fn give(path: &Path, uid: u32) {
    lchown(path, Some(uid), None).unwrap();
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), uid);
        }
    }
}

impl Store {
    pub fn empty(name: &str) -> Store {
        let name = format!("cyr_backup-looking-{}-{name}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(dir.join("conf")).unwrap();
        fs::create_dir_all(dir.join("data")).unwrap();
        let shown = dir.display();
        let conf = format!(
            "configdirectory: {shown}/conf\nbackuppartition-default: {shown}/data\n\
             defaultdomain: home.example\nvirtdomains: userid\nadmins: mail1\n\
             backup_db: twoskip\n"
        );
        fs::write(dir.join("imapd.conf"), conf).unwrap();
        let store = Store(dir);
        store.hand_over();
        store
    }

    /// A store with four backups.
    pub fn new(name: &str) -> Store {
        let store = Store::empty(name);
        store.anna();
        for key in ["carl@x.example", "%SHARED//news"] {
            let mut backup = store.backup(key);
            let line = Line::new("SUB", &Dlist::kv([("MBOXNAME", Dlist::text("news"))]));
            backup.append(&[line], Timestamp(NOW.0 + 100)).unwrap();
            backup.finish().unwrap();
        }
        store.hand_over();
        store
    }

    pub fn hand_over(&self) {
        if let Some((_, _, uid)) = other_user() {
            give(&self.0, uid);
        }
    }

    pub fn path(&self, key: &str) -> PathBuf {
        self.0.join("data").join(key.replace('/', "=2F"))
    }

    pub fn backup(&self, key: &str) -> Backup {
        let path = self.path(key);
        let catalog = Catalog::open(&self.0.join("conf/backups.db"), true);
        catalog.set(key, &path).unwrap();
        Backup::open(&path, key, Wait::No, Create::New, SETTINGS).unwrap()
    }

    fn anna(&self) {
        let mut backup = self.backup("anna");
        self.mailboxes(&mut backup);
        fn text(text: &str) -> Dlist {
            Dlist::text(text)
        }
        let name = |name: &str| Dlist::kv([("MBOXNAME", text(name))]);
        let seen = Dlist::kv([
            ("USERID", text("anna")),
            ("UNIQUEID", text("u-inbox")),
            ("LASTREAD", Dlist::num(1_795_439_000)),
            ("LASTUID", Dlist::num(3)),
            ("LASTCHANGE", Dlist::num(1_795_439_001)),
            ("SEENUIDS", text("1:2")),
        ]);
        let sieve = |file: &str, content: &[u8]| {
            Dlist::kv([
                ("USERID", text("anna")),
                ("FILENAME", text(file)),
                ("LAST_UPDATE", Dlist::num(1_795_430_000)),
                ("CONTENT", Dlist::text(content)),
            ])
        };
        let quota = Dlist::kv([
            ("ROOT", text("user.anna")),
            ("LIMIT", Dlist::num(100)),
            ("STORAGE", Dlist::num(100)),
            ("MESSAGE", text("-1")),
        ]);
        let annotation = Dlist::kv([
            ("MBOXNAME", text("")),
            ("ENTRY", text("/motd")),
            ("USERID", text("")),
            ("VALUE", Dlist::text(b"\xff\xfe")),
        ]);
        let resync = Dlist::kv([
            ("UNIQUEID", text("u-sent")),
            ("LEVEL", Dlist::num(1)),
            ("WHY", text("sums differ")),
        ]);
        let lines = [
            Line::new("UNMAILBOX", &text("user.anna.Old")),
            Line::new("SUB", &name("user.anna")),
            Line::new("SUB", &name("news.unix")),
            Line::new("UNSUB", &name("news.unix")),
            Line::new("SEEN", &seen),
            Line::new("SIEVE", &sieve("main.script", b"keep;\r\n")),
            Line::new("SIEVE", &sieve("old.script", b"discard;\r\n\xff")),
            Line::new("UNSIEVE", &Dlist::kv([("FILENAME", text("old.script"))])),
            Line::private("ACTIVATE_SIEVE", Dlist::kv([("FILENAME", text("main.bc"))])),
            Line::private("QUOTA", quota),
            Line::private("ANNOTATION", annotation),
            Line::private("RESYNC", resync),
        ];
        backup.append(&lines, NOW).unwrap();
        backup.finish().unwrap();
    }

    /// INBOX with a message, an expunged one and one without a body; Sent with the first one
    /// again; an old mailbox.
    fn mailboxes(&self, backup: &mut Backup) {
        for body in [ONE, TWO] {
            let size = body.len() as u64;
            backup
                .body_begin(b"default", Guid::of(body), size, NOW)
                .unwrap();
            backup.body_data(body).unwrap();
            backup.body_end().unwrap();
        }
        backup.messages_end().unwrap();
        let record = |uid: u32, flags: &str, body: &[u8], more: &str| {
            format!(
                "%(UID {uid} MODSEQ 1{uid} LAST_UPDATED 1795439789 FLAGS ({flags}) INTERNALDATE \
                 1795439700 SIZE {} GUID {}{more})",
                body.len(),
                Guid::of(body)
            )
        };
        let annotation =
            " ANNOTATIONS (%(ENTRY /comment USERID anna MODSEQ 0 VALUE {2+}\r\n\u{e9}))";
        let inbox = [
            record(1, "\\Seen $Work", ONE, annotation),
            record(2, "\\Expunged", TWO, ""),
            record(3, "", b"never came", ""),
        ];
        let sent = [record(1, "", ONE, "")];
        for (name, id, records) in [
            ("user.anna", "u-inbox", &inbox[..]),
            ("user.anna.Sent", "u-sent", &sent),
            ("user.anna.Old", "u-old", &sent),
        ] {
            let mut spool = Spool::new(&self.0, 1 << 20);
            let head = format!(
                "%(UNIQUEID {id} MBOXNAME {name} LAST_UID 7 HIGHESTMODSEQ 20 RECENTUID 1 RECENTTIME 0 \
                 LAST_APPENDDATE 0 POP3_LAST_LOGIN 0 UIDVALIDITY 99 PARTITION default \
                 ACL \"anna\tlrswipkxtecda\t\" OPTIONS P QUOTAROOT user.anna \
                 ANNOTATIONS (%(ENTRY /x USERID NIL VALUE y)) RECORD ({}))",
                records.join(" ")
            );
            spool.append(head.as_bytes()).unwrap();
            let has_literal = head.contains('{');
            match backup.mailbox(&[], &spool, has_literal, NOW).unwrap() {
                MailboxResult::Entered(_) => backup.commit().unwrap(),
                MailboxResult::Unreferred => panic!("bodies left over"),
            }
        }
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cyr_backup"));
        command.arg("-C").arg(self.0.join("imapd.conf")).args(words);
        if let Some((user, group, _)) = other_user() {
            command.env("CYRUS_USER", user).env("CYRUS_GROUP", group);
        }
        command
    }

    pub fn run(&self, words: &[&str]) -> Ran {
        Ran::new(self.command(words).output().unwrap())
    }

    pub fn text(&self, words: &[&str]) -> String {
        self.run(words).text()
    }

    /// What `-j` prints, by a parser that wants exactly one document.
    pub fn json(&self, words: &[&str]) -> Value {
        let ran = self.run(words);
        assert_eq!(ran.status, 0, "{words:?}: {}", ran.err);
        let value: Value = serde_json::from_slice(&ran.out).unwrap();
        assert_eq!(value["version"], 1);
        value
    }

    /// Flips a byte of the data file.
    fn damage(&self, key: &str, at: usize) {
        let path = self.path(key);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 0x10;
        fs::write(&path, bytes).unwrap();
    }
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(|k| &k[..]).collect()
}

#[test]
fn list_tells_of_every_backup() {
    let store = Store::new("list");
    let value = store.json(&["list", "-j"]);
    let rows = value["backups"].as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|r| r["userid"].as_str().unwrap()).collect();
    assert_eq!(names, ["%SHARED//news", "anna", "carl@x.example"]);
    let anna = &rows[1];
    assert_eq!(
        keys(anna),
        [
            "userid",
            "path",
            "bytes",
            "index_bytes",
            "last_sync",
            "last_change",
            "proven",
            "compacted",
            "held",
            "chunks",
            "mailboxes",
            "messages",
            "resync",
            "plain_bytes",
            "ratio",
            "live_bytes",
            "waste_bytes",
            "due_bytes"
        ]
    );
    let bytes = fs::metadata(store.path("anna")).unwrap().len();
    assert_eq!(anna["bytes"], bytes);
    assert_eq!(anna["path"], store.path("anna").display().to_string());
    assert_eq!(anna["last_sync"], NOW.0);
    assert_eq!(
        (&anna["mailboxes"], &anna["messages"], &anna["resync"]),
        (&json!(2), &json!(3), &json!(1))
    );
    let text = store.text(&["list"]);
    assert_eq!(text.lines().count(), 4);
    assert!(text.contains("2026-11-23T"), "{text}");
    // Selections.
    let count = |words: &[&str]| store.json(words)["backups"].as_array().unwrap().len();
    assert_eq!(count(&["list", "-j", "-D", "x.example"]), 1);
    assert_eq!(count(&["list", "-j", "-P", "ann"]), 1);
    assert_eq!(
        count(&["list", "-j", "-m", "news/unix", "user/anna/Sent"]),
        2
    );
    assert_eq!(count(&["list", "-j", "-D", "nowhere"]), 0);
    // The future is not stale.
    let years = NOW.0 / 3600 + 24 * 365 * 200;
    assert_eq!(count(&["list", "-j", "--stale", &years.to_string()]), 0);
}

#[test]
fn a_store_without_anything_is_well() {
    let store = Store::empty("nothing");
    assert_eq!(store.json(&["list", "-j"])["backups"], json!([]));
    assert_eq!(store.text(&["list"]).lines().count(), 1);
    let ran = store.run(&["mailboxes", "anna"]);
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("anna: no backup"), "{}", ran.err);
}

#[test]
fn stat_and_chunks_count_what_is_stored() {
    let store = Store::new("stat");
    let value = store.json(&["stat", "anna", "-j"]);
    let anna = &value["backups"][0];
    assert_eq!(anna["bodies"], 2);
    assert_eq!(anna["body_bytes"], ONE.len() + TWO.len());
    assert_eq!(
        (&anna["subscriptions"], &anna["scripts"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(anna["quota_roots"], 1);
    assert!(anna["ratio"].as_f64().unwrap() > 0.5);
    assert!(store.text(&["stat", "-A"]).contains("carl@x.example"));

    let value = store.json(&["chunks", "anna", "-j"]);
    let chunks = value["chunks"].as_array().unwrap();
    let mut end = 0;
    for chunk in chunks {
        assert_eq!(chunk["offset"], end);
        end += chunk["length"].as_u64().unwrap();
    }
    assert_eq!(end, fs::metadata(store.path("anna")).unwrap().len());
    let text = store.text(&["chunks", "anna"]);
    assert_eq!(text.lines().count(), chunks.len() + 1);
}

#[test]
fn mailboxes_have_their_keys() {
    let store = Store::new("mailboxes");
    let value = store.json(&["mailboxes", "anna", "-j"]);
    assert_eq!(keys(&value), ["version", "userid", "mailboxes"]);
    assert_eq!(value["userid"], "anna");
    let expect = json!({
        "mboxname": "user.anna",
        "adminname": "user/anna",
        "uniqueid": "u-inbox",
        "uidvalidity": 99,
        "lastuid": 7,
        "highestmodseq": 20,
        "acl": "anna\tlrswipkxtecda\t",
        "options": "P",
        "partition": "default",
        "mboxtype": null,
        "quotaroot": "user.anna",
        "deleted": null,
        "intermediate": false,
        "resync": null,
        "epoch": 1,
        "annotations": [{"entry": "/x", "userid": null, "value": "y"}],
        "messages": 2,
    });
    assert_eq!(value["mailboxes"][0], expect);
    assert_eq!(value["mailboxes"][1]["resync"], "sums differ");
    assert_eq!(value["mailboxes"].as_array().unwrap().len(), 2);
    let value = store.json(&["mailboxes", "-m", "user/anna/Sent", "--deleted", "-j"]);
    assert_eq!(value["mailboxes"][1]["mboxname"], "user.anna.Old");
    assert_eq!(value["mailboxes"][1]["deleted"], NOW.0);
    let text = store.text(&["mailboxes", "anna"]);
    assert!(
        text.contains(" user/anna/Sent  [resync: sums differ]"),
        "{text}"
    );
    assert!(!text.contains("Old"));
}

#[test]
fn messages_have_their_keys() {
    let store = Store::new("messages");
    let value = store.json(&["messages", "anna", "-j"]);
    let rows = value["messages"].as_array().unwrap();
    let expect = json!({
        "mboxname": "user.anna",
        "adminname": "user/anna",
        "uniqueid": "u-inbox",
        "epoch": 1,
        "uid": 1,
        "modseq": 11,
        "guid": Guid::of(ONE).to_string(),
        "size": ONE.len(),
        "internaldate": 1_795_439_700,
        "last_updated": 1_795_439_789,
        "flags": ["\\Seen", "$Work"],
        "annotations": [{"entry": "/comment", "userid": "anna", "value": "\u{e9}"}],
        "expunged": null,
        "gone": false,
        "missing": false,
    });
    assert_eq!(rows[0], expect);
    let what = |rows: &[Value]| -> Vec<(String, u64)> {
        rows.iter()
            .map(|r| {
                let name = r["mboxname"].as_str().unwrap().to_owned();
                (name, r["uid"].as_u64().unwrap())
            })
            .collect()
    };
    let row = |name: &str, uid| (name.to_owned(), uid);
    assert_eq!(
        what(rows),
        [
            row("user.anna", 1),
            row("user.anna", 3),
            row("user.anna.Sent", 1)
        ]
    );
    assert_eq!(rows[1]["missing"], true);
    let value = store.json(&["messages", "anna", "--deleted", "-j"]);
    let rows = value["messages"].as_array().unwrap();
    assert_eq!(rows.len(), 5);
    assert_eq!(
        (&rows[1]["uid"], &rows[1]["expunged"]),
        (&json!(2), &json!(NOW.0))
    );
    assert_eq!(rows[3]["mboxname"], "user.anna.Old");
    // A mailbox in every form.
    for name in ["user/anna/Sent", "user.anna.Sent", "u-sent", "Sent"] {
        let value = store.json(&["messages", "anna", name, "-j"]);
        let rows = value["messages"].as_array().unwrap();
        assert_eq!(what(rows), [row("user.anna.Sent", 1)], "{name}");
    }
    let value = store.json(&["messages", "anna", "inbox", "user/anna", "-j"]);
    assert_eq!(value["messages"].as_array().unwrap().len(), 2);
    let ran = store.run(&["messages", "anna", "user/anna/None"]);
    assert_eq!(ran.status, 1);
    assert!(
        ran.err.contains("user/anna/None: no mailbox"),
        "{}",
        ran.err
    );
    assert!(ran.out.is_empty());
    // By its file, the catalogue broken.
    fs::write(store.0.join("conf/backups.db"), "rubbish").unwrap();
    let path = store.path("anna").display().to_string();
    let value = store.json(&["messages", "-f", &path, "-j"]);
    assert_eq!(value["userid"], "anna");
    assert_eq!(store.run(&["messages", "anna"]).status, 65);
    let text = store.text(&["messages", "-f", &path, "--deleted"]);
    assert_eq!(text.lines().count(), 6);
    assert!(text.contains("user/anna (\\Seen $Work)\n"), "{text}");
    assert!(text.contains("[expunged 2026-"), "{text}");
}

#[test]
fn show_gives_details() {
    let store = Store::new("show");
    let show = |what: &[&str]| {
        let mut words = vec!["show", "anna", "-j"];
        words.extend(what);
        store.json(&words)
    };
    assert_eq!(
        show(&["subscriptions"]),
        json!({"version": 1, "userid": "anna", "subscriptions": [{
            "mboxname": "user.anna", "adminname": "user/anna", "time": NOW.0,
            "unsubscribed": null}]})
    );
    let value = show(&["subscriptions", "--deleted"]);
    assert_eq!(value["subscriptions"][0]["unsubscribed"], NOW.0);
    let value = show(&["sieve"]);
    let script = &value["scripts"][0];
    assert_eq!(script["filename"], "main.script");
    assert_eq!(
        (&script["active"], &script["content"]),
        (&json!(true), &json!("keep;\r\n"))
    );
    assert_eq!(script["guid"], Guid::of(b"keep;\r\n").to_string());
    assert_eq!(script["last_update"], 1_795_430_000);
    let value = show(&["sieve", "--deleted"]);
    assert_eq!(value["scripts"][1]["deleted"], NOW.0);
    assert_eq!(
        value["scripts"][1]["content"],
        json!({"base64": "ZGlzY2FyZDsNCv8="})
    );
    assert_eq!(
        show(&["seen"])["seen"],
        json!([{"uniqueid": "u-inbox", "lastread": 1_795_439_000, "lastuid": 3,
            "lastchange": 1_795_439_001, "seenuids": "1:2"}])
    );
    assert_eq!(
        show(&["quota"])["quota"],
        json!([{"root": "user.anna", "adminname": "user/anna", "limit": 100, "storage": 100,
            "message": -1}])
    );
    assert_eq!(
        show(&["annotations"])["annotations"],
        json!([{"mboxname": "", "adminname": "", "entry": "/motd", "userid": "", "value": {"base64": "//4="}}])
    );
    assert_eq!(show(&["marks"])["marks"][0]["why"], "sums differ");

    let value = show(&["user/anna", "u-sent"]);
    let inbox = &value["mailboxes"][0];
    assert_eq!(
        inbox["records"],
        json!({"live": 2, "expunged": 1, "missing": 1})
    );
    assert_eq!(inbox["head"]["POP3_LAST_LOGIN"], "0");
    assert_eq!(value["mailboxes"][1]["resync"], "sums differ");

    let guid = Guid::of(ONE).to_string();
    let value = show(&[&guid]);
    let message = &value["messages"][0];
    assert_eq!(message["guid"], guid);
    assert_eq!(message["body"]["size"], ONE.len());
    assert_eq!(message["headers"], "From: a@x\r\nSubject: one\r\n");
    assert_eq!(message["records"].as_array().unwrap().len(), 3);

    let all = [
        "show",
        "anna",
        "subscriptions",
        "sieve",
        "seen",
        "quota",
        "annotations",
        "marks",
        "user/anna",
        &guid,
    ];
    let text = store.text(&all);
    for part in [
        "user/anna time=2026-",
        "main.script guid=",
        "    keep;\n",
        "u-inbox lastread=2026-",
        "user/anna limit=100 storage=100 message=-1\n",
        "why=sums differ",
        "  HIGHESTMODSEQ          20\n",
        "  Subject: one\n",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    for missing in ["user/anna/None", &Guid::of(b"none").to_string()] {
        let ran = store.run(&["show", "anna", missing, "-j"]);
        assert_eq!((ran.status, ran.out.len()), (1, 0), "{}", ran.err);
    }
}

#[test]
fn search_tells_all_of_a_message() {
    let store = Store::new("search");
    let rows = |words: &[&str]| {
        let value = store.json(words);
        value["messages"].as_array().unwrap().clone()
    };
    // Without conditions everything: alive, expunged, without a body, in a deleted mailbox.
    let all = rows(&["search", "anna", "-j"]);
    let places: Vec<_> = all
        .iter()
        .map(|r| (r["adminname"].as_str().unwrap(), r["uid"].as_u64().unwrap()))
        .collect();
    let expect = [
        ("user/anna", 1),
        ("user/anna", 2),
        ("user/anna", 3),
        ("user/anna/Old", 1),
        ("user/anna/Sent", 1),
    ];
    assert_eq!(places, expect);
    let first = &all[0];
    assert_eq!(
        keys(first),
        [
            "userid",
            "mboxname",
            "adminname",
            "uniqueid",
            "epoch",
            "uid",
            "modseq",
            "guid",
            "size",
            "internaldate",
            "last_updated",
            "flags",
            "annotations",
            "expunged",
            "gone",
            "missing",
            "deleted",
            "from",
            "to",
            "cc",
            "subject",
            "message_id",
            "date"
        ]
    );
    assert_eq!(
        (&first["userid"], &first["from"]),
        (&json!("anna"), &json!("a@x"))
    );
    assert_eq!(first["guid"], Guid::of(ONE).to_string());
    assert_eq!(
        (&all[2]["missing"], &all[2]["subject"]),
        (&json!(true), &Value::Null)
    );
    assert_eq!(all[3]["deleted"], NOW.0);
    // Conditions.
    assert_eq!(rows(&["search", "-A", "-j", "--subject", "ONE"]).len(), 3);
    assert_eq!(
        rows(&["search", "-A", "-j", "--subject", "one", "--alive-only"]).len(),
        2
    );
    assert_eq!(rows(&["search", "anna", "-j", "--deleted-only"]).len(), 2);
    assert_eq!(rows(&["search", "anna", "-j", "--flag", "$work"]).len(), 1);
    assert_eq!(
        rows(&["search", "anna", "-j", "--mailbox", "*Sent"]).len(),
        1
    );
    assert!(rows(&["search", "anna", "-j", "--subject", "one two"]).is_empty());
    // One that does not read does not hide the others.
    store.damage("carl@x.example", 0);
    let ran = store.run(&["search", "-A", "--subject", "one"]);
    assert_eq!(
        (ran.status, ran.out.iter().filter(|&&b| b == b'\n').count()),
        (1, 3)
    );
    assert!(ran.err.contains("carl@x.example"), "{}", ran.err);
}

#[test]
fn times_are_local() {
    let store = Store::new("zones");
    let at = |text: &str| {
        let mut command = store.command(&["mailboxes", "anna", "-j", "--at", text]);
        let ran = Ran::new(
            command
                .env("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
                .output()
                .unwrap(),
        );
        let value: Value = serde_json::from_str(&ran.text()).unwrap();
        value["at"].as_i64().unwrap()
    };
    assert_eq!(at("2027-07-01 14:00"), at("2027-07-01T12:00Z"));
    assert_eq!(at("2027-12-01 14:00"), at("2027-12-01T13:00Z"));
    // An hour that does not come, and one that comes twice.
    assert_eq!(at("2027-03-28 02:30"), at("2027-03-28T01:30Z"));
    assert_eq!(at("2027-10-31 02:30"), at("2027-10-31T00:30Z"));
    assert_eq!(at("2027-10-31 03:30"), at("2027-10-31T02:30Z"));
}

#[test]
fn dump_is_byte_for_byte() {
    let store = Store::new("dump");
    for body in [ONE, TWO] {
        let ran = store.run(&["dump", "message", "anna", &Guid::of(body).to_string()]);
        assert_eq!((ran.status, &ran.out[..]), (0, body));
    }
    let ran = store.run(&[
        "dump",
        "message",
        "anna",
        &Guid::of(b"never came").to_string(),
    ]);
    assert_eq!((ran.status, ran.out.len()), (1, 0));
    for name in ["main", "main.script"] {
        assert_eq!(store.text(&["dump", "sieve", "anna", name]), "keep;\r\n");
    }
    assert_eq!(store.run(&["dump", "sieve", "anna", "old"]).status, 1);
    let ran = store.run(&["dump", "sieve", "anna", "old", "--deleted"]);
    assert_eq!((ran.status, &ran.out[..]), (0, &b"discard;\r\n\xff"[..]));

    let whole = store.run(&["dump", "log", "anna"]);
    assert_eq!(whole.status, 0, "{}", whole.err);
    let zcat = Command::new("zcat")
        .stdin(fs::File::open(store.path("anna")).unwrap())
        .output()
        .unwrap();
    assert!(zcat.status.success());
    assert_eq!(whole.out, zcat.stdout);
    let mut parts = Vec::new();
    let value = store.json(&["chunks", "anna", "-j"]);
    for chunk in value["chunks"].as_array().unwrap() {
        let part = store.run(&["dump", "chunk", "anna", &chunk["id"].to_string()]);
        assert_eq!(part.status, 0);
        assert_eq!(chunk["plain_length"], part.out.len());
        parts.extend(part.out);
    }
    assert_eq!(parts, whole.out);
    assert_eq!(store.run(&["dump", "chunk", "anna", "999"]).status, 1);
}

#[test]
fn damage_is_said_and_costs_no_other_chunk() {
    let store = Store::new("damage");
    let guid = Guid::of(ONE).to_string();
    let value = store.json(&["show", "anna", &guid, "-j"]);
    let chunk = value["messages"][0]["body"]["chunk"].clone();
    let value = store.json(&["chunks", "anna", "-j"]);
    let chunks = value["chunks"].as_array().unwrap();
    assert!(chunks.len() > 1);
    let place = chunks.iter().find(|c| c["id"] == chunk).unwrap();
    let before = store.run(&["dump", "log", "anna"]).out;
    let last = chunks.last().unwrap()["id"].to_string();
    let last = store.run(&["dump", "chunk", "anna", &last]).out;
    // Somewhere in the chunk a flipped bit hits the message.
    let from = usize::try_from(place["offset"].as_u64().unwrap()).unwrap();
    let len = usize::try_from(place["length"].as_u64().unwrap()).unwrap();
    let hit = (from..from + len).find(|&at| {
        store.damage("anna", at);
        let hit = Reader::open(&store.path("anna"), Stale::Refuse)
            .and_then(|r| r.body(Guid::of(ONE), &mut |_| Ok(())))
            .is_err_and(|e| e.kind() == Kind::Damaged);
        if !hit {
            store.damage("anna", at);
        }
        hit
    });
    assert!(hit.is_some());

    let ran = store.run(&["dump", "message", "anna", &guid]);
    assert_eq!(ran.status, 65);
    assert!(ran.err.contains("chunk 1 offset"), "{}", ran.err);
    assert_eq!(
        store
            .run(&["dump", "chunk", "anna", &chunk.to_string()])
            .status,
        65
    );
    let log = store.run(&["dump", "log", "anna"]);
    assert_eq!(log.status, 65);
    assert!(log.err.starts_with("anna: damaged chunk"), "{}", log.err);
    assert!(log.out != before && log.out.ends_with(&last));
    let ran = store.run(&["show", "anna", &guid, "-j"]);
    assert_eq!(ran.status, 65);
    let value: Value = serde_json::from_slice(&ran.out).unwrap();
    assert!(value["messages"][0]["error"].is_string());
    // What only the index knows is still told.
    assert_eq!(
        store.json(&["messages", "anna", "-j"])["messages"][0]["uid"],
        1
    );
}

#[test]
fn one_bad_backup_does_not_hide_the_others() {
    let store = Store::new("bad");
    fs::write(store.path("carl@x.example"), "this is no gzip").unwrap();
    let ran = store.run(&["list", "-j"]);
    assert_eq!(ran.status, 1);
    assert!(ran.err.starts_with("carl@x.example: "), "{}", ran.err);
    let value: Value = serde_json::from_slice(&ran.out).unwrap();
    assert_eq!(value["backups"].as_array().unwrap().len(), 3);
    assert_eq!(value["backups"][1]["messages"], 3);
    assert!(value["backups"][2]["error"].is_string());
    assert_eq!(value["backups"][2]["bytes"], 15);
    let ran = store.run(&["stat", "carl@x.example", "bert", "anna", "-j"]);
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("bert: no backup\n"), "{}", ran.err);
    let value: Value = serde_json::from_slice(&ran.out).unwrap();
    assert!(value["backups"][0]["error"].is_string());
    assert_eq!(value["backups"][1]["userid"], "anna");
    assert_eq!(store.run(&["mailboxes", "carl@x.example"]).status, 65);
    // A lost index: list says so and leaves it; others make it again.
    let index = store.path("anna").with_file_name("anna.index");
    let before = store.run(&["messages", "anna", "--deleted", "-j"]).out;
    fs::remove_file(&index).unwrap();
    assert_eq!(store.run(&["list", "anna"]).status, 1);
    assert!(!index.exists());
    let ran = store.run(&["messages", "anna", "--deleted", "-j"]);
    assert_eq!((ran.status, ran.out), (0, before));
    assert!(index.exists());
    assert_eq!(store.run(&["list", "anna"]).status, 0);
}

#[test]
fn an_open_backup_is_read_beside_its_writer() {
    let store = Store::new("open");
    let path = store.path("anna");
    let mut backup = Backup::open(&path, "anna", Wait::No, Create::No, SETTINGS).unwrap();
    let line = Line::new(
        "SUB",
        &Dlist::kv([("MBOXNAME", Dlist::text("user.anna.X"))]),
    );
    backup.append(&[line], Timestamp(NOW.0 + 5)).unwrap();
    store.hand_over();
    let value = store.json(&["list", "anna", "-j"]);
    assert_eq!(value["backups"][0]["last_sync"], NOW.0 + 5);
    let value = store.json(&["show", "anna", "subscriptions", "-j"]);
    assert_eq!(value["subscriptions"].as_array().unwrap().len(), 2);
    let value = store.json(&["chunks", "anna", "-j"]);
    let last = value["chunks"].as_array().unwrap().last().unwrap();
    assert_eq!(last["length"], Value::Null);
    let id = last["id"].to_string();
    let text = store.text(&["dump", "chunk", "anna", &id]);
    assert!(text.ends_with("SUB %(MBOXNAME user.anna.X)\r\n"), "{text}");
    backup.finish().unwrap();
}

#[test]
fn exit_statuses() {
    let store = Store::new("status");
    for (words, status) in [
        (&["list", "nobody"][..], 1),
        (&["stat", "nobody"], 1),
        (&["messages", "nobody"], 1),
        (&["messages", "-f", "/nonexistent/file"], 1),
        (&[], 64),
        (&["lst"], 64),
        (&["list", "--bad"], 64),
        (&["list", "-m", "news.unix"], 64),
        (&["dump", "message", "anna", "xyz"], 64),
        (&["list", "-C", "/nonexistent"], 78),
        (&["--version"], 0),
        (&["list", "--help"], 0),
    ] {
        let ran = store.run(words);
        assert_eq!(ran.status, status, "{words:?}: {}", ran.err);
        assert_eq!(ran.err.is_empty(), status == 0, "{words:?}: {}", ran.err);
    }
}

#[test]
fn a_full_disk_is_an_error_and_a_closed_pipe_is_none() {
    let store = Store::new("full");
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = store.command(&["messages", "anna"]).stdout(full).output();
    let ran = Ran::new(output.unwrap());
    assert_eq!(ran.status, 74);
    assert!(ran.err.contains("standard output"), "{}", ran.err);
    for words in [
        &["messages", "anna", "-j"][..],
        &["dump", "log", "anna"],
        &["--help"],
    ] {
        // A socket nobody reads from answers as a pipe does.
        let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(reader);
        let output = store.command(words).stdout(OwnedFd::from(writer)).output();
        let ran = Ran::new(output.unwrap());
        assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{words:?}");
    }
}

#[test]
fn passwd_sets_lists_and_deletes() {
    let store = Store::empty("passwd");
    let set = |user: &str, password: &[u8]| {
        let mut child = store
            .command(&["passwd", user])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // One that is refused before it is asked for is not read.
        let _ = child.stdin.take().unwrap().write_all(password);
        Ran::new(child.wait_with_output().unwrap())
    };
    let ran = set("mail1", b"secret\n");
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    let ran = set("Other", b"secret\n");
    assert_eq!(ran.status, 0);
    assert!(ran.err.contains("other is not in admins"), "{}", ran.err);
    assert_eq!(set("mail1", b"\n").status, 64);
    assert_eq!(set("a/b", b"x\n").status, 64);
    let value = store.json(&["passwd", "-l", "-j"]);
    assert_eq!(value["users"][0]["userid"], "mail1");
    assert_eq!(value["users"][0]["mechanisms"].as_array().unwrap().len(), 2);
    assert!(store.text(&["passwd", "-l"]).starts_with("mail1  "));
    assert_eq!(store.run(&["passwd", "-d", "mail1"]).status, 0);
    assert_eq!(store.run(&["passwd", "-d", "mail1"]).status, 1);
    assert!(!store.text(&["passwd", "-l"]).contains("mail1"));
    let file = store.0.join("conf/backup_passwd");
    if let Some((_, _, uid)) = other_user() {
        use std::os::unix::fs::MetadataExt;
        assert_eq!(fs::metadata(&file).unwrap().uid(), uid);
    }
    assert!(!fs::read_to_string(&file).unwrap().contains("secret"));
}
