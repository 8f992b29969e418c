//! Mailbox names, user ids and the backup each belongs to.
//!
//! On the wire and in the log a name has the internal form `[domain!]part.part.part`, a literal dot
//! in a part written `^` (Cyrus `imap/mboxname.c`). People see the admin form, `user/fred/Sent@dom`
//! with `unixhierarchysep`. A [`MboxName`] is parsed once and then trusted; which backup it goes to
//! is its [`Owner`]. The rules for parsing do not depend on `virtdomains`.
//!
//! Names from the wire have passed no check: they may hold `/`, spaces, `..`, anything. Refused are
//! only the few that could not be told from another name, that begin with our own `%`, or that
//! hold control bytes. A name under the deleted prefix whose last part is no time is not refused,
//! for a refusal would block the sender's queue: it keeps that part as a folder and its owner.
#![forbid(unsafe_code)]

use crate::error::{Error, Kind, Result};

/// The longest internal name, in bytes: Cyrus' buffer including the deleted decoration.
pub const MAX_NAME_BYTES: usize = 1024;
/// The longest user id, in bytes; Cyrus itself stops at 80.
pub const MAX_USERID_BYTES: usize = 255;
/// Begins every key of `backups.db` that is not a user id.
pub const RESERVED: char = '%';

const SHARED: &str = "%SHARED/";

/// The meaning of `virtdomains`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VirtDomains {
    /// No domains: `@` is a letter like any other in an admin name.
    Off,
    /// The domain comes from the user id.
    Userid,
    /// The domain comes from the user id or the server's address.
    On,
}

/// The options of imapd.conf that say how names are read and shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// The domain that is left out of names.
    pub defaultdomain: String,
    /// First part of deleted mailboxes, usually `DELETED`.
    pub deletedprefix: String,
    /// Shown separator is `/` rather than `.`.
    pub unixhierarchysep: bool,
    /// Owners see their folders beside INBOX; admins see no difference.
    pub altnamespace: bool,
    /// Whether `@domain` is split off an admin name.
    pub virtdomains: VirtDomains,
}

impl Default for Namespace {
    /// What Cyrus does when imapd.conf says nothing.
    fn default() -> Namespace {
        Namespace {
            defaultdomain: "internal".into(),
            deletedprefix: "DELETED".into(),
            unixhierarchysep: true,
            altnamespace: true,
            virtdomains: VirtDomains::Off,
        }
    }
}

impl Namespace {
    fn foreign_domain<'a>(&self, domain: &'a str) -> Option<&'a str> {
        (domain != self.defaultdomain).then_some(domain)
    }
}

/// A mailbox name, split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MboxName {
    internal: String,
    domain: Option<String>,
    /// All parts, unescaped.
    parts: Vec<String>,
    /// Which of `parts` are folders.
    folders: std::ops::Range<usize>,
    userid: Option<String>,
    /// Begins with the deleted prefix, whether or not a time ends it.
    decorated: bool,
    deleted: Option<i64>,
}

impl MboxName {
    /// Splits an internal name.
    ///
    /// `Kind::Protocol` for names that are empty, longer than [`MAX_NAME_BYTES`], hold control
    /// bytes, have an empty domain or one with a slash, or an owner that could not be a key.
    pub fn parse(internal: &str, ns: &Namespace) -> Result<MboxName> {
        check_bytes(internal, MAX_NAME_BYTES, "mailbox name")?;
        let (domain, rest) = match internal.split_once('!') {
            Some((domain, rest)) => (Some(domain), rest),
            None => (None, internal),
        };
        if domain.is_some_and(|d| d.is_empty() || d.contains('/')) {
            return Err(refused("mailbox name with a bad domain", internal));
        }
        let domain = domain
            .and_then(|d| ns.foreign_domain(d))
            .map(str::to_string);
        let parts: Vec<String> = rest
            .split('.')
            .filter(|p| !p.is_empty())
            .map(|p| p.replace('^', "."))
            .collect();
        if parts.is_empty() {
            return Err(refused("mailbox name without a part", internal));
        }
        let mut folders = 0..parts.len();
        let decorated = parts.len() > 2 && parts[0] == ns.deletedprefix;
        let mut deleted = None;
        if decorated {
            folders.start = 1;
            deleted = parts.last().and_then(|last| hex_time(last));
            if deleted.is_some() {
                folders.end -= 1;
            }
        }
        let mut userid = None;
        if folders.len() > 1 && parts[folders.start] == "user" {
            let local = &parts[folders.start + 1];
            folders.start += 2;
            let id = match &domain {
                Some(domain) => format!("{local}@{domain}"),
                None => local.clone(),
            };
            check_key(&id)?;
            userid = Some(id);
        }
        Ok(MboxName {
            internal: internal.to_string(),
            domain,
            parts,
            folders,
            userid,
            decorated,
            deleted,
        })
    }

