//! The numbers about a backup that people and monitoring ask for, from its index alone, and a file
//! in which they are remembered.
//!
//! A **body** is a message's text in the log. It is *live* while a record that is not expunged, in a
//! mailbox that is not deleted, refers to it; every other body is *waste*. Waste is *due* once
//! the retention of each mailbox that had it has run out since it went: that is what the next
//! compaction may drop. All three are counted in plain bytes; each body once, however many
//! mailboxes have it.
//!
//! Counting reads all records of an index. So [`Cache`] keeps the result of each backup in
//! `backups.db.summary`, with device, inode, length and time of log and index: it counts only as
//! long as none of these has changed. What is due is kept by the hour, and so needs no counting
//! anew because time goes on. The file is derived: it may be removed, and what does not read, or was
//! made under other retention, is not believed. It is replaced as a whole, unsynced, with a checksum
//! at its end.

use super::compact::need::went;
use super::index::{self, Index};
use super::reader::{Reader, ask_still};
use crate::cyrus::guid::Guid;
use crate::error::{Error, Kind, Result};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How long what is deleted from a mailbox of this internal name is kept, in seconds; `None` is for
/// ever.
pub type Keep<'a> = dyn Fn(&str) -> Option<i64> + Sync + 'a;

/// Numbers about one backup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Of the log; empty if it has none.
    pub generation: String,
    /// Time of the first line.
    pub first_time: Option<i64>,
    /// Time of the last line.
    pub last_time: Option<i64>,
    /// When a mailbox last changed.
    pub last_change: Option<i64>,
    /// Chunks.
    pub chunks: i64,
    /// Compressed bytes of sealed chunks.
    pub stored_bytes: i64,
    /// Plain bytes of sealed chunks.
    pub plain_bytes: i64,
    /// Live mailboxes.
    pub mailboxes: i64,
    /// Live records.
    pub messages: i64,
    /// Marked mailboxes.
    pub resync: i64,
    /// Bodies.
    pub bodies: i64,
    /// Their bytes.
    pub body_bytes: i64,
    /// Bytes of those that are live.
    pub live_bytes: i64,
    /// Bodies that no record ever referred to.
    pub unreferenced: i64,
    /// Their bytes.
    pub unreferenced_bytes: i64,
    /// Subscriptions.
    pub subscriptions: i64,
    /// Scripts.
    pub scripts: i64,
    /// Quota roots.
    pub quota_roots: i64,
    /// Waste by the hour (since 1970) at which it is due, and its bytes; without what never is.
    pub due: Vec<(i64, i64)>,
}

/// Until when a body is kept: for ever, because it is live.
const LIVE: i64 = i64::MAX;
/// For ever, because of its retention.
const NEVER: i64 = i64::MAX - 1;

impl Summary {
    /// Counts. Reads every record and every body row of the index, no log.
    pub fn of(index: &Index, keep: &Keep<'_>) -> Result<Summary> {
        let sums = index.chunk_sums()?;
        let counts = index.counts()?;
        let (subscriptions, scripts, quota_roots) = index.small_counts()?;
        let mut out = Summary {
            generation: index.meta_text("generation")?.unwrap_or_default(),
            first_time: sums.first_time,
            last_time: sums.last_time,
            chunks: sums.chunks,
            stored_bytes: sums.stored_bytes,
            plain_bytes: sums.plain_bytes,
            mailboxes: counts.mailboxes,
            messages: counts.records,
            resync: counts.resync,
            subscriptions,
            scripts,
            quota_roots,
            ..Summary::default()
        };
        let boxes = index.mailboxes(true)?;
        let after = |time: i64, keep: Option<i64>| keep.map_or(NEVER, |k| time.saturating_add(k));
        let known: HashMap<i64, (Option<i64>, Option<i64>)> = boxes
            .iter()
            .map(|b| (b.id, (b.deleted, keep(&b.mboxname))))
            .collect();
        out.last_change = boxes.iter().map(|b| b.deleted.unwrap_or(b.changed)).max();
        let late = index.lates()?;
        let mut until: HashMap<Guid, i64> = HashMap::new();
        index.each_use(&mut |mailbox, guid, expunged| {
            let (deleted, keep) = known.get(&mailbox).copied().unwrap_or((None, None));
            let end = match late.at(went(expunged, deleted)) {
                None => LIVE,
                Some(gone) => after(gone, keep),
            };
            let until = until.entry(guid).or_insert(end);
            *until = end.max(*until);
        })?;
        let general = keep("");
        let mut due: BTreeMap<i64, i64> = BTreeMap::new();
        index.each_body(&mut |guid, bytes, time| {
            out.bodies += 1;
            out.body_bytes += bytes;
            let end = until.get(&guid).copied().unwrap_or_else(|| {
                out.unreferenced += 1;
                out.unreferenced_bytes += bytes;
                after(time, general)
            });
            match end {
                LIVE => out.live_bytes += bytes,
                NEVER => {}
                end => *due.entry(hour_after(end)).or_default() += bytes,
            }
        })?;
        out.due = due.into_iter().collect();
        Ok(out)
    }

