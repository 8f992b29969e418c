//! What became of each mailbox, for people and as JSON.

use super::super::output::{Out, plain};
use super::super::{Context, admin_name};
use crate::cyrus::mboxname::Namespace;
use crate::error::{Error, Result};
use crate::restore::{Became, Done, Folder, Own};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// One mailbox.
#[derive(Debug)]
pub struct Line {
    from: String,
    to: String,
    wanted: u64,
    wanted_bytes: u64,
    bodiless: u64,
    keep_uids: bool,
    done: Done,
}

impl Line {
    /// About a folder that was done, wholly or in part.
    pub fn new(folder: &Folder, done: Done) -> Line {
        Line {
            from: folder.from.clone(),
            to: folder.to.clone(),
            wanted: folder.items.len() as u64,
            wanted_bytes: folder.items.iter().map(|i| i.record.size).sum(),
            bodiless: folder.bodiless,
            keep_uids: folder.keep_uids,
            done,
        }
    }
}

/// Numbers of several mailboxes, of one user or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    brought: u64,
    bytes: u64,
    there: u64,
    flagged: u64,
    failed: u64,
    /// A server is rebuilt, and this is about mailboxes that were seen to be as they were.
    equal: u64,
    /// Were seen not to be.
    unequal: u64,
    /// Were not looked at: the run ended before, or they were not taken.
    unproven: u64,
    is_rebuild: bool,
}

impl Sum {
    /// Both together.
    pub fn and(self, other: Sum) -> Sum {
        Sum {
            brought: self.brought + other.brought,
            bytes: self.bytes + other.bytes,
            there: self.there + other.there,
            flagged: self.flagged + other.flagged,
            failed: self.failed + other.failed,
            equal: self.equal + other.equal,
            unequal: self.unequal + other.unequal,
            unproven: self.unproven + other.unproven,
            is_rebuild: self.is_rebuild || other.is_rebuild,
        }
    }

    /// For people, about `who`.
    pub fn text(&self, who: &str, dry_run: bool, out: &mut Out) -> Result<()> {
        if self.is_rebuild && !dry_run {
            out.line(format_args!(
                "{who}: {} mailboxes are equal, {} are not, {} were not compared",
                self.equal, self.unequal, self.unproven
            ))?;
        }
        out.line(format_args!(
            "{who}: {} messages {}, {} bytes; {} there already, {} flagged anew, {} failed",
            self.brought,
            if dry_run { "to bring" } else { "brought" },
            self.bytes,
            self.there,
            self.flagged,
            self.failed
        ))
    }

    /// As an object.
    pub fn json(&self) -> Value {
        let mut sum = json!({
            "brought": self.brought,
            "bytes": self.bytes,
            "there": self.there,
            "flagged": self.flagged,
            "failed": self.failed,
        });
        if self.is_rebuild {
            sum["equal"] = json!(self.equal);
            sum["unequal"] = json!(self.unequal);
            sum["not_compared"] = json!(self.unproven);
        }
        sum
    }
}

/// One backup.
#[derive(Debug, Default)]
pub struct Report {
    /// Its key.
    pub from: String,
    /// Who got it.
    pub userid: String,
    /// Mailboxes in the order in which they were done.
    pub lines: Vec<Line>,
    /// Mailboxes that were not begun, since the run ended before.
    pub not_begun: Vec<String>,
    /// What was left out on purpose.
    pub notes: Vec<String>,
    /// What became of the user's own data.
    pub own: Vec<Own>,
    /// What else was not brought.
    pub failed: Vec<String>,
    /// Why it ended early.
    pub error: Option<Error>,
}

impl Report {
    /// Whether all that was wanted is there now.
    pub fn is_well(&self) -> bool {
        self.error.is_none()
            && self.failures().is_empty()
            && self
                .lines
                .iter()
                .all(|l| l.done.failed.is_empty() && l.done.differs.is_empty())
    }

    /// What was not brought besides mail.
    fn failures(&self) -> Vec<String> {
        let failed = self.own.iter().filter(|o| o.became == Became::Failed);
        let failed = failed.map(|o| {
            let what = format!("{} {}", o.kind, o.name);
            format!("{}: {}", what.trim_end(), o.why)
        });
        self.failed.iter().cloned().chain(failed).collect()
    }

    /// What is not mail, for people: what is there already is only counted.
    fn own_text(&self, c: &Context, user: &str, dry_run: bool, out: &mut Out) -> Result<()> {
        let mut there: BTreeMap<&str, u64> = BTreeMap::new();
        for o in &self.own {
            let name = match o.kind {
                "subscription" | "quota" => plain(&c.admin_name(&o.name)),
                _ => plain(&o.name),
            };
            match o.became {
                Became::There => *there.entry(o.kind).or_default() += 1,
                Became::Brought => {
                    let what = if dry_run { "to bring" } else { "brought" };
                    out.line(format_args!("{user}: {} {name}: {what}", o.kind))?;
                }
                Became::Left => {
                    let why = plain(&o.why);
                    out.line(format_args!("{user}: {} {name}: left: {why}", o.kind))?;
                }
                Became::Failed => {}
            }
        }
        for (kind, n) in there {
            out.line(format_args!("{user}: {kind}: {n} there already"))?;
        }
        Ok(())
    }

