//! How IMAP writes what a plan holds: mailbox names, flags, dates. Pure.
//!
//! A mailbox `user.anna.A^b.C` is `PREFIX A^b SEP C` in the namespace of the user who is logged in,
//! or in that of shared mailboxes. A dot inside a part is a dot, unless dots separate: then it is
//! `^`, as Cyrus has it; any other separator inside a part becomes `_`. Of two mailboxes that would
//! get one name the second gets a hash. A name that the server does not take is tried again without
//! the characters that some do not like.

use crate::client::imap::response::Token;
use crate::cyrus::dlist::Value;
use crate::cyrus::mboxname::{MboxName, Namespace};
use crate::cyrus::sync::Record;
use crate::cyrus::utf7;
use crate::util::hex;
use crate::util::time::{Timestamp, civil};
use crate::util::when::{self, Day};
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// The flags every server has, but `\Recent`.
const SYSTEM: [&str; 5] = ["\\Answered", "\\Flagged", "\\Deleted", "\\Seen", "\\Draft"];

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// One namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    /// What every name in it begins with.
    pub prefix: String,
    /// Between the parts of a name; empty if there are no parts.
    pub separator: String,
}

/// The namespaces of a server, as far as there is use for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spaces {
    /// The user's own.
    pub personal: Space,
    /// Mailboxes of nobody, if there are any.
    pub shared: Option<Space>,
}

impl Spaces {
    /// Reads the data of a NAMESPACE response.
    pub fn read(data: &[Token]) -> Option<Spaces> {
        let space = |t: Option<&Token>| {
            let first = t?.list()?.first()?.list()?;
            Some(Space {
                prefix: first.first()?.text()?.to_owned(),
                separator: first.get(1)?.text().unwrap_or_default().to_owned(),
            })
        };
        Some(Spaces {
            personal: space(data.get(1))?,
            shared: space(data.get(3)),
        })
    }
}

/// Names given out so far.
#[derive(Debug, Default)]
pub struct Names {
    given: HashMap<String, String>,
    /// Of mailboxes whose name the server did not take.
    instead: HashMap<String, String>,
}

impl Names {
    /// The name at the server for an internal one, or why there is none. `userid` is who is logged
    /// in.
    pub fn give(
        &mut self,
        internal: &str,
        userid: &str,
        ns: &Namespace,
        spaces: &Spaces,
    ) -> Result<String, String> {
        let name = MboxName::parse(internal, ns).map_err(|e| e.to_string())?;
        let space = match name.userid() {
            Some(owner) if owner == userid => &spaces.personal,
            Some(owner) => return Err(format!("is {owner}'s, and {userid} is logged in")),
            None => spaces
                .shared
                .as_ref()
                .ok_or("the server has no shared mailboxes")?,
        };
        if name.is_inbox() {
            return Ok("INBOX".into());
        }
        if let Some(name) = self.instead.get(internal) {
            return Ok(name.clone());
        }
        let separator = space.separator.as_str();
        let parts: Vec<String> = name.folders().iter().map(|p| part(p, separator)).collect();
        if separator.is_empty() && parts.len() > 1 {
            return Err("the server has no folders in folders".into());
        }
        let wished = format!("{}{}", space.prefix, parts.join(separator));
        Ok(self.free(wished, internal))
    }

    /// Another name for a mailbox whose name the server does not take: without the characters that
    /// some do not like. `None` if it has none of those.
    pub fn instead(&mut self, name: &str, internal: &str, spaces: &Spaces) -> Option<String> {
        let separates = |c: char| {
            let both = [Some(&spaces.personal), spaces.shared.as_ref()];
            both.into_iter().flatten().any(|s| s.separator.contains(c))
        };
        let plain: String = name
            .chars()
            .map(|c| match c {
                c if separates(c) => c,
                '.' => '^',
                '/' | '\\' | '*' | '%' | '"' | '~' | '#' => '_',
                c => c,
            })
            .collect();
        if plain == name {
            return None;
        }
        let plain = self.free(plain, internal);
        self.instead.insert(internal.to_owned(), plain.clone());
        Some(plain)
    }

