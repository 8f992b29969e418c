//! Compares `backups.db` with the logs that lie in the partitions, and brings it in line.
//!
//! Four steps: [`walk`] looks at files, [`outdated`] finds logs that must not be entered, [`plan`]
//! decides without touching anything, [`apply`] changes the catalogue. A log belongs to whom it names
//! itself (`store::identify`), whatever the file is called. Of several logs of one owner the one that
//! was written to last is the backup; the others are told, and never touched: nothing here changes or
//! removes a log.
//!
//! An entry whose file is missing stays as it is if the folder is missing, too: while a partition is
//! not mounted the catalogue must not be emptied, nor name older logs that lie elsewhere. Files that
//! cannot be opened are told in [`Walked::failed`].

mod found;
mod outdated;

pub(super) use found::look;
pub use found::{Entry, FileId, Log, Target, Walked, entries, is_aside, walk, walk_copies};
pub use outdated::{Outdated, outdated};

use super::catalog::Catalog;
use super::former;
use crate::error::{Error, Kind, Result};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// How catalogue and logs disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A log without an entry.
    Orphan,
    /// A log of somebody who has a newer one.
    Double,
    /// A log that names nobody, without an entry.
    Nameless,
    /// The log of a deleted backup, without an entry.
    Deleted,
    /// An entry without a file.
    Missing,
    /// An entry whose file is somebody else's log.
    Disagrees,
    /// An entry whose file is no log, or empty although there is one with content.
    NoLog,
}

/// One disagreement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Of which kind.
    pub what: What,
    /// Whose: the entry's key, or the owner of a log without entry.
    pub key: Option<String>,
    /// The file that is spoken of.
    pub path: PathBuf,
    /// More for people.
    pub why: Option<String>,
    /// What the entry of `key` should be: another path, or nothing.
    pub change: Option<Option<PathBuf>>,
    /// Whether that was done.
    pub fixed: bool,
}

/// Whether an entry may name a log of `owner`: its own, or that of a former user of the name.
pub fn fits(key: &str, owner: &str) -> bool {
    let former = key.strip_prefix("%FORMER/");
    key == owner
        || former.is_some_and(|rest| {
            rest.strip_prefix(owner)
                .is_some_and(|rest| rest.starts_with('/'))
        })
}