    /// The name as it was given.
    pub fn internal(&self) -> &str {
        &self.internal
    }

    /// The owner, with `@domain` unless that is the default domain; `None` for shared mailboxes.
    pub fn userid(&self) -> Option<&str> {
        self.userid.as_deref()
    }

    /// The domain unless it is the default domain.
    pub fn domain(&self) -> Option<&str> {
        self.domain.as_deref()
    }

    /// The parts below the owner, or all parts of a shared name, without the deleted decoration;
    /// `^` is a dot again. Empty for an INBOX.
    pub fn folders(&self) -> &[String] {
        &self.parts[self.folders.clone()]
    }

    /// When the mailbox was deleted on the sender, in seconds since 1970.
    pub fn deleted(&self) -> Option<i64> {
        self.deleted
    }

    /// Whether the name is that of a mailbox kept by delayed deletion.
    pub fn is_deleted(&self) -> bool {
        self.deleted.is_some()
    }

    /// Whether this is a live INBOX.
    pub fn is_inbox(&self) -> bool {
        self.userid.is_some() && self.folders.is_empty() && !self.decorated
    }

    /// The top of the tree a mailbox without owner is in, the deleted decoration left out.
    pub fn shared_root(&self) -> Option<&str> {
        match self.userid {
            Some(_) => None,
            None => self.folders().first().map(String::as_str),
        }
    }

    /// The internal name without what deletion added to it.
    pub fn undeleted(&self, ns: &Namespace) -> String {
        if !self.is_deleted() {
            return self.internal.clone();
        }
        let domain = self.domain.as_deref().and_then(|d| ns.foreign_domain(d));
        let mut parts = escape(&self.parts);
        parts.remove(0);
        parts.pop();
        match domain {
            Some(domain) => format!("{domain}!{}", parts.join(".")),
            None => parts.join("."),
        }
    }

    /// The backup this mailbox belongs to.
    pub fn owner(&self) -> Owner {
        match &self.userid {
            Some(userid) => Owner::User(userid.clone()),
            None => Owner::Shared {
                domain: self.domain.clone().unwrap_or_default(),
                root: self.shared_root().unwrap_or_default().to_string(),
            },
        }
    }

    /// The name as an administrator sees it.
    ///
    /// [`from_admin`] leads back. Two names differ from what Cyrus shows: one with a domain while
    /// `virtdomains` is off stays internal (Cyrus has no name for it), and one that holds `@` gets
    /// the default domain added, so that the `@` is not taken for the domain's.
    pub fn to_admin(&self, ns: &Namespace) -> String {
        let name = if ns.unixhierarchysep {
            self.parts.join("/")
        } else {
            escape(&self.parts).join(".")
        };
        match (&self.domain, ns.virtdomains) {
            (Some(_), VirtDomains::Off) => self.internal.clone(),
            (Some(domain), _) => format!("{name}@{domain}"),
            (None, VirtDomains::Off) => name,
            (None, _) if name.contains('@') => format!("{name}@{}", ns.defaultdomain),
            (None, _) => name,
        }
    }
}

/// The internal name of a user's INBOX: `a.b@dom` becomes `dom!user.a^b`.
pub fn inbox_of(userid: &str, ns: &Namespace) -> String {
    let (local, domain) = split_userid(userid);
    let local = local.replace('.', "^");
    match domain.and_then(|d| ns.foreign_domain(d)) {
        Some(domain) => format!("{domain}!user.{local}"),
        None => format!("user.{local}"),
    }
}

