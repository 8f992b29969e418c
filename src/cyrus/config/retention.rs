//! How long what was deleted is kept: `backup_retention`, and for whom it is otherwise:
//!
//! ```text
//! backup_retention: 30d
//! backup_retention_for: @example.com=90d, anna=365d, *:Trash=3d, anna:Projects/*=forever
//! ```
//!
//! A rule is `WHO[:FOLDER]=TIME`. WHO is a userid, `@domain` or `*` (everybody); FOLDER a pattern
//! for the mailbox below the user (`INBOX` for the INBOX itself, which may also stand before what is below
//! it), in which `*` stands for anything and `?` for one character, without regard to case; letters that
//! are not ASCII as people write them, or as the name has them (modified UTF-7). The separator is the
//! server's, or `/`. A userid or domain may be given with or without the default domain. Rules are
//! separated by commas (write `?` for one in a name, and for `=`). The most exact rule wins: a user before a
//! domain before everybody; within these one with a folder before one without, a name before a
//! pattern, and of patterns that in which more is said; the first of equals. TIME is a duration as
//! elsewhere, a bare number days; `forever` never expires.
#![forbid(unsafe_code)]

use super::parse;
use crate::cyrus::mboxname::{MboxName, Namespace};
use crate::cyrus::utf7;
use crate::error::{Error, Kind, Result};
use std::cmp::Reverse;

/// Seconds; `None` is for ever.
type Time = Option<i64>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Who {
    User(String),
    Domain(String),
    All,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    who: Who,
    folder: Option<String>,
    time: Time,
}

/// The rules of one configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    general: Time,
    rules: Vec<Rule>,
}

/// What applies to one user or shared tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRetention {
    /// For folders without a rule.
    general: Time,
    /// Pattern, as it is compared, and time; the first that fits decides.
    folders: Vec<(Vec<char>, Time)>,
}

impl Retention {
    /// Reads the rules; `general` is for all that have none, in seconds. `Kind::Config` names the
    /// rule that is wrong.
    pub fn parse(general: Option<i64>, text: &str) -> Result<Retention> {
        let mut rules = Vec::new();
        for text in text.split(',').map(str::trim).filter(|t| !t.is_empty()) {
            let rule = rule(text).ok_or_else(|| {
                let why = "not WHO[:FOLDER]=TIME with a userid, @domain or * as WHO, a time like 30d \
                           or forever, and commas between rules: backup_retention_for";
                Error::new(Kind::Config, format!("{why}: {text:?}"))
            })?;
            rules.push(rule);
        }
        Ok(Retention { general, rules })
    }

    /// The same on a server that makes userids small letters.
    pub fn with_small_userids(mut self) -> Retention {
        for rule in &mut self.rules {
            if let Who::User(id) = &mut rule.who {
                id.make_ascii_lowercase();
            }
        }
        self
    }

    /// What applies to a user, or to a shared tree (`None`) of a domain; without one it is the default
    /// domain's.
    pub fn of(&self, userid: Option<&str>, domain: Option<&str>, ns: &Namespace) -> UserRetention {
        let default = ns.defaultdomain.as_str();
        let domain = domain.or_else(|| userid.and_then(|id| Some(id.rsplit_once('@')?.1)));
        let domain = domain.unwrap_or(default);
        let short = |id: &str| match id.rsplit_once('@') {
            Some((local, domain)) if domain.eq_ignore_ascii_case(default) => local.to_owned(),
            Some((local, domain)) => format!("{local}@{}", domain.to_ascii_lowercase()),
            None => id.to_owned(),
        };
        let rank = |who: &Who| match who {
            Who::User(id) => userid.is_some_and(|u| short(u) == short(id)).then_some(0),
            Who::Domain(name) => name.eq_ignore_ascii_case(domain).then_some(1),
            Who::All => Some(2),
        };
        let mut mine: Vec<(i32, &Rule)> = self
            .rules
            .iter()
            .filter_map(|rule| Some((rank(&rule.who)?, rule)))
            .collect();
        mine.sort_by_cached_key(|(rank, rule)| {
            let said = rule.folder.as_deref().map(said);
            (*rank, said.is_none(), Reverse(said))
        });
        let mut folders = Vec::new();
        let mut general = self.general;
        for (_, rule) in mine {
            match &rule.folder {
                Some(pattern) => {
                    let mut pattern = plain(pattern);
                    if !ns.unixhierarchysep {
                        // No name has a dot there.
                        pattern
                            .iter_mut()
                            .filter(|c| **c == '.')
                            .for_each(|c| *c = '/');
                    }
                    folders.push((pattern, rule.time));
                }
                None => {
                    // What is less exact than this has no more to say.
                    general = rule.time;
                    break;
                }
            }
        }
        UserRetention { general, folders }
    }
}

