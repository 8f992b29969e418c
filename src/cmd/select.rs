//! Which backups a command is about: `-u` userid (default), `-m` mailbox, `-f` data file, `-D`
//! domain, `-P` prefix of userids, `-A` all.
//!
//! [`Select`] is what was typed; [`Select::find`] asks the catalogue. Userids and mailbox names are
//! taken in admin and in internal form; keys that begin with `%` as they stand. `-f` does not
//! touch the catalogue. What names a set (`-D -P -A`) is answered from one snapshot, in raw
//! order of the keys, and may be empty.
//!
//! Fails with `Kind::Usage` for names that cannot be any; a name without a backup is no failure
//! of the whole: it is in [`Found::missing`].

use super::args::usage;
use crate::cyrus::mboxname::{MboxName, Namespace, Owner, canonical_userid, from_admin};
use crate::error::{Error, Kind, Result};
use crate::store::catalog::Catalog;
use crate::store::former;
use getopts::{Matches, Options};
use std::collections::HashSet;
use std::path::PathBuf;

/// What a name on the command line means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A userid, or a key that begins with `%`.
    Userid,
    /// A mailbox: the backup it belongs to.
    Mailbox,
    /// The path of a data file.
    File,
    /// A domain: all its users and shared trees.
    Domain,
    /// How userids begin.
    Prefix,
    /// No name: all there are.
    All,
}

const MODES: [(&str, Mode, &str); 6] = [
    ("u", Mode::Userid, "names are userids (default)"),
    ("m", Mode::Mailbox, "names are mailboxes"),
    ("f", Mode::File, "names are data files"),
    ("D", Mode::Domain, "names are domains: their users"),
    ("P", Mode::Prefix, "names are prefixes: users that begin so"),
    ("A", Mode::All, "all backups"),
];

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Select {
    mode: Mode,
    names: Vec<String>,
}

/// A backup that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Its key; `None` for a file that was named by path.
    pub key: Option<String>,
    /// Its data file.
    pub path: PathBuf,
}

impl Chosen {
    /// What to call it in messages.
    pub fn name(&self) -> String {
        match &self.key {
            Some(key) => key.clone(),
            None => self.path.display().to_string(),
        }
    }
}

impl Chosen {
    /// Where it is now, if it has moved since it was looked up.
    pub fn moved(&self, catalog: &Catalog) -> Option<Chosen> {
        let key = self.key.clone()?;
        let path = catalog.lookup(&key).ok().flatten()?;
        (path != self.path).then_some(Chosen {
            key: Some(key),
            path,
        })
    }
}

/// What a selection stands for.
#[derive(Debug, Default)]
pub struct Found {
    /// Backups, each once.
    pub chosen: Vec<Chosen>,
    /// Names without one, and why.
    pub missing: Vec<(String, Error)>,
}

/// Adds the options of the mode.
pub fn options(o: &mut Options) {
    for (letter, _, help) in MODES {
        o.optflagmulti(letter, "", help);
    }
}

fn mode(m: &Matches) -> Result<Option<Mode>> {
    let mut given = MODES.iter().filter(|(letter, _, _)| m.opt_present(letter));
    let first = given.next().map(|(_, mode, _)| *mode);
    match given.next() {
        Some(_) => Err(usage("only one of -u -m -f -D -P -A")),
        None => Ok(first),
    }
}

impl Select {
    /// Any number of names; none only with `-A`.
    pub fn some(m: &Matches) -> Result<Select> {
        let mode = mode(m)?.unwrap_or(Mode::Userid);
        let names = m.free.clone();
        match (mode, names.first()) {
            (Mode::All, Some(name)) => Err(usage(format!("-A and also {name}"))),
            (Mode::All, None) | (_, Some(_)) => Ok(Select { mode, names }),
            (_, None) => Err(usage("no backup named")),
        }
    }

    /// All backups.
    pub fn all() -> Select {
        Select {
            mode: Mode::All,
            names: Vec::new(),
        }
    }

    /// The same, but neither name nor mode means all.
    pub fn some_or_all(m: &Matches) -> Result<Select> {
        if mode(m)?.is_none() && m.free.is_empty() {
            let names = Vec::new();
            return Ok(Select {
                mode: Mode::All,
                names,
            });
        }
        Select::some(m)
    }

    /// Exactly one backup, the first of `words`; what follows it is returned, too.
    pub fn one(m: &Matches, words: &[String]) -> Result<(Select, Vec<String>)> {
        let mode = mode(m)?.unwrap_or(Mode::Userid);
        if matches!(mode, Mode::Domain | Mode::Prefix | Mode::All) {
            return Err(usage("this is about one backup: not with -D -P -A"));
        }
        let (name, rest) = words
            .split_first()
            .ok_or_else(|| usage("no backup named"))?;
        let names = vec![name.clone()];
        Ok((Select { mode, names }, rest.to_vec()))
    }