/// Compares. What is outdated is told, and nobody's backup. Findings are in the order of keys, those
/// without last.
pub fn plan(logs: &[Log], entries: &[Entry], outdated: &Outdated) -> Vec<Finding> {
    let ids: BTreeMap<FileId, &Log> = logs.iter().map(|l| (l.id, l)).collect();
    let at: BTreeMap<FileId, Vec<&Entry>> = entries.iter().fold(BTreeMap::new(), |mut at, e| {
        if let Target::Log(id) = e.target {
            at.entry(id).or_insert_with(Vec::new).push(e);
        }
        at
    });
    let named = |log: &Log, key: &str| {
        let entries = at.get(&log.id);
        entries.is_some_and(|entries| entries.iter().any(|e| e.key == key))
    };
    let keys: HashSet<&str> = entries.iter().map(|e| e.key.as_str()).collect();
    let mut given: HashSet<String> = HashSet::new();
    let mut of: BTreeMap<&str, Vec<&Log>> = BTreeMap::new();
    let mut out = Vec::new();
    for log in logs {
        let entries = at.get(&log.id).map_or(&[][..], Vec::as_slice);
        let is_deleted = former::split(&log.path).is_some();
        match log.identity.key.as_deref() {
            Some(owner) if entries.is_empty() && outdated.contains_key(&log.id) => {
                let what = match is_deleted {
                    true => What::Deleted,
                    false => What::Orphan,
                };
                let mut found = finding(what, Some(owner), &log.path);
                found.why = outdated.get(&log.id).cloned();
                out.push(found);
            }
            Some(owner) if entries.is_empty() && is_deleted => {
                let id = log.identity.generation.as_deref().unwrap_or("unknown");
                let is_taken = |key: &str| keys.contains(key) || given.contains(key);
                let key = former::key(owner, id, is_taken);
                let mut found = finding(What::Deleted, Some(&key), &log.path);
                found.change = Some(Some(log.path.clone()));
                out.push(found);
                given.insert(key);
            }
            // A former user's log stays where it is.
            Some(key) if entries.iter().any(|e| e.key != key && fits(&e.key, key)) => {}
            Some(key) => of.entry(key).or_default().push(log),
            None if entries.is_empty() => out.push(finding(What::Nameless, None, &log.path)),
            None => {}
        }
    }
    // The backup of each owner: written to last, of equals the longer, then the one that is named.
    let best: BTreeMap<&str, &Log> = of
        .iter()
        .filter_map(|(key, logs)| {
            let weight = |log: &&&Log| (log.last, log.identity.first, log.len, named(log, key));
            Some((*key, *logs.iter().rev().max_by_key(weight)?))
        })
        .collect();
    let change = |key: &str| best.get(key).map(|log| Some(log.path.clone()));
    for entry in entries {
        let key = entry.key.as_str();
        let mut found = finding(What::Missing, Some(key), &entry.path);
        match entry.target {
            Target::Missing(true) => {
                found.change = change(key).or(Some(None));
                let why = "its folder is there: the file was removed, or moved by hand";
                found.why = Some(why.into());
            }
            Target::Missing(false) => found.why = Some(out_of_reach(best.get(key).copied())),
            Target::Empty | Target::Other => {
                let change = change(key);
                if entry.target == Target::Empty && change.is_none() {
                    continue;
                }
                found.what = What::NoLog;
                found.change = change;
            }
            Target::Unreadable => continue,
            Target::Log(id) => {
                let owner = ids.get(&id).and_then(|l| l.identity.key.as_deref());
                match owner {
                    None => continue,
                    Some(owner) if owner != key && fits(key, owner) => continue,
                    Some(owner) if owner == key => {
                        if best.get(key).is_none_or(|log| log.id == id) {
                            continue;
                        }
                        found.what = What::Double;
                    }
                    Some(owner) => {
                        found.what = What::Disagrees;
                        found.why = Some(format!("the log says {owner}"));
                    }
                }
                found.change = change(key).or(Some(None));
            }
        }
        out.push(found);
    }
    for (key, logs) in &of {
        for log in logs {
            if best.get(key).is_none_or(|best| best.id != log.id) {
                if !named(log, key) {
                    out.push(finding(What::Double, Some(key), &log.path));
                }
            } else if !keys.contains(key) {
                let mut found = finding(What::Orphan, Some(key), &log.path);
                found.change = Some(Some(log.path.clone()));
                out.push(found);
            }
        }
    }
    let of_path: BTreeMap<&Path, &Log> = logs.iter().map(|l| (l.path.as_path(), l)).collect();
    for double in out.iter_mut().filter(|f| f.what == What::Double) {
        let kept = double.key.as_deref().and_then(|key| best.get(key));
        let mine = of_path.get(double.path.as_path());
        double.why = kept.map(|log| {
            let is_copy = log.identity.generation.is_some()
                && mine.is_some_and(|l| l.identity.generation == log.identity.generation);
            let what = if is_copy { "a copy of" } else { "newer:" };
            format!("{what} {}", log.path.display())
        });
    }
    out.sort_by(|a, b| (a.key.is_none(), &a.key).cmp(&(b.key.is_none(), &b.key)));
    out
}

/// What to say of an entry whose folder is missing, too, if there is another log of its owner or not.
fn out_of_reach(other: Option<&Log>) -> String {
    let (what, end) = match other {
        Some(log) => {
            let path = log.path.display();
            (
                format!("; {path} is a log of that owner, perhaps an older one"),
                "enters that one",
            )
        }
        None => (String::new(), "removes the entry"),
    };
    format!(
        "nor is its folder there{what}: mount its partition; if that is gone for good, make the folder, \
         and rescan --fix {end}"
    )
}

fn finding(what: What, key: Option<&str>, path: &Path) -> Finding {
    Finding {
        what,
        key: key.map(str::to_owned),
        path: path.to_owned(),
        why: None,
        change: None,
        fixed: false,
    }
}

