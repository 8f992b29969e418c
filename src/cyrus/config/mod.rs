//! imapd.conf as Cyrus reads it: the same file, the same syntax, the same fatal mistakes.
//!
//! A [`Config`] is read once, is checked in full, and never changes; every getter is then total.
//! What Cyrus would die of (exit 78) is a `Kind::Config` error that names file, line and key; so
//! is a value one of our own options cannot have. Things that are odd but harmless are collected
//! in [`Config::warnings`], because the log is not open yet when the configuration is read.
//!
//! Format: Cyrus `lib/libconfig.c`. `parse` has lines and types, `options` the table. Unlike
//! Cyrus we refuse values that are not UTF-8, and know only the options that concern us.
#![forbid(unsafe_code)]

mod access;
pub use access::Rename;
mod load;
pub mod options;
pub mod parse;
pub mod retention;

use crate::error::Result;
use load::Loader;
pub use options::Opt;
use options::TABLE;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A value, read by its type.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Switch(bool),
    Int(i64),
    Text(Option<String>),
    Secs(i64),
    Bytes(i64),
}

/// One option's value and where it comes from.
#[derive(Clone, Debug)]
struct Slot {
    value: Value,
    /// As written, after substitution; empty when there is none.
    raw: String,
    from: Origin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Default,
    Plain,
    /// A key that begins with our ident.
    Service,
    /// The deprecated name.
    Replaced,
}

/// Environment variables that imapd.conf gives way to.
#[derive(Clone, Debug, Default)]
struct Env {
    user: Option<String>,
    group: Option<String>,
    syslog_prefix: Option<String>,
}

/// The configuration.
#[derive(Clone, Debug)]
pub struct Config {
    ident: String,
    slots: Vec<Slot>,
    /// Keys we do not know, in lower case, and their values.
    other: BTreeMap<String, String>,
    /// `backuppartition-<name>`, in the order of the file.
    partitions: Vec<(String, PathBuf)>,
    warnings: Vec<String>,
    env: Env,
}

impl Config {
    /// Reads a file and what it includes, for the process called `ident`.
    ///
    /// `ident` is the entry's name in cyrus.conf or the program's name: keys that begin with it and
    /// an underscore win. With `CYRUS_PREFIX` set, that prefix is first tried before `path`.
    /// `Kind::Config` for all that is wrong, a file that cannot be read included.
    pub fn load(path: &Path, ident: &str) -> Result<Config> {
        let var = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let mut loader = Loader::new(ident, Some(&|path| std::fs::read(path)));
        loader.config.env = Env {
            user: var("CYRUS_USER"),
            group: var("CYRUS_GROUP"),
            syslog_prefix: var("CYRUS_SYSLOG_PREFIX"),
        };
        let mut name = path.to_string_lossy().into_owned();
        if let Some(prefix) = var("CYRUS_PREFIX") {
            let prefixed = format!("{prefix}{name}");
            if Path::new(&prefixed).exists() {
                name = prefixed;
            }
        }
        loader.file(&name, None)?;
        loader.finish()
    }

    /// Reads a text, without the environment; `@include` is an error. For tests.
    pub fn from_text(text: &str, ident: &str) -> Result<Config> {
        let mut loader = Loader::new(ident, None);
        loader.text("text", text.as_bytes(), 0)?;
        loader.finish()
    }

    /// What was odd but not fatal, one sentence each, for the log.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The name given to [`Config::load`].
    pub fn ident(&self) -> &str {
        &self.ident
    }

    /// A switch. Panics if `opt` is of another type, as do the other getters: an error in the
    /// program, not in the file.
    pub fn switch(&self, opt: Opt) -> bool {
        match self.slots[opt as usize].value {
            Value::Switch(on) => on,
            _ => wrong_type(opt),
        }
    }

    /// A number.
    pub fn int(&self, opt: Opt) -> i64 {
        match self.slots[opt as usize].value {
            Value::Int(n) => n,
            _ => wrong_type(opt),
        }
    }

