//! The skip list of a twoskip file over any [`Disk`]: open and search. Changes are in `change`.
//!
//! Knows nothing of locks and paths: who calls must hold the lock that the call needs.
//!
//! Promises: reading writes nothing and needs no recovery, for the committed state stays readable
//! while a transaction is under way and after its writer died.
//!
//! Fails with a [`Fault`], which has the offset of what is wrong. On any file content reads end: keys
//! must ascend, a pointer leads to at most one DELETE, and no record reaches past the file's end.
//!
//! The structure is Cyrus' (3.6 `lib/cyrusdb_twoskip.c`).

use super::Disk;
use super::format::{DUMMY_AT, HEADER_LEN, Header, LEVEL_MAX, NEW_LEN, Record, RecordKind};
use std::hash::{BuildHasher, Hasher};
use std::io;

/// The largest key plus value we read or write, in bytes: a hostile file may claim any.
pub(super) const BODY_MAX: u64 = 64 << 20;
/// One read of this many bytes gets the head of a record and, if short, all of it.
const WINDOW: usize = 512;
pub(super) const DUMMY_LEVEL: u8 = LEVEL_MAX as u8;

/// Why a [`List`] failed.
#[derive(Debug)]
pub enum Fault {
    /// The disk failed.
    Io(io::Error),
    /// The bytes at this offset are wrong.
    Bad {
        /// Offset in the file, in bytes.
        at: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// The caller asked for what cannot be.
    Refused(&'static str),
}

impl From<io::Error> for Fault {
    fn from(e: io::Error) -> Fault {
        Fault::Io(e)
    }
}

/// How a file was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// As the last commit left it.
    Clean,
    /// A writer died: readable, but a writer must call [`List::recover`] first.
    Unclean,
    /// No database yet, and no data: a writer must call [`List::create`] first.
    Unborn,
}

/// A skip list on a disk, and the transaction under way.
#[derive(Debug)]
pub struct List<D> {
    pub(super) disk: D,
    pub(super) header: Header,
    /// Where the file ends for us: the committed size, or where the transaction appends.
    pub(super) end: u64,
    /// The file's length.
    pub(super) len: u64,
    /// The header on disk says DIRTY because of us.
    pub(super) is_writing: bool,
    /// A change failed half-way: the transaction can only be undone.
    pub(super) is_broken: bool,
    pub(super) random: u64,
}

/// A record with its offset and its key.
pub(super) struct Node {
    pub(super) at: u64,
    pub(super) record: Record,
    /// The whole body if it was short, else the key.
    bytes: Vec<u8>,
}

impl Node {
    pub(super) fn key(&self) -> &[u8] {
        self.bytes
            .get(..self.record.key_len as usize)
            .unwrap_or(&[])
    }
}

/// Where a key is or belongs: per level the last record before it and the first after it.
pub(super) struct Place {
    pub(super) back: [u64; LEVEL_MAX],
    pub(super) forward: [u64; LEVEL_MAX],
    pub(super) found: Option<Node>,
}

pub(super) fn bad<T>(at: u64, why: &'static str) -> Result<T, Fault> {
    Err(Fault::Bad { at, why })
}

impl<D: Disk> List<D> {
    /// A list on `disk`; nothing is read before [`List::load`].
    pub fn new(disk: D) -> List<D> {
        let seed = std::hash::RandomState::new().build_hasher().finish();
        List::with_seed(disk, seed)
    }

    /// As `new`, with the coin that picks the levels made predictable.
    pub fn with_seed(disk: D, seed: u64) -> List<D> {
        List {
            disk,
            header: Header::new(),
            end: 0,
            len: 0,
            is_writing: false,
            is_broken: false,
            random: seed | 1,
        }
    }

    /// Reads the header. Needs a read lock; what was known before is forgotten.
    pub fn load(&mut self) -> Result<Condition, Fault> {
        (self.is_writing, self.is_broken) = (false, false);
        self.end = 0;
        self.len = self.disk.len()?;
        if self.len == 0 {
            return Ok(Condition::Unborn);
        }
        let mut bytes = [0; HEADER_LEN];
        if self.disk.read_at(&mut bytes, 0)? < HEADER_LEN {
            return bad(0, "file is too short for a header");
        }
        // A crash while an empty database was made may leave its length and no bytes.
        if bytes == [0; HEADER_LEN] && self.len == NEW_LEN {
            return Ok(Condition::Unborn);
        }
        self.header = Header::parse(&bytes).or_else(|why| bad(0, why))?;
        self.end = self.header.current_size;
        if self.header.is_dirty() || self.len != self.end {
            return Ok(Condition::Unclean);
        }
        Ok(Condition::Clean)
    }

