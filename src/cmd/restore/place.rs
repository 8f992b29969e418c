//! Where restored mail goes, as it was typed: a tree of folders, or one mailbox.
//!
//! A name alone is a folder of whoever gets the mail, as he sees it himself. What lies elsewhere has to
//! be written out, so that nobody's mail lands in a shared mailbox by a slip.

use super::super::args::usage;
use crate::cyrus::mboxname::{MboxName, Namespace, from_admin, inbox_of};
use crate::cyrus::utf7;
use crate::error::Result;

/// The parts, escaped, of `--prefix`.
pub fn tree(typed: &str, ns: &Namespace) -> Result<Vec<String>> {
    let text = below(&utf7::typed(typed), ns);
    let parts: Vec<String> = text.split('.').map(str::to_owned).collect();
    if parts.iter().any(String::is_empty) {
        return Err(usage("--prefix: no folder's name"));
    }
    Ok(parts)
}

/// The internal name of `--into`, for mail that `userid` gets; empty, for mail that is nobody's.
///
/// `INBOX` and what is below it are the user's, as is every name that does not begin at the top:
/// `user/anna/x`, an internal name of that kind, or a shared one behind a separator, `/shared`.
pub fn mailbox(typed: &str, userid: &str, ns: &Namespace) -> Result<String> {
    let refuse = |why: &str| usage(format!("--into: {typed}: {why}"));
    let name = utf7::typed(typed);
    let separator = if ns.unixhierarchysep { '/' } else { '.' };
    let first = name.split(separator).next().unwrap_or_default();
    let internal = if let Some(shared) = name.strip_prefix(separator) {
        from_admin(shared, ns)?
    } else if first.eq_ignore_ascii_case("INBOX") {
        if userid.is_empty() {
            return Err(refuse("whose INBOX? This mail has no owner"));
        }
        let rest = &name[first.len()..];
        match rest.strip_prefix(separator) {
            None => inbox_of(userid, ns),
            Some(rest) => format!("{}.{}", inbox_of(userid, ns), below(rest, ns)),
        }
    } else if userid.is_empty() || is_written_out(&name, first, ns) {
        from_admin(&name, ns)?
    } else {
        format!("{}.{}", inbox_of(userid, ns), below(&name, ns))
    };
    let parsed = MboxName::parse(&internal, ns)?;
    let top = internal.rsplit('!').next().unwrap_or_default();
    let top = top.split('.').next().unwrap_or_default();
    if top == ns.deletedprefix {
        return Err(refuse("that is for what is deleted"));
    }
    if top == "user" && parsed.userid().is_none() {
        return Err(refuse("names no mailbox"));
    }
    if internal.split('.').any(str::is_empty) {
        return Err(refuse("an empty name"));
    }
    Ok(internal)
}

/// Folders in internal form.
fn below(name: &str, ns: &Namespace) -> String {
    match ns.unixhierarchysep {
        true => name.replace('.', "^").replace('/', "."),
        false => name.to_owned(),
    }
}

fn is_written_out(name: &str, first: &str, ns: &Namespace) -> bool {
    let dotted = name.split('.').next().unwrap_or_default();
    let top = |word: &str| word == "user" || word == ns.deletedprefix;
    name.contains('!') || top(first) || top(dotted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_name_alone_is_a_folder_of_the_user() {
        let ns = Namespace {
            unixhierarchysep: true,
            ..Namespace::default()
        };
        for (typed, userid, expect) in [
            ("INBOX", "anna", "user.anna"),
            ("inbox/a.b/c", "anna", "user.anna.a^b.c"),
            ("Archive", "anna", "user.anna.Archive"),
            (
                "Archive/2020",
                "b.c@x.example",
                "x.example!user.b^c.Archive.2020",
            ),
            ("v1^0", "anna", "user.anna.v1^0"),
            ("Entwürfe/R&D", "anna", "user.anna.Entw&APw-rfe.R&-D"),
            ("R&D", "anna", "user.anna.R&-D"),
            ("Entw&APw-rfe", "anna", "user.anna.Entw&APw-rfe"),
            ("user/bert/x", "anna", "user.bert.x"),
            ("user.bert.x", "anna", "user.bert.x"),
            ("x.example!user.bert", "anna", "x.example!user.bert"),
            ("/shared/team", "anna", "shared.team"),
            ("shared/team", "", "shared.team"),
            ("user/anna", "", "user.anna"),
        ] {
            assert_eq!(mailbox(typed, userid, &ns).unwrap(), expect, "{typed}");
        }
        for (typed, userid) in [
            ("user", "anna"),
            ("user/", "anna"),
            ("/user", "anna"),
            ("DELETED/user/anna/5F3A1B2C", "anna"),
            ("DELETED/x", "anna"),
            ("DELETED.x", "anna"),
            ("DELETED", "anna"),
            ("x.example!DELETED.user.a.5F3A1B2C", "anna"),
            ("INBOX", ""),
            ("INBOX/", "anna"),
            ("a//b", "anna"),
            ("", "anna"),
            ("/", "anna"),
        ] {
            let e = mailbox(typed, userid, &ns).unwrap_err();
            assert!(matches!(e.kind(), Kind::Usage | Kind::Protocol), "{typed}");
        }
    }

    #[test]
    fn dots_separate_where_they_do() {
        let ns = Namespace {
            unixhierarchysep: false,
            ..Namespace::default()
        };
        for (typed, expect) in [
            ("INBOX.x", "user.anna.x"),
            ("Archive.2020", "user.anna.Archive.2020"),
            ("user.bert", "user.bert"),
            (".shared", "shared"),
        ] {
            assert_eq!(mailbox(typed, "anna", &ns).unwrap(), expect, "{typed}");
        }
        assert_eq!(tree("a.b", &ns).unwrap(), ["a", "b"]);
        assert!(tree("a..b", &ns).is_err());
    }
}
