//! A backup as it was at a time: what the last acknowledged sync until then said.
//!
//! The log is entered into a scratch index, from its beginning (or from where compaction has stated
//! everything anew) up to the last line whose true time is not later. Where the clock was put
//! back, lines between may be later: the position in the log decides. Bodies are passed over,
//! and chunks in which there is nothing else are not even inflated; where bodies are is known
//! from the live index. So a message that came without its body then and with it later has it.
//!
//! Takes no lock and changes nothing of the backup. What cannot be read is told in
//! [`Past::damage`]; the state may then lack something.

use super::file::FileReader;
use super::gzip::{MemberEnd, MemberReader};
use super::index::{self, ChunkRow, Index, Lines, Place, apply_line};
use super::reader::Reader;
use super::reindex::{self, REFUSED, comment, end_line, first_line, head, pass};
use super::verify::scratch_name;
use crate::cyrus::dlist::{Limits, Parser};
use crate::error::{Error, Kind, Result};
use crate::util::time::{Timestamp, iso};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// The state of a backup at a time.
pub struct Past {
    /// Dropped before its file is removed.
    index: Option<Index>,
    path: PathBuf,
    damage: Vec<(u64, String)>,
}

impl Past {
    /// The index of that time. Chunks and bodies in it are those of the whole log.
    pub fn index(&self) -> &Index {
        match &self.index {
            Some(index) => index,
            // Taken by `drop` only.
            None => unreachable!(),
        }
    }

    /// Members that did not read, by file offset, and why.
    pub fn damage(&self) -> &[(u64, String)] {
        &self.damage
    }
}

impl Drop for Past {
    fn drop(&mut self) {
        self.index = None;
        if let Err(e) = index::remove(&self.path) {
            log::warn!("cannot remove a scratch file error=<{e}>");
        }
    }
}

/// The state of a backup at `time`; `None` if that is what its index says, since nothing came later.
/// The scratch file is made in `scratch` and goes with what is returned.
///
/// `NotFound` if the backup, or what compaction has left of its history, begins later;
/// `NeedsReindex` if the log was replaced meanwhile: open it again.
pub fn at(reader: &Reader, time: Timestamp, scratch: &Path) -> Result<Option<Past>> {
    let live = reader.index();
    let chunks = live.chunks()?;
    let stepped = live.meta_number("stepped")?.unwrap_or(0);
    if chunks.last().is_none_or(|c| c.last_time <= time.0) && !chunks.is_empty() {
        return Ok(None);
    }
    let none = |since: Option<i64>| {
        let key = live.meta_text("key").ok().flatten().unwrap_or_default();
        let since = since.map_or("nothing has come yet".into(), |t| {
            format!("begins at {}", iso(Timestamp(t)))
        });
        Error::new(Kind::NotFound, format!("history of {key} {since}")).at(reader.path())
    };
    let begin = Begin::of(live)?;
    if begin.time.is_some_and(|t| time.0 < t) {
        return Err(none(begin.time));
    }
    // Printed times never go back, and true ones are not later than these.
    let reached = |c: &&ChunkRow| {
        c.id >= begin.chunk && (c.first_time.min(c.last_time) <= time.0 || c.id <= stepped)
    };
    let last = chunks.iter().filter(reached).map(|c| c.id).max();
    let Some(last) = last else {
        return Err(none(chunks.first().map(|c| c.first_time)));
    };
    let mut past = scratch_index(reader, scratch)?;
    let index = past.index();
    let mut walk = Walk::new(reader, begin.chunk, last)?;
    let mut any = false;
    index.savepoint("good")?;
    walk.run(index, &mut |stamp, settled| {
        if settled && stamp <= time.0 {
            any = true;
            index.release("good")?;
            index.savepoint("good")?;
        }
        Ok(())
    })?;
    index.rollback_to("good")?;
    index.release("good")?;
    if !any {
        return Err(none(chunks.first().map(|c| c.first_time)));
    }
    past.damage = walk.damage;
    Ok(Some(past))
}

/// Seconds for which a user who goes is taken apart: what goes so soon before the INBOX goes with it.
const ENDING: i64 = 60;

