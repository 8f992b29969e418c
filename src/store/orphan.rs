//! A log that `backups.db` does not name, found where its owner's next one would be made.
//!
//! When the catalogue was lost, a second log must not begin beside the first: half of the history
//! would be out of sight. Looked for are files of the owner's name in his hash folders; the log itself
//! must say that it is his. Not taken are logs that are entered for somebody, none of an owner
//! whose backup was deleted: there an old copy may lie, and none that ends before the owner's mail was
//! erased ([`erased::wholes`]). A file of that name that cannot be read is an error, for nobody can say
//! whose it is.
//!
//! [`unnamed`] finds everything that lies about of an owner without an entry, for who erases it:
//! what an interrupted move left, copies made by hand. Nothing is changed here, but by [`remove`].

use super::catalog::Catalog;
use super::erased;
use super::former::{self, Removed, siblings};
use super::identify::{Content, last_stamp};
use super::lock::{Create, DataLock, Wait};
use super::rescan::look;
use crate::cyrus::mboxname::Namespace;
use crate::cyrus::partition::{dir_hash, file_stem};
use crate::error::{Error, Kind, Result};
use crate::sys::fs::sync_folder;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The random end of a data file's name, and the mark before it.
const SUFFIX: usize = 7;

/// The log of `key` that lies in one of the partitions without an entry; of several, the one that was
/// written to last.
pub fn find(
    partitions: &[PathBuf],
    key: &str,
    ns: &Namespace,
    catalog: &Catalog,
) -> Result<Option<PathBuf>> {
    let mut logs = Vec::new();
    for path in named_so(partitions, key)? {
        if let Content::Log(identity) = look(&path, ns)? {
            if identity.key.as_deref() == Some(key) {
                logs.push((path, identity.began()));
            }
        }
    }
    if logs.is_empty() {
        return Ok(None);
    }
    for (other, path) in catalog.list()? {
        if former::owner_of(&other) == Some(key) {
            return Ok(None);
        }
        logs.retain(|(log, _)| *log != path);
    }
    let erased = erased::wholes(catalog.path(), key)?;
    let mut last = None;
    for (path, began) in logs {
        let file = File::open(&path).map_err(|e| Error::io("cannot open", e).at(&path))?;
        let stamp = last_stamp(&file).map_err(|e| e.at(&path))?;
        if erased.iter().any(|whole| whole.covers(began, stamp)) {
            log::warn!(
                "a log of what was erased is not taken user=<{key}> filename=<{}>",
                path.display()
            );
            continue;
        }
        if last.as_ref().is_none_or(|(known, _)| *known < stamp) {
            last = Some((stamp, path));
        }
    }
    Ok(last.map(|(_, path)| path))
}

/// Files that are named as data files of `key` are, by us or by the old tools.
fn named_so(partitions: &[PathBuf], key: &str) -> Result<Vec<PathBuf>> {
    let stems = [file_stem(key), key.to_owned()];
    let mut hashes = vec![dir_hash(key, false), dir_hash(key, true)];
    hashes.dedup();
    let mut found = Vec::new();
    for partition in partitions {
        for hash in &hashes {
            let files = files_in(&partition.join(hash.to_string()))?;
            found.extend(files.into_iter().filter(|path| is_named(path, &stems)));
        }
    }
    found.sort();
    Ok(found)
}

fn is_named(path: &Path, stems: &[String]) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
    base_of(name, stems) == Some(name)
}

/// How the data file is called that a file belongs to by its name: that itself, or what is beside it.
fn base_of<'a>(name: &'a str, stems: &[String]) -> Option<&'a str> {
    stems.iter().find_map(|stem| {
        let end = name.strip_prefix(stem.as_str())?;
        let own = end.as_bytes().get(..SUFFIX)?;
        let is = own[0] == b'_' && own[1..].iter().all(u8::is_ascii_alphanumeric);
        let behind = end.get(SUFFIX..)?;
        (is && (behind.is_empty() || behind.starts_with('.'))).then(|| &name[..stem.len() + SUFFIX])
    })
}

/// A data file, or only what was beside one, that no entry names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unnamed {
    /// The data file; it may be missing.
    pub path: PathBuf,
    /// All files that are there, by name. Or a folder that does not read.
    pub files: Vec<PathBuf>,
    /// Whether a log among them says that it is the owner's, and none says otherwise.
    pub is_his: bool,
}

