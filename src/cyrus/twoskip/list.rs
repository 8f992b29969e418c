//! The skip list of a twoskip file over any [`Disk`]: search, change, commit, recovery.
//!
//! Knows nothing of locks and paths: who calls must hold the lock that the call needs.
//!
//! Promises: between two commits every record's lowest level keeps its committed pointer, new bytes
//! lie past the committed size, and the header that makes them valid is written only after they were
//! synced. So the committed state can be read at any moment, also without recovery.
//!
//! Fails with a [`Fault`], which has the offset of what is wrong. On any file content reads end: keys
//! must ascend, a pointer leads to at most one DELETE, and no record reaches past the file's end.
//!
//! Order of writes and recovery are Cyrus' ("recovery1" of 3.6 `lib/cyrusdb_twoskip.c`).

use super::Disk;
use super::format::{
    self, BLANK, DIRTY, DUMMY_AT, HEADER_LEN, Header, LEVEL_MAX, NEW_LEN, Record, RecordKind,
};
use std::hash::{BuildHasher, Hasher};
use std::io;

/// The largest key plus value we read or write, in bytes: a hostile file may claim any.
const BODY_MAX: u64 = 64 << 20;
/// One read of this many bytes gets the head of a record and, if short, all of it.
const WINDOW: usize = 512;
const DUMMY_LEVEL: u8 = LEVEL_MAX as u8;

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
    disk: D,
    header: Header,
    /// Where the file ends for us: the committed size, or where the transaction appends.
    end: u64,
    /// The file's length.
    len: u64,
    /// The header on disk says DIRTY because of us.
    is_writing: bool,
    /// A change failed half-way: the transaction can only be undone.
    is_broken: bool,
    random: u64,
}

/// A record with its offset and its key.
struct Node {
    at: u64,
    record: Record,
    /// The whole body if it was short, else the key.
    bytes: Vec<u8>,
}

impl Node {
    fn key(&self) -> &[u8] {
        self.bytes
            .get(..self.record.key_len as usize)
            .unwrap_or(&[])
    }
}

/// Where a key is or belongs: per level the last record before it and the first after it.
struct Place {
    back: [u64; LEVEL_MAX],
    forward: [u64; LEVEL_MAX],
    found: Option<Node>,
}

