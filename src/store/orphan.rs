//! A log that `backups.db` does not name, found where its owner's next one would be made.
//!
//! When the catalogue was lost, a second log must not begin beside the first: half of the history
//! would be out of sight. Looked for are files of the owner's name in his hash folders; the log itself
//! must say that it is his. Not taken are logs that are entered for somebody, and none of an owner
//! whose backup was deleted: there an old copy may lie. Nothing is changed here. A file of that name
//! that cannot be read is an error, for nobody can say whose it is.

use super::catalog::Catalog;
use super::former;
use super::identify::{Content, last_stamp};
use super::rescan::look;
use crate::cyrus::mboxname::Namespace;
use crate::cyrus::partition::{dir_hash, file_stem};
use crate::error::{Error, Result};
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
                logs.push(path);
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
        logs.retain(|log| *log != path);
    }
    let mut last = None;
    for path in logs {
        let file = File::open(&path).map_err(|e| Error::io("cannot open", e).at(&path))?;
        let stamp = last_stamp(&file).map_err(|e| e.at(&path))?;
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
            let folder = partition.join(hash.to_string());
            let fail = |e| Error::io("cannot read folder", e).at(&folder);
            let entries = match fs::read_dir(&folder) {
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                entries => entries.map_err(fail)?,
            };
            for entry in entries {
                let path = entry.map_err(fail)?.path();
                if is_named(&path, &stems) && path.is_file() {
                    found.push(path);
                }
            }
        }
    }
    found.sort();
    Ok(found)
}

fn is_named(path: &Path, stems: &[String]) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
    stems.iter().any(|stem| {
        name.strip_prefix(stem.as_str()).is_some_and(|end| {
            end.len() == SUFFIX
                && end.starts_with('_')
                && end[1..].bytes().all(|b| b.is_ascii_alphanumeric())
        })
    })
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
}
