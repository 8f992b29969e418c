//! The record of what was erased for good: `backups.db.erased`, lines of text beside the catalogue.
//!
//! `<time> <seconds since 1970> <what>`; only ever appended to, and on disk when [`append`] returns.
//! It holds names, and no mail.
//!
//! People read it, and this program. A line `user=<KEY> whole=<seconds> begun` is written before all that an
//! owner has goes, and says up to when. One with `deleted=<seconds>` behind it ([`removal`]) is written under the
//! lock of one deleted backup, when it goes now; `since=<seconds>` there is when that one began. A log of that
//! owner without an entry that has nothing later, and did not begin before, is a copy of what was erased, and not
//! taken for his backup by itself ([`wholes`]). `kept=<seconds>` says that it could not be removed;
//! `back=<seconds>` takes back what was said of one that was deleted then: it is in use again.
//!
//! A line `user=<KEY> message=<GUID> ...` is written before a message goes; KEY is the owner, also of a deleted
//! backup, so that it holds when that comes back. Who takes over what was his inherits them before he has any of
//! it ([`inherit`]).

use super::former::{self, Former};
use crate::cyrus::guid::Guid;
use crate::error::{Error, Result};
use crate::sys::fs::sync_folder;
use crate::util::time::{Timestamp, iso};
use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

fn beside(backups_db: &Path) -> PathBuf {
    let mut path = backups_db.as_os_str().to_owned();
    path.push(".erased");
    path.into()
}

fn clean(what: &str) -> String {
    what.replace(char::is_control, "?")
}

/// Says, before it goes, that all that `key` had up to a time is to be erased.
pub fn begun(backups_db: &Path, now: Timestamp, key: &str, until: Timestamp) -> Result<()> {
    let what = format!("user=<{key}> whole={} begun", until.0);
    append(backups_db, now, &what)
}

/// What the lines say, without their times.
fn said(backups_db: &Path) -> Result<Vec<String>> {
    let path = beside(backups_db);
    let text = match std::fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.map_err(|e| Error::io("cannot read", e).at(&path))?,
    };
    let text = String::from_utf8_lossy(&text);
    let said = text
        .lines()
        .filter_map(|line| line.splitn(3, ' ').nth(2).map(str::to_owned));
    Ok(said.collect())
}

/// What the lines about `key` say.
fn about(backups_db: &Path, key: &str) -> Result<Vec<String>> {
    let start = clean(&format!("user=<{key}> "));
    let said = said(backups_db)?.into_iter();
    Ok(said
        .filter_map(|what| Some(what.strip_prefix(&start)?.to_owned()))
        .collect())
}

/// The messages of a backup of `key`, live or deleted, whose erasure was at least begun.
pub fn messages(backups_db: &Path, key: &str) -> Result<HashSet<Guid>> {
    let key = clean(key);
    let guid = |what: &String| {
        let (whose, rest) = what.strip_prefix("user=<")?.split_once("> message=")?;
        // Once the key of a deleted backup was written.
        let is_his = whose == key || former::owner_of(whose) == Some(&key);
        let guid = rest.split(' ').next().filter(|_| is_his)?;
        Guid::parse(guid.as_bytes())
    };
    Ok(said(backups_db)?.iter().filter_map(guid).collect())
}

/// Whether the last thing said of a message of `key` is that its erasure was begun, or of those it was
/// inherited from.
pub fn is_begun(backups_db: &Path, key: &str, guid: Guid) -> Result<bool> {
    let start = format!("message={guid} ");
    let mut key = key.to_owned();
    // As often as a user is renamed, at the most.
    for _ in 0..64 {
        let said = about(backups_db, &key)?;
        let last = said.iter().rev().find_map(|what| what.strip_prefix(&start));
        let Some(last) = last else {
            return Ok(false);
        };
        match last.strip_prefix("of=<").and_then(|of| of.split_once('>')) {
            Some((of, _)) => key = of.to_owned(),
            None => return Ok(last.split(' ').next() == Some("begun")),
        }
    }
    Ok(false)
}

/// Says that messages which were erased of `from` are erased of `to`, too: those that `is_his`, unless it
/// is known. Before anything of `from` becomes that of `to`.
pub fn inherit(
    backups_db: &Path,
    now: Timestamp,
    (from, to): (&str, &str),
    is_his: &mut dyn FnMut(Guid) -> Result<bool>,
) -> Result<()> {
    let erased = messages(backups_db, from)?;
    if erased.is_empty() {
        return Ok(());
    }
    let known = messages(backups_db, to)?;
    let mut guids: Vec<Guid> = erased.difference(&known).copied().collect();
    guids.sort_by_key(|guid| guid.0);
    let mut lines = Vec::new();
    for guid in guids {
        if is_his(guid)? {
            lines.push(format!("user=<{to}> message={guid} of=<{from}>"));
        }
    }
    match lines.is_empty() {
        true => Ok(()),
        false => append_all(backups_db, now, &lines),
    }
}

