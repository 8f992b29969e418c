//! Where a backup's files go: the partition, the hash folder, the file name.
//!
//! The hash folder is Cyrus' `dir_hash_c` (`lib/util.c`), the selection modes are those of
//! `imap/partlist.c`; the file name is ours (doc/format.md), injective and harmless for any key.
//! All of it is pure: free space and chance are arguments.
#![forbid(unsafe_code)]

use crate::error::{Error, Kind, Result};
use crate::util::hex;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// The longest file stem that is not cut, in bytes.
const STEM_MAX_BYTES: usize = 200;

/// The hash folder of `name`: `full` is `fulldirhash`.
///
/// Not full: the first byte in lower case, `q` for anything but a letter. Full: `A` to `W`, from
/// the bytes before the first dot.
pub fn dir_hash(name: &str, full: bool) -> char {
    if !full {
        return match name.bytes().next() {
            Some(b) if b.is_ascii_alphabetic() => char::from(b.to_ascii_lowercase()),
            _ => 'q',
        };
    }
    let n = name
        .bytes()
        .take_while(|b| *b != 0 && *b != b'.')
        .fold(0u32, |n, b| ((n << 3) ^ (n >> 5)) ^ u32::from(b));
    // Below 23, so a letter.
    char::from(b'A' + (n % 23) as u8)
}

/// The file name for a key of `backups.db`, without the random suffix.
///
/// Letters, digits and `@.+-` stand for themselves; every other byte is `=XX` in upper-case hex, and
/// so is a leading dot. `=` is escaped too: otherwise the ids `a=2F` and `a/` would share a name.
/// What grows beyond 200 bytes is cut there, at the latest before a broken escape, and ends in
/// 16 hex digits of the key's SHA-256; such a name is longer than any uncut one.
pub fn file_stem(key: &str) -> String {
    let mut stem = String::with_capacity(key.len());
    let mut cut = 0;
    for (i, b) in key.bytes().enumerate() {
        if b.is_ascii_alphanumeric() || b"@+-".contains(&b) || (b == b'.' && i > 0) {
            stem.push(char::from(b));
        } else {
            stem.push_str(&format!("={b:02X}"));
        }
        if stem.len() <= STEM_MAX_BYTES {
            cut = stem.len();
        }
    }
    if stem.len() > STEM_MAX_BYTES {
        stem.truncate(cut);
        let digest = Sha256::digest(key.as_bytes());
        stem.push_str(&hex::encode(&digest[..8]));
    }
    stem
}

/// The values of `partition_select_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Equal chances.
    Random,
    /// Most free space.
    FreespaceMost,
    /// Highest free percentage.
    PercentMost,
    /// Random, weighed by free percentage.
    PercentWeighted,
    /// Random, weighed by how far the free percentage is above the smallest one.
    PercentWeightedDelta,
}

impl Mode {
    /// The words of imapd.conf.
    pub const NAMES: &'static [&'static str] = &[
        "random",
        "freespace-most",
        "freespace-percent-most",
        "freespace-percent-weighted",
        "freespace-percent-weighted-delta",
    ];

    /// The mode of that name.
    pub fn from_name(name: &str) -> Option<Mode> {
        Some(match name {
            "random" => Mode::Random,
            "freespace-most" => Mode::FreespaceMost,
            "freespace-percent-most" => Mode::PercentMost,
            "freespace-percent-weighted" => Mode::PercentWeighted,
            "freespace-percent-weighted-delta" => Mode::PercentWeightedDelta,
            _ => return None,
        })
    }
}

/// How to choose a partition: the `partition_select_*` options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Select {
    /// The mode.
    pub mode: Mode,
    /// Names never chosen.
    pub exclude: Vec<String>,
    /// Percentage used above which a partition is avoided while another is below; 0 is off.
    pub soft_usage_limit: i64,
    /// After how many selections Cyrus measures again. We measure each time, for we choose only
    /// when a backup is created.
    pub usage_reinit: i64,
}

/// Space of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Free to us, in KiB.
    pub free_kib: u64,
    /// All of it, in KiB.
    pub total_kib: u64,
    /// Which file system it is.
    pub fsid: u64,
}

impl Space {
    fn percent_free(&self) -> Option<f64> {
        (self.total_kib > 0).then(|| self.free_kib as f64 * 100.0 / self.total_kib as f64)
    }
}