    /// A name that no other mailbox has.
    fn free(&mut self, wished: String, internal: &str) -> String {
        let is_taken = |name: &str| match self.given.get(name) {
            Some(of) => of != internal,
            // INBOX in any case is the INBOX.
            None => name.eq_ignore_ascii_case("INBOX"),
        };
        let mut given = wished;
        while is_taken(&given) {
            given = format!("{given}_{}", hex::encode(&Sha256::digest(internal)[..4]));
        }
        self.given.insert(given.clone(), internal.to_owned());
        given
    }
}

fn part(part: &str, separator: &str) -> String {
    let text = match utf7::decode(part) {
        Some(_) => part.to_owned(),
        None => utf7::encode(part),
    };
    match separator {
        "" => text,
        "." => text.replace('.', "^"),
        other => text.replace(other, "_"),
    }
}

/// Flags that IMAP can say: system flags, and keywords that are atoms.
pub fn flags(r: &Record) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for flag in r.flags.iter().filter_map(Value::as_str) {
        let system = SYSTEM.iter().find(|s| s.eq_ignore_ascii_case(flag));
        let is_atom = !flag.is_empty()
            && flag
                .bytes()
                .all(|b| b.is_ascii_graphic() && !b"(){%*\"\\]".contains(&b));
        match system {
            Some(system) => out.push((*system).into()),
            None if is_atom => out.push(flag.into()),
            None => {}
        }
    }
    out.sort();
    out.dedup();
    out
}

/// What a mailbox lets flags be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permanent {
    /// `None`: the server does not say.
    listed: Option<Vec<String>>,
}

impl Permanent {
    /// From the list in `[PERMANENTFLAGS (...)]`.
    pub fn new(list: &[Token]) -> Permanent {
        let words = list.iter().filter_map(Token::text).map(str::to_owned);
        Permanent {
            listed: Some(words.collect()),
        }
    }

    /// Whether a message can keep this flag.
    pub fn keeps(&self, flag: &str) -> bool {
        let Some(listed) = &self.listed else {
            return true;
        };
        let any = !flag.starts_with('\\') && listed.iter().any(|l| l == "\\*");
        any || listed.iter().any(|l| l.eq_ignore_ascii_case(flag))
    }
}

/// `26-Nov-2026 16:45:28 +0000`; `None` for years that IMAP has not.
pub fn date(secs: i64) -> Option<String> {
    // Before the sum of days overflows.
    if !(-62_135_596_800..=253_402_300_799).contains(&secs) {
        return None;
    }
    let (y, mo, d, h, mi, s) = civil(Timestamp(secs));
    let month = MONTHS[mo as usize - 1];
    Some(format!("{d:2}-{month}-{y:04} {h:02}:{mi:02}:{s:02} +0000"))
}

