//! What there is: the logs that lie in the partitions, and what the entries of the catalogue lead to.
//!
//! Only looks. What cannot be opened is told in [`Walked::failed`], and the rest goes on.

use crate::cyrus::mboxname::Namespace;
use crate::error::{Error, Kind, Result};
use crate::store::catalog::Catalog;
use crate::store::former;
use crate::store::identify::{Content, Identity, identify, last_owner, last_stamp};
use crate::store::index::Index;
use crate::store::reader::{Reader, Stale, ask_still};
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Folders inside each other that are followed.
const DEPTH: u32 = 8;

/// What tells files apart: device and inode.
pub type FileId = (u64, u64);

/// A log that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Where.
    pub path: PathBuf,
    /// Which file.
    pub id: FileId,
    /// What it says about itself.
    pub identity: Identity,
    /// Time of its last line; only known of logs that share an owner.
    pub last: i64,
    /// Its bytes.
    pub len: u64,
}

/// What was found in the partitions.
#[derive(Debug, Default)]
pub struct Walked {
    /// Logs, by path.
    pub logs: Vec<Log>,
    /// What could not be looked at.
    pub failed: Vec<Error>,
}

/// What an entry's path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nothing. Whether its folder exists.
    Missing(bool),
    /// A file that nothing was written to yet.
    Empty,
    /// A log.
    Log(FileId),
    /// A file that is no log.
    Other,
    /// It cannot be opened.
    Unreadable,
}

/// An entry of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// What it names.
    pub path: PathBuf,
    /// What is there.
    pub target: Target,
}

/// Looks at every file below the partitions that may be a log.
pub fn walk(partitions: &[PathBuf], ns: &Namespace) -> Walked {
    let mut out = walk_but(partitions, ns, |path| {
        is_aside(path) && former::split(path).is_none()
    });
    weigh(&mut out);
    out
}

/// Looks at every file below a folder that may be a copy of a log, set aside ones too.
pub fn walk_copies(dir: &Path, ns: &Namespace) -> Walked {
    walk_but(&[dir.to_owned()], ns, is_index)
}

fn walk_but(dirs: &[PathBuf], ns: &Namespace, but: fn(&Path) -> bool) -> Walked {
    let mut walk = Walk {
        ns,
        but,
        seen: HashSet::new(),
        out: Walked::default(),
    };
    for dir in dirs {
        walk.folder(dir, 0);
    }
    walk.out.logs.sort_by(|a, b| a.path.cmp(&b.path));
    walk.out
}

struct Walk<'a> {
    ns: &'a Namespace,
    but: fn(&Path) -> bool,
    seen: HashSet<FileId>,
    out: Walked,
}

impl Walk<'_> {
    fn folder(&mut self, dir: &Path, depth: u32) {
        let Walk { ns, but, seen, out } = self;
        let mut below = Vec::new();
        let fail = |e| Error::io("cannot read folder", e).at(dir);
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) => return out.failed.push(fail(e)),
        };
        for entry in entries {
            let path = match entry {
                Ok(entry) => entry.path(),
                Err(e) => {
                    out.failed.push(fail(e));
                    continue;
                }
            };
            // Follows links: partitions are spread over disks by them.
            let meta = match fs::metadata(&path) {
                Ok(meta) => meta,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => {
                    out.failed.push(Error::io("cannot look at", e).at(&path));
                    continue;
                }
            };
            let id = (meta.dev(), meta.ino());
            if meta.is_dir() {
                if depth < DEPTH && seen.insert(id) {
                    below.push(path);
                }
            } else if meta.is_file() && !but(&path) && seen.insert(id) {
                match look(&path, ns) {
                    Ok(Content::Log(identity)) => out.logs.push(Log {
                        path,
                        id,
                        identity,
                        last: 0,
                        len: meta.len(),
                    }),
                    Ok(_) => {}
                    Err(e) if e.kind() == Kind::NotFound => {}
                    Err(e) => out.failed.push(e),
                }
            }
        }
        for path in below {
            self.folder(&path, depth + 1);
        }
    }
}