    /// Bytes of bodies that are not live.
    pub fn waste_bytes(&self) -> i64 {
        self.body_bytes - self.live_bytes
    }

    /// Bytes of waste whose retention has run out, exact to the hour.
    pub fn due_bytes(&self, now: i64) -> i64 {
        let due = self.due.iter().filter(|(hour, _)| hour * 3600 <= now);
        due.map(|(_, bytes)| bytes).sum()
    }

    /// Plain bytes for each stored one, of sealed chunks, to two places.
    pub fn ratio(&self) -> Option<f64> {
        let ratio = self.plain_bytes as f64 / self.stored_bytes as f64;
        (self.stored_bytes > 0).then(|| (ratio * 100.0).round() / 100.0)
    }

    fn numbers(&self) -> [Option<i64>; NUMBERS] {
        [
            self.first_time,
            self.last_time,
            self.last_change,
            Some(self.chunks),
            Some(self.stored_bytes),
            Some(self.plain_bytes),
            Some(self.mailboxes),
            Some(self.messages),
            Some(self.resync),
            Some(self.bodies),
            Some(self.body_bytes),
            Some(self.live_bytes),
            Some(self.unreferenced),
            Some(self.unreferenced_bytes),
            Some(self.subscriptions),
            Some(self.scripts),
            Some(self.quota_roots),
        ]
    }

    fn print(&self, out: &mut String) {
        out.push_str(if self.generation.is_empty() {
            "-"
        } else {
            &self.generation
        });
        for number in self.numbers() {
            match number {
                // Writing to a String cannot fail.
                Some(n) => _ = write!(out, " {n}"),
                None => out.push_str(" -"),
            }
        }
        for (hour, bytes) in &self.due {
            _ = write!(out, " {hour}:{bytes}");
        }
    }

    fn parse<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Summary> {
        let generation = words.next().filter(|w| *w != "-").unwrap_or_default();
        let mut numbers = [None; NUMBERS];
        for number in &mut numbers {
            *number = match words.next()? {
                "-" => None,
                word => Some(word.parse().ok()?),
            };
        }
        let due = words.map(|word| {
            let (hour, bytes) = word.split_once(':')?;
            Some((hour.parse().ok()?, bytes.parse().ok()?))
        });
        let due: Option<Vec<(i64, i64)>> = due.collect();
        let [first_time, last_time, last_change, rest @ ..] = numbers;
        let n = |at: usize| rest.get(at).copied().flatten();
        Some(Summary {
            generation: generation.to_owned(),
            first_time,
            last_time,
            last_change,
            chunks: n(0)?,
            stored_bytes: n(1)?,
            plain_bytes: n(2)?,
            mailboxes: n(3)?,
            messages: n(4)?,
            resync: n(5)?,
            bodies: n(6)?,
            body_bytes: n(7)?,
            live_bytes: n(8)?,
            unreferenced: n(9)?,
            unreferenced_bytes: n(10)?,
            subscriptions: n(11)?,
            scripts: n(12)?,
            quota_roots: n(13)?,
            due: due?,
        })
    }
}

const NUMBERS: usize = 17;

/// The first full hour not before a time.
fn hour_after(time: i64) -> i64 {
    time.div_euclid(3600) + i64::from(time.rem_euclid(3600) != 0)
}

/// What tells whether a file is still what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    dev: u64,
    ino: u64,
    len: u64,
    time: (i64, i64),
}

/// A file changed less than this ago may change again without its time showing it.
const STAMPS: Duration = Duration::from_millis(50);

impl Stamp {
    fn of(path: &Path) -> Option<Stamp> {
        let meta = fs::metadata(path).ok()?;
        Some(Stamp {
            dev: meta.dev(),
            ino: meta.ino(),
            len: meta.len(),
            time: (meta.mtime(), meta.mtime_nsec()),
        })
    }

    /// Whether the next change is sure to show.
    fn is_old(&self) -> bool {
        let Ok(secs) = u64::try_from(self.time.0) else {
            return false;
        };
        let nanos = u32::try_from(self.time.1).unwrap_or(0);
        let then = SystemTime::UNIX_EPOCH + Duration::new(secs, nanos);
        SystemTime::now()
            .duration_since(then)
            .is_ok_and(|age| age >= STAMPS)
    }

