//! Changing the skip list: put, delete, commit, abort, recovery, copy.
//!
//! Promises: between two commits every record's lowest level keeps its committed pointer, new bytes
//! lie past the committed size, and the header that makes them valid is written only after they were
//! synced. So a crash at any moment leaves the old or the new state.
//!
//! Fails with a [`Fault`]; a transaction in which a change failed can only be undone. If undoing fails
//! too the file stays marked, and the next writer recovers it.
//!
//! Order of writes and recovery are Cyrus' ("recovery1" of 3.6 `lib/cyrusdb_twoskip.c`).

use super::Disk;
use super::format::{self, BLANK, DIRTY, DUMMY_AT, Header, LEVEL_MAX, NEW_LEN, Record, RecordKind};
use super::list::{BODY_MAX, DUMMY_LEVEL, Fault, List, Node, Place};

impl<D: Disk> List<D> {
    /// Makes an unborn file an empty database and syncs it. Needs the write lock.
    pub fn create(&mut self) -> Result<(), Fault> {
        self.disk.write_at(&format::new_file(), 0)?;
        self.disk.sync_all()?;
        self.header = Header::new();
        (self.end, self.len) = (NEW_LEN, NEW_LEN);
        Ok(())
    }

    /// Sets what a repack records about itself, as its last change before the commit.
    pub fn set_repacked(&mut self, generation: u64) -> Result<(), Fault> {
        self.changing(List::mark_dirty)?;
        self.header.generation = generation;
        self.header.repack_size = self.end;
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