impl UserRetention {
    /// The same time for all folders.
    pub fn always(time: Option<i64>) -> UserRetention {
        UserRetention {
            general: time,
            folders: Vec::new(),
        }
    }

    /// How long what is deleted from a mailbox is kept, in seconds; `None` is for ever.
    pub fn mailbox(&self, name: &MboxName) -> Option<i64> {
        if self.folders.is_empty() {
            return self.general;
        }
        let (path, is_inbox) = match name.folders() {
            [] => ("INBOX".to_owned(), true),
            parts => (parts.join("/"), false),
        };
        let path = plain(&path);
        let fits = |pattern: &[char]| {
            matches(pattern, &path) || !is_inbox && matches(below_inbox(pattern), &path)
        };
        let rule = self.folders.iter().find(|(pattern, _)| fits(pattern));
        rule.map_or(self.general, |(_, time)| *time)
    }

    /// How long what belongs to no mailbox is kept.
    pub fn general(&self) -> Option<i64> {
        self.general
    }

    /// The longest of all, for which history stays exact.
    pub fn longest(&self) -> Option<i64> {
        let times = self.folders.iter().map(|(_, time)| *time);
        times.fold(self.general, |a, b| Some(a?.max(b?)))
    }
}

fn rule(text: &str) -> Option<Rule> {
    let (what, time) = text.rsplit_once('=')?;
    let (who, folder) = match what.trim().split_once(':') {
        Some((who, folder)) => (who.trim(), Some(folder.trim())),
        None => (what.trim(), None),
    };
    // Most likely a comma was forgotten.
    let is_name = |c: char| !c.is_whitespace() && c != '=';
    if !who.chars().all(is_name) || folder.is_some_and(|f| f.contains('=')) {
        return None;
    }
    // Patterns are for folders: one here would fit nobody.
    let is_named = |name: &str| !name.is_empty() && !name.contains(['*', '?', '%']);
    let who = match who {
        "*" => Who::All,
        id => match id.strip_prefix('@') {
            Some(domain) if is_named(domain) && !domain.contains('@') => {
                Who::Domain(domain.to_owned())
            }
            None if is_named(id) => Who::User(id.to_owned()),
            _ => return None,
        },
    };
    let time = match time.trim() {
        "forever" => None,
        time => Some(parse::duration(time, b'd').filter(|t| *t > 0)?),
    };
    let folder = match folder {
        Some("") => return None,
        folder => folder.map(str::to_owned),
    };
    Some(Rule { who, folder, time })
}

/// How exact a pattern is: whether it is a name, and how many characters it says.
fn said(pattern: &str) -> (bool, usize) {
    let pattern = plain(pattern);
    let stands_for = |c: &&char| matches!(c, '*' | '?');
    let said = pattern.len() - pattern.iter().filter(stands_for).count();
    (said == pattern.len(), said)
}

/// A pattern without the INBOX before it, below which people see their folders.
fn below_inbox(pattern: &[char]) -> &[char] {
    let inbox: Vec<char> = "inbox/".chars().collect();
    pattern.strip_prefix(inbox.as_slice()).unwrap_or(pattern)
}