    fn print(&self, out: &mut String) {
        let Stamp {
            dev,
            ino,
            len,
            time: (sec, nsec),
        } = self;
        _ = write!(out, "{dev} {ino} {len} {sec} {nsec} ");
    }

    fn parse<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Stamp> {
        Some(Stamp {
            dev: words.next()?.parse().ok()?,
            ino: words.next()?.parse().ok()?,
            len: words.next()?.parse().ok()?,
            time: (words.next()?.parse().ok()?, words.next()?.parse().ok()?),
        })
    }
}

/// What was found out about a backup.
pub struct Looked {
    /// Bytes of the log; `None` if there is none.
    pub bytes: Option<u64>,
    /// Bytes of the index.
    pub index_bytes: Option<u64>,
    /// Whose the index says it is, if it was asked.
    pub key: Option<String>,
    /// The numbers.
    pub summary: Result<Summary>,
    /// What to remember, if that is new.
    fresh: Option<String>,
}

impl Looked {
    /// Numbers that were found otherwise.
    pub fn unasked(summary: Result<Summary>) -> Looked {
        Looked {
            bytes: None,
            index_bytes: None,
            key: None,
            summary,
            fresh: None,
        }
    }

    /// What is to be remembered, if that is new and lasting. It is handed out once.
    pub fn fresh(&mut self) -> Option<String> {
        self.fresh.take()
    }
}

/// How a backup is opened for reading that is in use, or is not as it should be.
pub type Open<'a> = dyn Fn(&Path) -> Result<Reader> + Sync + 'a;

/// Finds the numbers of the backup whose log is at `path`: remembered ones if they are still true,
/// else from its index. Takes no lock and makes nothing where the backup is at rest; `open` is asked
/// where it is not.
pub fn look(path: &Path, known: Option<&str>, open: &Open<'_>, keep: &Keep<'_>) -> Looked {
    let index_path = index::path_of(path);
    let (log, index) = (Stamp::of(path), Stamp::of(&index_path));
    let mut out = Looked {
        bytes: log.map(|s| s.len),
        index_bytes: index.map(|s| s.len),
        ..Looked::unasked(Err(Error::new(Kind::Internal, "not asked")))
    };
    if let (Some(log), Some(index), Some(known)) = (log, index, known) {
        if let Some(summary) = remembered(known, log, index) {
            out.summary = Ok(summary);
            return out;
        }
    }
    let mut ask = |index: &Index| {
        out.key = index.meta_text("key")?;
        Summary::of(index, keep)
    };
    let still = match (log, index) {
        (Some(log), Some(index)) if log.is_old() && index.is_old() => {
            let answer = ask_still(path, &mut |index, _| ask(index)).ok().flatten();
            answer.map(|summary| (summary, log, index))
        }
        _ => None,
    };
    out.summary = match still {
        Some((summary, log, index)) => {
            if Stamp::of(path) == Some(log) && Stamp::of(&index_path) == Some(index) {
                let mut text = String::new();
                log.print(&mut text);
                index.print(&mut text);
                summary.print(&mut text);
                out.fresh = Some(text);
            }
            Ok(summary)
        }
        None => open(path).and_then(|reader| ask(reader.index())),
    };
    out
}

fn remembered(text: &str, log: Stamp, index: Stamp) -> Option<Summary> {
    let mut words = text.split(' ');
    let same = Stamp::parse(&mut words)? == log && Stamp::parse(&mut words)? == index;
    same.then(|| Summary::parse(&mut words)).flatten()
}

/// The remembered summaries of one server.
#[derive(Debug, Default)]
pub struct Cache {
    path: PathBuf,
    head: String,
    /// By key, as printed.
    entries: HashMap<String, String>,
    changed: bool,
}

impl Cache {
    /// Reads what is remembered beside the catalogue `backups_db`. `settings`: what the numbers
    /// depend on besides; entries made under others are not believed. Never fails.
    pub fn beside(backups_db: &Path, settings: &str) -> Cache {
        let mut path = backups_db.as_os_str().to_owned();
        path.push(".summary");
        let settings = crc32fast::hash(settings.as_bytes());
        let mut cache = Cache {
            path: path.into(),
            head: format!("cyr_backup summary 1 {settings:08x}"),
            ..Cache::default()
        };
        match fs::read_to_string(&cache.path) {
            Ok(text) => {
                if cache.take(&text).is_none() {
                    log::debug!("not believed filename=<{}>", cache.path.display());
                    cache.entries.clear();
                }
            }
            Err(e) => log::debug!("not read filename=<{}> error=<{e}>", cache.path.display()),
        }
        cache
    }

