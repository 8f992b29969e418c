//! The clock, looked at before `compact` and `delete --expired` remove what is old; see
//! `store::clock`.

use super::Context;
use crate::error::{Error, Kind, Result};
use crate::store::clock::{Ran, SETTLED, Uptime, Verdict, limit};
use crate::sys::clock::uptime;
use crate::util::time::{Timestamp, iso, now};
use getopts::Options;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The option by which a clock is believed at once.
pub const OPTION: &str = "clock-is-right";

/// Adds it.
pub fn option(o: &mut Options) {
    o.optflag("", OPTION, "remove by this clock, however far it has gone");
}

/// What is to be done with what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Noted, for the runs to come.
    Real,
    /// Nothing: this run changes nothing.
    Dry,
    /// Somebody says that the clock is right.
    Right,
}

/// From when on a backup that is deleted now is kept, in case the clock is slow: not before its log was
/// written to last or anything was removed by the clock. `Denied` if that is ahead by more than the time of grace, and
/// a day.
pub fn kept_from(c: &Context, log: &Path, look: Look) -> Result<Timestamp> {
    let ran = c.compacted().ran().unwrap_or_else(|e| {
        log::warn!("the last run is not known: {e}");
        None
    });
    let written = std::fs::metadata(log).map(|m| m.mtime());
    let now = now();
    let known = ran.map(|ran| ran.time).max(written.ok());
    let Some(known) = known.filter(|known| *known > now.0 && look != Look::Right) else {
        return Ok(now);
    };
    let grace = c.config.backup_delete_grace().as_secs().max(86_400);
    let grace = i64::try_from(grace).unwrap_or(i64::MAX);
    let known = Timestamp(known);
    if known.0.saturating_sub(now.0) > grace {
        let what = format!(
            "the clock is {} days behind what was done by it at {}: its time of grace would be over too soon. \
             If it is wrong, set it; if it is right: --{OPTION}",
            known.0.saturating_sub(now.0) / 86_400,
            iso(known)
        );
        return Err(Error::new(Kind::Denied, what));
    }
    log::warn!(
        "the clock is behind what was done by it: kept as if deleted at {}",
        iso(known)
    );
    Ok(known)
}

/// Looks at the clock. `None`: it is believed. Else why not, of kind `Denied`.
pub fn check(c: &Context, now: Timestamp, look: Look) -> Result<Option<Error>> {
    let notes = c.compacted();
    let kept = [
        c.config.backup_retention(),
        Some(c.config.backup_delete_grace()),
    ];
    let kept = kept.into_iter().flatten().min();
    let kept = kept.map(|d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
    let up = uptime().map(|(boot, secs)| Uptime { boot, secs });
    let verdict = match look {
        Look::Right => Verdict::Believed,
        _ => notes.judge(now.0, up.as_ref(), limit(kept))?,
    };
    let time = now.0;
    let noted = match (look, &verdict) {
        (Look::Dry, _) => Ok(()),
        (_, Verdict::Believed) => notes.believe(&Ran { time, up }),
        (_, Verdict::Doubted(doubt) | Verdict::Behind(doubt)) => notes.doubt(doubt),
    };
    if let Err(e) = noted {
        log::warn!("cannot remember this run: {e}");
    }
    let Verdict::Doubted(doubt) = verdict else {
        return Ok(None);
    };
    let what = format!(
        "the clock is {} days ahead of the last run at {}, and this machine was not up for that long: \
         nothing is removed by it. If it is wrong, set it. If it is right, the next run at {} or later goes on by itself, and one with \
         --{OPTION} at once",
        now.0.saturating_sub(doubt.ran) / 86_400,
        iso(Timestamp(doubt.ran)),
        iso(Timestamp(doubt.time.saturating_add(SETTLED))),
    );
    Ok(Some(Error::new(Kind::Denied, what)))
}
