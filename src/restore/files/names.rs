//! File names for mailboxes: safe anywhere, readable, and two mailboxes never share one. Pure.
//!
//! A name is made of what the mailbox is called in words (its UTF-7 decoded), with every byte that
//! could mean something to a file system, a shell or a terminal written `%XX`: `/ \ : * ? " < > |`,
//! `%` itself, control, format and direction characters, a leading dot, dash, tilde or blank, a
//! trailing dot or blank; so are names that other systems keep for devices, and those of our own
//! files. What is longer than [`LONGEST`] bytes is cut and gets a hash. That mapping has an inverse
//! but for the cut ones. Names that differ in case only are told apart by a hash ([`Taken`]).

use crate::cyrus::mboxname::{MboxName, Namespace};
use crate::cyrus::utf7;
use crate::error::Result;
use crate::util::hex;
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// Bytes of one name, without the hash that a cut one gets.
const LONGEST: usize = 200;

/// Where mailboxes without an owner go. No user's name begins so: a `%` of theirs is written `%25`.
const SHARED: &str = "%shared";

/// Names that other systems keep for devices, whatever follows behind a dot.
const DEVICES: [&str; 6] = ["con", "prn", "aux", "nul", "conin$", "conout$"];

/// How folders lie in a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `anna/Sent/2026`; the INBOX is `anna/INBOX`.
    Nested,
    /// Maildir++: `anna/.Sent.2026`; the INBOX is `anna` itself.
    Dotted,
}

/// The place of an owner's things: the first component of everything of theirs.
pub fn owner(userid: &str) -> String {
    match userid {
        "" => SHARED.into(),
        _ => component(userid),
    }
}

/// The path of a mailbox below the top, its components joined by `/`. Fails for what is no mailbox
/// name.
pub fn path(internal: &str, ns: &Namespace, layout: Layout) -> Result<String> {
    let name = MboxName::parse(internal, ns)?;
    let top = match (name.userid(), name.domain()) {
        (Some(userid), _) => component(userid),
        (None, None) => SHARED.into(),
        (None, Some(domain)) => format!("{SHARED}@{}", component(domain)),
    };
    let folders = name.folders();
    let is_inbox = name.userid().is_some() && folders.is_empty();
    let below = match layout {
        Layout::Dotted if is_inbox => return Ok(top),
        Layout::Dotted => dotted(folders),
        Layout::Nested if is_inbox => "INBOX".into(),
        Layout::Nested => {
            let mut parts: Vec<String> = folders.iter().map(|f| part(f)).collect();
            if let Some(first) = parts.first_mut() {
                let ours = ["inbox", "sieve"]
                    .iter()
                    .any(|n| first.eq_ignore_ascii_case(n));
                if ours {
                    *first = escape_first(first);
                }
            }
            parts.join("/")
        }
    };
    Ok(format!("{top}/{below}"))
}

/// A mailbox part as one component. One that is no good UTF-7 keeps its letters, and its `&` is
/// escaped so that it is never taken for another.
fn part(part: &str) -> String {
    match utf7::decode(part) {
        Some(words) => escaped(&words, false),
        None => escaped(part, true),
    }
}

/// A name as one component of a path.
pub fn component(name: &str) -> String {
    escaped(name, false)
}

fn escaped(name: &str, is_raw: bool) -> String {
    let last = name.chars().count().saturating_sub(1);
    let mut out = String::new();
    for (at, c) in name.chars().enumerate() {
        let edge = (at == 0 && matches!(c, '.' | '-' | '~' | ' '))
            || (at == last && matches!(c, '.' | ' '));
        match c {
            '&' if is_raw => escape(c, &mut out),
            _ if edge || !is_safe(c) => escape(c, &mut out),
            _ => out.push(c),
        }
    }
    let lower = out.to_ascii_lowercase();
    let stem = lower.split('.').next().unwrap_or_default();
    let numbered = stem.len() == 4
        && (stem.starts_with("com") || stem.starts_with("lpt"))
        && stem.as_bytes()[3].is_ascii_digit();
    let ours = lower == "mbox" || lower.ends_with(".json") || lower.ends_with(".eml");
    if DEVICES.contains(&stem) || numbered || ours {
        out = escape_first(&out);
    }
    cut(out, name)
}