/// The internal form of a name typed by a person in admin or internal form.
///
/// `Kind::Usage` for what is neither, and for what can be read both ways: with `unixhierarchysep`,
/// `news.unix` is one part holding a dot to Cyrus, and two parts inside. A `!` makes a name
/// internal; so do, where `/` separates, a leading `user.`, the deleted prefix, or a `^`.
pub fn from_admin(name: &str, ns: &Namespace) -> Result<String> {
    let usage = |e: Error| e.with_kind(Kind::Usage);
    check_bytes(name, MAX_NAME_BYTES, "mailbox name").map_err(usage)?;
    let (body, domain) = if let Some((domain, rest)) = name.split_once('!') {
        (rest, Some(domain))
    } else if ns.virtdomains == VirtDomains::Off {
        (name, None)
    } else {
        split_userid(name)
    };
    let is_internal = name.contains('!')
        || body.contains('^')
        || body.starts_with("user.")
        || body
            .strip_prefix(&ns.deletedprefix)
            .is_some_and(|rest| rest.starts_with('.'));
    let parts: Vec<String> = if !ns.unixhierarchysep || name.contains('!') {
        body.split('.').map(str::to_string).collect()
    } else if body.contains('/') {
        if body.contains('^') {
            return Err(usage(refused("no mailbox name, in either form", name)));
        }
        body.split('/').map(|p| p.replace('.', "^")).collect()
    } else if is_internal || !body.contains('.') {
        body.split('.').map(str::to_string).collect()
    } else {
        let why = format!(
            "ambiguous mailbox name: write {} or {}",
            body.replace('.', "/"),
            body.replace('.', "^")
        );
        return Err(usage(refused(&why, name)));
    };
    let parts: Vec<&str> = parts
        .iter()
        .map(String::as_str)
        .filter(|p| !p.is_empty())
        .collect();
    let name = match domain.filter(|d| *d != ns.defaultdomain) {
        Some(domain) => format!("{domain}!{}", parts.join(".")),
        None => parts.join("."),
    };
    MboxName::parse(&name, ns).map_err(usage)?;
    Ok(name)
}

/// The one form of a user id: without `@defaultdomain`.
///
/// `Kind::Protocol` for ids that are empty, longer than [`MAX_USERID_BYTES`], hold control bytes,
/// lack a local part or domain around their `@`, or begin with `%`. Everything else passes: file
/// names are escaped.
pub fn canonical_userid(userid: &str, ns: &Namespace) -> Result<String> {
    check_bytes(userid, MAX_USERID_BYTES, "user id")?;
    let id = match userid.rsplit_once('@') {
        Some((local, domain)) if domain == ns.defaultdomain => local,
        _ => userid,
    };
    check_key(id)?;
    Ok(id.to_string())
}

/// Whose backup something belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// A user, by canonical id.
    User(String),
    /// A tree of mailboxes without owner.
    Shared {
        /// The domain; empty for the default one.
        domain: String,
        /// The top of the tree.
        root: String,
    },
    /// The server itself: annotations of no mailbox.
    Server,
}

impl Owner {
    /// The key in `backups.db`: the user id, `%SHARED/<domain>/<root>`, or `%SHARED//`.
    pub fn key(&self) -> String {
        match self {
            Owner::User(userid) => userid.clone(),
            Owner::Shared { domain, root } => format!("{SHARED}{domain}/{root}"),
            Owner::Server => format!("{SHARED}/"),
        }
    }

    /// The owner a key stands for. `None` for keys that name no owner: the single `%SHARED` of old
    /// stores, `%FORMER/...`, and anything unknown that begins with `%`.
    pub fn from_key(key: &str) -> Option<Owner> {
        if let Some(rest) = key.strip_prefix(SHARED) {
            return match rest.split_once('/')? {
                ("", "") => Some(Owner::Server),
                (_, "") => None,
                (domain, root) => Some(Owner::Shared {
                    domain: domain.to_string(),
                    root: root.to_string(),
                }),
            };
        }
        (!key.is_empty() && !key.starts_with(RESERVED)).then(|| Owner::User(key.to_string()))
    }
}

