//! What a loss in a log means: what is told of it, and which mailboxes it leaves in doubt.

use crate::error::Result;
use crate::store::index::Index;
use crate::store::reindex::Entered;
use crate::util::time::Timestamp;
use std::path::Path;

/// Where the index of a log of the old tools remembers which mailboxes were stated in members whose
/// bytes are wrong: uniqueids, until they are marked.
pub(in crate::store) const HURT: &str = "hurt";

/// Live mailboxes (uniqueid, reason) that cannot be what their sender stated, or may not be: `hurt`
/// names those whose lines stand where bytes are wrong.
pub(in crate::store) fn doubts<'a>(
    index: &Index,
    hurt: impl Iterator<Item = &'a str>,
    damaged: bool,
) -> Result<Vec<(String, String)>> {
    let mut out = index.doubtful(damaged)?;
    for uniqueid in hurt {
        let row = index.mailbox(uniqueid)?;
        let live = row.is_some_and(|row| row.deleted.is_none() && !row.intermediate);
        if live && !out.iter().any(|(known, _)| known == uniqueid) {
            let why = "stated where bytes are wrong";
            out.push((uniqueid.to_owned(), why.to_owned()));
        }
    }
    Ok(out)
}

/// Marks the mailboxes that are in doubt and are not marked yet, and names them. With the state itself,
/// lest a failure before they are in the log loses them.
pub(super) fn marked(
    index: &Index,
    entered: &Entered,
    damaged: bool,
) -> Result<Vec<(String, String)>> {
    let mut out = doubts(index, entered.hurt.iter().map(String::as_str), damaged)?;
    out.retain(|(uniqueid, _)| !matches!(index.resync(uniqueid), Ok(Some(_))));
    for (uniqueid, why) in &out {
        index.mark_resync(uniqueid, 1, why, Timestamp(entered.stamp))?;
    }
    Ok(out)
}

/// All that was found in a log, wrong bodies too.
pub(super) fn findings(entered: &Entered) -> Vec<(u64, String)> {
    let mut out = entered.damage.clone();
    for (guid, offset) in &entered.wrong {
        let what = format!("body of message {guid} is not what it says");
        out.push((*offset, what));
    }
    out
}

/// Tells what was found.
pub(super) fn found(path: &Path, damage: &[(u64, String)]) {
    for (at, what) in damage {
        log::warn!(
            "log finding filename=<{}> offset={at} reason=<{what}>",
            path.display()
        );
    }
}