    /// All its mailboxes together.
    pub fn sum(&self) -> Sum {
        let mut sum = Sum {
            failed: self.failures().len() as u64,
            ..Sum::default()
        };
        let mut is_rebuild = false;
        for line in &self.lines {
            let d = &line.done;
            let mut one = Sum {
                brought: d.brought,
                bytes: d.bytes,
                there: d.there,
                flagged: d.flagged,
                failed: d.failed.len() as u64,
                ..Sum::default()
            };
            if line.keep_uids {
                is_rebuild = true;
                // Equal is what was seen to be.
                match (d.compared, d.differs.is_empty() && d.failed.is_empty()) {
                    (true, true) => one.equal = 1,
                    (true, false) => one.unequal = 1,
                    (false, _) => one.unproven = 1,
                }
            }
            sum = sum.and(one);
        }
        if is_rebuild {
            sum.is_rebuild = true;
            sum.unproven += self.not_begun.len() as u64;
        }
        sum
    }

    /// For people. `dry_run`: what would be done.
    pub fn text(&self, c: &Context, dry_run: bool, out: &mut Out) -> Result<()> {
        let name = |n: &str| plain(&c.admin_name(n));
        for line in &self.lines {
            let d = &line.done;
            let mut text = vec![match (dry_run, d.brought) {
                (true, n) => format!(
                    "{n} of {} messages to bring, {} bytes",
                    line.wanted, d.bytes
                ),
                (false, n) => format!("{n} of {} messages brought, {} bytes", line.wanted, d.bytes),
            }];
            let mut count = |n: u64, what: &str| {
                if n > 0 {
                    text.push(format!("{n} {what}"));
                }
            };
            let made = u64::from(d.made) + d.above.len() as u64;
            count(
                made,
                match (dry_run, made) {
                    (true, 1) => "mailbox to make",
                    (true, _) => "mailboxes to make",
                    (false, 1) => "mailbox made",
                    (false, _) => "mailboxes made",
                },
            );
            count(d.there, "there already");
            count(
                d.flagged,
                if dry_run {
                    "to be flagged anew"
                } else {
                    "flagged anew"
                },
            );
            count(
                line.bodiless,
                "have no body here (expired, erased, or gone before the first sync)",
            );
            count(d.failed.len() as u64, "FAILED");
            let to = match line.from == line.to {
                true => String::new(),
                false => format!(" -> {}", name(&line.to)),
            };
            out.line(format_args!(
                "{}{to}: {}",
                name(&line.from),
                text.join(", ")
            ))?;
            for above in &d.above {
                let what = if dry_run { "to make" } else { "made" };
                out.line(format_args!("  {what} above it: {}", name(above)))?;
            }
            for (uid, why) in &d.failed {
                match uid {
                    0 => out.line(format_args!("  failed: {}", plain(why)))?,
                    _ => out.line(format_args!("  failed: uid {uid}: {}", plain(why)))?,
                }
            }
            for what in &d.differs {
                out.line(format_args!("  not equal: {}", plain(what)))?;
            }
            for note in &d.notes {
                out.line(format_args!("  note: {}", plain(note)))?;
            }
        }
        let user = plain(&self.from);
        for mailbox in &self.not_begun {
            out.line(format_args!("{}: not begun", name(mailbox)))?;
        }
        self.own_text(c, &user, dry_run, out)?;
        for what in &self.failures() {
            out.line(format_args!("{user}: failed: {}", plain(what)))?;
        }
        for note in &self.notes {
            out.line(format_args!("{user}: note: {}", plain(note)))?;
        }
        self.sum().text(&user, dry_run, out)
    }

    /// As an object.
    pub fn json(&self, ns: &Namespace) -> Value {
        let lines: Value = self
            .lines
            .iter()
            .map(|l| {
                let d = &l.done;
                let failed: Value = d
                    .failed
                    .iter()
                    .map(|(uid, why)| json!({"uid": uid, "why": why}))
                    .collect();
                let mut line = json!({
                    "mboxname": l.from,
                    "adminname": admin_name(&l.from, ns),
                    "to": l.to,
                    "to_adminname": admin_name(&l.to, ns),
                    "wanted": l.wanted,
                    "wanted_bytes": l.wanted_bytes,
                    "made": d.made,
                    "made_above": d.above,
                    "brought": d.brought,
                    "bytes": d.bytes,
                    "there": d.there,
                    "flagged": d.flagged,
                    "bodiless": l.bodiless,
                    "failed": failed,
                    "notes": d.notes,
                });
                if l.keep_uids {
                    line["compared"] = json!(d.compared);
                    line["differs"] = json!(d.differs);
                }
                line
            })
            .collect();
        json!({
            "from": self.from,
            "userid": self.userid,
            "mailboxes": lines,
            "not_begun": self.not_begun,
            "notes": self.notes,
            "own": self.own.iter().map(own_json).collect::<Value>(),
            "failed": self.failures(),
            "error": self.error.as_ref().map(Error::to_string),
        })
    }
}

fn own_json(o: &Own) -> Value {
    let mut row = json!({"kind": o.kind, "name": o.name, "became": o.became.word()});
    if !o.why.is_empty() {
        row["why"] = json!(o.why);
    }
    row
}