    /// Backups named by user or mailbox, each by its own name: for what cannot be taken back easily.
    pub fn named(m: &Matches) -> Result<Select> {
        let select = Select::some(m)?;
        match select.mode {
            Mode::Userid | Mode::Mailbox => Ok(select),
            _ => Err(usage("each backup must be named: not with -f -D -P -A")),
        }
    }

    /// The names, each once, and under which keys what each means may be, best first. For what is about
    /// a whole backup: a mailbox must be its INBOX, or the root of a shared tree that has its own.
    pub fn candidates(&self, ns: &Namespace) -> Result<Vec<(String, Vec<String>)>> {
        let mut found: Vec<(String, Vec<String>)> = Vec::new();
        for name in &self.names {
            let mut keys = self.keys(name, ns)?;
            if self.mode == Mode::Mailbox {
                whole(name, ns)?;
                // The other one is that of all shared trees.
                keys.truncate(1);
            }
            if found.iter().all(|(_, known)| *known != keys) {
                found.push((name.clone(), keys));
            }
        }
        Ok(found)
    }

    /// The first name; empty with `-A`.
    pub fn first(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    /// Whether the names stand for sets.
    pub fn is_set(&self) -> bool {
        matches!(self.mode, Mode::Domain | Mode::Prefix | Mode::All)
    }

    /// Whether it is every backup.
    pub fn is_all(&self) -> bool {
        self.mode == Mode::All
    }

    /// The backups. An unreadable catalogue is an error; so is, as `Kind::Usage`, a name that
    /// cannot be one.
    pub fn find(&self, catalog: &Catalog, ns: &Namespace) -> Result<Found> {
        let mut found = Found::default();
        if self.is_set() {
            for (key, path) in catalog.list()? {
                if self.covers(&key, ns) {
                    let key = Some(key);
                    found.chosen.push(Chosen { key, path });
                }
            }
            return Ok(found);
        }
        // Names are judged before anything is opened.
        let candidates: Result<Vec<_>> = self.names.iter().map(|n| self.keys(n, ns)).collect();
        let mut seen = HashSet::new();
        for (name, keys) in self.names.iter().zip(candidates?) {
            let chosen = match self.mode {
                Mode::File => Ok(Some(Chosen {
                    key: None,
                    path: name.into(),
                })),
                _ => lookup(catalog, &keys),
            };
            match chosen {
                Ok(Some(chosen)) => {
                    if seen.insert(chosen.path.clone()) {
                        found.chosen.push(chosen);
                    }
                }
                Ok(None) => {
                    let e = Error::new(Kind::NotFound, "no backup");
                    found.missing.push((name.clone(), e));
                }
                Err(e) => found.missing.push((name.clone(), e)),
            }
        }
        Ok(found)
    }

    /// The one backup; `NotFound` reads `NAME: no backup`.
    pub fn find_one(&self, catalog: &Catalog, ns: &Namespace) -> Result<Chosen> {
        let mut found = self.find(catalog, ns)?;
        if let Some((name, e)) = found.missing.pop() {
            return Err(match e.kind() {
                Kind::NotFound => Error::new(Kind::NotFound, format!("{name}: {e}")),
                _ => e,
            });
        }
        let one = found.chosen.pop();
        one.ok_or_else(|| usage("no backup named"))
    }

    fn covers(&self, key: &str, ns: &Namespace) -> bool {
        let names = |p: &String| key.starts_with(p.as_str());
        match self.mode {
            // What is deleted is nobody's: only who asks for it gets it.
            Mode::Prefix if former::is_former(key) => {
                self.names.iter().any(|p| p.starts_with('%') && names(p))
            }
            _ if former::is_former(key) => false,
            Mode::All => true,
            Mode::Prefix => self.names.iter().any(names),
            Mode::Domain => match Owner::from_key(key) {
                Some(Owner::User(userid)) => {
                    let domain = userid.rsplit_once('@').map(|(_, d)| d);
                    self.has_domain(domain, ns)
                }
                Some(Owner::Shared { domain, .. }) => {
                    self.has_domain(Some(domain.as_str()).filter(|d| !d.is_empty()), ns)
                }
                Some(Owner::Server) | None => false,
            },
            Mode::Userid | Mode::Mailbox | Mode::File => false,
        }
    }

    fn has_domain(&self, domain: Option<&str>, ns: &Namespace) -> bool {
        let domain = domain.unwrap_or(&ns.defaultdomain);
        self.names.iter().any(|n| n == domain)
    }

    /// The keys under which the backup meant by `name` may be, best first.
    fn keys(&self, name: &str, ns: &Namespace) -> Result<Vec<String>> {
        match self.mode {
            Mode::Mailbox => {
                let internal = from_admin(name, ns)?;
                let parsed =
                    MboxName::parse(&internal, ns).map_err(|e| e.with_kind(Kind::Usage))?;
                let mut keys = vec![parsed.owner().key()];
                if parsed.userid().is_none() {
                    // Stores of the old tools have one for all of them.
                    keys.push("%SHARED".into());
                }
                Ok(keys)
            }
            Mode::Userid if name.starts_with('%') => Ok(vec![name.to_owned()]),
            Mode::Userid => {
                let userid = canonical_userid(name, ns).map_err(|e| e.with_kind(Kind::Usage))?;
                let mut keys = vec![userid];
                // The name of an INBOX names its user, unless a user is really called so.
                if let Ok(internal) = from_admin(name, ns) {
                    let inbox = MboxName::parse(&internal, ns).ok();
                    let inbox = inbox.filter(MboxName::is_inbox);
                    keys.extend(inbox.and_then(|n| n.userid().map(str::to_owned)));
                }
                Ok(keys)
            }
            _ => Ok(Vec::new()),
        }
    }
}

/// An error for a mailbox that is but a part of a backup.
fn whole(name: &str, ns: &Namespace) -> Result<()> {
    let parsed = MboxName::parse(&from_admin(name, ns)?, ns)?;
    let is_root = parsed.userid().is_none() && !parsed.is_deleted() && parsed.folders().len() == 1;
    if parsed.is_inbox() || is_root {
        return Ok(());
    }
    let whose = match parsed.userid() {
        Some(userid) => format!("all of user {userid}"),
        None => format!("all of the shared tree {}", parsed.owner().key()),
    };
    let what = format!("{name} is a mailbox; this is about {whose}: name that with -u");
    Err(usage(what))
}

fn lookup(catalog: &Catalog, keys: &[String]) -> Result<Option<Chosen>> {
    for key in keys {
        if let Some(path) = catalog.lookup(key)? {
            let key = Some(key.clone());
            return Ok(Some(Chosen { key, path }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cyrus::mboxname::VirtDomains;
    use std::path::Path;

    struct Store(PathBuf);

    impl Store {
        fn new(name: &str, keys: &[&str]) -> Store {
            let name = format!("cyr_backup-select-{}-{name}", std::process::id());
            let dir = std::env::temp_dir().join(name);
            std::fs::create_dir(&dir).unwrap();
            let store = Store(dir);
            let catalog = store.catalog();
            for key in keys {
                let path = format!("/b/{}", key.replace('/', "_"));
                catalog.set(key, Path::new(&path)).unwrap();
            }
            store
        }

        fn catalog(&self) -> Catalog {
            Catalog::open(&self.0.join("backups.db"), true)
        }

        /// Keys found, names missing.
        fn find(&self, words: &[&str]) -> (Vec<String>, Vec<String>) {
            let found = select(words).unwrap().find(&self.catalog(), &ns()).unwrap();
            let keys = found.chosen.into_iter().map(|c| c.name()).collect();
            let missing = found.missing.into_iter().map(|(n, _)| n).collect();
            (keys, missing)
        }
    }

    impl Drop for Store {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn ns() -> Namespace {
        Namespace {
            virtdomains: VirtDomains::Userid,
            defaultdomain: "home.example".into(),
            ..Namespace::default()
        }
    }

    fn matches(words: &[&str]) -> Matches {
        let mut o = Options::new();
        options(&mut o);
        o.parse(words).unwrap()
    }

    fn select(words: &[&str]) -> Result<Select> {
        Select::some(&matches(words))
    }

    const KEYS: [&str; 8] = [
        "%SHARED",
        "%SHARED//news",
        "%SHARED/x.example/lists",
        "anna",
        "ann.b",
        "carl@x.example",
        "dora@y.example",
        "user.eve",
    ];

    #[test]
    fn names_in_every_form_find_their_backup() {
        let store = Store::new("forms", &KEYS);
        for (words, key) in [
            (&["anna"][..], "anna"),
            (&["-u", "anna@home.example"], "anna"),
            (&["user/anna"], "anna"),
            (&["user.anna"], "anna"),
            (&["user.eve"], "user.eve"),
            (&["carl@x.example"], "carl@x.example"),
            (&["x.example!user.carl"], "carl@x.example"),
            (&["%SHARED//news"], "%SHARED//news"),
            (&["-m", "user/anna/Sent"], "anna"),
            (&["-m", "user.anna.Sent"], "anna"),
            (&["-m", "user/ann.b"], "ann.b"),
            (&["-m", "DELETED.user.anna.Sent.5F3A1B2C"], "anna"),
            (&["-m", "user/carl/a/b@x.example"], "carl@x.example"),
            (&["-m", "news/unix"], "%SHARED//news"),
            (&["-m", "lists@x.example"], "%SHARED/x.example/lists"),
            (&["-m", "other/tree"], "%SHARED"),
        ] {
            let expect = (vec![key.to_owned()], vec![]);
            assert_eq!(store.find(words), expect, "{words:?}");
        }
    }

    #[test]
    fn a_whole_backup_is_not_named_by_a_part_of_it() {
        let keys = |words: &[&str]| {
            let found = select(words).unwrap().candidates(&ns());
            found.map(|f| f.into_iter().map(|(_, keys)| keys).collect::<Vec<_>>())
        };
        for (words, key) in [
            (&["-m", "user/anna"][..], "anna"),
            (&["-m", "user.anna", "user/anna"], "anna"),
            (&["-m", "news"], "%SHARED//news"),
            (&["-m", "lists@x.example"], "%SHARED/x.example/lists"),
            (&["anna", "anna@home.example", "anna"], "anna"),
        ] {
            assert_eq!(keys(words).unwrap(), [[key]], "{words:?}");
        }
        for (name, whose) in [
            ("user/rob/Trash", "all of user rob"),
            ("DELETED.user.rob.5F3A1B2C", "all of user rob"),
            ("news/unix", "all of the shared tree %SHARED//news"),
        ] {
            let e = keys(&["-m", "user/anna", name]).unwrap_err();
            assert_eq!(e.kind(), Kind::Usage, "{name}");
            assert!(e.to_string().contains(whose), "{e}");
        }
    }

    #[test]
    fn sets_are_sorted_and_may_be_empty() {
        let store = Store::new("sets", &KEYS);
        let keys = |words: &[&str]| {
            let (keys, missing) = store.find(words);
            assert!(missing.is_empty());
            keys
        };
        let mut all = KEYS.map(str::to_owned).to_vec();
        all.sort();
        assert_eq!(keys(&["-A"]), all);
        assert_eq!(keys(&["-P", "ann"]), ["ann.b", "anna"]);
        assert_eq!(
            keys(&["-D", "x.example"]),
            ["%SHARED/x.example/lists", "carl@x.example"]
        );
        assert_eq!(
            keys(&["-D", "home.example"]),
            ["%SHARED//news", "ann.b", "anna", "user.eve"]
        );
        assert!(keys(&["-D", "nowhere"]).is_empty());
        assert!(keys(&["-P", "zz"]).is_empty());
        let none = Store::new("none", &[]);
        assert_eq!(none.find(&["-A"]), (vec![], vec![]));
    }

    #[test]
    fn each_backup_comes_once_and_the_missing_are_named() {
        let store = Store::new("once", &KEYS);
        let (keys, missing) = store.find(&["dora@y.example", "bert", "anna", "user/anna"]);
        assert_eq!(keys, ["dora@y.example", "anna"]);
        assert_eq!(missing, ["bert"]);
        let one = Select::one(&matches(&["-u"]), &["bert".into()]).unwrap().0;
        let e = one.find_one(&store.catalog(), &ns()).unwrap_err();
        assert_eq!(
            (e.kind(), e.to_string().as_str()),
            (Kind::NotFound, "bert: no backup")
        );
    }

    #[test]
    fn a_file_needs_no_catalogue() {
        let store = Store::new("file", &[]);
        std::fs::write(store.0.join("backups.db"), "rubbish").unwrap();
        assert_eq!(store.find(&["-f", "/b/x"]), (vec!["/b/x".into()], vec![]));
        let found = select(&["-A"]).unwrap().find(&store.catalog(), &ns());
        assert!(found.is_err());
        let found = select(&["anna"]).unwrap().find(&store.catalog(), &ns());
        let (name, e) = &found.unwrap().missing[0];
        assert_eq!((name.as_str(), e.kind()), ("anna", Kind::Damaged));
    }

    #[test]
    fn what_cannot_be_meant_is_usage() {
        for words in [&["-A", "anna"][..], &[], &["-D"], &["-u", "-m", "x"]] {
            let e = select(words).unwrap_err();
            assert_eq!(e.kind(), Kind::Usage, "{words:?}");
        }
        let all = Select::some_or_all(&matches(&[])).unwrap();
        assert_eq!(all.mode, Mode::All);
        assert!(Select::some_or_all(&matches(&["-u"])).is_err());
        for words in [&["-A"][..], &["-D"], &["-P"]] {
            assert!(Select::one(&matches(words), &["x".into()]).is_err());
        }
        assert!(Select::one(&matches(&[]), &[]).is_err());
        let store = Store::new("usage", &KEYS);
        for words in [&["-m", "news.unix"][..], &["@x"], &[""], &["-m", ""]] {
            let e = select(words).unwrap().find(&store.catalog(), &ns());
            assert_eq!(e.unwrap_err().kind(), Kind::Usage, "{words:?}");
        }
    }
}
