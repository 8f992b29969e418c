//! Random histories of a user, written through the store as a session would, for tests that ask
//! whether something leaves their meaning alone.

use crate::store::{Dir, SETTINGS};
use cyr_backup::cyrus::dlist::{Form, Limits, Parser, Value, print_to_vec};
use cyr_backup::cyrus::guid::Guid;
use cyr_backup::cyrus::sync::{Record, Sums};
use cyr_backup::store::backup::{Backup, Bodies, MailboxResult};
use cyr_backup::store::index::Index;
use cyr_backup::store::line::Line;
use cyr_backup::store::lock::{Create, Wait};
use cyr_backup::store::spool::Spool;
use cyr_backup::util::time::Timestamp;
use std::collections::BTreeMap;

/// Dice that a seed makes roll alike.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % sides.max(1)
    }

    pub fn choose<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.roll(from.len() as u64) as usize)
    }
}

#[derive(Clone)]
struct Message {
    guid: Guid,
    size: usize,
    flags: &'static str,
    expunged: bool,
    born: i64,
}

#[derive(Clone)]
struct Folder {
    uniqueid: String,
    name: String,
    validity: u64,
    modseq: u64,
    last_uid: u32,
    epoch: i64,
    known: bool,
    messages: BTreeMap<u32, Message>,
}

/// A user's life so far.
pub struct Life<'a> {
    dir: &'a Dir,
    pub dice: Dice,
    pub now: i64,
    pub times: Vec<i64>,
    folders: Vec<Folder>,
    numbers: u32,
    bodies: Vec<Vec<u8>>,
    backup: Option<Backup>,
}

const FLAGS: [&str; 4] = ["", "\\Seen", "\\Flagged \\Seen", "$Label1"];
const NAMES: [&str; 4] = ["", ".Sent", ".Trash", ".Old"];