/// Chooses a backup partition for a new backup.
///
/// `probe` measures a partition; one it fails on is left out. `random` is one number, evenly
/// spread. Two partitions on one file system count once in the two `most` modes, and the first
/// of equals wins. When a percentage cannot be computed, chance decides.
///
/// `Kind::Config` when there is no partition or all are excluded; `Kind::Io` when all failed.
pub fn choose<'a>(
    partitions: &'a [(String, PathBuf)],
    select: &Select,
    probe: impl Fn(&Path) -> std::io::Result<Space>,
    random: u64,
) -> Result<&'a (String, PathBuf)> {
    let wanted = || partitions.iter().filter(|p| !select.exclude.contains(&p.0));
    if wanted().next().is_none() {
        let why = match partitions.is_empty() {
            true => "no backup partition: set backuppartition-<name>",
            false => "no backup partition: partition_select_exclude names them all",
        };
        return Err(Error::new(Kind::Config, why));
    }
    let mut failure = None;
    let mut usable: Vec<(&(String, PathBuf), Space)> = Vec::new();
    for partition in wanted() {
        match probe(&partition.1) {
            Ok(space) => usable.push((partition, space)),
            Err(e) => {
                failure = Some(
                    Error::io("cannot use backup partition", e)
                        .with_kind(Kind::Io)
                        .at(&partition.1),
                );
            }
        }
    }
    if usable.is_empty() {
        let none = || Error::new(Kind::Internal, "no backup partition measured");
        return Err(failure.unwrap_or_else(none));
    }
    let mut mode = select.mode;
    if usable.iter().any(|(_, s)| s.percent_free().is_none()) {
        mode = Mode::Random;
    }
    let percent = |s: &Space| s.percent_free().unwrap_or(0.0);
    if mode != Mode::Random && select.soft_usage_limit > 0 {
        let least = 100.0 - select.soft_usage_limit as f64;
        if usable.iter().any(|(_, s)| percent(s) > least) {
            usable.retain(|(_, s)| percent(s) > least);
        }
    }
    if matches!(mode, Mode::FreespaceMost | Mode::PercentMost) {
        let mut seen = Vec::new();
        usable.retain(|(_, s)| {
            let new = !seen.contains(&s.fsid);
            seen.push(s.fsid);
            new
        });
    }
    let smallest = usable.iter().map(|(_, s)| percent(s)).fold(100.0, f64::min);
    let weights: Vec<f64> = usable
        .iter()
        .map(|(_, s)| match mode {
            Mode::Random => 1.0,
            Mode::FreespaceMost => s.free_kib as f64,
            Mode::PercentMost | Mode::PercentWeighted => percent(s),
            Mode::PercentWeightedDelta => percent(s) - smallest + 0.5,
        })
        .collect();
    let at = match mode {
        Mode::FreespaceMost | Mode::PercentMost => heaviest(&weights),
        _ => weighed(&weights, random),
    };
    // `weights` is as long as `usable`, which is not empty.
    Ok(usable[at].0)
}

/// The first of the greatest weights.
fn heaviest(weights: &[f64]) -> usize {
    let mut best = 0;
    for (i, w) in weights.iter().enumerate() {
        if *w > weights[best] {
            best = i;
        }
    }
    best
}

