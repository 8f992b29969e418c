//! A writer killed at random moments: what it had acknowledged is there, nothing of what was not
//! anybody's is, and the index is what the log says.
//!
//! The seed is printed; `CRASH_SEED` and `CRASH_ROUNDS` run it again or for longer.

use cyr_backup::cyrus::dlist::{Limits, Parser, Value};
use cyr_backup::cyrus::guid::Guid;
use cyr_backup::cyrus::sync::Record;
use cyr_backup::store::backup::{Backup, MailboxResult, Settings};
use cyr_backup::store::index::{self, Index, differences};
use cyr_backup::store::line::Line;
use cyr_backup::store::lock::{Create, Wait};
use cyr_backup::store::reader::readable;
use cyr_backup::store::spool::Spool;
use cyr_backup::util::time::{Timestamp, now_ms};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const SETTINGS: Settings = Settings {
    level: 1,
    chunk_max: 100_000,
};

/// Stands in bodies that are not this user's.
const FOREIGN: &str = "somebody else's secret";

struct Dice(u64);

impl Dice {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below
    }
}

fn body(uid: u32, word: &str) -> Vec<u8> {
    let mut dice = Dice(u64::from(uid).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut text = format!("From: a@b\r\nSubject: {word} {uid}\r\n\r\n").into_bytes();
    let size = match dice.next(20) {
        0 => 300_000,
        1..=4 => 40_000,
        _ => 1 + dice.next(3000),
    };
    let noise = dice.next(2) == 0;
    while (text.len() as u64) < size {
        if noise {
            text.extend_from_slice(&dice.next(u64::MAX >> 11).to_le_bytes());
        } else {
            text.extend_from_slice(format!("{word} {} ", dice.next(999)).as_bytes());
        }
    }
    text.extend_from_slice(b"\r\n");
    text
}

fn record(uid: u32) -> (String, u32, Guid) {
    let body = body(uid, "mail");
    let guid = Guid::of(&body);
    let text = format!(
        "%(UID {uid} MODSEQ {uid} LAST_UPDATED 1 FLAGS () INTERNALDATE 2 SIZE {} GUID {guid})",
        body.len()
    );
    let value = Parser::new(format!("{text}\r\n").as_bytes(), Limits::default())
        .value()
        .unwrap();
    let crc = Record::from_value(value).unwrap().sums().record;
    (text, crc, guid)
}

fn open(path: &Path) -> Backup {
    let wait = Wait::For(Duration::from_secs(20));
    Backup::open(path, "anna", wait, Create::IfMissing, SETTINGS).unwrap()
}

fn send(backup: &mut Backup, body: &[u8], now: Timestamp) {
    let guid = Guid::of(body);
    backup
        .body_begin(b"default", guid, body.len() as u64, now)
        .unwrap();
    for part in body.chunks(50_000) {
        backup.body_data(part).unwrap();
    }
    backup.body_end().unwrap();
}

/// What is acknowledged, one line each.
fn say(text: &str) {
    let mut out = std::io::stdout();
    out.write_all(format!("\n#{text}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// One unit: bodies and the MAILBOX line for them, with the ways in which it can go.
fn unit(dir: &Path, backup: &mut Backup, dice: &mut Dice, uids: &mut u32, crc: &mut u32) {
    let now = Timestamp(5000 + dice.next(20) as i64);
    let n = 1 + dice.next(5) as u32;
    let foreign = dice.next(4) == 0;
    let mut list = Vec::new();
    let mut sum = *crc;
    for uid in *uids + 1..=*uids + n {
        send(backup, &body(uid, "mail"), now);
        if foreign {
            send(backup, &body(uid, FOREIGN), now);
        }
        let (text, crc, _) = record(uid);
        sum ^= crc;
        list.push(text);
    }
    backup.messages_end().unwrap();
    let last = *uids + n;
    let literal = dice.next(6) == 0;
    let acl = if literal { "{3+}\r\na\tb" } else { "\"\"" };
    let mut spool = Spool::new(dir, 1 << 30);
    spool
        .append(
            format!(
                "%(UNIQUEID u1 MBOXNAME user.anna SYNC_CRC {sum} LAST_UID {last} \
                 HIGHESTMODSEQ {last} RECENTUID 0 RECENTTIME 0 LAST_APPENDDATE 0 \
                 POP3_LAST_LOGIN 0 UIDVALIDITY 7 PARTITION default ACL {acl} OPTIONS P \
                 RECORD ({}))",
                list.join(" ")
            )
            .as_bytes(),
        )
        .unwrap();
    let before = [Line::new("UNMAILBOX", &Value::text("user.anna.old"))];
    let before = &before[..dice.next(2) as usize];
    match backup.mailbox(before, &spool, literal, now).unwrap() {
        MailboxResult::Unreferred => {
            assert!(foreign);
            let mut evicted = 0;
            backup
                .evict(&mut |_, _, size, read| {
                    let mut got = 0;
                    read(&mut |part| {
                        got += part.len() as u64;
                        Ok(())
                    })?;
                    assert_eq!(got, size);
                    evicted += 1;
                    Ok(())
                })
                .unwrap();
            assert_eq!(evicted, 2 * n);
        }
        MailboxResult::Entered(outcome) => {
            assert!(!foreign && outcome.agrees && outcome.missing == 0);
            if dice.next(8) == 0 {
                backup.abort();
                return;
            }
            backup.commit().unwrap();
            *uids = last;
            *crc = sum;
            let len = fs::metadata(backup.path()).unwrap().len();
            say(&format!("mail {last} {len}"));
        }
    }
}

/// The writer. A test only so that the test program can be started as one.
#[test]
fn crash_child() {
    let Ok(dir) = std::env::var("CRASH_DIR") else {
        return;
    };
    let dir = PathBuf::from(dir);
    let number = |name| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let mut dice = Dice(number("CRASH_DICE"));
    let mut uids = number("CRASH_UIDS") as u32;
    let mut subs = number("CRASH_SUBS");
    let mut crc = (1..=uids).fold(0, |crc, uid| crc ^ record(uid).1);
    let path = dir.join("anna_abcdef");
    say("begun");
    loop {
        let mut backup = open(&path);
        for _ in 0..1 + dice.next(12) {
            if dice.next(3) > 0 {
                unit(&dir, &mut backup, &mut dice, &mut uids, &mut crc);
                continue;
            }
            let mut name = format!("user.anna.{}", subs + 1);
            if dice.next(3) == 0 {
                name.push_str("\r\nliteral");
            }
            let sub = Value::kv([
                ("USERID", Value::text("anna")),
                ("MBOXNAME", Value::text(name)),
            ]);
            let unsub = Value::kv([
                ("USERID", Value::text("anna")),
                ("MBOXNAME", Value::text("gone")),
            ]);
            let lines = [
                Line::new("UNSUB", &unsub),
                Line::new("SUB", &sub),
                Line::new("UNSUB", &unsub),
            ];
            let n = 2 + dice.next(2) as usize;
            let now = Timestamp(5000 + dice.next(20) as i64);
            backup.append(&lines[..n], now).unwrap();
            subs += 1;
            let len = fs::metadata(&path).unwrap().len();
            say(&format!("sub {subs} {len}"));
        }
        match dice.next(3) {
            0 => drop(backup),
            _ => backup.finish().unwrap(),
        }
    }
}

fn plain(path: &Path) -> Vec<u8> {
    if fs::metadata(path).unwrap().len() == 0 {
        // Killed in its very first unit; gzip takes that for no end.
        return Vec::new();
    }
    let out = Command::new("gzip")
        .arg("-dc")
        .stdin(fs::File::open(path).unwrap())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "gzip: {text}");
    out.stdout
}

fn copy_index(from: &Path, to: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let name = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
        let _ = fs::remove_file(name(to));
        let _ = fs::copy(name(from), name(to));
    }
}

/// How much of the log the index knows to be on disk; read in a copy of it.
fn acknowledged(path: &Path, scratch: &Path) -> u64 {
    copy_index(&index::path_of(path), scratch);
    let index = Index::open_read_only(scratch).unwrap();
    let known = index.meta_number("acknowledged").unwrap();
    u64::try_from(known.unwrap_or(0)).unwrap()
}

#[test]
fn a_writer_killed_at_any_moment_leaves_what_it_acknowledged() {
    let env = |name| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let seed = env("CRASH_SEED").unwrap_or(now_ms() as u64 | 1);
    let rounds = env("CRASH_ROUNDS").unwrap_or(25);
    println!("CRASH_SEED={seed}");
    let mut dice = Dice(seed);
    let dir = std::env::temp_dir().join(format!("cyrbackup-crash-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(dir.join("copy")).unwrap();
    let path = dir.join("anna_abcdef");
    let old = dir.join("old.index");
    let (mut uids, mut subs) = (0, 0);
    for round in 0..rounds {
        copy_index(&index::path_of(&path), &old);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::crash_child", "--nocapture"])
            .args(["--test-threads", "1"])
            .env("CRASH_DIR", &dir)
            .env("CRASH_DICE", (dice.next(1 << 40) | 1).to_string())
            .env("CRASH_UIDS", uids.to_string())
            .env("CRASH_SUBS", subs.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (begun, wait) = std::sync::mpsc::channel();
        let mut stdout = child.stdout.take().unwrap();
        let listener = std::thread::spawn(move || {
            let (mut said, mut buf) = (Vec::new(), [0; 4096]);
            loop {
                let n = stdout.read(&mut buf).unwrap();
                if n == 0 {
                    return String::from_utf8(said).unwrap();
                }
                said.extend_from_slice(&buf[..n]);
                if said.windows(6).any(|w| w == b"#begun") {
                    let _ = begun.send(());
                }
            }
        });
        let _ = wait.recv_timeout(Duration::from_secs(60));
        std::thread::sleep(Duration::from_micros(dice.next(250_000)));
        child.kill().unwrap();
        let said = listener.join().unwrap();
        let status = child.wait().unwrap();
        let how = dice.next(5);
        let what = format!("round {round} how {how} uids {uids} subs {subs}");
        assert!(
            !status.success() && status.code().is_none(),
            "{what}: {said}"
        );
        let mut len = 0;
        for line in said.lines().filter_map(|l| l.strip_prefix('#')) {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["mail", n, l] => (uids, len) = (n.parse().unwrap(), l.parse().unwrap()),
                ["sub", n, l] => (subs, len) = (n.parse().unwrap(), l.parse().unwrap()),
                _ => {}
            }
        }
        let has = fs::metadata(&path).map_or(0, |m| m.len());
        match how {
            // What only a power loss does.
            1 => index::remove(&index::path_of(&path)).unwrap(),
            2 if old.exists() => copy_index(&old, &index::path_of(&path)),
            3 if len > 0 => {
                // It may have been killed when all was on disk, before it could say so.
                let durable = len.max(acknowledged(&path, &dir.join("known.index")));
                let file = fs::File::options().write(true).open(&path).unwrap();
                file.set_len(durable + dice.next(has - durable + 1))
                    .unwrap();
            }
            4 if has > 0 => {
                let noise: Vec<u8> = (0..dice.next(9000)).map(|_| dice.next(256) as u8).collect();
                let mut file = fs::File::options().append(true).open(&path).unwrap();
                file.write_all(&noise).unwrap();
            }
            _ => {}
        }
        let backup = open(&path);
        let live = backup.index();
        assert_eq!(live.marks().unwrap(), [], "{what}");
        let mut found = Vec::new();
        if let Some(row) = live.mailbox("u1").unwrap() {
            live.records(row.id, None, false, &mut |r| {
                found.push((r.record.uid, r.record.guid));
                Ok(())
            })
            .unwrap();
        }
        assert!(
            found.len() as u32 >= uids,
            "{what}: {} records",
            found.len()
        );
        let want: Vec<_> = (1..=found.len() as u32).map(|u| (u, record(u).2)).collect();
        assert_eq!(found, want, "{what}");
        let guids: std::collections::HashSet<_> = found.iter().map(|f| f.1).collect();
        let good = readable(live, backup.file(), found.iter().map(|f| f.1)).unwrap();
        assert_eq!(good, guids, "{what}");
        let known = live.subscriptions(false).unwrap().len() as u64;
        assert!(known >= subs, "{what}: {known} subscriptions");
        (uids, subs) = (found.len() as u32, known);
        drop(backup);
        let text = plain(&path);
        let is_foreign = |w: &[u8]| w == FOREIGN.as_bytes();
        assert!(!text.windows(FOREIGN.len()).any(is_foreign), "{what}");
        // The log alone says the same.
        let copy = dir.join("copy/anna_abcdef");
        index::remove(&index::path_of(&copy)).unwrap();
        fs::copy(&path, &copy).unwrap();
        drop(open(&copy));
        assert_eq!(fs::read(&copy).unwrap(), fs::read(&path).unwrap(), "{what}");
        let here = Index::open_read_only(&index::path_of(&path)).unwrap();
        let there = Index::open_read_only(&index::path_of(&copy)).unwrap();
        assert_eq!(differences(&here, &there, 5).unwrap(), [], "{what}");
    }
    println!("messages {uids} subscriptions {subs}");
    assert!(uids > 0 && subs > 0);
    fs::remove_dir_all(&dir).unwrap();
}
