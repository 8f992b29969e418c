//! What a Maildir has that other trees have not: names with flags, keywords, `maildirfolder`,
//! `subscriptions`. Maildir++ as Courier and Dovecot read it.
//!
//! A message is `cur/DATE.UUID_GUID.cyr_backup,S=SIZE,W=SIZE:2,FLAGS`; its modification time is the
//! internal date. Flags are D (draft), F (flagged), R (answered), S (seen), T (deleted), and `a` to
//! `z` for the keywords that `dovecot-keywords` of the folder counts from 0. Further keywords than 26
//! are in `mailbox.json` alone.

use super::names::{self, Layout};
use crate::cyrus::dlist::Value;
use crate::cyrus::guid::Guid;
use crate::cyrus::mboxname::Namespace;
use crate::cyrus::sync::Record;
use crate::error::{Error, Result};
use crate::restore::Item;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Keywords that have a letter.
const LETTERS: usize = 26;

/// The name of a message's file without flags.
pub fn base(r: &Record) -> String {
    let size = r.size;
    let date = r.internaldate as i64;
    format!("{date}.U{}_{}.cyr_backup,S={size},W={size}", r.uid, r.guid)
}

/// UID and GUID in a name that we made, whatever flags it has by now.
pub fn parse(name: &str) -> Option<(u32, Guid)> {
    let mut parts = name.split('.');
    let _date = parts.next()?;
    let (uid, guid) = parts.next()?.strip_prefix('U')?.split_once('_')?;
    let host = parts.next()?;
    if host.split([',', ':']).next() != Some("cyr_backup") {
        return None;
    }
    Some((uid.parse().ok()?, Guid::parse(guid.as_bytes())?))
}

/// The keywords of a folder, in the order of their letters.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Keywords(Vec<String>);

impl Keywords {
    /// Reads `dovecot-keywords`: lines of a number and a keyword.
    fn read(text: &str) -> Keywords {
        let mut list = Vec::new();
        for line in text.lines() {
            let Some((number, word)) = line.split_once(' ') else {
                continue;
            };
            let Some(at) = number.parse::<usize>().ok().filter(|&n| n < LETTERS) else {
                continue;
            };
            if list.len() <= at {
                list.resize(at + 1, String::new());
            }
            list[at] = word.to_owned();
        }
        Keywords(list)
    }

    /// Gives letters to those keywords of the messages that have none; what was added, as lines.
    fn add(&mut self, items: &[Item]) -> String {
        let mut added = String::new();
        for flag in items.iter().flat_map(|i| &i.record.flags) {
            let Some(word) = keyword(flag) else { continue };
            if self.letter(word).is_none() && self.0.len() < LETTERS {
                added.push_str(&format!("{} {word}\n", self.0.len()));
                self.0.push(word.to_owned());
            }
        }
        added
    }

    fn letter(&self, word: &str) -> Option<char> {
        let at = self.0.iter().position(|k| k.eq_ignore_ascii_case(word))?;
        Some(char::from(b'a' + u8::try_from(at).ok()?))
    }

    /// What comes behind the base of a name: `:2,` and letters in order.
    pub fn flags(&self, r: &Record) -> String {
        let mut letters: Vec<char> = r
            .flags
            .iter()
            .filter_map(|flag| match keyword(flag) {
                Some(word) => self.letter(word),
                None => system(flag.as_bytes()?),
            })
            .collect();
        letters.sort_unstable();
        letters.dedup();
        format!(":2,{}", letters.into_iter().collect::<String>())
    }
}

/// A keyword; `None` for a system flag.
fn keyword(flag: &Value) -> Option<&str> {
    let fine = |w: &&str| !w.starts_with('\\') && !w.is_empty() && !w.contains(['\n', ' ']);
    flag.as_str().filter(fine)
}

