//! `restore`: brings mail back, to a Cyrus server, to any IMAP server, or into files.
//!
//! What was typed becomes what is wanted (`restore::choose`) and where to (`restore::target`); `run` goes
//! through the backups, `report` says what became of each mailbox.

mod guids;
mod place;
mod report;
mod run;

use super::args::{self, usage};
use super::select::{self, Select};
use super::{Context, Job};
use crate::cyrus::guid::Guid;
use crate::cyrus::mboxname::{Namespace, canonical_userid};
use crate::error::{Kind, Result};
use crate::restore::choose::{Into, TREE, What, Which};
use crate::restore::target::{Place, Target};
use crate::sys::clock;
use crate::util::time::{Timestamp, civil, now};
use crate::util::when::Day;
use getopts::{Matches, Options};
use std::collections::HashSet;

/// Users at a time, unless something else is said.
const JOBS: usize = 2;

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    select: Select,
    mailboxes: Vec<String>,
    guids: HashSet<Guid>,
    guid_file: Option<String>,
    to: Option<Target>,
    at: Option<Timestamp>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    which: Option<Which>,
    what: Option<What>,
    place: Where,
    user: Option<String>,
    partition: Option<String>,
    acl: Option<String>,
    recursive: bool,
    flags_only: bool,
    keep_uids: bool,
    newest_first: bool,
    dry_run: bool,
    jobs: usize,
    json: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Where {
    /// A tree on a server, in place in files.
    Default,
    Place,
    Tree(String),
    Mailbox(String),
}

/// The options.
pub fn options() -> Options {
    let mut o = args::common();
    select::options(&mut o);
    o.optflag("", "all-users", "the same as -A");
    args::json(&mut o);
    args::at(&mut o);
    o.optopt("", "to", "where to: imap://HOST, imaps://HOST, csync://HOST, unix:PATH, maildir:DIR, mbox:FILE, tar:FILE, eml:DIR, -", "WHERE");
    o.optflagmulti("n", "dry-run", "say what would be done, and do nothing");
    o.optflag("", "in-place", "where it was, adding what is not there");
    o.optopt("", "prefix", "into this tree of folders", "FOLDER");
    o.optopt("", "into", "all into this mailbox", "MAILBOX");
    o.optopt("", "as", "to this user", "USER");
    o.optflag("", "deleted-only", "only what was deleted");
    o.optflag("", "ignore-deletes", "everything that ever was");
    o.optopt("", "since", "not what is older", "TIME");
    o.optopt("", "until", "not what is newer", "TIME");
    o.optflag("", "flags-only", "only flags, of messages that are there");
    o.optopt("", "guids", "only messages listed there", "FILE");
    o.optflag("r", "recursive", "with the mailboxes below");
    o.optopt(
        "",
        "what",
        "of mail, sieve, subscriptions, seen, quota",
        "LIST",
    );
    o.optopt("", "partition", "for mailboxes that are made", "NAME");
    o.optopt(
        "",
        "acl",
        "for mailboxes that are made; empty: the default",
        "ACL",
    );
    o.optflag(
        "",
        "keep-uids",
        "UIDs and identities as they were: rebuild a server",
    );
    o.optflag(
        "",
        "newest-first",
        "INBOX and what has the newest mail first",
    );
    o.optopt("", "jobs", "users at a time", "N");
    o
}

/// The command.
pub fn job(m: &Matches) -> Result<Job> {
    let args = Args::parse(m)?;
    Ok(Box::new(move |c, out| run::run(&args, c, out)))
}

impl Args {
    fn parse(m: &Matches) -> Result<Args> {
        let (select, items) = Self::select(m)?;
        let mut guids = HashSet::new();
        let mut mailboxes = Vec::new();
        for item in items {
            match Guid::parse(item.as_bytes()) {
                Some(guid) => _ = guids.insert(guid),
                None => mailboxes.push(item),
            }
        }
        let flag = |name| m.opt_present(name);
        let which = match (flag("deleted-only"), flag("ignore-deletes")) {
            (true, true) => return Err(usage("only one of --deleted-only --ignore-deletes")),
            (true, false) => Some(Which::Deleted),
            (false, true) => Some(Which::Ever),
            (false, false) => None,
        };
        let (keep_uids, flags_only) = (flag("keep-uids"), flag("flags-only"));
        let place = match (flag("in-place"), m.opt_str("prefix"), m.opt_str("into")) {
            (false, None, None) if keep_uids || flags_only => Where::Place,
            (false, None, None) => Where::Default,
            (true, None, None) => Where::Place,
            (false, Some(tree), None) => Where::Tree(tree),
            (false, None, Some(mailbox)) => Where::Mailbox(mailbox),
            _ => return Err(usage("only one of --in-place --prefix --into")),
        };
        let args = Args {
            select,
            mailboxes,
            guids,
            guid_file: m.opt_str("guids"),
            to: m.opt_str("to").map(|t| Target::parse(&t)).transpose()?,
            at: args::time(m, "at", Day::Begins)?,
            since: args::time(m, "since", Day::Begins)?,
            until: args::time(m, "until", Day::Ends)?,
            which,
            what: m.opt_str("what").map(|list| what(&list)).transpose()?,
            place,
            user: m.opt_str("as"),
            partition: m.opt_str("partition"),
            acl: m.opt_str("acl").map(|acl| self::acl(&acl)).transpose()?,
            recursive: flag("recursive"),
            flags_only,
            keep_uids,
            newest_first: flag("newest-first"),
            dry_run: flag("dry-run"),
            jobs: match m.opt_str("jobs") {
                None => JOBS,
                Some(text) => match text.parse() {
                    Ok(n @ 1..=64) => n,
                    _ => return Err(usage("--jobs: a number from 1 to 64")),
                },
            },
            json: flag("j"),
        };
        args.check()?;
        Ok(args)
    }