    /// The header as read, with the changes of the transaction under way.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The disk under the list.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// The value of `key`, as this transaction sees it. Needs a read lock.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        match self.find(key, true)?.found {
            Some(node) => self.value(&node).map(Some),
            None => Ok(None),
        }
    }

    /// Calls `f` with keys that begin with `prefix` and their values, in order, until it says `false`.
    pub fn for_each(
        &self,
        prefix: &[u8],
        mut f: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), Fault> {
        if self.end == 0 {
            return Ok(());
        }
        let mut here = if prefix.is_empty() {
            self.successor(&self.dummy()?, 0)?
        } else {
            let place = self.find(prefix, false)?;
            match (place.found, place.forward[0]) {
                (Some(node), _) => Some(node),
                (None, 0) => None,
                (None, at) => Some(self.node(at)?),
            }
        };
        while let Some(node) = here.filter(|n| n.key().starts_with(prefix)) {
            if !f(node.key(), &self.value(&node)?) {
                return Ok(());
            }
            here = self.successor(&node, 0)?;
        }
        Ok(())
    }

    /// Proves the whole list: order, checksums, every level's pointers, the count. Needs a read lock
    /// and a clean file.
    pub fn check(&self) -> Result<(), Fault> {
        if self.end == 0 {
            return Ok(());
        }
        let mut count = 0;
        let mut here = self.dummy()?;
        let mut expected = here.record.next;
        while let Some(next) = self.successor(&here, 0)? {
            self.value(&next)?;
            for level in 1..usize::from(next.record.level) {
                if expected[level + 1] != next.at {
                    return bad(next.at, "a level passes the record by");
                }
                expected[level + 1] = next.record.next[level + 1];
            }
            count += 1;
            here = next;
        }
        if expected[2..].iter().any(|at| *at != 0) {
            return bad(here.at, "a level goes on after the last record");
        }
        if count != self.header.num_records {
            return bad(0, "header counts the records wrongly");
        }
        Ok(())
    }

    /// Finds `key` or its place; `any_level`: what was found need not come with its place.
    pub(super) fn find(&self, key: &[u8], any_level: bool) -> Result<Place, Fault> {
        let mut place = Place {
            back: [DUMMY_AT; LEVEL_MAX],
            forward: [0; LEVEL_MAX],
            found: None,
        };
        if self.end == 0 || key.is_empty() {
            return Ok(place);
        }
        let mut here = self.dummy()?;
        // The last record seen that is not before the key, met again on the levels below.
        let mut beyond = 0;
        for level in (0..LEVEL_MAX).rev() {
            loop {
                let at = here.record.successor(level, self.end);
                if at == beyond && at != 0 {
                    break;
                }
                let Some(next) = self.successor(&here, level)? else {
                    beyond = 0;
                    break;
                };
                if next.key() < key {
                    here = next;
                    continue;
                }
                beyond = next.at;
                if next.key() == key {
                    place.found = Some(next);
                    if any_level {
                        return Ok(place);
                    }
                }
                break;
            }
            place.back[level] = here.at;
            place.forward[level] = beyond;
        }
        // What comes after the key is what comes after the record that has it.
        if let Some(node) = &place.found {
            if place.forward[0] != node.at {
                return bad(node.at, "record is missing on the lowest level");
            }
            for level in 1..usize::from(node.record.level) {
                place.forward[level] = node.record.successor(level, self.end);
            }
            place.forward[0] = self.successor(node, 0)?.map_or(0, |n| n.at);
        }
        Ok(place)
    }

    /// The live record after `here` on `level`, with its key proved to be larger.
    pub(super) fn successor(&self, here: &Node, level: usize) -> Result<Option<Node>, Fault> {
        let at = here.record.successor(level, self.end);
        if at == 0 {
            return Ok(None);
        }
        let mut next = self.node(at)?;
        if level == 0 && next.record.kind == RecordKind::Delete {
            if next.record.next[0] == 0 {
                return Ok(None);
            }
            next = self.node(next.record.next[0])?;
        }
        if next.record.kind != RecordKind::Record {
            return bad(next.at, "the list leads to what is no record");
        }
        if usize::from(next.record.level) <= level {
            return bad(next.at, "record is not on the level that leads to it");
        }
        // This also ends every walk: a circle cannot ascend.
        if next.key() <= here.key() {
            return bad(next.at, "keys are out of order");
        }
        Ok(Some(next))
    }

    pub(super) fn dummy(&self) -> Result<Node, Fault> {
        let node = self.node(DUMMY_AT)?;
        let record = &node.record;
        if record.kind != RecordKind::Dummy || record.level != DUMMY_LEVEL || record.key_len != 0 {
            return bad(DUMMY_AT, "the first record is not the list's head");
        }
        Ok(node)
    }

    pub(super) fn node(&self, at: u64) -> Result<Node, Fault> {
        let limit = self.end.min(self.len);
        if at < DUMMY_AT || at % 8 != 0 || at >= limit {
            return bad(at, "pointer leads nowhere");
        }
        let mut window = [0; WINDOW];
        let got = self.disk.read_at(&mut window, at)?;
        let got = got.min(usize::try_from(limit - at).unwrap_or(usize::MAX));
        let record = Record::parse(&window[..got]).or_else(|why| bad(at, why))?;
        let head_len = record.head_len();
        let body_len = record.body_len().filter(|len| *len <= BODY_MAX);
        let Some(body_len) = body_len.filter(|len| head_len as u64 + len <= limit - at) else {
            return bad(at, "record reaches past the end of the file");
        };
        // At most BODY_MAX, so both fit.
        let (key_len, body_len) = (record.key_len as usize, body_len as usize);
        let bytes = if let Some(body) = window[..got].get(head_len..head_len + body_len) {
            body.to_vec()
        } else {
            self.read(at + head_len as u64, key_len)?
        };
        Ok(Node { at, record, bytes })
    }

    pub(super) fn value(&self, node: &Node) -> Result<Vec<u8>, Fault> {
        // Checked when the node was read.
        let body_len = node.record.body_len().unwrap_or(0) as usize;
        let read;
        let body = if node.bytes.len() == body_len {
            &node.bytes
        } else {
            read = self.read(node.at + node.record.head_len() as u64, body_len)?;
            &read
        };
        if crc32fast::hash(body) != node.record.body_crc {
            return bad(node.at, "record checksum is wrong");
        }
        let (from, len) = (node.record.key_len as usize, node.record.val_len as usize);
        Ok(body.get(from..from + len).unwrap_or(&[]).to_vec())
    }

    fn read(&self, at: u64, len: usize) -> Result<Vec<u8>, Fault> {
        let mut out = vec![0; len];
        if self.disk.read_at(&mut out, at)? < len {
            return bad(at, "file ends inside a record");
        }
        Ok(out)
    }
}