fn escape(parts: &[String]) -> Vec<String> {
    parts.iter().map(|p| p.replace('.', "^")).collect()
}

/// Splits at the last `@`, when there is something on both sides.
fn split_userid(userid: &str) -> (&str, Option<&str>) {
    match userid.rsplit_once('@') {
        Some((local, domain)) if !local.is_empty() && !domain.is_empty() => (local, Some(domain)),
        _ => (userid, None),
    }
}

/// Seconds since 1970 from hex digits and nothing else; 0 is no time.
fn hex_time(text: &str) -> Option<i64> {
    if !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    i64::from_str_radix(text, 16).ok().filter(|t| *t > 0)
}

fn check_bytes(text: &str, max: usize, what: &str) -> Result<()> {
    if text.is_empty() {
        return Err(Error::new(Kind::Protocol, format!("empty {what}")));
    }
    if text.len() > max {
        let why = format!("{what} longer than {max} bytes");
        return Err(Error::new(Kind::Protocol, why));
    }
    if text.bytes().any(|b| b < b' ' || b == 0x7f) {
        return Err(refused(&format!("control byte in {what}"), text));
    }
    Ok(())
}

/// What a user id must be to be a key, beyond its bytes.
fn check_key(userid: &str) -> Result<()> {
    if userid.len() > MAX_USERID_BYTES {
        return Err(refused("user id too long", userid));
    }
    if userid.is_empty() || userid.starts_with('@') || userid.ends_with('@') {
        return Err(refused("user id without a local part or domain", userid));
    }
    if userid.starts_with(RESERVED) {
        return Err(refused("user id with a reserved first character", userid));
    }
    Ok(())
}

