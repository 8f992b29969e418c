//! One compaction from beginning to end.

use super::making::Making;
use super::need::Times;
use super::survey::{Reading, Survey};
use super::tidy::tidy;
use super::{Outcome, Policy, Report, new_path, switch};
use crate::cyrus::guid::Guid;
use crate::error::{Error, Kind, Result};
use crate::store::backup::{Backup, resync_line};
use crate::store::file::LogFile;
use crate::store::index::{self, Index, MailboxRow};
use crate::store::lock::{Create, DataLock, Wait};
use crate::store::reader::{Reader, Stale};
use crate::util::hex;
use std::collections::{BTreeSet, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// So much may be left to be copied under the lock, in bytes.
const UNDER_LOCK: u64 = 1 << 20;
/// A clock this far behind the newest record is wrong, in seconds.
const BEHIND: i64 = 86_400;

/// Compacts the backup whose data file is at `path`. `key` is whose it is, `scratch` a folder for
/// files that are thrown away. Sees to it itself that nobody else compacts it at the same time.
pub fn compact(
    path: &Path,
    key: &str,
    policy: &Policy,
    times: &Times<'_>,
    scratch: &Path,
) -> Result<Report> {
    if std::fs::metadata(path)
        .map_err(|e| Error::io("cannot open", e).at(path))?
        .len()
        == 0
    {
        if !policy.dry_run {
            tidy(path)?;
        }
        return Ok(Report::default());
    }
    match attempt(path, key, policy, times, scratch, Reading::Whole) {
        Err(e) if e.kind() == Kind::Damaged && policy.force && !policy.dry_run => {
            log::warn!("history up to now is dropped: {e}");
            attempt(path, key, policy, times, scratch, Reading::Salvage)
        }
        done => done,
    }
}

fn attempt(
    path: &Path,
    key: &str,
    policy: &Policy,
    times: &Times<'_>,
    scratch: &Path,
    reading: Reading,
) -> Result<Report> {
    let mut lock = None;
    loop {
        let found = survey(path, key, policy, times, reading);
        let (reader, key, survey) = match (found, lock.take()) {
            (Err(e), lock) => {
                lock.iter().for_each(|lock| give_up(path, lock));
                return Err(e);
            }
            (Ok((_, _, survey)), held)
                if survey.report.outcome != Outcome::Done || policy.dry_run =>
            {
                drop(held);
                if !policy.dry_run {
                    tidy(path)?;
                }
                return Ok(survey.report);
            }
            (Ok(found), held) => {
                lock = held;
                found
            }
        };
        if !survey.lost.is_empty() && doubt(path, &key, policy, times, &reader, &survey.lost)? {
            continue;
        }
        let held = match lock.take() {
            Some(held) => held,
            None => {
                let held = alone(path, policy)?;
                let now = Reader::open(path, Stale::Refuse);
                let now = now.and_then(|now| now.index().meta_text("generation"));
                let is_same = |now: &Option<String>| matches!(reader.index().meta_text("generation"), Ok(was) if was == *now);
                if !now.is_ok_and(|now| is_same(&now)) {
                    // Somebody else has compacted it meanwhile.
                    lock = Some(held);
                    continue;
                }
                held
            }
        };
        let made = make(path, &key, policy, times, scratch, reader, survey, &held);
        return made.map_err(|e| {
            give_up(path, &held);
            gone(path, e)
        });
    }
}

/// Marks the mailboxes in which messages are alive that do not read, so that the sender brings them again. False if
/// all of them were marked. Each message is told.
fn doubt(
    path: &Path,
    key: &str,
    policy: &Policy,
    times: &Times<'_>,
    reader: &Reader,
    lost: &HashSet<Guid>,
) -> Result<bool> {
    let index = reader.index();
    let mut marked = BTreeSet::new();
    for guid in lost {
        for row in index.records_of(*guid)? {
            let mailbox = index.mailbox_by_id(row.mailbox_id)?;
            let is_live = |m: &MailboxRow| m.deleted.is_none() && m.epoch == row.epoch;
            let Some(mailbox) = mailbox.filter(is_live) else {
                continue;
            };
            if row.expunged.is_none() && index.resync(&mailbox.uniqueid)?.is_none() {
                let (name, uid) = (&mailbox.mboxname, row.record.uid);
                log::warn!(
                    "does not read: message={guid} mailbox=<{name}> uid={uid}: the next sync brings it"
                );
                marked.insert(mailbox.uniqueid);
            }
        }
    }
    if marked.is_empty() {
        return Ok(false);
    }
    let lines: Vec<_> = marked
        .iter()
        .map(|id| resync_line(id, 1, "bodies lack after damage"))
        .collect();
    let mut backup = Backup::open(path, key, policy.wait, Create::No, policy.settings)?;
    backup.append(&lines, times.now)?;
    backup.finish()?;
    Ok(true)
}

/// Opens the backup and looks through it. With it, whose it is: whoever asked may have looked it up
/// before it was renamed.
fn survey(
    path: &Path,
    key: &str,
    policy: &Policy,
    times: &Times<'_>,
    reading: Reading,
) -> Result<(Reader, String, Survey)> {
    let reader = opened(path, key, policy, times, reading)?;
    let own = reader.index().meta_text("key")?;
    let survey = Survey::make(&reader, policy, times, reading)?;
    Ok((reader, own.unwrap_or_else(|| key.to_owned()), survey))
}

/// Sees to it that nobody else compacts the backup. Waits for who does only where that was asked for
/// or something must go: else another run does what there is to do.
fn alone(path: &Path, policy: &Policy) -> Result<DataLock> {
    let is_asked = policy.wait == Wait::Forever || !policy.erase.is_empty();
    let wait = if is_asked { policy.wait } else { Wait::No };
    let lock = DataLock::acquire(&new_path(path), wait, Create::IfMissing);
    lock.map_err(|e| match e.kind() {
        Kind::Locked => {
            let what = "is being compacted already";
            Error::new(Kind::Locked, what).at(path).because(e)
        }
        _ => e,
    })
}

/// Removes what was begun. The old pair is as it was, unless the new log has taken its name already.
fn give_up(path: &Path, lock: &DataLock) {
    let ours = lock.file().metadata().ok();
    let named = std::fs::metadata(new_path(path)).ok();
    match (ours, named) {
        (Some(ours), Some(named)) if ours.ino() == named.ino() => {
            let _ = index::remove(&index::path_of(&new_path(path)));
            let _ = std::fs::remove_file(new_path(path));
        }
        // A move has taken it along with the log, perhaps before there was an index.
        (_, None) if matches!(path.try_exists(), Ok(false)) => {
            let _ = index::remove(&index::path_of(&new_path(path)));
        }
        _ => {}
    }
}

/// Why it failed, where the backup is not there any more: it was moved or deleted meanwhile.
fn gone(path: &Path, e: Error) -> Error {
    match path.try_exists() {
        Ok(false) => Error::new(Kind::NotFound, "no backup is there any more")
            .at(path)
            .because(e),
        _ => e,
    }
}

/// Opens for reading; a log that the old tools began is taken over first, so that it has a name. Where
/// something must go, or is in doubt, whoever has the backup is waited for.
fn opened(
    path: &Path,
    key: &str,
    policy: &Policy,
    times: &Times<'_>,
    reading: Reading,
) -> Result<Reader> {
    let reader = Reader::open(path, Stale::Repair(policy.settings))?;
    let newest = reader.index().last_chunk()?.map_or(0, |c| c.last_time);
    if newest > times.now.0.saturating_add(BEHIND) && !policy.force {
        let what = "the clock is more than a day behind the newest record: not compacted";
        return Err(Error::new(Kind::Denied, what).at(path));
    }
    let named = reader.index().meta_text("generation")?;
    let named = named.is_some_and(|id| !id.is_empty());
    // A body may stand in a chunk that is open: it is sealed.
    let is_enough = reading == Reading::Whole && policy.erase.is_empty();
    if named && is_enough || policy.dry_run {
        return Ok(reader);
    }
    drop(reader);
    let mut backup = Backup::open(path, key, policy.wait, Create::No, policy.settings)?;
    if !named {
        backup.append(&[], times.now)?;
    }
    backup.finish()?;
    Reader::open(path, Stale::Repair(policy.settings))
}

#[allow(clippy::too_many_arguments)]
fn make(
    path: &Path,
    key: &str,
    policy: &Policy,
    times: &Times<'_>,
    scratch: &Path,
    reader: Reader,
    survey: Survey,
    lock: &DataLock,
) -> Result<Report> {
    let mut report = survey.report.clone();
    let fail = |e| Error::io("cannot write", e).at(lock.path());
    LogFile::set_len(lock.file(), 0).map_err(fail)?;
    let index = Index::create(&index::path_of(lock.path()))?;
    let places = index.attach(reader.index().path())?;
    index.begin()?;
    let mut making = Making {
        file: lock.file(),
        end: 0,
        index,
        max: match policy.max {
            0 => policy.settings.chunk_max,
            max => max,
        },
        level: policy.level,
        skip: policy.erase.union(&survey.lost).copied().collect(),
        places,
    };
    let id = new_id()?;
    making.generation(&id, key, reader.index(), &survey)?;
    making.steps(&reader, &survey, key, policy, times, scratch)?;
    let mut done = survey.chunks.last().map_or(0, |c| c.id);
    let was = reader.index().meta_text("generation")?;
    let old = reader.data_file()?;
    // What came meanwhile, until little is left.
    let mut reader = reader;
    loop {
        let later = reader.index().chunks_after(done)?;
        let later: Vec<_> = later.into_iter().filter(|c| c.length.is_some()).collect();
        let bytes: u64 = later.iter().filter_map(|c| c.length).sum();
        if bytes < UNDER_LOCK {
            break;
        }
        making.tail(&old, reader.index(), &later, done, times)?;
        done = later.last().map_or(done, |c| c.id);
        reader = Reader::open(path, Stale::Refuse)?;
        if reader.index().meta_text("generation")? != was {
            return Err(replaced(path));
        }
    }
    drop(reader);
    let mut backup = Backup::open(path, key, policy.wait, Create::No, policy.settings)?;
    backup.seal()?;
    if backup.index().meta_text("generation")? != was {
        return Err(replaced(path));
    }
    if backup
        .index()
        .meta_text("key")?
        .is_some_and(|now| now != key)
    {
        let what = "the backup was renamed meanwhile";
        return Err(Error::new(Kind::Locked, what).at(path));
    }
    let later = backup.index().chunks_after(done)?;
    making.tail(&old, backup.index(), &later, done, times)?;
    making.manifest(times.now)?;
    same_state(backup.index(), &making.index)?;
    making.acknowledge(backup.index())?;
    report.bytes_before = backup.index().meta_number("acknowledged")?.unwrap_or(0) as u64;
    report.bytes_after = making.end;
    report.chunks_before = backup.index().counts()?.chunks as u64;
    report.chunks_after = making.index.counts()?.chunks as u64;
    report.generation = id;
    LogFile::sync_data(lock.file()).map_err(fail)?;
    making.index.commit()?;
    making.index.detach()?;
    let new_index = switch::close(making.index)?;
    let previous = match (survey.damaged.is_empty(), policy.keep_previous) {
        // Nothing is thrown away because it does not read.
        (false, _) => Some((".damaged.", crate::util::time::now_ms())),
        (true, true) => Some((".", times.now.0)),
        (true, false) => None,
    };
    let old_lock = backup.into_lock()?;
    switch::like(path, lock.path(), &new_index)?;
    switch::check(path, lock.file())?;
    report.previous = previous
        .map(|(mark, number)| switch::keep(path, mark, number))
        .transpose()?;
    switch::switch(path, &new_index)?;
    drop(old_lock);
    Ok(report)
}

fn replaced(path: &Path) -> Error {
    Error::new(Kind::Locked, "the log was replaced meanwhile").at(path)
}

pub(super) fn new_id() -> Result<String> {
    let mut id = [0; 8];
    getrandom::fill(&mut id)
        .map_err(|e| Error::new(Kind::Internal, "no random numbers").because(e.to_string()))?;
    Ok(hex::encode(&id))
}

/// The last look before the switch: what is alive, and how much of everything else there is.
fn same_state(old: &Index, new: &Index) -> Result<()> {
    let differs = |what: &str| {
        let what = format!("compaction would change {what}: abandoned, nothing is changed");
        Error::new(Kind::Internal, what)
    };
    let mut count = 0;
    for was in old.mailboxes(false)? {
        count += 1;
        let is = new.mailbox(&was.uniqueid)?;
        let same = is.is_some_and(|is| {
            (&is.head, is.epoch, is.records, is.sums, is.deleted)
                == (&was.head, was.epoch, was.records, was.sums, was.deleted)
                && (is.created, is.changed) == (was.created, was.changed)
        });
        if !same {
            return Err(differs(&format!("mailbox {}", was.mboxname)));
        }
    }
    if new.mailboxes(false)?.len() != count {
        return Err(differs("the list of mailboxes"));
    }
    let subscriptions = |index: &Index| -> Result<Vec<(String, i64)>> {
        let rows = index.subscriptions(false)?;
        Ok(rows.into_iter().map(|s| (s.mboxname, s.time)).collect())
    };
    if subscriptions(old)? != subscriptions(new)? {
        return Err(differs("subscriptions"));
    }
    let scripts = |index: &Index| -> Result<Vec<(String, Guid, i64)>> {
        let rows = index.scripts(false)?;
        let rows = rows.into_iter().map(|s| (s.filename, s.guid, s.time));
        Ok(rows.collect())
    };
    if scripts(old)? != scripts(new)? || old.active_since()? != new.active_since()? {
        return Err(differs("sieve scripts"));
    }
    if old.seen_states()?.len() != new.seen_states()?.len()
        || old.quotas()? != new.quotas()?
        || old.marks_since()? != new.marks_since()?
        || old.all_annotations()?.len() != new.all_annotations()?.len()
    {
        return Err(differs("seen states, quota, annotations or marks"));
    }
    Ok(())
}