impl<'a> Life<'a> {
    pub fn new(dir: &'a Dir, seed: u64) -> Life<'a> {
        Life {
            dir,
            dice: Dice(seed),
            now: 1_800_000_000,
            times: Vec::new(),
            folders: Vec::new(),
            numbers: 0,
            bodies: Vec::new(),
            backup: None,
        }
    }

    fn backup(&mut self) -> &mut Backup {
        let dir = self.dir;
        self.backup.get_or_insert_with(|| {
            Backup::open(
                &dir.data(),
                "anna",
                Wait::For(std::time::Duration::from_secs(10)),
                Create::IfMissing,
                SETTINGS,
            )
            .unwrap()
        })
    }

    /// Ends the session.
    pub fn rest(&mut self) {
        if let Some(backup) = self.backup.take() {
            backup.finish().unwrap();
        }
    }

    /// One thing happens, now.
    pub fn step(&mut self) {
        match self.dice.roll(20) {
            // A clock that is put back, or forward by more than things take.
            0 if self.dice.roll(8) == 0 => self.now -= 3000,
            0 => self.now -= 3 + self.dice.roll(40) as i64,
            1 => self.now += 100,
            _ => self.now += self.dice.roll(12) as i64,
        }
        let n = self.dice.roll(100);
        match n {
            _ if self.folders.is_empty() => self.create(),
            0..=4 if self.folders.len() < 4 => self.create(),
            5..=44 => self.deliver(),
            45..=56 => self.change(|m, dice| m.flags = FLAGS[dice.roll(4) as usize]),
            57..=70 => self.change(|m, _| m.expunged = true),
            71..=74 => self.shift(),
            75..=77 => self.rename(),
            78..=79 => self.delete(),
            80..=81 => self.again(),
            82..=85 => self.subscribe(),
            86..=90 => self.sieve(),
            91..=92 => self.small("SEEN", &["m1", "m2"]),
            93..=94 => self.small("QUOTA", &["user.anna", "user.anna.Sent"]),
            95..=96 => self.small("ANNOTATION", &["/a", "/b"]),
            97 => self.small("RESYNC", &["u1", "u2"]),
            98 => self.unuser(),
            _ => {}
        }
        if self.dice.roll(4) == 0 {
            self.rest();
        }
        self.times.push(self.now);
    }

    fn create(&mut self) {
        let n = self.dice.roll(4) as usize;
        let name = format!("user.anna{}", NAMES[n]);
        if self.folders.iter().any(|f| f.name == name) {
            return;
        }
        self.numbers += 1;
        let folder = Folder {
            uniqueid: format!("u{}", self.numbers),
            name,
            validity: 7 + u64::from(self.numbers),
            modseq: 1,
            last_uid: 0,
            epoch: 1,
            known: false,
            messages: BTreeMap::new(),
        };
        self.folders.push(folder);
        let at = self.folders.len() - 1;
        self.state(at, &[]);
    }

    fn deliver(&mut self) {
        let at = self.dice.roll(self.folders.len() as u64) as usize;
        let mut uids = Vec::new();
        for _ in 0..=self.dice.roll(3) {
            self.numbers += 1;
            // Now and then a message that is there already.
            let n = match self.dice.roll(8) {
                0 => self.numbers / 2,
                _ => self.numbers,
            };
            let filler = "word ".repeat(self.dice.0 as usize % 300);
            let text = format!("From: a@b\r\nSubject: message {n}\r\n\r\n{n} {filler}\r\n");
            let mut body = text.into_bytes();
            // And now and then one that comes once more though it is there.
            let once_more = self.dice.roll(8) == 0;
            if once_more {
                body = self.dice.choose(&self.bodies).cloned().unwrap_or(body);
            }
            self.bodies.push(body.clone());
            let (guid, now) = (Guid::of(&body), Timestamp(self.now));
            let backup = self.backup();
            let is_pending = backup.is_pending(guid).unwrap();
            if !is_pending && (once_more || backup.index().body(guid).unwrap().is_none()) {
                backup
                    .body_begin(b"default", guid, body.len() as u64, now)
                    .unwrap();
                backup.body_data(&body).unwrap();
                backup.body_end().unwrap();
            }
            let born = self.now - self.dice.roll(3) as i64 * 100_000;
            let folder = &mut self.folders[at];
            folder.last_uid += 1;
            folder.modseq += 1;
            uids.push(folder.last_uid);
            folder.messages.insert(
                folder.last_uid,
                Message {
                    guid,
                    size: body.len(),
                    flags: FLAGS[(self.dice.0 >> 40) as usize % 4],
                    expunged: false,
                    born,
                },
            );
        }
        self.backup().messages_end().unwrap();
        self.state(at, &uids);
    }

    /// Changes some messages of a folder.
    fn change(&mut self, what: impl Fn(&mut Message, &mut Dice)) {
        let at = self.dice.roll(self.folders.len() as u64) as usize;
        let few = 1 + self.dice.roll(3);
        let mut uids = Vec::new();
        let folder = &mut self.folders[at];
        for (uid, message) in &mut folder.messages {
            if !message.expunged && self.dice.roll(few) == 0 {
                what(message, &mut self.dice);
                uids.push(*uid);
            }
        }
        folder.modseq += 1;
        self.state(at, &uids);
    }

    /// Moves a message to another folder.
    fn shift(&mut self) {
        let from = self.dice.roll(self.folders.len() as u64) as usize;
        let to = self.dice.roll(self.folders.len() as u64) as usize;
        let alive = self.folders[from].messages.iter();
        let alive: Vec<u32> = alive.filter(|m| !m.1.expunged).map(|m| *m.0).collect();
        let Some(&uid) = self.dice.choose(&alive) else {
            return;
        };
        let copy = self.folders[from].messages[&uid].clone();
        let target = &mut self.folders[to];
        target.last_uid += 1;
        target.modseq += 1;
        let new = target.last_uid;
        target.messages.insert(new, copy);
        self.state(to, &[new]);
        let source = &mut self.folders[from];
        source.modseq += 1;
        if let Some(message) = source.messages.get_mut(&uid) {
            message.expunged = true;
        }
        self.state(from, &[uid]);
    }

    fn rename(&mut self) {
        let at = self.dice.roll(self.folders.len() as u64) as usize;
        let name = match self.dice.roll(2) {
            0 => format!(
                "DELETED.{}.5F0000{:02X}",
                self.folders[at].name,
                self.dice.roll(90)
            ),
            _ => format!("user.anna{}", NAMES[self.dice.roll(4) as usize]),
        };
        if name.contains("DELETED.DELETED") || self.folders.iter().any(|f| f.name == name) {
            return;
        }
        self.folders[at].name = name;
        self.folders[at].modseq += 1;
        self.state(at, &[]);
    }

    fn delete(&mut self) {
        let at = self.dice.roll(self.folders.len() as u64) as usize;
        let folder = self.folders.remove(at);
        self.lines(&[Line::new("UNMAILBOX", &Value::text(folder.name))]);
    }

    /// The server went back, or is asked for everything.
    fn again(&mut self) {
        let at = self.dice.roll(self.folders.len() as u64) as usize;
        let folder = &mut self.folders[at];
        folder.known = false;
        if self.dice.roll(2) == 0 {
            folder.epoch += 1;
            folder.modseq = 1;
            let keep = self.dice.roll(5) as usize;
            folder.messages = folder.messages.clone().into_iter().take(keep).collect();
            folder.last_uid = folder.messages.keys().max().copied().unwrap_or(0);
        } else {
            folder.messages.retain(|_, m| !m.expunged);
        }
        let uids: Vec<u32> = folder.messages.keys().copied().collect();
        self.state(at, &uids);
    }

    fn subscribe(&mut self) {
        let name = format!("user.anna{}", NAMES[self.dice.roll(4) as usize]);
        let value = Value::kv([
            ("USERID", Value::text("anna")),
            ("MBOXNAME", Value::text(name)),
        ]);
        let what = ["SUB", "SUB", "UNSUB"][self.dice.roll(3) as usize];
        self.lines(&[Line::new(what, &value)]);
    }

    fn sieve(&mut self) {
        let name = ["one", "two"][self.dice.roll(2) as usize];
        let file = |kind| Value::text(format!("{name}.{kind}"));
        let user = Value::text("anna");
        match self.dice.roll(4) {
            0 => {
                let value = Value::kv([("USERID", user), ("FILENAME", file("script"))]);
                self.lines(&[Line::new("UNSIEVE", &value)]);
            }
            1 => {
                let value = Value::kv([("USERID", user), ("FILENAME", file("bc"))]);
                let what = ["ACTIVATE_SIEVE", "UNACTIVATE_SIEVE"][self.dice.roll(2) as usize];
                self.lines(&[Line::private(what, value)]);
            }
            _ => {
                let text = format!("keep; # {}\r\n", self.dice.roll(1000));
                let value = Value::kv([
                    ("USERID", user),
                    ("FILENAME", file("script")),
                    ("LAST_UPDATE", Value::num(self.now)),
                    ("CONTENT", Value::text(text)),
                ]);
                self.lines(&[Line::new("SIEVE", &value)]);
            }
        }
    }

    fn small(&mut self, what: &str, names: &[&str]) {
        let name = Value::text(names[self.dice.roll(names.len() as u64) as usize]);
        let number = Value::num(self.dice.roll(9));
        let line = match what {
            "SEEN" => Line::new(
                "SEEN",
                &Value::kv([
                    ("USERID", Value::text("anna")),
                    ("UNIQUEID", name),
                    ("LASTUID", number),
                ]),
            ),
            "QUOTA" if self.dice.roll(3) == 0 => Line::private("UNQUOTA", name),
            "QUOTA" => Line::private("QUOTA", Value::kv([("ROOT", name), ("STORAGE", number)])),
            "RESYNC" => cyr_backup::store::backup::resync_line(name.as_str().unwrap(), 1, "test"),
            _ => {
                let mut keys = vec![
                    ("MBOXNAME", Value::text("")),
                    ("ENTRY", name),
                    ("USERID", Value::text("")),
                ];
                if self.dice.roll(3) == 0 {
                    Line::private("UNANNOTATION", Value::kv(keys))
                } else {
                    keys.push(("VALUE", number));
                    Line::private("ANNOTATION", Value::kv(keys))
                }
            }
        };
        self.lines(&[line]);
    }

    fn unuser(&mut self) {
        if self.dice.roll(4) == 0 {
            self.folders.retain(|f| !f.name.starts_with("user.anna"));
            self.lines(&[Line::private("UNUSER", Value::text("user.anna"))]);
        }
    }

    fn lines(&mut self, lines: &[Line]) {
        let now = Timestamp(self.now);
        self.backup().append(lines, now).unwrap();
    }

    /// States a folder, with the records of these UIDs.
    fn state(&mut self, at: usize, uids: &[u32]) {
        let folder = self.folders[at].clone();
        let mut sums = Sums::default();
        let mut listed = Vec::new();
        for (uid, message) in &folder.messages {
            let expunged = if message.expunged { "\\Expunged " } else { "" };
            let text = format!(
                "%(UID {uid} MODSEQ {} LAST_UPDATED {} FLAGS ({}) INTERNALDATE {} SIZE {} GUID {})",
                folder.modseq,
                self.now,
                format!("{expunged}{}", message.flags).trim(),
                message.born,
                message.size,
                message.guid
            );
            let line = format!("{text}\r\n");
            let mut parser = Parser::new(line.as_bytes(), Limits::default());
            let record = Record::from_value(parser.value().unwrap()).unwrap();
            if uids.contains(uid) {
                sums.toggle(record.sums());
                listed.push(text);
            } else if let Some(row) = self.backup().index().mailbox(&folder.uniqueid).unwrap() {
                let index = self.backup().index();
                if let Some(row) = index.record(row.id, folder.epoch, *uid).unwrap() {
                    sums.toggle(row.record.sums());
                }
            }
        }
        let mut spool = Spool::new(&self.dir.0, 1 << 30);
        let text = format!(
            "%(UNIQUEID {} MBOXNAME {} SYNC_CRC {} LAST_UID {} HIGHESTMODSEQ {} RECENTUID 0 \
             RECENTTIME 0 LAST_APPENDDATE 0 POP3_LAST_LOGIN 0 UIDVALIDITY {} PARTITION default \
             ACL \"anna lrs\" OPTIONS P RECORD ({}))",
            folder.uniqueid,
            folder.name,
            sums.record,
            folder.last_uid,
            folder.modseq,
            folder.validity,
            listed.join(" ")
        );
        spool.append(text.as_bytes()).unwrap();
        let mut before = Vec::new();
        if !folder.known {
            let fact = Value::kv([
                ("UNIQUEID", Value::text(&folder.uniqueid)),
                ("EPOCH", Value::num(folder.epoch)),
            ]);
            before.push(Line::private("COMPLETE", fact));
        }
        self.folders[at].known = true;
        let now = Timestamp(self.now);
        let backup = self.backup();
        let done = backup.mailbox_and(Bodies::All, &before, &spool, false, now);
        assert!(matches!(done.unwrap(), MailboxResult::Entered(_)));
        backup.commit().unwrap();
    }
}

fn text(value: &Value) -> String {
    String::from_utf8_lossy(&print_to_vec(value, Form::Log)).into_owned()
}

/// All that is alive, as text.
pub fn picture(index: &Index) -> Vec<String> {
    let mut out = Vec::new();
    for mailbox in index.mailboxes(false).unwrap() {
        out.push(format!(
            "{} {} epoch {} sums {:?} {}",
            mailbox.mboxname,
            mailbox.uniqueid,
            mailbox.epoch,
            mailbox.sums,
            String::from_utf8_lossy(&mailbox.head.print())
        ));
        index
            .records(mailbox.id, Some(mailbox.epoch), false, &mut |row| {
                out.push(format!("  {}", text(&row.record.to_value())));
                Ok(())
            })
            .unwrap();
    }
    out.sort_by(|a, b| a.starts_with(' ').cmp(&b.starts_with(' ')).then(a.cmp(b)));
    out.extend(
        index
            .subscriptions(false)
            .unwrap()
            .into_iter()
            .map(|s| format!("sub {}", s.mboxname)),
    );
    out.extend(
        index
            .seen_states()
            .unwrap()
            .iter()
            .map(|s| format!("seen {}", text(&s.value))),
    );
    out.extend(index.scripts(false).unwrap().into_iter().map(|s| {
        let content = String::from_utf8_lossy(&s.content).into_owned();
        format!("sieve {} {} {content}", s.filename, s.last_update)
    }));
    out.push(format!("active {:?}", index.active_script().unwrap()));
    let quotas = index.quotas().unwrap();
    out.extend(quotas.iter().map(|q| format!("quota {}", text(&q.1))));
    let annotations = index.all_annotations().unwrap();
    let annotations = annotations.into_iter();
    out.extend(annotations.map(|a| format!("annotation {} {:?}", a.entry, a.value)));
    let marks = index.marks().unwrap();
    out.extend(marks.into_iter().map(|m| format!("mark {m:?}")));
    out
}

/// All rows that have not expired, with all their times, as text.
pub fn rows(index: &Index, edge: &dyn Fn(&str) -> i64) -> Vec<String> {
    let gone = |went: Option<i64>, edge: i64| went.is_some_and(|t| t <= edge);
    let mut out = Vec::new();
    for m in index.mailboxes(true).unwrap() {
        let edge = edge(&m.mboxname);
        if gone(m.deleted, edge) {
            continue;
        }
        out.push(format!(
            "{} {} {} {} {:?} {} {} {:?} {}",
            m.uniqueid,
            m.mboxname,
            m.epoch,
            m.records,
            m.sums,
            m.created,
            m.changed,
            m.deleted,
            m.unreliable
        ));
        index
            .records(m.id, None, true, &mut |r| {
                let went = match (r.expunged, m.deleted) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
                if !gone(went, edge) {
                    out.push(format!(
                        "{} {} {} {} {:?} {} {}",
                        m.uniqueid,
                        r.epoch,
                        text(&r.record.to_value()),
                        r.arrived,
                        r.expunged,
                        r.gone,
                        r.missing
                    ));
                    out.push(format!(
                        "{} {} changed {}",
                        m.uniqueid, r.record.uid, r.changed
                    ));
                }
                Ok(())
            })
            .unwrap();
    }
    let edge = edge("user.anna");
    let lasting = |what: &str, l: cyr_backup::store::index::Lasting| {
        let value = String::from_utf8_lossy(&l.value).into_owned();
        (!gone(l.ended, edge))
            .then(|| format!("{what} {} {value} {} {:?}", l.name, l.time, l.ended))
    };
    let all = index
        .lasting_subscriptions()
        .unwrap()
        .into_iter()
        .filter_map(|l| lasting("sub", l))
        .chain(
            index
                .lasting_seen()
                .unwrap()
                .into_iter()
                .filter_map(|l| lasting("seen", l)),
        )
        .chain(
            index
                .lasting_quotas()
                .unwrap()
                .into_iter()
                .filter_map(|l| lasting("quota", l)),
        )
        .chain(
            index
                .lasting_scripts()
                .unwrap()
                .into_iter()
                .filter_map(|l| lasting("sieve", l)),
        );
    out.extend(all);
    for (entry, userid, l) in index.lasting_annotations().unwrap() {
        out.extend(lasting(&format!("annotation {entry} {userid}"), l));
    }
    out.push(format!("{:?}", index.active_since().unwrap()));
    out.push(format!("{:?}", index.marks_since().unwrap()));
    out.sort();
    out
}