/// An index with chances as weighed; all weights zero is equal chances.
fn weighed(weights: &[f64], random: u64) -> usize {
    // 53 bits are what an f64 holds, so this is below 1.
    let chance = (random >> 11) as f64 / (1u64 << 53) as f64;
    let sum: f64 = weights.iter().sum();
    if sum <= 0.0 {
        return ((chance * weights.len() as f64) as usize).min(weights.len() - 1);
    }
    let mut left = chance * sum;
    for (i, w) in weights.iter().enumerate() {
        left -= w;
        if left < 0.0 {
            return i;
        }
    }
    weights.len() - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn hash_vectors() {
        for (name, short, full) in [
            ("fred", 'f', 'E'),
            ("fred.blogs", 'f', 'E'),
            ("fred@example.com", 'f', 'R'),
            ("Zed", 'z', 'L'),
            ("1abc", 'q', 'R'),
            ("%SHARED", 'q', 'J'),
            ("éa", 'q', 'E'),
            ("anna", 'a', 'B'),
            ("admin", 'a', 'I'),
        ] {
            assert_eq!(dir_hash(name, false), short, "{name}");
            assert_eq!(dir_hash(name, true), full, "{name}");
        }
        assert_eq!((dir_hash("", false), dir_hash("", true)), ('q', 'A'));
    }

    #[test]
    fn stems_are_harmless_and_tell_keys_apart() {
        for (key, stem) in [
            ("fred", "fred"),
            ("fred.b+x-y@example.com", "fred.b+x-y@example.com"),
            ("fred_b", "fred=5Fb"),
            ("../etc", "=2E.=2Fetc"),
            (".", "=2E"),
            ("a=2F", "a=3D2F"),
            ("a/", "a=2F"),
            ("%SHARED/d.e/news", "=25SHARED=2Fd.e=2Fnews"),
            ("é b", "=C3=A9=20b"),
        ] {
            assert_eq!(file_stem(key), stem);
        }
        let exact = "x".repeat(200);
        assert_eq!(file_stem(&exact), exact);
        let keys: Vec<String> = (195..260)
            .flat_map(|n| ["x", "/", "é"].map(|c| c.repeat(n)))
            .chain([
                format!("{}/a", "x".repeat(199)),
                format!("{}/b", "x".repeat(199)),
            ])
            .collect();
        let stems: HashSet<String> = keys.iter().map(|k| file_stem(k)).collect();
        assert_eq!(stems.len(), keys.len());
        for stem in &stems {
            assert!(stem.len() <= 216 && !stem.contains('/'));
            // No escape was cut in two.
            for at in stem.match_indices('=').map(|(i, _)| i) {
                assert!(stem[at + 1..at + 3].bytes().all(|b| b.is_ascii_hexdigit()));
            }
        }
        // A cut stem is never another key's uncut one.
        let cut = file_stem(&"x".repeat(201));
        assert_ne!(file_stem(&cut), cut);
    }

    fn parts(names: &[&str]) -> Vec<(String, PathBuf)> {
        names
            .iter()
            .map(|n| (n.to_string(), PathBuf::from(format!("/{n}"))))
            .collect()
    }

    fn select(mode: &str) -> Select {
        Select {
            mode: Mode::from_name(mode).unwrap(),
            exclude: vec![],
            soft_usage_limit: 0,
            usage_reinit: 0,
        }
    }

    /// a: 100 of 1000, b: 60 of 100, c: as b, d: fails, e: unknown size.
    fn probe(path: &Path) -> std::io::Result<Space> {
        let (free_kib, total_kib, fsid) = match path.to_str().unwrap() {
            "/a" => (100, 1000, 1),
            "/b" => (60, 100, 2),
            "/c" => (60, 100, 2),
            "/e" => (0, 0, 3),
            _ => return Err(std::io::ErrorKind::NotFound.into()),
        };
        Ok(Space {
            free_kib,
            total_kib,
            fsid,
        })
    }

    fn pick(names: &[&str], select: &Select, random: u64) -> String {
        choose(&parts(names), select, probe, random)
            .unwrap()
            .0
            .clone()
    }

    #[test]
    fn most_free() {
        for random in [0, u64::MAX] {
            assert_eq!(
                pick(&["a", "b", "d"], &select("freespace-most"), random),
                "a"
            );
            let percent = select("freespace-percent-most");
            assert_eq!(pick(&["a", "b"], &percent, random), "b");
            assert_eq!(pick(&["a", "c", "b"], &percent, random), "c");
        }
    }

    #[test]
    fn soft_limit_and_exclusion() {
        let mut s = select("freespace-most");
        s.soft_usage_limit = 80;
        assert_eq!(pick(&["a", "b"], &s, 0), "b");
        assert_eq!(pick(&["a"], &s, 0), "a");
        s.soft_usage_limit = 0;
        s.exclude = vec!["a".into()];
        assert_eq!(pick(&["a", "b"], &s, 0), "b");
        let only = parts(&["a"]);
        let e = choose(&only, &s, probe, 0).unwrap_err();
        assert_eq!(e.kind(), Kind::Config);
        assert_eq!(choose(&[], &s, probe, 0).unwrap_err().kind(), Kind::Config);
        let failing = parts(&["d"]);
        let e = choose(&failing, &s, probe, 0).unwrap_err();
        assert_eq!(e.kind(), Kind::Io);
        assert!(e.to_string().contains("/d"), "{e}");
    }

    /// How often each of `names` is chosen over the whole range of chance, in per cent.
    fn shares(names: &[&str], mode: &str) -> Vec<usize> {
        let s = select(mode);
        let mut count = vec![0; names.len()];
        for i in 0..100u64 {
            let got = pick(names, &s, (u64::MAX / 200) * (2 * i + 1));
            count[names.iter().position(|n| *n == got).unwrap()] += 1;
        }
        count
    }

    #[test]
    fn chances() {
        assert_eq!(shares(&["a", "b"], "random"), [50, 50]);
        // 10 % free against 60 %.
        assert_eq!(shares(&["a", "b"], "freespace-percent-weighted"), [14, 86]);
        assert_eq!(
            shares(&["a", "b"], "freespace-percent-weighted-delta"),
            [1, 99]
        );
        // Both b and c count in the weighted modes.
        assert_eq!(shares(&["b", "c"], "freespace-percent-weighted"), [50, 50]);
        // Unknown size: chance, whatever the mode.
        assert_eq!(shares(&["a", "e"], "freespace-most"), [50, 50]);
        assert_eq!(weighed(&[0.0, 0.0], u64::MAX), 1);
        assert_eq!(weighed(&[1.0], u64::MAX), 0);
    }

    #[test]
    fn every_mode_has_a_name() {
        let modes: HashSet<String> = Mode::NAMES
            .iter()
            .map(|n| format!("{:?}", Mode::from_name(n).unwrap()))
            .collect();
        assert_eq!(modes.len(), 5);
        assert_eq!(Mode::from_name("Random"), None);
    }
}