/// Folders of a Maildir++: UTF-7 as it is, with dots between.
fn dotted(folders: &[String]) -> String {
    let mut out = String::new();
    for folder in folders {
        out.push('.');
        let good = utf7::decode(folder).is_some();
        for c in folder.chars() {
            match c {
                '.' | '%' | '/' | '~' => escape(c, &mut out),
                '&' if !good => escape(c, &mut out),
                ' '..='~' => out.push(c),
                _ => escape(c, &mut out),
            }
        }
    }
    let whole = out.clone();
    cut(out, &whole)
}

fn is_safe(c: char) -> bool {
    match c {
        '/' | '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|' | '%' => false,
        ' '..='~' => true,
        // Blanks, joiners, directions, and what is no character.
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{2000}'..='\u{200f}' | '\u{2028}'..='\u{202f}' => {
            false
        }
        '\u{205f}'..='\u{206f}' | '\u{3000}' | '\u{feff}' | '\u{fff0}'..='\u{ffff}' => false,
        '\u{a0}' | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'.. => false,
        _ => !c.is_control(),
    }
}

fn escape(c: char, to: &mut String) {
    for b in c.encode_utf8(&mut [0; 4]).bytes() {
        to.push_str(&format!("%{b:02X}"));
    }
}

fn escape_first(name: &str) -> String {
    let mut chars = name.chars();
    let mut out = String::new();
    if let Some(first) = chars.next() {
        escape(first, &mut out);
    }
    out + chars.as_str()
}

/// A name that is short enough as it is; else its beginning and the hash of what it stands for.
fn cut(name: String, whole: &str) -> String {
    if name.len() <= LONGEST {
        return name;
    }
    let mut end = LONGEST - 17;
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    // No half of a %XX.
    if let Some(at) = name[..end].rfind('%').filter(|at| at + 3 > end) {
        end = at;
    }
    format!("{}~{}", &name[..end], hash(whole, 8))
}

fn hash(text: &str, bytes: usize) -> String {
    hex::encode(&Sha256::digest(text.as_bytes())[..bytes])
}

/// The paths given out so far; one that differs from another in case only gets a hash.
#[derive(Debug, Default)]
pub struct Taken {
    by_path: HashMap<String, String>,
}