/// Reads INTERNALDATE.
pub fn parse_date(text: &str) -> Option<i64> {
    let (date, time) = text.trim().split_once(' ')?;
    let mut parts = date.split('-');
    let (day, month, year) = (parts.next()?, parts.next()?, parts.next()?);
    let at = MONTHS.iter().position(|m| m.eq_ignore_ascii_case(month))?;
    let text = format!("{year}-{:02}-{day} {time}", at + 1);
    let parsed = when::parse(&text, Timestamp(0), &|_| 0, Day::Begins);
    parsed.ok().map(|t| t.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::imap::response::{Piece, tokens};

    fn spaces(line: &str) -> Spaces {
        Spaces::read(&tokens(&[Piece::Line(line.as_bytes().to_vec())])).unwrap()
    }

    #[test]
    fn names_at_other_servers() {
        let dovecot = spaces("NAMESPACE ((\"\" \"/\")) NIL NIL");
        let courier = spaces("NAMESPACE ((\"INBOX.\" \".\")) NIL ((\"shared.\" \".\"))");
        let flat = spaces("NAMESPACE ((\"\" NIL)) NIL NIL");
        let ns = Namespace::default();
        let mut names = Names::default();
        let mut give = |n: &str, s: &Spaces| names.give(n, "a.b", &ns, s);
        for (internal, one, two) in [
            ("user.a^b", "INBOX", "INBOX"),
            ("user.a^b.Sent.x", "Sent/x", "INBOX.Sent.x"),
            ("user.a^b.c^d", "c.d", "INBOX.c^d"),
            (
                "user.a^b.Entw&APw-rfe",
                "Entw&APw-rfe",
                "INBOX.Entw&APw-rfe",
            ),
            ("user.a^b.x&y", "x&-y", "INBOX.x&-y"),
        ] {
            assert_eq!(give(internal, &dovecot).unwrap(), one);
            assert_eq!(give(internal, &courier).unwrap(), two);
        }
        assert_eq!(give("shared.x", &courier).unwrap(), "shared.shared.x");
        assert!(give("shared.x", &dovecot).is_err());
        assert!(
            give("user.other", &dovecot)
                .unwrap_err()
                .contains("other's")
        );
        assert!(give("user.a^b.c.d", &flat).is_err());
        assert_eq!(give("user.a^b.c/d", &dovecot).unwrap(), "c_d");
        let second = give("user.a^b.c_d", &dovecot).unwrap();
        assert!(second.starts_with("c_d_"), "{second}");
        assert_eq!(give("user.a^b.c_d", &dovecot).unwrap(), second);
        let other = names.instead("c.d/e#", "user.a^b.c^d.e#", &dovecot);
        assert_eq!(other.as_deref(), Some("c^d/e_"));
        assert_eq!(names.instead("c/d", "user.a^b.c.d", &dovecot), None);
        let mut give = |n: &str, s: &Spaces| names.give(n, "a.b", &ns, s);
        assert_eq!(give("user.a^b.c^d.e#", &dovecot).unwrap(), "c^d/e_");
        let inbox = give("user.a^b.inbox", &dovecot).unwrap();
        assert!(inbox.starts_with("inbox_"), "{inbox}");
        assert_eq!(give("user.a^b.inbox", &courier).unwrap(), "INBOX.inbox");
    }

    #[test]
    fn dates_both_ways() {
        for (secs, text) in [
            (0, " 1-Jan-1970 00:00:00 +0000"),
            (1_795_711_528, "26-Nov-2026 16:45:28 +0000"),
            (-1, "31-Dec-1969 23:59:59 +0000"),
        ] {
            assert_eq!(date(secs).as_deref(), Some(text));
            assert_eq!(parse_date(text), Some(secs));
        }
        assert_eq!(
            parse_date("26-Nov-2026 17:45:28 +0100"),
            Some(1_795_711_528)
        );
        assert_eq!(parse_date(" 1-Jan-2000 00:00:00 -0330"), Some(946_697_400));
        assert_eq!(date(i64::MIN), None);
        assert_eq!(date(i64::MAX), None);
        for bad in ["", "x", "1-Foo-2000 00:00:00 +0000", "1-Jan-2000"] {
            assert_eq!(parse_date(bad), None, "{bad}");
        }
    }

    #[test]
    fn flags_that_may_be_kept() {
        let words = |list: &[&str]| {
            let list = list.iter().map(|w| Token::Text(w.as_bytes().to_vec()));
            Permanent::new(&list.collect::<Vec<_>>())
        };
        let some = words(&["\\Seen", "$A"]);
        assert!(some.keeps("\\seen") && some.keeps("$a"));
        assert!(!some.keeps("$b") && !some.keeps("\\Draft"));
        assert!(words(&["\\Seen", "\\*"]).keeps("$b"));
        assert!(!words(&["\\*"]).keeps("\\Seen"));
        assert!(Permanent::default().keeps("$b"));
    }
}