/// Makes the changes that the findings ask for. An entry that is no longer what it was when the
/// plan was made stays.
pub fn apply(catalog: &Catalog, findings: &mut [Finding]) -> Result<()> {
    let paths: HashSet<PathBuf> = match catalog.list() {
        Err(e) if e.kind() == Kind::Damaged => HashSet::new(),
        entries => entries?.into_iter().map(|(_, path)| path).collect(),
    };
    for found in findings {
        let (Some(key), Some(change)) = (&found.key, &found.change) else {
            continue;
        };
        let now = match catalog.lookup(key) {
            Err(e) if e.kind() == Kind::Damaged => None,
            now => now?,
        };
        if found.what == What::Deleted {
            // Somebody may delete it just now, or bring it back.
            let before = former::split(&found.path).map(|(before, _)| before);
            let before = before.filter(|path| !path.exists());
            if paths.contains(&found.path) || before.is_some_and(|path| paths.contains(&path)) {
                found.why = Some("the entry has changed meanwhile".into());
                continue;
            }
        }
        let is_new = matches!(found.what, What::Orphan | What::Deleted);
        let before = (!is_new).then_some(&found.path);
        if now.is_some() && now.as_ref() != before {
            found.why = Some("the entry has changed meanwhile".into());
            continue;
        }
        catalog.replace(&[(key.clone(), change.clone())])?;
        found.fixed = true;
    }
    Ok(())
}