    /// The backups, and what stands behind the one there may be.
    fn select(m: &Matches) -> Result<(Select, Vec<String>)> {
        let is_set = ["A", "D", "P", "all-users"]
            .iter()
            .any(|o| m.opt_present(o));
        if !is_set {
            return Select::one(m, &m.free);
        }
        if m.opt_present("all-users") {
            if ["A", "D", "P", "u", "m", "f"]
                .iter()
                .any(|o| m.opt_present(o))
            {
                return Err(usage("--all-users and also -A -D -P -u -m or -f"));
            }
            args::no_more(&m.free)?;
            return Ok((Select::all(), Vec::new()));
        }
        Ok((Select::some(m)?, Vec::new()))
    }

    /// What does not go together.
    fn check(&self) -> Result<()> {
        let no = |is_wrong: bool, why: &str| match is_wrong {
            true => Err(usage(why)),
            false => Ok(()),
        };
        let set = self.select.is_set();
        no(self.to.is_none() && !self.dry_run, "no --to")?;
        let files = self.to.as_ref().is_some_and(|t| !t.is_server());
        no(
            self.json && self.is_to_stdout(),
            "-j: mail goes to standard output already",
        )?;
        no(set && self.user.is_some(), "--as is for one user")?;
        no(
            set && matches!(self.place, Where::Mailbox(_)),
            "--into is for one user",
        )?;
        no(
            self.keep_uids && (self.user.is_some() || self.place != Where::Place),
            "--keep-uids puts everything where it was: not with --as --prefix --into",
        )?;
        no(
            self.keep_uids && (self.which.is_some() || self.flags_only || self.narrow()),
            "--keep-uids brings whole mailboxes: not with a choice of messages",
        )?;
        no(self.keep_uids && files, "--keep-uids is for Cyrus servers")?;
        no(
            self.flags_only && (files || self.place != Where::Place || self.which.is_some()),
            "--flags-only changes messages where they are: not with another place, nor with what was deleted",
        )
    }

    /// Whether standard output is where mail goes.
    fn is_to_stdout(&self) -> bool {
        matches!(self.to, Some(Target::Files(_, Place::Stdout)))
    }

    /// Whether messages were chosen.
    fn narrow(&self) -> bool {
        !self.guids.is_empty()
            || self.guid_file.is_some()
            || self.since.is_some()
            || self.until.is_some()
    }

    /// Where it goes, for mail that `userid` gets; empty, for mail that is nobody's.
    fn into(&self, userid: &str, ns: &Namespace) -> Result<Into> {
        let files = self.to.as_ref().is_some_and(|t| !t.is_server());
        Ok(match &self.place {
            Where::Place => Into::Place,
            Where::Default if files => Into::Place,
            Where::Default => {
                let now = now();
                let (y, m, d, ..) = civil(Timestamp(now.0 + clock::ahead(now.0)));
                Into::Tree(vec![TREE.into(), format!("{y:04}-{m:02}-{d:02}")])
            }
            Where::Tree(typed) => Into::Tree(place::tree(typed, ns)?),
            Where::Mailbox(typed) => Into::Mailbox(place::mailbox(typed, userid, ns)?),
        })
    }

    fn user(&self, c: &Context) -> Result<Option<String>> {
        let canonical = |u: &String| {
            let id = canonical_userid(u, &c.namespace);
            id.map_err(|e| e.with_kind(Kind::Usage).place("--as"))
        };
        self.user.as_ref().map(canonical).transpose()
    }

    /// What of the user: whole users in their place get everything.
    fn what(&self) -> What {
        let whole = self.mailboxes.is_empty() && !self.narrow() && self.which.is_none();
        let files = self.to.as_ref().is_some_and(|t| !t.is_server());
        let in_place = match self.place {
            Where::Place => true,
            Where::Default => files,
            _ => false,
        };
        match (self.what, in_place && whole && !self.flags_only) {
            (Some(what), _) => what,
            (None, true) => What::ALL,
            (None, false) => What::MAIL,
        }
    }
}

fn what(list: &str) -> Result<What> {
    let mut what = What::default();
    for word in list.split(',') {
        *match word {
            "mail" => &mut what.mail,
            "subscriptions" => &mut what.subscriptions,
            "seen" => &mut what.seen,
            "sieve" => &mut what.sieve,
            "quota" => &mut what.quota,
            "all" => {
                what = What::ALL;
                continue;
            }
            _ => {
                return Err(usage(format!(
                    "--what: {word}: not one of mail, sieve, subscriptions, seen, quota, all"
                )));
            }
        } = true;
    }
    Ok(what)
}

/// `id rights id rights`, by blanks or tabs.
fn acl(text: &str) -> Result<String> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let good = |w: &[&str]| {
        w.len() == 2
            && w[1]
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    if !words.chunks(2).all(good) {
        return Err(usage(format!(
            "--acl: {text}: not pairs of an identifier and rights"
        )));
    }
    Ok(words.iter().map(|w| format!("{w}\t")).collect())
}