    /// A text or a word of a list; `None` when there is neither value nor default.
    pub fn text(&self, opt: Opt) -> Option<&str> {
        match &self.slots[opt as usize].value {
            Value::Text(text) => text.as_deref(),
            _ => wrong_type(opt),
        }
    }

    /// A duration in seconds, which may be negative.
    pub fn secs(&self, opt: Opt) -> i64 {
        match self.slots[opt as usize].value {
            Value::Secs(n) => n,
            _ => wrong_type(opt),
        }
    }

    /// A duration; a negative one is none.
    pub fn duration(&self, opt: Opt) -> Duration {
        Duration::from_secs(u64::try_from(self.secs(opt)).unwrap_or(0))
    }

    /// A size in bytes; a negative one is 0.
    pub fn bytes(&self, opt: Opt) -> u64 {
        match self.slots[opt as usize].value {
            Value::Bytes(n) => u64::try_from(n).unwrap_or(0),
            _ => wrong_type(opt),
        }
    }

    /// Whether the file sets the option, under its name or a deprecated one.
    pub fn is_set(&self, opt: Opt) -> bool {
        self.slots[opt as usize].from != Origin::Default
    }

    /// The value of a key that is not in the table: `<ident>_<key>`, else `<key>`.
    pub fn other(&self, key: &str) -> Option<&str> {
        let key = key.to_ascii_lowercase();
        let ident = self.ident.to_ascii_lowercase();
        self.other
            .get(&format!("{ident}_{key}"))
            .or_else(|| self.other.get(&key))
            .map(String::as_str)
    }

    /// Every option we know and every backup partition: name, value, and whether that is the
    /// default. Passwords are shown as `***`.
    pub fn effective(&self) -> Vec<(String, String, bool)> {
        let known = TABLE.iter().filter(|row| row.replaced_by.is_none());
        let mut all: Vec<_> = known
            .map(|row| {
                let slot = &self.slots[row.opt as usize];
                let shown = match slot.raw.as_str() {
                    raw if !raw.is_empty() && row.name.ends_with("_password") => "***",
                    raw => raw,
                };
                let is_default = slot.from == Origin::Default;
                (row.name.to_string(), shown.to_string(), is_default)
            })
            .collect();
        for (name, path) in &self.partitions {
            let path = path.display().to_string();
            all.push((format!("backuppartition-{name}"), path, false));
        }
        all
    }

    /// Keys that look like backup options and are none, with the nearest right name.
    pub fn unknown_backup_options(&self) -> Vec<(String, Option<&'static str>)> {
        let is_known_suffix = |key: &str| {
            // `backup_sync_timeout` belongs to a service entry called `backup`.
            key.match_indices('_')
                .any(|(i, _)| Opt::by_name(&key[i + 1..]).is_some())
        };
        self.other
            .keys()
            .filter(|key| !is_known_suffix(key) && !key.starts_with("backuppartition-"))
            .filter_map(|key| {
                let (name, distance) = TABLE
                    .iter()
                    .map(|row| row.name)
                    .chain(["backuppartition-default"])
                    .filter(|name| name.starts_with("backup"))
                    .map(|name| (name, edit_distance(key, name)))
                    .min_by_key(|(_, distance)| *distance)?;
                let is_near = distance <= key.len() / 3;
                let looks_ours = key.starts_with("backup_") || distance <= 2;
                looks_ours.then(|| (key.clone(), is_near.then_some(name)))
            })
            .collect()
    }
}

fn wrong_type(opt: Opt) -> ! {
    panic!("{} is a {:?}", opt.row().name, opt.row().kind)
}