/// What a file is, and whose a log.
pub(in crate::store) fn look(path: &Path, ns: &Namespace) -> Result<Content> {
    let file = File::open(path).map_err(|e| Error::io("cannot open", e).at(path))?;
    let mut found = identify(&file, ns).map_err(|e| e.at(path))?;
    if let Content::Log(identity) = &mut found {
        // Who it was given to later stands further back: an index that fits has read it.
        let mut key = None;
        let mut ask = |index: &Index| {
            key = index.meta_text("key")?;
            Ok(())
        };
        let told = match ask_still(path, &mut |index, _| ask(index)) {
            Ok(Some(())) => true,
            _ => Reader::open(path, Stale::Refuse).is_ok_and(|r| ask(r.index()).is_ok()),
        };
        if !told && identity.generation.is_some() {
            key = last_owner(&file).map_err(|e| e.at(path))?;
        }
        if let Some(key) = key.filter(|key| !key.is_empty()) {
            identity.key = Some(key);
        }
    }
    Ok(found)
}

/// Whether a file is known by its name not to be a backup: an index and what SQLite keeps beside
/// it, one being made, and what was set aside or kept.
pub fn is_aside(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    // Behind the six random characters of a data file no dot follows.
    let behind = name.rsplit_once('.');
    is_index(path)
        || behind.is_some_and(|(stem, n)| number(n) && (n.len() >= 9 || stem.ends_with(".damaged")))
}

fn is_index(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let ends = [
        ".index",
        "-wal",
        "-shm",
        "-journal",
        ".new",
        ".index.former",
    ];
    ends.iter().any(|end| name.ends_with(end))
}

/// Finds out which of several logs of one owner was written to last.
fn weigh(walked: &mut Walked) {
    let mut of = BTreeMap::new();
    for log in &walked.logs {
        *of.entry(log.identity.key.clone()).or_insert(0) += 1;
    }
    for log in &mut walked.logs {
        if log.identity.key.is_none() || of.get(&log.identity.key) == Some(&1) {
            continue;
        }
        let read = File::open(&log.path).map_err(|e| Error::io("cannot open", e));
        match read.and_then(|file| last_stamp(&file)) {
            Ok(last) => log.last = last,
            Err(e) => walked.failed.push(e.at(&log.path)),
        }
    }
}

/// The entries of the catalogue, with what they lead to. Logs outside of the partitions are added
/// to those that were found. To be called after [`walk`]: what is made meanwhile is then seen.
pub fn entries(catalog: &Catalog, ns: &Namespace, walked: &mut Walked) -> Result<Vec<Entry>> {
    let known: HashSet<FileId> = walked.logs.iter().map(|l| l.id).collect();
    let mut out = Vec::new();
    let mut more = false;
    for (key, path) in catalog.list()? {
        let target = match fs::metadata(&path) {
            Ok(meta) if known.contains(&(meta.dev(), meta.ino())) => {
                Target::Log((meta.dev(), meta.ino()))
            }
            Ok(meta) if !meta.is_file() => Target::Other,
            Ok(meta) => match look(&path, ns) {
                Ok(Content::Empty) => Target::Empty,
                Ok(Content::Other) => Target::Other,
                Ok(Content::Log(identity)) => {
                    let id = (meta.dev(), meta.ino());
                    more = true;
                    walked.logs.push(Log {
                        path: path.clone(),
                        id,
                        identity,
                        last: 0,
                        len: meta.len(),
                    });
                    Target::Log(id)
                }
                Err(e) => {
                    walked.failed.push(e);
                    Target::Unreadable
                }
            },
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Target::Missing(path.parent().is_some_and(Path::is_dir))
            }
            Err(e) => {
                walked.failed.push(Error::io("cannot open", e).at(&path));
                Target::Unreadable
            }
        };
        out.push(Entry { key, path, target });
    }
    if more {
        walked.logs.sort_by(|a, b| a.path.cmp(&b.path));
        walked.logs.dedup_by(|a, b| a.id == b.id);
        weigh(walked);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_backups() {
        for (name, aside) in [
            ("anna_abcdef", false),
            ("a.b.123456789_abcdef", false),
            ("anna_abcdef.index", true),
            ("anna_abcdef.index-wal", true),
            ("anna_abcdef.index-shm", true),
            ("anna_abcdef.index.new", true),
            ("anna_abcdef.new", true),
            ("anna_abcdef.damaged.1795442465123", true),
            ("anna_abcdef.damaged.7", true),
            ("anna_abcdef.1795442465", true),
            ("anna_abcdef.12", false),
            ("anna.new_abcdef", false),
        ] {
            assert_eq!(
                is_aside(Path::new("/b").join(name).as_path()),
                aside,
                "{name}"
            );
        }
    }
}