fn bad<T>(at: u64, why: &'static str) -> Result<T, Fault> {
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

    /// Makes an unborn file an empty database and syncs it. Needs the write lock.
    pub fn create(&mut self) -> Result<(), Fault> {
        self.disk.write_at(&format::new_file(), 0)?;
        self.disk.sync_all()?;
        self.header = Header::new();
        (self.end, self.len) = (NEW_LEN, NEW_LEN);
        Ok(())
    }

    /// The header as read, with the changes of the transaction under way.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Sets what a repack records about itself, as its last change before the commit.
    pub fn set_repacked(&mut self, generation: u64) -> Result<(), Fault> {
        self.changing(List::mark_dirty)?;
        self.header.generation = generation;
        self.header.repack_size = self.end;
        Ok(())
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

    /// Stores `value` under `key`, new or not. The same value again writes nothing.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        let level = self.coin();
        self.put_at_level(key, value, level)
    }

    /// As `put`, on a level of the caller's choice (1 to 31) if something is written.
    pub fn put_at_level(&mut self, key: &[u8], value: &[u8], level: u8) -> Result<(), Fault> {
        if key.is_empty() {
            return Err(Fault::Refused("empty key"));
        }
        if (key.len() as u64).saturating_add(value.len() as u64) > BODY_MAX {
            return Err(Fault::Refused("key and value are too large"));
        }
        let mut place = self.find(key, false)?;
        if let Some(node) = &place.found {
            match self.value(node) {
                Ok(old) if old == value => return Ok(()),
                // A rotten value may be replaced.
                Ok(_) | Err(Fault::Bad { .. }) => (),
                Err(e) => return Err(e),
            }
        }
        self.changing(|list| list.insert(&mut place, key, value, level))
    }

    /// Removes `key`; whether it was there.
    pub fn delete(&mut self, key: &[u8]) -> Result<bool, Fault> {
        let mut place = self.find(key, false)?;
        let Some(node) = &place.found else {
            return Ok(false);
        };
        let level = usize::from(node.record.level);
        let after = Record::bare(RecordKind::Delete, 0, place.forward[0]);
        self.changing(|list| {
            list.mark_dirty()?;
            place.forward[0] = list.append(&after, &[])?;
            list.stitch(&place, level)?;
            list.header.num_records = list.header.num_records.saturating_sub(1);
            Ok(())
        })?;
        Ok(true)
    }

    /// Makes the changes since the last commit durable; on an error they are undone.
    ///
    /// If undoing fails too the file stays marked, and the next writer recovers it.
    pub fn commit(&mut self) -> Result<(), Fault> {
        if self.is_broken {
            self.abort()?;
            return Err(Fault::Refused("a change failed before the commit"));
        }
        if !self.is_writing {
            return Ok(());
        }
        let result = self.try_commit();
        if result.is_err() {
            let _ = self.abort();
        }
        result
    }

    /// Undoes the changes since the last commit.
    pub fn abort(&mut self) -> Result<(), Fault> {
        if self.is_writing {
            self.recover()
        } else {
            Ok(())
        }
    }

    /// Brings an unclean file back to its last commit. Needs the write lock.
    ///
    /// Damage that the list reaches is an error and leaves the file's data as they are.
    pub fn recover(&mut self) -> Result<(), Fault> {
        self.header.flags |= DIRTY;
        self.write_header()?;
        self.end = self.header.current_size;
        self.len = self.disk.len()?;
        let mut count = 0;
        let mut here = self.dummy()?;
        let mut before = [DUMMY_AT; LEVEL_MAX];
        let mut expected = here.record.next;
        loop {
            self.drop_uncommitted(&mut here)?;
            let Some(next) = self.successor(&here, 0)? else {
                break;
            };
            for level in 1..usize::from(next.record.level) {
                if expected[level + 1] != next.at {
                    self.point(before[level], level, next.at)?;
                }
                before[level] = next.at;
                expected[level + 1] = next.record.next[level + 1];
            }
            count += 1;
            here = next;
        }
        for level in 1..LEVEL_MAX {
            if expected[level + 1] != 0 {
                self.point(before[level], level, 0)?;
            }
        }
        self.disk.set_len(self.end)?;
        self.len = self.end;
        self.disk.sync_all()?;
        self.header.num_records = count;
        self.header.flags &= !DIRTY;
        self.write_header()?;
        (self.is_writing, self.is_broken) = (false, false);
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

    /// Copies every record of this list, proved, to the end of `to`, whose keys must all be smaller.
    pub fn copy_to<E: Disk>(&self, to: &mut List<E>) -> Result<(), Fault> {
        let mut place = Place {
            back: [DUMMY_AT; LEVEL_MAX],
            forward: [0; LEVEL_MAX],
            found: None,
        };
        let mut here = self.dummy()?;
        while let Some(next) = self.successor(&here, 0)? {
            let value = self.value(&next)?;
            let level = to.coin();
            to.changing(|to| to.insert(&mut place, next.key(), &value, level))?;
            let at = place.forward[0];
            for level in 0..usize::from(level) {
                (place.back[level], place.forward[level]) = (at, 0);
            }
            here = next;
        }
        Ok(())
    }

    // Searching.

    /// Finds `key` or its place; `any_level`: what was found need not come with its place.
    fn find(&self, key: &[u8], any_level: bool) -> Result<Place, Fault> {
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
    fn successor(&self, here: &Node, level: usize) -> Result<Option<Node>, Fault> {
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

    fn dummy(&self) -> Result<Node, Fault> {
        let node = self.node(DUMMY_AT)?;
        let record = &node.record;
        if record.kind != RecordKind::Dummy || record.level != DUMMY_LEVEL || record.key_len != 0 {
            return bad(DUMMY_AT, "the first record is not the list's head");
        }
        Ok(node)
    }

    fn node(&self, at: u64) -> Result<Node, Fault> {
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

    fn value(&self, node: &Node) -> Result<Vec<u8>, Fault> {
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

    // Changing.

    /// Runs a change; one that fails can no longer be committed.
    fn changing(&mut self, f: impl FnOnce(&mut Self) -> Result<(), Fault>) -> Result<(), Fault> {
        let result = f(self);
        self.is_broken |= result.is_err();
        result
    }

    fn insert(
        &mut self,
        place: &mut Place,
        key: &[u8],
        value: &[u8],
        level: u8,
    ) -> Result<(), Fault> {
        self.mark_dirty()?;
        let level = level.clamp(1, DUMMY_LEVEL);
        let body = format::body(key, value);
        let mut record = Record::bare(RecordKind::Record, level, 0);
        record.key_len = key.len() as u64;
        record.val_len = value.len() as u64;
        record.body_crc = crc32fast::hash(&body);
        let levels = usize::from(level);
        record.next[1..=levels].copy_from_slice(&place.forward[..levels]);
        let at = self.append(&record, &body)?;
        place.forward[..levels].fill(at);
        let old_levels = place
            .found
            .as_ref()
            .map_or(0, |n| usize::from(n.record.level));
        self.stitch(place, levels.max(old_levels))?;
        if place.found.is_none() {
            self.header.num_records = self.header.num_records.saturating_add(1);
        }
        Ok(())
    }

    /// Says on disk that a transaction is under way, before anything else of it is written.
    fn mark_dirty(&mut self) -> Result<(), Fault> {
        if self.is_writing {
            return Ok(());
        }
        if self.end == 0 || self.len != self.end || self.header.is_dirty() {
            return Err(Fault::Refused("changing a file that was not made ready"));
        }
        self.is_writing = true;
        self.header.flags |= DIRTY;
        self.write_header()
    }

    fn append(&mut self, record: &Record, body: &[u8]) -> Result<u64, Fault> {
        let head = record.head_bytes();
        let blanks = format::blanks_before(self.end, head.len());
        let at = self.end + blanks * 8;
        let mut bytes = BLANK.repeat(blanks as usize);
        bytes.extend(head);
        bytes.extend(body);
        self.disk.write_at(&bytes, self.end)?;
        self.end += bytes.len() as u64;
        self.len = self.len.max(self.end);
        Ok(at)
    }

    /// Points the records before a place to what now follows them, on the levels below `levels`.
    fn stitch(&mut self, place: &Place, levels: usize) -> Result<(), Fault> {
        let committed = self.header.current_size;
        let mut level = 0;
        while level < levels {
            let at = place.back[level];
            let mut node = self.node(at)?;
            while level < levels && place.back[level] == at {
                node.record
                    .set_successor(level, place.forward[level], committed);
                level += 1;
            }
            self.disk.write_at(&node.record.head_bytes(), at)?;
        }
        Ok(())
    }

    fn try_commit(&mut self) -> Result<(), Fault> {
        let start = self.header.current_size;
        self.append(&Record::bare(RecordKind::Commit, 0, start), &[])?;
        // All of it must be on disk before the header that makes it valid.
        self.disk.sync_all()?;
        let dirty = self.header.clone();
        self.header.current_size = self.end;
        self.header.flags &= !DIRTY;
        if let Err(e) = self.write_header() {
            self.header = dirty;
            return Err(e);
        }
        self.is_writing = false;
        Ok(())
    }

    /// Recovery: empties the slots of the lowest level that point past the last commit.
    fn drop_uncommitted(&mut self, node: &mut Node) -> Result<(), Fault> {
        let mut is_changed = false;
        for slot in &mut node.record.next[..2] {
            if *slot >= self.end {
                *slot = 0;
                is_changed = true;
            }
        }
        if is_changed {
            self.disk.write_at(&node.record.head_bytes(), node.at)?;
        }
        Ok(())
    }

    /// Recovery: points one higher level of the record at `at` to `to`.
    fn point(&mut self, at: u64, level: usize, to: u64) -> Result<(), Fault> {
        let mut node = self.node(at)?;
        node.record.set_successor(level, to, self.end);
        self.disk.write_at(&node.record.head_bytes(), at)?;
        Ok(())
    }

    fn write_header(&mut self) -> Result<(), Fault> {
        self.disk.write_at(&self.header.to_bytes(), 0)?;
        self.disk.sync_data()?;
        Ok(())
    }

    /// 1, and one more for every head in a row.
    fn coin(&mut self) -> u8 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        // The high bits are the better ones.
        (self.random.leading_ones() as u8 + 1).min(DUMMY_LEVEL)
    }
}