/// Moves a catalogue out of the way that does not read; where to.
pub fn set_aside(catalog: &Path, now_ms: i64) -> Result<PathBuf> {
    let mut aside = catalog.as_os_str().to_owned();
    aside.push(format!(".damaged.{now_ms}"));
    let aside = PathBuf::from(aside);
    fs::rename(catalog, &aside).map_err(|e| Error::io("cannot set aside", e).at(catalog))?;
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::identify::Identity;

    fn log(n: u64, key: &str, last: i64) -> Log {
        Log {
            path: format!("/b/{n}").into(),
            id: (1, n),
            identity: Identity {
                key: (!key.is_empty()).then(|| key.into()),
                generation: None,
                first: 1,
                created: None,
            },
            last,
            len: 1,
        }
    }

    fn entry(key: &str, target: Target) -> Entry {
        let path = match target {
            Target::Log((_, n)) => format!("/b/{n}"),
            _ => "/b/x".into(),
        };
        Entry {
            key: key.into(),
            path: path.into(),
            target,
        }
    }

    /// Findings as text: kind, key, path, change.
    fn told(logs: &[Log], entries: &[Entry]) -> Vec<String> {
        let path = |p: &Option<PathBuf>| p.as_ref().map_or("-".into(), |p| p.display().to_string());
        plan(logs, entries, &Outdated::new())
            .iter()
            .map(|f| {
                let key = f.key.as_deref().unwrap_or("?");
                let change = f.change.as_ref().map_or("stays".into(), path);
                format!("{:?} {key} {} {change}", f.what, f.path.display())
            })
            .collect()
    }

    const LOG1: Target = Target::Log((1, 1));
    const LOG2: Target = Target::Log((1, 2));

    #[test]
    fn what_agrees_is_no_finding() {
        let logs = [log(1, "anna", 5), log(2, "anna", 9), log(3, "", 1)];
        let entries = [
            entry("%FORMER/anna/u1", LOG2),
            entry("anna", LOG1),
            entry("bert", Target::Empty),
            entry("carl", Target::Log((1, 3))),
            entry("dora", Target::Unreadable),
        ];
        assert!(told(&logs, &entries).is_empty());
        assert!(told(&[], &[]).is_empty());
    }

    #[test]
    fn orphans_and_missing_ones_meet() {
        let logs = [log(1, "anna", 0), log(2, "bert", 0), log(3, "", 0)];
        let entries = [
            entry("anna", Target::Missing(false)),
            entry("carl", Target::Missing(true)),
            entry("dora", Target::Missing(false)),
        ];
        assert_eq!(
            told(&logs, &entries),
            [
                "Missing anna /b/x stays",
                "Orphan bert /b/2 /b/2",
                "Missing carl /b/x -",
                "Missing dora /b/x stays",
                "Nameless ? /b/3 stays",
            ]
        );
        let whys: Vec<String> = plan(&logs, &entries, &Outdated::new())
            .into_iter()
            .filter_map(|f| f.why)
            .collect();
        assert!(whys[0].contains("; /b/1 is a log of that owner") && whys[0].ends_with("that one"));
        assert!(whys[1].starts_with("its folder is there"));
        assert!(whys[2].starts_with("nor is its folder there: ") && whys[2].ends_with("the entry"));
        let there = [entry("anna", Target::Missing(true))];
        assert_eq!(told(&logs[..1], &there), ["Missing anna /b/x /b/1"]);
    }

    #[test]
    fn deleted_ones_have_a_key_each() {
        let deleted = |n: u64| Log {
            path: format!("/b/anna_x.deleted.{n}").into(),
            ..log(n, "anna", 0)
        };
        let logs = [deleted(1), deleted(2), deleted(3)];
        let known = [entry("%FORMER/anna/unknown", Target::Unreadable)];
        let keys: Vec<Option<String>> = plan(&logs, &known, &Outdated::new())
            .into_iter()
            .map(|f| f.key)
            .collect();
        let key = |n: u64| Some(format!("%FORMER/anna/unknown.{n}"));
        assert_eq!(keys, [key(2), key(3), key(4)]);
    }

    #[test]
    fn what_is_outdated_is_told_and_nobodys_backup() {
        let mut gone = log(3, "anna", 9);
        gone.path = "/b/anna_x.deleted.7".into();
        let logs = [log(1, "anna", 9), log(2, "anna", 5), gone];
        let outdated: Outdated = [1, 3].map(|n| ((1, n), "why".into())).into();
        for (known, more) in [
            (vec![], "Orphan anna Some(Some(\"/b/2\")) None"),
            (
                vec![entry("anna", Target::Empty)],
                "NoLog anna Some(Some(\"/b/2\")) None",
            ),
            (vec![entry("anna", LOG2)], ""),
        ] {
            let mut told: Vec<String> = plan(&logs, &known, &outdated)
                .into_iter()
                .map(|f| format!("{:?} {} {:?} {:?}", f.what, f.key.unwrap(), f.change, f.why))
                .collect();
            told.sort();
            let mut want = vec![
                "Deleted anna None Some(\"why\")",
                "Orphan anna None Some(\"why\")",
            ];
            want.extend(Some(more).filter(|more| !more.is_empty()));
            want.sort_unstable();
            assert_eq!(told, want);
        }
        // One that is entered is what its entry says.
        assert!(plan(&logs[..1], &[entry("anna", LOG1)], &outdated).is_empty());
    }

    #[test]
    fn of_doubles_the_newer_wins_and_of_equals_the_named() {
        let logs = [log(1, "anna", 5), log(2, "anna", 9)];
        assert_eq!(
            told(&logs, &[entry("anna", LOG1)]),
            ["Double anna /b/1 /b/2"]
        );
        assert_eq!(
            told(&logs, &[entry("anna", LOG2)]),
            ["Double anna /b/1 stays"]
        );
        assert_eq!(
            told(&logs, &[]),
            ["Double anna /b/1 stays", "Orphan anna /b/2 /b/2"]
        );
        let equal = [log(1, "anna", 5), log(2, "anna", 5)];
        for (named, other) in [(LOG1, 2), (LOG2, 1)] {
            assert_eq!(
                told(&equal, &[entry("anna", named)]),
                [format!("Double anna /b/{other} stays")]
            );
        }
    }

    #[test]
    fn the_log_is_believed_not_the_entry() {
        let logs = [log(1, "anna", 0), log(2, "bert", 0)];
        // Exchanged.
        assert_eq!(
            told(&logs, &[entry("anna", LOG2), entry("bert", LOG1)]),
            ["Disagrees anna /b/2 /b/1", "Disagrees bert /b/1 /b/2"]
        );
        // One file, two keys.
        assert_eq!(
            told(&logs[..1], &[entry("anna", LOG1), entry("bert", LOG1)]),
            ["Disagrees bert /b/1 -"]
        );
        assert_eq!(
            told(&logs[..1], &[entry("anna", Target::Other)]),
            ["NoLog anna /b/x /b/1"]
        );
        assert_eq!(
            told(&[], &[entry("anna", Target::Other)]),
            ["NoLog anna /b/x stays"]
        );
        assert_eq!(
            told(&logs[..1], &[entry("anna", Target::Empty)]),
            ["NoLog anna /b/x /b/1"]
        );
        assert!(fits("%FORMER/a/b/u", "a/b") && !fits("%FORMER/anna", "anna"));
        assert!(!fits("%FORMER/annabel/u", "anna"));
    }
}