/// What is on record of whole backups of an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole {
    /// Nothing in it is later, in seconds since 1970.
    until: i64,
    /// Of one deleted backup: when it was deleted, in seconds since 1970.
    deleted: Option<i64>,
    /// When it began, if that is known.
    since: Option<i64>,
    /// Whether its end is on record, too.
    is_closed: bool,
    /// Whether it could not be removed.
    is_kept: bool,
}

impl Whole {
    fn parse(text: &str) -> Option<Whole> {
        let mut words = text.split(' ');
        let number = |word: &str, name: &str| word.strip_prefix(name)?.parse().ok();
        let mut whole = Whole {
            until: words.next()?.parse().ok()?,
            deleted: None,
            since: None,
            is_closed: false,
            is_kept: false,
        };
        for word in words {
            whole.deleted = whole.deleted.or(number(word, "deleted="));
            whole.since = whole.since.or(number(word, "since="));
        }
        Some(whole)
    }

    /// Whether a log that began at a time, and has nothing later than another, is a copy of it.
    pub fn covers(&self, began: i64, last: i64) -> bool {
        last <= self.until && self.since.is_none_or(|since| began >= since)
    }
}

/// All of it, without what was taken back.
pub fn wholes(backups_db: &Path, key: &str) -> Result<Vec<Whole>> {
    let mut wholes: Vec<Whole> = Vec::new();
    for what in about(backups_db, key)? {
        if let Some(text) = what.strip_prefix("whole=") {
            wholes.extend(Whole::parse(text));
        } else if is_end(&what) {
            wholes.iter_mut().for_each(|whole| whole.is_closed = true);
        } else if let Some(deleted) = what.strip_prefix("kept=") {
            let deleted = deleted.parse().ok();
            for whole in wholes.iter_mut().filter(|w| w.deleted == deleted) {
                whole.is_kept |= deleted.is_some();
            }
        } else if let Some(deleted) = what.strip_prefix("back=") {
            let deleted = deleted.parse().ok();
            wholes.retain(|whole| match whole.deleted {
                None => whole.is_closed,
                its => its != deleted,
            });
        }
    }
    Ok(wholes)
}

/// Whether a line says that an erasure has ended: nothing was out of its reach.
fn is_end(what: &str) -> bool {
    what.starts_with("backups=") && !what.contains(" unreached=")
}

/// Whether anything whole was ever erased by this name, or was to be: of a user, or a deleted backup by its key.
pub fn was_whole(backups_db: &Path, key: &str) -> Result<bool> {
    if let Some(owner) = former::owner_of(key) {
        let start = clean(&format!("key=<{key}> "));
        let said = about(backups_db, owner)?;
        return Ok(said.iter().any(|what| what.starts_with(&start)));
    }
    Ok(!wholes(backups_db, key)?.is_empty())
}

/// Whether a whole erasure of an owner, or of a deleted backup that is named by its key, was begun and its end is
/// not on record. Of the latter only if its log was about to go.
pub fn is_open(backups_db: &Path, key: &str) -> Result<bool> {
    let Some(owner) = former::owner_of(key) else {
        let mut wholes = wholes(backups_db, key)?.into_iter();
        return Ok(wholes.any(|whole| whole.deleted.is_none() && !whole.is_closed));
    };
    let this = clean(&format!("key=<{key}> "));
    let (mut is_named, mut is_open) = (false, false);
    for what in about(backups_db, owner)? {
        if what.starts_with(&this) {
            is_named = true;
        } else if is_end(&what) || what.starts_with("back=") {
            (is_named, is_open) = (false, false);
        } else if what.starts_with("whole=") {
            is_open |= is_named && what.ends_with(" erased");
        }
    }
    Ok(is_open)
}

/// Says that a deleted backup goes now: up to when it had anything, and since when if that is known.
pub fn removal(
    backups_db: &Path,
    now: Timestamp,
    former: &Former,
    (since, until): (Option<i64>, Timestamp),
    why: &str,
) -> Result<()> {
    // Its index may be gone since it was asked.
    let its = former.deleted.map(|t| t.0);
    let said = wholes(backups_db, &former.owner)?;
    let known = said.iter().filter(|w| its.is_some() && w.deleted == its);
    let since = since.or(known.filter_map(|whole| whole.since).min());
    let number = |name: &str, n: Option<i64>| n.map_or(String::new(), |n| format!(" {name}={n}"));
    let deleted = number("deleted", its);
    let since = number("since", since);
    let owner = &former.owner;
    let what = format!("user=<{owner}> whole={}{deleted}{since} {why}", until.0);
    append(backups_db, now, &what)
}