fn system(flag: &[u8]) -> Option<char> {
    let known = [
        (&b"\\draft"[..], 'D'),
        (b"\\flagged", 'F'),
        (b"\\answered", 'R'),
        (b"\\seen", 'S'),
        (b"\\deleted", 'T'),
    ];
    let found = known
        .iter()
        .find(|(name, _)| flag.eq_ignore_ascii_case(name));
    found.map(|(_, letter)| *letter)
}

/// Makes a folder and gives its keywords their letters. Those that have one keep it.
pub fn prepare(dir: &Path, is_below: bool, items: &[Item]) -> Result<Keywords> {
    let fail = |e| Error::io("cannot make folder", e).at(dir);
    for part in ["cur", "new", "tmp"] {
        fs::create_dir_all(dir.join(part)).map_err(fail)?;
    }
    if is_below {
        create(&dir.join("maildirfolder"), "")?;
    }
    for dir in [Some(dir), dir.parent()].into_iter().flatten() {
        // Not every file system can.
        let _ = File::open(dir).and_then(|d| d.sync_all());
    }
    let path = dir.join("dovecot-keywords");
    let at = |e| Error::io("cannot write", e).at(&path);
    let text = match fs::read(&path) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(at(e)),
    };
    let mut keywords = Keywords::read(&text);
    let mut added = keywords.add(items);
    if !added.is_empty() {
        if !text.is_empty() && !text.ends_with('\n') {
            added.insert(0, '\n');
        }
        let mut file = File::options()
            .append(true)
            .create(true)
            .open(&path)
            .map_err(at)?;
        file.write_all(added.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(at)?;
    }
    Ok(keywords)
}

/// Writes `subscriptions`, unless there is one.
pub fn subscribe(root: &Path, subscriptions: &[String], ns: &Namespace) -> Result<()> {
    let mut lines: Vec<String> = subscriptions
        .iter()
        .filter_map(|name| {
            let path = names::path(name, ns, Layout::Dotted).ok()?;
            let (owner, folder) = path.split_once('/').unwrap_or((&path, "INBOX"));
            let is_own = root.ends_with(owner);
            is_own.then(|| folder.trim_start_matches('.').to_owned())
        })
        .collect();
    lines.sort();
    match lines.is_empty() {
        true => Ok(()),
        false => create(&root.join("subscriptions"), &(lines.join("\n") + "\n")),
    }
}

/// Makes a file unless it is there.
fn create(path: &Path, text: &str) -> Result<()> {
    let fail = |e| Error::io("cannot write", e).at(path);
    match File::options().write(true).create_new(true).open(path) {
        Ok(mut file) => file
            .write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(fail),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(fail(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::files::tests::item;

    #[test]
    fn names_read_back() {
        let i = item(7, "x", &["\\Seen", "$a", "\\answered"]);
        let name = base(&i.record);
        for name in [&name, &format!("{name}:2,FS"), &format!("{name},U=3:2,")] {
            assert_eq!(parse(name), Some((7, i.record.guid)), "{name}");
        }
        for other in [
            "1.M2P3.host,S=4:2,",
            "1.U7_00.cyr_backup",
            "x",
            "1.U7_5a184cd1a6222c5bdef730087d1de284fe479ccd.host:2,S",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn letters_of_keywords() {
        let items = [item(1, "x", &["$B", "\\Seen"]), item(2, "y", &["$b", "$C"])];
        let mut k = Keywords::read("0 $a\nnonsense\n99 z\n");
        assert_eq!(k.add(&items), "1 $B\n2 $C\n");
        assert_eq!(k.add(&items), "");
        assert_eq!(k.flags(&items[0].record), ":2,Sb");
        assert_eq!(k.flags(&items[1].record), ":2,bc");
        let many: Vec<String> = (0..40).map(|n| format!("k{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let mut k = Keywords::default();
        assert_eq!(k.add(&[item(1, "x", &many)]).lines().count(), LETTERS);
        assert_eq!(k.flags(&item(1, "x", &["k25", "k26"]).record), ":2,z");
    }
}