/// The last state in which a user had an INBOX and what else was his, until a time if there is one;
/// `None` if there is none in what is left of history. The server may tell of scripts, limits and
/// subscriptions that are gone a little before it tells that the INBOX is.
///
/// The scratch file is made in `scratch` and goes with what is returned.
pub fn alive(
    reader: &Reader,
    inbox: &str,
    until: Option<Timestamp>,
    scratch: &Path,
) -> Result<Option<Past>> {
    let begin = Begin::of(reader.index())?;
    let mut past = scratch_index(reader, scratch)?;
    let index = past.index();
    let mut walk = Walk::new(reader, begin.chunk, i64::MAX)?;
    // How much was his in the last good state; since when it was less, and when the INBOX went.
    let (mut had, mut less, mut end) = (None, None, None);
    index.savepoint("good")?;
    walk.run(index, &mut |stamp, settled| {
        if !settled || until.is_some_and(|t| stamp > t.0) {
            return Ok(());
        }
        if index.mailbox_by_name(inbox)?.is_none() {
            end.get_or_insert(stamp);
            return Ok(());
        }
        // He is back, or was never away.
        end = None;
        let has = index.own_things()?;
        match had {
            Some(n) if has < n && stamp <= less.unwrap_or(stamp) + ENDING => {
                if less.is_some() {
                    index.release("less")?;
                }
                less.get_or_insert(stamp);
                index.savepoint("less")
            }
            _ => {
                (had, less) = (Some(has), None);
                index.release("good")?;
                index.savepoint("good")
            }
        }
    })?;
    if let (Some(since), Some(end)) = (less, end) {
        if end > since + ENDING {
            index.rollback_to("less")?;
            index.release("less")?;
            index.release("good")?;
            index.savepoint("good")?;
        }
    }
    index.rollback_to("good")?;
    index.release("good")?;
    past.damage = walk.damage;
    Ok(had.map(|_: i64| past))
}

/// The state of a backup at the end of a chunk. The scratch file is made in `scratch` and goes with
/// what is returned.
pub fn upto(reader: &Reader, chunk: i64, scratch: &Path) -> Result<Past> {
    let begin = Begin::of(reader.index())?;
    let mut past = scratch_index(reader, scratch)?;
    let mut walk = Walk::new(reader, begin.chunk, chunk)?;
    walk.run(past.index(), &mut |_, _| Ok(()))?;
    past.damage = walk.damage;
    Ok(past)
}

/// An empty index over that of `reader`.
pub(super) fn scratch_index(reader: &Reader, scratch: &Path) -> Result<Past> {
    let live = reader.index();
    std::fs::create_dir_all(scratch).map_err(|e| Error::io("cannot make folder", e).at(scratch))?;
    let path = scratch.join(scratch_name("past"));
    let generation = live.meta_text("generation")?.unwrap_or_default();
    let mut past = Past {
        index: None,
        path,
        damage: Vec::new(),
    };
    past.index = Some(Index::create_over(&past.path, live, &generation)?);
    Ok(past)
}

/// Where history begins.
pub(super) struct Begin {
    /// The chunk to enter first.
    pub(super) chunk: i64,
    /// Nothing is known of what was before.
    pub(super) time: Option<i64>,
}

impl Begin {
    pub(super) fn of(live: &Index) -> Result<Begin> {
        // A log that was never compacted tells everything.
        Ok(Begin {
            chunk: live.meta_number("state_chunk")?.unwrap_or(0),
            time: live.meta_number("state_time")?,
        })
    }
}

/// Goes through the lines of a log in order and enters them into an index that has the bodies
/// already.
pub(super) struct Walk<'a> {
    reader: &'a Reader,
    chunks: Vec<ChunkRow>,
    acknowledged: u64,
    pub(super) damage: Vec<(u64, String)>,
    refused: u32,
}

/// Told of each line that was entered: its true time in seconds, and false if what follows decides
/// about it.
pub(super) type Each<'a> = dyn FnMut(i64, bool) -> Result<()> + 'a;