impl Taken {
    /// The path for a mailbox that would like to have `path`: always the same for the same one.
    pub fn give(&mut self, path: String, internal: &str) -> String {
        let mut path = path;
        loop {
            let folded = path.to_lowercase();
            match self.by_path.get(&folded) {
                Some(of) if of != internal => path = format!("{path}~{}", hash(internal, 4)),
                Some(_) => return path,
                None => {
                    self.by_path.insert(folded, internal.to_owned());
                    return path;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(name: &str) -> String {
        path(name, &Namespace::default(), Layout::Nested).unwrap()
    }

    fn maildir(name: &str) -> String {
        path(name, &Namespace::default(), Layout::Dotted).unwrap()
    }

    #[test]
    fn where_mailboxes_go() {
        for (name, a, b) in [
            ("user.anna", "anna/INBOX", "anna"),
            ("user.anna.Sent.2026", "anna/Sent/2026", "anna/.Sent.2026"),
            ("user.anna.INBOX", "anna/%49NBOX", "anna/.INBOX"),
            ("user.anna.Sieve", "anna/%53ieve", "anna/.Sieve"),
            ("user.anna.a.sieve", "anna/a/sieve", "anna/.a.sieve"),
            (
                "user.anna.Entw&APw-rfe",
                "anna/Entwürfe",
                "anna/.Entw&APw-rfe",
            ),
            ("user.a^b.c^d", "a.b/c.d", "a.b/.c%2Ed"),
            (
                "example.com!user.anna.x",
                "anna@example.com/x",
                "anna@example.com/.x",
            ),
            ("shared.news", "%shared/shared/news", "%shared/.shared.news"),
            (
                "example.com!shared",
                "%shared@example.com/shared",
                "%shared@example.com/.shared",
            ),
        ] {
            assert_eq!(nested(name), a, "{name}");
            assert_eq!(maildir(name), b, "{name}");
        }
        assert_eq!(owner(""), "%shared");
        assert_eq!(owner("%shared"), "%25shared");
    }

    #[test]
    fn hostile_names() {
        for (name, component_is) in [
            ("..", "%2E%2E"),
            (".", "%2E"),
            ("...x", "%2E..x"),
            ("a/b", "a%2Fb"),
            ("..\\..\\x", "%2E.%5C..%5Cx"),
            ("con", "%63on"),
            ("CON.txt", "%43ON.txt"),
            ("com1", "%63om1"),
            ("comx", "comx"),
            ("nul", "%6Eul"),
            ("a:b*c?d\"e<f>g|h%i", "a%3Ab%2Ac%3Fd%22e%3Cf%3Eg%7Ch%25i"),
            ("-rf", "%2Drf"),
            ("~root", "%7Eroot"),
            (" a ", "%20a%20"),
            ("a\nb\x07", "a%0Ab%07"),
            ("a\u{202e}b", "a%E2%80%AEb"),
            ("mailbox.json", "%6Dailbox.json"),
            ("Mbox", "%4Dbox"),
            ("0000000001.eml", "%30000000001.eml"),
            ("日本", "日本"),
            ("a & b", "a & b"),
        ] {
            assert_eq!(component(name), component_is, "{name}");
        }
        // Bad UTF-7 is not taken for what it looks like.
        assert_eq!(nested("user.a.x&y"), "a/x%26y");
        assert_eq!(nested("user.a.x&-y"), "a/x&y");
        assert_eq!(maildir("user.a.x&y"), "a/.x%26y");
        assert_eq!(nested("user.a.&AC8-x"), "a/%26AC8-x");
        assert_eq!(nested("user.a.&AC4ALg-"), "a/%26AC4ALg-");
        assert!(path("user..", &Namespace::default(), Layout::Nested).is_ok());
        assert!(path("", &Namespace::default(), Layout::Nested).is_err());
    }

    #[test]
    fn long_names_are_cut_and_stay_different() {
        let long = |end: &str| format!("user.a.{}{end}", "x".repeat(900));
        for layout in [Layout::Nested, Layout::Dotted] {
            let of = |end| path(&long(end), &Namespace::default(), layout).unwrap();
            let one = of("1");
            assert!(one.len() <= 2 + LONGEST, "{one}");
            assert_ne!(one, of("2"));
            assert_eq!(one, of("1"));
        }
        let cut = component(&"\u{1}".repeat(255));
        assert!(cut.len() <= LONGEST && cut.contains("%01~"), "{cut}");
        let wide = component(&"語".repeat(85));
        assert!(wide.len() <= LONGEST && wide.starts_with('語'), "{wide}");
    }

    #[test]
    fn names_differ_however_they_are_written() {
        let mut taken = Taken::default();
        let one = taken.give(nested("user.a.Sent"), "user.a.Sent");
        let two = taken.give(nested("user.a.sent"), "user.a.sent");
        assert_eq!(one, "a/Sent");
        assert!(two.starts_with("a/sent~"), "{two}");
        assert_eq!(taken.give(nested("user.a.sent"), "user.a.sent"), two);
        assert_eq!(taken.give(nested("user.a.Sent"), "user.a.Sent"), one);
        let all = [
            "user.a.x^y",
            "user.a.x%2Ey",
            "user.a.x.y",
            "user.a.x&-y",
            "user.a.x&y",
            "user.a.%26",
            "user.a.&",
            "user.a.INBOX",
            "user.a",
            "user.a.%49NBOX",
            "user.a.con",
            "user.a.%63on",
            "user.a.&AAA-",
        ];
        for layout in [Layout::Nested, Layout::Dotted] {
            let ns = Namespace::default();
            let mut paths: Vec<String> =
                all.iter().map(|n| path(n, &ns, layout).unwrap()).collect();
            paths.sort();
            paths.dedup();
            assert_eq!(paths.len(), all.len(), "{paths:?}");
        }
    }
}