/// Says that a deleted backup of which [`removal`] was said could not be removed.
pub fn kept(backups_db: &Path, now: Timestamp, former: &Former) -> Result<()> {
    match former.deleted {
        None => Ok(()),
        Some(deleted) => {
            let what = format!("user=<{}> kept={}", former.owner, deleted.0);
            append(backups_db, now, &what)
        }
    }
}

/// Takes back what was said of a deleted backup, for it comes back.
pub fn take_back(backups_db: &Path, now: Timestamp, former: &Former) -> Result<()> {
    let Some(deleted) = former.deleted.map(|t| t.0) else {
        return Ok(());
    };
    let is_said = |whole: &Whole| match whole.deleted {
        None => !whole.is_closed,
        its => its == Some(deleted),
    };
    if !wholes(backups_db, &former.owner)?.iter().any(is_said) {
        return Ok(());
    }
    let what = format!("user=<{}> back={deleted}", former.owner);
    append(backups_db, now, &what)
}

/// Whether it is on record that a deleted backup was about to go: if its log is missing, that is why.
pub fn was_removed(backups_db: &Path, former: &Former) -> Result<bool> {
    let deleted = former.deleted.map(|t| t.0);
    let mut wholes = wholes(backups_db, &former.owner)?.into_iter();
    Ok(deleted.is_some() && wholes.any(|whole| whole.deleted == deleted && !whole.is_kept))
}

/// When the deleted backups of an owner had been deleted that have gone.
pub fn removed(backups_db: &Path, owner: &str) -> Result<Vec<Timestamp>> {
    let wholes = wholes(backups_db, owner)?.into_iter();
    Ok(wholes.filter_map(|w| w.deleted.map(Timestamp)).collect())
}

/// Adds a line.
pub fn append(backups_db: &Path, now: Timestamp, what: &str) -> Result<()> {
    append_all(backups_db, now, &[what.to_owned()])
}

