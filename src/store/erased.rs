//! The record of what was erased for good: `backups.db.erased`, lines of text beside the catalogue.
//!
//! `<time> <seconds since 1970> <what>`; only ever appended to, and on disk when [`append`] returns.
//! It holds names, and no mail.
//!
//! People read it, [`until`], and [`messages`]. A line `user=<KEY> whole=<seconds> ...` is written before a whole
//! backup goes, and says up to when; if it was one deleted backup, and not all of the owner's, `deleted=<seconds>`
//! behind it tells which ([`removal`]). A log of that owner without an entry that has nothing later is
//! a copy of what was erased, and not taken for his backup by itself. A line `user=<KEY> message=<GUID> ...`
//! is written before a message goes; KEY is the owner, also of a deleted backup, so that it holds when that
//! comes back. Who takes over what was his inherits them before he has any of it ([`inherit`]).

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

/// Says, before it goes, that what a backup of `key` had up to a time is erased.
pub fn whole(
    backups_db: &Path,
    now: Timestamp,
    key: &str,
    until: Timestamp,
    why: &str,
) -> Result<()> {
    let what = format!("user=<{key}> whole={} {why}", until.0);
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

/// Whether anything whole was ever erased by this name: of a user, or a deleted backup by its key.
pub fn was_whole(backups_db: &Path, key: &str) -> Result<bool> {
    if let Some(owner) = former::owner_of(key) {
        let start = clean(&format!("key=<{key}> "));
        let said = about(backups_db, owner)?;
        return Ok(said.iter().any(|what| what.starts_with(&start)));
    }
    Ok(until(backups_db, key)?.is_some())
}

/// Whether the last thing said of whole backups of an owner, or of a deleted one that is named by its key, is that
/// their erasure was begun.
pub fn is_open(backups_db: &Path, key: &str) -> Result<bool> {
    let owner = former::owner_of(key).unwrap_or(key);
    let this = clean(&format!("key=<{key}> "));
    let mut is_open = false;
    for what in about(backups_db, owner)? {
        if what.starts_with("backups=") {
            is_open = false;
        } else if let Some(whole) = what.strip_prefix("whole=") {
            let is_all = whole.split_once(' ').is_some_and(|(_, why)| why == "begun");
            is_open |= is_all && owner == key;
        } else {
            is_open |= what.starts_with(&this);
        }
    }
    Ok(is_open)
}

/// Says, before it goes, that a deleted backup goes, and up to when it had anything.
pub fn removal(
    backups_db: &Path,
    now: Timestamp,
    former: &Former,
    until: Timestamp,
    why: &str,
) -> Result<()> {
    let deleted = former
        .deleted
        .map_or(String::new(), |t| format!("deleted={} ", t.0));
    whole(
        backups_db,
        now,
        &former.owner,
        until,
        &format!("{deleted}{why}"),
    )
}

/// Whether a deleted backup is on record as removed: it itself, or all of its owner since.
pub fn was_removed(backups_db: &Path, former: &Former) -> Result<bool> {
    let Some(deleted) = former.deleted.map(|t| t.0) else {
        return Ok(false);
    };
    let said = about(backups_db, &former.owner)?;
    let is_it = |what: &String| -> Option<bool> {
        let (time, why) = what.strip_prefix("whole=")?.split_once(' ')?;
        let time: i64 = time.parse().ok()?;
        Some(match why.strip_prefix("deleted=") {
            Some(which) => which.split(' ').next()?.parse() == Ok(deleted),
            // Once that was told by the time alone.
            None => time == deleted || time > deleted && why == "begun",
        })
    };
    Ok(said.iter().any(|what| is_it(what) == Some(true)))
}

/// Up to when all that `key` had was erased, if it ever was; seconds since 1970.
pub fn until(backups_db: &Path, key: &str) -> Result<Option<i64>> {
    let said = about(backups_db, key)?;
    let times = said.iter().filter_map(|what| {
        let time = what.strip_prefix("whole=")?.split(' ').next()?;
        time.parse().ok()
    });
    Ok(times.max())
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
        let ask = |key: &str| until(&db, key).unwrap();
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
        whole(&db, now, "anna", Timestamp(900), "expired").unwrap();
        whole(&db, now, "anna", Timestamp(800), "begun").unwrap();
        whole(&db, now, "a b\nc", Timestamp(700), "begun").unwrap();
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
