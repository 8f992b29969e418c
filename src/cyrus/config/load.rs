//! Puts a configuration together: files and their includes, service keys, deprecated names,
//! defaults, `{configdirectory}`. Which mistakes are fatal is Cyrus' decision (`lib/libconfig.c`).
#![forbid(unsafe_code)]

use super::options::{Opt, Row, TABLE, Type};
use super::parse::{self, Item};
use super::{Config, Env, Origin, Slot, Value, access};
use crate::error::{Error, Kind, Result};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Gives the bytes of a named file.
type Opener<'a> = &'a dyn Fn(&str) -> std::io::Result<Vec<u8>>;

pub(super) struct Loader<'a> {
    pub(super) config: Config,
    open: Option<Opener<'a>>,
    /// The first file read, for messages about all of it.
    main: Option<String>,
    files: HashSet<String>,
    /// Where each key was first seen, for the message about a second one.
    seen: HashMap<String, String>,
}

impl<'a> Loader<'a> {
    pub(super) fn new(ident: &str, open: Option<Opener<'a>>) -> Loader<'a> {
        let empty = Slot {
            value: Value::Text(None),
            raw: String::new(),
            from: Origin::Default,
        };
        Loader {
            config: Config {
                ident: ident.to_string(),
                slots: vec![empty; TABLE.len()],
                other: BTreeMap::new(),
                partitions: Vec::new(),
                warnings: Vec::new(),
                env: Env::default(),
            },
            open,
            main: None,
            files: HashSet::new(),
            seen: HashMap::new(),
        }
    }

    /// Reads a file; the depth of inclusion is bounded because none is read twice.
    pub(super) fn file(&mut self, path: &str, included_at: Option<&str>) -> Result<()> {
        let place = |e: Error| match included_at {
            Some(at) => e.place(at),
            None => e,
        };
        if !self.files.insert(path.to_string()) {
            let e = Error::new(Kind::Config, "configuration file included twice");
            return Err(place(e.place(path)));
        }
        let depth = self.files.len();
        self.main.get_or_insert_with(|| path.to_string());
        let Some(open) = self.open else {
            let e = Error::new(Kind::Config, "no file can be included here");
            return Err(place(e));
        };
        let text = open(path).map_err(|e| {
            let e = Error::io("cannot read configuration file", e).with_kind(Kind::Config);
            place(e.place(path))
        })?;
        self.text(path, &text, depth)
    }

    pub(super) fn text(&mut self, name: &str, text: &[u8], depth: usize) -> Result<()> {
        if depth > 100 {
            let e = Error::new(Kind::Config, "too many configuration files");
            return Err(e.place(name));
        }
        let at = |line: u32| format!("{name} line {line}");
        let items =
            parse::parse(text).map_err(|e| Error::new(Kind::Config, e.why).place(at(e.line)))?;
        for item in items {
            match item {
                Item::Include { path, line } => self.file(&path, Some(&at(line)))?,
                Item::Entry { key, value, line } => self.entry(key, value, &at(line))?,
            }
        }
        Ok(())
    }

    fn entry(&mut self, key: String, value: String, at: &str) -> Result<()> {
        let prefix = format!("{}_", self.config.ident.to_ascii_lowercase());
        let service = key.strip_prefix(&prefix).and_then(Opt::by_name);
        let (opt, from) = match (service, Opt::by_name(&key)) {
            (Some(opt), _) => (opt, Origin::Service),
            (None, Some(opt)) => (opt, Origin::Plain),
            (None, None) => return self.other(key, value, at),
        };
        let slot = &mut self.config.slots[opt as usize];
        // Once the service's own value stands, Cyrus does not even look at plain ones.
        if slot.from == Origin::Service && from == Origin::Plain {
            return Ok(());
        }
        if slot.from == from {
            return Err(twice(&key, &self.seen[&key], at));
        }
        let parsed = read(opt.row(), &key, &value).map_err(|e| e.place(at))?;
        *slot = Slot {
            value: parsed,
            raw: value,
            from,
        };
        self.seen.insert(key, at.to_string());
        Ok(())
    }

    fn other(&mut self, key: String, value: String, at: &str) -> Result<()> {
        if let Some(first) = self.seen.get(&key) {
            return Err(twice(&key, first, at));
        }
        if let Some(name) = key.strip_prefix("backuppartition-") {
            let path = Path::new(&value);
            if name.is_empty() || !path.is_absolute() {
                let why = format!("{key} wants a name and an absolute path");
                return Err(Error::new(Kind::Config, why).place(at));
            }
            // By components: `/a/` and `/a` are one path.
            let path: PathBuf = path.components().collect();
            self.config.partitions.push((name.to_string(), path));
        }
        self.seen.insert(key.clone(), at.to_string());
        self.config.other.insert(key, value);
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Config> {
        let config = &mut self.config;
        for row in TABLE {
            let Some(new) = row.replaced_by else { continue };
            let old = config.slots[row.opt as usize].clone();
            if old.from == Origin::Default {
                continue;
            }
            let name = new.row().name;
            config
                .warnings
                .push(format!("option {} is deprecated: use {name}", row.name));
            if config.slots[new as usize].from == Origin::Default {
                config.slots[new as usize] = Slot {
                    from: Origin::Replaced,
                    ..old
                };
            }
        }
        for row in TABLE {
            let slot = &mut config.slots[row.opt as usize];
            if slot.from == Origin::Default {
                let text = row.default.unwrap_or_default();
                slot.raw = text.to_string();
                slot.value = match row.default {
                    Some(text) => read(row, row.name, text)?,
                    None => absent(row.kind),
                };
            }
        }
        let Some(dir) = config.text(Opt::ConfigDirectory).map(str::to_string) else {
            let why = "configdirectory is not set";
            return Err(Error::new(Kind::Config, why).place(self.main.unwrap_or_default()));
        };
        for row in TABLE.iter().filter(|row| row.kind == Type::Text) {
            let slot = &mut config.slots[row.opt as usize];
            let rest = match slot.raw.get(..TOKEN.len()) {
                Some(start) if start.eq_ignore_ascii_case(TOKEN) => &slot.raw[TOKEN.len()..],
                _ => continue,
            };
            if row.opt != Opt::ConfigDirectory {
                slot.raw = format!("{dir}{rest}");
                slot.value = Value::Text(Some(slot.raw.clone()));
            }
        }
        access::check(config)?;
        Ok(self.config)
    }
}

const TOKEN: &str = "{configdirectory}";

fn twice(key: &str, first: &str, at: &str) -> Error {
    let why = format!("option {key} is set twice, first at {first}");
    Error::new(Kind::Config, why).place(at)
}

/// What an option without value and default is.
fn absent(kind: Type) -> Value {
    match kind {
        Type::Switch => Value::Switch(false),
        Type::Int(..) => Value::Int(0),
        Type::Enum(_) | Type::Word(_) | Type::Text => Value::Text(None),
        Type::Duration(_) => Value::Secs(0),
        Type::Size(..) => Value::Bytes(0),
    }
}

/// Reads a value by its type; `key` is the name it was found under.
fn read(row: &Row, key: &str, text: &str) -> Result<Value> {
    let fail = |what: String| {
        let shown = match row.name.ends_with("_password") {
            true => "***",
            false => text,
        };
        let why = format!("{what}: {key}: {shown:?}");
        Err(Error::new(Kind::Config, why))
    };
    Ok(match row.kind {
        Type::Text => Value::Text(Some(text.to_string())),
        Type::Switch => match parse::switch(text) {
            Some(on) => Value::Switch(on),
            None => return fail("not yes or no (in lower case)".into()),
        },
        Type::Int(min, max) => match parse::int(text) {
            Some(n) if (min..=max).contains(&n) => Value::Int(n),
            Some(_) => return fail(format!("not from {min} to {max}")),
            None => return fail("not a whole number".into()),
        },
        Type::Enum(words) | Type::Word(words) => {
            let word = match row.kind {
                Type::Enum(_) => parse::enum_word(text),
                _ => text,
            };
            if !words.contains(&word) {
                return fail(format!("not one of {}", words.join(", ")));
            }
            Value::Text(Some(word.to_string()))
        }
        Type::Duration(unit) => match parse::duration(text, unit) {
            Some(secs) => Value::Secs(secs),
            None => return fail("not a duration like 1d12h or 90s".into()),
        },
        Type::Size(unit, min) => match parse::bytesize(text, unit) {
            Some(bytes) if bytes >= min => Value::Bytes(bytes),
            Some(_) => return fail(format!("less than {min} bytes")),
            None => return fail("not a size like 512K or 2G".into()),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::from_text(&format!("configdirectory: /c\n{text}"), "backupd").unwrap()
    }

    fn error(text: &str) -> String {
        let e = Config::from_text(&format!("configdirectory: /c\n{text}"), "backupd").unwrap_err();
        assert_eq!(e.kind(), Kind::Config);
        e.to_string()
    }

    #[test]
    fn the_service_wins_wherever_it_stands() {
        for text in [
            "backupd_sync_timeout: 5m\nsync_timeout: 9m\nsync_timeout: x\n",
            "sync_timeout: 9m\nbackupd_sync_timeout: 5m\nsync_timeout: 9m\n",
        ] {
            assert_eq!(config(text).secs(Opt::SyncTimeout), 300);
        }
        let c = config("imap_sync_timeout: 5m\nimap_foo: 1\nbackupd_foo: 2\nfoo: 3\n");
        assert_eq!(c.secs(Opt::SyncTimeout), 1800);
        assert_eq!(c.other("foo"), Some("2"));
        assert_eq!(c.other("imap_foo"), Some("1"));
    }

    #[test]
    fn deprecated_names() {
        let c = config("backup_retention_days: 3\ntls_cert_file: a\ntls_server_cert: b\n");
        assert_eq!(c.secs(Opt::BackupRetention), 3 * 86_400);
        assert_eq!(c.secs(Opt::BackupRetentionDays), 3 * 86_400);
        assert_eq!(c.text(Opt::TlsServerCert), Some("b"));
        assert_eq!(c.text(Opt::TlsCertFile), Some("a"));
        assert_eq!(c.warnings().len(), 2);
        assert!(c.is_set(Opt::BackupRetention));
    }

    #[test]
    fn errors_name_place_and_key() {
        for (text, expect) in [
            (
                "debug: Yes\n",
                "not yes or no (in lower case): debug: \"Yes\": text line 2",
            ),
            (
                "\nfoo: 1\nfoo: 1\n",
                "option foo is set twice, first at text line 3: text line 4",
            ),
            (
                "debug: 1\nDEBUG: 1\n",
                "option debug is set twice, first at text line 2: text line 3",
            ),
            (
                "backupd_debug: 1\nbackupd_debug: 1\n",
                "option backupd_debug is set twice",
            ),
            (
                "backupd_debug: X\n",
                "not yes or no (in lower case): backupd_debug",
            ),
            ("sync_batchsize: 9999999999\n", "not from"),
            ("sync_batchsize: x\n", "not a whole number"),
            ("backup_open_max: 0\n", "not from 1 to 10000"),
            ("backup_ingest_level: 10\n", "not from 0 to 9"),
            ("backup_rename: Follow\n", "not one of reject, follow"),
            ("backup_rename: yes\n", "not one of reject, follow"),
            ("delete_me\n", "invalid option name"),
            ("backup_retention_days: x\n", "not a duration"),
            ("backup_chunk_max: 1K\n", "less than 65536 bytes"),
            ("backup_chunk_max: 1T\n", "not a size"),
            ("backuppartition-a: b\n", "backuppartition-a wants"),
            ("backuppartition-: /b\n", "backuppartition- wants"),
            (
                "@include: /dev/null\n",
                "no file can be included here: text line 2",
            ),
        ] {
            let got = error(text);
            assert!(got.starts_with(expect), "{text:?}: {got}");
        }
        let e = Config::from_text("", "x").unwrap_err();
        assert_eq!(e.kind(), Kind::Config);
    }

    #[test]
    fn includes() {
        let files: HashMap<&str, &str> = HashMap::from([
            ("a", "configdirectory: /c\n@include: b\nsync_host: h\n"),
            ("b", "debug: 1\nfoo: 1\n"),
            ("twice", "@include: b\n@include: b\n"),
            ("self", "@include: self\n"),
            ("gone", "x: 1\n@include: nothing\n"),
            ("dup", "foo: 1\n@include: b\n"),
        ]);
        let open = |path: &str| match files.get(path) {
            Some(text) => Ok(text.as_bytes().to_vec()),
            None => Err(std::io::ErrorKind::NotFound.into()),
        };
        let load = |path: &str| {
            let mut loader = Loader::new("backupd", Some(&open));
            loader.file(path, None)?;
            loader.finish()
        };
        let c = load("a").unwrap();
        assert!(c.switch(Opt::Debug) && c.text(Opt::SyncHost) == Some("h"));
        for (path, expect) in [
            (
                "twice",
                "configuration file included twice: b: twice line 2",
            ),
            (
                "self",
                "configuration file included twice: self: self line 1",
            ),
            (
                "gone",
                "cannot read configuration file: nothing: gone line 2: ",
            ),
            (
                "dup",
                "option foo is set twice, first at dup line 1: b line 2",
            ),
        ] {
            let e = load(path).unwrap_err();
            assert_eq!(e.kind(), Kind::Config);
            assert!(e.to_string().starts_with(expect), "{e}");
        }
    }

    #[test]
    fn a_chain_of_includes_ends() {
        let open = |path: &str| Ok(format!("@include: {path}x\n").into_bytes());
        let mut loader = Loader::new("backupd", Some(&open));
        let e = loader.file("x", None).unwrap_err();
        assert!(e.to_string().starts_with("too many"), "{e}");
    }
}