/// What lies in the partitions without an entry and may be of `key`: named as his data files are, or
/// as `known` ones. What a log says is somebody else's is not meant.
pub fn unnamed(
    partitions: &[PathBuf],
    key: &str,
    known: &[PathBuf],
    ns: &Namespace,
    catalog: &Catalog,
) -> Result<Vec<Unnamed>> {
    let mut stems = vec![file_stem(key), key.to_owned()];
    let mut hashes = vec![
        dir_hash(key, false).to_string(),
        dir_hash(key, true).to_string(),
    ];
    for path in known {
        let path = former::split(path).map_or(path.clone(), |(before, _)| before);
        let text =
            |name: Option<&std::ffi::OsStr>| name.and_then(|n| n.to_str().map(str::to_owned));
        let name = text(path.file_name()).unwrap_or_default();
        if let Some((stem, _)) = name.rsplit_once('_') {
            stems.push(stem.to_owned());
        }
        hashes.extend(text(path.parent().and_then(Path::file_name)));
    }
    hashes.sort();
    hashes.dedup();
    let mut groups: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    for partition in partitions {
        for hash in &hashes {
            let folder = partition.join(hash);
            let files = match files_in(&folder) {
                Ok(files) => files,
                Err(e) => {
                    log::warn!("what lies there is not known: {e}");
                    groups.insert(folder.clone(), vec![folder]);
                    continue;
                }
            };
            for path in files {
                let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
                if let Some(base) = base_of(name, &stems) {
                    groups.entry(folder.join(base)).or_default().push(path);
                }
            }
        }
    }
    // What begins meanwhile has its entry before anything is in it.
    let entered = catalog.list()?;
    groups.retain(|base, _| !is_entered(base, &entered));
    let mut found = Vec::new();
    for (path, mut files) in groups {
        files.sort();
        let (mut his, mut others) = (false, false);
        for file in &files {
            if let Ok(Content::Log(identity)) = look(file, ns) {
                his |= identity.key.as_deref() == Some(key);
                others |= identity.key.is_some_and(|k| k != key);
            }
        }
        if his || !others {
            let is_his = his && !others;
            found.push(Unnamed {
                path,
                files,
                is_his,
            });
        }
    }
    Ok(found)
}

/// Whether an entry names a data file, or what was deleted of that name.
fn is_entered(base: &Path, entries: &[(String, PathBuf)]) -> bool {
    let before = |path: &Path| former::split(path).map(|(before, _)| before);
    entries
        .iter()
        .any(|(_, path)| path == base || before(path).as_deref() == Some(base))
}

/// Removes what is the owner's and has no entry. Nothing else is touched.
pub fn remove(unnamed: &Unnamed, catalog: &Catalog, wait: Wait) -> Result<Removed> {
    let mut removed = Removed::default();
    let lock = match DataLock::acquire(&unnamed.path, wait, Create::No) {
        Err(e) if e.kind() == Kind::NotFound => None,
        lock => Some(lock?),
    };
    if !unnamed.is_his || is_entered(&unnamed.path, &catalog.list()?) {
        let e = Error::new(Kind::Locked, "it is in use again: try again");
        return Err(e.at(&unnamed.path));
    }
    // The log last: it says whose the others are. To look at it may have made further ones.
    for file in siblings(&unnamed.path, ".")? {
        removed.unlink(file)?;
    }
    removed.unlink(unnamed.path.clone())?;
    sync_folder(&unnamed.path)?;
    drop(lock);
    Ok(removed)
}

/// The files in a folder; none if it does not exist.
fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let fail = |e| Error::io("cannot read folder", e).at(folder);
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(fail)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(fail)?.path();
        match fs::metadata(&path) {
            Ok(meta) if !meta.is_file() => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            // It may be one, also if that cannot be seen.
            _ => files.push(path),
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_data_files() {
        let stems = [file_stem("fred_b"), "fred_b".to_owned()];
        for (name, is) in [
            ("fred=5Fb_AbC123", true),
            ("fred_b_AbC123", true),
            ("fred_b_AbC123.index", false),
            ("fred_b_AbC123.new", false),
            ("fred_b_AbC12", false),
            ("fred_b_AbC.23", false),
            ("fred_bc_AbC123", false),
            ("fred_AbC123", false),
            ("fred_b-AbC123", false),
            ("fred_b_\u{e9}bC12", false),
        ] {
            assert_eq!(is_named(&Path::new("/x").join(name), &stems), is, "{name}");
        }
    }

    #[test]
    fn what_is_beside_belongs_to_its_data_file() {
        let stems = [file_stem("fred_b"), "fred_b".to_owned()];
        for (name, base) in [
            ("fred=5Fb_AbC123", Some("fred=5Fb_AbC123")),
            ("fred=5Fb_AbC123.new", Some("fred=5Fb_AbC123")),
            ("fred_b_AbC123.deleted.17.index-wal", Some("fred_b_AbC123")),
            ("fred_b_AbC1234.new", None),
            ("fred_b_AbC12\u{e9}.new", None),
            ("fred_c_AbC123.new", None),
            ("fred_b_", None),
        ] {
            assert_eq!(base_of(name, &stems), base, "{name}");
        }
    }
}
