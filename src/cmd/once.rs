//! Mailboxes by names they do not have any more. The index knows their present ones; the former are in
//! the log, which is read for it only when nothing is called so.

use super::mailboxes::{candidates, named};
use super::output::{plain, when};
use super::{Context, View};
use crate::error::{Error, Kind, Result};
use crate::store::history::{MailboxChange, What, history};
use crate::store::index::{MailboxRow, Watch};

/// A mailbox that was called otherwise, and when it got its present name.
struct Renamed {
    row: MailboxRow,
    time: i64,
}

fn renamed(view: &View, name: &str, c: &Context) -> Result<Vec<Renamed>> {
    let (candidates, _) = candidates(name, &view.key, c);
    let scratch = c.config.backup_staging_path();
    let mut found: Vec<(String, i64)> = Vec::new();
    history(&view.reader, &scratch, &Watch::All, &mut |event| {
        if let What::Mailbox { uniqueid, what, .. } = event.what {
            match *what {
                MailboxChange::Renamed(old) if candidates.contains(&old) => {
                    found.retain(|(id, _)| *id != uniqueid);
                    found.push((uniqueid, event.time));
                }
                _ => {}
            }
        }
        Ok(())
    })?;
    let mut out = Vec::new();
    for (uniqueid, time) in found {
        if let Some(row) = view.index().mailbox(&uniqueid)? {
            out.push(Renamed { row, time });
        }
    }
    Ok(out)
}

/// As [`named`], with deleted ones; where nothing is called so, all that ever were.
pub(super) fn ever_named(view: &View, name: &str, c: &Context) -> Result<Vec<MailboxRow>> {
    match named(view, name, true, c) {
        Err(e) if e.kind() == Kind::NotFound => {
            let rows: Vec<_> = renamed(view, name, c)?.into_iter().map(|r| r.row).collect();
            match rows.is_empty() {
                true => Err(e),
                false => Ok(rows),
            }
        }
        found => found,
    }
}

/// As [`named`]; where nothing is called so, `NotFound` tells how what was is called now.
pub(super) fn now_named(
    view: &View,
    name: &str,
    with_deleted: bool,
    c: &Context,
) -> Result<Vec<MailboxRow>> {
    match named(view, name, with_deleted, c) {
        Err(e) if e.kind() == Kind::NotFound && view.at.is_none() => {
            let is = |r: &Renamed| {
                let now = plain(&c.admin_name(&r.row.mboxname));
                format!("is {now} since {}", when(Some(r.time)))
            };
            let told: Vec<String> = renamed(view, name, c)?.iter().map(is).collect();
            if told.is_empty() {
                return Err(e);
            }
            let what = format!("{name}: no mailbox any more, it {}", told.join("; "));
            Err(Error::new(Kind::NotFound, what).for_user(&view.key))
        }
        found => found,
    }
}