fn refused(why: &str, name: &str) -> Error {
    let shown: String = name.chars().take(100).collect();
    Error::new(Kind::Protocol, why).place(format!("{shown:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ns() -> Namespace {
        Namespace {
            virtdomains: VirtDomains::Userid,
            ..Namespace::default()
        }
    }

    fn parse(name: &str) -> MboxName {
        MboxName::parse(name, &ns()).unwrap()
    }

    const T: i64 = 0x5F3A_1B2C;

    /// internal, owner, deleted, admin form with virtdomains userid.
    const ROWS: &[(&str, Option<&str>, Option<i64>, &str)] = &[
        ("user.fred", Some("fred"), None, "user/fred"),
        ("user.fred.Sent", Some("fred"), None, "user/fred/Sent"),
        ("user.fred.INBOX", Some("fred"), None, "user/fred/INBOX"),
        ("user.fred.inbox", Some("fred"), None, "user/fred/inbox"),
        (
            "user.fred.Shared Folders",
            Some("fred"),
            None,
            "user/fred/Shared Folders",
        ),
        (
            "user.fred^blogs.A^B.C",
            Some("fred.blogs"),
            None,
            "user/fred.blogs/A.B/C",
        ),
        (
            "example.com!user.fred^b.Sub",
            Some("fred.b@example.com"),
            None,
            "user/fred.b/Sub@example.com",
        ),
        (
            "DELETED.user.fred.5F3A1B2C",
            Some("fred"),
            Some(T),
            "DELETED/user/fred/5F3A1B2C",
        ),
        (
            "DELETED.user.fred.Trash.5F3A1B2C",
            Some("fred"),
            Some(T),
            "DELETED/user/fred/Trash/5F3A1B2C",
        ),
        (
            "example.com!DELETED.user.fred.Trash.5F3A1B2C",
            Some("fred@example.com"),
            Some(T),
            "DELETED/user/fred/Trash/5F3A1B2C@example.com",
        ),
        (
            "DELETED.shared.5F3A1B2C",
            None,
            Some(T),
            "DELETED/shared/5F3A1B2C",
        ),
        ("DELETED.shared", None, None, "DELETED/shared"),
        ("shared.folder", None, None, "shared/folder"),
        ("userfoo.bar", None, None, "userfoo/bar"),
        ("user", None, None, "user"),
        (
            "user.fred.#calendars.Default",
            Some("fred"),
            None,
            "user/fred/#calendars/Default",
        ),
        (
            "user.fred.a@b",
            Some("fred"),
            None,
            "user/fred/a@b@internal",
        ),
    ];

    #[test]
    fn table_of_names() {
        for (internal, owner, deleted, admin) in ROWS {
            let name = parse(internal);
            assert_eq!(name.internal(), *internal);
            assert_eq!(name.userid(), *owner, "{internal}");
            assert_eq!(name.deleted(), *deleted, "{internal}");
            assert_eq!(name.is_deleted(), deleted.is_some());
            assert_eq!(name.to_admin(&ns()), *admin);
            assert_eq!(from_admin(admin, &ns()).unwrap(), *internal);
        }
    }

    #[test]
    fn admin_names_with_dots_as_separator() {
        let dots = Namespace {
            unixhierarchysep: false,
            ..ns()
        };
        for (internal, _, _, _) in ROWS {
            let name = MboxName::parse(internal, &dots).unwrap();
            assert_eq!(from_admin(&name.to_admin(&dots), &dots).unwrap(), *internal);
        }
        let name = parse("example.com!user.fred^b.Sub");
        assert_eq!(name.to_admin(&dots), "user.fred^b.Sub@example.com");
    }

    #[test]
    fn admin_names_without_domains() {
        let off = Namespace::default();
        for (internal, _, _, _) in ROWS {
            let name = MboxName::parse(internal, &off).unwrap();
            assert_eq!(from_admin(&name.to_admin(&off), &off).unwrap(), *internal);
        }
        let name = parse("example.com!user.fred");
        assert_eq!(name.to_admin(&off), "example.com!user.fred");
    }

    #[test]
    fn folders_and_roots() {
        assert_eq!(parse("user.fred^b.A^B.C").folders(), ["A.B", "C"]);
        assert_eq!(parse("DELETED.user.fred.T.5F3A1B2C").folders(), ["T"]);
        assert!(parse("user.fred").is_inbox());
        assert!(parse("user.").folders() == ["user"] && !parse("user.").is_inbox());
        for no in ["user", "user.fred.INBOX", "DELETED.user.fred.5F3A1B2C"] {
            assert!(!parse(no).is_inbox(), "{no}");
        }
        assert_eq!(
            parse("DELETED.shared.5F3A1B2C").shared_root(),
            Some("shared")
        );
        assert_eq!(parse("a^b.c").shared_root(), Some("a.b"));
        assert_eq!(parse("DELETED.shared").shared_root(), Some("DELETED"));
        assert_eq!(parse("user.fred").shared_root(), None);
        // Cyrus reads this one as the shared mailbox `user`, too.
        assert_eq!(parse("DELETED.user.dad").shared_root(), Some("user"));
    }

    #[test]
    fn a_deleted_name_without_a_time_stays_itself() {
        for name in ["zzzz", "0", "-5", "0x5", "5F3A1B2C5F3A1B2C5F"] {
            let name = parse(&format!("DELETED.user.fred.{name}"));
            assert_eq!(name.userid(), Some("fred"));
            assert!(!name.is_deleted() && !name.is_inbox() && name.folders().len() == 1);
        }
        assert!(!parse("DELETED.user.fred").is_inbox());
        assert_eq!(parse("DELETED.a.b.zzzz").folders(), ["a", "b", "zzzz"]);
        assert_eq!(parse("deleted.user.fred.5F3A1B2C").userid(), None);
        assert_eq!(
            parse("DELETED.a.5F3A1B2C5F").deleted(),
            Some(0x5F_3A1B_2C5F)
        );
    }

    #[test]
    fn default_domain_vanishes() {
        let ns = Namespace {
            defaultdomain: "def.org".into(),
            ..ns()
        };
        let name = MboxName::parse("def.org!user.x", &ns).unwrap();
        assert_eq!((name.userid(), name.domain()), (Some("x"), None));
        let name = MboxName::parse("DEF.org!user.x", &ns).unwrap();
        assert_eq!(name.userid(), Some("x@DEF.org"));
        assert_eq!(inbox_of("x@def.org", &ns), "user.x");
        assert_eq!(inbox_of("a.b@c.d", &ns), "c.d!user.a^b");
        assert_eq!(inbox_of("a@b@c", &ns), "c!user.a@b");
        assert_eq!(canonical_userid("x@def.org", &ns).unwrap(), "x");
        assert_eq!(canonical_userid("x@DEF.org", &ns).unwrap(), "x@DEF.org");
        assert_eq!(
            from_admin("user/fred/x@def.org", &ns).unwrap(),
            "user.fred.x"
        );
    }

    #[test]
    fn either_form_is_understood_unless_ambiguous() {
        for (typed, internal) in [
            ("user.fred", "user.fred"),
            ("/user/fred/", "user.fred"),
            ("user.fred@example.com", "example.com!user.fred"),
            ("example.com!user.fred", "example.com!user.fred"),
            ("news^unix", "news^unix"),
            ("news", "news"),
            ("DELETED.x.5F3A1B2C", "DELETED.x.5F3A1B2C"),
            ("internal!user.fred", "user.fred"),
        ] {
            assert_eq!(from_admin(typed, &ns()).unwrap(), internal, "{typed}");
        }
        let e = from_admin("news.unix", &ns()).unwrap_err();
        assert_eq!(e.kind(), Kind::Usage);
        assert!(e.to_string().contains("news/unix or news^unix"), "{e}");
        for bad in [
            "",
            "/",
            "user/a^b",
            "!user.x",
            "a/b!user.x",
            "user/a\0",
            "user/%x",
        ] {
            let e = from_admin(bad, &ns()).unwrap_err();
            assert_eq!(e.kind(), Kind::Usage, "{bad}");
        }
    }

    #[test]
    fn refusals() {
        let long = format!("user.{}", "x".repeat(MAX_USERID_BYTES + 1));
        let longer = "x".repeat(MAX_NAME_BYTES + 1);
        for bad in [
            "",
            ".",
            "dom!",
            "!user.x",
            "a/b!x",
            "user.a\0b",
            "a\nb",
            "a\x7f",
            "user.%SHARED",
            &long,
            &longer,
        ] {
            let e = MboxName::parse(bad, &ns()).unwrap_err();
            assert_eq!(e.kind(), Kind::Protocol, "{bad:?}");
        }
        let long = "x".repeat(MAX_USERID_BYTES + 1);
        for bad in ["", "fred@", "@x", "%x", "a\tb", "@internal", &long] {
            let e = canonical_userid(bad, &ns()).unwrap_err();
            assert_eq!(e.kind(), Kind::Protocol, "{bad:?}");
        }
        assert!(MboxName::parse(&"x".repeat(MAX_NAME_BYTES), &ns()).is_ok());
        for odd in ["../../etc", "a b", "é", "a/b", "..."] {
            assert_eq!(canonical_userid(odd, &ns()).unwrap(), odd);
        }
    }

    #[test]
    fn keys_lead_back_to_their_owner() {
        for (name, key) in [
            ("user.fred.x", "fred"),
            ("d.e!user.fred", "fred@d.e"),
            ("news.unix", "%SHARED//news"),
            ("d.e!a/b.c", "%SHARED/d.e/a/b"),
            ("DELETED.news.5F3A1B2C", "%SHARED//news"),
        ] {
            let owner = parse(name).owner();
            assert_eq!(owner.key(), key);
            assert_eq!(Owner::from_key(key), Some(owner));
        }
        assert_eq!(Owner::Server.key(), "%SHARED//");
        assert_eq!(Owner::from_key("%SHARED//"), Some(Owner::Server));
        for none in ["", "%SHARED", "%SHARED/", "%SHARED/d/", "%FORMER/a/b", "%x"] {
            assert_eq!(Owner::from_key(none), None, "{none}");
        }
    }
}