/// A name or pattern as it is compared: as people write it, in small letters.
fn plain(text: &str) -> Vec<char> {
    let text = utf7::decode(text).unwrap_or_else(|| text.to_owned());
    text.chars().flat_map(char::to_lowercase).collect()
}

/// Whether a name fits a pattern with `*` and `?`.
fn matches(pattern: &[char], name: &[char]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where to go back to: behind the last star, and the name from where it stands for less.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                p += 1;
                star = Some((p, n));
            }
            Some(&c) if c == '?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match &mut star {
                Some((behind, from)) => {
                    *from += 1;
                    (p, n) = (*behind, *from);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cyrus::mboxname::Namespace;

    const DAY: i64 = 86_400;

    fn days(rules: &str, userid: &str, mailbox: &str) -> Option<i64> {
        let all = Retention::parse(Some(7 * DAY), rules).unwrap();
        let ns = Namespace::default();
        let name = MboxName::parse(mailbox, &ns).unwrap();
        let ns = Namespace {
            defaultdomain: "home.org".into(),
            ..ns
        };
        Some(all.of(Some(userid), None, &ns).mailbox(&name)? / DAY)
    }

    #[test]
    fn the_most_exact_rule_wins() {
        let rules = "*:Trash=1d, @ex.org=90d,anna@ex.org=30, anna@ex.org:Proj*=forever, *:Junk=2d";
        assert_eq!(days("", "bob", "user.bob"), Some(7));
        assert_eq!(days(rules, "bob", "user.bob"), Some(7));
        assert_eq!(days(rules, "bob", "user.bob.trash"), Some(1));
        assert_eq!(days(rules, "bob", "user.bob.Trash.Old"), Some(7));
        assert_eq!(days(rules, "eve@ex.org", "user.eve"), Some(90));
        assert_eq!(days(rules, "anna@ex.org", "user.anna"), Some(30));
        assert_eq!(days(rules, "anna@ex.org", "user.anna.Projects.A"), None);
        // A rule for the whole domain or user is more exact than one for everybody's folder.
        assert_eq!(days(rules, "eve@ex.org", "user.eve.Trash"), Some(90));
        assert_eq!(days("*:INBOX=2d", "bob", "user.bob"), Some(2));
        assert_eq!(days("*=3d", "bob", "user.bob"), Some(3));
        // The default domain is meant where none is written.
        let rules = "@home.org=5d, eve@home.org=6d, *:Trash=1d";
        assert_eq!(days(rules, "bob", "user.bob"), Some(5));
        assert_eq!(days(rules, "bob@ex.org", "user.bob"), Some(7));
        assert_eq!(days(rules, "eve", "user.eve"), Some(6));
        assert_eq!(days("eve=6d", "eve@home.org", "user.eve"), Some(6));
        let rules = "*:Trash=1d, @ex.org=90d";
        let deleted = "DELETED.user.bob.Trash.5F000000";
        assert_eq!(days(rules, "bob", deleted), Some(1));
    }

    #[test]
    fn patterns_are_for_folders_alone() {
        for bad in [
            "*@ex.org=9d",
            "dor*=9d",
            "@*=9d",
            "@@ex=9d",
            "a?=9d",
            "@a@b=9d",
            "%=9d",
            "@=9d",
            "=9d",
        ] {
            let e = Retention::parse(None, bad).unwrap_err();
            assert_eq!(e.kind(), Kind::Config);
            assert!(e.to_string().contains(bad), "{e}");
        }
        for good in ["*=9d", "@ex.org=9d", "a@ex.org=9d", "a:*=9d", "*:a?=9d"] {
            assert!(Retention::parse(None, good).is_ok(), "{good}");
        }
    }

    #[test]
    fn a_name_is_more_exact_than_a_pattern() {
        let rules = "*:*=1d, *:A*=2d, *:INBOX=forever, *:Archive=300d, *:Arch*=3d, *:?rch*=4d";
        for (folder, time) in [
            ("", None),
            (".Archive", Some(300)),
            (".Archives", Some(3)),
            (".Orchid", Some(4)),
            (".Apple", Some(2)),
            (".Pear", Some(1)),
        ] {
            assert_eq!(
                days(rules, "bob", &format!("user.bob{folder}")),
                time,
                "{folder}"
            );
        }
    }

    #[test]
    fn names_are_written_as_people_see_them() {
        assert_eq!(days("*:INBOX/Trash=1d", "bob", "user.bob.Trash"), Some(1));
        assert_eq!(days("*:INBOX/*=1d", "bob", "user.bob.A.B"), Some(1));
        assert_eq!(days("*:INBOX/*=1d", "bob", "user.bob"), Some(7));
        assert_eq!(days("*:INBOX/A=1d", "bob", "user.bob.INBOX.A"), Some(1));
        assert_eq!(days("@EX.Org=1d", "eve@ex.org", "user.eve"), Some(1));
        assert_eq!(days("eve@EX.Org=1d", "eve@ex.org", "user.eve"), Some(1));
        assert_eq!(days("@HOME.org=1d", "eve", "user.eve"), Some(1));
        assert_eq!(days("*:Sent.*=1d", "bob", "user.bob.Sent.A"), Some(7));
        let dots = Namespace {
            unixhierarchysep: false,
            ..Namespace::default()
        };
        let rules = Retention::parse(None, "Bob:Sent.*=1d").unwrap();
        let name = MboxName::parse("user.bob.Sent.A", &dots).unwrap();
        let of = |rules: &Retention| rules.of(Some("bob"), None, &dots).mailbox(&name);
        assert_eq!(of(&rules), None);
        assert_eq!(of(&rules.with_small_userids()), Some(DAY));
    }

    #[test]
    fn the_longest_counts_for_history() {
        let of = |rules| {
            let all = Retention::parse(Some(DAY), rules).unwrap();
            all.of(Some("anna"), None, &Namespace::default()).longest()
        };
        assert_eq!(of("*:Trash=1h"), Some(DAY));
        assert_eq!(of("*:Trash=2d"), Some(2 * DAY));
        assert_eq!(of("bob=9d"), Some(DAY));
        assert_eq!(of("anna:A=forever"), None);
        assert_eq!(
            Retention::parse(None, "")
                .unwrap()
                .of(None, None, &Namespace::default())
                .longest(),
            None
        );
    }

    #[test]
    fn bad_rules_are_named() {
        for bad in [
            "anna",
            "anna=",
            "=3d",
            "anna=x",
            "anna=0",
            "anna=-1d",
            "@=1d",
            "a:=1d",
            "anna=1d bert=2d",
            "anna bert=2d",
            "anna:Trash=1d bert=2d",
            "anna:a=b=2d",
        ] {
            let e = Retention::parse(None, &format!("bob=1d, {bad}")).unwrap_err();
            assert_eq!(e.kind(), Kind::Config);
            assert!(e.to_string().contains(&format!("{bad:?}")), "{e}");
        }
    }

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("Trash", "TRASH", true),
            ("Entwürfe", "ENTW&ANw-RFE", true),
            ("Entw&APw-rfe", "Entw&APw-rfe", true),
            ("Entw?rfe", "Entw&APw-rfe", true),
            ("*&*", "R&-D", true),
            ("R&D", "R&-D", true),
            ("Trash*", "Trash/a/b", true),
            ("*/Trash", "a/b/Trash", true),
            ("*/Trash", "Trash", false),
            ("A?C*D*", "AbCxxDxD", true),
            ("A?C*D", "AbCxxDx", false),
            ("*", "", true),
            ("", "a", false),
            (
                "a*a*a*a*a*a*a*a*b",
                "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
                false,
            ),
        ] {
            assert_eq!(
                matches(&plain(pattern), &plain(name)),
                fits,
                "{pattern} {name}"
            );
        }
    }
}
