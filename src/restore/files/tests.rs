use super::*;
use crate::cyrus::dlist::Value;
use crate::cyrus::guid::Guid;
use crate::cyrus::sync::{MailboxHead, Record};
use crate::restore::{Bodies, Done, Folder, Item, Plan, Script};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::rc::Rc;

/// A message; `item(uid, body, flags)`.
pub(super) fn item(uid: u32, body: &str, flags: &[&str]) -> Item {
    let flag = |f: &&str| match f.starts_with('\\') {
        true => Value::Flag(f.as_bytes().to_vec()),
        false => Value::text(f),
    };
    Item {
        record: Record {
            uid,
            modseq: 1,
            last_updated: 1,
            flags: flags.iter().map(flag).collect(),
            expunged: false,
            internaldate: 1_000_000_000 + u64::from(uid),
            size: body.len() as u64,
            guid: Guid::of(body.as_bytes()),
            annotations: Vec::new(),
            extra: Vec::new(),
        },
    }
}

fn folder(name: &str, items: Vec<Item>) -> Folder {
    Folder {
        from: name.into(),
        to: name.into(),
        head: MailboxHead {
            keys: vec![(b"ACL".to_vec(), Value::text("anna\tlrs\t"))],
        },
        items,
        tombstones: Vec::new(),
        bodiless: 0,
        flags_only: false,
        only_there: false,
        keep_uids: false,
        partition: None,
        acl: None,
    }
}

#[derive(Default)]
struct Held(HashMap<Guid, Vec<u8>>);

impl Held {
    fn of(bodies: &[&str]) -> Held {
        let pair = |b: &&str| (Guid::of(b.as_bytes()), b.as_bytes().to_vec());
        Held(bodies.iter().map(pair).collect())
    }
}

impl Bodies for Held {
    fn body(&mut self, guid: Guid, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let body = self.0.get(&guid);
        let body = body.ok_or_else(|| Error::new(Kind::NotFound, "no body"))?;
        body.chunks(7).try_for_each(sink)
    }
}

/// A new directory, gone at the end.
struct Temp(PathBuf);