/// The least number of letters to insert, drop, change or swap.
fn edit_distance(a: &str, b: &str) -> usize {
    // Keys are ASCII; a bound keeps a silly key from costing time.
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() > 100 {
        return a.len();
    }
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let change = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = change.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::options::Type;
    use super::*;

    fn config(text: &str) -> Config {
        Config::from_text(&format!("configdirectory: /c\n{text}"), "backupd").unwrap()
    }

    #[test]
    fn defaults_read_as_their_type() {
        let c = config("");
        for row in TABLE {
            match row.kind {
                Type::Switch => drop(c.switch(row.opt)),
                Type::Int(..) => drop(c.int(row.opt)),
                Type::Enum(_) | Type::Word(_) | Type::Text => drop(c.text(row.opt)),
                Type::Duration(_) => drop(c.duration(row.opt)),
                Type::Size(..) => drop(c.bytes(row.opt)),
            }
            assert_eq!(c.is_set(row.opt), row.name == "configdirectory");
        }
        assert_eq!(c.text(Opt::ProcPath), Some("/c/proc"));
        assert_eq!(c.secs(Opt::TlsSessionTimeout), 86_400);
        assert_eq!(c.bytes(Opt::BackupStagingMax), 16 << 30);
        assert!(c.warnings().is_empty());
    }

    #[test]
    fn values() {
        let c = config(
            "debug: t\nsync_timeout: 5m\nbackup_retention: 14\nvirtdomains: yes\n\
             backup_chunk_max: 1 MiB\nservername: {CONFIGdirectory}x\nfoo: {configdirectory}\n\
             backup_compact_minsize: -1\nsync_host: {config\n",
        );
        assert!(c.switch(Opt::Debug));
        assert_eq!(c.secs(Opt::SyncTimeout), 300);
        assert_eq!(c.secs(Opt::BackupRetention), 14 * 86_400);
        assert_eq!(c.text(Opt::VirtDomains), Some("on"));
        assert_eq!(c.bytes(Opt::BackupChunkMax), 1 << 20);
        assert_eq!(c.text(Opt::ServerName), Some("/cx"));
        assert_eq!(c.other("FOO"), Some("{configdirectory}"));
        assert_eq!(c.other("bar"), None);
        assert_eq!(c.bytes(Opt::BackupCompactMinsize), 0);
        assert_eq!(c.text(Opt::SyncHost), Some("{config"));
    }

    #[test]
    fn unknown_backup_options_are_named() {
        let c = config(
            "backup_retension: 1\nbackup_quux_frobnicator: 1\nbackup_sync_timeout: 1m\n\
             bakup_drain: 1\nbackup_lock_wiat: 1\nunrelated: 1\nbackuppartition-a: /a\n\
             backuppartition-default: /d\n\
             backuppartition_default: /b\nbackupd_foo: 1\nimap_backup_drain: 5\n",
        );
        let expect = [
            ("backup_lock_wiat", Some("backup_lock_wait")),
            ("backup_quux_frobnicator", None),
            ("backup_retension", Some("backup_retention")),
            ("backuppartition_default", Some("backuppartition-default")),
            ("bakup_drain", Some("backup_drain")),
        ]
        .map(|(k, n)| (k.to_string(), n));
        assert_eq!(c.unknown_backup_options(), expect);
    }

    #[test]
    fn distances() {
        for (a, b, n) in [
            ("", "abc", 3),
            ("abc", "abc", 0),
            ("acb", "abc", 1),
            ("xbc", "abc", 1),
            ("ab", "abc", 1),
        ] {
            assert_eq!(edit_distance(a, b), n, "{a} {b}");
        }
    }

    #[test]
    fn effective_values_hide_passwords() {
        let c = config("sync_password: geheim\nbackupd_debug: on\nbackuppartition-a: /a/\n");
        let all = c.effective();
        let get = |name: &str| all.iter().find(|(n, _, _)| n == name).unwrap().clone();
        assert_eq!(get("sync_password").1, "***");
        assert_eq!(get("restore_password").1, "");
        assert_eq!(get("debug"), ("debug".into(), "on".into(), false));
        assert_eq!(
            get("backup_rename"),
            ("backup_rename".into(), "follow".into(), true)
        );
        assert_eq!(get("backuppartition-a").1, "/a");
        assert!(!all.iter().any(|(n, _, _)| n == "backup_retention_days"));
    }
}