fn append_all(backups_db: &Path, now: Timestamp, what: &[String]) -> Result<()> {
    let path = beside(backups_db);
    let path = path.as_path();
    let line = |what: &String| format!("{} {} {}\n", iso(now), now.0, clean(what));
    let lines: String = what.iter().map(line).collect();
    let mut options = File::options();
    options.read(true).append(true).create(true).mode(0o600);
    let write = || -> std::io::Result<()> {
        let mut file = options.open(path)?;
        let mut last = [b'\n'];
        if let Some(at) = file.metadata()?.len().checked_sub(1) {
            file.read_exact_at(&mut last, at)?;
        }
        if last != [b'\n'] {
            // Of a line that was being written when the machine stopped.
            file.write_all(b"\n")?;
        }
        file.write_all(lines.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|e| Error::io("cannot record", e).at(path))?;
    // It may be new, or have been made by one that was killed just there.
    sync_folder(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_about_a_whole_backup_counts() {
        let name = format!("cyr_backup-erased-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir(&dir).unwrap();
        let db = dir.join("backups.db");
        let ask = |key: &str| {
            let wholes = wholes(&db, key).unwrap();
            wholes.iter().map(|whole| whole.until).max()
        };
        assert_eq!(ask("anna"), None);
        let now = Timestamp(1000);
        append(&db, now, "user=<anna> message=00 begun").unwrap();
        let guid = "795629bdee9bdb3eb6b34379a38bf20bd3d78c0d";
        append(&db, now, &format!("user=<anna> message={guid} begun")).unwrap();
        let of = |key: &str| messages(&db, key).unwrap().into_iter().collect::<Vec<_>>();
        assert_eq!(of("anna"), [Guid::parse(guid.as_bytes()).unwrap()]);
        assert_eq!(of("bert"), []);
        let former = "%FORMER/bert/u1";
        append(&db, now, &format!("user=<{former}> message={guid} begun")).unwrap();
        assert_eq!((of("bert").len(), of("u1").len()), (1, 0));
        append(&db, now, "user=<anna> backups=1 files=2 bytes=3").unwrap();
        append(&db, now, "user=<x> user=<anna> whole=5000 begun").unwrap();
        assert_eq!(ask("anna"), None);
        begun(&db, now, "anna", Timestamp(900)).unwrap();
        begun(&db, now, "anna", Timestamp(800)).unwrap();
        begun(&db, now, "a b\nc", Timestamp(700)).unwrap();
        assert_eq!(
            (ask("anna"), ask("ann"), ask("a b\nc")),
            (Some(900), None, Some(700))
        );
        // One that was torn does not take the next with it.
        let torn = std::fs::read(beside(&db)).unwrap();
        std::fs::write(beside(&db), &torn[..torn.len() - 10]).unwrap();
        append(&db, now, "user=<anna> key=<%FORMER/anna/u1> begun").unwrap();
        let was = |key: &str| was_whole(&db, key).unwrap();
        assert!(was("anna") && was("%FORMER/anna/u1"));
        assert!(!was("bert") && !was("%FORMER/anna/u") && !was("%FORMER/bert/u1"));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_is_said_of_a_whole_backup_holds_until_it_comes_back() {
        let name = format!("cyr_backup-erased-{}-whole", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir(&dir).unwrap();
        let db = dir.join("backups.db");
        let now = Timestamp(1000);
        let one = |time: i64| Former {
            key: format!("%FORMER/anna/{time}"),
            owner: "anna".into(),
            path: dir.join(format!("anna_x.deleted.{time}")),
            deleted: Some(Timestamp(time)),
        };
        let key = |time: i64| format!("%FORMER/anna/{time}");
        let say = |what: &str| append(&db, now, &format!("user=<anna> {what}")).unwrap();
        let open = |key: &str| is_open(&db, key).unwrap();
        let gone = |time: i64| was_removed(&db, &one(time)).unwrap();
        // What was to go, and did not.
        begun(&db, now, "anna", Timestamp(900)).unwrap();
        assert!(open("anna") && !gone(500) && was_whole(&db, "anna").unwrap());
        take_back(&db, now, &one(500)).unwrap();
        assert!(!open("anna") && wholes(&db, "anna").unwrap().is_empty());
        // One of two goes.
        say(&format!("key=<{}> begun", key(500)));
        assert!(!open(&key(500)) && !gone(500));
        removal(&db, now, &one(500), (Some(300), Timestamp(510)), "erased").unwrap();
        assert!(open(&key(500)) && gone(500) && !gone(400) && !open("anna"));
        assert_eq!(removed(&db, "anna").unwrap(), [Timestamp(500)]);
        let all = wholes(&db, "anna").unwrap();
        assert!(all[0].covers(300, 510) && !all[0].covers(300, 511) && !all[0].covers(299, 510));
        // It could not be removed, and is when that is tried again.
        kept(&db, now, &one(500)).unwrap();
        say("backups=0 files=0 bytes=0 unreached=1");
        assert!(open(&key(500)) && !gone(500));
        removal(&db, now, &one(500), (None, Timestamp(510)), "erased").unwrap();
        assert!(gone(500) && !wholes(&db, "anna").unwrap()[1].covers(299, 510));
        say("backups=1 files=2 bytes=3");
        assert!(!open(&key(500)) && gone(500));
        // An expiry that was killed, and the backup brought back.
        removal(&db, now, &one(600), (None, Timestamp(600)), "expired").unwrap();
        assert!(gone(600) && !open(&key(600)));
        take_back(&db, now, &one(600)).unwrap();
        let before = std::fs::read(beside(&db)).unwrap();
        take_back(&db, now, &one(600)).unwrap();
        assert_eq!(std::fs::read(beside(&db)).unwrap(), before, "it is known");
        assert!(!gone(600) && gone(500));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn who_takes_over_inherits_what_was_erased() {
        let name = format!("cyr_backup-erased-{}-heir", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir(&dir).unwrap();
        let db = dir.join("backups.db");
        let now = Timestamp(1000);
        let guid = |c: char| Guid::parse(c.to_string().repeat(40).as_bytes()).unwrap();
        let (a, b) = (guid('a'), guid('b'));
        let heir = |from: &str, to: &str| inherit(&db, now, (from, to), &mut |_| Ok(true)).unwrap();
        let of = |key: &str| messages(&db, key).unwrap();
        heir("anna", "anne");
        assert!(!beside(&db).exists(), "nothing to say");
        append(&db, now, &format!("user=<anna> message={a} begun")).unwrap();
        assert!(is_begun(&db, "anna", a).unwrap() && !is_begun(&db, "anna", b).unwrap());
        append(&db, now, &format!("user=<anna> message={a} previous=0")).unwrap();
        assert!(!is_begun(&db, "anna", a).unwrap());
        append(&db, now, &format!("user=<anna> message={b} begun")).unwrap();
        inherit(&db, now, ("anna", "bert"), &mut |guid| Ok(guid == b)).unwrap();
        assert_eq!(of("bert"), HashSet::from([b]));
        heir("anna", "anne");
        heir("anne", "annie");
        let before = std::fs::read(beside(&db)).unwrap();
        heir("anna", "annie");
        assert_eq!(std::fs::read(beside(&db)).unwrap(), before, "it is known");
        assert_eq!(of("annie"), HashSet::from([a, b]));
        // What the next one of the old name erases is his own affair.
        let c = guid('c');
        append(&db, now, &format!("user=<anna> message={c} begun")).unwrap();
        assert!(!of("annie").contains(&c));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