impl Temp {
    fn new(name: &str) -> Temp {
        // Everything is synced: that costs nothing on a RAM disk.
        let ram = PathBuf::from("/dev/shm");
        let dir = if ram.is_dir() {
            ram
        } else {
            std::env::temp_dir()
        };
        let path = dir.join(format!("cyrbackup-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Temp(path)
    }

    /// All files below with their contents, by relative path.
    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let mut out = Vec::new();
        let mut dirs = vec![self.0.clone()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => dirs.push(path),
                    false => {
                        let name = path.strip_prefix(&self.0).unwrap().to_string_lossy();
                        out.push((name.into_owned(), fs::read(&path).unwrap()));
                    }
                }
            }
        }
        out.sort();
        out
    }

    fn at(&self, name: &str) -> Place {
        Place::Path(self.0.join(name))
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn one(to: &mut dyn Destination, f: &Folder, bodies: &mut Held, dry: bool) -> Result<Done> {
    let mut done = Done::default();
    to.folder(f, bodies, dry, &mut done).map(|()| done)
}

fn run(format: Format, place: &Place, folders: &[Folder], bodies: &mut Held) -> Vec<Done> {
    let mut to = open(format, place, &Namespace::default(), "x".into()).unwrap();
    let done = folders
        .iter()
        .map(|f| one(&mut *to, f, bodies, false).unwrap());
    let done = done.collect();
    let plan = Plan {
        userid: "anna".into(),
        subscriptions: vec!["user.anna.Sent".into(), "user.bert.x".into()],
        scripts: vec![Script {
            filename: "../x.script".into(),
            last_update: 5,
            content: b"keep;".to_vec(),
        }],
        active_script: Some("../x.bc".into()),
        ..Plan::default()
    };
    let mut told = Vec::new();
    to.user(&plan, false, &mut told).unwrap();
    assert!(
        told.iter()
            .all(|o| o.became != crate::restore::Became::Failed),
        "{told:?}"
    );
    to.finish().unwrap();
    done
}

const ONE: &str = "Subject: 1\r\n\r\nFrom me\r\n>From\r\nend\r\n";
const TWO: &str = "Subject: 2\r\n\r\n";

fn two_folders() -> [Folder; 2] {
    [
        folder(
            "user.anna",
            vec![item(3, ONE, &["\\Seen", "$a"]), item(4, TWO, &[])],
        ),
        folder("user.anna.Sent", vec![item(1, TWO, &["\\Draft"])]),
    ]
}

const FORMATS: [(Format, &str); 5] = [
    (Format::Eml, "out"),
    (Format::Maildir, "out"),
    (Format::Tar, "out.tar"),
    (Format::Mbox, "out.mbox"),
    (Format::Mbox, "out/"),
];

#[test]
fn the_second_run_adds_nothing() {
    for (format, name) in FORMATS {
        let temp = Temp::new("files-twice");
        let place = temp.at(name);
        let mut bodies = Held::of(&[ONE, TWO]);
        let first = run(format, &place, &two_folders(), &mut bodies);
        assert_eq!((first[0].brought, first[1].brought), (2, 1), "{format:?}");
        assert!(first[0].made && first[0].failed.is_empty());
        let files = temp.files();
        assert!(files.iter().all(|(name, _)| !name.contains("cyr_backup-")));
        let second = run(format, &place, &two_folders(), &mut bodies);
        assert_eq!((second[0].brought, second[1].brought), (0, 0), "{format:?}");
        assert_eq!((second[0].there, second[1].there), (2, 1), "{format:?}");
        assert!(!second[0].made, "{format:?}");
        assert_eq!(temp.files(), files, "{format:?}");
        // One more, one under another UID, and one that comes from two epochs.
        let mut folders = two_folders();
        let twice = folders[0].items[1].clone();
        folders[0].items.push(twice);
        folders[0].items.push(item(9, "x\r\n", &[]));
        folders[1].items[0].record.uid = 77;
        bodies = Held::of(&["x\r\n"]);
        let third = run(format, &place, &folders, &mut bodies);
        assert_eq!((third[0].brought, third[0].there), (1, 3), "{format:?}");
        assert_eq!((third[1].brought, third[1].there), (0, 1), "{format:?}");
        for (name, bytes) in &files {
            let now = fs::read(temp.0.join(name)).unwrap();
            // An archive is added to behind its last entry.
            let kept = match format {
                Format::Tar => bytes.len() - 2 * ustar::BLOCK,
                _ => bytes.len(),
            };
            assert!(now.starts_with(&bytes[..kept]), "{format:?} {name}");
        }
    }
}

#[test]
fn one_uid_of_two_epochs() {
    for (format, name) in FORMATS {
        let temp = Temp::new("files-epochs");
        let items = vec![item(1, ONE, &[]), item(1, TWO, &[]), item(1, ONE, &["$a"])];
        let folders = [folder("user.anna.x", items)];
        for brought in [2, 0] {
            let mut bodies = Held::of(&[ONE, TWO]);
            let done = run(format, &temp.at(name), &folders, &mut bodies);
            assert_eq!(done[0].brought, brought, "{format:?}");
            assert_eq!(done[0].there, 3 - brought, "{format:?}");
        }
    }
}

#[test]
fn an_eml_tree() {
    let temp = Temp::new("files-eml");
    run(
        Format::Eml,
        &temp.at("out"),
        &two_folders(),
        &mut Held::of(&[ONE, TWO]),
    );
    let files = temp.files();
    let names: Vec<&str> = files.iter().map(|(n, _)| n.as_str()).collect();
    let (one, two) = (Guid::of(ONE.as_bytes()), Guid::of(TWO.as_bytes()));
    assert_eq!(
        names,
        [
            format!("out/anna/INBOX/0000000003-{one}.eml").as_str(),
            &format!("out/anna/INBOX/0000000004-{two}.eml"),
            "out/anna/INBOX/mailbox.json",
            &format!("out/anna/Sent/0000000001-{two}.eml"),
            "out/anna/Sent/mailbox.json",
            "out/anna/sieve/%2E.%2Fx.sieve",
            "out/anna/user.json",
        ]
    );
    assert_eq!(files[0].1, ONE.as_bytes());
    let time = fs::metadata(temp.0.join(names[0]))
        .unwrap()
        .modified()
        .unwrap();
    let secs = time
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    assert_eq!(secs, 1_000_000_003);
    let json: serde_json::Value = serde_json::from_slice(&files[2].1).unwrap();
    assert_eq!(json["head"]["ACL"], "anna\tlrs\t");
    assert_eq!(
        json["messages"][0]["flags"],
        serde_json::json!(["\\Seen", "$a"])
    );
    assert_eq!(json["messages"][1]["uid"], 4);
    let json: serde_json::Value = serde_json::from_slice(&files[6].1).unwrap();
    assert_eq!(json["active_script"], "../x.bc");
    assert_eq!(json["scripts"][0]["file"], "sieve/%2E.%2Fx.sieve");
    // Other state of the same mailbox: both are kept.
    let mut folders = two_folders();
    folders[0].items[0].record.flags.clear();
    run(Format::Eml, &temp.at("out"), &folders, &mut Held::default());
    assert!(temp.0.join("out/anna/INBOX/mailbox.2.json").exists());
    assert_eq!(temp.files().len(), files.len() + 1);
}

#[test]
fn a_maildir() {
    let temp = Temp::new("files-maildir");
    run(
        Format::Maildir,
        &temp.at("m"),
        &two_folders(),
        &mut Held::of(&[ONE, TWO]),
    );
    let one = Guid::of(ONE.as_bytes());
    let n = ONE.len();
    let name = format!("m/anna/cur/1000000003.U3_{one}.cyr_backup,S={n},W={n}:2,Sa");
    assert_eq!(fs::read(temp.0.join(&name)).unwrap(), ONE.as_bytes());
    let read = |name: &str| fs::read_to_string(temp.0.join(name)).unwrap();
    assert_eq!(read("m/anna/dovecot-keywords"), "0 $a\n");
    assert_eq!(read("m/anna/subscriptions"), "Sent\n");
    assert_eq!(read("m/anna/.Sent/maildirfolder"), "");
    assert!(temp.0.join("m/anna/.Sent/new").is_dir() && temp.0.join("m/anna/tmp").is_dir());
    // A reader changes flags: it is still there.
    let renamed = name.replace(":2,Sa", ":2,FS");
    fs::rename(temp.0.join(&name), temp.0.join(renamed)).unwrap();
    let again = run(
        Format::Maildir,
        &temp.at("m"),
        &two_folders(),
        &mut Held::default(),
    );
    assert_eq!((again[0].there, again[0].brought), (2, 0));
}

#[test]
fn what_cannot_be_had_is_told_and_the_rest_goes_on() {
    for (format, name) in FORMATS {
        let temp = Temp::new("files-lost");
        let mut folders = two_folders();
        // Longer than its record says.
        folders[1].items[0].record.size = 3;
        folders[1].items.push(item(2, ONE, &[]));
        let mut bodies = Held::of(&[TWO]);
        let done = run(format, &temp.at(name), &folders, &mut bodies);
        assert_eq!(done[0].brought, 1, "{format:?}");
        assert_eq!(done[0].failed, [(3, "no body".to_owned())], "{format:?}");
        assert_eq!(done[1].failed.len(), 2, "{format:?}");
        assert!(done[1].failed[0].1.contains("3 bytes"), "{format:?}");
        // Later they can.
        let mut bodies = Held::of(&[ONE, TWO]);
        let done = run(format, &temp.at(name), &two_folders(), &mut bodies);
        assert_eq!((done[0].brought, done[0].there), (1, 1), "{format:?}");
        assert_eq!(done[1].brought, 1, "{format:?}");
    }
}

#[test]
fn broken_off_anywhere_the_next_run_completes() {
    for (format, name) in [(Format::Tar, "x"), (Format::Mbox, "x")] {
        let whole = Temp::new("files-whole");
        let run_at = |temp: &Temp| {
            let mut bodies = Held::of(&[ONE, TWO]);
            run(format, &temp.at(name), &two_folders(), &mut bodies)
        };
        run_at(&whole);
        let bytes = fs::read(whole.0.join(name)).unwrap();
        for cut in 0..bytes.len() {
            // Archives are mostly padding.
            if format == Format::Tar && cut % 61 != 0 && cut % 512 > 1 {
                continue;
            }
            let temp = Temp::new("files-torn");
            fs::write(temp.0.join(name), &bytes[..cut]).unwrap();
            let done = run_at(&temp);
            let now = fs::read(temp.0.join(name)).unwrap();
            assert_eq!(now.len(), bytes.len(), "{format:?} cut at {cut}");
            if format == Format::Mbox {
                assert_eq!(now, bytes, "cut at {cut}");
                // What was cut off is kept, in case it was somebody's.
                let kept = fs::read(temp.0.join("x.torn1")).unwrap_or_default();
                let ends = bytes[..cut].ends_with(b"\n\n");
                let is_between = cut == 0 || ends && bytes[cut..].starts_with(b"From ");
                assert_eq!(kept.is_empty(), is_between, "cut at {cut}");
                assert!(bytes[..cut].ends_with(&kept), "cut at {cut}");
            }
            assert!(done.iter().map(|d| d.brought + d.there).eq([2, 1]), "{cut}");
        }
    }
}

#[test]
fn foreign_files_are_left_alone() {
    let temp = Temp::new("files-foreign");
    for text in [
        "From a@b Thu Jan  1 00:00:00 1970\n\n",
        "x",
        "hello\n",
        &"y".repeat(5000),
    ] {
        for format in [Format::Tar, Format::Mbox] {
            fs::write(temp.0.join("f"), text).unwrap();
            let mut to = open(format, &temp.at("f"), &Namespace::default(), "x".into()).unwrap();
            let mut bodies = Held::of(&[ONE, TWO]);
            let e = one(&mut *to, &two_folders()[0], &mut bodies, false).unwrap_err();
            assert_eq!(e.kind(), Kind::Exists, "{format:?} {text:?}");
            drop(to);
            assert_eq!(fs::read_to_string(temp.0.join("f")).unwrap(), text);
        }
    }
}

#[test]
fn a_dry_run_makes_nothing() {
    for (format, name) in FORMATS {
        let temp = Temp::new("files-dry");
        let mut to = open(format, &temp.at(name), &Namespace::default(), "x".into()).unwrap();
        let done = one(&mut *to, &two_folders()[0], &mut Held::default(), true).unwrap();
        assert_eq!((done.brought, done.made), (2, true), "{format:?}");
        to.finish().unwrap();
        drop(to);
        assert_eq!(temp.files(), [], "{format:?}");
    }
}

#[derive(Clone, Default)]
struct Kept(Rc<RefCell<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stream_is_what_a_file_would_be() {
    let temp = Temp::new("files-stream");
    for (format, name) in [(Format::Tar, "t"), (Format::Mbox, "m")] {
        let kept = Kept::default();
        let ns = Namespace::default();
        let mut to: Box<dyn Destination> = match format {
            Format::Tar => {
                let store = Box::new(tar::Tar::stream(Box::new(kept.clone())));
                Box::new(tree::Tree::new("x".into(), tree::Form::Eml, store, ns))
            }
            _ => Box::new(mbox::Mbox::stream("x".into(), Box::new(kept.clone()), ns)),
        };
        for f in &two_folders() {
            // One that is missing leaves no trace.
            one(&mut *to, f, &mut Held::of(&[TWO]), false).unwrap();
        }
        to.finish().unwrap();
        drop(to);
        let mut file = open(format, &temp.at(name), &Namespace::default(), "x".into()).unwrap();
        for f in &two_folders() {
            one(&mut *file, f, &mut Held::of(&[TWO]), false).unwrap();
        }
        file.finish().unwrap();
        drop(file);
        let file = fs::read(temp.0.join(name)).unwrap();
        assert_eq!(kept.0.borrow().len(), file.len(), "{format:?}");
    }
}

#[test]
fn refusals() {
    let ns = Namespace::default();
    let e = open(Format::Eml, &Place::Stdout, &ns, "x".into())
        .err()
        .unwrap();
    assert_eq!(e.kind(), Kind::Usage);
    let temp = Temp::new("files-refuse");
    for (format, name) in FORMATS {
        let mut to = open(format, &temp.at(name), &ns, "x".into()).unwrap();
        let mut f = two_folders()[0].clone();
        f.flags_only = true;
        let e = one(&mut *to, &f, &mut Held::default(), false).unwrap_err();
        assert_eq!(e.kind(), Kind::Usage, "{format:?}");
        f.flags_only = false;
        f.to = String::new();
        let done = one(&mut *to, &f, &mut Held::default(), false).unwrap();
        assert_eq!(done.failed.len(), 1, "{format:?}");
    }
}