impl<'a> Walk<'a> {
    /// Over the chunks from `first` to `last`.
    pub(super) fn new(reader: &'a Reader, first: i64, last: i64) -> Result<Walk<'a>> {
        let live = reader.index();
        let bodies: HashSet<i64> = live.chunks_of_bodies()?.into_iter().collect();
        let mut chunks = live.chunks()?;
        chunks.retain(|c| (first..=last).contains(&c.id) && !bodies.contains(&c.id));
        Ok(Walk {
            reader,
            chunks,
            acknowledged: live.meta_number("acknowledged")?.unwrap_or(0) as u64,
            damage: Vec::new(),
            refused: 0,
        })
    }

    pub(super) fn run(&mut self, index: &Index, each: &mut Each<'_>) -> Result<()> {
        for chunk in std::mem::take(&mut self.chunks) {
            self.chunk(index, &chunk, each)?;
        }
        Ok(())
    }

    /// As `reindex` enters a member, so that both say the same.
    fn chunk(&mut self, index: &Index, chunk: &ChunkRow, each: &mut Each<'_>) -> Result<()> {
        let file = self.reader.file();
        let until = match chunk.length {
            Some(length) => chunk.offset + length,
            None => self.acknowledged,
        };
        let member = MemberReader::new(FileReader::until(file, chunk.offset, until));
        let mut parser = Parser::new(member, Limits::default());
        let mut lines = Lines {
            without_bodies: true,
            ..Lines::default()
        };
        match first_line(&mut parser) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(e) => return self.trouble(chunk, e.to_string(), parser),
        }
        loop {
            let at = parser.position();
            match parser.peek() {
                Ok(None) => break,
                Ok(Some(b'#')) => match comment(&mut parser) {
                    Ok(()) => continue,
                    Err(e) => return self.trouble(chunk, format!("line at {at}: {e}"), parser),
                },
                Ok(Some(_)) => {}
                Err(e) => return self.trouble(chunk, e.to_string(), parser),
            }
            index.savepoint("line")?;
            let place = Place {
                chunk_id: chunk.id,
                line: at,
                origin: 0,
            };
            let entered = head(&mut parser).and_then(|(stamp, name)| {
                let stamp = Timestamp(stamp);
                apply_line(index, &mut lines, &name, &mut parser, stamp, place)?;
                end_line(&mut parser)?;
                let settled = name != b"MESSAGE" && !lines.is_waiting();
                Ok((stamp.0 + lines.clock, settled))
            });
            match entered {
                Ok((time, settled)) => {
                    index.release("line")?;
                    each(time, settled)?;
                }
                Err(e) if matches!(e.kind(), Kind::Db | Kind::NoSpace) => return Err(e),
                Err(e) => {
                    index.rollback_to("line")?;
                    index.release("line")?;
                    let next = match self.refused < REFUSED && e.kind() != Kind::Io {
                        true => pass(file, chunk.offset, until, at)?,
                        false => None,
                    };
                    let Some(next) = next else {
                        return self.trouble(chunk, format!("line at {at}: {e}"), parser);
                    };
                    // What the old server refused itself is no damage: no index has it.
                    self.refused += 1;
                    lines.complete = None;
                    lines.differs = None;
                    parser = next;
                }
            }
        }
        match end(parser)? {
            MemberEnd::Sealed { .. } => Ok(()),
            MemberEnd::Torn if chunk.length.is_none() => Ok(()),
            MemberEnd::Torn => self.note(chunk, "ends in the middle of a member".into(), true),
            MemberEnd::Damaged(why) => self.note(chunk, format!("damaged member: {why}"), false),
        }
    }

    fn trouble(&mut self, chunk: &ChunkRow, what: String, parser: Members<'_>) -> Result<()> {
        let torn = end(parser)? == MemberEnd::Torn;
        self.note(chunk, what, torn)
    }

    /// A member that was torn when the index was made, as the old server left some, says all it
    /// ever said.
    fn note(&mut self, chunk: &ChunkRow, what: String, torn: bool) -> Result<()> {
        let known = match (chunk.length, &chunk.sha256) {
            (Some(length), Some(hash)) if torn => {
                reindex::hash(self.reader.file(), chunk.offset, length)?[..] == hash[..]
            }
            _ => false,
        };
        if !known {
            self.damage.push((chunk.offset, what));
        }
        Ok(())
    }
}

type Members<'a> = Parser<MemberReader<FileReader<'a>>>;

fn end(parser: Members<'_>) -> Result<MemberEnd> {
    let end = parser.into_inner().end();
    end.map_err(|e| Error::io("cannot read log", e))
}