    fn take(&mut self, text: &str) -> Option<()> {
        let body = text.strip_suffix('\n')?;
        let (body, sum) = body.rsplit_once('\n')?;
        let sum = u32::from_str_radix(sum, 16).ok()?;
        if crc32fast::hash(body.as_bytes()) != sum {
            return None;
        }
        let mut lines = body.split('\n');
        if lines.next()? != self.head {
            return None;
        }
        for line in lines {
            let (key, rest) = line.split_once('\t')?;
            self.entries.insert(key.to_owned(), rest.to_owned());
        }
        Some(())
    }

    /// What is remembered of a backup, for [`look`].
    pub fn known(&self, key: &str) -> Option<&str> {
        self.entries.get(key).map(String::as_str)
    }

    /// Remembers what [`Looked::fresh`] gave.
    pub fn remember(&mut self, key: &str, text: String) {
        if !key.contains(char::is_control) {
            self.entries.insert(key.to_owned(), text);
            self.changed = true;
        }
    }

    /// Forgets what is not among the keys of all backups.
    pub fn only(&mut self, is_key: impl Fn(&str) -> bool) {
        let before = self.entries.len();
        self.entries.retain(|key, _| is_key(key));
        self.changed |= self.entries.len() != before;
    }

    /// Writes what is new. That it cannot be written costs the next one time, nothing else.
    pub fn save(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let mut keys: Vec<&String> = self.entries.keys().collect();
        keys.sort();
        let mut text = self.head.clone();
        for key in keys {
            if let Some(entry) = self.entries.get(key) {
                _ = write!(text, "\n{key}\t{entry}");
            }
        }
        let sum = crc32fast::hash(text.as_bytes());
        _ = write!(text, "\n{sum:08x}\n");
        let mut beside = self.path.as_os_str().to_owned();
        beside.push(format!(".{}.new", std::process::id()));
        let beside = PathBuf::from(beside);
        let done = fs::write(&beside, text).and_then(|()| fs::rename(&beside, &self.path));
        if let Err(e) = done {
            let _ = fs::remove_file(&beside);
            log::info!(
                "not remembered filename=<{}> error=<{e}>",
                self.path.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Summary {
        Summary {
            generation: "b084f9da629569bf".into(),
            last_time: Some(-7),
            chunks: 3,
            body_bytes: 100,
            live_bytes: 60,
            due: vec![(10, 5), (11, 35)],
            ..Summary::default()
        }
    }

    #[test]
    fn numbers_print_and_parse() {
        for summary in [some(), Summary::default()] {
            let mut text = String::new();
            summary.print(&mut text);
            assert_eq!(
                Summary::parse(&mut text.split(' ')),
                Some(summary),
                "{text}"
            );
            for cut in 0..text.len() {
                // What is cut off is not taken for the whole, or says as much.
                if let Some(part) = Summary::parse(&mut text[..cut].split(' ')) {
                    assert!(part != some());
                }
            }
        }
    }

    #[test]
    fn waste_is_due_by_the_hour() {
        let summary = some();
        assert_eq!(summary.waste_bytes(), 40);
        for (now, due) in [(0, 0), (35_999, 0), (36_000, 5), (39_600, 40)] {
            assert_eq!(summary.due_bytes(now), due, "{now}");
        }
        assert_eq!(
            (hour_after(3600), hour_after(3601), hour_after(0)),
            (1, 2, 0)
        );
        assert_eq!(summary.ratio(), None);
    }

    #[test]
    fn what_does_not_read_is_not_believed() {
        let dir = std::env::temp_dir().join(format!("cyr_backup-summary-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let db = dir.join("backups.db");
        let mut cache = Cache::beside(&db, "30d");
        cache.entries.insert("anna".into(), "x y".into());
        cache.entries.insert("%SHARED//a b".into(), "z".into());
        cache.changed = true;
        cache.save();
        let again = Cache::beside(&db, "30d");
        assert_eq!(again.known("anna"), Some("x y"));
        assert_eq!(again.known("%SHARED//a b"), Some("z"));
        assert_eq!(Cache::beside(&db, "31d").known("anna"), None);
        let file = dir.join("backups.db.summary");
        let good = fs::read(&file).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 4;
            fs::write(&file, &bad).unwrap();
            assert!(Cache::beside(&db, "30d").entries.is_empty(), "{at}");
            fs::write(&file, &good[..at]).unwrap();
            assert!(Cache::beside(&db, "30d").entries.is_empty(), "{at}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
